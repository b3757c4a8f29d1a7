"""Bodies in an iRODS zone, through `python-irodsclient`.

    <path>/new/<time>-<random>          data objects being written; the name tells since when
    <path>/bodies/<shard>/<name>        whole bodies; the shard is the first byte of SHA-256(name), in hex

A body is written under `new`, its checksum computed by the server from what is stored and compared with what was sent,
described by metadata, and renamed. The catalogue holds each name once and never replaces one by a rename, so of several
writers of one name exactly one wins. Only replicas that the catalogue calls good are read.

Metadata of each body (attribute, value, unit): `valv.name` (name, ''), `valv.size` (size, 'bytes'), `valv.sha256`
(digest in hex, 'hex').
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from irods.column import Like
from irods.keywords import DEST_RESC_NAME_KW, FORCE_CHKSUM_KW, REPL_NUM_KW
from irods.meta import AVUOperation, iRODSMeta
from irods.models import Collection, DataObject
from irods.session import iRODSSession
from typing_extensions import Buffer

from valv.config import Storage as Settings
from valv.errors import ConfigFault, Fault, InputFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.storage import NAME, Place, Usage
from valv.storage.irods_account import read_environment
from valv.storage.irods_faults import AWAY, fault, faults, taken

_T = TypeVar("_T")
_NAME: Final = re.compile(NAME)
_ATTEMPTS: Final = 4
_BACKOFF: Final = 0.2  # seconds, doubled each time
DEAD_SECONDS: Final = 48 * 3600.0
"""An upload that was not touched for so long has no writer any more."""
_BLOCK: Final = 4 << 20
_HANDLES: Final = 4
_GOOD: Final = "1"
"""The status of a replica that is whole and current; others are stale, or being written."""


def connect(settings: Settings, home: Path, place: Place) -> IrodsStorage:
    """The backend `irods` of the group `valv.storage`. `home`: where relative paths begin. Nothing is asked of the
    server yet. Raises `ConfigFault`."""
    if not settings.credentials:
        raise ConfigFault("an iRODS store: credentials must name an iRODS environment file")
    account = read_environment(home / settings.credentials, home / settings.ca if settings.ca else None)
    base = "/" + "/".join(part for part in settings.path.split("/") if part)
    if not settings.path.startswith("/"):
        base = f"/{account['irods_zone_name']}/home/{account['irods_user_name']}{base}"
    if any(part in (".", "..") for part in base.split("/")):
        raise ConfigFault("an iRODS store: path must not contain '.' or '..'")
    return IrodsStorage(account, base, place)


class IrodsStorage:
    """The store in the collection `base`, which is made when first written to. `account`: as `read_environment`
    gives it. `dead`: seconds, see `sweep`."""

    def __init__(self, account: dict[str, Any], base: str, place: Place, dead: float = DEAD_SECONDS) -> None:
        self._account = account
        self._base = base
        self._place = place
        self._dead = dead
        self._session: Any = None
        self._lock = threading.RLock()
        self._living: set[str] = set()
        self._made: set[str] = set()

    def __repr__(self) -> str:
        return f"IrodsStorage({self._base})"

    @property
    def place(self) -> Place:
        return self._place

    def writer(self, name: str) -> IrodsWriter:
        final = self._final(name)
        with suppress(MissingFault):
            self._good(final, name)
            raise taken(name)
        return IrodsWriter(self, name, self._fresh())

    def open(self, name: str) -> IrodsBody:
        path = self._final(name)
        size, replicas = self._good(path, name)
        return IrodsBody(self, path, name, size, replicas)

    def size(self, name: str) -> int:
        return self._good(self._final(name), name)[0]

    def delete(self, name: str) -> None:
        path = self._final(name)
        with suppress(MissingFault):
            self.ask(lambda session: session.data_objects.unlink(path, force=True), name)

    def names(self) -> Iterator[str]:
        """Whole bodies; one that comes or goes meanwhile may be named or not."""
        yield from sorted({row[DataObject.name] for row in self._rows(DataObject.name)})

    def usage(self) -> Usage:
        """`used` counts whole bodies once, whatever their replicas. iRODS does not tell what is free."""
        rows = self._rows(DataObject.name, DataObject.size, DataObject.replica_status)
        good = [row for row in rows if row[DataObject.replica_status] == _GOOD]
        return Usage(sum({row[DataObject.name]: int(row[DataObject.size]) for row in good}.values()), None)

    def sweep(self) -> int:
        """Remove uploads that nobody touched for `DEAD_SECONDS`; returns how many. The server's clock tells when."""
        where = f"{self._base}/new"

        def listed(session: Any) -> list[Any]:
            query = session.query(DataObject.name, DataObject.modify_time).filter(Collection.name == where)
            return list(query.get_results())

        latest: dict[str, float] = {}
        for row in self.ask(listed, "the store cannot be swept"):
            name, changed = row[DataObject.name], row[DataObject.modify_time].timestamp()
            latest[name] = max(changed, latest.get(name, 0.0))
        swept = 0
        for name, changed in latest.items():
            begun = int(name.partition("-")[0], 16) if re.match(r"[0-9a-f]+-", name) else 0
            with self._lock:
                lives = f"{where}/{name}" in self._living
            if not lives and time.time() - max(changed, begun) >= self._dead:
                with suppress(MissingFault):
                    self.drop(f"{where}/{name}")
                    swept += 1
        return swept

    def ask(self, once: Callable[[Any], _T], what: str) -> _T:
        """`once` with a session, again on a new one while the server is away. One at a time."""
        detail = ""
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_BACKOFF * 2 ** (attempt - 1))
            try:
                with self._lock:
                    return once(self._connected())
            except AWAY as error:
                self.reset()
                detail = type(error).__name__
            except Exception as error:  # the client's exceptions have no common ancestor
                raise fault(error, what) from None
        raise UnreachableFault(f"{what}: the iRODS server does not answer: {detail}", "see that it runs")

    def reset(self) -> None:
        """Forget the session, whose connections broke."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            with suppress(Exception):
                session.cleanup()

    def create(self, path: str, name: str) -> Any:
        """A new data object, open for writing."""
        options = {}
        if "irods_default_resource" in self._account:
            options[DEST_RESC_NAME_KW] = self._account["irods_default_resource"]
        return self.ask(lambda session: session.data_objects.open(path, "w", **options), name)

    def reader(self, path: str, name: str, replica: int) -> Any:
        """A data object's replica, open for reading."""
        return self.ask(lambda session: session.data_objects.open(path, "r", **{REPL_NUM_KW: str(replica)}), name)

    def settle(self, path: str, name: str, size: int, digest: bytes) -> None:
        """Compare what the server has with what was sent, describe it, and give it its name."""
        wanted = "sha2:" + base64.b64encode(digest).decode()
        told = str(self.ask(lambda session: session.data_objects.chksum(path, **{FORCE_CHKSUM_KW: ""}), name))
        if not told.startswith("sha2:"):
            raise StorageFault(f"{name}: the zone does not use SHA-256", "set default_hash_scheme to SHA256")
        if told != wanted:
            raise StorageFault(f"{name}: the store has other bytes than were sent")
        stored, _ = self._good(path, name)
        if stored != size:
            raise StorageFault(f"{name}: the store has {stored} bytes of {size}")
        self._describe(path, name, {"name": (name, ""), "size": (str(size), "bytes"), "sha256": (digest.hex(), "hex")})
        final = self._final(name)
        self._make(final.rpartition("/")[0])
        self._rename(path, final, name, size)
        self.forget(path)

    def drop(self, path: str) -> None:
        """Remove what is being written."""
        self.forget(path)
        self.ask(lambda session: session.data_objects.unlink(path, force=True), "an upload")

    def forget(self, path: str) -> None:
        with self._lock:
            self._living.discard(path)

    def _describe(self, path: str, name: str, told: dict[str, tuple[str, str]]) -> None:
        """All or none of it, in one request. Adding what is there already is no error."""
        operations = [
            AVUOperation(operation="add", avu=iRODSMeta(f"valv.{key}", value, unit))
            for key, (value, unit) in told.items()
        ]
        self.ask(lambda session: session.metadata.apply_atomic_operations(DataObject, path, *operations), name)

    def _rename(self, path: str, final: str, name: str, size: int) -> None:
        attempts = 0

        def once(session: Any) -> None:
            nonlocal attempts
            attempts += 1
            session.data_objects.move(path, final)

        try:
            self.ask(once, name)
        except MissingFault:  # an earlier attempt may have done it, and its answer was lost
            if attempts == 1 or self._good(final, name)[0] != size:
                raise

    def _good(self, path: str, name: str) -> tuple[int, list[int]]:
        """The size of a body and the numbers of its good replicas. Raises `MissingFault`; `StorageFault` where no
        replica is good, or good ones differ."""
        found = self.ask(lambda session: session.data_objects.get(path), name)
        good = [replica for replica in found.replicas if str(replica.status) == _GOOD]
        if not good:
            raise StorageFault(f"{name}: no replica is good", "see 'ils -L' in the zone")
        sizes = {int(replica.size) for replica in good}
        if len(sizes) > 1 or len({replica.checksum for replica in good if replica.checksum}) > 1:
            raise StorageFault(f"{name}: its good replicas differ", "see 'ils -L' in the zone")
        return sizes.pop(), [int(replica.number) for replica in good]

    def _rows(self, *columns: Any) -> list[Any]:
        pattern = f"{self._base}/bodies/%"

        def listed(session: Any) -> list[Any]:
            query = session.query(Collection.name, *columns).filter(Like(Collection.name, pattern))
            return list(query.get_results())

        rows = self.ask(listed, "the store cannot be listed")
        return [row for row in rows if _NAME.fullmatch(row[DataObject.name])]

    def _fresh(self) -> str:
        self._make(f"{self._base}/new")
        path = f"{self._base}/new/{int(time.time()):x}-{secrets.token_hex(16)}"
        with self._lock:
            self._living.add(path)
        return path

    def _make(self, collection: str) -> None:
        if collection not in self._made:
            self.ask(lambda session: session.collections.create(collection), "the store cannot be opened")
            self._made.add(collection)

    def _connected(self) -> Any:
        if self._session is None:
            self._session = iRODSSession(**self._account)
        return self._session

    def _final(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise InputFault(f"{name!r} cannot name a body", "use a-z, 0-9, '.', '_', '-', and no '.' at the start")
        return f"{self._base}/bodies/{hashlib.sha256(name.encode()).hexdigest()[:2]}/{name}"


class IrodsWriter:
    """Sequential writer of one body. After a fault nothing is left under the name."""

    def __init__(self, store: IrodsStorage, name: str, path: str) -> None:
        self._store = store
        self._name = name
        self._path = path
        self._digest = hashlib.sha256()
        self._size = 0
        self._held = bytearray()
        self._open = True
        self._file: Any = store.create(path, name)

    def write(self, data: Buffer) -> None:
        if not self._open:
            raise StorageFault(f"{self._name}: the writer has ended")
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._size += len(view)
        self._held += view
        if len(self._held) >= _BLOCK:
            self._flush()

    def commit(self) -> None:
        if not self._open:
            raise StorageFault(f"{self._name}: the writer has ended")
        try:
            self._flush()
            file, self._file = self._file, None
            with faults(self._name):
                file.close()
            self._store.settle(self._path, self._name, self._size, self._digest.digest())
        except BaseException:
            self.abort()
            raise
        self._open = False

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        self._held = bytearray()
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):
                file.close()
        with suppress(Fault):  # what stays is swept
            self._store.drop(self._path)

    def _flush(self) -> None:
        held, self._held = bytes(self._held), bytearray()
        with faults(self._name):
            while held:
                held = held[int(self._file.raw.write(held)) :]


