"""The server's side of recorded exchanges with a real iRODS 5.0.2 server, over a real socket.

    with replaying(recordings, ["connect+native auth", "get object"]) as replay:
        …a client of the port `replay.port`…

Every request of the client is answered with the next recorded reply to a request of the same kind. One that nothing
was recorded for closes the connection, and `replay.strange` names it. What a data object held was not recorded:
`content` is served in its place, which has the size and the checksum of the recorded one. Of long replies to queries
only the beginning was recorded; the columns that are missing are filled with 0.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from irods.api_number import api_number

CONTENT = b"0123456789" * 100
NUMBERS = {number: name for name, number in api_number.items()}


@dataclass
class Replay:
    """`replies`: what is left, by the kind of request. `asked`: every request, as (kind, body)."""

    port: int = 0
    content: bytes = CONTENT
    at: int = 0
    replies: dict[str, deque[list[Any]]] = field(default_factory=lambda: defaultdict(deque))
    asked: list[tuple[str, str]] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    written: bytearray = field(default_factory=bytearray)

    def load(self, recordings: dict[str, Any], *operations: str) -> None:
        """Make the replies of these operations ready, after those that are."""
        for operation in operations:
            kind = ""
            for message in recordings[operation]["wire"]:
                if message[0] == ">":
                    kind = kind_of(message[1], message[2])
                else:
                    self.replies[kind].append(message)

    def count(self, kind: str) -> int:
        return sum(asked == kind for asked, _ in self.asked)


def kind_of(message: str, number: str | int) -> str:
    return str(number) if message == "RODS_API_REQ" else message


def receive(client: socket.socket) -> tuple[str, int, bytes, bytes] | None:
    """Type, number, body and bytes of one message; None at the end."""
    head = client.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    text = client.recv(struct.unpack(">i", head)[0], socket.MSG_WAITALL).decode()
    found = dict(re.findall(r"<(type|msgLen|errorLen|bsLen|intInfo)>([^<]*)<", text))
    lengths = [int(found.get(key, 0)) for key in ("msgLen", "errorLen", "bsLen")]
    body, _, payload = [client.recv(length, socket.MSG_WAITALL) if length else b"" for length in lengths]
    return found["type"], int(found.get("intInfo", 0)), body, payload


def send(client: socket.socket, kind: str, number: int, body: bytes, payload: bytes = b"") -> None:
    header = (
        f"<MsgHeader_PI><type>{kind}</type><msgLen>{len(body)}</msgLen><errorLen>0</errorLen>"
        f"<bsLen>{len(payload)}</bsLen><intInfo>{number}</intInfo></MsgHeader_PI>"
    ).encode()
    client.sendall(struct.pack(">i", len(header)) + header + body + payload)


def answer(replay: Replay, client: socket.socket, message: tuple[str, int, bytes, bytes]) -> bool:
    """Whether the connection goes on."""
    kind = kind_of(message[0], NUMBERS.get(message[1], str(message[1])))
    text = message[2].decode("utf-8", "replace")
    replay.asked.append((kind, text))
    if kind == "RODS_DISCONNECT":
        return False
    if not replay.replies[kind]:
        replay.strange.append(kind)
        return False
    reply = replay.replies[kind].popleft()
    if reply[0] == "<!":
        send(client, "RODS_API_REPLY", reply[2], b"")
        return True
    number, body, payload = int(reply[2]), (reply[5] or "").encode(), b""
    if kind == "GEN_QUERY_AN":
        body = filled(reply[5], text).encode()
    if kind == "DATA_OBJ_WRITE_AN":
        replay.written += message[3]
        number = len(message[3])
    if kind == "DATA_OBJ_LSEEK_AN":
        replay.at = int((re.search(r"<offset>(-?\d+)", text) or ["", "0"])[1])
    if kind == "DATA_OBJ_READ_AN":
        length = int((re.search(r"<len>(\d+)", text) or ["", "0"])[1])
        payload = replay.content[replay.at : replay.at + length]
        replay.at += len(payload)
        number = len(payload)
    send(client, reply[1], number, body, payload)
    return True


def filled(reply: str, request: str) -> str:
    """The recorded reply with every column that was asked for."""
    if reply.rstrip().endswith("</GenQueryOut_PI>"):
        return reply
    end = "</SqlResult_PI>"
    kept = reply[: reply.rindex(end) + len(end)]
    rows = int((re.search(r"<rowCnt>(\d+)", kept) or ["", "0"])[1])
    asked = re.findall(r"<inx>(\d+)</inx>", request.partition("</InxIvalPair_PI>")[0])
    there = set(re.findall(r"<attriInx>(\d+)</attriInx>", kept))
    for column in asked:
        if column not in there:
            values = "<value>0</value>" * rows
            kept += f"<SqlResult_PI><attriInx>{column}</attriInx><reslen>2</reslen>{values}{end}"
    return f"{kept}</GenQueryOut_PI>"


@contextlib.contextmanager
def replaying(recordings: dict[str, Any], *operations: str) -> Iterator[Replay]:
    replay = Replay()
    replay.load(recordings, *operations)
    mutex = threading.Lock()

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while (message := receive(client)) is not None:
                with mutex:
                    if not answer(replay, client, message):
                        return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        replay.port = int(listener.getsockname()[1])
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield replay
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
