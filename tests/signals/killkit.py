"""Commands that write, what they need, how to stop them, and a look at what they left behind."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawingkit import small_model
from PIL import Image
from safetensors.torch import load_file
from support import kl, network
from tradekit import weights_of

from calotype.families.folded.config import FoldedConfig
from calotype.latents import PerChannel, ScaleShift
from calotype.weights.save import save_weights

HERE = Path(__file__).resolve().parent
STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143, **({signal.SIGHUP: 129} if sys.platform != "win32" else {})}
SPILLED = "--memory 21MB"  # where a decode of 128x128 pixels by `kl()` has tens of MB in files
FOLDED = FoldedConfig(z_channels=4, ch=(8, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1))


@dataclass(frozen=True)
class Command:
    """One that writes.

    Attributes:
        again: what is added to go on, where there is `checkpoint`.
        same: names of all files that must be the same after it; nothing: all that there are. A run that was stopped
            has a checkpoint more.
        varies: names of files that are never the same twice (times of day, seconds), which must be whole all the same.
        given: a folder of the inputs that is there as `o` before.
        at_once: `o` is complete or not there, so a run that was killed after its work needs no other.
    """

    name: str
    words: tuple[str, ...]
    checkpoint: str = ""
    same: tuple[str, ...] = ()
    varies: tuple[str, ...] = ()
    given: str = ""
    at_once: bool = False


def _command(name: str, words: str, **more: Any) -> Command:
    return Command(name, tuple(words.split()), **more)


DRAWN = "--model in/model.safetensors --steps 2 --out o"
COMMANDS = (
    _command("reconstruct", "reconstruct in/a.png in/b.png --out o"),
    _command("encode", "encode in/a.png in/b.png --out o"),
    _command("decode", "decode in/a.latents.safetensors in/b.latents.safetensors --out o --suffix webp"),
    _command("decode-spilled", f"decode in/spilled.latents.safetensors --vae in/kl.safetensors --out o {SPILLED}"),
    _command("convert-diffusers", "convert in/kl.safetensors o --layout diffusers"),
    _command("convert-ldm", "convert in/kl.safetensors o.safetensors --layout ldm"),
    _command("convert-keras", "convert in/kl.safetensors o --layout keras"),
    _command("morph-png", "morph in/a.png in/b.png --out o.png --frames 4 --sheet sheet.png --ping-pong"),
    _command("morph-webp", "morph in/a.png in/b.png --out o.webp --frames 4"),
    _command("morph-mp4", "morph in/a.png in/b.png --out o.mp4 --frames 4"),
    _command("vary", "vary in/a.png --out o --count 2"),
    _command("blend", "blend in/a.png in/b.png in/mask.png --out o.png"),
    _command("transfer", "transfer in/a.png in/b.png --out o.png"),
    _command("channels", "channels in/a.png in/edits.json --out o.png"),
    _command("learn", "direction learn in/pictures in/others --out o.safetensors"),
    _command("apply", "direction apply in/a.png in/direction.safetensors --out o.png"),
    _command("draw", f"draw apple --count 2 {DRAWN}"),
    _command("redraw", f"redraw in/a.png apple {DRAWN}"),
    _command("evaluate", "evaluate in/pictures --report o --metrics psnr,ssim", varies=("results.json", "index.html")),
    _command(
        "probe", "probe in/vae.safetensors in/pictures --lpips none --report o", varies=("probe.json", "index.html")
    ),
    _command("cache", "cache make in/shapes o --vae in/vae.safetensors --buckets 32/8 --flip"),
    *(
        _command(f"export-{to}", f"cache export in/{cache} o --to {to}{more}", at_once=True)
        for to, cache, more in (
            ("webdataset", "sd1-latents", ""),
            ("sd-scripts", "sd1-latents", ""),
            ("musubi", "wan2.1-latents", " --model wan"),
            ("diffusers-parquet", "sd1-latents", ""),
            ("lightningdit", "sd1-latents", ""),
            ("mds", "sd1-latents", ""),
            ("numpy", "sd1-latents", ""),
        )
    ),
    _command("export-beside", "cache export in/sd1-latents o --to sd-scripts", given="labelled"),
    _command("import", "cache import in/foreign o --vae in/sd1.safetensors --verify 2", at_once=True),
    _command(
        "train", "train in/tiny.toml --data in --out o --device cpu", checkpoint="checkpoints/step-*.pt",
        same=("weights.safetensors", "step-00000006.pt", "recipe.json"),
    ),
    _command(
        "train-drawing", "train in/drawing.toml --data in/captioned --out o --device cpu", checkpoint="checkpoint.pt",
        same=("weights.safetensors", "checkpoint.pt", "latents.safetensors"),
    ),
)  # fmt: skip

SHAPES = ((64, 64), (96, 48), (48, 96), (120, 40), (40, 120), (80, 56))
RECIPE = """
name = "tiny"
crop = 16
batch = 2
steps = 6
warmup = 1
cooldown = 2
log_every = 2
checkpoint_every = 2
[network]
kind = "folded"
z_channels = 4
ch = [8, 16]
encoder_blocks = [1, 1]
decoder_blocks = [1, 1]
[[sources]]
path = "pictures"
hold_out = 4
"""
DRAWING = """
name = "small"
size = 64
held_out = 0.0
word_steps = 2
word_batch = 2
steps = 4
batch = 2
warmup = 1
cooldown = 1
log_every = 1
checkpoint_every = 2
[denoiser]
model_channels = 32
channel_mult = [1, 2]
num_res_blocks = 1
attention_resolutions = [2]
num_heads = 2
[text]
vocab_size = 300
width = 32
depth = 1
heads = 2
context_length = 12
sketch_side = 4
sketch_width = 32
"""


def picture(path: Path, seed: int, width: int = 96, height: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 16, (height, width, 3))
    levels = (np.stack([x * 2 + seed * 40, y * 3, x + y], axis=-1) + noise) % 256
    Image.fromarray(levels.astype(np.uint8)).save(path)


class Forker:
    """Starts commands as forks of one process (see forker.py)."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        words = [sys.executable, str(HERE / "forker.py")]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        assert line, f"the forker ended with {self._process.wait(timeout=60)}"
        return line

    def run(self, words: Sequence[str], folder: Path, kill: tuple[float, int] | None = None) -> Ran:
        """Runs it in a folder, and if so asked sends a signal after so many seconds."""
        return self._run(words, folder, kill, 1)[0]

    def run_together(self, words: Sequence[str], folder: Path, count: int) -> list[Ran]:
        """Runs it in so many processes at once, all in one folder."""
        return self._run(words, folder, None, count)

    def _run(self, words: Sequence[str], folder: Path, kill: tuple[float, int] | None, together: int) -> list[Ran]:
        spill = folder.parent / "tmp"
        spill.mkdir(exist_ok=True)
        environment = {"TMPDIR": str(spill)}
        task = {"words": words, "folder": str(folder), "environment": environment, "kill": kill, "together": together}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        seconds, *statuses = self._line().split()
        said = [(folder.parent / f"said{i or ''}.err").read_text() for i in range(together)]
        codes = [os.waitstatus_to_exitcode(int(status)) for status in statuses]
        return [Ran(code, text, float(seconds)) for code, text in zip(codes, said, strict=True)]

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)


