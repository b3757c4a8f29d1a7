"""One generation of the key holder's keys: wrapped private keys, the last signed checkpoint, what officers ordered.

    root.json         the root key (written by the keyring backend)
    node.json         the node's name, its intake key pair (X25519) and its ledger key pair (Ed25519)
    index.json        which generation this is, which key ids exist, at which version, and which were destroyed
    checkpoint.json   size and root of the last signed checkpoint
    custody.json      what officers ordered: events and signed minutes
    recovery.json     the officers' shares of the recovery key, after the first ceremony (`valv.keys.recovery`)
    unseal.json       the officers' shares for unsealing, where it takes two persons
    keys/<id>.json    one key: class, `anonymised` confirmed or not, version, and its numbered key pairs

Everything but the root key is authenticated under it: a changed field, a record moved to another id, an older copy of
a single record put back, or a destroyed one, is found when the key is used and raises `KeyFault`. What cannot be found
here is the whole folder replaced by an older copy of itself; the ledger's witnesses find that.

Every change is durable before the call returns, and a crash between any two steps leaves either the old state or the
new one. A folder belongs to one process: it is locked while open. The same form, under the recovery key in place of the
root key, is the key backup.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
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
from valv.ports.keys import Held, HeldClass, RootKey

KEY_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z"
"""A key id is also a file name: no separators, no leading dot."""
RESTORE: Final = "restore the key folder from the key backup"
MOST_HELD: Final = 1 << 20
"""Bytes of what one answer tells of the acts."""

T = TypeVar("T")


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A Crypt4GH key pair of a key, counted from 1."""

    number: int
    public: bytes
    wrapped: bytes = b""


class KeyRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key as it lies on disk. All but the wrapped halves is bound to each of them as associated data. `pairs`: the
    newest last; older ones only open headers that are not re-sealed yet."""

    key_id: str
    key_class: HeldClass
    confirmed: bool
    version: int
    pairs: tuple[Pair, ...]

    def context(self, pair: Pair) -> bytes:
        pairs = [part for one in self.pairs for part in (one.number, one.public)]
        return _context("key", self.key_id, self.key_class, self.confirmed, self.version, *pairs, pair.number)

    @property
    def newest(self) -> Pair:
        return self.pairs[-1]

    @property
    def public(self) -> bytes:
        return self.newest.public

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
    """`generation`: of the root key, so that an older one is not taken for a newer by its folder's name; `versions`: of
    each key id; `destroyed`: ids that never come back."""

    generation: int
    versions: dict[str, int]
    destroyed: frozenset[str] = frozenset()


class Checkpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last signed size and RFC 9162 root (32 bytes) of the ledger."""

    size: int
    root: bytes


