"""How `calotype inspect` shows what a file says of its training."""

from __future__ import annotations

from pathlib import Path

import pytest
from clikit import FOLDED, Calotype, draw
from support import fill

from calotype.cli.facts import rows
from calotype.families.folded.network import FoldedAutoencoder
from calotype.latents import KNOWN
from calotype.weights.save import save_weights


def test_facts_become_rows() -> None:
    facts = {
        "held_out_psnr": 32.1560957468693,
        "pictures": 8262,
        "seed": 12345,
        "lpips": 1e-9,
        "changes": [],
        "nothing": None,
        "quiet": True,
        "betas": [0.9, 0.99],
        "many": list(range(20)),
        "recipe": {"name": "first", "steps": 3},
        "choice": {"command": "a\nb", "table": [{"weights": "x", "psnr": 30.54541}, {"weights": "y", "psnr": 7}]},
        "start": {"start": {"sha256": "abc", "recipe": {"name": "zeroth"}}},
    }
    assert list(rows(facts, "trained: ")) == [
        ("trained: held out psnr", "32.16"),
        ("trained: pictures", "8,262"),
        ("trained: seed", "12345"),
        ("trained: lpips", "1e-09"),
        ("trained: changes", "none"),
        ("trained: nothing", "none"),
        ("trained: quiet", "yes"),
        ("trained: betas", "0.9, 0.99"),
        ("trained: many", "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"),
        ("trained: recipe", "first (--json shows all of it)"),
        ("trained: choice", ""),
        ("  command", "a b"),
        ("  table", ""),
        ("    1", "weights x, psnr 30.55"),
        ("    2", "weights y, psnr 7"),
        ("trained: start", ""),
        ("  start", ""),
        ("    sha256", "abc"),
        ("    recipe", "zeroth (--json shows all of it)"),
    ]


def test_a_run_that_went_on_with_another_recipe() -> None:
    changes = [{"step": 600, "changed": {"steps": [1000, 2000], "phases": [[], [{"start": 5, "crop": None}]]}}]
    assert list(rows({"changes": changes})) == [
        ("changes", ""),
        ("  1", "step 600, steps 1,000 -> 2,000, phases none -> start 5, crop none"),
    ]


def test_a_long_list_of_facts() -> None:
    found = list(rows({"table": [{"a": i} for i in range(11)]}))
    assert len(found) == 1 + 8 + 1
    assert found[-1] == ("  ...", "and 3 more")


@pytest.mark.slow
def test_nothing_of_python_is_printed(calotype: Calotype) -> None:
    out = calotype("inspect").out
    assert "trained: choice" in out
    assert not set("{}[]'") & set(out[out.index("trained:") :])


def test_what_a_file_says_is_text(calotype: Calotype) -> None:
    """Facts are not ours alone: a file may say anything."""
    metadata = {
        "calotype_training_note": '"[red]x[/red]\\u001b[31m :smile:\\nnext"',
        "calotype_training_list": "[1, [2]]",
    }
    module: FoldedAutoencoder = fill(FoldedAutoencoder(FOLDED), 0, gain=0.7)
    save_weights(module, Path("v.safetensors"), layout="ldm", format_=KNOWN["sd1"], metadata=metadata)
    out = calotype("inspect", "v.safetensors").out
    assert "[red]x[/red]" in out
    assert ":smile: next" in out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out
    assert "1, 2" in out


@pytest.mark.slow
def test_what_train_wrote_is_readable(calotype: Calotype) -> None:
    from test_train import RECIPE, WORDS

    Path("tiny.toml").write_text(RECIPE)
    for i in range(6):
        draw(f"data/pictures/{i}.png", 32, 24, seed=i)
    assert calotype(*WORDS, "--set", "steps=2", "--set", "cooldown=1").code == 0
    said = [line.rstrip() for line in calotype("inspect", "run/weights.safetensors").out.splitlines()]
    assert "trained: steps          2" in said
    assert "trained: recipe         tiny (--json shows all of it)" in said
    assert "trained: pictures       4" in said
