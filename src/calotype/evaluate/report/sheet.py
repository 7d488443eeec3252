"""An evaluation as a sheet: results.csv, each of whose rows says of what it is."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calotype.evaluate.report.absent import reason, reasons

Row = dict[str, Any]


def evaluation_sheet(results: Mapping[str, Any]) -> bytes:
    """The sheet, in UTF-8.

    Columns: `kind` of the row, `vae`, `subset`, `picture` and `box` (left, top, right, bottom), of each metric its
    figure with `_low`, `_high` (95% interval; none of a single figure) and `_n` (pictures or parts it is over),
    distances likewise, `why` figures are missing, `error`, `where` a picture was measured (device, threads, memory
    limit), the engine, and the protocol in one line. Kinds:

        mean: of a VAE over all pictures or, with a subset, over its parts.
        picture: of a VAE and a picture.
        part: of a VAE and one box of a picture.

    Args:
        results: as in results.json; docs/evaluation.md says what is in it.
    """
    distances = list(dict.fromkeys(key for vae in results["vaes"] for key in vae["distances"]))
    figures = [metric["key"] + end for metric in results["metrics"] for end in ("", "_low", "_high", "_n")]
    figures += [key + end for key in distances for end in ("", "_std", "_n")]
    columns = ["kind", "vae", "subset", "picture", "box", *figures, "why", "error", "where", "engine", "protocol"]
    text = io.StringIO(newline="")
    sheet = csv.DictWriter(text, columns)
    sheet.writeheader()
    for row in (*_means(results), *_pictures(results), *_parts(results)):
        sheet.writerow({**row, "engine": results["engine"], "protocol": results["protocol"]["text"]})
    return text.getvalue().encode("utf-8", "backslashreplace")  # a name may be no text


def _means(results: Mapping[str, Any]) -> Iterator[Row]:
    for vae in results["vaes"]:
        found = _intervals(vae["means"], vae["rows"], results["metrics"])
        for key, distance in vae["distances"].items():
            found |= {key + end: distance.get(name, "") for end, name in (("", "value"), ("_std", "std"), ("_n", "n"))}
        missing = [f"{key}: {one['why']}" for key, one in vae["distances"].items() if "why" in one]
        found["why"] = "; ".join(filter(None, [found["why"], *missing]))
        yield {"kind": "mean", "vae": vae["label"], **found}
    for vae in results["vaes"]:
        for subset, means in vae["subsets"].items():
            parts = [part for row in vae["rows"] for part in row.get("subsets", {}).get(subset, ())]
            found = _intervals(means, parts, results["metrics"])
            yield {"kind": "mean", "vae": vae["label"], "subset": subset, **found}


def _intervals(means: Mapping[str, Any], rows: Sequence[Row], metrics: Sequence[Row]) -> Row:
    found: Row = {}
    for key, mean in means.items():
        found |= {key: mean["mean"], f"{key}_n": mean["n"]}
        if mean["n"] > 1:
            found |= {f"{key}_low": mean["low"], f"{key}_high": mean["high"]}
    why = [(metric["title"], reasons(rows, metric)) for metric in metrics]
    return {**found, "why": "; ".join(f"{title}: {text}" for title, text in why if text)}


def _pictures(results: Mapping[str, Any]) -> Iterator[Row]:
    for vae in results["vaes"]:
        for row in vae["rows"]:
            of = {"kind": "picture", "vae": vae["label"], "picture": results["pictures"][row["picture"]]["name"]}
            of |= {"error": row.get("error", ""), "where": row.get("where", "")}
            yield {**of, **_figures(row, results["metrics"])}


def _parts(results: Mapping[str, Any]) -> Iterator[Row]:
    for vae in results["vaes"]:
        for row in vae["rows"]:
            name = results["pictures"][row["picture"]]["name"]
            for subset, parts in row.get("subsets", {}).items():
                for part in parts:
                    of = {"kind": "part", "vae": vae["label"], "subset": subset, "picture": name}
                    of["box"] = " ".join(map(str, part.get("box", ())))
                    yield {**of, **_figures(part, results["metrics"])}


def _figures(row: Row, metrics: Sequence[Row]) -> Row:
    """What was measured of one picture or part, and why not the rest; of what failed, `error` says it."""
    there = {metric["key"]: row[metric["key"]] for metric in metrics if metric["key"] in row}
    missing = [metric for metric in metrics if metric["key"] not in row and "error" not in row]
    return {**there, "why": "; ".join(f"{metric['title']}: {reason(row, metric)}" for metric in missing)}
