"""Officers of the node's keys: who they are, and the one private key that each guards.

The private key is an X25519 key in a Crypt4GH key file (`valv.formats.keyfile`), under a passphrase: shares are sealed
to its public half. The key that signs orders (Ed25519) is derived from it by HKDF-SHA256 (RFC 5869), so that there is
one file to guard. The public half is one line: name, X25519 public key in hex, C2SP verifier key.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from valv.errors import FormatFault
from valv.formats import note
from valv.formats.crypt4gh import public_key

MOST: Final = 16
"""Officers of a node: as many as SLIP-39 has shares."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_INFO: Final = b"valv officer 1 orders"


class Officer(msgspec.Struct, frozen=True):
    """`share_key`: X25519 public key, hex, that shares are sealed for; `sign_key`: C2SP verifier key, of this name."""

    name: str
    share_key: str
    sign_key: str

    @classmethod
    def of(cls, name: str, private: bytes) -> Officer:
        """The public side of a raw X25519 private key (32 bytes). Raises `FormatFault` for a name that cannot be."""
        sign_key = note.verifier_key(name, note.public_bytes(signer(private)))
        return cls.read(f"{name} {public_key(private).hex()} {sign_key}")

    @classmethod
    def read(cls, line: str) -> Officer:
        """From its one line. Raises `FormatFault`."""
        parts = line.removesuffix("\n").split(" ")
        if len(parts) != 3 or not _NAME.fullmatch(parts[0]) or not _KEY.fullmatch(parts[1]):
            raise FormatFault(
                "an officer is one line: a name of letters, digits, '.', '_' and '-', a public key and a verifier key",
                "take the file that 'valv keys officer' wrote",
            )
        if note.read_verifier_key(parts[2])[0] != parts[0]:
            raise FormatFault(f"the verifier key of {parts[0]} is of another name")
        return cls(*parts)

    @property
    def written(self) -> str:
        return f"{self.name} {self.share_key} {self.sign_key}"

    @property
    def sign_public(self) -> bytes:
        """The raw Ed25519 key of `sign_key`: the same key has another verifier key under each name."""
        return note.read_verifier_key(self.sign_key)[2]


def signer(private: bytes) -> Ed25519PrivateKey:
    """The key that signs orders, of a raw X25519 private key."""
    seed = HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO).derive(private)
    return Ed25519PrivateKey.from_private_bytes(seed)


def sign(private: bytes, name: str, text: str) -> str:
    """`text`, an order or a note of one, with this officer's signature (added to those that it has)."""
    if "\n\n" in text:
        return note.cosign(signer(private), name, text)
    return note.sign(signer(private), name, text)
