"""What a prompt is taken for, where a drawing model has learned no picture that is called so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from calotype.draw.text import TextEncoder, words_of

AT_ONCE = 128  # names that go through a text encoder together

# in units of the distance within which texts are known
SPREAD = 0.4  # how far from the nearest name others are drawn too
SHARED = 0.6  # how much nearer a word in common brings a name
SAME = 1.2  # and how much more the word that says what the prompt is of

LEAST = 0.02  # share of drawings below which a name is left out

# words that say nothing about what is to be seen
SMALL = frozenset(
    ["a", "an", "and", "at", "by", "for", "from", "in", "is", "it", "of", "on", "or", "some", "the", "to", "with"]
)
# words that begin an addition to what stands before them
ASIDE = frozenset(
    [
        "and", "at", "behind", "by", "for", "from", "in", "is", "near", "of", "on", "or", "over", "to", "under",
        "with",
    ]
)  # fmt: skip


class Names:
    """The names that a model was trained on, by the states that it has of them.

    A sketch of a text far from all that was learned is a mean of many pictures, and so is what is drawn from it. One of
    the names near it has a picture. (States drawn to one of those that are stored: Ramsauer et al. 2020,
    arXiv:2008.02217. A diffusion model that is told near neighbours from its training: Blattmann et al. 2022,
    arXiv:2204.11824.)

    Args:
        text: the model's encoder.
        names: of pictures.
        within: the distance from the nearest name's state up to which a text is known; all are where it is 0.
    """

    def __init__(self, text: TextEncoder, names: Sequence[str], within: float) -> None:
        self.text, self.names, self.within = text, tuple(names), within
        self._words = [_content(name) for name in names]
        self._plain = {_plain(name) for name in names}
        self._states: Tensor | None = None

    @torch.no_grad()
    def near(self, prompt: str) -> dict[str, float]:
        """The names that an unknown prompt may be drawn as, the likeliest first, with their shares.

        Empty where the prompt is known, or says nothing.
        """
        asked = _content(prompt)
        if not (self.within and self.names and asked) or _plain(prompt) in self._plain:
            return {}
        if self._states is None:  # takes a second, which most prompts need not
            parts = range(0, len(self.names), AT_ONCE)
            self._states = torch.cat([self.text(self.names[i : i + AT_ONCE]).pooled for i in parts])
        away = torch.linalg.vector_norm(self._states - self.text([prompt]).pooled, dim=1).double() / self.within
        if away.min() <= 1:
            return {}
        head = _head(prompt)
        nearer = [SHARED * bool(asked & words) + SAME * (head in words) for words in self._words]
        away -= torch.tensor(nearer, dtype=away.dtype, device=away.device)
        shares = (-0.5 * (away.clamp(min=0) / SPREAD).square()).softmax(0).tolist()
        likely = sorted(range(len(shares)), key=lambda i: (-shares[i], self.names[i]))
        found = {self.names[i]: shares[i] for i in likely if shares[i] >= LEAST}
        found = found or {self.names[likely[0]]: 1.0}
        return {name: share / sum(found.values()) for name, share in found.items()}

    def meant(self, prompt: str, seed: int) -> str:
        """A known prompt itself, or one of the names `near` it; which one depends on the seed."""
        near = self.near(prompt)
        if not near:
            return prompt
        return str(np.random.default_rng(seed).choice(list(near), p=list(near.values())))


def _content(text: str) -> frozenset[str]:
    return frozenset(words_of(text)) - SMALL


def _head(text: str) -> str:
    """What a text is of, in English: the last word before one that begins an addition (a big HOUSE on fire)."""
    found = ""
    for word in words_of(text):
        if word in ASIDE and found:
            break
        found = found if word in SMALL else word
    return found


def _plain(text: str) -> str:
    """A text's words, without an article before them."""
    words = words_of(text)
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)
