"""Many small files in one request. Specified in `docs/formats/batch.md`.

batch    record*
record   length of the head u32, big-endian | head | content
head     JSON, UTF-8: {"path": ..., "size": bytes of the content, "sha256": hex, may be left out}
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from valv.errors import FormatFault

MEDIA: Final = "application/vnd.valv.batch"
MOST_FILES: Final = 1024
MOST_BYTES: Final = 16 << 20
"""Of a whole batch, heads included."""
LARGEST: Final = 256 << 10
"""Bytes of one file."""
_LENGTH: Final = struct.Struct(">I")
_HEAD: Final = 8192
_SHA256: Final = re.compile(r"(?:[0-9A-Fa-f]{64})?")


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    size: int
    sha256: str = ""


class Record(msgspec.Struct, frozen=True):
    """A file of a batch. `sha256`: of the content, hex in small letters; '' where it was not declared."""

    path: str
    content: bytes
    sha256: str = ""


def encode(record: Record) -> bytes:
    head = msgspec.json.encode(_Head(record.path, len(record.content), record.sha256))
    return _LENGTH.pack(len(head)) + head + record.content


def decode(data: bytes) -> Iterator[Record]:
    """The files in order. Raises `FormatFault` where the batch has not the form, or is too much."""
    view, at, count = memoryview(data), 0, 0
    if len(data) > MOST_BYTES:
        raise FormatFault(f"a batch has at most {MOST_BYTES} bytes", "send several")
    while at < len(view):
        count += 1
        if count > MOST_FILES:
            raise FormatFault(f"a batch has at most {MOST_FILES} files", "send several")
        if len(view) - at < _LENGTH.size:
            raise _cut(count)
        (length,) = _LENGTH.unpack_from(view, at)
        at += _LENGTH.size
        if length > _HEAD:
            raise FormatFault(
                f"the head of file {count} of the batch claims {length} bytes; at most {_HEAD} are possible"
            )
        head = _head(bytes(view[at : at + length]), count) if at + length <= len(view) else None
        if head is None or at + length + head.size > len(view):
            raise _cut(count)
        at += length
        yield Record(head.path, bytes(view[at : at + head.size]), head.sha256.lower())
        at += head.size


def _head(data: bytes, count: int) -> _Head:
    try:
        head = msgspec.json.decode(data, type=_Head)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault(f"the head of file {count} of the batch is not one") from None
    if not 0 <= head.size <= LARGEST:
        raise FormatFault(f"file {count} of the batch has {head.size} bytes", f"at most {LARGEST}: send it by itself")
    if not _SHA256.fullmatch(head.sha256):
        raise FormatFault(f"the sha256 of file {count} of the batch is not 64 hexadecimal digits")
    return head


def _cut(count: int) -> FormatFault:
    return FormatFault(f"the batch ends within its file {count}", "send it again")
