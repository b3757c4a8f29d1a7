"""Whole Crypt4GH files, header and body: what each `valv crypt` command does with them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec

from valv.formats import crypt4gh, edit_list
from valv.formats.crypt4gh import CIPHER_SEGMENT, KEY, SEGMENT
from valv.formats.edit_list import Span
from valv.vault import bulk
from valv.vault.bulk import Progress
from valv.vault.endpoints import Sink, Source

_PIECE = 1 << 20


class Found(msgspec.Struct, frozen=True):
    """What can be seen of a file. Sizes in bytes; `plain` is the whole decrypted body, `edit_list` None where no key
    opened the header or it has none."""

    packets: int
    writers: tuple[bytes, ...]
    header: int
    body: int
    plain: int
    edit_list: tuple[int, ...] | None = None


def encrypt(
    source: Source,
    sink: Sink,
    recipients: Sequence[bytes],
    *,
    span: Span = (0, None),
    progress: Progress | None = None,
) -> int:
    """The bytes `span` of `source` as a Crypt4GH file for these raw public keys. Returns the file's size."""
    data_key = secrets.token_bytes(KEY)
    header = crypt4gh.build_header(data_key, recipients)
    sink.put([memoryview(header)], 0)
    start, end = span
    size = bulk.encrypt(source, sink, data_key, at=len(header), start=start, end=end, progress=progress)
    return len(header) + crypt4gh.cipher_size(size)


def decrypt(
    source: Source,
    sink: Sink,
    private_keys: Sequence[bytes],
    *,
    span: Span = (0, None),
    progress: Progress | None = None,
) -> int:
    """The bytes `span` of what a Crypt4GH file shows, its edit list applied. Returns how many they are.

    Raises `FormatFault`, `KeyFault` where no key opens the header, and `IntegrityFault` naming the segment that does
    not hold. Segments that are missing at the very end cannot be noticed here: compare the checksum.
    """
    opened = crypt4gh.open_header(bulk.read_header(source), private_keys)
    kept = edit_list.cut(edit_list.spans(opened.edit_list), *span)
    return bulk.decrypt(source, sink, opened.data_keys, kept=kept, progress=progress)


def reencrypt(
    source: Source,
    sink: Sink,
    private_keys: Sequence[bytes],
    recipients: Sequence[bytes],
    *,
    trim: bool = False,
    header_only: bool = False,
    progress: Progress | None = None,
) -> int:
    """The same body under a header for `recipients`; `trim` drops the packets of others. Returns the result's size."""
    header = bulk.read_header(source)
    made = crypt4gh.reseal(header, private_keys, recipients, keep_others=not trim)
    sink.put([memoryview(made)], 0)
    return len(made) + (0 if header_only else bulk.copy(source, sink, at=len(made), progress=progress))


def rearrange(
    source: Source,
    sink: Sink,
    private_keys: Sequence[bytes],
    recipients: Sequence[bytes],
    *,
    span: Span,
    progress: Progress | None = None,
) -> int:
    """A file that shows only the bytes `span` of what `source` shows: its segments that hold them, as they are, under a
    header with an edit list for `recipients`. Returns the result's size."""
    header = bulk.read_header(source)
    opened = crypt4gh.open_header(header, private_keys)
    kept = edit_list.cut(edit_list.spans(opened.edit_list), *span)
    runs, moved = edit_list.gather(kept, SEGMENT)
    made = crypt4gh.rearrange(header, private_keys, recipients, edit_list.lengths(moved))
    sink.put([memoryview(made)], 0)
    pieces = [(low * CIPHER_SEGMENT, None if high is None else high * CIPHER_SEGMENT) for low, high in runs]
    return len(made) + bulk.copy(source, sink, at=len(made), pieces=pieces, progress=progress)


def look(source: Source, private_keys: Sequence[bytes] = ()) -> Found:
    """What can be seen of a file; with keys that must open it, its edit list too. Faults as `decrypt`."""
    header = bulk.read_header(source)
    opened = crypt4gh.open_header(header, private_keys) if private_keys else None
    body = source.size
    if body is None:
        body, room = 0, memoryview(bytearray(_PIECE))
        while found := source.fetch(room, body):
            body += len(found)
    return Found(
        packets=int.from_bytes(header[12:16], "little"),
        writers=crypt4gh.writers(header),
        header=len(header),
        body=body,
        plain=crypt4gh.plain_size(body),
        edit_list=opened.edit_list if opened else None,
    )
