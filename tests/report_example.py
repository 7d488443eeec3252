"""Results of an evaluation, made up, with pictures that are smooth enough to be stored well."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calotype.evaluate.report import Crop

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">&amp;'.png"
METRICS = [
    {"key": "psnr", "title": "PSNR", "unit": "dB", "better": "higher"},
    {"key": "ssim", "title": "SSIM", "unit": "", "better": "higher"},
    {"key": "lpips_vgg", "title": "LPIPS (VGG)", "unit": "", "better": "lower"},
]


def picture(seed: int, side: int, noise: float = 6.0) -> NDArray[np.uint8]:
    """Waves and a little noise, uint8 [side, side, 3]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * (a * x + b * y + c)) for a, b, c in generator.uniform(-4, 4, (3, 3))]
    values = 128 + 80 * np.stack(waves, axis=2) + noise * generator.standard_normal((side, side, 3))
    return values.clip(0, 255).round().astype(np.uint8)


def psnr_of(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    error = float(np.square(a.astype(np.float64) - b).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def example(
    labels: tuple[str, ...] = ("alpha", "beta", "gamma"), count: int = 8, side: int = 64
) -> tuple[dict[str, Any], list[Crop]]:
    """Results and crops: each VAE is better than the next on every picture; the last fails on picture 2."""
    names = [f"picture-{i:02d}.png" for i in range(count)]
    originals = [picture(i, side) for i in range(count)]
    crops = []
    rows: list[list[dict[str, Any]]] = [[] for _ in labels]
    for i, original in enumerate(originals):
        parts = {}
        for k, label in enumerate(labels):
            if i == 2 and k == len(labels) - 1:
                rows[k].append({"picture": i, "error": f"{names[i]} needs 9 GB; give a smaller one."})
                continue
            noise = (2 + 3 * k + 0.5 * i) * np.random.default_rng(100 + i).standard_normal(original.shape)
            parts[label] = (original + noise).clip(0, 255).round().astype(np.uint8)
            psnr = psnr_of(original, parts[label])
            rows[k].append(
                {
                    "picture": i,
                    "height": side,
                    "width": side,
                    "psnr": psnr,
                    "ssim": psnr / 50,
                    "lpips_vgg": 1 / psnr,
                    "numbers_per_pixel": 0.25,
                    "kl_bits_per_pixel": 2 + 0.01 * i,
                }
            )
        crops.append(Crop(picture=names[i], box=(0, 0, side, side), original=original, reconstructions=parts))
    vaes = [_vae(label, k, rows[k]) for k, label in enumerate(labels)]
    results = {
        "calotype": "0.1.0",
        "created": "2026-11-21T12:00:00Z",
        "command": ["calotype", "evaluate", "my photos", "--vae", labels[0]],
        "versions": {"torch": "2.13.0", "python": "3.11.7"},
        "device": "cpu, 2 threads",
        "protocol": {"name": "whole", "note": "As they are.", "latent": "mode", "size": 0, "text": "whole: mode"},
        "pictures": [
            {"name": name, "sha256": f"{i:064x}", "height": side, "width": side} for i, name in enumerate(names)
        ],
        "metrics": METRICS,
        "vaes": vaes,
    }
    return results, crops


def _vae(label: str, k: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    means = {}
    for metric in METRICS:
        values = [row[metric["key"]] for row in rows if metric["key"] in row]
        mean, half = float(np.mean(values)), 3 * float(np.std(values))
        means[metric["key"]] = {"mean": mean, "low": mean - half, "high": mean + half, "n": len(values)}
    return {
        "label": label,
        "weights": f"{label}.safetensors",
        "sha256": f"{k + 10:064x}",
        "network": {"z_channels": 4},
        "parameters": 4_900_000 * (k + 1),
        "factor": 8,
        "channels": 4,
        "format": {"scaling_factor": 0.18},
        "rows": rows,
        "means": means,
        "distances": {"fid_inception": {"value": 3.5 + k, "n": 5000}, "kid_inception": {"value": 0.001, "std": 0.0002}},
        "subsets": {"faces": {"psnr": {"mean": 30.0 - k, "low": 29.0 - k, "high": 31.0 - k, "n": 3}}},
        "latents": {
            "mean": [0.1, -0.2, 0.0, 0.3],
            "std": [1.0, 0.9, 1.1, 1.2],
            "scaling_factor": 0.9,
            "shift_factor": 0.05,
        },
        "speed": {"encode_seconds_per_megapixel": 1.0 + k, "decode_seconds_per_megapixel": 2.0 - 0.5 * k},
        "memory": {"weights_bytes": 9_800_000, "planned_peak_bytes": 312_000_000},
    }
