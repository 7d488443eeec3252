"""JSON and TOML from files: what nobody means is refused, with the place of it."""

from __future__ import annotations

import json

import pytest

from calotype.texts import TextError, json_of, json_table, number, shown, text_of, toml_of, whole


def refused(read: object, *args: object, **options: object) -> str:
    with pytest.raises(TextError) as caught:
        read(*args, **options)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


def test_plain_documents_are_read() -> None:
    values = {"a": [1, 2.5, None, True, "é 😀"], "b": {"c": -(2**63), "d": 2**64 - 1}}
    for text in (json.dumps(values), json.dumps(values, ensure_ascii=False).encode("utf-8-sig")):
        assert json_of(text) == values
        assert type(json_table(text)["a"][0]) is int
    assert toml_of(b"\xef\xbb\xbfa.b = 1\n[c]\nd = [0.5, true]\n") == {"a": {"b": 1}, "c": {"d": [0.5, True]}}
    assert json_of("NaN", finite=False) != json_of("[NaN]", finite=False)


@pytest.mark.parametrize("read", [json_of, toml_of])
@pytest.mark.parametrize("depth", [65, 1000, 100_000])
@pytest.mark.parametrize("closed", [True, False])
def test_deep_nests_are_refused(read: object, depth: int, closed: bool) -> None:
    head = "x = " if read is toml_of else ""
    for begin, inner, end in (
        (("[", "1", "]"), ('{"a":', "1", "}")) if not head else (("[", "1", "]"), ("{a=", "1", "}"))
    ):
        message = refused(read, head + begin * depth + (inner + end * depth if closed else ""))
        assert "nested too deep" in message or (not closed and depth == 65)


@pytest.mark.parametrize("key", ["a" + ".a" * 50_000, "a" + " . a" * 20_000, "[a" + ".a" * 50_000 + "]"])
def test_long_dotted_keys_are_refused_at_once(key: str) -> None:
    assert "nested too deep" in refused(toml_of, key if key.startswith("[") else f"{key} = 1")
    assert "nested too deep" in refused(toml_of, f"x = {{{key} = 1}}")


@pytest.mark.parametrize("digits", [20, 31, 300, 301, 400, 5000, 200_000])
def test_long_whole_numbers_are_refused_with_their_place(digits: int) -> None:
    for sign in ("", "-"):
        message = refused(json_of, f'{{"a": [0, {{"b c": {sign}{"9" * digits}}}]}}')
        assert message == f"a[1].b c is a whole number of {digits} digits; the largest here has 20"
        message = refused(toml_of, f"a = [0, {sign}{'9' * digits}]")
        assert "has thousands" in message or message.startswith(f"a[1] is a whole number of {digits} digits")
    assert "digits" in refused(toml_of, f"a = 0x{'f' * digits}")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    assert refused(json_of, f'{{"loss": {text}}}').startswith("loss is ")
    toml = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}.get(text, text)
    assert refused(toml_of, f"loss = {toml}").startswith("loss is ")


def test_halves_of_surrogate_pairs_are_refused() -> None:
    assert refused(json_of, '{"name": "\\ud800"}').startswith("name holds")
    assert refused(json_of, '["\ud800"]').startswith("[0] holds")
    refused(json_of, '{"\\udfff": 1}').encode()
    assert json_of('"\\ud83d\\ude00"') == "😀"


def test_a_key_that_stands_twice_is_refused_unless_it_says_the_same() -> None:
    assert "'a' stands in it twice, with 1 and with True" in refused(json_of, '{"a": 1, "b": 2, "a": true}')
    assert json_of('{"a": 1, "a": 1}') == {"a": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-16-le", "latin-1"])
def test_other_encodings_are_refused(encoding: str) -> None:
    for read in (json_of, toml_of, text_of):
        text = 'é = "é"' if read is toml_of else '["é"]'
        message = refused(read, text.encode(encoding))
        assert "UTF-8" in message or "line 1" in message


def test_other_kinds_are_refused() -> None:
    assert refused(json_table, "[1]").startswith("it is a list")
    assert refused(toml_of, "a = 2024-01-01").startswith("a is a date")
    for read in (json_table, toml_of):
        assert "line 1" in refused(read, "\x00{")
        assert "line 1" in refused(read, "a = b = c")


@pytest.mark.parametrize("value", [True, 1.0, 0, -1, "1", None, 10**30, 10**5000, [1], float("nan")], ids=shown)
def test_whole_numbers_are_held_to_their_range(value: object) -> None:
    assert refused(whole, value, "steps").startswith("steps must be a whole number from 1 to 2147483647, not ")
    assert whole(0, "hold_out", 0) == 0


@pytest.mark.parametrize("value", [True, "1", None, 10**30, 10**5000, [1], float("nan"), float("inf")], ids=shown)
def test_numbers_are_finite(value: object) -> None:
    assert refused(number, value, "rate").startswith("rate must be a finite number, not ")
    assert refused(number, -1, "rate", 0) == "rate must be a finite number of at least 0, not -1"
    assert refused(number, 2.0, "share", 0, 1) == "share must be a finite number from 0 to 1, not 2.0"
    assert number(1, "share", 0, 1) == 1.0


def test_values_are_shown_in_one_short_line() -> None:
    assert shown("a\nb") == "'a\\nb'"
    assert len(shown("x" * 1000)) == 60
    assert shown("a\u2028b").isprintable()
    assert shown(10**5000) == "a number"
    shown("\ud800").encode()
