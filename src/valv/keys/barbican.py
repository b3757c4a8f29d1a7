"""The root key in a key manager of OpenStack: the keyring backend `barbican`.

The node makes the root key and wraps it by the passphrase, exactly as the backend `file` does; what `file` would put
into the key folder is stored as a secret in Barbican instead. So neither the folder with the passphrase nor Barbican
alone opens the node. In the folder lies which secret it is, and the digest of what was stored: another payload, be it
another node's or an older one of this node, is found before the passphrase is used.

The reference is durable in the folder before the payload goes to Barbican. A crash on the way leaves, at the most, a
secret whose root key never wrapped anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from pathlib import Path
from typing import Final
from uuid import UUID

import msgspec

from valv.config import Keys
from valv.errors import ConflictFault, Fault, FormatFault, KeyFault
from valv.keys import disk
from valv.keys.file import FILE, Cost, RootFile, SecretRoot, Stretched, fresh_root
from valv.keys.keymanager import KeyManager
from valv.keys.memory import Secret

FORMAT: Final = "valv barbican root key 1"
NAME: Final = "valv root key"
"""Of a secret, where `keys.key` names none."""


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies in the key folder in place of a root key (JSON, bytes in base64). `secret`: its UUID in Barbican;
    `digest`: SHA-256 of the payload. The payload has a random salt, so the digest helps nobody to guess a passphrase.
    """

    format: str
    secret: str
    digest: bytes

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Raises `FormatFault`, `MissingFault`."""
        try:
            found = msgspec.json.decode(disk.read(path), type=cls)
            whole = found.format == FORMAT and str(UUID(found.secret)) == found.secret
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            whole = False
        if not whole:
            raise FormatFault(
                f"{path} is of no root key in a key manager", "restore it from the key backup, or set keys.backend back"
            )
        return found


class BarbicanRoot(SecretRoot):
    """Implements `valv.ports.keys.OpenRoot`. Once it is open, Barbican is asked by `renew` and `discard` alone."""

    def __init__(self, root: Secret, stretched: Stretched, manager: KeyManager, name: str, secret: str) -> None:
        super().__init__(root)
        self._stretched = stretched
        self._manager = manager
        self._name = name
        self._secret = secret

    @classmethod
    def create(cls, folder: Path, stretched: Stretched, manager: KeyManager, name: str) -> BarbicanRoot:
        """Make it, and put its reference into `folder`. On any fault nothing stays in the folder."""
        path = folder / FILE
        try:
            if path.exists():
                raise ConflictFault(f"{path} exists; a root key is never overwritten", "choose another folder")
            root = fresh_root()
            payload = msgspec.json.encode(stretched.seal(root))
            digest = hashlib.sha256(payload).digest()

            def note(secret: str) -> None:
                disk.write(path, msgspec.json.encode(Reference(FORMAT, secret, digest)))

            try:
                secret = manager.keep(name, payload, note)
            except BaseException:
                root.wipe()
                with contextlib.suppress(Fault):
                    disk.wipe(path)
                raise
            return cls(root, stretched, manager, name, secret)
        except BaseException:
            stretched.wipe()
            raise

    def wipe(self) -> None:
        super().wipe()
        self._stretched.wipe()

    def renew(self, folder: Path, passphrase: bytes | None = None) -> BarbicanRoot:
        with self._opened():  # raises `SealedFault`; nor is it wiped meanwhile
            stretched = self._stretched.again()
        if passphrase is not None:
            stretched.wipe()
            stretched = Stretched.fresh(passphrase, self._stretched.cost)
        return self.create(folder, stretched, self._manager, self._name)

    def discard(self, folder: Path) -> None:
        """Delete the secret in Barbican, then the reference. Where Barbican is away (`UnreachableFault`) the reference
        stays, and this can be repeated. Raises `ConflictFault` where `folder` is of another root key."""
        path = folder / FILE
        if path.exists() and not _overwritten(path) and Reference.read(path).secret != self._secret:
            raise ConflictFault(f"{folder} is of another root key", "discard each root key with its own folder")
        self.wipe()
        self._manager.delete(self._secret)
        disk.wipe(path)


class BarbicanKeyring:
    """Implements `valv.ports.keys.Keyring`. `cost`: of new root keys."""

    sets_passphrase = True

    def __init__(self, settings: Keys, cost: Cost = Cost()) -> None:  # noqa: B008 - frozen
        self._manager = KeyManager(settings)
        self._name = settings.key or NAME
        self._cost = cost

    def create(self, folder: Path, passphrase: bytes) -> BarbicanRoot:
        """Raises besides `ConfigFault` where the cloud cannot be used, `UnreachableFault` where it does not answer."""
        return BarbicanRoot.create(folder, Stretched.fresh(passphrase, self._cost), self._manager, self._name)

    def open(self, folder: Path, passphrase: bytes) -> BarbicanRoot:
        """Raises besides `MissingFault` where Barbican has the secret no more, and as `create`."""
        path = folder / FILE
        reference = Reference.read(path)
        payload = self._manager.read(reference.secret)
        if not hmac.compare_digest(hashlib.sha256(payload).digest(), reference.digest):
            raise KeyFault(
                f"what the key manager holds as {reference.secret} is not the root key that {folder} was made with",
                "it was altered or put in another's place: restore it in Barbican, and look who may write there",
            )
        file = RootFile.decode(payload, f"the secret {reference.secret}")
        stretched = Stretched(passphrase, file.cost, file.salt)
        try:
            return BarbicanRoot(stretched.open(file), stretched, self._manager, self._name, reference.secret)
        except BaseException:
            stretched.wipe()
            raise

    def discard(self, folder: Path, passphrase: bytes) -> None:  # noqa: ARG002 - a token needs it
        """Raises as `BarbicanRoot.discard`, and `FormatFault` where the file there is of no root key in Barbican."""
        path = folder / FILE
        if path.exists():
            if not _overwritten(path):
                self._manager.delete(Reference.read(path).secret)
            disk.wipe(path)

    def __repr__(self) -> str:
        return "BarbicanKeyring()"


def _overwritten(path: Path) -> bool:
    """Whether it was being removed when the node stopped: its secret was deleted before."""
    return not any(disk.read(path))