@dataclass(frozen=True)
class Ran:
    """What a command ended with, and how long it took."""

    code: int
    said: str
    seconds: float


def material(folder: Path, forker: Forker) -> Path:
    """All that the commands read."""
    for name, seed in (("a", 1), ("b", 2)):
        picture(folder / f"in/{name}.png", seed)
    picture(folder / "in/spilled.png", 3, 128, 128)
    for i in range(6):
        picture(folder / f"in/pictures/{i}.png", i, 64, 64)
        picture(folder / f"in/others/{i}.png", i + 7, 64, 64)
        picture(folder / f"in/captioned/{i}.png", i, 64, 64)
    for i, (width, height) in enumerate(SHAPES):  # each of which makes a unit of its own
        picture(folder / f"in/shapes/{i}.png", i, width, height)
        picture(folder / f"in/shapes/deep/{i}.png", i + 20, width, height)
        os.utime(folder / f"in/shapes/{i}.png", (1e9, 1e9))  # so old that a scan trusts the time
        os.utime(folder / f"in/shapes/deep/{i}.png", (1e9, 1e9))
    lines = [json.dumps({"file": f"{i}.png", "name": f"thing {i}"}) + "\n" for i in range(6)]
    (folder / "in/captioned/captions.jsonl").write_text("".join(lines))
    Image.fromarray(np.repeat(np.linspace(0, 255, 96).astype(np.uint8)[None], 64, 0)).save(folder / "in/mask.png")
    (folder / "in/edits.json").write_text('{"edits": [{"do": "noise", "by": 0.5}]}')
    (folder / "in/tiny.toml").write_text(RECIPE)
    (folder / "in/drawing.toml").write_text(DRAWING)
    save_weights(
        kl(), folder / "in/kl.safetensors", layout="ldm", format_=ScaleShift(name="kl", channels=4, scaling_factor=0.5)
    )
    format_ = PerChannel(name="small", channels=4, mean=(0.1, -0.2, 0.3, 0.0), std=(1.0, 2.0, 0.5, 1.5))
    save_weights(network(FOLDED), folder / "in/vae.safetensors", layout="ldm", format_=format_)
    small_model(folder / "in/model.safetensors")
    for i in range(6):
        picture(folder / f"in/labelled/{'ab'[i % 2]}/{i}.png", i, 64, 64)
        (folder / f"in/labelled/{'ab'[i % 2]}/{i}.txt").write_text(f"number {i}\n")
    for name in ("sd1", "wan2.1"):
        weights_of(folder / f"in/{name}.safetensors", name)
        words = f"cache make in/labelled in/{name}-latents --vae in/{name}.safetensors --size 32 --flip --folders"
        assert forker.run(words.split(), folder).code == 0
    shutil.copytree(folder / "in/labelled", folder / "in/foreign")
    for words in (
        ("encode", "in/a.png", "in/b.png", "--out", "in"),
        ("encode", "in/spilled.png", "--vae", "in/kl.safetensors", "--out", "in"),
        ("direction", "learn", "in/pictures", "in/others", "--out", "in/direction.safetensors"),
        ("cache", "export", "in/sd1-latents", "in/foreign", "--to", "sd-scripts"),
    ):
        ran = forker.run(words, folder)
        assert ran.code == 0, ran.said
    return folder / "in"


