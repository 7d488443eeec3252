"""Charts and pictures as plain data: what a report draws, without a word on how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Lines:
    """Series over one axis.

    Attributes:
        x: [n], in the order in which points are joined.
        series: name -> [n]; infinite values and NaN have no point.
        log_x, log_y: the axis is logarithmic.
    """

    title: str
    x: Values
    series: Mapping[str, Values]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Bars:
    """Groups of bars side by side.

    Attributes:
        labels: of the n groups.
        series: name -> [n]; infinite values and NaN have no bar.
    """

    title: str
    labels: Sequence[str]
    series: Mapping[str, Values]
    x_label: str
    y_label: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Points, one for each of x and y.

    Attributes:
        x, y: [n].
        labels: of the n points; none where they have no names.
        log_x, log_y: the axis is logarithmic.
    """

    title: str
    x: Values
    y: Values
    x_label: str
    y_label: str
    labels: Sequence[str] = ()
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Heatmap:
    """A map of values.

    Attributes:
        values: [rows, columns], the first row on top.
        x, y: what stands at the first and the last column and row.
        value_label: what the colours mean, with its unit.
    """

    title: str
    values: Values
    x: tuple[float, float]
    y: tuple[float, float]
    x_label: str
    y_label: str
    value_label: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Pictures in a grid, row after row.

    Attributes:
        images: uint8, [H, W, 3] each; of one size where rows are to be of one height.
        captions: one for each.
        columns: pictures in a row.
    """

    title: str
    images: Sequence[Bytes]
    captions: Sequence[str]
    columns: int


Figure = Lines | Bars | Scatter | Heatmap | Pictures
