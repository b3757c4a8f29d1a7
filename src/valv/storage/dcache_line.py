"""Bodies over HTTP/1.1: one connection, on which a body is sent or read without being held in memory.

`httpx` carries the short requests; it cannot wait for `100 Continue`, by which dCache names the pool that a body goes
to before it is sent, and it copies what it reads several times. Heads are written and read by `h11`, which keeps the
names of headers as they are given: XRootD takes them case-sensitively.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin, urlsplit

import h11

from valv.errors import StorageFault

SECONDS: Final = 60.0
"""For one step of a connection. Longer than a door takes to choose a pool."""
CONTINUE_SECONDS: Final = 5.0
"""How long to wait for `100 Continue`; a server that does not know it would wait for the body for ever."""
REDIRECTS: Final = 5
_REDIRECT: Final = {301, 302, 307, 308}
_RECEIVE: Final = 65_536


class Broken(Exception):
    """The connection broke, or what came is no HTTP. Another attempt may go well."""


@dataclass(frozen=True, slots=True)
class Head:
    """Of an answer. `headers`: names in lower case."""

    status: int
    headers: Mapping[str, str]


def secure(url: str) -> bool:
    """Whether a token and bodies may go there: over TLS, or to this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost"))


def origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


class Line:
    """One connection to the server of `url`. Raises `Broken`. For one thread at a time."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self.origin = origin(url)
        scheme, host, port = self.origin
        try:
            plain = socket.create_connection((host, port), timeout=SECONDS)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = context.wrap_socket(plain, server_hostname=host) if scheme == "https" else plain
        except OSError as error:
            raise Broken(_said(error)) from None
        self._http = h11.Connection(h11.CLIENT)
        self._rest = b""
        self._left = 0
        self.keeps = False
        """Whether another request may follow on this connection."""

    def start(self, method: str, url: str, headers: Mapping[str, str]) -> None:
        """Send the head of a request."""
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        self._http = h11.Connection(h11.CLIENT)
        head = h11.Request(
            method=method, target=target, headers=[("Host", parts.netloc.rpartition("@")[2]), *headers.items()]
        )
        self._send(self._http.send(head) or b"")

    def send_chunk(self, data: memoryview) -> None:
        """One chunk of a body in chunks. Raises `Broken` where the server has answered already, which it does only
        when it wants no more; what it says is then still to be had, other than after a broken connection."""
        if self._answers():
            raise Broken("the store answers before it has all")
        self._send(b"%x\r\n" % len(data))
        self._send(data)
        self._send(b"\r\n")

    def send_end(self) -> None:
        self._send(b"0\r\n\r\n")

    def send_whole(self, data: memoryview) -> None:
        """A body whose length the head told."""
        self._send(data)

    def continues(self) -> Head | None:
        """None when the body may be sent; else the answer that came instead, a redirection or a refusal."""
        self._socket.settimeout(CONTINUE_SECONDS)
        try:
            return self._head(until_continue=True)
        except TimeoutError:
            return None
        finally:
            self._socket.settimeout(SECONDS)

    def answer(self) -> Head:
        """The head of the answer; its body, of a told length, is then read by `read_into`."""
        try:
            head = self._head(until_continue=False)
        except TimeoutError:
            raise Broken("no answer in time") from None
        assert head is not None
        return head

    def read_into(self, target: memoryview) -> int:
        """Some bytes of the answer's body; 0 only at its end. Raises `Broken` where it ends early."""
        if not self._left or not target:
            return 0
        wanted = target[: self._left]
        if self._rest:
            count = min(len(self._rest), len(wanted))
            wanted[:count] = self._rest[:count]
            self._rest = self._rest[count:]
        else:
            try:
                count = self._socket.recv_into(wanted)
            except OSError as error:
                raise Broken(_said(error)) from None
            if not count:
                raise Broken(f"the answer ended {self._left} bytes early")
        self._left -= count
        return count

    @property
    def left(self) -> int:
        """Bytes of the answer's body not read yet."""
        return self._left

    def text(self, limit: int = 2000) -> str:
        """The beginning of the answer's body: what the server says went wrong."""
        found = bytearray(min(self._left, limit))
        done = 0
        try:
            while done < len(found) and (count := self.read_into(memoryview(found)[done:])):
                done += count
        except Broken:
            pass
        return found[:done].decode("utf-8", "replace")

    def close(self) -> None:
        self.keeps = False
        self._socket.close()

    def _answers(self) -> bool:
        self._socket.settimeout(0)
        try:
            self._http.receive_data(self._socket.recv(_RECEIVE))
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except (OSError, h11.RemoteProtocolError) as error:
            raise Broken(_said(error)) from None
        finally:
            self._socket.settimeout(SECONDS)
        return True

    def _send(self, data: bytes | memoryview) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise Broken(_said(error)) from None

    def _head(self, *, until_continue: bool) -> Head | None:
        """Raises `TimeoutError`, too."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Broken(f"no HTTP: {error}") from None
            if event is h11.NEED_DATA:
                self._receive()
            elif isinstance(event, h11.InformationalResponse):
                if until_continue and event.status_code == 100:
                    return None
            elif isinstance(event, h11.Response):
                return self._begin(event)
            else:
                raise Broken("the connection ended before an answer")

    def _receive(self) -> None:
        try:
            self._http.receive_data(self._socket.recv(_RECEIVE))
        except TimeoutError:
            raise
        except (OSError, h11.RemoteProtocolError) as error:
            raise Broken(_said(error)) from None

    def _begin(self, event: h11.Response) -> Head:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        length = headers.get("content-length")
        self._left = int(length) if length is not None else 0
        self.keeps = length is not None and headers.get("connection", "").lower() != "close"
        self._rest = bytes(self._http.trailing_data[0])
        return Head(event.status_code, headers)


def redirected(head: Head, url: str) -> str:
    """Where a redirection leads, or ''. Raises `StorageFault` where it leads out of TLS."""
    if head.status not in _REDIRECT or "location" not in head.headers:
        return ""
    target = urljoin(url, head.headers["location"])
    if not secure(target):
        raise StorageFault(
            "the store sends bodies to a server without TLS", "set webdav.redirect.allow-https and the pools to HTTPS"
        )
    return target


def for_origin(headers: Mapping[str, str], first: str, url: str) -> dict[str, str]:
    """Without the token, where `url` is another server than the one that it is for."""
    keep = origin(first) == origin(url)
    return {name: value for name, value in headers.items() if keep or name != "Authorization"}


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate does not hold: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
