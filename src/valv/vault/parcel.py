"""Whole Crypt4GH files, header and all, in a store: what a backup keeps besides bodies.

Any Crypt4GH program opens one. Nothing here tells whether segments are all there and in order: whoever writes a parcel
keeps the SHA-256 of its stored bytes, and whoever reads it compares before the content is trusted.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.errors import FormatFault, IntegrityFault
from valv.formats import crypt4gh
from valv.formats.crypt4gh import CIPHER_SEGMENT, KEY, NONCE, SEGMENT
from valv.ports.storage import Body, Storage

_BATCH: Final = 16
"""Segments that are read at a time: 1 MiB."""
LONGEST_LINE: Final = 64 << 20
"""Bytes of one line."""


class Parcel(msgspec.Struct, frozen=True):
    """What was written. `size`: stored bytes, header included; `sha256`: of them, hex."""

    size: int
    sha256: str


def write(store: Storage, name: str, pieces: Iterable[bytes], recipient: bytes) -> Parcel:
    """Encrypt `pieces` for `recipient` (a raw public key) into the body `name`. Flat memory. Nothing is under the name
    after a fault."""
    data_key = secrets.token_bytes(KEY)
    header = crypt4gh.build_header(data_key, [recipient])
    aead, digest, size = ChaCha20Poly1305(data_key), hashlib.sha256(), 0
    writer = store.writer(name)
    try:
        for stored in _stored(header, aead, pieces):
            writer.write(stored)
            digest.update(stored)
            size += len(stored)
        writer.commit()
    except BaseException:
        writer.abort()
        raise
    return Parcel(size, digest.hexdigest())


def _stored(header: bytes, aead: ChaCha20Poly1305, pieces: Iterable[bytes]) -> Iterator[bytes]:
    def sealed(plain: bytes | bytearray) -> bytes:
        nonce = secrets.token_bytes(NONCE)
        return nonce + aead.encrypt(nonce, plain, None)

    yield header
    rest = bytearray()
    for piece in pieces:
        rest += piece
        while len(rest) >= SEGMENT:
            yield sealed(bytes(rest[:SEGMENT]))
            del rest[:SEGMENT]
    if rest:
        yield sealed(rest)


def read(store: Storage, name: str, private: bytes, wanted: Parcel | None) -> Iterator[bytes]:
    """The plain bytes of the body `name`, a segment at a time. `wanted`: what it must be, None where something else
    will tell.

    Raises `KeyFault` where `private` (a raw key) does not open it, `IntegrityFault` where it is not what is wanted: at
    the end, when all was given out; so nothing of it may be believed before.
    """
    body = store.open(name)
    try:
        yield from _read(body, name, private, wanted)
    finally:
        body.close()


def _read(body: Body, name: str, private: bytes, wanted: Parcel | None) -> Iterator[bytes]:
    if wanted is not None and body.size != wanted.size:
        raise IntegrityFault(f"{name} has {body.size} bytes, not {wanted.size}", "the backup was altered or damaged")
    head = _piece(body, 0, min(body.size, crypt4gh.MAX_HEADER))
    length = crypt4gh.header_length(head)
    if length is None:
        raise FormatFault(f"{name} is truncated", "the backup was altered or damaged")
    digest = hashlib.sha256(head[:length])
    keys = crypt4gh.open_header(head[:length], [private]).data_keys
    aeads = [ChaCha20Poly1305(key) for key in keys]
    at = length
    while at < body.size:
        stored = _piece(body, at, min(_BATCH * CIPHER_SEGMENT, body.size - at))
        digest.update(stored)
        for start in range(0, len(stored), CIPHER_SEGMENT):
            yield _opened(aeads, stored[start : start + CIPHER_SEGMENT], name)
        at += len(stored)
    if wanted is not None and digest.hexdigest() != wanted.sha256:
        raise IntegrityFault(f"{name} is not what was written", "the backup was altered or damaged")


def _opened(aeads: list[ChaCha20Poly1305], segment: bytes, name: str) -> bytes:
    for aead in aeads:
        try:
            return aead.decrypt(segment[:NONCE], segment[NONCE:], None)
        except (InvalidTag, ValueError):
            continue
    raise IntegrityFault(f"{name}: a segment does not open", "the backup was altered or damaged")


def _piece(body: Body, at: int, count: int) -> bytes:
    buffer = bytearray(count)
    if body.pread_into(buffer, at) != count:
        raise IntegrityFault("a stored file ended early", "the backup was altered or damaged")
    return bytes(buffer)


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a text that comes in pieces, without their ends. Raises `FormatFault` where the last one has none,
    or one is longer than 64 MiB."""
    rest = bytearray()
    for piece in pieces:
        rest += piece
        if b"\n" not in piece:
            if len(rest) > LONGEST_LINE:
                raise FormatFault("a line of the backup is too long", "the backup was altered or damaged")
            continue
        *whole, last = bytes(rest).split(b"\n")
        yield from whole
        rest = bytearray(last)
    if rest:
        raise FormatFault("the backup ends in the middle of a line", "the backup was altered or damaged")
