"""Builds the documentation into site/, to be opened from disk, and checks it: no warnings, no dead links.

What the generator's own strict mode lets pass is found in the pages it made: links out of the site, those in texts that
are included, anchors of the API, and whatever a page would load from a network.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docs_pages import api

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "site"
LOADED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}


def changelog() -> str:
    """CHANGELOG.md, whose links begin at the repository's root, as a page among those of docs/."""
    return (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")


def families() -> str:
    """What CONTRIBUTING.md says of a new family."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    house, adding = (
        text.split(f"{mark} {title}\n")[1] for mark, title in (("##", "The house"), ("###", "Adding a family"))
    )
    about = house.split("\n### ")[0].strip().split("\n\n")[-1]
    return f"# Adding a family\n\n{about}\n\n{adding.split(chr(10) + '## ')[0].strip()}\n"


INCLUDED = {ROOT / "docs" / "changelog.md": changelog, ROOT / "docs" / "families.md": families}
"""Pages that are other files of the repository; git ignores them."""


OUTSIDE = re.compile(r'href="(?:\.\./)+(findings|bench/results)(?:/([\w-]+)\.(?:sh|json))?"')
ON_PAGES = {"findings": "findings.html", "bench/results": "benchmarks.html"}


def led_inside(site: Path) -> None:
    """Lets links to scripts of findings and to results lead to the pages that tell of them."""
    for path in site.rglob("*.html"):
        up = "../" * (len(path.relative_to(site).parts) - 1)

        def inside(link: re.Match[str], up: str = up) -> str:
            return f'href="{up}{ON_PAGES[link[1]]}{f"#{link[2]}" if link[2] else ""}"'

        text = path.read_text()
        if (changed := OUTSIDE.sub(inside, text)) != text:
            path.write_text(changed)


class Page(HTMLParser):
    """A page's anchors, its links, and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {key: value for key, value in attributes if value}
        self.anchors.update(values[key] for key in ("id", "name") if key in values)
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in LOADED and LOADED[tag] in values:
            self.loads.append(values[LOADED[tag]])


def faults(site: Path) -> Iterator[str]:
    """What is wrong with the pages of a site, a sentence each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data":
                    yield f"{name} loads {link}, which needs a network"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_relative_to(site):
                yield f"{name} links to {link}, which is not in the site"
            elif not target.is_file():
                yield f"{name} links to {link}, which is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{name} links to {link}, and there is no such place on that page"


def missing(site: Path) -> Iterator[str]:
    """Public names that the pages of the Python interface lack, a sentence each."""
    modules = api.modules()
    yield from (
        f"{name} has an __all__, and no page in docs/reference/api" for name in api.with_names() if name not in modules
    )
    for module, source in modules.items():
        page = site / source.relative_to(ROOT / "docs").with_suffix(".html")
        anchors = Page(page).anchors
        names = (f"{module}.{name}" for name in api.public_names(module))
        yield from (f"{page.relative_to(site)} says nothing of {name}" for name in names if name not in anchors)


def main() -> int:
    """0 when the site is built and nothing is wrong with it."""
    for path, make in INCLUDED.items():
        path.write_text(make())
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = re.sub(r"\x1b\[[\d;]*m", "", built.stdout)
    wrong = [line for line in said.splitlines() if line.startswith("griffe:")]  # these it does not count as warnings
    if built.returncode:
        wrong.append(said.partition("Traceback")[0])
    else:
        (SITE / "404.html").unlink()  # for servers alone
        led_inside(SITE)
        wrong += [*faults(SITE), *missing(SITE)]
    print("\n".join(wrong) if wrong else f"{SITE / 'index.html'}", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
