"""Why a picture has no figure, or none that counts in a mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def reason(row: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    """Of one row and one of the results' metrics; empty where there is a figure that counts."""
    if "error" in row:
        return "failed"
    value = row.get(metric["key"])
    if value is None and "absent" in metric:
        return str(metric["absent"])
    if value is None:
        return f"smaller than {metric['least']} x {metric['least']} pixels" if "least" in metric else "not measured"
    return "" if math.isfinite(value) else "unchanged"


def reasons(rows: Iterable[Mapping[str, Any]], metric: Mapping[str, Any]) -> str:
    """Of all rows that do not count, with how many they are: "2 smaller than 161 x 161 pixels, 1 failed"."""
    found = Counter(reason(row, metric) for row in rows)
    return ", ".join(f"{n:,} {text}" for text, n in found.most_common() if text)
