"""Reads a page as an assistive tool does: its elements, its forms, and what it lacks for people who cannot see it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"area", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"})
UNLABELLED = frozenset({"hidden", "submit", "button"})


@dataclass
class Element:
    tag: str
    attrs: dict[str, str]
    parent: Element | None = None
    children: list[Element] = field(default_factory=list)
    own_text: str = ""

    @property
    def text(self) -> str:
        return self.own_text + "".join(child.text for child in self.children)

    def all(self, *tags: str) -> list[Element]:
        found = [self] if self.tag in tags else []
        for child in self.children:
            found.extend(child.all(*tags))
        return found

    def within(self, tag: str) -> Element | None:
        above = self.parent
        while above is not None and above.tag != tag:
            above = above.parent
        return above


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("root", {})
        self.at = self.root
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.faults.append(f"<{tag}> names an attribute twice")
        element = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(element)
        if tag not in VOID:
            self.at = element

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        if self.at.tag != tag:
            self.faults.append(f"</{tag}> closes <{self.at.tag}>")
        if self.at.parent is not None:
            self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.own_text += data


def read(content: str) -> Element:
    reader = _Reader()
    reader.feed(content)
    return reader.root


def lacks(content: str) -> list[str]:
    """What the page lacks: an empty list for a good one."""
    reader = _Reader()
    reader.feed(content)
    page, faults = reader.root, reader.faults
    if reader.at is not reader.root:
        faults.append(f"<{reader.at.tag}> is not closed")
    html = page.all("html")
    if not html or not html[0].attrs.get("lang"):
        faults.append("no language")
    if len(page.all("h1")) != 1:
        faults.append(f"{len(page.all('h1'))} first headings")
    if not any(title.text.strip(" –") for title in page.all("title")):
        faults.append("no title")
    for landmark in ("main", "header", "nav", "footer"):
        if not page.all(landmark):
            faults.append(f"no <{landmark}>")
    if not any(link.attrs.get("href") == "#main" for link in page.all("a")):
        faults.append("no link that skips to the content")
    if page.all("script", "style", "iframe", "object"):
        faults.append("something active or a style in the page")
    faults.extend(_headings(page))
    faults.extend(_ids(page))
    faults.extend(_elements(page))
    return faults


def _headings(page: Element) -> list[str]:
    levels = (
        [int(heading.tag[1]) for heading in page.all("main")[0].all("h1", "h2", "h3", "h4")] if page.all("main") else []
    )
    return [f"heading {b} follows {a}" for a, b in itertools.pairwise(levels) if b > a + 1]


def _every(element: Element) -> list[Element]:
    return [element, *(found for child in element.children for found in _every(child))]


def _ids(page: Element) -> list[str]:
    every = _every(page)
    ids = [element.attrs["id"] for element in every if element.attrs.get("id")]
    faults = [f"the id {name} comes twice" for name in sorted(set(ids)) if ids.count(name) > 1]
    for element in every:
        for attribute in ("aria-describedby", "aria-labelledby", "for"):
            for name in element.attrs.get(attribute, "").split():
                if name not in ids:
                    faults.append(f"{attribute} names {name}, which is not there")
        href = element.attrs.get("href", "")
        if href.startswith("#") and href[1:] not in ids:
            faults.append(f"a link leads to {href}, which is not there")
        if any(name.startswith("on") or name == "style" for name in element.attrs):
            faults.append(f"<{element.tag}> carries a script or a style")
    return faults


def _elements(page: Element) -> list[str]:
    labelled = {label.attrs.get("for") for label in page.all("label")}
    faults = []
    for element in page.all("input", "select", "textarea"):
        if element.attrs.get("type") not in UNLABELLED and element.attrs.get("id") not in labelled:
            faults.append(f"the input {element.attrs.get('name')} has no label")
    faults.extend("an image without alt" for image in page.all("img") if "alt" not in image.attrs)
    faults.extend("a table without a caption" for table in page.all("table") if not table.all("caption"))
    faults.extend("a th without scope" for head in page.all("th") if "scope" not in head.attrs)
    faults.extend("a fieldset without a legend" for found in page.all("fieldset") if not found.all("legend"))
    for element in page.all("button", "a"):
        if not element.text.strip() and not element.attrs.get("aria-label") and not element.all("img"):
            faults.append(f"a <{element.tag}> without a name")
    faults.extend("a form that posts without a token" for form in page.all("form") if _tokenless(form))
    return faults


def _tokenless(form: Element) -> bool:
    names = {found.attrs.get("name") for found in form.all("input")}
    return form.attrs.get("method") == "post" and not {"token", "command"} <= names
