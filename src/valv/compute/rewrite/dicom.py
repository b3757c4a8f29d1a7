"""Whose a DICOM file is: the patient's id (0010,0020), as DICOM PS3.5 lays out a data set."""

from __future__ import annotations

from .names import Cannot

HEAD = 1 << 20
"""Bytes that are looked at: the patient's part comes first, in the order of tags."""
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV")
_IMPLICIT = b"1.2.840.10008.1.2"
_BIG = b"1.2.840.10008.1.2.2"
_DEFLATED = b"1.2.840.10008.1.2.1.99"


def is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def patient(head: bytes) -> str:
    """The patient's id, '' where the file has none. Raises `Cannot`."""
    at, syntax = 132, b""
    implicit = False
    while at + 8 <= len(head):
        group = int.from_bytes(head[at : at + 2], "little")
        if group > 2 and syntax:
            implicit = syntax == _IMPLICIT
            if syntax in (_BIG, _DEFLATED):
                raise Cannot("unknown")
        element = int.from_bytes(head[at + 2 : at + 4], "little")
        kind = head[at + 4 : at + 6]
        if group > 2 and implicit:
            start, size = at + 8, int.from_bytes(head[at + 4 : at + 8], "little")
        elif kind in _LONG:
            start, size = at + 12, int.from_bytes(head[at + 8 : at + 12], "little")
        else:
            start, size = at + 8, int.from_bytes(head[at + 6 : at + 8], "little")
        if (group, element) > (0x0010, 0x0020):
            return ""
        if size == 0xFFFFFFFF:  # a sequence before the patient's part: none that the standard knows is needed
            start = _after(head, start)
            size = 0
        value = head[start : start + size]
        if (group, element) == (0x0002, 0x0010):
            syntax = value.strip(b" \0")
        if (group, element) == (0x0010, 0x0020):
            return value.decode("utf-8", "replace").strip(" \0")
        at = start + size
    raise Cannot("broken")


def _after(head: bytes, start: int) -> int:
    """The place behind a sequence of undefined length."""
    end = head.find(b"\xfe\xff\xdd\xe0\0\0\0\0", start)
    if end < 0:
        raise Cannot("broken")
    return end + 8
