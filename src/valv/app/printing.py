"""A certificate of destruction as PDF, for paper and for files of letters.

The same certificate always gives the same bytes: no time, no random identifier, no script. It is set in the fonts that
every viewer has; letters that these lack are written without their marks. What counts is the JSON, whose SHA-256 stands
at the end.
"""

from __future__ import annotations

import io
import textwrap
import unicodedata
from typing import Any, Final

import pydyf

from valv.formats import certificate
from valv.formats.certificate import Certificate

WIDTH: Final = 595
HEIGHT: Final = 842
"""A4, in points."""
MARGIN: Final = 50
SIZE: Final = 9
LEADING: Final = 12
COLUMNS: Final = int((WIDTH - 2 * MARGIN) / (SIZE * 0.6))
"""Letters in a line: all of Courier are 0.6 wide."""
ROWS: Final = int((HEIGHT - 2 * MARGIN) / LEADING) - 3

Line = tuple[str, str]
"""Font (`text` or `head`) and letters."""


def pdf(found: Certificate) -> bytes:
    """The certificate on as many pages as its table of copies takes."""
    document = pydyf.PDF()
    fonts = {"text": _font(document, "Courier"), "head": _font(document, "Courier-Bold")}
    resources = pydyf.Dictionary({"Font": pydyf.Dictionary(fonts)})
    title = f"Certificate of destruction: {found.dataset}, version {found.version}"
    pages = _pages(found)
    for number, lines in enumerate(pages, 1):
        _page(document, resources, lines, f"{title} - page {number} of {len(pages)}")
    document.info["Title"] = pydyf.String(title)
    document.info["Author"] = pydyf.String(found.node)
    document.info["Subject"] = pydyf.String(f"SHA-256 of the certificate: {_digest(found)}")
    document.catalog["Lang"] = pydyf.String("en")
    document.catalog["ViewerPreferences"] = pydyf.Dictionary({"DisplayDocTitle": "true"})
    made = io.BytesIO()
    document.write(made, version=b"1.7", identifier=False, compress=False)
    return made.getvalue()


def _pages(found: Certificate) -> list[list[Line]]:
    lines: list[Line] = [("head", "CERTIFICATE OF DESTRUCTION"), ("text", "")]
    for name, value in certificate.facts(found):
        lines += _wrapped(f"{name + ':':<12}", value)
    lines += [("text", ""), ("head", "Stores")]
    stores = [(one.name, f"{one.unit}, {one.country}", one.copies, one.bytes, one.verified) for one in found.stores]
    lines += _table(("store", "place", "copies", "bytes", "seen to have none"), (14, 26, 8, 16, 24), stores)
    lines += [("text", ""), ("head", "Key backup")]
    for kept in found.key_backups:
        lines += _wrapped("", f"{kept.place}: generation {kept.generation}, whole")
    if not found.key_backups:
        lines.append(("text", "No place is configured."))
    lines += [("text", ""), ("head", "Backups that may hold the files, encrypted")]
    for backup in found.backups:
        lines += _wrapped("", f"{backup.place}: up to generation {backup.generation}, made {backup.at}")
    if not found.backups:
        lines.append(("text", "The node knows of none."))
    lines += [("text", ""), *_wrapped("", certificate.remark(found)), ("text", "")]
    lines.append(("head", "What this page is made from"))
    said = (
        "A file in JSON, whose SHA-256 is below. The node's ledger holds that digest, and the node signs its ledger; "
        "'valv dataset certificate verify' proves it without the node."
    )
    lines += [*_wrapped("", said), ("text", _digest(found))]
    pages = [lines[start : start + ROWS] for start in range(0, len(lines), ROWS)]
    copies = [(one.file, one.body, one.store, one.bytes) for one in found.copies]
    names, *rows = _table(("file", "name in the store", "store", "bytes"), (33, 33, 11, 14), copies)
    head = f"Every copy, with its seal, in order of files ({len(copies)}); all deleted"
    for start in range(0, len(rows), ROWS - 2):
        pages.append([("head", head), names, *rows[start : start + ROWS - 2]])
    return pages


def _digest(found: Certificate) -> str:
    return certificate.digest(certificate.encode(found).decode())


def _wrapped(name: str, value: str) -> list[Line]:
    parts = textwrap.wrap(value, COLUMNS - len(name), break_on_hyphens=False) or [""]
    return [("text", f"{name if not at else ' ' * len(name)}{part}") for at, part in enumerate(parts)]


def _table(names: tuple[str, ...], widths: tuple[int, ...], rows: list[Any]) -> list[Line]:
    """Columns of these widths; what does not fit goes on in the next line."""
    lines: list[Line] = [("head", "".join(f"{name:<{width}}" for name, width in zip(names, widths, strict=True)))]
    for row in rows:
        cells = [
            textwrap.wrap(str(cell), width - 1, break_on_hyphens=False) or [""]
            for cell, width in zip(row, widths, strict=True)
        ]
        for at in range(max(map(len, cells))):
            parts = (cell[at] if at < len(cell) else "" for cell in cells)
            lines.append(("text", "".join(f"{part:<{width}}" for part, width in zip(parts, widths, strict=True))))
    return lines


def _page(document: Any, resources: Any, lines: list[Line], foot: str) -> None:
    stream = pydyf.Stream()
    stream.begin_text()
    stream.set_text_matrix(1, 0, 0, 1, MARGIN, HEIGHT - MARGIN)
    for font, line in lines:
        stream.set_font_size(font, SIZE)
        stream.show_text_string(_plain(line))
        stream.move_text_to(0, -LEADING)
    stream.set_text_matrix(1, 0, 0, 1, MARGIN, MARGIN - LEADING)
    stream.set_font_size("text", SIZE)
    stream.show_text_string(_plain(foot))
    stream.end_text()
    document.add_object(stream)
    document.add_page(
        pydyf.Dictionary(
            {
                "Type": "/Page",
                "Parent": document.pages.reference,
                "MediaBox": pydyf.Array([0, 0, WIDTH, HEIGHT]),
                "Resources": resources,
                "Contents": stream.reference,
            }
        )
    )


def _font(document: Any, name: str) -> Any:
    font = pydyf.Dictionary(
        {"Type": "/Font", "Subtype": "/Type1", "BaseFont": f"/{name}", "Encoding": "/WinAnsiEncoding"}
    )
    document.add_object(font)
    return font.reference


def _plain(text: str) -> bytes:
    """In the fonts' encoding. A letter that it lacks is written without its marks, and where that is none, as '?'."""
    found = bytearray()
    for letter in text:
        try:
            found += letter.encode("cp1252")
        except UnicodeEncodeError:
            bare = unicodedata.normalize("NFKD", letter)
            found += "".join(one for one in bare if not unicodedata.combining(one)).encode("cp1252", "replace")
    return bytes(found)