def place(folder: Path, inputs: Path, command: Command) -> Path:
    """A folder to run a command in, beside the inputs; empty but for what is given."""
    (folder / "here").mkdir(parents=True)
    (folder / "here/in").symlink_to(inputs)
    if command.given:
        shutil.copytree(inputs / command.given, folder / "here/o")
    return folder / "here"


def written(here: Path) -> dict[str, Path]:
    """What a command has written under final names."""
    found = sorted(path for path in here.rglob("*") if path.is_file())
    names = {str(path.relative_to(here)): path for path in found}
    return {name: path for name, path in names.items() if not name.startswith("in/") and not _hidden(name)}


def left(here: Path) -> list[str]:
    """Temporaries and locks, in the folder and where maps are spilled."""
    found = [path for folder in (here, here.parent / "tmp") for path in folder.rglob("*")]
    return [path.name for path in found if _hidden(path.name) or path.parent.name == "tmp"]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def require_whole(path: Path, cut: bool = False) -> None:
    """Opens a file and reads all of it.

    Args:
        cut: the last line of a log may be one half.
    """
    suffix = path.suffix
    if suffix in (".png", ".webp"):
        with Image.open(path) as image:
            for i in range(getattr(image, "n_frames", 1)):
                image.seek(i)
                image.load()
    elif suffix == ".mp4":
        av = importlib.import_module("av")
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) > 0
    elif suffix == ".safetensors":
        load_file(path)
    elif suffix == ".pt":
        torch.load(path, weights_only=True)
    elif suffix == ".h5":
        h5py = importlib.import_module("h5py")
        with h5py.File(path) as file:
            file.visititems(lambda _, one: one[()] if isinstance(one, h5py.Dataset) else None)
    elif suffix == ".json":
        json.loads(path.read_text())
    elif suffix == ".jsonl":
        lines = path.read_text().split("\n")
        for line in lines[:-1] if cut else [one for one in lines if one]:
            json.loads(line)
    elif suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif suffix == ".parquet":
        importlib.import_module("pyarrow.parquet").read_table(path)
    elif suffix in (".npy", ".npz"):
        found = np.load(path)
        assert found.size if suffix == ".npy" else [found[name] for name in found.files]
    elif suffix == ".tar":
        with tarfile.open(path) as archive:
            assert [archive.extractfile(one) for one in archive]  # type: ignore[arg-type]
    elif suffix == ".mds":
        assert path.read_bytes()
    elif suffix in (".csv", ".md", ".txt"):
        assert path.read_text().endswith("\n")
    elif suffix == ".sqlite":
        with closing(sqlite3.connect(path)) as store:
            assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    else:
        assert "tfevents" in path.name or path.name.endswith("-journal"), path


