"""Bodies in a folder of a POSIX file system.

    <path>/new/<random>                 bodies being written, each locked by its writer
    <path>/bodies/<shard>/<name>        whole bodies; the shard is the first byte of SHA-256(name), in hex

A body is written under `new`, synced, linked under its name (a link never replaces an existing file) and only then
counted as there. What a killed writer leaves under `new` is removed by `sweep`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from typing_extensions import Buffer

from valv.config import Storage as Settings
from valv.errors import FullFault, InputFault, MissingFault, StorageFault
from valv.ports.storage import NAME, Place, Usage

_NAME: Final = re.compile(NAME)
_DIRECTORY_MODE: Final = 0o770
_FILE_MODE: Final = 0o640
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def connect(settings: Settings, home: Path, place: Place) -> LocalStorage:
    """The backend `local` of the group `valv.storage`. `home`: where relative paths begin."""
    return LocalStorage(home / settings.path, place)


class LocalStorage:
    """A store in the folder `path`, which is made if missing. Raises `StorageFault` where it cannot be used."""

    def __init__(self, path: Path, place: Place) -> None:
        self._place = place
        self._new = path / "new"
        self._bodies = path / "bodies"
        with _faults("the store cannot be opened"):
            for folder in (path, self._new, self._bodies):
                _make_folder(folder)

    @property
    def place(self) -> Place:
        return self._place

    def writer(self, name: str) -> LocalWriter:
        target = self._target(name)
        if target.exists():
            raise StorageFault(f"{name} exists already", "a body is written once; use a new name")
        return LocalWriter(self._new, target)

    def open(self, name: str) -> LocalBody:
        with _faults(name):
            return LocalBody(os.open(self._target(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))

    def size(self, name: str) -> int:
        with _faults(name):
            return self._target(name).stat().st_size

    def delete(self, name: str) -> None:
        target = self._target(name)
        with _faults(name), suppress(FileNotFoundError):
            target.unlink()
            _sync_folder(target.parent)

    def names(self) -> Iterator[str]:
        """Whole bodies, shard by shard; one that comes or goes meanwhile may be named or not."""
        with _faults("the store cannot be listed"):
            shards = sorted(self._bodies.iterdir())
        for shard in shards:
            with _faults("the store cannot be listed"):
                names = sorted(entry.name for entry in shard.iterdir())
            yield from names

    def usage(self) -> Usage:
        """`used` counts whole bodies."""
        used = 0
        for name in self.names():
            with suppress(MissingFault):
                used += self.size(name)
        with _faults("the store cannot be measured"):
            room = os.statvfs(self._bodies)
        return Usage(used, room.f_bavail * room.f_frsize)

    def sweep(self) -> int:
        """Remove what killed writers left behind; returns how many files. Living writers are not touched."""
        swept = 0
        with _faults("the store cannot be swept"):
            for path in self._new.iterdir():
                with suppress(FileNotFoundError):
                    swept += _remove_if_dead(path)
        return swept

    def _target(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise InputFault(f"{name!r} cannot name a body", "use a-z, 0-9, '.', '_', '-', and no '.' at the start")
        return self._bodies / hashlib.sha256(name.encode()).hexdigest()[:2] / name


class LocalWriter:
    """Sequential writer of one body. After a fault nothing is left under the name; `abort` then frees the room."""

    def __init__(self, new: Path, target: Path) -> None:
        self._target = target
        with _faults(target.name):
            self._path, self._fd = _create(new)

    def write(self, data: Buffer) -> None:
        rest = memoryview(data).cast("B")
        with _faults(self._target.name):
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def commit(self) -> None:
        try:
            with _faults(self._target.name):
                os.fsync(self._fd)
                if _make_folder(self._target.parent):
                    _sync_folder(self._target.parent.parent)
                os.link(self._path, self._target)
                self._path.unlink()
                _sync_folder(self._target.parent)
        except StorageFault:
            self.abort()
            raise
        self._close()

    def abort(self) -> None:
        with suppress(OSError):
            if self._fd >= 0:
                self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LocalBody:
    """One open body. Takes over the descriptor `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size

    @property
    def size(self) -> int:
        return self._size

    def pread_into(self, target: Buffer, offset: int) -> int:
        rest = memoryview(target).cast("B")
        done = 0
        with _faults("a body cannot be read"):
            while done < len(rest) and (count := os.preadv(self._fd, [rest[done:]], offset + done)):
                done += count
        return done

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _create(new: Path) -> tuple[Path, int]:
    """A fresh, locked file under `new`: its path and descriptor. The lock tells `sweep` that the writer lives."""
    while True:
        path = new / secrets.token_hex(16)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
        os.fchmod(fd, _FILE_MODE)  # whatever the umask, so that the store's group can read
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return path, fd
        except BlockingIOError:
            pass
        os.close(fd)  # a sweep came between creating and locking: take another


def _remove_if_dead(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return 1
    except BlockingIOError:
        return 0
    finally:
        os.close(fd)


def _make_folder(folder: Path) -> bool:
    """Whether it had to be made. A parent's set-group-id bit, by which a store is shared with readers, is kept."""
    try:
        folder.mkdir(parents=True, mode=_DIRECTORY_MODE)
    except FileExistsError:
        return False
    folder.chmod(_DIRECTORY_MODE | (folder.stat().st_mode & stat.S_ISGID))
    return True


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Turns what the file system says into faults. `what` never holds more than a random name."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFault(f"{what}: not in the store") from None
    except FileExistsError:
        raise StorageFault(f"{what} exists already", "a body is written once; use a new name") from None
    except OSError as error:
        kind = FullFault if error.errno in _FULL else StorageFault
        raise kind(f"{what}: {os.strerror(error.errno or errno.EIO)}") from None
