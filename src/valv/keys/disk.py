"""Small files that survive a power cut: whole or not at all, readable by their owner only, wiped when replaced."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from valv.errors import Fault, FullFault, MissingFault, StorageFault

LARGEST = 64 << 20
"""Bytes. No file of a key folder is near this; a larger one is not ours."""


@contextlib.contextmanager
def storage_faults(path: Path) -> Iterator[None]:
    """Turn an `OSError` on `path` into the fault that says what to do."""
    try:
        yield
    except OSError as error:
        raise _fault(path, error) from None


def read(path: Path) -> bytes:
    """The whole file. Never follows a symbolic link."""
    with storage_faults(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(LARGEST)


def write(path: Path, data: bytes, *, wipe_old: bool = False) -> None:
    """Put `data` at `path`, durably and at once. `wipe_old`: overwrite what was there, after it was replaced."""
    with storage_faults(path):
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        old = _open_existing(path) if wipe_old else None
        try:
            _write_new(fresh, data)
            fresh.rename(path)
            sync_folder(path.parent)
            if old is not None:
                _overwrite(old)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
        finally:
            if old is not None:
                os.close(old)


def write_loose(path: Path, data: bytes) -> None:
    """Make a file in a folder that nobody uses yet; durable only after `sync_all`."""
    with storage_faults(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)


def sync_all(path: Path) -> None:
    """Make all that lies under `path` durable: its whole file system is written out (syncfs), which is quicker than
    each of many small files."""
    with storage_faults(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        finally:
            os.close(descriptor)


def wipe_tree(path: Path) -> None:
    """Overwrite every file under `path`, then remove it all. A missing folder is no error."""
    with storage_faults(path):
        for folder, _, names in os.walk(path):
            for name in names:
                descriptor = _open_existing(Path(folder, name))
                if descriptor is not None:
                    try:
                        os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
                    finally:
                        os.close(descriptor)
        if path.exists():
            sync_all(path)
            shutil.rmtree(path)
            sync_folder(path.parent)


def wipe(path: Path) -> None:
    """Overwrite, remove, and make the removal durable. A missing file is no error."""
    with storage_faults(path):
        descriptor = _open_existing(path)
        if descriptor is not None:
            try:
                _overwrite(descriptor)
            finally:
                os.close(descriptor)
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make renames and removals in the folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _open_existing(path: Path) -> int | None:
    try:
        return os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _overwrite(descriptor: int) -> None:
    """Zeros over the content. On a copying file system or flash the medium may still hold the old blocks."""
    os.pwrite(descriptor, bytes(os.fstat(descriptor).st_size), 0)
    os.fsync(descriptor)


def _fault(path: Path, error: OSError) -> Fault:
    reason = f"{path}: {error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        return MissingFault(reason, "restore the key folder from the key backup")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FullFault(reason)
    return StorageFault(reason)
