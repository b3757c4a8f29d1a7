"""The identifier scan itself: it runs inside a sandbox, over the files of one dataset version, and writes a report that
names places and kinds, never what stands there.

Standard library only, and no `from __future__` import: `scan.py` appends this text to that of `formats/identifiers.py`.
"""

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

Find = Callable[[str], list[str]]
Note = Callable[[str, int], None]
Source = IO[bytes] | gzip.GzipFile

LINES = 2_000_000
"""Lines looked at in one file; a longer one is looked at in its beginning, and the report says so."""
LINE = 1 << 16
"""Characters looked at in one line."""
DICOM_TAGS = {
    b"\x10\x00\x10\x00": "DICOM patient name",
    b"\x10\x00\x20\x00": "DICOM patient id",
    b"\x10\x00\x30\x00": "DICOM birth date",
    b"\x10\x00\x40\x10": "DICOM address",
}


def scan(folder: Path, find: Find, columns: Find) -> dict[str, object]:
    """Walk `folder`; returns the report."""
    findings: list[dict[str, object]] = []
    files = 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        files += 1
        for kind, (count, line) in sorted(scan_file(path, find, columns).items()):
            place = str(path.relative_to(folder))
            findings.append({"file": place, "kind": kind, "count": count, "line": line})
    return {"scanner": 1, "files": files, "findings": findings[:10_000]}


def scan_file(path: Path, find: Find, columns: Find) -> dict[str, tuple[int, int]]:
    """kind → (how often, the first line) in one file."""
    found: dict[str, tuple[int, int]] = {}

    def note(kind: str, number: int) -> None:
        count, first = found.get(kind, (0, number))
        found[kind] = (count + 1, first)

    with path.open("rb") as raw:
        head = raw.read(1 << 20)
        raw.seek(0)
        if head[128:132] == b"DICM":
            scan_dicom(head, note)
            return found
        source: Source = gzip.GzipFile(fileobj=raw) if head[:2] == b"\x1f\x8b" else raw
        try:
            scan_text(source, find, columns, note)
        except (OSError, EOFError, zlib.error):
            note("compressed data that cannot be read", 0)
    return found


def scan_text(source: Source, find: Find, columns: Find, note: Note) -> None:
    number = 0
    while number < LINES:
        line = source.readline(LINE)
        if not line:
            return
        number += 1
        if number == 1 and b"\0" in line:
            return  # binary: nothing that a line pattern could find
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if number == 1:
            for _ in columns(text):
                note("column that announces personal details", 1)
        for kind in find(text):
            note(kind, number)
    note("more lines than the scan looks at", number)


def scan_dicom(head: bytes, note: Note) -> None:
    """Tags that name the patient and are not empty (explicit and implicit little endian)."""
    for tag, kind in DICOM_TAGS.items():
        at = head.find(tag, 132)
        if at < 0:
            continue
        explicit = head[at + 4 : at + 6].isalpha()
        start, size = (at + 8, head[at + 6 : at + 8]) if explicit else (at + 8, head[at + 4 : at + 8])
        value = head[start : start + int.from_bytes(size, "little")].strip(b" \0^")
        if value:
            note(kind, 0)


def main(find: Find, columns: Find) -> None:
    report = scan(Path("/data"), find, columns)
    Path("/outbox/report.json").write_text(json.dumps(report), "utf-8")
