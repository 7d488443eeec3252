"""`calotype reconstruct`: pictures through a VAE and back, side by side with their difference."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from calotype.cli.common import (
    AlphaOption,
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    EncodeDtypeOption,
    JsonOption,
    MemoryOption,
    OutOption,
    PrefixOption,
    SeedOption,
    VaeOption,
    WeightsOption,
    colour,
    complain,
    finish,
    for_each,
    load_vae,
    make_folder,
    outputs,
)
from calotype.errors import UsageError

if TYPE_CHECKING:
    from calotype.engine.executor import Progress

NAME = "reconstruct"
EXAMPLE = "Example: [bold]calotype reconstruct photo.jpg --vae sdxl-vae --out seen/[/]"


def command(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Pictures.")],
    vae: VaeOption = None,
    prefix: PrefixOption = None,
    which: WeightsOption = None,
    out: OutOption = Path(),
    amplify: Annotated[float, typer.Option(help="How much the difference panel is amplified.")] = 4.0,
    seed: SeedOption = None,
    alpha: AlphaOption = None,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    encode_dtype: EncodeDtypeOption = None,
    memory: MemoryOption = None,
    json: JsonOption = False,
) -> None:
    """Encode pictures and decode them again; see and measure what the VAE loses.

    Writes PHOTO-reconstruction.png, and PHOTO-panel.png with the original, the reconstruction and their amplified
    difference. Prints PSNR, SSIM, and how many numbers and bits a pixel takes before and after. In JSON, the PSNR of a
    picture that comes back without any loss is null.

    A VAE of grey pictures gets their luma, and both are compared in grey. One of RGBA gets their alpha too (--alpha
    over makes them opaque for it): PSNR and SSIM are of how they look over white and over black, and errors of colours
    and of alpha are told apart, too. The reconstruction has alpha.

    Pictures of any size are encoded and decoded exactly, without tiles, and written row by row.
    """
    from calotype.engine.budget import parse_memory
    from calotype.evaluate.alpha import APART
    from calotype.evaluate.reconstruct import reconstruct_files
    from calotype.families import require_as_large
    from calotype.pixels import alpha_mode, read_picture_rows
    from calotype.weights.mapped import dtype_name

    if not (isfinite(amplify) and amplify >= 0):
        raise UsageError(f"--amplify {amplify:g}: give a number from 0 up.")
    under = colour(background)
    if memory is not None:
        parse_memory(memory)
    plain = outputs(photos, out, "-reconstruction.png", vae)
    panels = outputs(photos, out, "-panel.png", vae)
    loaded = load_vae(vae, None, device, dtype, prefix, which, encode_dtype)
    loaded.require("encoder", "decoder")
    require_as_large(loaded.config, "A reconstruction")
    channels = loaded.picture_channels
    how = alpha_mode(channels, alpha.value if alpha else None)
    make_folder(out)

    def work(i: int, told: Progress | None) -> dict[str, Any]:
        picture = read_picture_rows(photos[i], alpha=how, background=under)
        for notice in picture.notices:
            complain(f"{photos[i]}: {notice}")
        result = reconstruct_files(
            loaded,
            picture,
            reconstruction=plain[i],
            panel=panels[i],
            amplify=amplify,
            seed=seed,
            memory=memory,
            progress=told,
        )
        return {
            "photo": str(photos[i]),
            "width": picture.size[1],
            "height": picture.size[0],
            "psnr": result.psnr,
            "ssim": result.ssim,
            "numbers_per_pixel": result.numbers_per_pixel,
            "bits_per_pixel": result.bits_per_pixel,
            "kl_bits_per_pixel": result.kl_bits_per_pixel,
            **{key: None if result.apart is None else getattr(result.apart, key) for key in APART},
            "reconstruction": str(plain[i]),
            "panel": str(panels[i]),
        }

    results, failures = for_each(photos, work, doing="Reconstructing", quiet=json)
    document = {
        "vae": loaded.name, "vae_sha256": loaded.sha256, "seed": seed, "dtype": dtype.value,
        "encode_dtype": dtype_name(loaded.encode_dtype), "results": results,
    }  # fmt: skip

    def text() -> None:
        for r in results:
            ssim = "" if r["ssim"] is None else f", SSIM {r['ssim']:.4f}"
            rate = "" if r["kl_bits_per_pixel"] is None else f", KL {r['kl_bits_per_pixel']:.2f} bits"
            print(f"{r['photo']} ({r['width']}x{r['height']}): PSNR {r['psnr']:.2f} dB{ssim}")
            if r["alpha_psnr"] is not None:
                print(f"  {_apart(r)}")
            print(
                f"  a pixel: {channels} number{'s' * (channels > 1)}, {8 * channels} bits -> "
                f"{r['numbers_per_pixel']:.4g} latent numbers, "
                f"{r['bits_per_pixel']:.4g} bits in float16{rate}"
            )
            print(f"  {r['panel']}")
        if len(results) > 1:
            print(f"mean PSNR {sum(r['psnr'] for r in results) / len(results):.2f} dB over {len(results)} pictures")

    finish(document, as_json=json, text=text, failures=failures, of=len(photos))


def _apart(r: dict[str, Any]) -> str:
    """Errors of colours and of alpha, in words."""
    seen = "nothing of it can be seen" if r["colour_psnr"] is None else f"PSNR {r['colour_psnr']:.2f} dB"
    return (
        f"colours alone: {seen}; alpha: PSNR {r['alpha_psnr']:.2f} dB, off by {r['alpha_mae']:.2f} of 255 in the mean, "
        f"{r['alpha_max']:.0f} at most"
    )