class IrodsBody:
    """One body, of which several replicas may be good. Each read has a connection of its own while it goes on."""

    def __init__(self, store: IrodsStorage, path: str, name: str, size: int, replicas: list[int]) -> None:
        self._store = store
        self._path = path
        self._name = name
        self._size = size
        self._replicas = replicas
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._closed = False

    @property
    def size(self) -> int:
        return self._size

    def pread_into(self, target: Buffer, offset: int) -> int:
        view = memoryview(target).cast("B")
        view = view[: max(0, min(len(view), self._size - offset))]
        done, attempt = 0, 0
        while done < len(view):
            if attempt == _ATTEMPTS:
                raise StorageFault(f"{self._name}: a read ends early, again and again")
            try:
                count = self._read(view[done:], offset + done, attempt)
            except UnreachableFault:
                if attempt == _ATTEMPTS - 1:
                    raise
                count = 0
            done += count
            attempt = 0 if count else attempt + 1
        return done

    def close(self) -> None:
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for file in idle:
            with suppress(Exception):
                file.close()

    def _read(self, view: memoryview, offset: int, attempt: int) -> int:
        """Bytes read, 0 where the replica ends early."""
        file = self._take(attempt)
        try:
            with faults(self._name):
                file.raw.seek(offset)
                count = int(file.raw.readinto(view) or 0)
        except BaseException:
            with suppress(Exception):
                file.close()
            raise
        with self._lock:
            keep = not self._closed and len(self._idle) < _HANDLES and count > 0
            if keep:
                self._idle.append(file)
        if not keep:
            with suppress(Exception):
                file.close()
        return count

    def _take(self, attempt: int) -> Any:
        """After a failure another replica, if there is one."""
        if attempt:
            time.sleep(_BACKOFF * 2 ** (attempt - 1))
        else:
            with self._lock:
                if self._idle:
                    return self._idle.pop()
        return self._store.reader(self._path, self._name, self._replicas[attempt % len(self._replicas)])
