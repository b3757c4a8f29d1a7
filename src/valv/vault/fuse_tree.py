"""The files of a mount as a tree of nodes. Built once; nothing in it changes while the mount lives."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import Final

from valv.errors import InputFault
from valv.ports.compute import MountedFile
from valv.vault import fuse_wire as wire

BLOCK: Final = 1 << 20
"""What stat(2) advises as the size of reads."""
FOREVER: Final = 86_400
"""Seconds for which the kernel may keep names and attributes: they do not change."""
_NAME_MAX: Final = 255


class Node:
    """A folder, or the file `file`."""

    def __init__(self, ino: int, parent: Node | None, name: bytes, file: MountedFile | None) -> None:
        self.ino = ino
        self.parent = parent or self
        self.name = name
        self.file = file
        self.children: dict[bytes, Node] = {}
        self.attributes = b""
        self.listing: list[tuple[bytes, Node]] = []

    @property
    def mode(self) -> int:
        return stat.S_IFREG | 0o444 if self.file else stat.S_IFDIR | 0o555


class Tree:
    """Nodes by inode number; the root is 1. Raises `InputFault` for a path that is no clean relative path or is there
    twice."""

    def __init__(self, files: Sequence[MountedFile], *, uid: int, gid: int, time: int) -> None:
        self.size = sum(file.size for file in files)
        root = Node(wire.ROOT_INO, None, b"", None)
        self.nodes = {root.ino: root}
        for file in files:
            *folders, last = _components(file.path)
            node = root
            for name in folders:
                node = node.children.get(name) or self._add(node, name, None)
                if node.file:
                    raise InputFault(f"{file.path!r} lies beneath another file")
            if last in node.children:
                raise InputFault(f"{file.path!r} is there twice")
            self._add(node, last, file)
        for node in self.nodes.values():
            self._finish(node, uid, gid, time)

    def entries(self, node: Node, offset: int, size: int, *, plus: bool) -> bytes:
        """A folder's listing from entry `offset`, at most `size` bytes; `plus` with each entry's attributes."""
        out = bytearray()
        for number in range(offset, len(node.listing)):
            name, child = node.listing[number]
            entry = wire.dirent(ino=child.ino, offset=number + 1, mode=child.mode, name=name)
            if plus:
                known = name not in (b".", b"..")  # these two count as no look-up
                head = wire.entry_out(child.ino, child.attributes, FOREVER) if known else wire.no_entry(0)
                entry = head + entry
            if len(out) + len(entry) > size:
                break
            out += entry
        return bytes(out)

    def _add(self, parent: Node, name: bytes, file: MountedFile | None) -> Node:
        node = Node(len(self.nodes) + 1, parent, name, file)
        parent.children[name] = self.nodes[node.ino] = node
        return node

    def _finish(self, node: Node, uid: int, gid: int, time: int) -> None:
        folders = sum(child.file is None for child in node.children.values())
        node.attributes = wire.attr(
            ino=node.ino,
            size=node.file.size if node.file else 0,
            mode=node.mode,
            nlink=1 if node.file else 2 + folders,
            uid=uid,
            gid=gid,
            blksize=BLOCK,
            time=time,
        )
        if not node.file:
            node.listing = [(b".", node), (b"..", node.parent), *sorted(node.children.items())]


def _components(path: str) -> list[bytes]:
    try:
        names = path.encode().split(b"/")
    except UnicodeEncodeError:
        names = [b""]
    if any(name in (b"", b".", b"..") or b"\0" in name or len(name) > _NAME_MAX for name in names):
        raise InputFault(f"{path!r} is no clean relative path")
    return names
