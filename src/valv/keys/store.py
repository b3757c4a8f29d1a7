"""The key holder's own folder: wrapped private keys, and the last signed checkpoint of the ledger.

    root.json         the root key, wrapped (written by the keyring backend)
    node.json         the node's name, its intake key pair (X25519) and its ledger key pair (Ed25519)
    index.json        which key ids exist, at which version, and which were destroyed
    checkpoint.json   size and root of the last signed checkpoint
    keys/<id>.json    one key pair: class, `anonymised` confirmed or not, version, public half, wrapped private half

Everything but the root key is authenticated under it: a changed field, a record moved to another id, an older copy of
a single record put back, or a destroyed one, is found when the key is used and raises `KeyFault`. What cannot be found
here is the whole folder replaced by an older copy of itself; the ledger's witnesses find that.

Every change is durable before the call returns, and a crash between any two steps leaves either the old state or the
new one. The folder belongs to one process: it is locked while open.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from valv.errors import (
    ConflictFault,
    InputFault,
    IntegrityFault,
    KeyFault,
    MissingFault,
    Refusal,
    RefusedFault,
    StorageFault,
)
from valv.formats import crypt4gh, merkle
from valv.keys import disk
from valv.ports.keys import KeyClass, RootKey

KEY_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
"""A key id is also a file name: no separators, no leading dot."""
RESTORE: Final = "restore the key folder from the key backup"

T = TypeVar("T")


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key pair as it lies on disk. All but `wrapped` is bound to `wrapped` as associated data."""

    key_id: str
    key_class: KeyClass
    confirmed: bool
    version: int
    public: bytes
    wrapped: bytes = b""

    def context(self) -> bytes:
        return _context("key", self.key_id, self.key_class, self.confirmed, self.version, self.public)

    @property
    def may_leave(self) -> bool:
        """Whether headers under this key may be sealed to keys from outside the node."""
        return self.key_class == "anonymised" and self.confirmed


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The node's own keys. Name and public halves are bound to both wrapped private halves."""

    name: str
    intake_public: bytes
    log_public: bytes
    intake_wrapped: bytes = b""
    log_wrapped: bytes = b""

    def context(self, purpose: str) -> bytes:
        return _context("node", purpose, self.name, self.intake_public, self.log_public)


