"""What the tabs' orders share: options, lines of Python, and results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calotype.errors import UsageError
from calotype.studio.shelf import BUILTIN, Given, Shelf
from calotype.studio.visits import Thing, Visit

if TYPE_CHECKING:
    from calotype.studio.jobs import Job, Word

Finish = Callable[[Visit, "Job", list[Any]], list[dict[str, Any]]]


def chosen(shelf: Shelf, form: dict[str, Any]) -> list[Word]:
    """Options of the VAE that a form names, of device and memory."""
    given = shelf.vae(form.get("vae", 0))
    return [*vae_option(given), *resources(shelf)]


def vae_option(given: Given) -> list[Word]:
    """--vae, where it is not the built-in one."""
    return [] if given.shown == BUILTIN else ["--vae", given]


def resources(shelf: Shelf, *, memory: bool = True) -> list[Word]:
    """--memory and --device, where the studio has them."""
    found: list[Word] = []
    if shelf.memory is not None and memory:
        found += ["--memory", shelf.memory]
    if shelf.device is not None:
        found += ["--device", shelf.device]
    return found


def load_line(shelf: Shelf, given: Given) -> str:
    """How Python loads a VAE."""
    words = [] if given.shown == BUILTIN else [repr(given.shown)]
    words += [] if shelf.device is None else [f"device={shelf.device!r}"]
    return f"vae = calotype.load({', '.join(words)})"


def memory_word(shelf: Shelf) -> str:
    """What stands at the end of a call that takes a memory."""
    return "" if shelf.memory is None else f", memory={shelf.memory!r}"


def inputs(things: Sequence[Thing]) -> dict[str, Path]:
    """Things by their names; no two have one name, unless they are the same.

    Raises:
        UsageError: the same thing stands where two are wanted.
    """
    found = {thing.name: thing.path for thing in things}
    if len(found) < len(things):
        raise UsageError(f"{things[0].name} is chosen twice; choose two different pictures.")
    return found


def picture(visit: Visit, job: Job, name: str, **more: Any) -> dict[str, Any]:
    """A picture that a command wrote, as a result that other commands may read."""
    path = job.folder / name
    thing = visit.add_picture(path, path.name, made=True)
    return {"kind": "picture", "thing": thing.facts(), "file": name, "url": job.keep(path), **more}


def file(job: Job, name: str, kind: str, **more: Any) -> dict[str, Any]:
    """Another file that a command wrote."""
    return {"kind": kind, "file": name, "url": job.keep(job.folder / name), **more}


def only(name: str, **more: Any) -> Finish:
    """Finishes an order that makes one picture."""
    return lambda visit, job, said: [picture(visit, job, name, **more)]
