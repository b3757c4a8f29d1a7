"""Walking an outbox: what may be taken as an output, and what may not.

A run may leave anything there: links to other places, pipes that never end, names that change how a listing looks. So
each entry is opened relative to its folder's descriptor, no link is followed, and what was opened is judged, not what
was listed.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from valv.ports.compute import Skipped

ENTRIES: Final = 10_000
DEPTH: Final = 32
PATH: Final = 1024
"""Longest path in bytes."""

_KINDS: Final = {
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "device",
    stat.S_IFCHR: "device",
}
_TURNING: Final = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of writing, by which a name can look like another."""


@dataclass(frozen=True, slots=True)
class Found:
    """A regular file of `size` bytes, open for reading; whoever gets it closes `descriptor`."""

    path: str
    descriptor: int
    size: int


def walk(root: int) -> Iterator[Found | Skipped]:
    """Everything below the folder that descriptor `root` holds, folder by folder, names in order."""
    count = 0
    pending: list[tuple[int, str, int]] = [(os.dup(root), "", 0)]
    try:
        while pending:
            folder, prefix, depth = pending.pop()
            try:
                for name in sorted(os.listdir(folder)):  # noqa: PTH208 - by descriptor
                    count += 1
                    if count > ENTRIES:
                        yield Skipped("(all further entries)", "too_many")
                        return
                    entry = _judge(folder, name, prefix)
                    if isinstance(entry, int):
                        if depth == DEPTH:
                            os.close(entry)
                            yield Skipped(prefix + name, "too_deep")
                        else:
                            pending.append((entry, f"{prefix}{name}/", depth + 1))
                    else:
                        yield entry
            except OSError:
                yield Skipped(prefix.rstrip("/") or ".", "unreadable")
            finally:
                os.close(folder)
    finally:
        for folder, _, _ in pending:
            os.close(folder)


def _judge(folder: int, name: str, prefix: str) -> Found | Skipped | int:
    """The entry `name`; for a folder its open descriptor."""
    path = prefix + name
    if not clean(name) or len(path.encode("utf-8", "surrogateescape")) > PATH:
        return Skipped(shown(path), "name")
    try:
        kind = stat.S_IFMT(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        if kind in _KINDS:
            return Skipped(path, _KINDS[kind])
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError:
        return Skipped(path, "unreadable")
    is_what = os.fstat(descriptor)
    if stat.S_ISDIR(is_what.st_mode):
        return descriptor
    if not stat.S_ISREG(is_what.st_mode):
        os.close(descriptor)
        return Skipped(path, "device")
    if is_what.st_nlink > 1:
        os.close(descriptor)
        return Skipped(path, "hardlink")
    return Found(path, descriptor, is_what.st_size)


def clean(name: str) -> bool:
    """Whether a name is UTF-8 that shows as what it is."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    if name != name.strip() or "\\" in name:
        return False
    return not any(unicodedata.category(c) in ("Cc", "Cn", "Co", "Zl", "Zp") or c in _TURNING for c in name)


def shown(path: str) -> str:
    """A bad name so that it can be told: every doubtful character as an escape."""
    text = path.encode("utf-8", "surrogateescape").decode("ascii", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)[:PATH]
