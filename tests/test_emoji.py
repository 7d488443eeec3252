"""scripts/emoji.py: three packages are joined by character, and every picture gets a name of its own."""

from __future__ import annotations

import io
import json
import runpy
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "emoji.py"))
FLUENT, EMOJIBASE, EMOJILIB = "@lobehub/fluent-emoji-3d", "emojibase-data", "emojilib"
GROUPS = {
    "groups": {"1": "people-body", "4": "food-drink", "8": "symbols", "9": "flags"},
    "subgroups": {
        "16": "hand-fingers-open",
        "27": "person-activity",
        "42": "food-fruit",
        "90": "math",
        "98": "country",
    },
}


def entry(label: str, hexcode: str, group: int, subgroup: int, tags: list[str], **more: Any) -> dict[str, Any]:
    return {"label": label, "hexcode": hexcode, "group": group, "subgroup": subgroup, "tags": tags, **more}


def skin(label: str, hexcode: str, group: int, subgroup: int, tone: int | list[int]) -> dict[str, Any]:
    return {"label": label, "hexcode": hexcode, "group": group, "subgroup": subgroup, "tone": tone}


DATA = [
    {"label": "regional indicator G", "hexcode": "1F1EC"},
    entry("red apple", "1F34E", 4, 42, ["apple", "fruit", "red"]),
    entry("green apple", "1F34F", 4, 42, ["apple", "fruit", "tart"]),
    entry("multiply", "2716", 8, 90, ["\u00d7", "cancel", "multiplication", "x"]),
    entry("keycap: #", "0023-FE0F-20E3", 8, 90, ["keycap"]),
    entry("flag: Gabon", "1F1EC-1F1E6", 9, 98, ["GA", "flag"]),
    entry("flag: Åland Islands", "1F1E6-1F1FD", 9, 98, ["AX", "flag"]),
    entry("flag: England", "1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", 9, 98, ["flag", "gbeng"]),
    entry("waving hand", "1F44B", 1, 16, ["bye", "wave"], skins=[
        skin("waving hand: medium-light skin tone", "1F44B-1F3FC", 1, 16, 2)]),
    entry("woman running: facing right", "1F3C3-200D-2640-FE0F-200D-27A1-FE0F", 1, 27, ["fast"], skins=[
        skin("woman running: dark skin tone, facing right", "1F3C3-1F3FF-200D-2640-FE0F-200D-27A1-FE0F", 1, 27, 5)]),
    entry("detective", "1F575", 1, 27, ["sleuth"], skins=[skin("detective: dark skin tone", "1F575-1F3FF", 1, 27, 5)]),
    entry("handshake", "1F91D", 1, 16, ["deal"], skins=[
        skin("handshake: light skin tone, dark skin tone", "1FAF1-1F3FB-200D-1FAF2-1F3FF", 1, 16, [1, 5])]),
    entry("family: man, man, girl, boy", "1F468-200D-1F468-200D-1F467-200D-1F466", 1, 27, ["family"]),
    entry("man: bald", "1F468-200D-1F9B2", 1, 27, ["bald"]),
    entry("smiling eyes", "1F604", 1, 27, ["happy", "smile"]),
    entry("smiling cat", "1F63A", 1, 27, ["happy", "smile"]),
]  # fmt: skip
SHORTCODES: dict[str, dict[str, str | list[str]]] = {
    "cldr": {"1F34E": "red_apple", "1F468-200D-1F468-200D-1F467-200D-1F466": "family_mmgb"},
    "emojibase": {"1F34E": ["apple", "red_apple"], "1F44B": ["wave", "waving_hand"], "1F604": "smile"},
    "github": {"1F63A": "smile", "1F575": "sleuth"},
    "iamcal": {"1F468-200D-1F9B2": "bald-person"},
    "joypixels": {"1F1EC-1F1E6": ["flag_ga", "ga"]},
}
LISTED = {
    "\U0001f34e": ["red_apple", "fruit", "mac", ":D"],
    "\u2716\ufe0f": ["multiply", "multiply_sign", "math", "sign"],
    "\U0001f468\u200d\U0001f9b2": ["man bald", "hairless", "person"],
    "\U0001f575\ufe0f": ["detective", "human", "spy"],
}
CODES = (
    "1f34e", "1f34f", "2716-fe0f", "0023-fe0f-20e3", "23-fe0f-20e3", "1f1ec-1f1e6", "1f1e6-1f1fd",
    "1f3f4-e0067_e0062_e0065_e006e_e0067", "1f44b", "1f44b-1f3fc",
    "1f3c3-1f3ff-200d-2640-fe0f-200d-27a1-fe0f", "1f575-fe0f", "1f575-1f3ff", "1faf1-1f3fb-200d-1faf2-1f3ff",
    "1f468-200d-1f468-200d-1f467-200d-1f466", "1f468-200d-1f9b2", "1f604", "1f63a",
)  # fmt: skip


