"""JSON and TOML as they come from files: plain values, or one short reason why not. No torch.

What a parser lets through and nobody means is refused here, for all who read such texts: texts that are no UTF-8, nests
that are too deep, keys that stand twice, whole numbers that fit no machine's, numbers that are none, letters that can't
be written again. What a value must be for its purpose is its reader's to say, by `whole` and `number`.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeGuard, TypeVar

DEEPEST = 64  # levels of lists and tables
WHOLE = 2**64  # magnitudes of whole numbers are below it: seeds go so far
COUNT = 2**31 - 1  # the most of anything that is counted
DIGITS = 300  # of a whole number that is made at all: longer ones are no floats either

T = TypeVar("T")

_HALVES, _HALVES_BUT_NAMES = re.compile("[\ud800-\udfff]"), re.compile("[\ud800-\udc7f\udd00-\udfff]")

_OTHERS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class TextError(ValueError):
    """A text is no plain document, or a value in it can't be; says why, in part of a sentence without its end."""


class _Long:
    """A whole number of too many digits to make it."""

    def __init__(self, digits: str) -> None:
        self.count = len(digits.lstrip("-"))


def text_of(content: bytes) -> str:
    """UTF-8, with or without a byte order mark.

    Raises:
        TextError: it is none.
    """
    for mark, name in _OTHERS:
        if content.startswith(mark):
            raise TextError(f"it is written in {name}, and UTF-8 is expected")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"it is no UTF-8 text: byte {error.start} is {content[error.start]:#04x}") from None


