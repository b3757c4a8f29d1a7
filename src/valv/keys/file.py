"""The root key in a file, wrapped by a passphrase: the keyring backend `file`.

The passphrase becomes a key by Argon2id (RFC 9106); the root key, 32 random bytes, is wrapped with ChaCha20-Poly1305
(RFC 8439). All parameters are bound as associated data. Everything that `keyd` keeps is wrapped by the root key in the
same way, each under its own context.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from valv.config import Keys
from valv.errors import ConflictFault, FormatFault, InputFault, KeyFault, SealedFault
from valv.keys import disk
from valv.keys.memory import Secret

FORMAT: Final = "valv root key 1"
FILE: Final = "root.json"
NONCE: Final = 12
ROOT_LENGTH: Final = 32
SHORTEST_PASSPHRASE: Final = 8


class Cost(msgspec.Struct, frozen=True):
    """What one guess of the passphrase costs: passes, lanes, and memory in KiB (RFC 9106, section 3.1)."""

    passes: int = 3
    lanes: int = 4
    memory: int = 256 << 10

    @property
    def sane(self) -> bool:
        return 1 <= self.passes <= 64 and 1 <= self.lanes <= 64 and 8 * self.lanes <= self.memory <= 4 << 20


class RootFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file as it lies on disk (JSON, bytes in base64): `wrapped` is nonce + ciphertext + tag."""

    format: str
    cost: Cost
    salt: bytes
    wrapped: bytes

    def bound(self) -> bytes:
        return msgspec.json.encode([self.format, self.cost, self.salt])


class FileRoot:
    """An opened root key. Implements `valv.ports.keys.OpenRoot`; safe for several threads. After `wipe` it raises
    `SealedFault`."""

    def __init__(self, root: Secret) -> None:
        self._root = root
        self._mutex = threading.Lock()

    @classmethod
    def create(cls, path: Path, passphrase: bytes, cost: Cost = Cost()) -> FileRoot:  # noqa: B008 - frozen
        """Make a new root key and write it to `path`, wrapped by the passphrase (at least 8 bytes)."""
        if len(passphrase) < SHORTEST_PASSPHRASE:
            raise InputFault(f"the passphrase is shorter than {SHORTEST_PASSPHRASE} bytes", "choose a longer one")
        if path.exists():
            raise ConflictFault(f"{path} exists; a root key is never overwritten", "choose another folder")
        blank = RootFile(FORMAT, cost, secrets.token_bytes(16), b"")
        root = secrets.token_bytes(ROOT_LENGTH)
        wrapped = _wrap(_stretch(passphrase, blank), root, blank.bound())
        disk.write(path, msgspec.json.encode(msgspec.structs.replace(blank, wrapped=wrapped)))
        return cls(Secret(root))

    @classmethod
    def open(cls, path: Path, passphrase: bytes) -> FileRoot:
        """Unwrap the root key. Raises `KeyFault` for a wrong passphrase or an altered file (they look the same),
        `FormatFault` for a file of another kind, `MissingFault` where there is none."""
        try:
            file = msgspec.json.decode(disk.read(path), type=RootFile)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise FormatFault(f"{path} is not a root key", "restore it from the key backup") from None
        if file.format != FORMAT or not file.cost.sane or len(file.salt) < 8:
            raise FormatFault(f"{path} is not a root key of this version", "restore it from the key backup")
        try:
            return cls(Secret(_unwrap(_stretch(passphrase, file), file.wrapped, file.bound())))
        except InvalidTag:
            raise KeyFault(
                "the passphrase is wrong, or the root key file was altered",
                "type the passphrase again; if it stays, restore the file from the key backup",
            ) from None

    @property
    def locked(self) -> bool:
        """Whether the root key's memory is kept out of swap."""
        return self._root.locked

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """nonce (12) + ciphertext + tag (16); `context` is bound, not stored."""
        with self._opened() as root:
            return _wrap(root, secret, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            with self._opened() as root:
                return _unwrap(root, wrapped, context)
        except InvalidTag:
            raise KeyFault(
                "a wrapped key or what is bound to it was altered", "restore it from the key backup"
            ) from None

    def wipe(self) -> None:
        """Forget the root key, once nobody is using it."""
        with self._mutex:
            self._root.wipe()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[memoryview[int]]:
        with self._mutex:
            if self._root.wiped:
                raise SealedFault
            with self._root.view() as root:
                yield root

    def __repr__(self) -> str:
        return "FileRoot()"


class FileKeyring:
    """Implements `valv.ports.keys.Keyring`: the root key lies in the key folder as `root.json`. `cost`: of new ones."""

    def __init__(self, _settings: Keys, cost: Cost = Cost()) -> None:  # noqa: B008 - frozen
        self._cost = cost

    def create(self, folder: Path, passphrase: bytes) -> FileRoot:
        return FileRoot.create(folder / FILE, passphrase, self._cost)

    def open(self, folder: Path, passphrase: bytes) -> FileRoot:
        return FileRoot.open(folder / FILE, passphrase)

    def discard(self, folder: Path, passphrase: bytes) -> None:  # noqa: ARG002 - others need it
        disk.wipe(folder / FILE)


def _stretch(passphrase: bytes, file: RootFile) -> bytes:
    cost = file.cost
    argon = Argon2id(
        salt=file.salt, length=ROOT_LENGTH, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory
    )
    return argon.derive(passphrase)


def _wrap(key: bytes | memoryview[int], secret: bytes, bound: bytes) -> bytes:
    nonce = secrets.token_bytes(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, secret, bound)


def _unwrap(key: bytes | memoryview[int], wrapped: bytes, bound: bytes) -> bytes:
    if len(wrapped) < NONCE + 16:
        raise InvalidTag
    return ChaCha20Poly1305(key).decrypt(wrapped[:NONCE], wrapped[NONCE:], bound)
