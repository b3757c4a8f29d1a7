"""Bodies in a bucket of an S3 server: AWS, Ceph, MinIO and others.

    <path>/bodies/<name>     whole bodies
    <path>/claims/<name>     who is about to make a name, on servers that need it (`valv.storage.s3_write`)

Reading and listing go by `obstore`, writing by `valv.storage.s3_write`. What the server answers to a read is held
against the size and ETag that the body had when it was opened; that its bytes are the right ones, the seal says.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit
from xml.etree.ElementTree import Element

import obstore
from obstore import exceptions
from obstore.store import S3Store
from typing_extensions import Buffer

from valv.config import Storage as Settings
from valv.errors import ConfigFault, Fault, InputFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.storage import NAME, Place, Usage
from valv.storage.ahead import ReadAhead
from valv.storage.s3_client import Credentials, S3Client
from valv.storage.s3_write import Making, S3Writer, exists

if TYPE_CHECKING:  # they exist for the checker alone
    from obstore.store import ClientConfig, S3Config

PART: Final = 16 << 20
LANES: Final = 4
STALE: Final = 24 * 3600.0
CLAIM_STALE: Final = 3600.0
"""A claim lasts as long as one completion, which the attempts of the client bound."""
CHUNK: Final = 1 << 17
_NAME: Final = re.compile(NAME)


def connect(settings: Settings, home: Path, place: Place) -> S3Storage:
    """The backend `s3` of the group `valv.storage`. Raises `ConfigFault` where a setting is missing or wrong."""
    return S3Storage(settings, home, place)


class S3Storage:
    """A store in a bucket that exists already. `part`: bytes of a part (S3 takes no less than 5 MiB); `lanes`: parts on
    their way at once; `stale`: seconds after which an upload without news counts as left behind; `timeout`, `attempts`,
    `pause`: as in `S3Client`. At most `part` * (`lanes` + 1) bytes of a writer are in memory, and three parts of eight
    times the size for a body of more than 1000 parts."""

    def __init__(
        self,
        settings: Settings,
        home: Path,
        place: Place,
        *,
        part: int = PART,
        lanes: int = LANES,
        stale: float = STALE,
        timeout: float = 60.0,
        attempts: int = 6,
        pause: float = 0.2,
    ) -> None:
        _check(settings)
        self._place = place
        self._stale = stale
        self._attempts = attempts
        self._pause = pause
        credentials = Credentials.read(home / settings.credentials)
        region = settings.region or "us-east-1"
        tls, options = ssl.create_default_context(), _options(settings.url, timeout)
        if settings.ca:
            pem = _certificates(home / settings.ca, tls)
            options["root_certificate"] = pem
        self._client = S3Client(
            settings.url, settings.bucket, region, credentials, tls, timeout=timeout, attempts=attempts, pause=pause
        )
        top = f"{settings.path.strip('/')}/" if settings.path.strip("/") else ""
        self._bodies, self._claims = f"{top}bodies/", f"{top}claims/"
        self._making = Making(self._client, self._bodies, self._claims, part, lanes)
        config: S3Config = {
            "endpoint": settings.url.rstrip("/"),
            "region": region,
            "access_key_id": credentials.key,
            "secret_access_key": credentials.secret,
            "virtual_hosted_style_request": False,
        }
        if credentials.token:
            config["session_token"] = credentials.token
        self._store = S3Store(
            settings.bucket,
            config=config,
            client_options=options,
            retry_config={
                "max_retries": attempts - 1,
                "retry_timeout": timedelta(minutes=3),
                "backoff": {"init_backoff": timedelta(seconds=pause), "max_backoff": timedelta(seconds=5), "base": 2},
            },
        )

    @property
    def place(self) -> Place:
        return self._place

    def writer(self, name: str) -> S3Writer:
        key = self._key(name)
        if self._client.ask("HEAD", key, allowed=(404,)).status != 404:
            raise exists(name)
        return S3Writer(self._making, name)

    def open(self, name: str) -> S3Body:
        key = self._key(name)
        size, etag = self._look(name, key)
        return S3Body(self._store, key, name, size, etag, self._attempts, self._pause)

    def size(self, name: str) -> int:
        return self._look(name, self._key(name))[0]

    def delete(self, name: str) -> None:
        key = self._key(name)
        self._client.ask("DELETE", key, allowed=(404,))
        if self._client.ask("HEAD", key, allowed=(404,)).status != 404:
            raise StorageFault(
                f"{name}: the S3 server said that it deleted it, and has not", "look at the bucket's versions and locks"
            )

    def names(self) -> Iterator[str]:
        """Whole bodies, page by page; one that comes or goes meanwhile may be named or not."""
        for name, _ in self._listed():
            yield name

    def usage(self) -> Usage:
        """`used` counts whole bodies, as they are listed; S3 does not say what is free."""
        return Usage(sum(size for _, size in self._listed()), None)

    def sweep(self) -> int:
        """Abort uploads that had no news for a day (a part that came is news), but for those of this process; and
        remove claims of more than an hour."""
        swept = 0
        for key, upload, begun in list(self._uploads()):
            if upload in self._making.living or _age(begun) < self._stale:
                continue
            if min(_age(begun), self._silence(key, upload)) >= self._stale:
                self._client.ask("DELETE", key, query={"uploadId": upload}, allowed=(404,))
                swept += 1
        with _faults("the store cannot be swept"):
            for page in obstore.list(self._store, self._claims.rstrip("/")):
                for found in page:
                    if (datetime.now(UTC) - found["last_modified"]).total_seconds() >= min(self._stale, CLAIM_STALE):
                        self._client.ask("DELETE", found["path"], allowed=(404,))
                        swept += 1
        return swept

    def __repr__(self) -> str:
        return f"S3Storage({self._client!r}, {self._bodies!r})"

    def _key(self, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise InputFault(f"{name!r} cannot name a body", "use a-z, 0-9, '.', '_', '-', and no '.' at the start")
        return self._bodies + name

    def _look(self, name: str, key: str) -> tuple[int, str]:
        """Size and ETag, as the server spells it."""
        try:
            headers = self._client.ask("HEAD", key).headers
        except MissingFault:
            raise MissingFault(f"{name}: not in the store") from None
        size, etag = headers.get("content-length", ""), headers.get("etag", "")
        if not size.isdecimal() or not etag:
            raise StorageFault(f"{name}: the S3 server does not say how long it is")
        return int(size), etag

    def _listed(self) -> Iterator[tuple[str, int]]:
        with _faults("the store cannot be listed"):
            for page in obstore.list(self._store, self._bodies.rstrip("/")):
                for found in page:
                    name = found["path"].removeprefix(self._bodies)
                    if _NAME.fullmatch(name):
                        yield name, found["size"]

    def _uploads(self) -> Iterator[tuple[str, str, str]]:
        """Of every upload that nobody completed: key, id, when it began."""
        query = {"uploads": "", "prefix": self._bodies}
        while True:
            page = self._client.ask("GET", query=query).xml()
            for one in page.iter("Upload"):
                yield _text(one, "Key"), _text(one, "UploadId"), _text(one, "Initiated")
            if _text(page, "IsTruncated") != "true":
                return
            last = {"key-marker": _text(page, "NextKeyMarker"), "upload-id-marker": _text(page, "NextUploadIdMarker")}
            if last.items() <= query.items():
                raise StorageFault("the S3 server lists the same uploads again and again")
            query |= last

    def _silence(self, key: str, upload: str) -> float:
        """Seconds since the last part came, a large number where none did."""
        youngest, query = float("inf"), {"uploadId": upload}
        while True:
            answer = self._client.ask("GET", key, query=query, allowed=(404,))
            if answer.status == 404:
                return youngest
            page = answer.xml()
            youngest = min([youngest, *(_age(_text(one, "LastModified")) for one in page.iter("Part"))])
            last = _text(page, "NextPartNumberMarker")
            if _text(page, "IsTruncated") != "true" or last == query.get("part-number-marker"):
                return youngest
            query["part-number-marker"] = last


class S3Body:
    """One body as it was when it was opened. Another one under its name is found, never read."""

    def __init__(self, store: S3Store, key: str, name: str, size: int, etag: str, attempts: int, pause: float) -> None:
        self._store = store
        self._key = key
        self._name = name
        self._size = size
        self._etag = etag
        self._attempts = attempts
        self._pause = pause
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
        wanted = len(view)
        done = idle = 0
        fault: Fault = StorageFault(f"{self._name}: the S3 server gives fewer bytes than it has")
        while done < wanted:
            before = done
            try:
                with _faults(self._name):
                    for piece in self._pieces(offset + done, offset + wanted):
                        if len(piece) > wanted - done:
                            raise StorageFault(f"{self._name}: the S3 server gives more bytes than were asked for")
                        view[done : done + len(piece)] = piece
                        done += len(piece)
            except UnreachableFault as away:
                fault = away
            idle = 0 if done > before else idle + 1
            if idle == self._attempts:
                raise fault
            if idle:
                time.sleep(self._pause * 2 ** (idle - 1))

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        found = obstore.get(self._store, self._key, options={"range": (start, end), "if_match": self._etag})
        if found.range != (start, end) or found.meta["size"] != self._size or found.meta["e_tag"] != self._etag:
            raise exceptions.PreconditionError
        for piece in found.stream(min_chunk_size=CHUNK):
            yield memoryview(piece)

    def close(self) -> None:
        self._closed.set()
        self._ahead.close()


def _check(settings: Settings) -> None:
    """Raises `ConfigFault`."""
    url = urlsplit(settings.url)
    if url.scheme not in ("http", "https") or not url.netloc or "@" in url.netloc or url.query:
        raise ConfigFault("the store's url is not that of an S3 server", "write https://HOST[:PORT]")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", settings.bucket):
        raise ConfigFault("the store's bucket is missing, or no name of a bucket", "name a bucket that exists")
    parts = [part for part in settings.path.strip("/").split("/") if settings.path.strip("/")]
    if not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", part) for part in parts):
        raise ConfigFault("the store's path has other signs than letters, digits and '._-/'", "use another path")
    if not settings.credentials:
        raise ConfigFault("the store's credentials are missing", "name the file that the keys are in")


def _options(url: str, timeout: float) -> ClientConfig:
    return {
        "allow_http": urlsplit(url).scheme == "http",
        "connect_timeout": timedelta(seconds=min(timeout, 10.0)),
        "read_timeout": timedelta(seconds=timeout),
        "timeout": timedelta(hours=1),
    }


def _certificates(path: Path, tls: ssl.SSLContext) -> bytes:
    try:
        pem = path.read_bytes()
        tls.load_verify_locations(cadata=pem.decode("ascii"))
    except (OSError, ValueError) as error:
        raise ConfigFault(f"{path} holds no certificates: {error}", "write them in PEM form") from None
    return pem


def _text(element: Element, tag: str) -> str:
    return element.findtext(tag) or ""


def _age(moment: str) -> float:
    """Seconds since a moment as S3 spells it; 0 where it cannot be read, so that nothing is taken for old."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Turns what `obstore` raises into faults, without its texts, which hold whole answers."""
    try:
        yield
    except FileNotFoundError:
        raise MissingFault(f"{what}: not in the store") from None
    except exceptions.PreconditionError:
        raise StorageFault(f"{what}: another body lies in its place than was opened") from None
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
        raise _refused(what) from None
    except (exceptions.GenericError, OSError) as error:
        status = re.search(r"\b(4\d\d) [A-Z]", str(error))
        if status is None:
            raise UnreachableFault(f"{what}: the S3 server does not answer as it should") from None
        if status[1] in ("401", "403"):
            raise _refused(what) from None
        raise StorageFault(f"{what}: the S3 server refuses to give it ({status[1]})") from None
    except exceptions.BaseError as error:
        raise StorageFault(f"{what}: the S3 server answers wrongly ({type(error).__name__})") from None


def _refused(what: str) -> StorageFault:
    return StorageFault(
        f"{what}: the S3 server refuses", "look at the keys in the credentials file, and at the account's rights"
    )