def content(path: Path) -> Any:
    """What must be the same: bytes, or what is in them where their order may be another."""
    if path.suffix == ".safetensors":
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        return json.loads(data[8 : 8 + size]), data[8 + size :]
    if path.suffix == ".sqlite":
        with closing(sqlite3.connect(path)) as store:
            return sorted(store.execute("SELECT vae, picture FROM rows").fetchall())
    if path.parent.name == "receipts":
        return {key: value for key, value in json.loads(path.read_text()).items() if key != "made"}
    if path.suffix == ".pt":
        return flat(torch.load(path, weights_only=True))
    return path.read_bytes()


def flat(value: Any) -> Any:
    """Nested values, with tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: flat(one) for key, one in value.items()}
    return [flat(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass
class Whole:
    """A run that nothing disturbed."""

    seconds: float
    files: dict[str, Any]


class Bench:
    """Runs commands in folders of their own, and knows what each leaves when nothing disturbs it."""

    def __init__(self, folder: Path, whole: dict[str, Whole] | None = None) -> None:
        self.folder = folder
        self.whole = {} if whole is None else whole
        self.forker = Forker()
        (folder / "material").mkdir(parents=True)
        self.inputs = material(folder / "material", self.forker)

    def undisturbed(self, command: Command) -> Whole:
        if command.name not in self.whole:
            here = place(self.folder / command.name / "whole", self.inputs, command)
            ran = self.forker.run(command.words, here)
            assert ran.code == 0, ran.said
            assert left(here) == []
            for path in written(here).values():
                require_whole(path)
            self.whole[command.name] = Whole(ran.seconds, contents(command, here))
        return self.whole[command.name]

    def kill(self, command: Command, number: signal.Signals, part: float) -> Ran:
        """Kills it when this part of its time has passed, looks at what there is, and runs it to its end."""
        whole = self.undisturbed(command)
        name = f"{number.name}-{part:.4f}-{time.monotonic_ns()}"
        here = place(self.folder / command.name / name, self.inputs, command)
        ran = self.forker.run(command.words, here, (part * whole.seconds, number))
        assert "Traceback" not in ran.said, ran.said
        for path in written(here).values():
            require_whole(path, cut=number == signal.SIGKILL)
        if number in STOPS:
            assert ran.code in (0, STOPS[number]), ran.said
            assert left(here) == []
            if ran.code:
                assert ran.said.splitlines()[-1].startswith("calotype: Stopped")
        if command.at_once and (here / "o").is_dir() and any((here / "o").iterdir()):
            assert contents(command, here) == whole.files, "it is there, and not complete"
            if number == signal.SIGKILL:  # what it could not remove any more goes with the next run there
                beside = self.forker.run((*command.words[:3], "p", *command.words[4:]), here)
                assert beside.code == 0, beside.said
                shutil.rmtree(here / "p")
            assert left(here) == []
            return ran
        going_on = command.checkpoint and any((here / "o").glob(command.checkpoint))
        if not (going_on and ran.code == 0):
            again = self.forker.run((*command.words, *(["--resume"] if going_on else [])), here)
            assert again.code == 0, again.said
        assert left(here) == []
        assert contents(command, here) == whole.files
        return ran


def contents(command: Command, here: Path) -> dict[str, Any]:
    """Of all files that must be the same; what varies is there at least."""
    names = {name: path for name, path in written(here).items() if not command.same or path.name in command.same}
    return {name: None if path.name in command.varies else content(path) for name, path in names.items()}
