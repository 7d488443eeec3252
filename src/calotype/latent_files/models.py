"""What each program stores of each of its models: which latent format, raw or scaled, mode or sample. No torch.

Facts of the programs' own code, which was run: kohya-ss/sd-scripts 48d368f (library/strategy_*.py),
kohya-ss/musubi-tuner 30c658c (dataset/cache_io.py, *_cache_latents.py), ostris/ai-toolkit 27a03a9
(toolkit/dataloader_mixins.py, and encode_images of each model) and tdrussell/diffusion-pipe 8f83dbf (models/*.py). One
program stores some of its models raw and others scaled, so what is not in these tables is asked for. ERNIE-Image has
FLUX.2's VAE, whose statistics ai-toolkit takes with an epsilon of 1e-5 instead of 1e-4, which changes no picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Space = Literal["raw", "model"]


class Stored(NamedTuple):
    """What a program stores of a model."""

    format: str  # name of the latent format
    space: Space
    drawn: str  # "sample" or "mode" (the mean) of the posterior


class Unread(NamedTuple):
    """Why what a program stores of a model can't be decoded."""

    why: str  # a sentence's end, after "they are"


_FLUX, _SD3 = Stored("flux", "model", "sample"), Stored("sd3", "model", "sample")
_SDXL, _SD1 = Stored("sdxl", "model", "sample"), Stored("sd1", "model", "sample")
_WAN, _WAN_MODE = Stored("wan2.1", "model", "sample"), Stored("wan2.1", "model", "mode")
_FLUX_MODE, _FLUX2 = Stored("flux", "model", "mode"), Stored("flux2", "model", "mode")
_VIDEO = Unread("of a video's VAE that calotype does not have")
_MAGE = Unread("of a VAE that calotype does not have")
_SOUND = Unread("of sound")
_PIXELS = Unread("pixels, for that model has no VAE")
_OWN = Unread("normalised by that model's own statistics, which are not known here")

SD_SCRIPTS: Mapping[str, Stored] = {
    "sd": Stored("sd1", "raw", "sample"),
    "sdxl": Stored("sdxl", "raw", "sample"),
    "sd3": Stored("sd3", "raw", "sample"),
    "flux": _FLUX,
    "lumina": _FLUX,
    "hi": Stored("hunyuan-image", "raw", "sample"),
    "anima": _WAN_MODE,
}
"""By what ends the file's name: NAME_0096x0064_flux.npz."""

MUSUBI: Mapping[str, Stored | Unread] = {
    "wan": _WAN_MODE,
    "qwen_image": _WAN_MODE,
    "qwen_image_edit": _WAN_MODE,
    "qwen_image_layered": _WAN_MODE,
    "krea2": _WAN_MODE,
    "flux_kontext": _FLUX,
    "flux_2_dev": _FLUX2,
    "flux_2_klein_4b": _FLUX2,
    "flux_2_klein_9b": _FLUX2,
    "z_image": Stored("flux", "raw", "mode"),
    "ideogram4": Stored("flux2", "raw", "mode"),  # packed in an order of its own
    "hunyuan_video": _VIDEO,
    "hunyuan_video_1_5": _VIDEO,
    "framepack": _VIDEO,
    "kandinsky5": _VIDEO,
    "hidream_o1_image": _PIXELS,
}
"""By `architecture` in the file's metadata."""

AI_TOOLKIT: Mapping[str, Stored | Unread] = {
    **dict.fromkeys(("sd1", "sd2", "pixart"), _SD1),
    "sdxl": _SDXL,
    "sd3": _SD3,
    **dict.fromkeys(("flux1", "flux_kontext", "flex2", "f-lite", "chroma", "zimage", "omnigen2", "lumina2"), _FLUX),
    **dict.fromkeys(("hidream", "hidream_e1", "boogu_image", "boogu_image_edit"), _FLUX),
    **dict.fromkeys(("wan21", "wan21_i2v", "wan22_14b", "wan22_14b_i2v"), _WAN),
    **dict.fromkeys(("qwen_image", "qwen_image_edit", "qwen_image_edit_plus", "krea2", "anima", "nucleus_image"), _WAN),
    "wan22_5b": Stored("wan2.2", "model", "sample"),
    **dict.fromkeys(("flux2", "flux2_klein_4b", "flux2_klein_9b"), _FLUX2),
    "ernie_image": Stored("flux2", "model", "sample"),
    "ideogram4": _OWN,
    **dict.fromkeys(("mageflow", "mageflow_edit"), _MAGE),
    **dict.fromkeys(("ace_step_15", "ace_step_15_xl"), _SOUND),
    **dict.fromkeys(("ltx2_v2", "ltx2.3_v2", "ltx2.5_v2", "minimax_h3_v1"), _VIDEO),
    **dict.fromkeys(("chroma_radiance", "hidream_o1", "prx_pixel", "zeta_chroma", "zimage_l2p"), _PIXELS),
}  # fmt: skip
"""By `latent_space_version` in the file's metadata."""

DIFFUSION_PIPE: Mapping[str, Stored | Unread] = {
    "sdxl": _SDXL,
    "sd3": _SD3,
    **dict.fromkeys(("flux", "chroma", "lumina_2", "omnigen2", "hidream"), _FLUX),
    "z_image": _FLUX_MODE,
    "auraflow": Stored("sdxl", "model", "mode"),
    **dict.fromkeys(("wan", "wan_i2v", "wan_flf2v", "wan2.2_i2v", "skyreels_v2", "skyreels_v2_i2v"), _WAN_MODE),
    "wan2.2_5b": Stored("wan2.2", "model", "mode"),
    **dict.fromkeys(("qwen_image", "krea2", "anima", "cosmos_predict2"), _WAN_MODE),
    **dict.fromkeys(("flux2", "flux2_klein_4b", "flux2_klein_9b", "ernie_image", "ideogram4"), _FLUX2),
    "hunyuan_image": Stored("hunyuan-image", "model", "mode"),
    **dict.fromkeys(("hunyuan-video", "hunyuan_video_1.5", "ltx-video", "cosmos", "minimax_h3"), _VIDEO),
}
"""By the folder above the cache: .../cache/MODEL/. LTX-Video's is called after the checkpoint's file."""