def picture(index: int = 0, side: int = 256) -> bytes:
    """A square of one colour, half transparent, in a transparent border."""
    levels = np.zeros((side, side, 4), np.uint8)
    levels[64:192, 64:192] = (index * 9 % 256, 100, 200, 128)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "WEBP", lossless=True, exact=True)
    return file.getvalue()


def tarball(path: Path, name: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member, data in {"package.json": json.dumps({"name": name}).encode(), **files}.items():
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def packages(folder: Path, pictures: dict[str, bytes] | None = None, data: list[Any] = DATA) -> list[str]:
    """The three packages, as options."""
    if pictures is None:
        pictures = {code: picture(i) for i, code in enumerate(CODES)}
    fluent = {f"assets/{code}.webp": content for code, content in pictures.items()}
    emojibase = {
        "en/data.json": json.dumps(data).encode(),
        "meta/groups.json": json.dumps(GROUPS).encode(),
        **{f"en/shortcodes/{name}.json": json.dumps(codes).encode() for name, codes in SHORTCODES.items()},
    }
    emojilib = {"dist/emoji-en-US.json": json.dumps(LISTED).encode()}
    made = [
        tarball(folder / "fluent.tgz", FLUENT, fluent),
        tarball(folder / "emojibase.tgz", EMOJIBASE, emojibase),
        tarball(folder / "emojilib.tgz", EMOJILIB, emojilib),
    ]
    return [word for option, path in zip(("--fluent", "--emojibase", "--emojilib"), made, strict=True)
            for word in (option, str(path))]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder, and its lines by code."""
    folder = tmp_path_factory.mktemp("emoji")
    assert SCRIPT["main"]([*packages(folder), str(folder / "out")]) == 0
    lines = [json.loads(line) for line in (folder / "out" / "captions.jsonl").read_text().splitlines()]
    return folder / "out", {line["code"]: line for line in lines}


def test_names(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    assert {code: line["name"] for code, line in made[1].items()} == {
        "0023-fe0f-20e3": "keycap hash",
        "1f1e6-1f1fd": "flag of the aland islands",
        "1f1ec-1f1e6": "flag of gabon",
        "1f34e": "red apple",
        "1f34f": "green apple",
        "1f3c3-1f3ff-200d-2640-fe0f-200d-27a1-fe0f": "woman running facing right, dark skin tone",
        "1f3f4-e0067_e0062_e0065_e006e_e0067": "flag of england",
        "1f44b": "waving hand",
        "1f44b-1f3fc": "waving hand, medium-light skin tone",
        "1f468-200d-1f468-200d-1f467-200d-1f466": "family of two men, girl and boy",
        "1f468-200d-1f9b2": "bald man",
        "1f575-1f3ff": "detective, dark skin tone",
        "1f575-fe0f": "detective",
        "1f604": "smiling eyes",
        "1f63a": "smiling cat",
        "1faf1-1f3fb-200d-1faf2-1f3ff": "handshake, light skin tone and dark skin tone",
        "2716-fe0f": "multiply",
    }


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("kiss: woman, man", "woman and man kissing"),
        ("couple with heart: man, man", "two men with heart"),
        ("person: beard", "person with beard"),
        ("Japanese “free of charge” button", "japanese free of charge button"),
        ("AB button (blood type)", "blood type ab button"),
        ("flag: Côte d\u2019Ivoire", "flag of cote d'ivoire"),
        ("flag: Congo - Brazzaville", "flag of congo brazzaville"),
        ("flag: St. Kitts & Nevis", "flag of st kitts and nevis"),
        ("flag: Myanmar (Burma)", "flag of myanmar"),
        ("flag: South Georgia & South Sandwich Islands", "flag of south georgia and south sandwich islands"),
        ("flag: Isle of Man", "flag of the isle of man"),
        ("flag: United Kingdom", "flag of the united kingdom"),
        ("keycap: 10", "keycap 10"),
        ("ON! arrow", "on arrow"),
        ("twelve o\u2019clock", "twelve o'clock"),
    ],
)
def test_labels_become_phrases(label: str, name: str) -> None:
    assert SCRIPT["name_of"](label) == name


def test_a_line_says_all_of_a_picture(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    lines = made[1]
    assert lines["2716-fe0f"] == {
        "file": "pictures/2716-fe0f.png",
        "code": "2716-fe0f",
        "name": "multiply",
        "synonyms": [],
        "keywords": ["cancel", "multiplication", "x", "multiply sign", "math", "sign"],
        "group": "symbols",
        "subgroup": "math",
        "base": "2716-fe0f",
        "tone": None,
        "gender": None,
    }
    hand = lines["1f44b-1f3fc"]
    assert (hand["base"], hand["tone"], hand["gender"]) == ("1f44b", "medium-light skin tone", None)
    assert (hand["synonyms"], hand["keywords"]) == (["wave, medium-light skin tone"], ["bye"])
    detective = lines["1f575-1f3ff"]
    assert detective["base"] == "1f575-fe0f"  # as the picture without tone is named
    assert detective["keywords"] == ["human", "spy"]  # emojilib has them for the character with fe0f
    runner = lines["1f3c3-1f3ff-200d-2640-fe0f-200d-27a1-fe0f"]
    assert (runner["tone"], runner["gender"]) == ("dark skin tone", "woman")
    assert lines["1faf1-1f3fb-200d-1faf2-1f3ff"]["tone"] == "light skin tone and dark skin tone"
    assert lines["1f468-200d-1f9b2"]["gender"] == "man"
    assert lines["1f468-200d-1f468-200d-1f467-200d-1f466"]["gender"] is None
    assert lines["1f34e"]["group"] == "food & drink"


def test_a_synonym_means_one_picture(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    lines = made[1]
    # words of another name, and a name that two characters share, are keywords
    assert lines["1f34e"]["synonyms"] == []
    assert lines["1f34e"]["keywords"] == ["apple", "fruit", "red", "mac"]
    assert lines["1f604"]["synonyms"] == lines["1f63a"]["synonyms"] == []
    assert "smile" in lines["1f604"]["keywords"]
    assert lines["1f575-fe0f"]["synonyms"] == ["sleuth"]
    assert lines["1f468-200d-1f9b2"]["synonyms"] == ["man bald", "bald person"]
    assert lines["1f468-200d-1f468-200d-1f467-200d-1f466"]["synonyms"] == []  # mmgb is no word
    assert lines["1f1ec-1f1e6"]["synonyms"] == ["gabon flag", "gabon"]
    assert lines["1f1e6-1f1fd"]["synonyms"] == ["flag of aland islands", "aland islands flag", "aland islands"]


def test_pictures_lie_on_white(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    out, lines = made
    assert {f"pictures/{path.name}" for path in (out / "pictures").iterdir()} == {
        line["file"] for line in lines.values()
    }
    for code, line in lines.items():
        with Image.open(out / line["file"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", (256, 256))
            levels = np.asarray(image).astype(float)
        colour = np.array([CODES.index(code) * 9 % 256, 100, 200])
        expected = colour * 128 / 255 + 255 * 127 / 255
        assert np.abs(levels[100, 100] - expected).max() <= 0.51, code
        assert (levels[:64] == 255).all()


def test_the_fully_written_of_two_files_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"0023-fe0f-20e3": picture(1), "23-fe0f-20e3": picture(2)}
    assert SCRIPT["main"]([*packages(tmp_path, files), str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "pictures" / "0023-fe0f-20e3.png") as image:
        assert image.getpixel((100, 100))[0] == round(9 * 128 / 255 + 127)
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 1
    assert "left out: 23-fe0f-20e3." in capsys.readouterr().err


def test_twice_gives_the_same_bytes(made: tuple[Path, dict[str, dict[str, Any]]], tmp_path: Path) -> None:
    files = {code: picture(i) for i, code in reversed(list(enumerate(CODES)))}
    assert SCRIPT["main"]([*packages(tmp_path, files), str(tmp_path / "out")]) == 0
    names = sorted(path.relative_to(made[0]) for path in made[0].rglob("*") if path.is_file())
    assert names == sorted(p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert all((made[0] / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)


def fails(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is said, in one line; nothing is left behind that could be taken for captions."""
    assert SCRIPT["main"]([*arguments, str(out)]) == 2
    assert not (out / "captions.jsonl").exists()
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_picture_without_name_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = packages(tmp_path, {"1f34e": picture(), "1f9ff": picture()})
    said = fails(arguments, tmp_path / "out", capsys)
    assert said == "emojibase-data has no name for these pictures: 1f9ff; give a newer version of it."


def test_two_characters_of_one_name_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [*DATA, entry("red apple", "1F9FF", 4, 42, [])]
    arguments = packages(tmp_path, {"1f34e": picture(), "1f9ff": picture()}, data)
    assert "Several characters have the name 'red apple'" in fails(arguments, tmp_path / "out", capsys)


def test_another_layout_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = [{"annotation": "red apple", "hexcode": "1F34E", "group": 4, "subgroup": 42}]  # no "label"
    said = fails(packages(tmp_path, data=data), tmp_path / "out", capsys)
    assert "has another layout than emojibase-data@17.0.0 and emojilib@4.0.3 (KeyError('label'))" in said


def test_wrong_tarballs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = packages(tmp_path)
    out = tmp_path / "out"
    said = fails([*right[:1], right[3], *right[2:]], out, capsys)
    assert f"is the npm package {EMOJIBASE}, not {FLUENT}; get it with `npm pack {FLUENT}@1.1.0`." in said
    other = tmp_path / "other.tgz"
    assert f"There is no file {other}, which shall be the npm package {EMOJILIB}" in fails(
        [*right[:5], str(other)], out, capsys
    )
    other.write_bytes(b"no tarball")
    assert f"{other} is no intact tarball of the npm package {EMOJILIB}" in fails([*right[:5], str(other)], out, capsys)
    other.write_bytes(Path(right[5]).read_bytes()[:100])
    assert f"{other} is no intact tarball of the npm package {EMOJILIB}" in fails([*right[:5], str(other)], out, capsys)
    tarball(other, EMOJILIB, {})
    assert f"{other} has no package/dist/emoji-en-US.json" in fails([*right[:5], str(other)], out, capsys)
    tarball(other, FLUENT, {})
    assert f"{other} has no pictures" in fails([right[0], str(other), *right[2:]], out, capsys)


@pytest.mark.parametrize(
    ("levels", "wrong"),
    [
        ((240, 200, 150, 100, 50), 0),
        ((240, 150, 200, 100, 50), 2),
        ((50, 150, 100, 200, 240), 5),
        ((240, 200, 150, 50, 50), 0),  # two alike stay
    ],
)
def test_skin_tones_are_put_in_order(
    tmp_path: Path, levels: tuple[int, ...], wrong: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tones = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
    files = {"1f44b": picture()}
    for number, (tone, level) in enumerate(zip(tones, levels, strict=True)):
        file = io.BytesIO()
        # clothes, which are no skin, decide nothing: they are brighter the other way round
        square = np.full((256, 256, 3), 100 + 8 * number, np.uint8)
        square[:64, :64] = level
        Image.fromarray(square).save(file, "WEBP", lossless=True)
        files[f"1f44b-{tone}"] = file.getvalue()
    skins = [
        skin(f"waving hand: {tone} skin tone", f"1F44B-1F3F{digit}", 1, 16, i + 1)
        for i, (tone, digit) in enumerate(zip(SCRIPT["TONES"], "BCDEF", strict=True))
    ]
    data = [entry("waving hand", "1F44B", 1, 16, ["bye"], skins=skins)]
    assert SCRIPT["main"]([*packages(tmp_path, files, data), str(tmp_path / "out")]) == 0
    found = []
    for tone in tones:
        with Image.open(tmp_path / "out" / "pictures" / f"1f44b-{tone}.png") as image:
            assert image.getpixel((200, 200)) != image.getpixel((10, 10))
            found.append(image.getpixel((10, 10))[0])
    assert found == sorted(levels, reverse=True)
    said = capsys.readouterr().err
    assert f"{wrong} pictures had another one's skin tone" in said if wrong else "skin tone and were" not in said


def test_a_picture_that_is_not_square_gets_a_border(tmp_path: Path) -> None:
    levels = np.full((264, 256, 4), (0, 0, 0, 255), np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "WEBP", lossless=True)
    assert SCRIPT["main"]([*packages(tmp_path, {"1f34e": file.getvalue()}), str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "pictures" / "1f34e.png") as image:
        row = np.asarray(image)[128, :, 0]
    # 256 x 264 becomes 248 x 256: 4 white columns on either side
    assert (row == np.array([255] * 4 + [0] * 248 + [255] * 4)).all()


def test_a_damaged_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = packages(tmp_path, {"1f34e": picture()[:-40]})
    assert "1f34e.webp of @lobehub/fluent-emoji-3d: " in fails(arguments, tmp_path / "out", capsys)