class Act(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that officers ordered: the id of their order, the event (JSON of `valv.core.custody`), the minutes."""

    order: str
    event: bytes
    minutes: str


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file whose content is plain but authenticated: `seal` is its SHA-256, wrapped by the root key."""

    content: msgspec.Raw
    seal: bytes


class Store:
    """The opened folder. Safe for several threads. `root` must be the root key it was made with. `read_only`: nothing
    is written, for a key backup that another user writes."""

    def __init__(self, path: Path, root: RootKey, *, read_only: bool = False) -> None:
        """Open and check the folder. Raises `KeyFault` where it was altered or does not belong to `root`,
        `MissingFault` where a file is gone, `ConflictFault` where another process has it open."""
        self._path = path
        self._root = root
        self._read_only = read_only
        self._mutex = threading.RLock()
        self._lock = exclusive(path)
        try:
            self._node = _decode(disk.read(path / "node.json"), NodeRecord, path / "node.json")
            root.unwrap(self._node.intake_wrapped, self._node.context("intake"))
            root.unwrap(self._node.log_wrapped, self._node.context("ledger"))
            self._index = self._unseal("index.json", Index)
            self._checkpoint = self._unseal("checkpoint.json", Checkpoint)
            self._acts = self._unseal("custody.json", tuple[Act, ...])
            if not read_only:
                self._finish_interrupted()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path, name: str, root: RootKey) -> None:
        """Fill the folder `path`, which exists, with the keys of a new node called `name`: generation 1."""
        intake, log = crypt4gh.generate_keypair(), Ed25519PrivateKey.generate()
        node = _node(name, intake.public, intake.private, log.private_bytes_raw(), root)
        with disk.storage_faults(path):
            (path / "keys").mkdir(mode=0o700)
        disk.write(path / "node.json", msgspec.json.encode(node))
        disk.write(path / "index.json", _seal("index.json", Index(1, {}), root))
        disk.write(path / "checkpoint.json", _seal("checkpoint.json", Checkpoint(0, merkle.EMPTY_ROOT), root))
        disk.write(path / "custody.json", _seal("custody.json", (), root))

    @staticmethod
    def named(path: Path) -> NodeRecord:
        """What `path` says of its node, without the root key that would prove it."""
        return _decode(disk.read(path / "node.json"), NodeRecord, path / "node.json")

    def copy_keys(self, path: Path, root: RootKey, without: frozenset[str] = frozenset()) -> dict[str, int]:
        """Begin `copy` while others go on: the keys alone. Returns their versions, which may be overtaken meanwhile."""
        with disk.storage_faults(path):
            (path / "keys").mkdir(mode=0o700)
        with self._mutex:
            wanted = self._index.versions.keys() - without
        copied = {}
        for key_id in wanted:
            record, privates = self.unlock(key_id)
            data = msgspec.json.encode(_wrapped(record, privates, root))
            disk.write_loose(path / "keys" / f"{key_id}.json", data)
            copied[key_id] = record.version
        return copied

    def copy(
        self,
        path: Path,
        root: RootKey,
        copied: Mapping[str, int],
        *,
        generation: int = 0,
        without: frozenset[str] = frozenset(),
        acts: Sequence[Act] = (),
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Write all of this into the folder `path` under another root key: as this `generation` (0: the same), without
        the keys `without`, which are destroyed there, and with these `acts` more. `copied`: what `copy_keys` has
        written there; `checkpoint`: the last signed one there, None for the same. Durable when it returns."""
        with self._mutex:
            for key_id, version in self._index.versions.items():
                if key_id not in without and copied.get(key_id) != version:
                    target = path / "keys" / f"{key_id}.json"
                    disk.wipe(target)
                    disk.write_loose(target, self.record(key_id, root))
            kept = {key_id: version for key_id, version in self._index.versions.items() if key_id not in without}
            node = _node(self.name, self.intake_public, self.intake_private(), self.log_private(), root)
            index = Index(generation or self.generation, kept, self._index.destroyed | without)
            disk.write_loose(path / "node.json", msgspec.json.encode(node))
            disk.write_loose(path / "index.json", _seal("index.json", index, root))
            disk.write_loose(path / "checkpoint.json", _seal("checkpoint.json", checkpoint or self._checkpoint, root))
            disk.write_loose(path / "custody.json", _seal("custody.json", (*self._acts, *acts), root))
            disk.sync_all(path)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        """Nobody else reads or changes anything meanwhile."""
        with self._mutex:
            yield

    def switch(self, path: Path, root: RootKey) -> None:
        """Go on with `path`, a copy of this under another root key. Raises as opening does; then nothing changed."""
        with self._mutex:
            fresh = Store(path, root)
            os.close(self._lock)
            self.__dict__ = {**fresh.__dict__, "_mutex": self._mutex}

    def record(self, key_id: str, root: RootKey) -> bytes:
        """The file of one key, under another root key."""
        record, privates = self.unlock(key_id)
        return msgspec.json.encode(_wrapped(record, privates, root))

    def index(self, root: RootKey) -> bytes:
        """The file of the index, under another root key."""
        with self._mutex:
            return _seal("index.json", self._index, root)

    def custody(self, root: RootKey) -> bytes:
        """The file of what officers ordered, under another root key."""
        with self._mutex:
            return _seal("custody.json", self._acts, root)

    def last_checkpoint(self, root: RootKey) -> bytes:
        """The file of the last signed checkpoint, under another root key."""
        with self._mutex:
            return _seal("checkpoint.json", self._checkpoint, root)

    def close(self) -> None:
        """Let go of the folder, after a change that is under way. Wipe the root key first: then no other can begin.
        Repeating is no error."""
        with self._mutex:
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1

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
        with self._mutex:
            return self._root.unwrap(self._node.intake_wrapped, self._node.context("intake"))

    def log_private(self) -> bytes:
        with self._mutex:
            return self._root.unwrap(self._node.log_wrapped, self._node.context("ledger"))

    # --- keys ---

    @property
    def generation(self) -> int:
        return self._index.generation

    @property
    def key_ids(self) -> list[str]:
        with self._mutex:
            return sorted(self._index.versions)

    def holds(self, key_id: str) -> bool:
        """Whether there is such a key."""
        with self._mutex:
            return key_id in self._index.versions

    @property
    def destroyed(self) -> frozenset[str]:
        with self._mutex:
            return self._index.destroyed

    def unlock(self, key_id: str) -> tuple[KeyRecord, list[bytes]]:
        """The record, checked, and the raw private keys of its pairs, the newest first. Raises `KeyFault` where it was
        altered, is an older copy or was destroyed, `MissingFault` where there never was one."""
        with self._mutex:
            self._known(key_id)
            return self._read(key_id)

    def create_key(self, key_id: str, key_class: HeldClass) -> bytes:
        """Make a key; its public half. Repeating gives the same, also after `narrow`."""
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
            self._put(KeyRecord(key_id, key_class, False, 1, (Pair(1, pair.public),)), [pair.private])
            return pair.public

    def rotate(self, key_id: str, number: int) -> bytes:
        """Add pair `number`, one more than the newest; its public half. Repeating gives the same."""
        with self._mutex:
            record, privates = self.unlock(key_id)
            if number == record.newest.number:
                return record.public
            if number != record.newest.number + 1:
                raise InputFault(f"key {key_id} has pair {record.newest.number}; the next is not {number}")
            pair = crypt4gh.generate_keypair()
            pairs = (*record.pairs, Pair(number, pair.public))
            changed = msgspec.structs.replace(record, pairs=pairs, version=record.version + 1)
            self._put(changed, [pair.private, *privates])
            return pair.public

    def retire(self, key_id: str, number: int) -> None:
        """Forget all pairs before `number`, which must be the newest."""
        with self._mutex:
            record, privates = self.unlock(key_id)
            if number != record.newest.number:
                raise InputFault(f"key {key_id} has pair {record.newest.number}, not {number}, as its newest")
            if len(record.pairs) > 1:
                changed = msgspec.structs.replace(record, pairs=(record.newest,), version=record.version + 1)
                self._put(changed, privates[:1])

    def confirm(self, key_id: str) -> None:
        with self._mutex:
            record, privates = self.unlock(key_id)
            if record.key_class != "anonymised":
                raise RefusedFault(Refusal("key_class", f"key {key_id} is {record.key_class}"))
            if not record.confirmed:
                self._put(msgspec.structs.replace(record, confirmed=True, version=record.version + 1), privates)

    def narrow(self, key_id: str) -> None:
        with self._mutex:
            record, privates = self.unlock(key_id)
            if record.key_class != "identifiable":
                narrowed = msgspec.structs.replace(
                    record, key_class="identifiable", confirmed=False, version=record.version + 1
                )
                self._put(narrowed, privates)

    # --- what officers ordered ---

    @property
    def acts(self) -> tuple[Act, ...]:
        with self._mutex:
            return self._acts

    def held(self, after: int) -> list[Held]:
        """From number `after` + 1 on, at most 100 and as many as make 1 MiB, but one at least."""
        found: list[Held] = []
        size = 0
        for number, act in enumerate(self.acts[after : after + 100], after + 1):
            size += len(act.event) + len(act.minutes.encode())
            if found and size > MOST_HELD:
                break
            found.append(Held(number, act.event, act.minutes))
        return found

    def add_act(self, act: Act) -> None:
        """Keep what was ordered and changes no key."""
        with self._mutex:
            acts = (*self._acts, act)
            disk.write(self._path / "custody.json", _seal("custody.json", acts, self._root))
            self._acts = acts

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

    def _read(self, key_id: str) -> tuple[KeyRecord, list[bytes]]:
        path = self._key_path(key_id)
        record = _decode(disk.read(path), KeyRecord, path)
        if record.key_id != key_id or not record.pairs:
            raise KeyFault(f"{path} holds the key {record.key_id}", RESTORE)
        if record.version < self._index.versions[key_id]:
            raise KeyFault(f"{path} is an older copy of the key {key_id}", RESTORE)
        try:
            privates = [self._root.unwrap(pair.wrapped, record.context(pair)) for pair in reversed(record.pairs)]
        except KeyFault:
            raise KeyFault(f"{path} was altered", RESTORE) from None
        if record.version > self._index.versions[key_id]:  # a crash came between record and index
            self._put_version(key_id, record.version)
        return record, privates

    def _put(self, record: KeyRecord, privates: list[bytes]) -> None:
        """The record first, then the index: `_read` completes what a crash left half done."""
        record = _wrapped(record, privates, self._root)
        disk.write(self._key_path(record.key_id), msgspec.json.encode(record), wipe_old=True)
        self._put_version(record.key_id, record.version)

    def _put_version(self, key_id: str, version: int) -> None:
        index = msgspec.structs.replace(self._index, versions={**self._index.versions, key_id: version})
        if not self._read_only:
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


def _node(name: str, intake_public: bytes, intake: bytes, log: bytes, root: RootKey) -> NodeRecord:
    log_public = Ed25519PrivateKey.from_private_bytes(log).public_key().public_bytes_raw()
    node = NodeRecord(name, intake_public, log_public)
    return msgspec.structs.replace(
        node,
        intake_wrapped=root.wrap(intake, node.context("intake")),
        log_wrapped=root.wrap(log, node.context("ledger")),
    )


def _wrapped(record: KeyRecord, privates: list[bytes], root: RootKey) -> KeyRecord:
    """With the private halves, given newest first, wrapped by `root`."""
    pairs = tuple(
        msgspec.structs.replace(pair, wrapped=root.wrap(private, record.context(pair)))
        for pair, private in zip(record.pairs, reversed(privates), strict=True)
    )
    return msgspec.structs.replace(record, pairs=pairs)


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


def exclusive(path: Path) -> int:
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
