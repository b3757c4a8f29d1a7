"""What officers hold shares of: the recovery key, and what unseals the node where it takes two persons.

The recovery key is a second root key: the key backup is wrapped by it, so that the first one need not leave its token.
The key holder keeps it wrapped by the root key, to bring the backup up to date; each generation has its own.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag

from valv.errors import FormatFault, KeyFault
from valv.formats import shares
from valv.formats.officer import Officer
from valv.keys import disk
from valv.keys.file import SecretRoot, unwrap, wrap
from valv.keys.memory import Secret
from valv.ports.keys import RootKey

FILE: Final = "recovery.json"
UNSEAL: Final = "unseal.json"
T = TypeVar("T")
_RECOVERY: Final = b"valv recovery key 1"
_UNSEAL: Final = b"valv unsealing 1"


class Recovery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`threshold` of the `shares` (officer → sealed share) give the recovery key. `wrapped`: the same under the root
    key, empty in the key backup."""

    threshold: int
    shares: dict[str, bytes]
    wrapped: bytes = b""

    @classmethod
    def deal(cls, officers: Sequence[Officer], threshold: int, root: RootKey) -> Recovery:
        """A new recovery key, dealt to the officers."""
        key = secrets.token_bytes(shares.SECRET)
        return cls(threshold, _dealt(key, officers, threshold), root.wrap(key, _RECOVERY))

    def key(self, root: RootKey) -> SecretRoot:
        return SecretRoot(Secret(root.unwrap(self.wrapped, _RECOVERY)))

    def check(self, words: Sequence[str], root: RootKey) -> None:
        """Raises `KeyFault` unless these shares give the key."""
        if not hmac.compare_digest(shares.combine(words), root.unwrap(self.wrapped, _RECOVERY)):
            raise KeyFault("these shares are not of the node's present keys", "take those of its last ceremony")

    def outside(self) -> bytes:
        """The file of the key backup."""
        return msgspec.json.encode(msgspec.structs.replace(self, wrapped=b""))


class Unsealing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`persons` of the `shares` (officer → sealed share) open `wrapped`, the passphrase of the keyring backend."""

    persons: int
    shares: dict[str, bytes]
    wrapped: bytes

    @classmethod
    def deal(cls, officers: Sequence[Officer], persons: int, passphrase: bytes) -> Unsealing:
        key = secrets.token_bytes(shares.SECRET)
        return cls(persons, _dealt(key, officers, persons), wrap(key, passphrase, _UNSEAL))

    def passphrase(self, words: Sequence[str]) -> bytes:
        """Raises `KeyFault` where the shares do not fit together or belong to something else."""
        try:
            return unwrap(shares.combine(words), self.wrapped, _UNSEAL)
        except InvalidTag:
            raise KeyFault("these shares do not unseal this node", "take those of its last ceremony") from None


def _dealt(key: bytes, officers: Sequence[Officer], threshold: int) -> dict[str, bytes]:
    words = shares.split(key, threshold, len(officers))
    return {
        officer.name: shares.seal(share, bytes.fromhex(officer.share_key))
        for officer, share in zip(officers, words, strict=True)
    }


def read(folder: Path) -> Recovery | None:
    """None before the first ceremony. Raises `FormatFault`."""
    return _read(folder / FILE, Recovery)


def read_unsealing(folder: Path) -> Unsealing | None:
    """None where the passphrase alone unseals. Raises `FormatFault`."""
    return _read(folder / UNSEAL, Unsealing)


def write(folder: Path, given: Recovery, unsealing: Unsealing | None) -> None:
    """Into the folder of a new generation."""
    disk.write(folder / FILE, msgspec.json.encode(given))
    if unsealing is not None:
        disk.write(folder / UNSEAL, msgspec.json.encode(unsealing))


def _read(path: Path, kind: type[T]) -> T | None:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(disk.read(path), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault(f"{path} was altered or is damaged", "restore it from the key backup") from None
