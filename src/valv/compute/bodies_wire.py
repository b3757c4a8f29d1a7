"""What is said on `bodies.sock`: how confined processes, which have no network, read stores that are not folders.

A connection carries requests one after another, each with one answer. Both are frames: length (u32, big-endian), then
MessagePack. After a `Read` that succeeded come as many bytes of the body as the answer says; after a `Piece` as many
bytes to be written as it says. What travels is ciphertext.

Reads keep nothing between two requests, so that any connection will do, and a cut one is simply made again. A body is
written on one connection from `Write` to `Commit`; who hangs up before gives it up. `Delete` takes back what was
committed on the same connection.
"""

from __future__ import annotations

import re
import socket
import time
from typing import Any, Final

import msgspec

from valv.compute.wire import LENGTH, Answer
from valv.errors import InputFault
from valv.ports.storage import NAME

FRAME: Final = 1 << 16
"""Longest request or answer in bytes, what follows it not counted."""
PIECE: Final = 4 << 20
"""Most bytes of a body in one go."""
_NAME: Final = re.compile(NAME)
_WORD: Final = re.compile(r"[a-z][a-z0-9._-]{0,63}")


class Size(msgspec.Struct, frozen=True, tag="size"):
    """Answer: the bytes of a body."""

    store: str
    name: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Answer: how many bytes follow, fewer than `count` only at the body's end."""

    store: str
    name: str
    offset: int
    count: int


class Write(msgspec.Struct, frozen=True, tag="write"):
    """Begin to write a body that does not exist yet."""

    store: str
    name: str


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """The next bytes of it, which follow."""

    count: int


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    pass


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    pass


class Delete(msgspec.Struct, frozen=True, tag="delete"):
    store: str
    name: str


class Suspect(msgspec.Struct, frozen=True, tag="suspect"):
    """A copy that failed or does not hold. `why`: the code of the fault, and no more: who tells it has seen plain
    bytes, which must not leave this way."""

    store: str
    name: str
    why: str


Request = Size | Read | Write | Piece | Commit | Abort | Delete | Suspect


def check(request: Request) -> None:
    """Raises `InputFault` where a name or number could not be."""
    if not isinstance(request, Piece | Commit | Abort):
        if not _NAME.fullmatch(request.name):
            raise InputFault("this cannot name a body")
        if not _WORD.fullmatch(request.store):
            raise InputFault("this cannot name a store")
    if isinstance(request, Suspect) and not _WORD.fullmatch(request.why):
        raise InputFault("this is no code of a fault")
    if isinstance(request, Read | Piece) and not 0 <= request.count <= PIECE:
        raise InputFault(f"at most {PIECE} bytes go in one piece")
    if isinstance(request, Read) and not 0 <= request.offset < 1 << 62:
        raise InputFault("a read cannot begin there")


def frame(message: Request | Answer) -> bytes:
    data = msgspec.msgpack.encode(message)
    if len(data) > FRAME:
        raise InputFault(f"a message on a body has {len(data)} bytes, more than {FRAME}")
    return LENGTH.pack(len(data)) + data


def receive(connection: socket.socket, idle: float, transfer: float) -> bytes | None:
    """The next frame's content; None where the other side hung up before it. `idle`: seconds until it begins,
    `transfer`: for all of it. Raises `OSError` where it is cut or late, and `InputFault` where it is too long to be
    one."""
    connection.settimeout(idle)
    head = bytearray(LENGTH.size)
    first = connection.recv_into(head)
    if first == 0:
        return None
    until = time.monotonic() + transfer
    fill(connection, memoryview(head)[first:], until)
    (length,) = LENGTH.unpack(head)
    if length > FRAME:
        raise InputFault(f"a message on a body has {length} bytes, more than {FRAME}")
    data = bytearray(length)
    fill(connection, memoryview(data), until)
    return bytes(data)


def fill(connection: socket.socket, view: memoryview, until: float) -> None:
    """Raises `OSError` where fewer bytes come, or not until then (`time.monotonic`)."""
    while view:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the other side is too slow")
        connection.settimeout(left)
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionResetError("the connection was closed in the middle")
        view = view[count:]


def decode(data: bytes) -> Request:
    """Raises `InputFault` where it is no request."""
    try:
        request: Request = msgspec.msgpack.decode(data, type=Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InputFault("this is no request for a body") from None
    check(request)
    return request


def decode_answer(data: bytes) -> Any:
    """The value of an answer. Raises the fault that it carries, and `OSError` where it is none."""
    try:
        answer = msgspec.msgpack.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ConnectionAbortedError("what came is no answer") from None
    if answer.fault is not None:
        raise answer.fault.exception()
    return answer.value
