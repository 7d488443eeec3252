"""GGUF files, of a network so small that their headers are most of them, and weights with scales beside them."""

from __future__ import annotations

import json
from pathlib import Path

import ggufkit
import torch
from fuzzkit import Accepted, Case
from ggufkit import Type
from seeds_weights import TINIEST, read, safetensors
from support import kl, tensors_of

from calotype.families.kl.config import AutoencoderConfig
from calotype.latents import ScaleShift
from calotype.weights.save import save_weights

FLAT = AutoencoderConfig(ch=32, ch_mult=(1,), num_res_blocks=1, z_channels=1, mid_attention=False)


def cases(folder: Path) -> list[Case]:
    module = kl(TINIEST)
    format_ = ScaleShift(name="mine", channels=1, scaling_factor=0.5)
    (own,) = save_weights(module, folder / "own.gguf", layout="gguf", format_=format_)
    told = ggufkit.says("calotype_config", json.dumps(TINIEST.to_dict()))
    plain = ggufkit.as_written(tensors_of(module), Type.F16, "vae.")
    whole = ggufkit.file(plain, [told])
    start = len(whole) - sum(len(one.content) + -len(one.content) % 32 for one in plain)
    numbers = whole[start:]

    def headed(path: Path) -> Accepted:
        """A header alone, whose numbers are whole."""
        head = path.read_bytes()
        path.write_bytes(head + bytes(-len(head) % 32) + numbers)
        return read(path)

    wide = kl(FLAT)
    packed = ggufkit.file(ggufkit.as_written(tensors_of(wide), Type.Q8_0), [
        ggufkit.key("general.alignment", 4, (32).to_bytes(4, "little")),
        ggufkit.key("tokens", 9, (8).to_bytes(4, "little") + (2).to_bytes(8, "little") + 2 * ggufkit.text("ab")),
        told.replace(b"calotype_config", b"calotype_konfig"),
    ])  # fmt: skip
    scaled = {}
    for key, value in tensors_of(module).items():
        scaled[key] = value.to(torch.float8_e4m3fn) if value.ndim == 4 else value
        if value.ndim == 4:
            scaled[key.replace("weight", "weight_scale")] = torch.tensor(0.5)
            text = json.dumps({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
            scaled[key.replace("weight", "comfy_quant")] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    config = {"calotype_config": json.dumps(TINIEST.to_dict())}
    return [
        Case("header.gguf", whole[:start], headed),
        Case("own.gguf", own.read_bytes(), read),
        Case("packed.gguf", packed, read),
        Case("scaled.safetensors", safetensors(scaled, config), read),
    ]
