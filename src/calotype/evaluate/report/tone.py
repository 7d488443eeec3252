"""The section on what pictures come back with more of or less: colours, contrast, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np

from calotype.evaluate.figures import Bars
from calotype.evaluate.report import svg
from calotype.evaluate.report.markup import Markup, element
from calotype.evaluate.report.means import columns, marks, rows
from calotype.evaluate.report.parts import section, table
from calotype.evaluate.tone import BIASES, SAID


def tone(results: dict[str, Any]) -> Markup | str:
    """The section; nothing where none of it was measured."""
    vaes, metrics = results["vaes"], [metric for metric in results["metrics"] if metric["better"] == "nearest"]
    if not metrics:
        return ""
    means = table(columns(results, metrics), rows(results, metrics, marks(results, metrics)), sortable=len(vaes) > 1)
    return section("tone", "Colours, contrast, gradients", means, element("p", SAID, class_="note"), _bias(results))


def _bias(results: dict[str, Any]) -> Markup | str:
    """The bias of colours as bars, side by side for each of them."""
    there = [metric for metric in results["metrics"] if metric["key"] in BIASES]
    means = [[vae["means"].get(metric["key"], {}).get("mean", np.nan) for metric in there] for vae in results["vaes"]]
    if not there or np.isnan(means).all():
        return ""
    bars = Bars(
        title="Bias: mean difference to the original",
        labels=[metric["key"].removeprefix("bias_") for metric in there],
        series={vae["label"]: np.array(row) for vae, row in zip(results["vaes"], means, strict=True)},
        x_label="colour", y_label="levels of 255",
    )  # fmt: skip
    return element("div", svg.draw(bars), class_="charts")
