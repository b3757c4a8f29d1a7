"""A folder that is to be sent: which files go, under which names, and their checksums."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from valv.cli.screen import Advance
from valv.errors import InputFault, RefusedFault
from valv.formats import paths

PIECE = 1 << 20
"""Bytes read at a time."""
AGAIN: Final = "send it again when it is complete"
_HEX: Final = frozenset("0123456789abcdef")
_ESCAPED: Final = re.compile(r"\\[\\nr]")
_MEANT: Final = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


@dataclass(frozen=True)
class Item:
    """One file: where it lies, the name that it gets in the dataset, its size in bytes, and when it was changed last
    (nanoseconds, as the system tells)."""

    path: Path
    name: str
    size: int
    changed: int = 0


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
                shown = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
                items.append(Item(path, shown, found.st_size, found.st_mtime_ns))
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
    """SHA-256 (hex) by file name, from the output of `sha256sum` (text and binary marks, escaped names). Raises
    `InputFault` naming the line."""
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFault(f"{file}: {getattr(error, 'strerror', None) or 'not text'}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line.strip() or line.startswith("#"):
            continue
        escaped = line.startswith("\\")
        digest, gap, name = line.removeprefix("\\").partition(" ")
        if not gap or len(digest) != 64 or not set(digest.lower()) <= _HEX or len(name) < 2 or name[0] not in " *":
            raise InputFault(f"{file} line {number} is not a checksum", "make the file with 'sha256sum'")
        name = name[1:]  # after the blank comes one more, or '*'
        if escaped:
            name = _ESCAPED.sub(lambda met: _MEANT[met[0]], name)
        name = unicodedata.normalize("NFC", name.removeprefix("./"))
        if found.setdefault(name, digest.lower()) != digest.lower():
            raise InputFault(f"{file} line {number}: {name!r} is there twice, with another checksum")
    return found


def declared(folder: Folder, checksums: dict[str, str], file: Path) -> list[str]:
    """The names of files that have no checksum. Raises `InputFault` where a checksum names files that are not there."""
    names = {item.name for item in folder.items}
    missing = sorted(set(checksums) - names)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        listed = ", ".join(map(repr, missing[:5])) + more
        raise InputFault(f"{file} names {listed}, not in the folder", "complete the folder")
    return sorted(names - set(checksums))


def opened(item: Item) -> BinaryIO:
    """The file, open for reading; no link is followed that was put in its place meanwhile."""
    try:
        descriptor = os.open(item.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InputFault(f"{item.name}: {error.strerror}") from None
    return os.fdopen(descriptor, "rb", buffering=0)


def steady(item: Item, file: BinaryIO) -> None:
    """Raises `InputFault` where the file is not any more as it was when the folder was looked at."""
    now = os.fstat(file.fileno())
    if now.st_size != item.size:
        how = "grew" if now.st_size > item.size else "shrank"
        raise InputFault(f"{item.name!r} {how} from {item.size} to {now.st_size} bytes meanwhile", AGAIN)
    if item.changed and now.st_mtime_ns != item.changed:
        raise InputFault(f"{item.name!r} was changed meanwhile", AGAIN)


def content(item: Item, advance: Advance) -> bytes:
    """The bytes of a small file. Raises `InputFault` where it changes meanwhile."""
    with opened(item) as file:
        found = bytearray()
        while piece := file.read(PIECE):
            advance(len(piece))
            found += piece
            if len(found) > item.size:
                break
        steady(item, file)
    return bytes(found)


def digest(item: Item, advance: Advance) -> str:
    """SHA-256 of the file as it is, hex."""
    whole = hashlib.sha256()
    with opened(item) as file:
        while piece := file.read(PIECE):
            advance(len(piece))
            whole.update(piece)
        steady(item, file)
    return whole.hexdigest()
