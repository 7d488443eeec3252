"""The model that a drawing model's training begins with."""

from __future__ import annotations

from pathlib import Path

from calotype.draw.model import BUILTIN, DrawingModel, load_model
from calotype.draw.recipe import DrawingRecipe
from calotype.errors import UsageError
from calotype.vae import VAE


def start_of(recipe: DrawingRecipe, vae: VAE) -> DrawingModel | None:
    """The model that a recipe begins with.

    Raises:
        UsageError: it draws in another VAE's latents, or its sizes are not the recipe's.
        WeightsError: there is none, or it is damaged.
    """
    if not recipe.start:
        return None
    model = load_model(start_file(recipe))
    there = model.config
    if there.vae != vae.sha256:
        raise UsageError(
            f"start = {recipe.start}: this model draws in the latents of another VAE (sha256 {there.vae[:12]}...) than "
            f"the recipe's, {vae.name} ({vae.sha256[:12]}...); give the recipe that VAE, as in --set vae=PATH."
        )
    wanted = (
        *recipe.text_config().to_dict().items(),
        *recipe.denoiser_config(there.denoiser.out_channels).to_dict().items(),
        ("sketch_std", recipe.sketch_std),  # its weights give something else at another one
    )
    has = {**there.text.to_dict(), **there.denoiser.to_dict(), "sketch_std": there.sketch_std}
    if other := [f"{key} {has[key]}, not {value}" for key, value in wanted if has[key] != value]:
        raise UsageError(
            f"start = {recipe.start}: this model has other sizes than the recipe ({'; '.join(other)}); give the recipe "
            "its sketch_std, [text] and [denoiser], or begin from nothing, with --set start=."
        )
    return model


def start_file(recipe: DrawingRecipe) -> Path:
    """Its file."""
    return BUILTIN if recipe.start == "builtin" else Path(recipe.start)
