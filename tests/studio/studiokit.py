"""A studio that runs, and a visitor without a browser."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import signal
import struct
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Served:
    """A studio.

    Attributes:
        base: its address.
        temporaries: the system's folder for temporaries, as it has it; nobody else uses it.
        process: that serves.
    """

    base: str
    temporaries: Path
    process: subprocess.Popen[str]

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ends it as Ctrl-C does -> exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serving(temporaries: Path, *words: str) -> Iterator[Served]:
    """A studio that was started with these options; it is stopped at the end if it still runs."""
    temporaries.mkdir(exist_ok=True)
    environment = {**os.environ, "TMPDIR": str(temporaries)}
    command = [sys.executable, "-m", "calotype", "studio", "--port", "0", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, line + process.stderr.read()
        yield Served(found[0], temporaries, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


class Visitor:
    """One browser's worth of requests."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._open = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())).open
        self.bytes("/")

    def ask(
        self, path: str, body: bytes | None = None, method: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """(status, content)."""
        wanted = {"Origin": self.base, **(headers or {})}
        request = urllib.request.Request(self.base + path, data=body, headers=wanted, method=method)
        try:
            with self._open(request, timeout=300) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def bytes(self, path: str) -> bytes:
        """What is there."""
        status, content = self.ask(path)
        assert status == 200, content
        return content

    def json(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """What is answered, errors too."""
        return json.loads(self.ask(path, None if body is None else json.dumps(body).encode(), method)[1])

    def upload(self, path: Path, name: str | None = None, kind: str = "picture") -> Any:
        """Adds a file."""
        query = urllib.parse.urlencode({"name": name or path.name, "kind": kind})
        return json.loads(self.ask(f"/api/things?{query}", path.read_bytes())[1])

    def events(self, job: str) -> Iterator[dict[str, Any]]:
        """What becomes of a job."""
        request = urllib.request.Request(f"{self.base}/api/jobs/{job}/events")
        with self._open(request, timeout=300) as response:
            for line in response:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def run(self, **form: Any) -> dict[str, Any]:
        """A job, at its end; or why it was not taken."""
        job = self.json("/api/jobs", form)
        if "error" in job:
            return dict(job)
        return list(self.events(job["id"]))[-1]


def photo(path: Path, width: int = 64, height: int = 48, seed: int = 0, alpha: bool = False) -> Path:
    """A small picture with shapes and noise."""
    y, x = np.mgrid[0:height, 0:width]
    generator = np.random.default_rng(seed)
    planes = [
        120 + 90 * np.sin((x + seed * 7) / 9),
        120 + 90 * np.cos(y / 7),
        60 + 2 * x % 120,
        255.0 * (x > width / 3),
    ]
    levels = np.stack([plane + generator.normal(0, 4, (height, width)) for plane in planes], axis=-1)
    pixels = levels.clip(0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if alpha else pixels[..., :3]).save(path)
    return path


def huge(path: Path, side: int = 20_000) -> Path:
    """A PNG of black and white with so many pixels, in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + head
        + chunk(b"IDAT", zlib.compress(bytes((1 + side // 8) * side), 1))
        + chunk(b"IEND", b"")
    )
    return path


def left(folder: Path) -> Sequence[str]:
    """What of calotype lies in a folder."""
    return [one.name for one in folder.iterdir() if one.name.startswith(".calotype-")]
