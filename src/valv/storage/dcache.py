"""Bodies in dCache, or another server of WebDAV with bearer tokens (XRootD, StoRM).

    <path>/new/<time>-<random>/<random>         bodies being written; the folder's name tells since when
    <path>/new/<random>.gone/<random>           bodies being deleted
    <path>/bodies/<shard>/<name>/<random>       whole bodies; the shard is the first byte of SHA-256(name), in hex

Each body lies in a folder of its own, and it is the folder that gets the name. `Overwrite: F` would be the way to write
a file's name once, but XRootD (5.5.3) overwrites all the same, and dCache looks first and moves then, so that two
writers can both find nothing. A folder that is not empty is replaced by neither: POSIX forbids it to `rename`, on
which XRootD's MOVE rests, and dCache's namespace to its own, within one transaction of its database. Of several
writers of one name so exactly one wins, whatever their processes and machines. In its folder the body has a random
name, so that who has it open never reads another one that was written under the same name since.

After each upload the size and the Adler-32 checksum that the server tells are compared with what was sent; where it
tells none, the body is read back.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from valv.config import Storage as Settings
from valv.errors import ConfigFault, Fault, InputFault, MissingFault, StorageFault
from valv.ports.storage import NAME, Locality, Place, Storage, Usage
from valv.storage.dcache_body import DcacheBody, DcacheWriter
from valv.storage.dcache_door import Door, Entry, Token, fault
from valv.storage.dcache_pull import copy, lend
from valv.storage.dcache_tape import stage, where

_NAME: Final = re.compile(NAME)
_SHARD: Final = re.compile(r"[0-9a-f]{2}")
_GONE: Final = ".gone"
DEAD_SECONDS: Final = 48 * 3600.0
"""An upload that did not grow for so long has no writer any more."""
_THREADS: Final = 8
_COPY: Final = 1 << 20


def connect(settings: Settings, home: Path, place: Place) -> DcacheStorage:
    """The backend `dcache` of the group `valv.storage`. `home`: where relative paths begin. Nothing is asked of the
    server yet. Raises `ConfigFault`."""
    if not settings.credentials:
        raise ConfigFault("a dCache store: credentials must name the file of a token")
    base = "/" + "".join(f"{part}/" for part in settings.path.split("/") if part)
    if any(part in (".", "..") for part in base.split("/")):
        raise ConfigFault("a dCache store: path must not contain '.' or '..'")
    token = Token(home / settings.credentials)
    try:
        _ = token.header  # a file that cannot be used is told at once
    except StorageFault as found:
        raise ConfigFault(found.detail) from None
    door = Door(settings.url, base, token, home / settings.ca if settings.ca else None)
    return (DcacheTapeStorage if settings.tape else DcacheStorage)(door, place)


class DcacheStorage:
    """The store in the folder `door.base`, which is made when first written to. `dead`: seconds, see `sweep`."""

    def __init__(self, door: Door, place: Place, dead: float = DEAD_SECONDS) -> None:
        self._door = door
        self._place = place
        self._dead = dead
        self._living: set[str] = set()
        self._sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def place(self) -> Place:
        return self._place

    def writer(self, name: str) -> DcacheWriter:
        if self._find(name) is not None:
            raise _taken(name)
        fresh, mark = self._fresh()
        return DcacheWriter(
            self._door,
            f"{fresh}{mark}",
            name,
            lambda size, adler: self._settle(name, fresh, mark, size, adler),
            lambda: self._drop(fresh),
        )

    def open(self, name: str) -> DcacheBody:
        found = self._found(name)
        return DcacheBody(self._door, f"{_final(name)}{found.name}", name, found.size)

    def size(self, name: str) -> int:
        return self._found(name).size

    def delete(self, name: str) -> None:
        """The name is gone at once; what then is left of the body where this is interrupted, a sweep removes."""
        gone = f"new/{secrets.token_hex(16)}{_GONE}/"
        answer = self._move(_final(name), gone)
        if answer >= 300 and self._find(name) is not None:
            self._door.make_folder("new/")  # a store of which somebody took away the folder
            answer = self._move(_final(name), gone)
            if answer >= 300:
                raise fault(answer, name)
        with self._lock:
            self._sizes.pop(name, None)
        if answer < 300:
            with suppress(Fault):  # swept later
                self._drop(gone)

    def names(self) -> Iterator[str]:
        """Whole bodies, shard by shard; one that comes or goes meanwhile may be named or not."""
        for shard in sorted(entry.name for entry in self._door.list("bodies/") if entry.folder):
            if _SHARD.fullmatch(shard):
                found = [entry.name for entry in self._door.list(f"bodies/{shard}/") if entry.folder]
                yield from sorted(name for name in found if _NAME.fullmatch(name))

    def usage(self) -> Usage:
        """`used` counts whole bodies, each asked for once: a body never changes. `free`: where the server tells the
        quota of the folder (RFC 4331)."""
        names = list(self.names())
        with self._lock:
            unknown = [name for name in names if name not in self._sizes]
        with ThreadPoolExecutor(_THREADS) as threads:
            sizes = dict(zip(unknown, threads.map(self._size_or_none, unknown), strict=True))
        with self._lock:
            known = {name: size for name in names if (size := sizes.get(name, self._sizes.get(name))) is not None}
            self._sizes = dict(known)
        free = [entry.free for entry in self._door.list("", depth=0)]
        return Usage(sum(known.values()), free[0] if free else None)

    def sweep(self) -> int:
        """Remove what killed writers left: uploads that were begun, and did not grow, for `DEAD_SECONDS`; and what
        was being deleted. Returns how many. The server's clock tells when they grew."""
        swept = 0
        for entry in self._door.list("new/"):
            path = f"new/{entry.name}/"
            with self._lock:
                lives = path in self._living
            if not lives and (entry.name.endswith(_GONE) or self._is_dead(path, entry.changed)):
                swept += self._drop(path)
        return swept

    def pull(self, name: str, source: Storage) -> bool:
        """Third-party copy from another store of this kind: `valv.ports.storage.Pulls`. The other server is shown a
        macaroon for this one body that only reads and soon ends; False where it gives none."""
        if not isinstance(source, DcacheStorage):
            return False
        if self._find(name) is not None:
            raise _taken(name)
        found = source._found(name)
        path = f"{_final(name)}{found.name}"
        stat = source._door.stat(path, name)
        if not stat.adler:
            return False
        ticket = lend(source._door, _final(name), stat.size)
        if ticket is None:
            return False
        fresh, mark = self._fresh()
        try:
            done = copy(self._door, f"{fresh}{mark}", name, source._door.url(path), ticket)
            if done:
                self._settle(name, fresh, mark, stat.size, stat.adler)
        except BaseException:
            with suppress(Fault):
                self._drop(fresh)
            raise
        if not done:
            self._drop(fresh)
        return done

    def path(self, name: str) -> str:
        """Of a body, below the store's folder. Raises `MissingFault`."""
        return f"{_final(name)}{self._found(name).name}"

    def _find(self, name: str) -> Entry | None:
        """The body's file in the folder that has its name."""
        files = [entry for entry in self._door.list(_final(name)) if not entry.folder]
        if len(files) > 1:
            raise StorageFault(f"{name}: more than one body lies under the name")
        return files[0] if files else None

    def _found(self, name: str) -> Entry:
        found = self._find(name)
        if found is None:
            raise MissingFault(f"{name}: not in the store")
        return found

    def _fresh(self) -> tuple[str, str]:
        """A new folder for a body to come, and what the body is to be called there."""
        mark = secrets.token_hex(16)
        path = f"new/{int(time.time()):x}-{mark}/"
        with self._lock:
            self._living.add(path)
        try:
            self._door.make_folder(path)
        except BaseException:
            self._forget(path)
            raise
        return path, mark

    def _settle(self, name: str, fresh: str, mark: str, size: int, adler: str) -> None:
        """Compare what the server has with what was sent, then give it its name."""
        self._compare(f"{fresh}{mark}", name, size, adler)
        final = _final(name)
        answer = self._move(fresh, final)
        if answer >= 300 and self._find(name) is None:
            self._door.make_folder(final.removesuffix(f"{name}/"))
            answer = self._move(fresh, final)
        if answer >= 300:
            found = self._find(name)
            if found is None:
                raise fault(answer, name)
            if found.name != mark:  # else it is ours: only the answer to an earlier attempt was lost
                raise _taken(name)
        self._forget(fresh)
        with self._lock:
            self._sizes[name] = size

    def _compare(self, path: str, name: str, size: int, adler: str) -> None:
        try:
            stat = self._door.stat(path, name)
        except MissingFault:
            raise StorageFault(f"{name}: the store said yes, but has nothing of it") from None
        if stat.size != size:
            raise StorageFault(f"{name}: the store has {stat.size} bytes of {size}")
        if (stat.adler or self._read_back(path, name, size)) != adler:
            raise StorageFault(f"{name}: the store has other bytes than were sent")

    def _read_back(self, path: str, name: str, size: int) -> str:
        """The checksum of what is stored, where the server has none."""
        body = DcacheBody(self._door, path, name, size)
        adler, at, block = zlib.adler32(b""), 0, bytearray(_COPY)
        try:
            while at < size and (count := body.pread_into(block, at)):
                adler = zlib.adler32(memoryview(block)[:count], adler)
                at += count
        finally:
            body.close()
        return f"{adler:08x}"

    def _move(self, path: str, target: str) -> int:
        """Rename a folder; returns the status. Never onto one that is not empty."""
        headers = {"Destination": self._door.url(target.rstrip("/")), "Overwrite": "F"}
        answer = self._door.ask("MOVE", path, headers, allow=frozenset({400, 404, 405, 409, 412, 500}))
        return answer.status_code

    def _drop(self, path: str) -> bool:
        """A folder below `new` with what is in it. Whether it was there."""
        for entry in self._door.list(path):
            self._door.remove(f"{path}{entry.name}")
        there = self._door.remove(path)
        self._forget(path)
        return there

    def _forget(self, path: str) -> None:
        with self._lock:
            self._living.discard(path)

    def _is_dead(self, path: str, changed: float) -> bool:
        begun = re.match(r"new/([0-9a-f]+)-", path)
        latest = max([changed, *(entry.changed for entry in self._door.list(path))])
        return begun is not None and time.time() - max(int(begun[1], 16), latest) >= self._dead

    def _size_or_none(self, name: str) -> int | None:
        with suppress(MissingFault):
            return self.size(name)
        return None


class DcacheTapeStorage(DcacheStorage):
    """A store that has tapes, as `valv.ports.storage.Tape`: what `tape = true` in the settings makes."""

    def locality(self, name: str) -> Locality:
        return where(self._door, self.path(name), name)

    def stage(self, names: Sequence[str]) -> None:
        stage(self._door, [self.path(name) for name in names])


def _final(name: str) -> str:
    """The folder of a body."""
    if not _NAME.fullmatch(name):
        raise InputFault(f"{name!r} cannot name a body", "use a-z, 0-9, '.', '_', '-', and no '.' at the start")
    return f"bodies/{hashlib.sha256(name.encode()).hexdigest()[:2]}/{name}/"


def _taken(name: str) -> StorageFault:
    return StorageFault(f"{name} exists already", "a body is written once; use a new name")
