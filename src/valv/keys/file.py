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
from valv.errors import ConflictFault, FormatFault, InputFault, KeyFault, SealedFault, StorageFault
from valv.keys import disk
from valv.keys.memory import Secret

FORMAT: Final = "valv root key 1"
FILE: Final = "root.json"
NONCE: Final = 12
TAG: Final = 16
ROOT_LENGTH: Final = 32
SHORTEST_PASSPHRASE: Final = 8
_RESTORE: Final = "restore it from the key backup"


class Cost(msgspec.Struct, frozen=True):
    """What one guess of the passphrase costs: passes, lanes, and memory in KiB (RFC 9106, section 3.1)."""

    passes: int = 3
    lanes: int = 4
    memory: int = 256 << 10

    @property
    def sane(self) -> bool:
        return 1 <= self.passes <= 64 and 1 <= self.lanes <= 64 and 8 * self.lanes <= self.memory <= 4 << 20


class RootFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wrapped root key as it is kept (JSON, bytes in base64): `wrapped` is nonce + ciphertext + tag."""

    format: str
    cost: Cost
    salt: bytes
    wrapped: bytes = b""

    def bound(self) -> bytes:
        return msgspec.json.encode([self.format, self.cost, self.salt])

    @classmethod
    def decode(cls, data: bytes, place: object) -> RootFile:
        """Raises `FormatFault` naming `place` for anything else, and for a cost that nobody would choose."""
        try:
            file = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise FormatFault(f"{place} is not a root key", _RESTORE) from None
        if file.format != FORMAT or not file.cost.sane or len(file.salt) < 8:
            raise FormatFault(f"{place} is not a root key of this version", _RESTORE)
        return file


class Stretched:
    """A passphrase made into a key, kept while the root key is open so that the next one can be wrapped by it too."""

    def __init__(self, passphrase: bytes, cost: Cost, salt: bytes) -> None:
        self._cost = cost
        self._salt = salt
        argon = Argon2id(
            salt=salt, length=ROOT_LENGTH, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory
        )
        self._key = Secret.filled(ROOT_LENGTH, lambda page: argon.derive_into(passphrase, page))

    @classmethod
    def fresh(cls, passphrase: bytes, cost: Cost) -> Stretched:
        """With a salt of its own. Raises `InputFault` for fewer than 8 bytes."""
        if len(passphrase) < SHORTEST_PASSPHRASE:
            raise InputFault(f"the passphrase is shorter than {SHORTEST_PASSPHRASE} bytes", "choose a longer one")
        return cls(passphrase, cost, secrets.token_bytes(16))

    def again(self) -> Stretched:
        """The same, with a life of its own."""
        other = Stretched.__new__(Stretched)
        other._cost, other._salt = self._cost, self._salt
        with self._key.view() as key:
            other._key = Secret(key)
        return other

    @property
    def cost(self) -> Cost:
        return self._cost

    def seal(self, root: Secret) -> RootFile:
        blank = RootFile(FORMAT, self._cost, self._salt)
        with self._key.view() as key, root.view() as secret:
            return msgspec.structs.replace(blank, wrapped=wrap(key, secret, blank.bound()))

    def open(self, file: RootFile) -> Secret:
        """The root key. Raises `KeyFault` for a wrong passphrase or an altered file (they look the same)."""
        nonce, sealed = file.wrapped[:NONCE], file.wrapped[NONCE:]
        try:
            if len(sealed) != ROOT_LENGTH + TAG:
                raise InvalidTag
            with self._key.view() as key:
                cipher = ChaCha20Poly1305(key)
            return Secret.filled(ROOT_LENGTH, lambda page: cipher.decrypt_into(nonce, sealed, file.bound(), page))
        except InvalidTag:
            raise KeyFault(
                "the passphrase is wrong, or the root key file was altered",
                "type the passphrase again; if it stays, restore the file from the key backup",
            ) from None

    def wipe(self) -> None:
        self._key.wipe()


class SecretRoot:
    """A root key in this process's memory: implements `valv.ports.keys.RootKey`; safe for several threads. After `wipe`
    it raises `SealedFault`."""

    def __init__(self, root: Secret) -> None:
        """It takes `root` over, and wipes it in the end."""
        self._root = root
        self._mutex = threading.Lock()

    @property
    def locked(self) -> bool:
        """Whether the root key's memory is kept out of swap."""
        return self._root.locked

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """nonce (12) + ciphertext + tag (16); `context` is bound, not stored."""
        with self._opened() as root:
            return wrap(root, secret, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            with self._opened() as root:
                return unwrap(root, wrapped, context)
        except InvalidTag:
            raise KeyFault("a wrapped key or what is bound to it was altered", _RESTORE) from None

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
        return f"{type(self).__name__}()"


class FileRoot(SecretRoot):
    """Implements `valv.ports.keys.OpenRoot`: the root key lies in its folder as `root.json`, under the passphrase."""

    def __init__(self, root: Secret, stretched: Stretched) -> None:
        super().__init__(root)
        self._stretched = stretched

    @classmethod
    def create(cls, folder: Path, stretched: Stretched) -> FileRoot:
        """Make a root key. `stretched` is the new one's from now on, also where it cannot be made."""
        path = folder / FILE
        try:
            if path.exists():
                raise ConflictFault(f"{path} exists; a root key is never overwritten", "choose another folder")
            root = fresh_root()
            try:
                disk.write(path, msgspec.json.encode(stretched.seal(root)))
            except BaseException:
                root.wipe()
                disk.wipe(path)  # it may be there and not be durable
                raise
        except BaseException:
            stretched.wipe()
            raise
        return cls(root, stretched)

    def wipe(self) -> None:
        super().wipe()
        self._stretched.wipe()

    def renew(self, folder: Path, passphrase: bytes | None = None) -> FileRoot:
        with self._opened():  # nobody wipes meanwhile
            old = self._stretched
            stretched = old.again() if passphrase is None else Stretched.fresh(passphrase, old.cost)
        return self.create(folder, stretched)

    def discard(self, folder: Path) -> None:
        self.wipe()
        disk.wipe(folder / FILE)


class FileKeyring:
    """Implements `valv.ports.keys.Keyring`. `cost`: of new root keys."""

    sets_passphrase = True

    def __init__(self, _settings: Keys, cost: Cost = Cost()) -> None:  # noqa: B008 - frozen
        self._cost = cost

    def create(self, folder: Path, passphrase: bytes) -> FileRoot:
        return FileRoot.create(folder, Stretched.fresh(passphrase, self._cost))

    def open(self, folder: Path, passphrase: bytes) -> FileRoot:
        path = folder / FILE
        file = RootFile.decode(disk.read(path), path)
        stretched = Stretched(passphrase, file.cost, file.salt)
        try:
            return FileRoot(stretched.open(file), stretched)
        except BaseException:
            stretched.wipe()
            raise

    def discard(self, folder: Path, passphrase: bytes) -> None:  # noqa: ARG002 - others need it
        disk.wipe(folder / FILE)


def fresh_root() -> Secret:
    """A new root key, straight from the kernel into its page."""

    def fill(page: memoryview[int]) -> None:
        with open("/dev/urandom", "rb", buffering=0) as random:  # noqa: PTH123 - no path of ours
            if random.readinto(page) != len(page):
                raise StorageFault("/dev/urandom gave too little")

    return Secret.filled(ROOT_LENGTH, fill)


def wrap(key: bytes | memoryview[int], secret: bytes | memoryview[int], bound: bytes) -> bytes:
    """nonce (12) + ciphertext + tag (16)."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, secret, bound)


def unwrap(key: bytes | memoryview[int], wrapped: bytes, bound: bytes) -> bytes:
    """Raises `InvalidTag`."""
    if len(wrapped) < NONCE + TAG:
        raise InvalidTag
    return ChaCha20Poly1305(key).decrypt(wrapped[:NONCE], wrapped[NONCE:], bound)
