"""`calotype spaces`: the latent spaces there are, and what decodes them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from calotype.cli.common import JsonOption, finish, show
from calotype.errors import UsageError

NAME = "spaces"
EXAMPLE = "Example: [bold]calotype spaces wan2.1[/]"


def command(
    name: Annotated[
        str | None, typer.Argument(help="Of a space, to see all of it.", show_default="a table of all")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List latent spaces: how their latents are scaled, the models that use them, and presets that decode them.

    VAEs of one space understand each other's latents: `calotype decode` takes any of them, and `calotype evaluate
    --decoder` compares them. Of one space, all numbers, and where it is written which models use it.
    """
    from calotype.latent_spaces import spaces

    known = {one.name: one for one in spaces()}
    if name is not None and name not in known:
        raise UsageError(f"There is no latent space {name!r}; choose one of {', '.join(known)}.")
    document: dict[str, Any] = known[name].to_dict() if name else {"spaces": [one.to_dict() for one in known.values()]}

    def text() -> None:
        if name:
            _one(known[name])
        else:
            _all(list(known.values()))

    finish(document, as_json=json, text=text)


def _all(spaces: list[Any]) -> None:
    from rich.table import Table

    grid = Table("space", "f", "channels", "model latents", "models", "presets that decode it", show_lines=True)
    for one in spaces:
        models = ", ".join(one.models) or "-"
        presets = ", ".join(_decoder(decoder) for decoder in one.decoders) or "-"
        packed = f" -> {one.channels * one.patch**2}" if one.patch > 1 else ""
        grid.add_row(one.name, str(one.factor), f"{one.channels}{packed}", one.scaling, models, presets)
    show(grid)
    print(
        "calotype spaces NAME shows all of one; --json has all numbers, and where it is written which models use them."
    )


def _decoder(one: Any) -> str:
    said = [*([f"x{one.enlarges}"] if one.enlarges != 1 else []), *(["alpha"] if one.alpha else [])]
    return f"{one.name} ({', '.join(said)})" if said else str(one.name)


def _one(space: Any) -> None:
    from calotype.cli.common import table

    packed = f", {space.patch}x{space.patch} of which become one of {space.channels * space.patch**2}"
    rows = [
        ("space", f"{space.name} ({space.title})"),
        ("latents", f"f{space.factor}, {space.channels} channels{packed if space.patch > 1 else ''}"),
        ("model latents", space.scaling),
    ]
    for key in ("mean", "std"):
        if space.format and key in space.format:
            rows.append((f"  {key}", ", ".join(f"{value:.6g}" for value in space.format[key])))
    rows += [("model", f"{name} ({source})") for name, source in space.models.items()]
    for one in space.decoders:
        licence = f" ({one.licence})" if one.licence else ""
        rows.append(("decoder", f"{_decoder(one)}: {one.about}{licence}"))
    table(rows)
