"""Bodies in a container of OpenStack's object store Swift.

    <path>/bodies/<name>                     whole bodies: an object, or the manifest of a Static Large Object
    <path>/segments/<name>/<mark>/<number>   segments, and manifests of some; the mark is of the writer
    <path>/claims/<name>/<mark>              who is about to make a name (`valv.storage.swift_write`)

What the server answers to a read is held against the size and ETag that the body had when it was opened; that its bytes
are the right ones, the seal says.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from typing_extensions import Buffer

from valv.config import Storage as Settings
from valv.errors import ConfigFault, Fault, InputFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.storage import NAME, Place, Usage
from valv.storage.ahead import ReadAhead
from valv.storage.swift_session import Answer, SwiftSession, login_of, refusal
from valv.storage.swift_write import MARK, Making, SwiftWriter, exists

SEGMENT: Final = 16 << 20
LANES: Final = 4
FAN: Final = 1000
"""What Swift takes in one manifest, if its operator has not changed it."""
STALE: Final = 24 * 3600.0
CLAIM_STALE: Final = 3600.0
PAGE: Final = 1000
_NAME: Final = re.compile(NAME)


def connect(settings: Settings, home: Path, place: Place) -> SwiftStorage:
    """The backend `swift` of the group `valv.storage`. Raises `ConfigFault` where a setting is missing or wrong."""
    return SwiftStorage(settings, home, place)


class SwiftStorage:
    """A store in a container that exists already. `segment`: bytes of a segment; `lanes`: segments on their way at
    once; `fan`: parts of one manifest; `stale`: seconds after which segments without a body count as left behind;
    `timeout`, `attempts`, `pause`: as in `SwiftSession`. At most `segment` * (`lanes` + 1) bytes of a writer are in
    memory."""

    def __init__(
        self,
        settings: Settings,
        home: Path,
        place: Place,
        *,
        segment: int = SEGMENT,
        lanes: int = LANES,
        fan: int = FAN,
        stale: float = STALE,
        timeout: float = 60.0,
        attempts: int = 6,
        pause: float = 0.2,
    ) -> None:
        _check(settings)
        self._place = place
        self._stale = stale
        self._container = settings.bucket
        tls = ssl.create_default_context()
        if settings.ca:
            _trust(home / settings.ca, tls)
        login = login_of(home / settings.credentials, settings.region, tls, timeout)
        self._session = SwiftSession(login, tls, url=settings.url, timeout=timeout, attempts=attempts, pause=pause)
        self._prefix = f"{settings.path.strip('/')}/" if settings.path.strip("/") else ""
        self._making = Making(self._session, self._container, self._prefix, segment, lanes, fan)

    @property
    def place(self) -> Place:
        return self._place

    def writer(self, name: str) -> SwiftWriter:
        if self._session.ask("HEAD", self._path(name), allowed=(404,)).status != 404:
            raise exists(name)
        return SwiftWriter(self._making, name)

    def open(self, name: str) -> SwiftBody:
        answer = self._look(name)
        return SwiftBody(self._session, self._path(name), name, _size(name, answer), answer.etag)

    def size(self, name: str) -> int:
        return _size(name, self._look(name))

    def delete(self, name: str) -> None:
        """A large body with its segments: they go first, so that a crash leaves a name that can be deleted again."""
        path = self._path(name)
        found = self._session.ask("HEAD", path, allowed=(404,))
        if found.status == 404:
            return
        large = found.headers.get("x-static-large-object", "").lower() == "true"
        self._session.ask("DELETE", path, query={"multipart-manifest": "delete"} if large else None, allowed=(404,))
        if self._session.ask("HEAD", path, allowed=(404,)).status != 404:
            raise StorageFault(f"{name}: the Swift server said that it deleted it, and has not")

    def names(self) -> Iterator[str]:
        """Whole bodies, page by page; one that comes or goes meanwhile may be named or not."""
        for one in self._listed("bodies/"):
            yield one["name"]

    def usage(self) -> Usage:
        """`used` counts whole bodies, as they are listed; `free` where the container has a quota."""
        used = sum(int(one["bytes"]) for one in self._listed("bodies/"))
        headers = self._session.ask("HEAD", self._container).headers
        quota, taken = headers.get("x-container-meta-quota-bytes", ""), headers.get("x-container-bytes-used", "")
        free = max(0, int(quota) - int(taken)) if quota.isdecimal() and taken.isdecimal() else None
        return Usage(used, free)

    def sweep(self) -> int:
        """Remove segments without their body to which nothing was added for a day, but for those of writers of this
        process; and claims of more than an hour. Counts writers and claims."""
        swept = 0
        left: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for one in self._listed("segments/"):
            name, mark, _ = one["name"].split("/")
            left.setdefault((name, mark), []).append(one)
        for (name, mark), segments in left.items():
            if mark in self._making.living or min(_age(one["last_modified"]) for one in segments) < self._stale:
                continue
            if self._session.ask("HEAD", self._path(name), allowed=(404,)).headers.get(MARK) == mark:
                continue
            for one in segments:
                path = f"{self._container}/{self._prefix}segments/{one['name']}"
                self._session.ask("DELETE", path, allowed=(404,))
            swept += 1
        for one in self._listed("claims/"):
            if _age(one["last_modified"]) >= min(self._stale, CLAIM_STALE):
                path = f"{self._container}/{self._prefix}claims/{one['name']}"
                self._session.ask("DELETE", path, allowed=(404,))
                swept += 1
        return swept

    def __repr__(self) -> str:
        return f"SwiftStorage({self._session!r}, {self._container}/{self._prefix})"

    def _path(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise InputFault(f"{name!r} cannot name a body", "use a-z, 0-9, '.', '_', '-', and no '.' at the start")
        return f"{self._container}/{self._prefix}bodies/{name}"

    def _look(self, name: str) -> Answer:
        try:
            return self._session.ask("HEAD", self._path(name))
        except MissingFault:
            raise MissingFault(f"{name}: not in the store") from None

    def _listed(self, below: str) -> Iterator[dict[str, Any]]:
        """Every object below a prefix of the store, its `name` without that prefix."""
        prefix, marker = self._prefix + below, ""
        while True:
            query = {"prefix": prefix, "format": "json", "limit": str(PAGE), "marker": marker}
            try:
                answer = self._session.ask("GET", self._container, query=query)
                page = json.loads(answer.content or b"[]")
            except MissingFault:
                raise StorageFault("the Swift container does not exist", "make it, or correct 'bucket'") from None
            except ValueError:
                raise StorageFault("the Swift server lists what is no list") from None
            if not page:
                return
            for one in page:
                yield one | {"name": str(one["name"]).removeprefix(prefix)}
            if page[-1]["name"] <= marker:
                raise StorageFault("the Swift server lists the same objects again and again")
            marker = page[-1]["name"]


class SwiftBody:
    """One body as it was when it was opened. Another one under its name is found, never read."""

    def __init__(self, session: SwiftSession, path: str, name: str, size: int, etag: str) -> None:
        self._session = session
        self._path = path
        self._name = name
        self._size = size
        self._etag = etag
        self._closed = threading.Event()
        self._ahead = ReadAhead(self._fetch, size)

    @property
    def size(self) -> int:
        return self._size

    def pread_into(self, target: Buffer, offset: int) -> int:
        view = memoryview(target).cast("B")
        view = view[: max(0, min(len(view), self._size - offset))]
        if self._closed.is_set():
            raise StorageFault(f"{self._name} has been closed")
        self._ahead.read(view, offset)
        return len(view)

    def _fetch(self, view: memoryview, offset: int) -> None:
        """Where an answer ends early, the rest is asked for again, as long as any bytes come."""
        done = idle = 0
        fault: Fault = StorageFault(f"{self._name}: the Swift server gives fewer bytes than it has")
        while done < len(view):
            before = done
            try:
                for piece in self._pieces(offset + done, offset + len(view)):
                    if len(piece) > len(view) - done:
                        raise StorageFault(f"{self._name}: the Swift server gives more bytes than were asked for")
                    view[done : done + len(piece)] = piece
                    done += len(piece)
            except UnreachableFault as away:
                fault = away
            idle = 0 if done > before else idle + 1
            if idle == self._session.attempts:
                raise fault
            self._session.wait(idle)

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        headers = {"range": f"bytes={start}-{end - 1}", "if-match": f'"{self._etag}"'}
        with self._session.stream("GET", self._path, headers=headers) as answer:
            if answer.status_code == 404:
                raise MissingFault(f"{self._name}: not in the store")
            if answer.status_code == 412:
                raise StorageFault(f"{self._name}: another body lies in its place than was opened")
            if answer.status_code != 206:
                if answer.status_code // 100 == 2:
                    raise StorageFault(f"{self._name}: the Swift server gives more bytes than were asked for")
                raise refusal(Answer(answer.status_code, answer.headers, answer.read()))
            if answer.headers.get("content-range", "") != f"bytes {start}-{end - 1}/{self._size}":
                raise StorageFault(f"{self._name}: the Swift server gives other bytes than were asked for")
            if answer.headers.get("etag", "").strip('"') != self._etag:
                raise StorageFault(f"{self._name}: another body lies in its place than was opened")
            yield from answer.iter_raw()

    def close(self) -> None:
        self._closed.set()
        self._ahead.close()


def _check(settings: Settings) -> None:
    """Raises `ConfigFault`."""
    if settings.url and not re.fullmatch(r"https?://[^/@?#]+(/[^@?#]*)?", settings.url):
        raise ConfigFault("the store's url is not that of a Swift account", "leave it out: the login gives it")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}", settings.bucket):
        raise ConfigFault("the store's bucket is missing, or no name of a container", "name a container that exists")
    parts = [part for part in settings.path.strip("/").split("/") if settings.path.strip("/")]
    if not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", part) for part in parts):
        raise ConfigFault("the store's path has other signs than letters, digits and '._-/'", "use another path")
    if not settings.credentials:
        raise ConfigFault("the store's credentials are missing", "name the file that the login is in")


def _trust(path: Path, tls: ssl.SSLContext) -> None:
    try:
        tls.load_verify_locations(cadata=path.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigFault(f"{path} holds no certificates: {error}", "write them in PEM form") from None


def _size(name: str, answer: Answer) -> int:
    size = answer.headers.get("content-length", "")
    if not size.isdecimal() or not answer.etag:
        raise StorageFault(f"{name}: the Swift server does not say how long it is")
    return int(size)


def _age(moment: str) -> float:
    """Seconds since a moment as Swift's listings spell it (UTC, without saying so)."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment).replace(tzinfo=UTC)).total_seconds()
