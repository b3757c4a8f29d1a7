"""The door of a WebDAV store: its token, short requests with repetition, and what its answers mean.

Names of headers are written as the standards write them: XRootD takes them case-sensitively, and stores nothing, with
the answer 200, where it does not know the one that tells the length.
"""

from __future__ import annotations

import email.utils
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

import httpx

from valv.errors import ConfigFault, Fault, FullFault, MissingFault, StorageFault, UnreachableFault
from valv.storage.dcache_line import SECONDS, Broken, Head, Line, origin, secure

ATTEMPTS: Final = 4
_BACKOFF: Final = 0.2  # seconds, doubled each time
PASSING: Final = {429, 502, 503, 504}
_IDLE_LINES: Final = 8
_FULL_WORDS: Final = ("no space", "space left", "quota", "insufficient storage")
_DAV: Final = "{DAV:}"
_PROPERTIES: Final = (
    '<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:"><D:prop><D:resourcetype/><D:getcontentlength/>'
    "<D:getlastmodified/><D:quota-available-bytes/></D:prop></D:propfind>"
)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a listing. `changed`: seconds since 1970, 0 where unknown; `free`: bytes, RFC 4331."""

    name: str
    folder: bool
    size: int
    changed: float
    free: int | None


@dataclass(frozen=True, slots=True)
class Stat:
    """A file at the door. `adler`: 8 hexadecimal digits, or '' where the server has none."""

    size: int
    adler: str


class Token:
    """The bearer token in a file, read again whenever the file changes. Raises `StorageFault` where others can read
    it. Never shown."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._mark: tuple[int, int, int] | None = None
        self._text = ""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Token({self._file.name})"

    @property
    def header(self) -> str:
        with self._lock:
            try:
                stat = self._file.stat()
                mark = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
                if mark != self._mark:
                    self._text = self._file.read_text("ascii").strip()
                    self._mark = mark
            except (OSError, UnicodeDecodeError):
                raise StorageFault(f"{self._file}: the store's token cannot be read") from None
            if stat.st_mode & 0o077:
                raise StorageFault(f"{self._file} can be read by others; chmod 600")
            if not self._text or not self._text.isprintable() or " " in self._text:
                raise StorageFault(f"{self._file} holds no token: one line, without 'Bearer'")
            return f"Bearer {self._text}"


class Door:
    """`url`: the door; `base`: the folder of the store, '/' at both ends. Safe for several threads.

    Raises the faults of the port: `MissingFault`, `FullFault`, `StorageFault`, and `UnreachableFault` after
    `ATTEMPTS` attempts."""

    def __init__(self, url: str, base: str, token: Token, ca: Path | None) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ConfigFault("a dCache store: url must be https://HOST:PORT", "set the store's url in valv.toml")
        if not secure(url):
            raise ConfigFault("a dCache store: url must begin with https://", "plain HTTP only to this machine")
        self.root = url.rstrip("/")
        self.base = base
        self.token = token
        try:
            self.context = ssl.create_default_context(cafile=str(ca) if ca else None)
        except (OSError, ssl.SSLError):
            raise ConfigFault(f"a dCache store: {ca} holds no certificates", "a PEM file with those to trust") from None
        self.client = httpx.Client(
            verify=self.context, trust_env=False, timeout=SECONDS, headers={"User-Agent": "valv"}
        )
        self._idle: list[Line] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Door({self.root}{self.base})"

    def url(self, path: str) -> str:
        """Of a path below the store's folder."""
        return self.root + quote(self.base + path)

    def headers(self, **more: str) -> dict[str, str]:
        return {"Authorization": self.token.header, **more}

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        content: str = "",
        allow: frozenset[int] = frozenset(),
    ) -> httpx.Response:
        """A short request, repeated while the door is away. `allow`: statuses from 400 on that the caller handles."""
        return self.send(method, self.url(path), path, headers, content, allow)

    def send(
        self,
        method: str,
        url: str,
        what: str,
        headers: Mapping[str, str] | None = None,
        content: str = "",
        allow: frozenset[int] = frozenset(),
    ) -> httpx.Response:
        """As `ask`, to a whole URL. `what`: for messages."""

        def once() -> httpx.Response:
            sent = {**self.headers(), **(headers or {})}
            try:
                response = self.client.request(method, url, headers=sent, content=content or None)
            except httpx.HTTPError as error:
                raise Broken(str(error) or type(error).__name__) from None
            if response.status_code in PASSING and response.status_code not in allow:
                raise Broken(f"status {response.status_code}")
            return response

        response = repeat(once, what)
        if response.status_code >= 300 and response.status_code not in allow:
            raise fault(response.status_code, what, response.text)
        return response

    def stat(self, path: str, what: str) -> Stat:
        """Of a file. Raises `MissingFault`."""
        response = self.send("HEAD", self.url(path), what, {"Want-Digest": "adler32"})
        length = response.headers.get("Content-Length", "")
        if not length.isdigit():
            raise StorageFault(f"{what}: the server does not tell its size")
        return Stat(int(length), adler_of(response.headers.get("Digest", "")))

    def make_folder(self, path: str) -> None:
        """It and those above it. One that is there is no error."""
        allowed = frozenset({405, 409})
        if self.ask("MKCOL", path, allow=allowed).status_code == 409:
            at = ""
            for part in (self.base + path).strip("/").split("/"):
                at += f"/{part}"
                answer = self.send("MKCOL", f"{self.root}{quote(at)}/", path, allow=frozenset({403, 405, 409}))
            if answer.status_code in (403, 409):  # the ones above may be other people's; the last is ours
                raise fault(answer.status_code, path, answer.text)

    def remove(self, path: str) -> bool:
        """A file, or an empty folder if `path` ends with '/'. Whether it was there."""
        return self.ask("DELETE", path, allow=frozenset({404})).status_code != 404

    def list(self, path: str, depth: int = 1) -> list[Entry]:
        """What lies in a folder; at depth 0, the folder itself. A missing folder is an empty one."""
        response = self.ask(
            "PROPFIND",
            path,
            {"Depth": str(depth), "Content-Type": "application/xml"},
            _PROPERTIES,
            allow=frozenset({404}),
        )
        if response.status_code == 404:
            return []
        return _entries(response.content, unquote(urlsplit(self.url(path)).path).rstrip("/") if depth else None)

    @contextmanager
    def line(self, url: str) -> Iterator[Line]:
        """A connection to the server of `url`, perhaps one that was used before; kept for others if it can be."""
        line = self._take(url) or Line(url, self.context)
        try:
            yield line
        except BaseException:
            line.close()
            raise
        self.give(line)

    def new_line(self, url: str) -> Line:
        return self._take(url) or Line(url, self.context)

    def give(self, line: Line) -> None:
        """For another request; only a connection of which nothing is left to read."""
        with self._lock:
            if line.keeps and not line.left and len(self._idle) < _IDLE_LINES:
                self._idle.append(line)
                return
        line.close()

    def _take(self, url: str) -> Line | None:
        wanted = origin(url)
        with self._lock:
            for line in self._idle:
                if line.origin == wanted:
                    self._idle.remove(line)
                    return line
        return None


