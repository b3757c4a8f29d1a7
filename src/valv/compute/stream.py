"""How outputs, plain bytes and answers leave a confined process: frames through a descriptor that the receiver gave.

Frame: kind (one byte), length of the payload (u32, big-endian), payload.

    F  an output begins; payload: its path in the outbox, UTF-8
    D  bytes: of the encrypted body, or plain ones where a file is read
    E  the output ended; payload: `Ended`, MessagePack
    S  an entry was not taken; payload: `Skipped`, MessagePack
    R  a body was encrypted anew, or joined; payload: `Rekeyed` or `Joined`, MessagePack
    N  a body cannot be encrypted anew; payload: `Failure`, MessagePack; the next one follows
    Z  all was said: the last frame; payload: `Failure` or nil, MessagePack

A stream that ends without `Z` was cut.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final, Literal

import msgspec
from typing_extensions import Buffer

from valv.compute.wire import Failure
from valv.errors import FormatFault, UnreachableFault

_HEAD: Final = struct.Struct(">cI")
PAYLOAD: Final = 8 << 20
"""Longest payload in bytes; more bytes go in several frames."""
PATIENCE: Final = 60.0
"""Seconds that one side waits for the other."""

Kind = Literal[b"F", b"D", b"E", b"S", b"R", b"N", b"Z"]


class Ended(msgspec.Struct, frozen=True):
    """What an output was: the Crypt4GH header, plain size and SHA-256, root of the seal."""

    header: bytes
    size: int
    sha256: bytes
    seal_root: bytes


class Sender:
    """The confined process's end."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE)
        self._connection = connection

    def send(self, kind: Kind, payload: Buffer = b"") -> None:
        """Raises `UnreachableFault` where the receiver is gone."""
        view = memoryview(payload).cast("B")
        if kind == b"D":
            for at in range(0, len(view), PAYLOAD):
                self._send(kind, view[at : at + PAYLOAD])
        else:
            self._send(kind, view)

    def finish(self, failure: Failure | None = None) -> None:
        self.send(b"Z", msgspec.msgpack.encode(failure))

    def _send(self, kind: bytes, payload: memoryview) -> None:
        try:
            self._connection.sendall(_HEAD.pack(kind, len(payload)))
            self._connection.sendall(payload)
        except OSError:
            raise UnreachableFault("whoever asked for the bytes is gone") from None


def frames(connection: socket.socket, patience: float | None = PATIENCE) -> Iterator[tuple[bytes, bytes]]:
    """Each frame but the last, as (kind, payload). `patience`: seconds to wait for the next bytes, None for as long as
    the sender lives.

    Raises the fault that the sender ended with, and `UnreachableFault` where the stream was cut.
    """
    connection.settimeout(patience)
    while True:
        kind, length = _HEAD.unpack(_exactly(connection, _HEAD.size))
        if kind not in (b"F", b"D", b"E", b"S", b"R", b"N", b"Z") or length > PAYLOAD:
            raise FormatFault("a confined process sent something that is no frame")
        payload = _exactly(connection, length)
        if kind == b"Z":
            failure = msgspec.msgpack.decode(payload, type=Failure | None)
            if failure is not None:
                raise failure.exception()
            return
        yield kind, payload


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        try:
            count = connection.recv_into(view)
        except OSError:
            count = 0
        if count == 0:
            raise UnreachableFault("the stream was cut before its end", "try again")
        view = view[count:]
    return bytes(data)
