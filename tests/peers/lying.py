"""A proxy for plain HTTP that lies as told: between a client under test and a real server.

    with lying("127.0.0.1", server_port) as proxy:
        client = Client(proxy.url)
        proxy.lie(fails(503), "PUT", times=2)      # the next two PUTs are answered 503, unseen by the server
        proxy.lie(cut(1000), "GET", "/bodies/")    # the next GET of a path that holds this ends after 1000 bytes

What no lie is meant for passes unchanged, with its `Host`, so that signatures hold. `proxy.seen` lists every request
as `"METHOD /path?query"`, `proxy.told` how many lies were told. A lie is a function of the request and of `forward`,
which asks the real server; it gives the reply, or None to close the connection without one. Bodies are held in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """`cut`: so many bytes of the body are sent though all are promised, and the connection is closed."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    cut: int | None = None


Forward = Callable[[Asked], Reply]
Lie = Callable[[Asked, Forward], Reply | None]


def fails(status: int) -> Lie:
    """An error in place of the server's answer; the server never hears of it."""
    return lambda asked, forward: Reply(status, {"content-type": "text/plain"}, b"")


def cut(at: int) -> Lie:
    """The answer ends after `at` bytes of its body, with the connection."""
    return lambda asked, forward: replace(forward(asked), cut=at)


def shorter(by: int) -> Lie:
    """The answer's body lacks its last `by` bytes, and its length says so."""

    def lie(asked: Asked, forward: Forward) -> Reply:
        reply = forward(asked)
        return replace(reply, body=reply.body[: len(reply.body) - by])

    return lie


def longer(by: int) -> Lie:
    """The answer's body has `by` bytes too many, and its length says so."""

    def lie(asked: Asked, forward: Forward) -> Reply:
        reply = forward(asked)
        return replace(reply, body=reply.body + bytes(by))

    return lie


def loses() -> Lie:
    """The server does what it was asked, and its answer is lost."""

    def lie(asked: Asked, forward: Forward) -> None:
        forward(asked)

    return lie


def drops() -> Lie:
    """The connection is closed; the server never hears of it."""
    return lambda asked, forward: None


def stores_nothing(status: int = 200, body: bytes = b"") -> Lie:
    """Says that all went well, with the right ETag of what was sent, and passes nothing on."""

    def lie(asked: Asked, forward: Forward) -> Reply:
        digest = hashlib.md5(asked.body, usedforsecurity=False).hexdigest()
        return Reply(status, {"etag": f'"{digest}"'}, body)

    return lie


def changes_sent(at: int = 0) -> Lie:
    """One byte of the request's body is another one when the server gets it."""

    def lie(asked: Asked, forward: Forward) -> Reply:
        body = bytearray(asked.body)
        body[at] ^= 1
        return forward(replace(asked, body=bytes(body)))

    return lie


def says(**headers: str) -> Lie:
    """Headers of the server's answer are others; `_` in a name stands for `-`."""

    def lie(asked: Asked, forward: Forward) -> Reply:
        reply = forward(asked)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(reply, headers=reply.headers | named)

    return lie


def slow(seconds: float) -> Lie:
    """The answer comes late."""

    def lie(asked: Asked, forward: Forward) -> Reply:
        time.sleep(seconds)
        return forward(asked)

    return lie


def forgets(pattern: bytes) -> Lie:
    """What matches in the answer's body is left out, such as entries of a listing."""

    def lie(asked: Asked, forward: Forward) -> Reply:
        reply = forward(asked)
        return replace(reply, body=re.sub(pattern, b"", reply.body, flags=re.DOTALL))

    return lie


def older(reply: Reply) -> Lie:
    """An answer of earlier, such as `proxy.replies` keeps."""
    return lambda asked, forward: reply


@dataclass
class _Told:
    lie: Lie
    method: str
    path: str
    times: int


@dataclass
class Proxy:
    server: tuple[str, int]
    port: int = 0
    seen: list[str] = field(default_factory=list)
    told: int = 0
    replies: dict[str, Reply] = field(default_factory=dict)
    """The last true reply to each request, by `"METHOD /path?query"`."""
    _lies: list[_Told] = field(default_factory=list)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lie(self, lie: Lie, method: str = "", path: str = "", times: int = 1) -> None:
        """Tell it to the next `times` requests of this method ('' for any) whose path and query match `path`."""
        with self._mutex:
            self._lies.append(_Told(lie, method, path, times))

    def honest(self) -> None:
        """No more lies."""
        with self._mutex:
            self._lies.clear()

    def reply(self, asked: Asked) -> Reply | None:
        with self._mutex:
            self.seen.append(f"{asked.method} {asked.path}")
            for found in self._lies:
                if found.times and asked.method.startswith(found.method) and re.search(found.path, asked.path):
                    found.times -= 1
                    self.told += 1
                    break
            else:
                found = None
        return found.lie(asked, self.forward) if found else self.forward(asked)

    def forward(self, asked: Asked) -> Reply:
        """Ask the real server, on a connection of its own."""
        with contextlib.closing(http.client.HTTPConnection(*self.server, timeout=60)) as connection:
            connection.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                if name not in HOP:
                    connection.putheader(name, value)
            if asked.body or asked.method in ("PUT", "POST"):
                connection.putheader("content-length", str(len(asked.body)))
            connection.putheader("connection", "close")
            connection.endheaders(asked.body or None)
            found = connection.getresponse()
            headers = {name.lower(): value for name, value in found.getheaders()}
            if asked.method != "HEAD" and found.status != 204:
                headers = {name: value for name, value in headers.items() if name not in HOP}
            reply = Reply(found.status, headers, found.read())
        self.replies[f"{asked.method} {asked.path}"] = reply
        return reply


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.get("expect", "").lower() == "100-continue":
            del headers["expect"]
        asked = Asked(self.command, self.path, headers, self._body(headers))
        reply = None
        with contextlib.suppress(OSError, http.client.HTTPException):
            reply = self.proxy.reply(asked)
        if reply is None:
            self.close_connection = True
            return
        lines = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, 'Unknown')}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items() if name not in HOP - {"content-length"}]
        if "content-length" not in reply.headers and reply.status != 204:
            lines.append(f"content-length: {len(reply.body)}")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if asked.method != "HEAD":
            self.wfile.write(reply.body if reply.cut is None else reply.body[: reply.cut])
        self.wfile.flush()
        self.close_connection = self.close_connection or reply.cut is not None

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while length := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what these tests are about."""


@contextlib.contextmanager
def lying(host: str, port: int) -> Iterator[Proxy]:
    """A proxy in front of the server at `host` and `port`, honest until told otherwise."""
    proxy = Proxy((host, port))
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    proxy.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