def json_of(text: str | bytes, *, finite: bool = True, names: bool = False) -> Any:
    """The values of a JSON document.

    Args:
        finite: NaN and infinity, which Python writes and JSON lacks, are refused.
        names: there are names of files in it, in which bytes that are no text stand as U+DC80 to U+DCFF.

    Raises:
        TextError: it is no JSON; it is nested more than `DEEPEST` levels; a key stands twice with different values; a
            whole number is not below `WHOLE`, or a text holds half a surrogate pair. The reason says where.
    """
    if not isinstance(text, str | bytes):  # as a database may hold it
        raise TextError(f"it is {kind(text)}, and a text is expected")
    text = text_of(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        value = json.loads(text, parse_int=_whole, object_pairs_hook=_table)
    except TextError:
        raise
    except RecursionError:
        raise TextError(_TOO_DEEP) from None
    except ValueError as error:
        raise TextError(_inside(error)) from None
    _require_plain(value, finite, names)
    return value


def json_table(text: str | bytes, *, finite: bool = True, names: bool = False) -> dict[str, Any]:
    """The keys and values of a JSON document that is an object.

    Raises:
        TextError: as `json_of`, or it is something else.
    """
    value = json_of(text, finite=finite, names=names)
    if not isinstance(value, dict):
        raise TextError(f'it is {kind(value)}, and a JSON object is expected, such as {{"a": 1}}')
    return value


def toml_of(text: str | bytes) -> dict[str, Any]:
    """The keys and values of a TOML document: texts, numbers, true and false, lists and tables.

    Raises:
        TextError: it is no TOML, or as of `json_of`; dates and numbers that are not finite are refused too.
    """
    text = text_of(text) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    # the parser's time grows with the square of a dotted key's parts
    if any(part.count(".") > 2 * DEEPEST for part in re.split(r"[=\n,]", text.replace(" ", "").replace("\t", ""))):
        raise TextError(_TOO_DEEP)
    try:
        value = tomllib.loads(text)
    except RecursionError:
        raise TextError(_TOO_DEEP) from None
    except tomllib.TOMLDecodeError as error:
        raise TextError(_inside(error)) from None
    except ValueError:  # of int(), which takes 4300 digits
        raise TextError(f"a whole number in it has thousands of digits; {_LARGEST}") from None
    _require_plain(value, True, False)
    return value


_TOO_DEEP = f"it is nested too deep: more than {DEEPEST} levels"
_LARGEST = f"the largest here has {len(str(WHOLE - 1))}"


def _inside(error: ValueError) -> str:
    """A parser's reason, to stand inside a sentence."""
    reason = " ".join(str(error).split())
    return reason[:1].lower() + reason[1:].rstrip(".")


def _whole(digits: str) -> int | _Long:
    return int(digits) if len(digits) <= DIGITS else _Long(digits)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        for key, value in pairs:
            if type(value) is not type(table[key]) or value != table[key]:
                twice = f"with {shown(value)} and with {shown(table[key])}"
                raise TextError(f"the key {shown(key)} stands in it twice, {twice}")
    return table


_Way = tuple[Any, str | int] | None  # what a value lies in, and where in it


def _require_plain(document: Any, finite: bool, names: bool) -> None:
    nest: list[tuple[Any, _Way, int]] = [(document, None, 1)]
    while nest:
        value, way, depth = nest.pop()
        if isinstance(value, dict | list):
            if depth > DEEPEST:
                raise TextError(_TOO_DEEP)
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(key, str) and not _writable(key, names):
                    raise TextError(f"the key {shown(key)} holds half a surrogate pair, which is no letter")
                nest.append((inner, (way, key), depth + 1))
        elif isinstance(value, str):
            if not _writable(value, names):
                raise TextError(f"{_named(way)} holds half a surrogate pair, which is no letter")
        elif isinstance(value, _Long) or (isinstance(value, int) and abs(value) >= WHOLE):
            digits = value.count if isinstance(value, _Long) else len(str(abs(value))) if abs(value) < 10**400 else 0
            what = f"a whole number of {digits or 'hundreds of'} digits"
            raise TextError(f"{_named(way)} is {what}; {_LARGEST}")
        elif isinstance(value, float):
            if finite and not math.isfinite(value):
                raise TextError(f"{_named(way)} is {value}, and no finite number")
        elif not isinstance(value, bool | int | None):
            raise TextError(f"{_named(way)} is {kind(value)}; write it as a text")


def _writable(text: str, names: bool) -> bool:
    return text.isascii() or not (_HALVES_BUT_NAMES if names else _HALVES).search(text)


def _named(way: _Way) -> str:
    """Where a value stands, as `denoiser.channels[2]`."""
    keys = list(_keys(way))[::-1]
    parts = [f"[{key}]" if isinstance(key, int) else f".{plain(key)}" for key in keys]
    return "".join(parts).removeprefix(".")[:100] or "it"


def _keys(way: _Way) -> Iterator[str | int]:
    while way:
        yield way[1]
        way = way[0]


def shown(value: object, most: int = 60) -> str:
    """A value as it stands in a message: in one line, and cut."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # repr() of a whole number of more than 4300 digits, and of a deep nest
        text = kind(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def plain(name: str) -> str:
    """A name as it stands in a message: itself, or in quotation marks and cut where it is none, or long."""
    return name if name and name.isprintable() and len(name) <= 100 else shown(name)


def is_file_name(text: object) -> TypeGuard[str]:
    """Whether a file can be called so, or be found so from a folder: a text without NUL, no part of it too long."""
    if not isinstance(text, str) or not text or "\0" in text or len(text) > 1000:
        return False
    return all(len(part.encode("utf-8", "surrogateescape")) <= 255 for part in text.split("/"))


def kind(value: object) -> str:
    """What a value is, in words."""
    names = {dict: "a table", list: "a list", tuple: "a list", str: "a text", bool: "true or false", int: "a number"}
    names |= {float: "a number", type(None): "nothing"}
    return names.get(type(value), f"a {type(value).__name__}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number: no bool, and no 1.0."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number, whole or not, that a float can hold: no bool, finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return is_whole(value) and abs(value) < WHOLE


def whole(value: object, name: str, least: int = 1, most: int = COUNT) -> int:
    """A whole number between two, both included.

    Raises:
        TextError: it is something else; the reason begins with the name.
    """
    if not is_whole(value) or not least <= value <= most:
        raise TextError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")
    return value


def number(value: object, name: str, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number between two, both included.

    Raises:
        TextError: it is something else; the reason begins with the name.
    """
    if not is_number(value) or not least <= value <= most:
        limits = {(False, False): "", (True, False): f" of at least {least:g}", (False, True): f" of at most {most:g}"}
        between = limits.get((math.isfinite(least), math.isfinite(most)), f" from {least:g} to {most:g}")
        raise TextError(f"{name} must be a finite number{between}, not {shown(value)}")
    return float(value)


def flag(value: object, name: str) -> bool:
    """True or false.

    Raises:
        TextError: it is something else; the reason begins with the name.
    """
    if not isinstance(value, bool):
        raise TextError(f"{name} must be true or false, not {shown(value)}")
    return value


def made(cls: type[T], values: Mapping[str, Any], name: str) -> T:
    """A dataclass of a table that gives its fields; lists become tuples.

    Raises:
        TextError: it is no table, has a key that is no field, or lacks one that must be given; the reason begins with
            the name. What the class itself says of values comes as it is.
    """
    if not isinstance(values, Mapping):
        raise TextError(f"{name} must be a table, not {shown(values)}")
    known = {field.name: field for field in fields(cls) if field.init}  # type: ignore[arg-type]
    if unknown := [key for key in values if key not in known]:
        raise TextError(f"{name} has no {shown(unknown[0])}; it has {', '.join(known)}")
    needed = [key for key, field in known.items() if field.default is field.default_factory is MISSING]
    if missing := [key for key in needed if key not in values]:
        raise TextError(f"{name} lacks {missing[0]}")
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
