"""Latents changed channel by channel: what each edit does, and what a list of them may not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from calotype.edit.channels import Edit, edited, edits_of, read_edits
from calotype.errors import LatentsError, UsageError
from calotype.latents import Latents, ScaleShift
from calotype.pixels import Padding
from calotype.texts import TextError

FORMAT = ScaleShift(name="test", channels=3, scaling_factor=0.5)


def latents(seed: int = 0, width: int = 5) -> Latents:
    z = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(seed))
    padding = Padding(height=32, width=8 * width, bottom=0, right=0, mode="reflect")
    return Latents(tensor=z, space="raw", format=FORMAT, vae="v", padding=padding)


def after(*edits: Edit, other: Latents | None = None) -> torch.Tensor:
    return edited(latents(), edits, other).tensor


def test_what_each_edit_does() -> None:
    z = latents().tensor
    assert torch.equal(after(), z)
    assert torch.equal(after(Edit(do="shift", channel=1, by=2.0))[1], z[1] + 2.0)
    assert torch.equal(after(Edit(do="shift", by=2.0)), z + 2.0)
    scaled = after(Edit(do="scale", channel=2, by=3.0))
    assert torch.allclose(scaled[2].mean(), z[2].mean(), atol=1e-6)
    assert torch.allclose(scaled[2].std(), 3 * z[2].std())
    assert torch.equal(after(Edit(do="swap", channel=0, other=2)), z[[2, 1, 0]])
    assert torch.equal(after(Edit(do="set", channel=0, value=7.0))[0], torch.full_like(z[0], 7.0))
    painted = after(Edit(do="set", channel=0, value=7.0, cells=((4, 3), (0, 1))))
    assert (painted != z).nonzero().tolist() == [[0, 1, 0], [0, 3, 4]]
    second = latents(1)
    assert torch.equal(after(Edit(do="copy", channel=1), other=second)[1], second.tensor[1])
    assert torch.equal(after(Edit(do="copy"), other=second), second.tensor)
    both = after(Edit(do="shift", channel=0, by=1.0), Edit(do="swap", channel=0, other=1))
    assert torch.equal(both[1], z[0] + 1.0)


def test_noise_is_in_units_of_the_channel_and_seeded() -> None:
    z = latents().tensor
    noise = (after(Edit(do="noise", by=0.5, seed=3)) - z) / z.std((1, 2), correction=0, keepdim=True)
    assert noise.std() == pytest.approx(0.5, rel=0.2)
    one = after(Edit(do="noise", channel=1, by=0.5, seed=3))
    assert torch.equal(one[1], after(Edit(do="noise", by=0.5, seed=3))[1])  # alone and among others
    assert torch.equal(one[0], z[0])
    assert not torch.equal(one[1], after(Edit(do="noise", channel=1, by=0.5, seed=4))[1])


def test_what_is_edited_keeps_its_own_and_model_latents_become_raw() -> None:
    model = latents().to_model()
    before = model.tensor.clone()
    found = edited(model, [Edit(do="shift", by=1.0)])
    assert found.space == "raw" and torch.allclose(found.tensor, latents().tensor + 1.0)
    assert torch.equal(model.tensor, before)


def test_places_that_there_are_not() -> None:
    for edit in (
        Edit(do="shift", channel=3, by=1.0),
        Edit(do="swap", channel=0, other=3),
        Edit(do="set", cells=((5, 0),)),
        Edit(do="set", cells=((0, 4),)),
        Edit(do="copy", channel=0),
    ):
        with pytest.raises(UsageError, match=r"^Edit 1 \(\w+\): "):
            after(edit)
    with pytest.raises(LatentsError, match="one size"):
        after(Edit(do="copy"), other=latents(width=6))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"do": "shift"}, "edits must be a list"),
        ([3], "edit 1 must be a table"),
        ([{"do": "fly"}], "edit 1 must be a table whose do is shift"),
        ([{"do": "shift", "by": 1}, {"do": "shift"}], "by of edit 2"),
        ([{"do": "shift", "by": "1"}], "by of edit 1"),
        ([{"do": "shift", "by": 1e9}], "by of edit 1"),
        ([{"do": "shift", "by": 1, "channel": -1}], "channel of edit 1"),
        ([{"do": "shift", "by": 1, "seed": 1}], "does not take"),
        ([{"do": "swap", "with": 1}], "names no channel"),
        ([{"do": "set", "value": 1, "cells": [[1]]}], "list of"),
        ([{"do": "set", "value": 1, "cells": [[1, -1]]}], "y in cells"),
        ([{"do": "copy"}] * 10_001, "10,001 edits"),
    ],
)
def test_lists_that_are_none(values: Any, words: str) -> None:
    with pytest.raises(TextError, match=words):
        edits_of(values)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "edits.json"
    path.write_text('{"edits": [{"do": "set", "channel": 0, "value": 2, "cells": [[1, 2]]}]}')
    assert read_edits(path) == [Edit(do="set", channel=0, value=2.0, cells=((1, 2),))]
    for content in (b"", b"{", b"[]", b'{"edits": 3}', b'{"edits": [{"do": "shift", "by": NaN}]}', b"\xff"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"edits\.json: these are no edits \(.*docs/edit\.md"):
            read_edits(path)
    with pytest.raises(UsageError, match="No such file"):
        read_edits(tmp_path / "none.json")
