"""Files that come to this computer: whole or not at all under their name, never outside the folder, checked."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from valv.errors import FullFault, InputFault, IntegrityFault, RefusedFault
from valv.formats import paths

PIECE = 1 << 20
"""Bytes read at a time."""


def place(folder: Path, name: str) -> Path:
    """Where a file of the node goes below `folder`. A name that would lead elsewhere is refused (`path_wrong`): the
    node is not trusted with this computer."""
    wrong = paths.fault(name)
    if wrong is not None:
        raise RefusedFault(wrong)
    target = folder / name
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise InputFault(f"{target.parent} leads out of {folder}", "choose an empty folder")
    return target


@contextmanager
def fresh(target: Path, *, overwrite: bool = False, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file that takes its name when the block ends well, and is dropped when it does not. Raises `InputFault` where
    `target` is there already, unless it may be overwritten."""
    if not overwrite and os.path.lexists(target):
        raise InputFault(f"{target} is there already", "move it away, or choose another name")
    part = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    with writing(target):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns this computer's write errors into faults that name the file."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FullFault(f"{target}: {error.strerror} on this computer", "make room, then repeat") from error
        raise InputFault(f"{error.filename or target}: {error.strerror}", "choose another place") from error


def save(target: Path, chunks: Iterable[bytes], sha256: str, *, overwrite: bool = False) -> int:
    """Write a file and hold it against its checksum (hex, '' for none). Returns its size. Raises `IntegrityFault`;
    nothing is left then."""
    whole, size = hashlib.sha256(), 0
    with fresh(target, overwrite=overwrite) as file:
        for chunk in chunks:
            whole.update(chunk)
            size += len(chunk)
            file.write(chunk)
        if sha256 and whole.hexdigest() != sha256:
            raise IntegrityFault(
                f"{target.name}: received {whole.hexdigest()[:16]}…, listed {sha256[:16]}…", "fetch it again"
            )
    return size


def digest(path: Path) -> str:
    """SHA-256 of a file, hex; '' where there is none."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""
