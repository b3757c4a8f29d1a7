"""Small files that survive a power cut: whole or not at all, readable by their owner only, wiped when replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
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
