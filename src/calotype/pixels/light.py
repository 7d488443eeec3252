"""What light a picture's values stand for, where its file says so in numbers, and what takes it to sRGB.

Code points are those of ITU-T H.273, "Coding-independent code points"; gAMA, cHRM and cICP those of W3C "Portable
Network Graphics (PNG) Specification (Third Edition)"; sRGB's curve that of IEC 61966-2-1. White points are adapted with
Bradford's matrix, as ICC.1 has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Curve = Callable[[Floats], Floats]
"""Values in [0, 1] -> linear light in [0, 1]."""

Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue."""

_D65 = (0.3127, 0.3290)
_C = (0.310, 0.316)
SRGB: Chromaticities = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_RGB: Chromaticities = (*_D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_SMPTE_C: Chromaticities = (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070)
_PRIMARIES: dict[int, tuple[str, Chromaticities]] = {
    1: ("BT.709", SRGB),
    4: ("BT.470 M", (*_C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08)),
    5: ("BT.470 B/G", (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06)),
    6: ("SMPTE 170M", _SMPTE_C),
    7: ("SMPTE 240M", _SMPTE_C),
    8: ("generic film", (*_C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049)),
    9: ("BT.2020", (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)),
    10: ("CIE XYZ", (1 / 3, 1 / 3, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
    11: ("DCI-P3", (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    12: ("Display P3", (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)),
    22: ("EBU 3213", (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077)),
}

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50_XYZ = np.array([0.9642, 1.0, 0.8249])

_NEAR = 0.001  # libpng's tolerance for chromaticities, and below its one for gamma
_NEAR_GAMMA = 0.05

HDR = {16: "PQ", 18: "HLG"}
_OF_CAMERAS = {1: "BT.709", 6: "SMPTE 170M", 14: "BT.2020", 15: "BT.2020"}


def power(exponent: float) -> Curve:
    return lambda values: np.power(values, exponent)


def decoded(values: Floats) -> Floats:
    """sRGB-encoded values in [0, 1] -> linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(linear: Floats) -> Floats:
    """Linear light in [0, 1] -> sRGB-encoded values."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * np.power(linear, 1 / 2.4) - 0.055)


def _smpte_240m(values: Floats) -> Floats:
    return np.where(values < 0.0913, values / 4.0, ((values + 0.1115) / 1.1115) ** (1 / 0.45))


_CURVES: dict[int, tuple[str, Curve]] = {
    4: ("a gamma of 2.2", power(2.2)),
    5: ("a gamma of 2.8", power(2.8)),
    7: ("the curve of SMPTE 240M", _smpte_240m),
    8: ("linear light", power(1.0)),
    13: ("the curve of sRGB", decoded),
    17: ("the curve of SMPTE 428", lambda values: np.minimum(52.37 / 48.0 * values**2.6, 1.0)),
}


@dataclass(frozen=True)
class Light:
    """What a file says of its values.

    Attributes:
        words: it in words; empty if it is sRGB.
        curve: takes values to linear light; None for sRGB's.
        primaries: None for sRGB's.
        black, white: the values of black and white, of the largest one; 0 and 1 but in narrow range.
        notice: what can't be done about it; then nothing is.
    """

    words: str = ""
    curve: Curve | None = None
    primaries: Chromaticities | None = None
    black: float = 0.0
    white: float = 1.0
    notice: str = ""

    @property
    def is_srgb(self) -> bool:
        """The values are, or are taken to be, sRGB's."""
        return bool(self.notice) or (not self.curve and not self.primaries and self.black == 0.0)

    def converter(self, dtype: npt.DTypeLike) -> Callable[[npt.NDArray[Any]], npt.NDArray[Any]]:
        """What takes values [..., 3] or, of grey, [..., 1] to sRGB.

        Args:
            dtype: of the values, and of the result: uint8, uint16, or float32 in [0, 1].
        """
        kind = np.dtype(dtype)
        curve, full = self.curve or decoded, 1.0 if kind.kind == "f" else float(np.iinfo(kind).max)

        def linear(values: npt.NDArray[Any]) -> Floats:
            scaled = (values.astype(np.float64) / full - self.black) / (self.white - self.black)
            return np.clip(curve(np.clip(scaled, 0.0, 1.0)), 0.0, 1.0)

        def rounded(light: Floats) -> npt.NDArray[Any]:
            values = encoded(np.clip(light, 0.0, 1.0)) * full
            return values.astype(kind) if kind.kind == "f" else np.rint(values).astype(kind)

        table = None if kind.kind == "f" else linear(np.arange(int(full) + 1))
        if self.primaries is None:
            if table is None:
                return lambda values: rounded(linear(values))
            levels = rounded(table)
            return lambda values: levels[values]
        turn = matrix(self.primaries).T

        def convert(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            light = linear(values) if table is None else table[values]
            # of grey, white stays white, so only the curve counts
            return rounded(light if values.shape[-1] == 1 else light @ turn)

        return convert


STATED_SRGB = Light()


def matrix(primaries: Chromaticities) -> Floats:
    """Linear RGB of these primaries -> linear sRGB, white to white: [3, 3].

    Raises:
        ValueError: they span no colours.
    """
    product: Floats = np.linalg.inv(_to_d50(SRGB)) @ _to_d50(primaries)
    return product


def _to_d50(primaries: Chromaticities) -> Floats:
    """Linear RGB -> XYZ adapted to D50."""
    x, y = np.array(primaries[0::2]), np.array(primaries[1::2])
    xyz = np.stack([x, y, 1.0 - x - y])
    white, columns = xyz[:, 0] / max(y[0], 1e-9), xyz[:, 1:]
    if y[0] < 1e-3 or abs(np.linalg.det(columns)) < 1e-4:
        raise ValueError("the chromaticities span no colours")
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white)) @ _BRADFORD
    result: Floats = adapt @ (columns * np.linalg.solve(columns, white))
    return result


def of_gamma(gamma: float | None, primaries: Chromaticities | None) -> Light | None:
    """What PNG's gAMA (as a fraction) and cHRM say; None without either.

    A gamma within 5 % of 1 / 2.2 is sRGB's curve if the primaries are sRGB's too, as libpng has it.
    """
    if gamma is None and primaries is None:
        return None
    if gamma is not None and not 0.1 <= gamma <= 10.0:
        return Light(notice=f"The gAMA of {gamma:g} was ignored, because no picture can have it.")
    foreign = primaries is not None and max(abs(a - b) for a, b in zip(primaries, SRGB, strict=True)) > _NEAR
    if primaries is not None and foreign:
        try:
            matrix(primaries)
        except ValueError as error:
            return Light(notice=f"The cHRM of the picture was ignored, because {error}.")
    if gamma is None or (not foreign and abs(gamma * 2.2 - 1.0) <= _NEAR_GAMMA):
        curve, words = None, ""
    else:
        curve, words = power(1.0 / gamma), f"gAMA {gamma:g}"
    if foreign:
        words = " and ".join(filter(None, (words, "the primaries of its cHRM")))
    return Light(words, curve, primaries if foreign else None)


def of_code_points(primaries: int, transfer: int, *, full_range: bool = True, depth: int = 8) -> Light | None:
    """What code points of H.273 say, as cICP and AVIF's nclx hold them; None if they leave all unspecified.

    Args:
        depth: bits of a value, which narrow range goes by.

    Raises:
        ValueError: they are unknown; the message says which.
    """
    if transfer in HDR:
        name = _PRIMARIES[primaries][0] if primaries in _PRIMARIES else f"primaries {primaries}"
        return Light(
            notice=f"The picture is HDR ({HDR[transfer]}, {name}): its values were taken as they are, neither "
            "tone-mapped nor converted to sRGB; convert it to an sRGB picture first if its colours matter."
        )
    named = _PRIMARIES.get(primaries, ("", SRGB)) if primaries == 2 else _PRIMARIES.get(primaries)
    taken = transfer in _OF_CAMERAS
    curve = ("", decoded) if transfer == 2 or taken else _CURVES.get(transfer)
    if named is None or curve is None:
        raise ValueError(f"primaries {primaries}" if named is None else f"transfer function {transfer}")
    if primaries == transfer == 2 and full_range:
        return None
    foreign = named[1] != SRGB
    black, white, words = 0.0, 1.0, [named[0]] if foreign else []
    if not full_range:
        step = 2.0 ** (depth - 8) / (2.0**depth - 1.0)
        black, white = 16.0 * step, 235.0 * step
        words.append("narrow range")
    if taken:
        words.append(f"{_OF_CAMERAS[transfer]}'s curve taken for sRGB's")
        if len(words) == 1:
            return Light(notice=f"The curve of {_OF_CAMERAS[transfer]} was taken for that of sRGB, as displays do.")
    elif transfer not in (2, 13):
        words.append(curve[0])
    own = None if taken or transfer in (2, 13) else curve[1]
    return Light(", ".join(words), own, named[1] if foreign else None, black, white)


ROMM = Light(
    "ROMM RGB",
    lambda values: np.where(values < 16 / 512, values / 16.0, values**1.8),
    (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001),
)
ADOBE = Light("Adobe RGB, as its EXIF data say", power(563 / 256), ADOBE_RGB)


def lab_to_srgb(lab: Floats) -> Floats:
    """L* in [0, 100], a* and b* with white D50, [..., 3] -> sRGB-encoded values in [0, 1]."""
    y = (lab[..., 0] + 16.0) / 116.0
    ratios = np.stack([y + lab[..., 1] / 500.0, y, y - lab[..., 2] / 200.0], axis=-1)
    xyz = np.where(ratios > 6.0 / 29.0, ratios**3, 3.0 * (6.0 / 29.0) ** 2 * (ratios - 4.0 / 29.0)) * _D50_XYZ
    return encoded(np.clip(xyz @ np.linalg.inv(_to_d50(SRGB)).T, 0.0, 1.0))
