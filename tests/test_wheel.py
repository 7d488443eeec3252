"""What is handed out: the sdist, and the wheel that is built of it, where nothing leads to the checkout."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "calotype"
TAKEN = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "src", "tests")

pytestmark = pytest.mark.slow


def run(*words: object, **more: Any) -> str:
    """What a command prints; without what leads to the checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ran = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, **more)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built of a copy, so that nothing is left in the checkout."""
    pytest.importorskip("build")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in TAKEN:
        source = ROOT / name
        shutil.copytree(source, copy / name, ignore=left_out) if source.is_dir() else shutil.copy(source, copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy)  # the wheel from the sdist
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and the packages that it needs from the one of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # afterwards, so that pip finds nothing installed; .pth files that lie there, as the checkout's, are not followed
    needed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(own) / "needed.pth").write_text("\n".join(needed))
    return programs


def test_metadata_is_clean(built: Path) -> None:
    pytest.importorskip("twine")
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = {path.relative_to(ROOT / "src").as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == files


def test_the_sdist_holds_what_the_wheel_needs_and_no_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"pyproject.toml", "README.md", "LICENSE"} <= set(names)
    assert not [name for name in names if name.startswith("tests")]


def test_docs_name_its_size(wheel: Path) -> None:
    named = re.search(r"wheel of calotype is (\d+) MB", (ROOT / "docs" / "builtin.md").read_text())
    assert named is not None
    assert abs(int(named[1]) - wheel.stat().st_size / 1e6) < 1


def test_the_demo_runs_from_the_wheel(programs: Path, tmp_path: Path) -> None:
    data = pytest.importorskip("skimage.data")
    from PIL import Image

    (tmp_path / "demo").mkdir()
    Image.fromarray(data.astronaut()).save(tmp_path / "demo" / "astronaut.png")
    home = run(programs / "python", "-c", "import calotype; print(calotype.__file__)", cwd=tmp_path).strip()
    assert Path(home).resolve().is_relative_to(programs.parent.resolve())
    commands = re.findall(r"^\.venv/bin/calotype (.*)$", (ROOT / "scripts" / "demo").read_text(), re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        run(programs / "calotype", *shlex.split(command), cwd=tmp_path, timeout=600)
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"astronaut-panel.png", "astronaut.latents.safetensors", "astronaut-decoded.webp"} <= names
    assert any(name.startswith("red-apple") for name in names)
