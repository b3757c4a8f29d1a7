"""The identifier scan itself: it runs inside a sandbox, over the files of one dataset version, and writes a report that
names places and kinds, never what stands there.

Standard library only, and no `from __future__` import: `scan.py` appends this text to that of `formats/identifiers.py`.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

Find = Callable[[str], list[str]]
Note = Callable[[str, int], None]
Source = IO[bytes] | gzip.GzipFile

PIECES = 2_000_000
"""Pieces of lines looked at in one file; a longer one is looked at in its beginning, and the report says so."""
PIECE = 1 << 16
"""Characters of a line that are looked at in one go."""
OVERLAP = 200
"""Characters looked at again with the next piece, so that nothing is cut in two."""
FINDINGS = 2_000
"""Places named in a report."""
HEAD = 1 << 20
BYTE_ORDERS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
DICOM_TAGS = {
    (0x0008, 0x0090): "DICOM referring physician",
    (0x0010, 0x0010): "DICOM patient name",
    (0x0010, 0x0020): "DICOM patient id",
    (0x0010, 0x0030): "DICOM birth date",
    (0x0010, 0x1000): "DICOM other patient ids",
    (0x0010, 0x1001): "DICOM other patient names",
    (0x0010, 0x1040): "DICOM address",
    (0x0010, 0x2154): "DICOM telephone number",
}
DICOM_TYPES = (b"PN", b"LO", b"DA", b"SH")
DEFLATED = b"1.2.840.10008.1.2.1.99"


def scan(folder: Path, find: Find, columns: Find) -> dict[str, object]:
    """Walk `folder`; returns the report. `binary` counts files that no line pattern can look into."""
    findings: list[dict[str, object]] = []
    files = binary = 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        files += 1
        place = str(path.relative_to(folder))
        found: dict[str, tuple[int, int]] = {f"{kind} in the file's name": (1, 0) for kind in find(_words(place))}
        binary += not scan_file(path, find, columns, found)
        for kind, (count, line) in sorted(found.items()):
            findings.append({"file": place, "kind": kind, "count": count, "line": line})
    return {"scanner": 1, "files": files, "binary": binary, "findings": findings[:FINDINGS]}


def _words(place: str) -> str:
    return place.replace("_", " ").replace("/", " ")


def scan_file(path: Path, find: Find, columns: Find, found: dict[str, tuple[int, int]]) -> bool:
    """Adds kind → (how often, the first line) of one file to `found`; whether it could be looked into."""

    def note(kind: str, number: int) -> None:
        count, first = found.get(kind, (0, number))
        found[kind] = (count + 1, first)

    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            source: Source = gzip.GzipFile(fileobj=raw) if packed else raw
            head = source.read(HEAD)
            source.seek(0)
            if head[128:132] == b"DICM":
                scan_dicom(head, note)
                return True
            coding = BYTE_ORDERS.get(head[:2], "utf-8")
            if coding == "utf-8" and b"\0" in head[: 1 << 12]:
                return False
            scan_text(io.TextIOWrapper(source, coding, "replace", newline="\n"), find, columns, note)
    except (OSError, EOFError, zlib.error):
        note("data that cannot be read", 0)
    return True


def scan_text(source: IO[str], find: Find, columns: Find, note: Note) -> None:
    number, rest = 1, ""
    for _ in range(PIECES):
        piece = source.readline(PIECE)
        if not piece:
            return
        whole = piece.endswith("\n")
        text = rest + piece.rstrip("\r\n")
        if number == 1 and not rest:
            for _ in columns(text.lstrip("\ufeff")):
                note("column that announces personal details", 1)
        for kind in find(text):
            note(kind, number)
        number += whole
        rest = "" if whole else text[-OVERLAP:]
    note("more lines than the scan looks at", number)


def scan_dicom(head: bytes, note: Note) -> None:
    """Tags that name the patient and are not empty (explicit and implicit, little and big endian)."""
    if DEFLATED in head[:1024]:
        note("data that cannot be read", 0)
        return
    for (group, element), kind in DICOM_TAGS.items():
        if any(_dicom_value(head, group, element, order) for order in ("little", "big")):
            note(kind, 0)


def _dicom_value(head: bytes, group: int, element: int, order: Literal["little", "big"]) -> bool:
    """Whether one of the places where this tag may stand has a value."""
    tag = group.to_bytes(2, order) + element.to_bytes(2, order)
    at = head.find(tag, 132)
    while at >= 0:
        kind = head[at + 4 : at + 6]
        start, end = (
            (at + 6, at + 8) if kind in DICOM_TYPES else (at + 8, at + 12) if kind == b"UN" else (at + 4, at + 8)
        )
        size = int.from_bytes(head[start:end], order)
        # A text has an even, modest length; anything else is the same bytes inside another value.
        if size % 2 == 0 and size <= 1 << 10 and head[end : end + size].strip(b" \0^"):
            return True
        at = head.find(tag, at + 1)
    return False


def main(find: Find, columns: Find) -> None:
    report = scan(Path("/data"), find, columns)
    Path("/outbox/report.json").write_text(json.dumps(report), "utf-8")
