"""Whole Crypt4GH files, encrypted and decrypted piece by piece in memory of a few segments."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.errors import FormatFault, IntegrityFault
from valv.formats import crypt4gh
from valv.formats.crypt4gh import CIPHER_SEGMENT, KEY, NONCE, OVERHEAD, SEGMENT

_FIRST = 1 << 16


def encrypt(source: BinaryIO, recipients: Sequence[bytes]) -> Iterator[bytes]:
    """The Crypt4GH file of what `source` holds, for these raw public keys."""
    data_key = secrets.token_bytes(KEY)
    aead = ChaCha20Poly1305(data_key)
    yield crypt4gh.build_header(data_key, recipients)
    while plain := _exactly(source, SEGMENT):
        nonce = secrets.token_bytes(NONCE)
        yield nonce + aead.encrypt(nonce, plain, None)


def read_header(source: BinaryIO) -> tuple[bytes, bytes]:
    """The header at the start of a file, and what was read of the body behind it. Raises `FormatFault`."""
    prefix = b""
    while (length := crypt4gh.header_length(prefix)) is None:
        more = source.read(_FIRST)
        if not more:
            raise FormatFault("the file ends within its Crypt4GH header", "get the whole file again")
        prefix += more
    return prefix[:length], prefix[length:]


def decrypt(source: BinaryIO, private_keys: Sequence[bytes]) -> Iterator[bytes]:
    """The plain bytes of a Crypt4GH file, as far as its edit list shows them.

    Raises `FormatFault`, `KeyFault` where no key opens the header, and `IntegrityFault` naming the segment that does
    not hold. Segments that are missing at the very end cannot be noticed here: compare the checksum.
    """
    header, first = read_header(source)
    opened = crypt4gh.open_header(header, private_keys)
    plain = _segments(source, first, [ChaCha20Poly1305(key) for key in opened.data_keys])
    return plain if opened.edit_list is None else _edited(plain, opened.edit_list)


def _segments(source: BinaryIO, first: bytes, aeads: Sequence[ChaCha20Poly1305]) -> Iterator[bytes]:
    for number in itertools.count():
        head, first = first[:CIPHER_SEGMENT], first[CIPHER_SEGMENT:]
        sealed = head + _exactly(source, CIPHER_SEGMENT - len(head))
        if not sealed:
            return
        if len(sealed) <= OVERHEAD:
            raise FormatFault(f"segment {number} is cut off", "get the whole file again")
        yield _opened(number, sealed, aeads)


def _opened(number: int, sealed: bytes, aeads: Sequence[ChaCha20Poly1305]) -> bytes:
    for aead in aeads:
        try:
            return aead.decrypt(sealed[:NONCE], sealed[NONCE:], None)
        except InvalidTag:
            continue
    raise IntegrityFault(f"segment {number} does not decrypt: it was altered or cut off", "get the whole file again")


def _edited(plain: Iterator[bytes], lengths: Sequence[int]) -> Iterator[bytes]:
    """Only what the edit list keeps: its lengths skip and keep in turn; after an even number of them the rest is
    kept, after an odd number it is dropped (Crypt4GH 1.0, section 4.2)."""
    spans = iter([(bool(turn % 2), length) for turn, length in enumerate(lengths)])
    last = (len(lengths) % 2 == 0, None)
    keep, left = next(spans, last)
    for piece in plain:
        while piece:
            taken, piece = (piece, b"") if left is None else (piece[:left], piece[left:])
            if left is not None:
                left -= len(taken)
            if keep and taken:
                yield taken
            while left == 0:
                keep, left = next(spans, last)


def _exactly(source: BinaryIO, count: int) -> bytes:
    """`count` bytes, fewer only at the end of the file."""
    whole = b""
    while len(whole) < count and (more := source.read(count - len(whole))):
        whole += more
    return whole
