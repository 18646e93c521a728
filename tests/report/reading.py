"""Reads a page back: every element with its attributes and text, by the standard library's own parser."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})


@dataclass
class Element:
    """One element; `text` is everything inside of it."""

    tag: str
    attributes: dict[str, str]
    ancestors: tuple[str, ...]
    text: str = ""
    outside: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """All elements of a page in order; raises for tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {[one.tag for one in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs}, tuple(one.tag for one in self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, (
            f"</{tag}> closes {self._open[-1].tag if self._open else 'nothing'}"
        )
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def having(self, *attributes: str) -> list[Element]:
        return [one for one in self.elements if all(name in one.attributes for name in attributes)]


def text_without(html: str, *skipped: str) -> str:
    """The page's words outside of some tags (and outside of style)."""

    class Words(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.depth, self.words = 0, []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.depth += tag in (*skipped, "style")

        def handle_endtag(self, tag: str) -> None:
            self.depth -= tag in (*skipped, "style")

        def handle_data(self, data: str) -> None:
            if not self.depth:
                self.words.append(data)

    words = Words()
    words.feed(html)
    return " ".join(words.words)
