"""Text to what a denoiser attends to: a tokenizer and a small transformer over its tokens."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from calotype.errors import UsageError
from calotype.families.numbers import MOST_BLOCKS, MOST_CHANNELS
from calotype.texts import TextError, whole

PADDING, UNKNOWN, START = "[PAD]", "[UNK]", "[START]"


class Context(NamedTuple):
    """Texts as a denoiser is told of them.

    Attributes:
        states: [N, L, D], of the tokens.
        mask: [N, L], True where there is a token; or floats that are added to attention's logits.
        pooled: [N, D], their mean.
        sketch: [N, C, s, s], see `Sketch`.
    """

    states: Tensor
    mask: Tensor
    pooled: Tensor
    sketch: Tensor

    def rows(self, first: int, last: int) -> Context:
        """Those of the texts first to last, the last one excluded."""
        return Context(*(part[first:last] for part in self))


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The sizes of a `TextEncoder`.

    Attributes:
        vocab_size: tokens there are at most.
        width: of the tokens' states.
        depth: transformer layers.
        heads: of every attention.
        context_length: tokens that are read; later ones are not.
        sketch_side: height and width of sketches, in latents.
        sketch_width: of the last layer before a sketch, and so of how many parts it is put together at most.
        sketch_inner: of the layer before that; the same where 0.

    Raises:
        UsageError: a number can't be, or the width can't be split into so many heads.
    """

    vocab_size: int = 8192
    width: int = 256
    depth: int = 4
    heads: int = 4
    context_length: int = 24
    sketch_side: int = 8
    sketch_width: int = 768
    sketch_inner: int = 0

    def __post_init__(self) -> None:
        try:
            whole(self.vocab_size, "vocab_size", 16, 2**20)
            whole(self.depth, "depth", 1, MOST_BLOCKS)
            whole(self.sketch_side, "sketch_side", 1, 1024)
            whole(self.sketch_inner, "sketch_inner", 0, MOST_CHANNELS)
            for name in ("width", "heads", "context_length", "sketch_width"):
                whole(getattr(self, name), name, 1, MOST_CHANNELS)
        except TextError as error:
            raise UsageError(f"A text encoder's {error}.") from None
        if self.width % self.heads:
            raise UsageError(f"A text encoder's width of {self.width} can't be split into {self.heads} heads.")

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for a file."""
        return asdict(self)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case and without accents."""
    plain = unicodedata.normalize("NFD", text.lower())
    return re.findall(r"[^\W_]+", "".join(one for one in plain if not unicodedata.combining(one)))


def make_tokenizer(texts: Iterable[str], config: TextConfig) -> Tokenizer:
    """Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) of words in lower case, learned from texts.

    A text begins with a token of its own, so that an empty one has something to be attended to.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        limit_alphabet=config.vocab_size - 3,  # else every character there is has a token, however many they are
        special_tokens=[PADDING, UNKNOWN, START],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return tokenizer


class Sketch(nn.Sequential):
    """A text's mean state -> what its pictures are alike in: their mean latents.

    It is a regression, learned in cheap steps before the denoiser, which is then told about each latent what the text
    leaves no doubt of, and has the rest to find. (A picture of less detail as a condition: Ho et al. 2021, "Cascaded
    Diffusion Models", arXiv:2106.15282; a network from text to it: Ramesh et al. 2022, arXiv:2204.06125, section 2.2.)

    Args:
        config: its sizes.
        channels: of the latents.
    """

    def __init__(self, config: TextConfig, channels: int) -> None:
        width = config.sketch_width
        inner = config.sketch_inner or width
        super().__init__(
            nn.Linear(config.width, inner),
            nn.SiLU(),
            nn.Linear(inner, width),
            nn.SiLU(),
            nn.Linear(width, channels * config.sketch_side**2),
            nn.Unflatten(1, (channels, config.sketch_side, config.sketch_side)),
        )


class TextEncoder(nn.Module):
    """A transformer over tokens that sees the whole text at once (Vaswani et al. 2017, arXiv:1706.03762).

    Norms stand before attention and feed-forward, as in GPT-2 and CLIP.

    Args:
        config: its sizes.
        tokenizer: as `make_tokenizer` makes it; a copy is kept, which cuts and pads texts to `context_length` tokens.
        channels: of the latents that are sketched.
    """

    def __init__(self, config: TextConfig, tokenizer: Tokenizer, channels: int) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self.tokenizer.enable_truncation(config.context_length)
        self.tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PADDING), pad_token=PADDING)
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width, config.heads, config.width * 4,
                dropout=0.0, activation="gelu", batch_first=True, norm_first=True,
            )
            for _ in range(config.depth)
        )  # fmt: skip
        self.final_norm = nn.LayerNorm(config.width)
        self.sketch = Sketch(config, channels)

    def length(self, text: str) -> int:
        """Tokens of a text, those past `context_length` counted."""
        first = self.tokenizer.encode(text)
        # each further part begins with a start of its own, and the last one is padded
        return sum(first.attention_mask) + sum(sum(more.attention_mask) - 1 for more in first.overflowing)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids [N, L] and where there is a token [N, L], padded to the longest."""
        encoded = self.tokenizer.encode_batch(list(texts))
        device = self.positional_embedding.device
        ids = torch.tensor([one.ids for one in encoded], device=device)
        mask = torch.tensor([one.attention_mask for one in encoded], dtype=torch.bool, device=device)
        return ids, mask

    def forward(self, texts: Sequence[str]) -> Context:
        """Texts -> their states."""
        ids, mask = self.tokens(texts)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        x = self.final_norm(x)
        seen = mask[..., None].to(x.dtype)
        pooled = (x * seen).sum(1) / seen.sum(1)
        return Context(x, mask, pooled, self.sketch(pooled))