def repeat(once: Callable[[], _T], what: str) -> _T:
    """`once`, again while it raises `Broken`; then `UnreachableFault`."""
    for attempt in range(ATTEMPTS):
        if attempt:
            pause(attempt)
        try:
            return once()
        except Broken as broken:
            last = str(broken)
    raise UnreachableFault(f"{what}: the store does not answer: {last}", "see that the door of the store runs")


def pause(attempt: int) -> None:
    """Longer each time, and not in step with others."""
    time.sleep(_BACKOFF * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret


def fault(status: int, what: str, text: str = "") -> Fault:
    """What an answer means. `text`: what the server said; only its meaning is used, it may repeat what was sent."""
    said = text.lower()
    if status == 404:
        return MissingFault(f"{what}: not in the store")
    if status in (401, 403):
        return StorageFault(
            f"{what}: the store refuses the token",
            "see that it has not expired and covers this folder, with DOWNLOAD, UPLOAD, MANAGE, DELETE and LIST",
        )
    if status in (413, 507) or any(word in said for word in _FULL_WORDS):
        return FullFault(f"{what}: the store is full")
    return StorageFault(f"{what}: the store answers {status}")


def line_fault(line: Line, head: Head, what: str) -> Fault:
    return fault(head.status, what, line.text())


def adler_of(digest: str) -> str:
    """From a header `Digest` (RFC 3230). Whatever algorithm was asked for, the answer says which one it is."""
    for part in digest.split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "adler32" and value:
            return value.lower().rjust(8, "0")
    return ""


def _entries(text: bytes, without: str | None) -> list[Entry]:
    if b"<!DOCTYPE" in text:
        raise StorageFault("the store's listing cannot be read")
    try:
        tree = ElementTree.fromstring(text)  # noqa: S314 - no document type, so no entities
    except ElementTree.ParseError:
        raise StorageFault("the store's listing cannot be read") from None
    found = []
    for response in tree.iter(f"{_DAV}response"):
        path = unquote(urlsplit(response.findtext(f"{_DAV}href", "").strip()).path).rstrip("/")
        if path == without:
            continue
        size = free = None
        changed, folder = 0.0, False
        for part in response.iter(f"{_DAV}propstat"):
            if " 200 " not in f"{part.findtext(f'{_DAV}status', '')} ":
                continue
            size = size or _number(part.findtext(f".//{_DAV}getcontentlength"))
            free = _number(part.findtext(f".//{_DAV}quota-available-bytes"))
            changed = changed or _seconds(part.findtext(f".//{_DAV}getlastmodified"))
            folder = folder or part.find(f".//{_DAV}collection") is not None
        found.append(Entry(path.rpartition("/")[2], folder, size or 0, changed, free))
    return found


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdigit() else None


def _seconds(text: str | None) -> float:
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0
