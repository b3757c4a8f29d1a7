"""One output made ready for a checker's eye: text, a table, or a picture. Nothing of it is ever active in the page."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections.abc import Iterator
from typing import Literal

import msgspec

from valv.app import release
from valv.errors import FormatFault

PART = 64 << 10
"""Bytes shown on one page."""
OVERLAP = 3
"""A part begins so many bytes early, so that no letter is lost between two parts (UTF-8 has at most 4 bytes)."""
LARGEST_PICTURE = 32 << 20
PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """`kind`: how it is shown, or `binary` where it cannot be; `rows`: of a table; `parts`: how many pages it has."""

    kind: Literal["text", "table", "picture", "binary"]
    text: str = ""
    rows: list[list[str]] = []
    parts: int = 1


def look(path: str, size: int, chunks: Iterator[bytes], part: int) -> Shown:
    """Part `part` (from 1) of an output. Reads no further than it shows."""
    first = next(chunks, b"")
    if _media(first) and size <= LARGEST_PICTURE:
        _close(chunks)
        return Shown(kind="picture")
    whole = _rejoined(first, chunks)
    text, _ = release.preview(_from(whole, (part - 1) * PART), PART + (OVERLAP if part > 1 else 0))
    parts = max(1, -(-size // PART))
    if text is None:
        return Shown(kind="binary")
    separator = next((mark for ending, mark in SEPARATORS.items() if path.lower().endswith(ending)), "")
    if separator:
        rows = _table(text, separator)
        if rows:
            return Shown(kind="table", rows=rows, text=text, parts=parts)
    return Shown(kind="text", text=text, parts=parts)


def picture(size: int, chunks: Iterator[bytes]) -> tuple[str, Iterator[bytes]]:
    """The media type of a PNG or JPEG, by its first bytes, and its content. Raises `FormatFault` for anything else."""
    first = next(chunks, b"")
    media = _media(first)
    if not media or size > LARGEST_PICTURE:
        _close(chunks)
        raise FormatFault("this output is no picture that can be shown")
    return media, _rejoined(first, chunks)


def _media(first: bytes) -> str:
    return next((media for mark, media in PICTURES.items() if first.startswith(mark)), "")


def _close(chunks: Iterator[bytes]) -> None:
    """End the reading now: it holds a process."""
    if isinstance(chunks, contextlib.closing) or hasattr(chunks, "close"):
        chunks.close()


def _rejoined(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from itertools.chain([first] if first else [], chunks)
    finally:
        _close(chunks)


def _from(chunks: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """The bytes from the letter that begins at `offset` or up to `OVERLAP` bytes before it."""
    skip = max(0, offset - OVERLAP)
    begin = b""
    try:
        for chunk in chunks:
            begin += chunk[skip:]
            skip = max(0, skip - len(chunk))
            if len(begin) > OVERLAP:
                break
        yield _on_letter(begin) if offset else begin
        yield from chunks
    finally:
        _close(chunks)


def _on_letter(piece: bytes) -> bytes:
    """Without the rest of a letter at the beginning: it was shown whole in the part before."""
    begin = 0
    while begin < OVERLAP and piece[begin : begin + 1] and piece[begin] & 0xC0 == 0x80:
        begin += 1
    return piece[begin:]


def _table(text: str, separator: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(text.splitlines(), delimiter=separator) if row]
    except csv.Error:
        return []
