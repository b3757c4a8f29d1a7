"""Plain bytes into the store: Crypt4GH segments under a fresh data key, the seal, and the digests, in one pass."""

from __future__ import annotations

import secrets
from typing import Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from typing_extensions import Buffer

from valv.formats.crypt4gh import CIPHER_SEGMENT, KEY, NONCE, OVERHEAD, SEGMENT, build_header
from valv.ports.storage import BodyWriter
from valv.vault.sealing import BATCH, Digest, SealingWriter, room

_BATCH_PLAIN: Final = BATCH * SEGMENT


class Sealed(msgspec.Struct, frozen=True):
    """A file that was encrypted into the store. `sha256` is over the plain bytes, `tree_root` the hash tree's;
    `header` is Crypt4GH's, for the recipient; sizes in bytes."""

    header: bytes
    size: int
    cipher_size: int
    segments: int
    seal_root: bytes
    sha256: bytes
    tree_root: bytes


class Encryptor:
    """Encrypts what is written to it for `recipient_public` (a raw Crypt4GH public key).

    The body goes to `writer` without header, pairs and hashes to `seal_writer`. Each segment gets a random nonce. For
    one thread. Storage faults come out of `write` and `finish`; after one, call `abort`.
    """

    def __init__(self, writer: BodyWriter, seal_writer: BodyWriter, recipient_public: bytes) -> None:
        data_key = secrets.token_bytes(KEY)
        self._header = build_header(data_key, [recipient_public])
        self._aead = ChaCha20Poly1305(data_key)
        self._out = SealingWriter(writer, seal_writer)
        self._digest = Digest()
        self._rooms: list[memoryview] = []  # the last one is filled while the other is still being hashed
        self._filled = 0

    def write(self, data: Buffer) -> None:
        """Whole batches are encrypted where they lie. The caller may change `data` when this returns."""
        rest = memoryview(data).cast("B")
        lent = False
        while rest:
            if not self._filled and len(rest) >= _BATCH_PLAIN:
                self._encrypt(rest[:_BATCH_PLAIN])
                lent = True
                rest = rest[_BATCH_PLAIN:]
                continue
            count = min(len(rest), _BATCH_PLAIN - self._filled)
            self._gathered()[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == _BATCH_PLAIN:
                self._encrypt_room()
        if lent:
            self._digest.wait()

    def finish(self) -> Sealed:
        """Encrypt what is left and commit the sidecar and the body; they are durable when this returns."""
        if self._filled:
            self._encrypt_room()
        sha256 = self._digest.finish()
        body = self._out.finish()
        return Sealed(
            header=self._header,
            size=body.size,
            cipher_size=body.cipher_size,
            segments=body.segments,
            seal_root=body.seal_root,
            sha256=sha256,
            tree_root=body.tree_root,
        )

    def abort(self) -> None:
        self._digest.close()
        self._out.abort()

    def _gathered(self) -> memoryview:
        """Where small pieces are gathered; who writes whole batches needs none."""
        if not self._rooms:
            self._rooms = [room(_BATCH_PLAIN) for _ in range(2)]
        return self._rooms[-1]

    def _encrypt_room(self) -> None:
        self._encrypt(self._gathered()[: self._filled])
        self._filled = 0
        self._rooms.reverse()

    def _encrypt(self, batch: memoryview) -> None:
        """`batch` must stay as it is until the digest was waited for."""
        self._digest.update(batch)
        cipher = self._out.buffer()
        nonces = secrets.token_bytes(NONCE * BATCH)
        end = 0
        for number, start in enumerate(range(0, len(batch), SEGMENT)):
            plain = batch[start : start + SEGMENT]
            nonce = nonces[NONCE * number : NONCE * (number + 1)]
            at = number * CIPHER_SEGMENT
            end = at + len(plain) + OVERHEAD
            cipher[at : at + NONCE] = nonce
            self._aead.encrypt_into(nonce, plain, None, cipher[at + NONCE : end])
        self._out.put(end)
