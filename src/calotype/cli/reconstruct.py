"""`calotype reconstruct`: pictures through a VAE and back, side by side with their difference."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from calotype.cli.common import (
    Alpha,
    AlphaOption,
    BackgroundOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    OutOption,
    SeedOption,
    VaeOption,
    colour,
    complain,
    finish,
    for_each,
    load_vae,
    make_folder,
    outputs,
)
from calotype.errors import UsageError

NAME = "reconstruct"
EXAMPLE = "Example: [bold]calotype reconstruct photo.jpg --vae sdxl-vae --out seen/[/]"


def command(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO...", help="Pictures.")],
    vae: VaeOption = None,
    out: OutOption = Path(),
    amplify: Annotated[float, typer.Option(help="How much the difference panel is amplified.")] = 4.0,
    seed: SeedOption = None,
    alpha: AlphaOption = Alpha.over,
    background: BackgroundOption = "white",
    device: DeviceOption = None,
    dtype: DtypeOption = Dtype.float32,
    json: JsonOption = False,
) -> None:
    """Encode pictures and decode them again; see and measure what the VAE loses.

    Writes PHOTO-reconstruction.png, and PHOTO-panel.png with the original, the reconstruction and their amplified
    difference. Prints PSNR, SSIM, and how many numbers and bits a pixel takes before and after. In JSON, the PSNR of a
    picture that comes back without any loss is null.
    """
    from calotype.evaluate.reconstruct import reconstruct
    from calotype.pixels import read_picture, to_pil, write_picture

    if not (isfinite(amplify) and amplify >= 0):
        raise UsageError(f"--amplify {amplify:g}: give a number from 0 up.")
    under = colour(background)
    plain = outputs(photos, out, "-reconstruction.png")
    panels = outputs(photos, out, "-panel.png")
    loaded = load_vae(vae, None, device, dtype)
    make_folder(out)

    def work(i: int) -> dict[str, Any]:
        picture = read_picture(photos[i], alpha=alpha.value, background=under)
        for notice in picture.notices:
            complain(f"{photos[i]}: {notice}")
        result = reconstruct(loaded, picture, seed=seed)
        image = result.image()
        if picture.alpha is not None:
            image.putalpha(to_pil(picture.pixels, picture.alpha).getchannel("A"))
        panel = result.panel(amplify)
        write_picture(plain[i], image)
        write_picture(panels[i], panel)
        return {
            "photo": str(photos[i]),
            "width": picture.size[1],
            "height": picture.size[0],
            "psnr": result.psnr,
            "ssim": result.ssim,
            "numbers_per_pixel": result.numbers_per_pixel,
            "bits_per_pixel": result.bits_per_pixel,
            "kl_bits_per_pixel": result.kl_bits_per_pixel,
            "reconstruction": str(plain[i]),
            "panel": str(panels[i]),
        }

    results, failures = for_each(photos, work, doing="Reconstructing", quiet=json)
    document = {"vae": loaded.name, "vae_sha256": loaded.sha256, "seed": seed, "dtype": dtype.value, "results": results}

    def text() -> None:
        for r in results:
            ssim = "" if r["ssim"] is None else f", SSIM {r['ssim']:.4f}"
            rate = "" if r["kl_bits_per_pixel"] is None else f", KL {r['kl_bits_per_pixel']:.2f} bits"
            print(f"{r['photo']} ({r['width']}x{r['height']}): PSNR {r['psnr']:.2f} dB{ssim}")
            print(
                f"  a pixel: 3 numbers, 24 bits -> {r['numbers_per_pixel']:.4g} latent numbers, "
                f"{r['bits_per_pixel']:.4g} bits in float16{rate}"
            )
            print(f"  {r['panel']}")
        if len(results) > 1:
            print(f"mean PSNR {sum(r['psnr'] for r in results) / len(results):.2f} dB over {len(results)} pictures")

    finish(document, as_json=json, text=text, failures=failures, of=len(photos))