class Index(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Key ids with their versions, and the ids that were destroyed (which never come back)."""

    versions: dict[str, int]
    destroyed: frozenset[str] = frozenset()


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last signed size and RFC 9162 root (32 bytes) of the ledger."""

    size: int
    root: bytes


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file whose content is plain but authenticated: `seal` is its SHA-256, wrapped by the root key."""

    content: msgspec.Raw
    seal: bytes


class Store:
    """The opened folder. Safe for several threads. `root` must be the root key it was made with."""

    def __init__(self, path: Path, root: RootKey) -> None:
        """Open and check the folder. Raises `KeyFault` where it was altered or does not belong to `root`,
        `MissingFault` where a file is gone, `ConflictFault` where another process has it open."""
        self._path = path
        self._root = root
        self._mutex = threading.RLock()
        self._lock = _exclusive(path)
        try:
            self._node = _decode(disk.read(path / "node.json"), NodeRecord, path / "node.json")
            root.unwrap(self._node.intake_wrapped, self._node.context("intake"))
            root.unwrap(self._node.log_wrapped, self._node.context("ledger"))
            self._index = self._unseal("index.json", Index)
            self._checkpoint = self._unseal("checkpoint.json", Checkpoint)
            self._finish_interrupted()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, name: str, root: RootKey) -> None:
        """Fill the folder `path`, which exists, with the keys of a new node called `name`."""
        intake = crypt4gh.generate_keypair()
        log = Ed25519PrivateKey.generate()
        node = NodeRecord(name, intake.public, log.public_key().public_bytes_raw())
        node = msgspec.structs.replace(
            node,
            intake_wrapped=root.wrap(intake.private, node.context("intake")),
            log_wrapped=root.wrap(log.private_bytes_raw(), node.context("ledger")),
        )
        with disk.storage_faults(path):
            (path / "keys").mkdir(mode=0o700)
        disk.write(path / "node.json", msgspec.json.encode(node))
        disk.write(path / "index.json", _seal("index.json", Index({}), root))
        disk.write(path / "checkpoint.json", _seal("checkpoint.json", Checkpoint(0, merkle.EMPTY_ROOT), root))

    def close(self) -> None:
        """Let go of the folder, after a change that is under way. Wipe the root key first: then no other can begin."""
        with self._mutex:
            os.close(self._lock)

    # --- the node's own keys ---

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def intake_public(self) -> bytes:
        """Raw X25519 public key, 32 bytes, that deposits are encrypted for."""
        return self._node.intake_public

    @property
    def log_public(self) -> bytes:
        """Raw Ed25519 public key, 32 bytes, of the ledger."""
        return self._node.log_public

    def intake_private(self) -> bytes:
        return self._root.unwrap(self._node.intake_wrapped, self._node.context("intake"))

    def log_private(self) -> bytes:
        return self._root.unwrap(self._node.log_wrapped, self._node.context("ledger"))

    # --- key pairs ---

    def unlock(self, key_id: str) -> tuple[KeyRecord, bytes]:
        """The record, checked, and its raw private key. Raises `KeyFault` where it was altered, is an older copy or was
        destroyed, `MissingFault` where there never was one."""
        with self._mutex:
            self._known(key_id)
            return self._read(key_id)

    def create_key(self, key_id: str, key_class: KeyClass) -> bytes:
        """Make a key pair; its public half. Repeating gives the same, also after `narrow`."""
        _check_id(key_id)
        with self._mutex:
            if key_id in self._index.destroyed:
                raise RefusedFault(Refusal("key_destroyed", f"key {key_id}"))
            if key_id in self._index.versions:
                record, _ = self._read(key_id)
                if record.key_class not in (key_class, "identifiable"):
                    raise RefusedFault(Refusal("key_class", f"key {key_id} exists as {record.key_class}"))
                return record.public
            pair = crypt4gh.generate_keypair()
            self._put(KeyRecord(key_id, key_class, False, 1, pair.public), pair.private)
            return pair.public

    def confirm(self, key_id: str) -> None:
        with self._mutex:
            record, private = self.unlock(key_id)
            if record.key_class != "anonymised":
                raise RefusedFault(Refusal("key_class", f"key {key_id} is {record.key_class}"))
            if not record.confirmed:
                self._put(msgspec.structs.replace(record, confirmed=True, version=record.version + 1), private)

    def narrow(self, key_id: str) -> None:
        with self._mutex:
            record, private = self.unlock(key_id)
            if record.key_class != "identifiable":
                narrowed = msgspec.structs.replace(
                    record, key_class="identifiable", confirmed=False, version=record.version + 1
                )
                self._put(narrowed, private)

    def destroy(self, key_id: str) -> None:
        """Overwrite and remove the private half for ever. Repeating, and an unknown id, are no error."""
        _check_id(key_id)
        with self._mutex:
            if key_id in self._index.versions:
                versions = {other: version for other, version in self._index.versions.items() if other != key_id}
                # The index first: once it is durable, no copy of the record opens again, whatever happens next.
                self._put_index(Index(versions, self._index.destroyed | {key_id}))
            if key_id in self._index.destroyed:
                disk.wipe(self._key_path(key_id))

    # --- the ledger ---

    @property
    def checkpoint(self) -> Checkpoint:
        with self._mutex:
            return self._checkpoint

    def advance(self, size: int, root: bytes, proof: list[bytes]) -> None:
        """Make (size, root) the last signed checkpoint, durably, after checking that it continues the one before
        (RFC 9162, section 2.1.4.2). Repeating the last one is no error, whatever the proof."""
        with self._mutex:
            last = self._checkpoint
            if (size, root) == (last.size, last.root):
                return
            try:
                merkle.verify_consistency(last.size, last.root, size, root, proof)
            except IntegrityFault as fault:
                raise RefusedFault(Refusal("ledger_forked", f"{fault.detail}; last signed: {last.size}")) from None
            fresh = Checkpoint(size, root)
            disk.write(self._path / "checkpoint.json", _seal("checkpoint.json", fresh, self._root))
            self._checkpoint = fresh

    # --- inside ---

    def _known(self, key_id: str) -> None:
        _check_id(key_id)
        if key_id in self._index.destroyed:
            raise KeyFault(f"key {key_id} was destroyed", "what it protected is gone for ever")
        if key_id not in self._index.versions:
            raise MissingFault(f"there is no key {key_id}", "make it with 'create' before it is used")

    def _read(self, key_id: str) -> tuple[KeyRecord, bytes]:
        path = self._key_path(key_id)
        record = _decode(disk.read(path), KeyRecord, path)
        if record.key_id != key_id:
            raise KeyFault(f"{path} holds the key {record.key_id}", RESTORE)
        if record.version < self._index.versions[key_id]:
            raise KeyFault(f"{path} is an older copy of the key {key_id}", RESTORE)
        try:
            private = self._root.unwrap(record.wrapped, record.context())
        except KeyFault:
            raise KeyFault(f"{path} was altered", RESTORE) from None
        if record.version > self._index.versions[key_id]:  # a crash came between record and index
            self._put_index(Index({**self._index.versions, key_id: record.version}, self._index.destroyed))
        return record, private

    def _put(self, record: KeyRecord, private: bytes) -> None:
        """The record first, then the index: `_read` completes what a crash left half done."""
        record = msgspec.structs.replace(record, wrapped=self._root.wrap(private, record.context()))
        disk.write(self._key_path(record.key_id), msgspec.json.encode(record), wipe_old=True)
        versions = {**self._index.versions, record.key_id: record.version}
        self._put_index(Index(versions, self._index.destroyed))

    def _put_index(self, index: Index) -> None:
        disk.write(self._path / "index.json", _seal("index.json", index, self._root))
        self._index = index

    def _key_path(self, key_id: str) -> Path:
        return self._path / "keys" / f"{key_id}.json"

    def _finish_interrupted(self) -> None:
        """Wipe what a crash left: half-written files, and records whose destruction had been decided."""
        with disk.storage_faults(self._path):
            left = [file for folder in (self._path, self._path / "keys") for file in folder.glob(".*.json.*")]
            left += [path for path in map(self._key_path, self._index.destroyed) if path.exists()]
        for path in left:
            disk.wipe(path)

    def _unseal(self, name: str, kind: type[T]) -> T:
        path = self._path / name
        file = _decode(disk.read(path), Sealed, path)
        content = bytes(file.content)
        if self._root.unwrap(file.seal, _context("file", name)) != hashlib.sha256(content).digest():
            raise KeyFault(f"{path} was altered", RESTORE)
        return _decode(content, kind, path)


def _seal(name: str, content: Any, root: RootKey) -> bytes:
    encoded = msgspec.json.encode(content)
    digest = hashlib.sha256(encoded).digest()
    return msgspec.json.encode(Sealed(msgspec.Raw(encoded), root.wrap(digest, _context("file", name))))


def _context(*parts: str | bool | int | bytes) -> bytes:
    """What is bound to a wrapped key: the parts as a JSON array, so that no two lists of parts give the same bytes."""
    plain = [base64.b64encode(part).decode() if isinstance(part, bytes) else part for part in parts]
    return b"valv key store 1 " + msgspec.json.encode(plain)


def _decode(data: bytes, kind: type[T], path: Path) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise KeyFault(f"{path} was altered or is damaged", RESTORE) from None


def _check_id(key_id: str) -> None:
    if not re.match(KEY_ID, key_id):
        raise InputFault("a key id is 1 to 128 letters, digits, dots, dashes and underscores, without a leading dot")


def _exclusive(path: Path) -> int:
    """Lock the folder for this process; the descriptor that holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MissingFault(f"{path} does not exist", "create a node with 'valv node create DIR'") from None
    except OSError as error:
        raise StorageFault(f"{path}: {error.strerror}") from None
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            raise KeyFault(f"{path} can be entered by others", f"chmod 700 {path}")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConflictFault(f"another key holder has {path} open", "stop it first, by its process id") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
