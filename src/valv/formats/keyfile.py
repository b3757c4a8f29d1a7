"""Crypt4GH key files: public and private keys as text, as the reference tool and others write them.

Between the BEGIN and END lines stands base64. Of a public key: its 32 bytes. Of a private key, where `string` is a
big-endian u16 length and as many bytes:

    "c4gh-v1" | string KDF | if KDF is not "none": string (rounds u32 big-endian | salt)
              | string cipher | string key material | optionally: string comment

The key material is the 32 bytes themselves under cipher "none", else nonce (12), ciphertext and tag of
ChaCha20-Poly1305 under the key that the KDF makes of the passphrase. Read: scrypt (N = 2^14, r = 8, p = 1), bcrypt,
PBKDF2 and none. Written: scrypt or none.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.errors import FormatFault, KeyFault
from valv.formats.crypt4gh import KEY, NONCE

_MAGIC: Final = b"c4gh-v1"
_NONE: Final = b"none"
_CIPHER: Final = b"chacha20_poly1305"
_SALT: Final = 16
_MAX_ROUNDS: Final = {b"bcrypt": 300, b"pbkdf2_hmac_sha256": 2_000_000}
"""A few seconds of work, and several times what other programs ask for."""


def read_public(text: str) -> bytes:
    """The raw public key (32 bytes). Raises `FormatFault`."""
    key = _unwrap(text, "PUBLIC")
    if len(key) != KEY:
        raise FormatFault(f"the public key has {len(key)} bytes, not {KEY}")
    return key


def write_public(public: bytes) -> str:
    return _wrap(public, "PUBLIC")


def is_locked(text: str) -> bool:
    """Whether reading this private key needs a passphrase. Raises `FormatFault`."""
    return _Fields(_unwrap(text, "PRIVATE")).kdf != _NONE


def read_private(text: str, passphrase: Callable[[], str] | None = None) -> bytes:
    """The raw private key (32 bytes).

    `passphrase` is asked only where the file is locked. Raises `FormatFault` where the file breaks its format and
    `KeyFault` where the passphrase is missing or wrong.
    """
    fields = _Fields(_unwrap(text, "PRIVATE"))
    if fields.kdf == _NONE:
        return _checked(fields.material)
    if passphrase is None:
        raise KeyFault("the private key is locked", "give its passphrase")
    key = _derive(fields.kdf, passphrase().encode(), fields.salt, fields.rounds)
    nonce, sealed = fields.material[:NONCE], fields.material[NONCE:]
    if len(nonce) != NONCE:
        raise FormatFault("the private key file is truncated")
    try:
        return _checked(ChaCha20Poly1305(key).decrypt(nonce, sealed, None))
    except InvalidTag:
        raise KeyFault("the passphrase does not open the private key", "try the passphrase again") from None


def read_comment(text: str) -> str:
    """What stands beside a private key in its file, '' for nothing. It is not authenticated. Raises `FormatFault`."""
    return _Fields(_unwrap(text, "PRIVATE")).comment


def write_private(private: bytes, passphrase: str = "", comment: str = "") -> str:
    """The private key as a file, locked by scrypt unless `passphrase` is empty."""
    if passphrase:
        salt, nonce = secrets.token_bytes(_SALT), secrets.token_bytes(NONCE)
        sealed = ChaCha20Poly1305(_derive(b"scrypt", passphrase.encode(), salt, 0)).encrypt(nonce, private, None)
        strings = [b"scrypt", bytes(4) + salt, _CIPHER, nonce + sealed]
    else:
        strings = [_NONE, _NONE, private]
    if comment:
        strings.append(comment.encode())
    return _wrap(_MAGIC + b"".join(len(part).to_bytes(2, "big") + part for part in strings), "PRIVATE")


class _Fields:
    """The parts of a private key file."""

    def __init__(self, data: bytes) -> None:
        if not data.startswith(_MAGIC):
            raise FormatFault("this is not a Crypt4GH private key", "make one with 'crypt4gh-keygen'")
        self._rest = data[len(_MAGIC) :]
        self.kdf = self._string()
        self.rounds, self.salt = 0, b""
        if self.kdf != _NONE:
            options = self._string()
            self.rounds, self.salt = int.from_bytes(options[:4], "big"), options[4:]
        cipher = self._string()
        if cipher != (_NONE if self.kdf == _NONE else _CIPHER):
            raise FormatFault("the private key file uses an unknown cipher")
        self.material = self._string()
        self.comment = self._string().decode("utf-8", "replace") if self._rest else ""

    def _string(self) -> bytes:
        length = int.from_bytes(self._rest[:2], "big")
        part = self._rest[2 : 2 + length]
        if len(self._rest) < 2 or len(part) != length:
            raise FormatFault("the private key file is truncated")
        self._rest = self._rest[2 + length :]
        return part


def _derive(kdf: bytes, passphrase: bytes, salt: bytes, rounds: int) -> bytes:
    if kdf == b"scrypt":
        return hashlib.scrypt(passphrase, salt=salt, n=1 << 14, r=8, p=1, dklen=KEY)
    if kdf in _MAX_ROUNDS and not 0 < rounds <= _MAX_ROUNDS[kdf]:
        raise FormatFault(f"the private key file asks for {rounds} rounds")
    if kdf == b"pbkdf2_hmac_sha256":
        return hashlib.pbkdf2_hmac("sha256", passphrase, salt, rounds, dklen=KEY)
    if kdf == b"bcrypt":
        try:
            import bcrypt  # an optional package: only old key files need it
        except ImportError:
            hint = "install the Python package 'bcrypt', or lock the key anew with 'crypt4gh-keygen'"
            raise KeyFault("the private key is locked by bcrypt, which is not installed here", hint) from None
        if not passphrase or not salt:
            raise KeyFault("the passphrase does not open the private key", "try the passphrase again")
        return bcrypt.kdf(passphrase, salt=salt, desired_key_bytes=KEY, rounds=rounds, ignore_few_rounds=True)
    raise FormatFault("the private key file uses an unknown key derivation")


def _checked(key: bytes) -> bytes:
    if len(key) != KEY:
        raise FormatFault(f"the private key has {len(key)} bytes, not {KEY}")
    return key


def _wrap(data: bytes, kind: str) -> str:
    body = base64.b64encode(data).decode()
    return f"-----BEGIN CRYPT4GH {kind} KEY-----\n{body}\n-----END CRYPT4GH {kind} KEY-----\n"


def _unwrap(text: str, kind: str) -> bytes:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    begins, ends = f"-----BEGIN CRYPT4GH {kind} KEY-----", f"-----END CRYPT4GH {kind} KEY-----"
    # Some writers put ENCRYPTED before PRIVATE; what is inside says it better.
    if lines:
        lines[0], lines[-1] = (line.replace(" ENCRYPTED ", " ") for line in (lines[0], lines[-1]))
    if len(lines) < 3 or lines[0] != begins or lines[-1] != ends:
        raise FormatFault(f"this is not a Crypt4GH {kind.lower()} key file", "make keys with 'crypt4gh-keygen'")
    try:
        return base64.b64decode("".join(lines[1:-1]), validate=True)
    except ValueError:  # binascii.Error, or a character that is not ASCII
        raise FormatFault(f"the Crypt4GH {kind.lower()} key file holds no valid base64") from None
