"""A folder that is to be sent: which files go, under which names, and their checksums."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from valv.cli.screen import Advance
from valv.errors import InputFault, RefusedFault
from valv.formats import paths

PIECE = 1 << 20
"""Bytes read at a time."""


@dataclass(frozen=True)
class Item:
    """One file: where it lies, the name that it gets in the dataset, and its size in bytes."""

    path: Path
    name: str
    size: int


@dataclass(frozen=True)
class Folder:
    """`items` in the order of their names; `skipped`: what is not sent, each with the reason."""

    items: list[Item]
    skipped: list[str]

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


def walk(root: Path, leave: Path | None = None) -> Folder:
    """Every regular file below `root`. Nothing is followed out of it: symbolic links, sockets and devices are skipped.
    `leave`: a file that is not data (the checksums).

    Raises `InputFault` where the folder cannot be read, the refusal `path_wrong` for a name that no dataset can have.
    """
    if not root.is_dir():
        raise InputFault(f"{root} is not a folder", "give the folder that holds the files")
    items: list[Item] = []
    skipped: list[str] = []
    for folder, below, files in os.walk(root, onerror=_unreadable):
        here = Path(folder)
        for name in sorted(below):
            if (here / name).is_symlink():
                skipped.append(f"{(here / name).relative_to(root)}: a symbolic link")
        below.sort()
        for name in sorted(files):
            path = here / name
            found = path.lstat()
            if stat.S_ISLNK(found.st_mode):
                skipped.append(f"{path.relative_to(root)}: a symbolic link")
            elif not stat.S_ISREG(found.st_mode):
                skipped.append(f"{path.relative_to(root)}: not a regular file")
            elif leave is None or not path.samefile(leave):
                items.append(Item(path, unicodedata.normalize("NFC", path.relative_to(root).as_posix()), found.st_size))
    items.sort(key=lambda item: item.name)
    _names(items)
    return Folder(items, skipped)


def _unreadable(error: OSError) -> None:
    raise InputFault(f"{error.filename}: {error.strerror}", "every file of the folder must be readable")


def _names(items: list[Item]) -> None:
    seen: dict[str, str] = {}
    for item in items:
        wrong = paths.fault(item.name)
        if wrong is not None:
            raise RefusedFault(wrong)
        other = seen.setdefault(paths.folded(item.name), item.name)
        if other != item.name:
            raise InputFault(f"{item.name!r} and {other!r} differ only in letter case or look", "rename one of them")


def read_checksums(file: Path) -> dict[str, str]:
    """SHA-256 (hex) by file name, from the output of `sha256sum`. Raises `InputFault` naming the line."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputFault(f"{file}: {getattr(error, 'strerror', None) or 'not text'}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        escaped = line.startswith("\\")
        digest, gap, name = line.removeprefix("\\").partition(" ")
        if not gap or len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef") or len(name) < 2:
            raise InputFault(f"{file} line {number} is not a checksum", "make the file with 'sha256sum'")
        name = name[1:]  # after the blank comes one more, or '*'
        if escaped:
            name = name.replace("\\n", "\n").replace("\\\\", "\\")
        found[unicodedata.normalize("NFC", name.removeprefix("./"))] = digest.lower()
    return found


def declared(folder: Folder, checksums: dict[str, str], file: Path) -> None:
    """Raises `InputFault` where a checksum names a file that is not there."""
    missing = sorted(set(checksums) - {item.name for item in folder.items})
    if missing:
        raise InputFault(f"{file} names {missing[0]!r}, which is not in the folder", "complete the folder")


def pieces(item: Item, advance: Advance) -> Iterator[bytes]:
    """The file's bytes. It is opened without following a link that was put in its place meanwhile."""
    try:
        descriptor = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InputFault(f"{item.path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            advance(len(piece))
            yield piece


def digest(item: Item, advance: Advance) -> str:
    """SHA-256 of the file as it is, hex."""
    whole = hashlib.sha256()
    for piece in pieces(item, advance):
        whole.update(piece)
    return whole.hexdigest()
