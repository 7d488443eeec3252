"""The studio without a browser: who may ask what, what wrong forms get, and that what is shown makes what is given."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import time
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from studiokit import Served, Visitor, huge, left, photo, serving

from calotype.cli.standing import run as command_line
from calotype.edit.channels import Edit, edits_of
from calotype.errors import UsageError
from calotype.evaluate.metrics import psnr, ssim
from calotype.studio.forms import number, size, text, whole
from calotype.studio.jobs import Command
from calotype.studio.shelf import Given, Shelf
from calotype.studio.visits import Visit


def test_values_of_forms_are_right_or_one_sentence() -> None:
    assert whole({"seed": 3.0}, "seed", 0, 0, 9) == 3
    assert number({}, "strength", 0.5, 0, 1) == 0.5
    assert size({"size": " 64x48 "}) == ["--size", "64x48"]
    assert size({"size": ""}) == []
    for wrong in (
        lambda: whole({"seed": 1.5}, "seed", 0, 0, 9),
        lambda: whole({"seed": True}, "seed", 0, 0, 9),
        lambda: whole({"seed": 10}, "seed", 0, 0, 9),
        lambda: number({"strength": "1"}, "strength", 0, 0, 1),
        lambda: number({"strength": float("nan")}, "strength", 0, 0, 1),
        lambda: size({"size": "64x0"}),
        lambda: size({"size": "64x48; rm"}),
        lambda: size({"size": 64}),
        lambda: size({"size": "16384x16384"}),
        lambda: whole({"seed": 10**5000}, "seed", 0, 0, 9),
        lambda: number({"strength": 10**400}, "strength", 0, 0, 1),
        lambda: number({"strength": [0] * 1000}, "strength", 0, 0, 1),
        lambda: text({"prompt": " \n "}, "prompt", "prompt"),
        lambda: text({}, "prompt", "prompt"),
    ):
        with pytest.raises(UsageError) as caught:
            wrong()
        assert str(caught.value).endswith((".", "'")) and len(str(caught.value)) < 200


def test_what_looks_like_an_option_is_none() -> None:
    command = Command("draw", ["--out=/etc"], ["--seed", "1"])
    assert command.argv() == ["draw", "--seed", "1", "--json", "--", "--out=/etc"]
    assert command.line() == "calotype draw --seed 1 -- --out=/etc"
    assert Command("vary", ["a b.png"]).line() == "calotype vary 'a b.png'"


def test_pages_name_only_what_was_given() -> None:
    shelf = Shelf(vaes=[Given("builtin", "builtin")], folders=[])
    for wrong in (1, -1, "0", None, True, "/etc/passwd"):
        with pytest.raises(UsageError):
            shelf.vae(wrong)
    with pytest.raises(UsageError):
        shelf.folder(0)


def test_files_are_found_from_anywhere_and_hide_no_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("builtin", "taesd", "own.safetensors"):
        (tmp_path / name).write_bytes(b"")
    assert Given.weights("builtin").argument == "builtin"
    assert Given.weights("taesdxl").argument == "taesdxl"
    assert Given.weights("taesd").argument == str(tmp_path / "taesd")  # as `calotype.load` has it
    assert Given.weights("own.safetensors") == Given("own.safetensors", str(tmp_path / "own.safetensors"))
    assert Given.pictures("builtin") == Given("builtin", str(tmp_path / "builtin"))
    assert Given.pictures("s3://bucket/photos").argument == "s3://bucket/photos"
    assert Visit(tmp_path).name("taesdxl") == "taesdxl-2"  # where commands run


def test_names_are_file_names_and_differ(tmp_path: Path) -> None:
    visit = Visit(tmp_path)
    for given, made in (
        ("a.png", "a.png"), ("../../etc/passwd", "passwd"), ("C:\\x\\b.jpg", "b.jpg"), ("--out=x.png", "out_x.png"),
        (".hidden.png", "hidden.png"), ("", "picture"), ("é ü.png", "é ü.png"), ("a\nb.png", "a_b.png"),
        ("x" * 300 + ".png", "x" * 76 + ".png"),
    ):  # fmt: skip
        assert visit.name(given) == made
    picture = visit.add_picture(photo(tmp_path / "one" / "a.png"), visit.name("a.png"))
    assert visit.name("A.png") == "A-2.png"
    meanwhile = visit.add_picture(photo(tmp_path / "two" / "a.png"), "a.png")  # was named before the first came
    assert meanwhile.name == "a-2.png"
    visit.forget(meanwhile)
    visit.forget(picture)
    assert visit.name("a.png") == "a.png"
    assert not list(tmp_path.rglob("seen.png"))


def test_only_its_own_page_is_answered(served: Served, visitor: Visitor) -> None:
    port = urlsplit(served.base).port
    status, content = visitor.ask("/", headers={"Host": "evil.example"})
    assert status == 403 and b"127.0.0.1" in content
    assert visitor.ask("/", headers={"Host": f"localhost:{port}"})[0] == 200
    for origin in ("http://evil.example", "null", "", f"http://127.0.0.1:{port}1"):
        status, content = visitor.ask("/api/things?name=a.png", b"x", headers={"Origin": origin})
        assert status == 403 and b"another page" in content
    for site in ("cross-site", "same-site"):  # another page may lead here, but not ask for parts
        fetched = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert visitor.ask("/", headers=fetched)[0] == 403
        assert visitor.ask("/", headers={**fetched, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"})[0] == 403
        led = {**fetched, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert visitor.ask("/", headers=led)[0] == 200
    assert b'"things":[]' in visitor.bytes("/api/visit")
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/app.py", "/etc/passwd", "/api/jobs/x/files/a"):
        assert visitor.ask(path)[0] in (400, 404)
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        head = b""
        while part := plain.recv(65536):
            head += part
    head = head.split(b"\r\n\r\n")[0].lower()
    assert b"samesite=lax" in head and b"httponly" in head
    assert f"set-cookie: calotype-studio-{port}=".encode() in head  # cookies are shared by all ports
    assert b"default-src 'self'" in head and b"frame-ancestors 'none'" in head
    assert b"nosniff" in head


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="there is no /proc")
def test_it_listens_on_this_machine_alone(served: Served) -> None:
    port = urlsplit(served.base).port
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = [line[1] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port]
    assert own == [f"0100007F:{port:04X}"]


def test_wrong_uploads_get_a_sentence(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("these are words")
    (tmp_path / "empty.png").write_bytes(b"")
    whole = photo(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    huge(tmp_path / "huge.png")
    said = {name: visitor.upload(tmp_path / f"{name}.png")["error"] for name in ("text", "empty", "cut", "huge")}
    assert said["text"].startswith("text.png is no picture that can be read")
    assert said["empty"] == "empty.png is empty; give a picture."
    assert "cut.png" in said["cut"] and "/" not in said["cut"]
    assert said["huge"].startswith("huge.png has 20000x20000 pixels, and the studio takes")
    said["direction"] = visitor.upload(tmp_path / "whole.png", "d.safetensors", "direction")["error"]
    assert "d.safetensors" in said["direction"] and "/" not in said["direction"]
    assert visitor.json("/api/visit")["things"] == []
    assert visitor.upload(tmp_path / "whole.png")["width"] == 64


def test_wrong_forms_get_a_sentence_and_the_server_lives(visitor: Visitor, tmp_path: Path) -> None:
    a = visitor.upload(photo(tmp_path / "a.png"))["id"]
    b = visitor.upload(photo(tmp_path / "b.png", 32, 32))["id"]
    for form, words in (
        ({"tab": "nowhere"}, "no tab"), ({"tab": "look"}, "no such picture"),
        ({"tab": "look", "picture": a, "vaes": []}, "No VAE"), ({"tab": "look", "picture": a, "vaes": [7]}, "no VAE"),
        ({"tab": "look", "picture": "../x", "vaes": [0]}, "no such picture"),
        ({"tab": "draw", "prompt": "  "}, "no prompt"), ({"tab": "draw", "prompt": "x", "seed": -1}, "Seed"),
        ({"tab": "draw", "prompt": "x", "steps": 0}, "Steps"), ({"tab": "draw", "prompt": "x", "model": 3}, "model"),
        ({"tab": "draw", "prompt": "x", "negative": "y", "guidance": 1}, "negative prompt"),
        ({"tab": "draw.redraw", "picture": a, "prompt": "x", "mask": b, "steps": 1}, "b.png"),
        ({"tab": "edit.morph", "pictures": [a]}, "choose two"), ({"tab": "edit.morph", "pictures": [a, a]}, "twice"),
        ({"tab": "edit.morph", "pictures": [a, b]}, "bring them to one size"),
        ({"tab": "edit.vary", "picture": a, "temperature": "hot"}, "Temperature"),
        ({"tab": "edit.blend", "first": a, "second": b, "mask": b, "size": "64x48"}, "twice"),
        ({"tab": "edit.transfer", "content": a, "style": b, "size": "huge"}, "WIDTHxHEIGHT"),
        ({"tab": "edit.apply", "picture": a, "direction": a}, "no such direction"),
        ({"tab": "edit.learn", "start": 0, "end": 9}, "no folder"),
        ({"tab": "measure.evaluate", "folder": "/"}, "no folder"),
        ({"tab": "measure.evaluate", "folder": 0, "vaes": [0], "metrics": ["x"]}, "Metrics"),
        ({"tab": "plan", "memory": "much"}, "memory"), ({"tab": "plan", "size": "0x0"}, "WIDTHxHEIGHT"),
        ({"tab": "latents", "picture": a, "edits": [{"do": "fly"}]}, "edit 1"),
    ):  # fmt: skip
        end = visitor.run(**form)
        said = end.get("error") or end["says"]
        assert words in said and said.endswith((".", ").")), (form, end)
        assert "\n" not in said and "Traceback" not in said
    for what, body, words in (
        ("region", {"original": a, "reconstruction": b, "box": [0, 0, 9, 9]}, "one size"),
        ("region", {"original": a, "reconstruction": a, "box": [0, 0, 999, 9]}, "not in a picture"),
        ("region", {"original": a, "reconstruction": a, "box": [0, 0, 9, 9]}, "no reconstruction"),
        ("channels", {"picture": a, "size": "4096x4096"}, "too many"),
        ("decoded", {"picture": a, "edits": [{"do": "shift", "channel": 99, "by": 1}]}, "no channel 99"),
        ("decoded", {"picture": a, "edits": [{"do": "copy"}]}, "no second picture"),
        ("nothing", {}, "no such question"),
    ):  # fmt: skip
        assert words in visitor.json(f"/api/now/{what}", body)["error"]
    assert "can't be read" in json.loads(visitor.ask("/api/jobs", b"{")[1])["error"]
    assert visitor.run(tab="plan", size="64x64")["state"] == "done"


def test_two_visitors_do_not_see_each_other(served: Served, visitor: Visitor, tmp_path: Path) -> None:
    other = Visitor(served.base)
    a = visitor.upload(photo(tmp_path / "a.png"))
    job = visitor.run(tab="plan", size="64x64")
    assert other.json("/api/visit") == {"things": [], "jobs": []}
    for path in (f"/api/things/{a['id']}/file", f"/api/things/{a['id']}/seen.png", f"/api/jobs/{job['id']}/events"):
        assert other.ask(path)[0] in (400, 404)
    assert "no such picture" in other.run(tab="look", picture=a["id"], vaes=[0])["error"]
    assert other.ask(f"/api/things/{a['id']}", method="DELETE")[0] == 200
    assert visitor.ask(f"/api/things/{a['id']}/file")[0] == 200
    assert visitor.json("/api/visit", method="DELETE") == {}
    assert visitor.ask("/api/visit")[0] == 401


def test_jobs_wait_their_turn_and_can_be_cancelled(served: Served, visitor: Visitor, tmp_path: Path) -> None:
    other = Visitor(served.base)
    a = visitor.upload(photo(tmp_path / "a.png"))["id"]
    long = visitor.json("/api/jobs", {"tab": "draw", "prompt": "a sun", "steps": 1000})
    events = visitor.events(long["id"])
    while next(events)["state"] != "running":
        pass
    short = other.json("/api/jobs", {"tab": "plan", "size": "64x64"})
    waits = next(other.events(short["id"]))
    assert (waits["state"], waits["place"]) == ("waiting", 1)
    mine = visitor.json("/api/jobs", {"tab": "edit.vary", "picture": a})
    assert next(visitor.events(mine["id"]))["place"] == 2
    assert [one["id"] for one in visitor.json("/api/visit")["jobs"]] == [long["id"], mine["id"]]
    visitor.json(f"/api/jobs/{mine['id']}/cancel", {})
    assert list(visitor.events(mine["id"]))[-1]["state"] == "cancelled"
    visitor.json(f"/api/jobs/{long['id']}/cancel", {})
    end = list(events)[-1]
    assert end["state"] == "cancelled" and end["part"] == 1
    assert list(other.events(short["id"]))[-1]["state"] == "done"


def test_regions_are_measured_as_pictures_are(visitor: Visitor, tmp_path: Path) -> None:
    a = visitor.upload(photo(tmp_path / "a.png"))["id"]
    [result] = visitor.run(tab="look", picture=a, vaes=[0])["results"]
    b = result["thing"]["id"]
    planes = [
        torch.from_numpy(np.array(Image.open(BytesIO(visitor.bytes(f"/api/things/{id}/seen.png"))))).permute(2, 0, 1)
        for id in (a, b)
    ]
    form = {"original": a, "reconstruction": b, "vae": 0}
    whole_ = visitor.json("/api/now/region", {**form, "box": [0, 0, 64, 48]})
    assert whole_["psnr"] == pytest.approx(result["figures"]["psnr"], abs=1e-9)
    assert whole_["ssim"] == pytest.approx(result["figures"]["ssim"], abs=1e-9)
    x, y = (plane[:, 8:40, 16:56] for plane in planes)
    part = visitor.json("/api/now/region", {**form, "box": [16, 8, 56, 40]})
    assert part == {
        "psnr": pytest.approx(psnr(x, y), abs=1e-9), "ssim": pytest.approx(ssim(x, y), abs=1e-9), "equal": False
    }  # fmt: skip
    assert visitor.json("/api/now/region", {**form, "box": [0, 0, 5, 5]})["ssim"] is None
    for net in ("alex", "vgg"):
        assert isinstance(visitor.json("/api/now/lpips", {**form, "box": [0, 0, 5, 5], "net": net})["lpips"], str)
    assert "alex, vgg" in visitor.json("/api/now/lpips", {**form, "box": [0, 0, 5, 5], "net": "none"})["error"]


def test_what_a_command_read_does_not_stay_behind_it(served: Served, visitor: Visitor, tmp_path: Path) -> None:
    a = visitor.upload(photo(tmp_path / "read.png"))["id"]
    assert visitor.run(tab="look", picture=a, vaes=[0])["state"] == "done"
    assert len(list(served.temporaries.rglob("read.png"))) == 1
    visitor.json(f"/api/things/{a}", method="DELETE")
    assert list(served.temporaries.rglob("read.png")) == []


def test_latents_are_changed_while_one_looks(visitor: Visitor, tmp_path: Path) -> None:
    a = visitor.upload(photo(tmp_path / "a.png"))["id"]
    edits = [{"do": "shift", "channel": 1, "by": 1.5}, {"do": "set", "channel": 0, "value": 2, "cells": [[1, 2]]}]

    def ask(what: str, **form: Any) -> tuple[dict[str, Any], np.ndarray[Any, Any], bytes]:
        content = visitor.ask(f"/api/now/{what}", json.dumps({"picture": a, **form}).encode())[1]
        length = int.from_bytes(content[:4], "little")
        facts = json.loads(content[4 : 4 + length])
        start, count = 4 + length + -length % 4, int(np.prod(facts["shape"]))
        values = np.frombuffer(content, "<f4", count, start).reshape(facts["shape"])
        return facts, values, content[start + 4 * count :]

    facts, before, std = ask("channels")
    assert facts == {"shape": [16, 6, 8], "std": True} and len(std) == 4 * before.size
    facts, after, pictures = ask("decoded", edits=edits)
    expected = before.copy()
    expected[1] += 1.5
    expected[0, 2, 1] = 2
    assert np.array_equal(after, expected)
    job = visitor.run(tab="latents", picture=a, edits=edits)
    live = np.array(Image.open(BytesIO(pictures[: facts["picture"]])))
    made = np.array(Image.open(BytesIO(visitor.bytes(job["results"][0]["url"]))))
    assert np.array_equal(live, made)
    assert edits_of(edits)[0] == Edit(do="shift", channel=1, by=1.5)


@pytest.mark.slow
def test_plans_are_those_of_the_command(visitor: Visitor) -> None:
    end = visitor.run(tab="plan", memory="30MB")
    rows = end["results"]
    assert [row["size"] for row in rows] == ["256x256", "512x512", "1024x1024", "2048x2048", "4096x4096", "8192x8192"]
    assert rows[0]["peak_bytes"] < 30e6 and "can't be done in" in rows[-1]["error"]
    code, out, _ = command_line([*shlex.split(rows[0]["command"])[1:], "--json"])
    assert code == 0 and json.loads(out)["peak_bytes"] == rows[0]["peak_bytes"]
    assert visitor.json("/api/now/pace", {})["flops_per_second"] > 0


@pytest.mark.slow
def test_a_folder_is_measured_and_its_report_shown(
    visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = visitor.run(tab="measure.evaluate", folder=0, vaes=[0], metrics=["psnr"], limit=3)
    assert end["state"] == "done", end
    page, data, _ = end["results"]
    assert page["kind"] == "report" and b"<!doctype html>" in visitor.bytes(page["url"])[:200].lower()
    rows = json.loads(visitor.bytes(data["url"]))["vaes"][0]["rows"]
    figures = [(row["picture"], row["psnr"]) for row in rows]
    assert len(figures) == 3
    for way in ("command", "python"):  # a report holds times of day; its figures are the same
        (tmp_path / way).mkdir()
        monkeypatch.chdir(tmp_path / way)
        if way == "command":
            assert command_line(shlex.split(end["command"])[1:])[0] == 0
        else:
            exec(compile(end["python"], "measure", "exec"), {})
        again = json.loads((tmp_path / way / "report/results.json").read_text())["vaes"][0]["rows"]
        assert [(row["picture"], row["psnr"]) for row in again] == figures
    end = visitor.run(tab="measure.probe", vae=0, folder=0, limit=3)
    assert end["state"] == "done" and b"<!doctype html>" in visitor.bytes(end["results"][0]["url"])[:200].lower()
    monkeypatch.chdir(tmp_path)
    exec(compile(end["python"], "measure", "exec"), {})
    assert (tmp_path / "report/factors.json").read_bytes() == visitor.bytes(end["results"][2]["url"])
    assert visitor.ask(page["url"].replace("index.html", "measured.sqlite"))[0] == 404


@pytest.mark.parametrize("number_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.slow
def test_stopped_in_the_middle_it_leaves_nothing(number_: int, tmp_path: Path, interruptible: None) -> None:
    with serving(tmp_path / "temporaries") as studio:
        visitor = Visitor(studio.base)
        visitor.upload(photo(tmp_path / "a.png"))
        job = visitor.json("/api/jobs", {"tab": "draw", "prompt": "a sun", "steps": 1000})
        for event in visitor.events(job["id"]):
            if event["part"] > 0:
                break
        assert left(studio.temporaries)
        begin = time.monotonic()
        assert studio.stop(number_) == 128 + number_
        assert time.monotonic() - begin < 30
        assert list(studio.temporaries.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.slow
def test_a_killed_command_is_said_and_the_next_one_runs(visitor: Visitor, served: Served) -> None:
    job = visitor.json("/api/jobs", {"tab": "draw", "prompt": "a sun", "steps": 1000})
    events = visitor.events(job["id"])
    while next(events)["part"] == 0:
        pass
    children = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
    workers = [one for one in children if b"calotype.cli.standing" in Path(f"/proc/{one}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    end = list(events)[-1]
    assert end["state"] == "failed" and "memory ran out" in end["says"]
    assert visitor.run(tab="plan", size="64x64")["state"] == "done"
