"""`calotype plan`: how a picture of some size would be decoded or encoded, and what that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.common import (
    DeviceOption,
    Dtype,
    DtypeOption,
    EncodeDtypeOption,
    JsonOption,
    MemoryOption,
    PrefixOption,
    WeightsOption,
    finish,
    load_vae,
    show,
    size_of,
    table,
)
from calotype.errors import WeightsError

if TYPE_CHECKING:
    from calotype.steps import Direction

NAME = "plan"
EXAMPLE = "Example: [bold]calotype plan sd-vae-ft-mse 4096x4096 --memory 1GB[/]"


def command(
    weights: Annotated[
        str, typer.Argument(help="A preset's name (builtin is one), or a file or folder in any layout.")
    ],
    size: Annotated[str, typer.Argument(help="Of the picture, WIDTHxHEIGHT in pixels.")],
    encode: Annotated[bool, typer.Option("--encode", help="Plan an encode, not a decode.")] = False,
    memory: MemoryOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    json: JsonOption = False,
) -> None:
    """Say how a picture of this size would be decoded: memory, work, and where every feature map lives.

    A map is kept whole, spilled to a temporary file, or exists as a few rows at a time; passes run one after another,
    their steps together. Nothing is computed, and of presets nothing is fetched: their architecture is known.
    """
    import torch

    from calotype.engine.budget import in_words, parse_memory
    from calotype.outline import outline_of, outline_of_preset
    from calotype.weights.mapped import dtype_name
    from calotype.weights.presets import is_preset

    if memory is not None:
        parse_memory(memory)
    width, height = size_of(size)
    if is_preset(weights):
        narrow = getattr(torch, encode_dtype.value) if encode_dtype else None
        vae = outline_of_preset(weights, device=device, dtype=getattr(torch, dtype.value), encode_dtype=narrow)
    else:
        vae = outline_of(load_vae(weights, None, device, dtype, prefix, which, encode_dtype))
    direction: Direction = "encode" if encode else "decode"
    if f"{direction}r" not in vae.parts:
        raise WeightsError(f"{weights} holds no {direction}r; leave --encode out, or give the other half too.")
    engine = vae.encoding if encode else vae.engine
    program = engine.program(direction)
    factor = max(program.source.factor, program.target.factor)
    height, width = (-(-n // factor) * factor for n in (height, width))
    plan = engine.plan(direction, height, width, memory)
    notices = plan.notices()
    if engine.whole_fits(direction, height, width, memory):
        notices.append("The picture fits whole on the device and is computed at once; what follows is for less memory.")
    passes: list[dict[str, Any]] = []
    for one in plan.passes:
        target = one.target
        rows, columns = target.size(height, width)
        place: str = plan.places[target.name] if one.stores else "measured"
        if target == plan.program.target:
            place = "given out"
        inside = [step.target.name for step in one.steps[:-1] if plan.places[step.target.name] == "rows"]
        passes.append(
            {
                "makes": target.name,
                "shape": [target.channels, rows, columns],
                "steps": len(one.steps),
                "as_rows": inside,
                "place": place,
                "rows_at_a_time": one.stripe,
                "temporary_bytes": one.temporary,
                "beside_bytes": one.beside,
            }
        )
    document: dict[str, Any] = {
        "vae": vae.name,
        "direction": plan.program.direction,
        "width": width,
        "height": height,
        "engine": engine.name,
        "dtype": dtype_name(engine.dtype),
        "threads": plan.job.threads,
        "memory": parse_memory(memory) if memory is not None else None,
        "peak_bytes": plan.peak,
        "flops": plan.flops,
        "direct_flops": plan.direct_flops,
        "attention_flops": plan.attention,
        "spilled_bytes": plan.spill,
        "notices": notices,
        "passes": passes,
    }

    def text() -> None:
        from rich.table import Table

        budget = f" of {memory}" if memory else ""
        table(
            [
                (
                    "picture",
                    f"{width}x{height}, {plan.program.direction}, {engine.name} engine on {engine.device}, "
                    f"{document['dtype']}",
                ),
                ("peak memory", f"{in_words(plan.peak, up=True)}{budget}, beside the weights and the picture"),
                ("work", f"{plan.flops / 1e12:.4g} TFLOP (direct convolutions: {plan.direct_flops / 1e12:.4g})"),
                ("attention", f"{plan.attention / 1e12:.4g} TFLOP of it"),
                ("to and from disk", in_words(plan.spill) if plan.spill else "nothing"),
                *(("notice", notice) for notice in notices),
            ]
        )
        grid = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("pass makes", "shape", "where", "rows at a time", "within, as rows only"):
            grid.add_column(column, overflow="fold")
        for one in passes:
            shape = "x".join(map(str, one["shape"]))
            names = one["as_rows"]
            within = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}: {len(names)} maps"
            grid.add_row(one["makes"], shape, one["place"], str(one["rows_at_a_time"]), within)
        show(grid)

    finish(document, as_json=json, text=text)
