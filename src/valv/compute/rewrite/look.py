"""Looks through a whole file for the names."""

from __future__ import annotations

import io

from . import dicom, packed
from .names import Cannot, Names

CHUNK = 1 << 20
OPAQUE = (
    b"PK\x03\x04",  # zip, and with it spreadsheets
    b"\xfd7zXZ",
    b"BZh",
    b"\x28\xb5\x2f\xfd",  # zstd
    b"7z\xbc\xaf",
    b"\x89HDF",
    b"PAR1",
    b"CRAM",
    b"%PDF",
    b"\x89PNG",
    b"\xff\xd8\xff",  # JPEG
    b"crypt4gh",
    b"SQLite format",
)
"""Beginnings of formats in which names may stand packed, where no search finds them."""


def look(source: io.BufferedReader, names: Names) -> str:
    """`clean`; `mentions`; `drop` where the file is of one of these people alone. Raises `Cannot`."""
    head, source = packed.peek(source, dicom.HEAD if _dicom(source) else 1 << 16)
    if dicom.is_dicom(head) and names.are(dicom.patient(head)):
        return "drop"
    if head.startswith(packed.GZIP):
        head, source = packed.peek(packed.unpacked(source), 1 << 16)
    if head.startswith(OPAQUE):
        raise Cannot("opaque")
    tail = b""
    found = False
    while data := source.read(CHUNK):  # to the end also after it was found: whoever writes to us would break
        found = found or names.found(tail + data)
        tail = (tail + data)[-2 * (names.longest + 2) :]
    return "mentions" if found else "clean"


def _dicom(source: io.BufferedReader) -> bool:
    return dicom.is_dicom(source.peek(132)[:132])
