"""The report's page: its elements, and what a browser measures of it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Element:
    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag, self.attributes = tag, attributes
        self.inside: list[Element | str] = []

    def every(self) -> Iterator["Element"]:
        for item in self.inside:
            if isinstance(item, Element):
                yield item
                yield from item.every()

    def find(self, tag: str | None = None, kind: str | None = None) -> list["Element"]:
        """The elements inside with this tag and this class."""
        return [e for e in self.every() if tag in (None, e.tag) and (kind is None or e.has(kind))]

    def by_id(self, name: str) -> "Element | None":
        return next((e for e in self.every() if e.attributes.get("id") == name), None)

    def has(self, kind: str) -> bool:
        return kind in (self.attributes.get("class") or "").split()

    @property
    def text(self) -> str:
        whole = "".join(i if isinstance(i, str) else i.text for i in self.inside)
        return " ".join(whole.split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("page", {})]

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        if tag not in VOID and tag != "p":
            assert self.open[-1].tag == tag, f"<{self.open[-1].tag}> is closed by </{tag}>"
        if tag not in VOID:
            self.open.pop()

    def handle_startendtag(self, tag, attrs):
        self.open[-1].inside.append(Element(tag, dict(attrs)))

    def handle_data(self, data):
        self.open[-1].inside.append(data)


def parsed(page: Path) -> Element:
    """The page's elements; every tag that is opened must be closed in its turn."""
    reader = _Reader()
    reader.feed(page.read_text())
    assert len(reader.open) == 1, "a tag is left open"
    return reader.open[0]


def browser() -> str:
    """A Chromium; skips the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium is installed, which measures the page")
    return found


def measured(page: Path, width: int, script: str, folder: Path) -> list[str]:
    """What a script returns in a browser whose window has this width: a list of texts.

    The page is put into a frame of that width, as a window cannot be narrower than 500 px.
    """
    copy = folder / f"measured_{width}.html"
    copy.write_text(
        page.read_text().replace(
            "</body>",
            "<script>addEventListener('load', () => parent.postMessage((() => {"
            f"{script}"
            "})().map(String), '*'));</script></body>",
        )
    )
    outer = folder / f"outer_{width}.html"
    outer.write_text(
        "<!doctype html><script>addEventListener('message', e => { for (const x of e.data) {"
        "const p = document.createElement('samp'); p.textContent = x; document.body.append(p); }"
        f"}});</script><body><iframe src='{copy.name}' width='{width}' height='900' "
        "style='border:0'></iframe></body>"
    )
    done = subprocess.run(
        [
            browser(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'browser'}",
            "--window-size=1600,1000",
            "--virtual-time-budget=5000",
            "--dump-dom",
            outer.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={"HOME": str(folder), "PATH": "/usr/bin:/bin"},
    )
    found = re.findall(r"<samp>(.*?)</samp>", done.stdout, re.DOTALL)
    assert found, f"the browser measured nothing: {done.stderr[-2000:]}"
    return found
