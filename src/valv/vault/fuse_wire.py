"""The FUSE kernel protocol, version 7: the structures that cross `/dev/fuse` (Linux, `include/uapi/linux/fuse.h`).

Integers are in the machine's byte order, structures without padding of their own.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, Final, NamedTuple

from valv.errors import FormatFault

MAJOR: Final = 7
MIN_MINOR: Final = 28
"""Linux 4.20, the first that reads more than 128 KiB at a time."""
MINOR: Final = 31
"""What this server speaks: the kernel sends nothing that came later."""

ROOT_INO: Final = 1
MAX_PAGES: Final = 256
MAX_READ: Final = MAX_PAGES * 4096
READ_AHEAD: Final = 4 << 20
MIN_REQUEST: Final = 64 << 10
"""Size of a buffer for requests; the kernel wants at least 8 KiB."""
CLONE: Final = 0x8004E500
"""ioctl FUSE_DEV_IOC_CLONE: one more queue of the same connection."""

OPEN_KEEP_CACHE: Final = 1 << 1
NOTIFY_INVAL_INODE: Final = 2

ASYNC_READ: Final = 1 << 0
DO_READDIRPLUS: Final = 1 << 13
READDIRPLUS_AUTO: Final = 1 << 14
PARALLEL_DIROPS: Final = 1 << 18
MAX_PAGES_SET: Final = 1 << 22
EXPLICIT_INVAL_DATA: Final = 1 << 25
WANTED: Final = ASYNC_READ | DO_READDIRPLUS | READDIRPLUS_AUTO | PARALLEL_DIROPS | MAX_PAGES_SET | EXPLICIT_INVAL_DATA


class Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    SETXATTR = 21
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    COPY_FILE_RANGE = 47
    TMPFILE = 51


WRITES: Final = frozenset(
    {
        Op.SETATTR,
        Op.SYMLINK,
        Op.MKNOD,
        Op.MKDIR,
        Op.UNLINK,
        Op.RMDIR,
        Op.RENAME,
        Op.LINK,
        Op.WRITE,
        Op.SETXATTR,
        Op.REMOVEXATTR,
        Op.CREATE,
        Op.FALLOCATE,
        Op.RENAME2,
        Op.COPY_FILE_RANGE,
        Op.TMPFILE,
    }
)
"""What changes a file system."""
SILENT: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.INTERRUPT})
"""What the kernel wants no answer to. Nodes live as long as the mount, so forgetting needs no work; reads are short, so
an interrupt waits for its read."""

_IN_HEADER: Final = struct.Struct("=IIQQIIII")
_OUT_HEADER: Final = struct.Struct("=IiQ")
_INIT_IN: Final = struct.Struct("=IIII")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")
_ATTR_HEAD: Final = struct.Struct("=QII")
_ENTRY_HEAD: Final = struct.Struct("=QQQQII")
_OPEN_IN: Final = struct.Struct("=II")
_OPEN_OUT: Final = struct.Struct("=QII")
_READ_IN: Final = struct.Struct("=QQIIQII")
_STATFS: Final = struct.Struct("=QQQQQIIII24x")
_DIRENT: Final = struct.Struct("=QQII")
_INVAL_INODE: Final = struct.Struct("=Qqq")
_U32: Final = struct.Struct("=I")

OUT_HEADER: Final = _OUT_HEADER.size


class Request(NamedTuple):
    """`op` may be a number that `Op` does not know; `data` is what follows the header."""

    op: int
    unique: int
    ino: int
    data: memoryview


def _taken(layout: struct.Struct, data: memoryview) -> tuple[Any, ...]:
    """The structure at the start of `data`. Raises `FormatFault`, as all parsers here, where it is cut off."""
    try:
        return layout.unpack_from(data)
    except struct.error:
        raise FormatFault(f"a request of the kernel has {len(data)} bytes where {layout.size} belong") from None


def parse_request(buffer: memoryview) -> Request:
    _, op, unique, ino, *_ = _taken(_IN_HEADER, buffer)
    return Request(op, unique, ino, buffer[_IN_HEADER.size :])


def parse_init(data: memoryview) -> tuple[int, int, int]:
    """The kernel's major and minor version and its flags."""
    major, minor, _, flags = _taken(_INIT_IN, data)
    return major, minor, flags


def parse_open(data: memoryview) -> int:
    """The open(2) flags."""
    return int(_taken(_OPEN_IN, data)[0])


def parse_read(data: memoryview) -> tuple[int, int]:
    """Offset and size, of READ and READDIR alike."""
    _, offset, size, *_ = _taken(_READ_IN, data)
    return offset, size


def parse_access(data: memoryview) -> int:
    """The access(2) mask."""
    return int(_taken(_U32, data)[0])


def parse_name(data: memoryview) -> bytes:
    return bytes(data).partition(b"\0")[0]


def out_header(unique: int, *, length: int = 0, error: int = 0) -> bytes:
    """Before `length` bytes of payload; `error` is an errno, or 0."""
    return _OUT_HEADER.pack(OUT_HEADER + length, -error, unique)


def init_out(flags: int) -> bytes:
    """`flags`: what both sides want. At most 32 reads ahead in flight, fewer where 24 already wait."""
    return _INIT_OUT.pack(MAJOR, MINOR, READ_AHEAD, flags, 32, 24, 4096, 1, MAX_PAGES, 0, 0)


def attr(*, ino: int, size: int, mode: int, nlink: int, uid: int, gid: int, blksize: int, time: int) -> bytes:
    """`mode` with the file type's bits; `time` in seconds since 1970 serves for all three."""
    blocks = -(-size // 512)
    return _ATTR.pack(ino, size, blocks, time, time, time, 0, 0, 0, mode, nlink, uid, gid, 0, blksize, 0)


def attr_out(attributes: bytes, valid: int) -> bytes:
    """`valid`: seconds for which the kernel need not ask again."""
    return _ATTR_HEAD.pack(valid, 0, 0) + attributes


def entry_out(ino: int, attributes: bytes, valid: int) -> bytes:
    return _ENTRY_HEAD.pack(ino, 0, valid, valid, 0, 0) + attributes


def no_entry(valid: int) -> bytes:
    """There is no such name, and the kernel may remember that."""
    return entry_out(0, bytes(_ATTR.size), valid)


def open_out(flags: int) -> bytes:
    """No handle: the node says all."""
    return _OPEN_OUT.pack(0, flags, 0)


def statfs_out(*, size: int, files: int, block: int) -> bytes:
    """A full, read-only file system of `size` bytes."""
    return _STATFS.pack(-(-size // block), 0, 0, files, 0, block, 255, block, 0)


def dirent(*, ino: int, offset: int, mode: int, name: bytes) -> bytes:
    """`offset` is where the listing goes on after this entry."""
    entry = _DIRENT.pack(ino, offset, len(name), mode >> 12) + name
    return entry + bytes(-len(entry) % 8)


def invalidate_inode(ino: int) -> bytes:
    """A notice to the kernel: drop all cached pages of the node, mapped ones too."""
    body = _INVAL_INODE.pack(ino, 0, 0)
    return _OUT_HEADER.pack(OUT_HEADER + len(body), NOTIFY_INVAL_INODE, 0) + body
