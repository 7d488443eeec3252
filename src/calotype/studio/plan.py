"""Plan: what pictures of some sizes take, in memory and time, on this machine."""

from __future__ import annotations

import time
from typing import Any

import torch

from calotype.errors import UsageError
from calotype.studio import forms
from calotype.studio.commands import load_line
from calotype.studio.jobs import Command, Job, Order
from calotype.studio.shelf import Shelf
from calotype.studio.visits import Visit

SIZES = ("256x256", "512x512", "1024x1024", "2048x2048", "4096x4096", "8192x8192")
_TRIED = 32  # latents along a side of what is timed


def order(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> Order:
    """A plan for each size; one that does not fit in the memory has its reason instead."""
    given = shelf.vae(form.get("vae", 0))
    wanted = forms.size(form, most=forms.LARGEST**2)
    direction = forms.choice(form, "direction", ("decode", "encode"))
    budget = form.get("memory") or ""
    if not isinstance(budget, str):
        raise UsageError(f"Memory is words like 512MB or 2GB, not {budget!r}.")
    if budget := budget.strip():
        from calotype.engine.budget import parse_memory

        parse_memory(budget)
    options = [
        *(["--encode"] if direction == "encode" else []), *(["--memory", budget] if budget else []),
        *(["--device", shelf.device] if shelf.device else []),
    ]  # fmt: skip
    sizes = [wanted[1]] if wanted else list(SIZES)
    commands = [Command("plan", [given, size], options, may_refuse=True) for size in sizes]

    def finish(visit: Visit, job: Job, said: list[Any]) -> list[dict[str, Any]]:
        rows = zip(commands, sizes, said, strict=True)
        return [{"kind": "plan", "size": size, "command": command.line(), **answer} for command, size, answer in rows]

    factor = shelf.load(form.get("vae", 0)).factor
    width, height = (-(-int(side) // factor) * factor for side in sizes[-1].split("x"))
    memory = f", memory={budget!r}" if budget else ""
    python = (
        f"import calotype\n{load_line(shelf, given)}\n"
        f"plan = vae.engine_of({direction!r}).plan({direction!r}, {height}, {width}{memory})\n"
        f"print(plan.peak, plan.flops)  # bytes beside the weights, operations"
    )
    return Order("Planning", commands, {}, python, finish)


def pace(shelf: Shelf, visit: Visit, form: dict[str, Any]) -> dict[str, Any]:
    """Operations a second, of a small picture that is decoded (or encoded) here and now, the better of two."""
    index = form.get("vae", 0)
    shelf.vae(index)
    vae, direction = shelf.load(index), forms.choice(form, "direction", ("decode", "encode"))
    side = _TRIED * vae.factor
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        if direction == "decode":
            vae.decode(torch.zeros(1, vae.latent_channels, _TRIED, _TRIED))
        else:
            vae.encode(torch.zeros(1, vae.picture_channels, side, side))
        seconds.append(time.perf_counter() - begin)
    flops = vae.engine_of(direction).plan(direction, side * vae.enlarges, side * vae.enlarges).flops  # type: ignore[arg-type]
    return {"seconds": min(seconds), "flops": flops, "side": side, "flops_per_second": flops / min(seconds)}


ORDERS = {"plan": order}
NOW = {"pace": pace}
