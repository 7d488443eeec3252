"""The page of what a VAE's latent space does: one section a finding."""

from __future__ import annotations

import shlex
from pathlib import Path

import calotype
from calotype.evaluate.figures import Pictures
from calotype.evaluate.probe import Finding, Number, Probe
from calotype.evaluate.report import svg
from calotype.evaluate.report.drawn import drawn
from calotype.evaluate.report.markup import Markup, document, element
from calotype.evaluate.report.parts import Column, details, facts, heading, section, table
from calotype.evaluate.report.pictures import BUDGET
from calotype.files import write_bytes

NAMED = 20  # at most, of what has a label and is no picture


def write_probe(probe: Probe, path: Path) -> Path:
    """Writes the page.

    Raises:
        UsageError: the folder does not exist.
        StorageError: the disk refuses it.
    """
    return write_bytes(path, probe_page(probe))


def probe_page(probe: Probe) -> bytes:
    """What `write_probe` writes."""
    title = f"The latent space of {probe.vae}"
    many = len(probe.pictures)
    line = (
        f"f{probe.factor}, {probe.latent_channels} channels; {many:,} picture{'' if many == 1 else 's'} of "
        f"{probe.side} \u00d7 {probe.side} pixels, seed {probe.seed}, "
        f"{f'LPIPS ({probe.lpips})' if probe.lpips else 'no LPIPS'}"
    )
    unread = len(probe.unread)
    left = f" {unread} more can't be read and {'is' if unread == 1 else 'are'} left out." if unread else ""
    labels = f" {' '.join(probe.notes)}" if probe.notes else ""
    grids = sum(isinstance(figure, Pictures) for finding in probe.findings for figure in finding.figures)
    sections = [_finding(finding, BUDGET // max(1, grids)) for finding in probe.findings]
    return document(
        f"{title} \u2013 calotype",
        heading(f"calotype {calotype.__version__} · probe", title, line, f"{_made(probe)}{left}{labels}", probe.about),
        element("main", *sections, _left_out(probe), _details(probe), class_="findings"),
    )


def _made(probe: Probe) -> str:
    """What the program drew itself."""
    own = "Charts and maps are drawn from the numbers; pictures of one colour and of noise are made by the program"
    if "data" in probe.about and probe.about["data"] is None:
        return f"{own}, and so are the pictures it was probed with: drawn cards, not photographs."
    return f"{own}, all others are the pictures given and what the VAE made of them."


def _finding(finding: Finding, budget: int) -> Markup:
    single = [number for number in finding.numbers if not isinstance(number.value, tuple)]
    several = [number for number in finding.numbers if isinstance(number.value, tuple)]
    rows = [
        [
            element("th", number.name, scope="row"),
            element("td", _shown(number.value), element("small", number.unit) if number.unit else ""),
        ]
        for number in single
        if not isinstance(number.value, tuple)
    ]
    text = element(
        "div",
        element("p", finding.sentence, class_="sentence"),
        element("table", element("tbody", *(element("tr", *cells) for cells in rows)), class_="numbers")
        if rows
        else "",
        details("Numbers by channel, colour or step", _several(several)) if several else "",
        element("p", finding.method, class_="note"),
        details("As lines to copy", element("pre", finding.code)) if finding.code else "",
        class_="said",
    )
    figures = [drawn(figure, budget) for figure in finding.figures]
    return section(
        finding.key, finding.title, element("div", text, element("div", *figures, class_="shown"), class_="finding")
    )


def _several(numbers: list[Number]) -> Markup:
    """Numbers with one value for each of something, side by side."""
    longest = max(len(n.value) for n in numbers if isinstance(n.value, tuple))
    columns = [Column(""), *(Column(number.name, number.unit) for number in numbers)]
    rows = []
    for i in range(longest):
        cells = [element("th", str(i), scope="row")]
        for number in numbers:
            value = number.value
            cells.append(element("td", _shown(value[i]) if isinstance(value, tuple) and i < len(value) else ""))
        rows.append(cells)
    return table(columns, rows)


def _shown(value: float | tuple[float, ...]) -> str:
    """Four digits that count."""
    assert not isinstance(value, tuple)
    if value in (float("inf"), float("-inf")):
        return "∞" if value > 0 else "\u2212∞"
    if value != value:
        return "\u2013"
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:{',.0f' if abs(value) >= 1000 else '.4g'}}".replace("-", "\u2212")
    return svg.power(value)


def _left_out(probe: Probe) -> Markup | str:
    if not probe.left_out:
        return ""
    return section(
        "left-out",
        "Not measured",
        element("ul", *(element("li", f"{key}: {why}.") for key, why in probe.left_out.items())),
    )


def _details(probe: Probe) -> Markup:
    about = probe.about
    vae = {
        "weights": probe.vae,
        "sha256": probe.sha256,
        "factor": probe.factor,
        "latent channels": probe.latent_channels,
    }
    data = {"data": about["data"] or "cards that the program draws"} if "data" in about else {}
    data |= {"pictures": len(probe.pictures), "side": f"{probe.side} pixels", "seed": probe.seed}
    if probe.labelled:
        data |= {"labels": about.get("labels", "given"), "without a label": len(probe.pictures) - probe.labelled}
    if strange := about.get("labels_of_no_picture"):
        data["labels of no picture"] = ", ".join(strange[:NAMED]) + (", ..." if len(strange) > NAMED else "")
    if left_out := about.get("files_left_out"):
        data["files left out"] = ", ".join(f"{one['count']:,} {one['suffix']} ({one['why']})" for one in left_out)
    run = {key: about[key] for key in ("created", "device", "dtype") if key in about}
    versions = {"calotype": calotype.__version__} | about.get("versions", {})
    names = element("ol", *(element("li", name) for name in probe.pictures), start=0)
    command = element("pre", shlex.join(about["command"])) if "command" in about else ""
    return section(
        "details",
        "How this was measured",
        details("VAE", facts(vae)),
        details("Data", facts(data)),
        details("Command and versions", command, facts(run | versions), id="versions"),
        details(f"Pictures ({len(probe.pictures):,}), numbered as in charts", names),
        details(f"Pictures that can't be read ({len(probe.unread):,})", element("ul", *map(_item, probe.unread)))
        if probe.unread
        else "",
    )


def _item(text: str) -> Markup:
    return element("li", text)
