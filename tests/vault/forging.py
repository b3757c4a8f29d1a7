"""A segment with another's nonce and tag, made with the data key (RFC 8439)."""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from valv.formats.crypt4gh import NONCE, TAG

P = (1 << 130) - 5
BLOCK = 16


def keystream(key: bytes, nonce: bytes, length: int) -> bytes:
    """ChaCha20 from block 0, whose first half is Poly1305's key (RFC 8439, section 2.6)."""
    return Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), None).encryptor().update(bytes(length))


def forge(key: bytes, segment: bytes, at: int, plain: bytes) -> bytes:
    """Another segment with the nonce and the tag of `segment`, with `plain` at plain byte `at`.

    Poly1305 is the value at r of a polynomial whose coefficients are the blocks, modulo 2^130 - 5: what one block adds,
    another takes away again. The other is the block that follows; it must come out below 2^128, one try in four, so a
    block between them is drawn anew until it does.
    """
    assert at % BLOCK == 0 and len(plain) % BLOCK == 0
    nonce, cipher = segment[:NONCE], bytearray(segment[NONCE:-TAG])
    stream = keystream(key, nonce, 64 + len(cipher))
    r = int.from_bytes(stream[:BLOCK], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    old = bytes(cipher)
    wanted = bytes(a ^ b for a, b in zip(plain, stream[64 + at :], strict=False))
    cipher[at : at + len(wanted)] = wanted
    free, solved = at + len(wanted), at + len(wanted) + BLOCK
    while True:
        cipher[free:solved] = secrets.token_bytes(BLOCK)
        change = 0
        for block in range(at, solved, BLOCK):
            now, before = (int.from_bytes(data[block : block + BLOCK], "little") for data in (cipher, old))
            change = (change + now - before) * r % P
        value = (int.from_bytes(old[solved : solved + BLOCK], "little") - change) % P
        if value < 1 << 128:
            cipher[solved : solved + BLOCK] = value.to_bytes(BLOCK, "little")
            return nonce + bytes(cipher) + segment[-TAG:]
