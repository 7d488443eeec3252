"""For the pages of the Python interface: what stands in the code and not in a form that their generator reads.

Attributes are described in their class, or by comments at the ends of their lines, and several arguments at once
(``height, width: of it``); methods and attributes that are what their base class says are described there. Each has its
own place on a page, so its words are taken there. Layers of networks have none: their names are keys of checkpoints.
"""

from __future__ import annotations

import ast
import inspect
import re
import tokenize
from collections.abc import Iterator
from io import StringIO
from textwrap import dedent
from typing import Any

import griffe

SECTIONS = re.compile(r"(Args|Attributes):")
TOGETHER = re.compile(r"    (\w+(?:, \w+)+): ")
ONE = re.compile(r"^    (\w+): ", re.MULTILINE)


def apart(text: str) -> str:
    """A docstring in which arguments and attributes that are described together are described one by one."""
    found: list[str] = []
    lines = text.splitlines()
    inside = False
    at = 0
    while at < len(lines):
        line = lines[at]
        if line and not line.startswith(" "):
            inside = SECTIONS.fullmatch(line) is not None
        end = at + 1
        names = TOGETHER.match(line) if inside else None
        if names:
            while end < len(lines) and lines[end].startswith("     "):
                end += 1
            for name in names[1].split(", "):
                found += [f"    {name}: {line[names.end() :]}", *lines[at + 1 : end]]
        else:
            found.append(line)
        at = end
    return "\n".join(found)


def split(text: str, title: str) -> tuple[str, dict[str, str], str]:
    """What stands before a section of a docstring, what the section says of each name, and what stands after it."""
    found = re.search(rf"^{title}:\n((?:    .*(?:\n|\Z)|\n)*)", text, re.MULTILINE)
    if not found:
        return text, {}, ""
    _, *words = ONE.split(found[1])
    return text[: found.start()], dict(zip(words[::2], words[1::2], strict=True)), text[found.end() :]


def comment(code: str) -> str:
    """What is said after a statement, at the end of its last line."""
    tokens = list(tokenize.generate_tokens(StringIO(dedent(code)).readline))
    last = len(code.splitlines())
    found = (one for one in tokens if one.type == tokenize.COMMENT and one.start[0] == last)
    return next((one.string.lstrip("# ") for one in found if one.line[: one.start[1]].strip()), "")


class _OneByOne(ast.NodeTransformer):
    """``self.a, self.b = a, b`` as two assignments."""

    def visit_Assign(self, node: ast.Assign) -> ast.Assign | list[ast.Assign]:
        match node:
            case ast.Assign(targets=[ast.Tuple(names)], value=ast.Tuple(values)) if len(names) == len(values):
                pairs = zip(names, values, strict=True)
                return [ast.copy_location(ast.Assign([name], value), node) for name, value in pairs]
        return node


class Written(griffe.Extension):
    """Gives attributes and methods their words, and takes apart what is said of several names."""

    def on_class_node(self, *, node: ast.AST | griffe.ObjectNode, **_: Any) -> None:
        """Of every class, before it is looked into."""
        for one in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(one, ast.FunctionDef) and one.name == "__init__":
                _OneByOne().visit(one)

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of every module, class and function."""
        if obj.docstring:
            obj.docstring.value = apart(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Of every attribute."""
        if attr.docstring or not attr.lines or "#" not in attr.lines[-1]:
            return
        said = comment("\n".join(attr.lines)).rstrip(".")
        if said and not said.startswith(("type: ", "noqa", "fmt: ")):
            attr.docstring = griffe.Docstring(f"{said}.", parent=attr, lineno=attr.endlineno)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Of a package, when all of it is known."""
        classes = [of for module in (pkg, *_inside(pkg)) for of in module.classes.values() if not of.is_alias]
        networks = {of.path for of in classes if _is_network(of)}
        for of in classes:
            _give(of)
        for of in classes:
            for name, one in {**of.functions, **of.attributes}.items():
                if one.is_alias:
                    continue
                told = (base.members[name].docstring for base in of.mro() if name in base.members)
                one.docstring = one.docstring or next(filter(None, told), None)
                if not isinstance(one, griffe.Attribute):
                    continue
                if of.path in networks and not one.docstring and is_layer(one, networks):
                    of.del_member(name)
                elif one.value is not None and "class-attribute" not in one.labels:
                    _as_argument(of, one)


def _give(of: griffe.Class) -> None:
    """Gives attributes what their class says of them, or of the arguments that they are called after."""
    if not of.docstring:
        return
    before, said, after = split(of.docstring.value, "Attributes")
    arguments = split(of.docstring.value, "Args")[1]
    for name, one in of.attributes.items():
        if one.docstring or name not in {**arguments, **said}:
            continue
        words = said.pop(name) if name in said else arguments[name]
        one.docstring = griffe.Docstring(inspect.cleandoc(words), parent=one, lineno=one.lineno)
    left = "".join(f"    {name}: {words}" for name, words in said.items())
    of.docstring.value = f"{before}{left and 'Attributes:'}\n{left}\n{after}".strip()


def _as_argument(of: griffe.Class, one: griffe.Attribute) -> None:
    """Gives what a constructor sets the type of the argument that it is, in the place of the code that makes it."""
    arguments = of.functions["__init__"].parameters if "__init__" in of.functions else ()
    if one.annotation is None and (name := str(one.value)) in arguments:
        one.annotation = arguments[name].annotation
    one.value = None


def is_layer(one: griffe.Attribute, networks: set[str]) -> bool:
    """Whether an attribute of a network is made of torch's modules or parameters or of other networks, or is a buffer.

    Args:
        networks: names of classes, in full.
    """
    if one.value is None:
        return isinstance(one.annotation, griffe.Expr) and one.annotation.canonical_path == "torch.Tensor"
    parts = one.value.iterate(flat=True) if isinstance(one.value, griffe.Expr) else ()
    return any(isinstance(part, griffe.Expr) and part.canonical_path in {"torch.nn", *networks} for part in parts)


def _is_network(of: griffe.Class) -> bool:
    bases = [base for one in (of, *of.mro()) for base in one.bases]
    return any(isinstance(base, griffe.Expr) and base.canonical_path.startswith("torch.nn.") for base in bases)


def _inside(module: griffe.Module) -> Iterator[griffe.Module]:
    for one in module.modules.values():
        if isinstance(one, griffe.Module):
            yield one
            yield from _inside(one)
