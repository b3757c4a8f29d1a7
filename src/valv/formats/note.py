"""Signed notes and ledger checkpoints: C2SP `signed-note` and `tlog-checkpoint` with Ed25519.

A note is a text that ends in a newline, an empty line, and one line for each signature:
`— <key name> <base64 of a 4-byte key id and the signature>`. A verifier key is written
`<name>+<key id in hex>+<base64 of the algorithm byte and the public key>`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from valv.errors import FormatFault, IntegrityFault
from valv.formats.merkle import HASH_SIZE

MAX_NOTE: Final = 1_000_000
"""Characters; longer notes are refused before they are looked at."""
MAX_SIGNATURES: Final = 100
_ED25519: Final = b"\x01"
_PUBLIC_SIZE: Final = 32
_MARK: Final = "\u2014 "
_MAX_TREE: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: who is said to have signed, the 4-byte key id, the signature's bytes."""

    name: str
    key_id: bytes
    signature: bytes


def verifier_key(name: str, public: bytes) -> str:
    """The verifier key string of a 32-byte Ed25519 public key. Raises `FormatFault` on a wrong form."""
    _check_name(name)
    if len(public) != _PUBLIC_SIZE:
        raise FormatFault(f"an Ed25519 public key has {_PUBLIC_SIZE} bytes, not {len(public)}")
    return f"{name}+{_key_id(name, public).hex()}+{_encode(_ED25519 + public)}"


def read_verifier_key(vkey: str) -> tuple[str, bytes, bytes]:
    """The name, the 4-byte key id and the 32-byte public key of a verifier key string."""
    name, _, rest = vkey.partition("+")
    digits, _, encoded = rest.partition("+")
    _check_name(name)
    blob = _decode(encoded, "the verifier key")
    if blob[:1] != _ED25519 or len(blob) != 1 + _PUBLIC_SIZE:
        raise FormatFault(f"the verifier key of {name} is not an Ed25519 key")
    public = blob[1:]
    key_id = _key_id(name, public)
    if digits != key_id.hex():
        raise FormatFault(f"the verifier key of {name} does not match its own key id", "copy the whole key again")
    return name, key_id, public


def sign(private: Ed25519PrivateKey, name: str, text: str) -> str:
    """The note of `text` with one signature. `text` ends in a newline and has no other control characters."""
    _check_name(name)
    _check_text(text)
    return f"{text}\n{_line(private, name, text)}"


def cosign(private: Ed25519PrivateKey, name: str, note: str) -> str:
    """The note with one more signature line. The signatures that it already has are not verified."""
    _check_name(name)
    text, signatures = read(note)
    if len(signatures) >= MAX_SIGNATURES:
        raise FormatFault(f"a note has at most {MAX_SIGNATURES} signatures")
    return note + _line(private, name, text)


def read(note: str) -> tuple[str, list[Signature]]:
    """The text and the signatures of a note, none of them verified. Raises `FormatFault`."""
    if len(note) > MAX_NOTE:
        raise FormatFault(f"a signed note has at most {MAX_NOTE} characters")
    end = note.rfind("\n\n")
    if end < 0 or not note.endswith("\n") or len(note) == end + 2:
        raise FormatFault("this is not a signed note: a text, an empty line and signature lines")
    text, lines = note[: end + 1], note[end + 2 : -1].split("\n")
    _check_text(text)
    if len(lines) > MAX_SIGNATURES:
        raise FormatFault(f"a note has at most {MAX_SIGNATURES} signatures")
    return text, [_read_line(line) for line in lines]


def verify(note: str, vkey: str, *cosigners: str) -> str:
    """The text of a note that the key `vkey`, and each key of `cosigners`, has signed; other signatures are ignored.

    Raises `FormatFault` where a note or a key has the wrong form, `IntegrityFault` where a signature is missing or
    false.
    """
    text, signatures = read(note)
    for key in (vkey, *cosigners):
        _verify_one(text, signatures, key)
    return text


def _verify_one(text: str, signatures: list[Signature], vkey: str) -> None:
    name, key_id, public = read_verifier_key(vkey)
    mine = [one for one in signatures if one.name == name and one.key_id == key_id]
    if not mine:
        raise IntegrityFault(f"the note is not signed by the key {name}+{key_id.hex()}", "check the verifier key")
    for one in mine:
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(one.signature, text.encode())
        except InvalidSignature:
            raise IntegrityFault(
                f"the signature of {name} does not fit the note", "the text or the signature was changed"
            ) from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head of C2SP `tlog-checkpoint`: `origin` names the ledger, `size` counts leaves, `root` is 32 bytes."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def encode(self) -> str:
        """The note text. Raises `FormatFault` where a part cannot be written."""
        if not 0 <= self.size <= _MAX_TREE or len(self.root) != HASH_SIZE:
            raise FormatFault("a checkpoint needs a size from 0 and a root of 32 bytes")
        lines = (self.origin, str(self.size), _encode(self.root), *self.extensions)
        if any(not line or "\n" in line for line in lines):
            raise FormatFault("a line of a checkpoint must not be empty nor hold a line break")
        text = "".join(f"{line}\n" for line in lines)
        _check_text(text)
        return text

    @classmethod
    def decode(cls, text: str) -> Checkpoint:
        """Read a note text. Raises `FormatFault`."""
        _check_text(text)
        lines = text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):
            raise FormatFault("a checkpoint has three lines or more: origin, size and root, none of them empty")
        origin, digits, encoded, *extensions = lines
        if not (digits.isascii() and digits.isdecimal()) or len(digits) > 19 or (digits[0] == "0" and digits != "0"):
            raise FormatFault("the size in a checkpoint is a decimal number without leading zeros")
        size, root = int(digits), _decode(encoded, "the root of the checkpoint")
        if size > _MAX_TREE or len(root) != HASH_SIZE:
            raise FormatFault("a checkpoint needs a size below 2^63 and a root of 32 bytes")
        return cls(origin, size, root, tuple(extensions))


def public_bytes(private: Ed25519PrivateKey) -> bytes:
    """The 32-byte public key, as `verifier_key` takes it."""
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _line(private: Ed25519PrivateKey, name: str, text: str) -> str:
    return f"{_MARK}{name} {_encode(_key_id(name, public_bytes(private)) + private.sign(text.encode()))}\n"


def _read_line(line: str) -> Signature:
    name, space, encoded = line.removeprefix(_MARK).partition(" ")
    if not line.startswith(_MARK) or not space:
        raise FormatFault("a signature line must read '\u2014 <name> <base64>'")
    _check_name(name)
    blob = _decode(encoded, f"the signature of {name}")
    if len(blob) < 5:
        raise FormatFault(f"the signature of {name} is too short")
    return Signature(name, blob[:4], blob[4:])


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def _check_name(name: str) -> None:
    if not name or "+" in name or any(one.isspace() or not one.isprintable() for one in name):
        raise FormatFault("a key name must not be empty nor hold spaces, '+' or control characters")


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise FormatFault("the text of a note must end with a line break")
    if any((one < " " and one != "\n") or "\ud800" <= one <= "\udfff" for one in text):
        raise FormatFault("the text of a note must not hold control characters nor broken characters")


def _encode(blob: bytes) -> str:
    return base64.b64encode(blob).decode()


def _decode(encoded: str, what: str) -> bytes:
    try:
        blob = base64.b64decode(encoded.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise FormatFault(f"{what} is not base64") from None
    if _encode(blob) != encoded:  # one spelling only, so that a note cannot be altered without breaking it
        raise FormatFault(f"{what} is not base64 in its one canonical spelling")
    return blob
