"""Docstrings of the public interface give shapes, what arguments mean, and errors."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import griffe
import pytest
from docs_pages.api import callables, modules, public_names
from docs_pages.written import Written

from calotype import errors

SOURCE = Path(__file__).resolve().parents[2] / "src"
ERRORS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
ARRAY = re.compile(r"(?<!\w)(Tensor|NDArray|ndarray|Array)\b")  # of which a shape is to be told
BY_NAME = re.compile(r"Mapping\[|dict\[|Callable\[")  # many of them: what each is their names say
PLAIN = re.compile(r"\b(int|float|bool|str|Literal|tuple|dtype)\b")  # types that do not say what a value is
SHAPE = re.compile(r"\[[^\]\n]*[A-Za-z][^\]\n]*\]|[Ss]hape|[Aa] number")
ELSEWHERE = re.compile(r"\b([Ss]ee|[Aa]s|[Aa]s for|[Aa]s of|of|by) `")  # told by another one


@dataclass(frozen=True)
class One:
    """A function, as it is written.

    Attributes:
        where: its full name.
        doc: what its docstring says; of a constructor its class's.
        tree: of its code; None where it is made by a decorator (the constructor of a dataclass).
        about: the docstring of its class.
    """

    where: str
    doc: str
    tree: ast.FunctionDef | None
    about: str = ""

    @property
    def arguments(self) -> list[ast.arg]:
        assert self.tree is not None
        of = self.tree.args
        return [one for one in (*of.posonlyargs, *of.args, *of.kwonlyargs) if one.arg not in ("self", "cls")]


def _written() -> Iterator[One]:
    for where, value, of in callables():
        if isinstance(value, type):
            yield One(where, _doc(value), None)
            for name in ("__init__", "__post_init__"):
                made = vars(value).get(name)
                if isinstance(made, types.FunctionType) and "/calotype/" in made.__code__.co_filename:
                    yield One(f"{where}.{name}", _doc(value), _tree(made))
        else:
            doc = _doc(getattr(of, value.__name__)) if of else _doc(value)
            yield One(where, doc, _tree(value), _doc(of) if of else "")


def _doc(value: Any) -> str:
    return inspect.getdoc(value) or ""


def _tree(function: Any) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree


@pytest.fixture(scope="module")
def written() -> list[One]:
    found = list({one.where: one for one in _written()}.values())
    assert len(found) > 500  # that something is looked at
    return found


@pytest.mark.slow
def test_everything_public_says_what_it_is(written: list[One]) -> None:
    assert not [one.where for one in written if not one.doc]


def test_errors_are_told(written: list[One]) -> None:
    """What a function raises itself, of the project's errors, stands under "Raises": by its name or that of a base."""
    assert not [f"{one.where}: {', '.join(wrong)}" for one in written if one.tree and (wrong := _untold(one))]


def _untold(one: One) -> list[str]:
    assert one.tree is not None
    calls = [node.exc for node in ast.walk(one.tree) if isinstance(node, ast.Raise)]
    names = {call.func.id for call in calls if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)}
    told = one.doc.partition("Raises")[2]
    return [
        name for name in sorted(names & set(ERRORS)) if not any(base.__name__ in told for base in ERRORS[name].__mro__)
    ]


def test_shapes_are_told(written: list[One]) -> None:
    """Where tensors or arrays go in or come out, a shape is given, or another function that gives it."""
    wrong = []
    for one in written:
        if one.tree is None:
            continue
        types_ = [ast.unparse(arg.annotation) for arg in one.arguments if arg.annotation]
        types_ += [ast.unparse(one.tree.returns)] if one.tree.returns else []
        if any(map(_is_array, types_)) and not SHAPE.search(one.doc) and not ELSEWHERE.search(one.doc):
            wrong.append(one.where)
    assert not wrong


def _is_array(annotation: str) -> bool:
    return bool(ARRAY.search(annotation)) and not BY_NAME.search(annotation)


def test_arguments_are_told(written: list[One]) -> None:
    """Those whose type does not say what they are appear by name."""
    wrong = []
    for one in written:
        if one.tree is None or ELSEWHERE.search(one.doc):
            continue
        plain = [arg.arg for arg in one.arguments if arg.annotation and _is_plain(ast.unparse(arg.annotation))]
        missing = [name for name in plain if not re.search(rf"\b{name}\b", one.doc + one.about)]
        wrong += [f"{one.where}: {', '.join(missing)}"] if missing else []
    assert not wrong


def _is_plain(annotation: str) -> bool:
    return bool(PLAIN.search(annotation)) and not BY_NAME.search(annotation)


def test_arguments_that_are_told_are_there(written: list[One]) -> None:
    wrong = []
    for one in written:
        if one.tree is None or one.where.endswith("__post_init__"):
            continue
        told = re.search(r"^Args:\n((?:    .*\n|\n)*)", one.doc + "\n", re.MULTILINE)
        names = re.findall(r"^    ([\w, ]+):", told[1], re.MULTILINE) if told else []
        given = {arg.arg for arg in one.arguments} | {
            arg.arg for arg in (one.tree.args.vararg, one.tree.args.kwarg) if arg
        }
        wrong += [f"{one.where}: {name}" for text in names for name in text.split(", ") if name not in given]
    assert not wrong


def test_constants_say_what_they_are() -> None:
    """By a comment in their line, or a text after them."""
    silent, every = [], 0
    for name in modules():
        module = importlib.import_module(name)
        source = inspect.getsource(module)
        lines, body = source.splitlines(), ast.parse(source).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            own = [one.id for one in targets if isinstance(one, ast.Name) and one.id[0] != "_"]
            if not (own := [one for one in own if one in getattr(module, "__all__", own)]):
                continue
            every += 1
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            beside = lines[node.lineno - 1] + lines[(node.end_lineno or 1) - 1]
            if not said and not re.search(r"  # (?!fmt:|type:|noqa)", beside):
                silent += [f"{name}.{one}" for one in own]
    assert every > 100
    assert silent == []


@pytest.mark.slow
def test_attributes_say_what_they_are() -> None:
    """All that the pages show, which leave out layers of networks (`docs_pages.written`); of arrays a shape too."""
    extensions = griffe.load_extensions(Written)
    package = griffe.load("calotype", search_paths=[SOURCE], extensions=extensions, docstring_parser="google")
    classes = [package[f"{module}.{name}".partition(".")[2]] for module in modules() for name in public_names(module)]
    members = [one for of in classes if of.is_class for one in of.all_members.values()]
    every = {one.canonical_path: one for one in members if one.is_attribute and not one.name.startswith("_")}
    assert len(every) > 500
    said = {path: one.docstring.value if one.docstring else "" for path, one in every.items()}
    assert [path for path, words in said.items() if not words] == []
    arrays = {path for path, one in every.items() if _is_array(str(one.annotation))}
    assert [path for path in arrays if not SHAPE.search(said[path]) and not ELSEWHERE.search(said[path])] == []
