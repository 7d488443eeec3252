"""The tokenizer and the text encoder: the same tokens each time, and padding that nobody sees."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from drawkit import PROMPTS, TEXT, encoder, tokenizer
from support import one_sentence

from calotype.draw.text import PADDING, START, UNKNOWN, Context, TextConfig, TextEncoder, make_tokenizer, words_of
from calotype.errors import UsageError

LONG = "red circle blue square green triangle white star moon night"  # a word more than fits


def pieces(text: str) -> list[str]:
    """The tokens of a text, without padding."""
    encoded = encoder().tokenizer.encode(text)
    return [token for token, seen in zip(encoded.tokens, encoded.attention_mask, strict=True) if seen]


def test_the_same_tokenizer_every_time() -> None:
    """Merges of equal counts are many here; their order must not depend on a hash's seed."""
    texts = [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "stuvwxyz"]
    config = dataclasses.replace(TEXT, vocab_size=60)
    first = make_tokenizer(texts, config).to_str()
    assert all(make_tokenizer(iter(texts), config).to_str() == first for _ in range(5))


def test_an_empty_text_has_one_token() -> None:
    for text in ("", " ", "\n\t"):
        assert pieces(text) == [START]
        assert encoder().length(text) == 1
    ids, mask = encoder().tokens([""])
    assert ids.shape == mask.shape == (1, 1)
    context = encoder()([""])
    assert context.states.shape == (1, 1, TEXT.width)
    assert torch.equal(context.pooled, context.states[:, 0])


def test_case_accents_and_spaces_do_not_matter() -> None:
    assert pieces("red circle") == pieces("RÉD  Cïrcle ") == [START, "red", "circle"]
    assert pieces("re\N{COMBINING ACUTE ACCENT}d") == [START, "red"]
    assert pieces("red, circle") != pieces("red circle")


def test_learned_words_are_whole_and_others_in_parts() -> None:
    assert pieces("star moon") == [START, "star", "moon"]
    assert "".join(pieces("moonstar")[1:]) == "moonstar"
    assert len(pieces("streak")) > 2


def test_unknown_characters() -> None:
    assert pieces("猫") == [START, UNKNOWN]
    assert pieces("red 😀") == [START, "red", UNKNOWN]
    assert encoder().length("猫 red") == 3


def test_long_texts_are_cut() -> None:
    ids, mask = encoder().tokens([LONG, "red"])
    assert ids.shape == (2, TEXT.context_length)
    assert mask.sum(1).tolist() == [TEXT.context_length, 2]
    assert pieces(LONG) == [START, *LONG.split()[: TEXT.context_length - 1]]
    cut = " ".join(LONG.split()[: TEXT.context_length - 1])
    assert torch.equal(encoder()([LONG]).states, encoder()([cut]).states)


@pytest.mark.parametrize("words", [0, 1, 6, 7, 8, 13, 14, 15, 30])
def test_length_counts_what_is_cut_off(words: int) -> None:
    """One token a word and one for the start, whatever is padded or cut."""
    text = " ".join((PROMPTS[0] + " " + PROMPTS[1]).split()[i % 4] for i in range(words))
    assert encoder().length(text) == 1 + words


def test_no_more_tokens_than_there_are_places_for() -> None:
    config = dataclasses.replace(TEXT, vocab_size=16)
    made = make_tokenizer(["abcdefghijklmnopqrstuvwxyz eee"], config)
    assert made.get_vocab_size() == 16
    context = TextEncoder(config, made, 16)(["zebra quiz vox"])
    assert torch.isfinite(context.states).all()
    assert "e" in made.get_vocab()


@torch.no_grad()
def test_a_text_alone_is_the_text_in_a_batch() -> None:
    module = encoder().double()
    texts = ["", "red", "blue square", LONG]
    together = module(texts)
    assert isinstance(together, Context)
    for row, text in enumerate(texts):
        alone = module([text])
        count = alone.states.shape[1]
        assert together.mask[row].tolist() == [True] * count + [False] * (TEXT.context_length - count)
        torch.testing.assert_close(together.states[row, :count], alone.states[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.sketch[row], alone.sketch[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(alone.pooled[0], alone.states[0].mean(0), atol=1e-6, rtol=0)


@torch.no_grad()
def test_training_and_inference_agree() -> None:
    """torch has a faster path for inference; it must see the padding too."""
    module = encoder()
    expected = module(["red", "blue square moon"])
    made = module.train()(["red", "blue square moon"])
    seen = expected.mask
    torch.testing.assert_close(made.states[seen], expected.states[seen], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.sketch, expected.sketch, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_states_depend_on_the_words_and_their_order() -> None:
    module = encoder()
    a, b, c = module(["red blue", "blue red", "red red"]).pooled
    assert (a - b).abs().max() > 0.01
    assert (a - c).abs().max() > 0.01


@pytest.mark.parametrize(("inner", "wide"), [(40, 40), (0, 48)])
@torch.no_grad()
def test_a_sketch_is_made_of_the_mean_state(inner: int, wide: int) -> None:
    """Two layers with SiLU and one without, written out; channels before rows before columns."""
    config = dataclasses.replace(TEXT, sketch_side=3, sketch_inner=inner)
    module = encoder(config)
    made = module(["red circle", "blue square moon"])
    assert made.sketch.shape == (2, 16, 3, 3)
    assert (made.sketch[0] - made.sketch[1]).abs().max() > 0.01
    x = made.pooled
    weights = [value for key, value in module.state_dict().items() if key.startswith("sketch.")]
    assert [tuple(one.shape) for one in weights] == [(wide, 32), (wide,), (48, wide), (48,), (16 * 9, 48), (16 * 9,)]
    for i in (0, 2, 4):
        x = x @ weights[i].T + weights[i + 1]
        x = x / (1 + torch.exp(-x)) if i < 4 else x
    torch.testing.assert_close(made.sketch[:, 5, 2, 1], x[:, 5 * 9 + 2 * 3 + 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.sketch.flatten(1), x, atol=1e-5, rtol=1e-5)


def test_rows() -> None:
    context = encoder()(["red", "blue", "star"])
    part = context.rows(1, 3)
    assert torch.equal(part.states, context.states[1:])
    assert torch.equal(part.mask, context.mask[1:])
    assert torch.equal(part.pooled, context.pooled[1:])
    assert torch.equal(part.sketch, context.sketch[1:])


def test_a_given_tokenizer_stays_as_it_is() -> None:
    given = tokenizer()
    before = given.to_str()
    TextEncoder(TEXT, given, 16)
    assert given.to_str() == before
    assert given.token_to_id(PADDING) == 0


@pytest.mark.parametrize("heads", [0, 3])
def test_heads_that_cannot_be(heads: int) -> None:
    with pytest.raises(UsageError) as caught:
        TextConfig(width=32, heads=heads)
    one_sentence(str(caught.value))


def test_words_of() -> None:
    assert words_of("Écru, a RED-hot sun_flower 2!") == ["ecru", "a", "red", "hot", "sun", "flower", "2"]
    assert words_of(" ,.") == []
