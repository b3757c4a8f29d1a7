"""What crosses the key holder's socket, and how it is framed.

A frame is a length (4 bytes, big-endian) and so many bytes of MessagePack: one request from the client, one answer from
the key holder, and so on. Nothing larger than `LARGEST` is read; memory grows with what has arrived, not with what a
length claims.
"""

from __future__ import annotations

import socket
import time
from typing import Annotated, Final, TypeAlias

import msgspec

from valv.errors import InputFault
from valv.formats import order
from valv.formats.crypt4gh import MAX_HEADER
from valv.keys.store import KEY_ID
from valv.ports.keys import MOST_HEADERS, KeyClass

LARGEST: Final = MAX_HEADER + (64 << 10)
"""Bytes of one frame without its length."""
_CHUNK: Final = 64 << 10

Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=KEY_ID)]
Header: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=MAX_HEADER)]
Hash: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Uid: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
Words: TypeAlias = Annotated[str, msgspec.Meta(max_length=4096)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=31 * 86400)]


class Request(msgspec.Struct, frozen=True, tag_field="verb", forbid_unknown_fields=True):
    """One request; the tag is the verb."""


class Status(Request, frozen=True, tag="status"):
    pass


class Unseal(Request, frozen=True, tag="unseal"):
    passphrase: Annotated[bytes, msgspec.Meta(max_length=4096)]

    def __repr__(self) -> str:
        return "Unseal()"


class UnsealShare(Request, frozen=True, tag="unseal_share"):
    """`words`: one officer's share, opened."""

    words: Words

    def __repr__(self) -> str:
        return "UnsealShare()"


class Shares(Request, frozen=True, tag="shares"):
    """The sealed shares of one officer."""

    officer: Name


class Create(Request, frozen=True, tag="create"):
    key_id: Name
    key_class: KeyClass


class CreateVolume(Request, frozen=True, tag="create_volume"):
    key_id: Name


class ResealVolume(Request, frozen=True, tag="reseal_volume"):
    key_id: Name
    header: Header
    public_key: Hash


class Confirm(Request, frozen=True, tag="confirm"):
    key_id: Name


class Narrow(Request, frozen=True, tag="narrow"):
    key_id: Name


class Adopt(Request, frozen=True, tag="adopt"):
    header: Header
    key_id: Name


class Grant(Request, frozen=True, tag="grant"):
    grant_id: Name
    key_ids: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=4096)]
    uid: Uid
    seconds: Seconds


class Renew(Request, frozen=True, tag="renew"):
    grant_id: Name
    seconds: Seconds


class Revoke(Request, frozen=True, tag="revoke"):
    grant_id: Name


class Reseal(Request, frozen=True, tag="reseal"):
    grant_id: Name
    key_id: Name
    header: Header
    public_key: Hash


class ResealOutside(Request, frozen=True, tag="reseal_outside"):
    key_id: Name
    header: Header
    public_key: Hash


class Sign(Request, frozen=True, tag="sign"):
    size: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    root: Hash
    proof: Annotated[list[Hash], msgspec.Meta(max_length=128)]


class Destroy(Request, frozen=True, tag="destroy"):
    key_id: Name


class Rotate(Request, frozen=True, tag="rotate"):
    key_id: Name
    pair: Number


class ResealWithin(Request, frozen=True, tag="reseal_within"):
    key_id: Name
    headers: Annotated[list[Header], msgspec.Meta(max_length=MOST_HEADERS)]


class ResealAcross(Request, frozen=True, tag="reseal_across"):
    key_id: Name
    headers: Annotated[list[Header], msgspec.Meta(max_length=MOST_HEADERS)]
    to: Name


class Retire(Request, frozen=True, tag="retire"):
    key_id: Name
    pair: Number


class Order(Request, frozen=True, tag="order"):
    """`passphrase`: of a keyring backend whose passphrase cannot be set, for a ceremony."""

    note: Annotated[str, msgspec.Meta(max_length=order.LONGEST + (8 << 10))]
    shares: Annotated[list[Words], msgspec.Meta(max_length=16)] = []
    passphrase: Annotated[bytes, msgspec.Meta(max_length=4096)] = b""

    def __repr__(self) -> str:
        return "Order()"


class Custody(Request, frozen=True, tag="custody"):
    pass


class HeldAfter(Request, frozen=True, tag="held"):
    after: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class BackUp(Request, frozen=True, tag="back_up"):
    pass


AnyRequest: TypeAlias = (
    Status
    | Unseal
    | UnsealShare
    | Shares
    | Rotate
    | ResealWithin
    | ResealAcross
    | Retire
    | Order
    | Custody
    | HeldAfter
    | BackUp
    | Create
    | CreateVolume
    | ResealVolume
    | Confirm
    | Narrow
    | Adopt
    | Grant
    | Renew
    | Revoke
    | Reseal
    | ResealOutside
    | Sign
    | Destroy
)


class Done(msgspec.Struct, frozen=True, tag_field="answer", tag="done"):
    """`result`: what the verb returns, as MessagePack."""

    result: msgspec.Raw


class Failed(msgspec.Struct, frozen=True, tag_field="answer", tag="failed"):
    """A `Fault`, or with `refused` a `Refusal`."""

    code: str
    detail: str = ""
    hint: str = ""
    context: dict[str, str] = {}
    refused: bool = False


Answer: TypeAlias = Done | Failed

decode_request: Final = msgspec.msgpack.Decoder(AnyRequest).decode
decode_answer: Final = msgspec.msgpack.Decoder(Answer).decode


def verb_of(request: AnyRequest) -> str:
    return str(type(request).__struct_config__.tag)


def frame(message: AnyRequest | Answer) -> bytes:
    """The message with its length before it. Raises `InputFault` where it is too large to be taken."""
    body = msgspec.msgpack.encode(message)
    if len(body) > LARGEST:
        raise InputFault(f"a message to the key holder has at most {LARGEST} bytes, this one {len(body)}")
    return len(body).to_bytes(4, "big") + body


def send(connection: socket.socket, data: bytes, seconds: float) -> None:
    """Send all within so many seconds, else `TimeoutError`; another `OSError` where the peer is gone."""
    connection.settimeout(seconds)
    connection.sendall(data)


def receive(connection: socket.socket, wait: float, seconds: float) -> bytes | None:
    """One frame's body; None where the peer closed the connection between two frames.

    Waits `wait` seconds for the first byte and `seconds` for all the others together, else `TimeoutError`. Raises
    `ConnectionError` where the connection ends inside a frame, `InputFault` where its length is out of bounds.
    """
    connection.settimeout(wait)
    first = connection.recv(1)
    if not first:
        return None
    deadline = time.monotonic() + seconds
    length = int.from_bytes(first + _exactly(connection, 3, deadline), "big")
    if not 0 < length <= LARGEST:
        raise InputFault(f"a frame has 1 to {LARGEST} bytes, this one claims {length}")
    return bytes(_exactly(connection, length, deadline))


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytearray:
    data = bytearray()
    while len(data) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(min(_CHUNK, count - len(data)))
        if not part:
            raise ConnectionResetError("the connection ended inside a message")
        data += part
    return data
