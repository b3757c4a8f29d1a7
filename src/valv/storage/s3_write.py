"""Writing bodies to S3, so that a name appears at once, whole, and once.

A body up to one part is a single PUT with `If-None-Match: *`. A longer one is a multipart upload whose parts go out in
parallel; it is invisible until it is completed, with `If-None-Match: *` again. Servers that ignore the condition on
completion (Ceph before 20 does) are found out by trying it once; there, whoever makes a name first takes a *claim*: an
empty object `claims/NAME`, put with `If-None-Match: *`. Only its holder looks whether the name is free and then makes
it, so that nobody else can come between.

Every answer is checked: each part's ETag is its MD5; at the end a HEAD must show the size, the ETag (MD5, or the MD5 of
all parts' MD5 and their count) and the random mark of this writer, which tells after a lost answer whose body it is.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Final

from typing_extensions import Buffer

from valv.errors import Fault, StorageFault
from valv.storage.s3_client import Answer, S3Client

PARTS: Final = 10_000
"""So many parts may an upload have."""
SMALL_PARTS: Final = 1_000
LARGE: Final = 8
"""The parts after the first `SMALL_PARTS` are this many times as large, so that a body may have 1 TiB."""
MARK: Final = "x-amz-meta-valv-writer"
ONCE: Final = {"if-none-match": "*"}


class Making:
    """What the writers of one store share. `bodies`, `claims`: prefixes of keys, with `/` at the end."""

    def __init__(self, client: S3Client, bodies: str, claims: str, part: int, lanes: int) -> None:
        self.client = client
        self.bodies = bodies
        self.claims = claims
        self.part = part
        self.lanes = lanes
        self.living: set[str] = set()  # uploads of this process
        self._mutex = threading.Lock()
        self._completes_once: bool | None = None

    def completes_once(self) -> bool:
        """Whether the server keeps a condition on the completion of an upload. Tried once, on a key of its own.

        Raises `StorageFault` where it does not even keep one on a PUT."""
        with self._mutex:
            if self._completes_once is None:
                self._completes_once = self._tried()
            return self._completes_once

    def _tried(self) -> bool:
        ask, key = self.client.ask, f"{self.claims}.probe-{secrets.token_hex(16)}"
        upload = ""
        try:
            ask("PUT", key, headers=ONCE)
            if ask("PUT", key, headers=ONCE, allowed=(409, 412, 501)).status != 412:
                raise StorageFault(
                    "this S3 server lets a name be written twice", "use a server that keeps If-None-Match on PUT"
                )
            upload = begin(self.client, key, {})
            etag = ask("PUT", key, query={"partNumber": "1", "uploadId": upload}, body=b"probe").etag
            done = complete(self.client, key, upload, [etag])
            if done.status // 100 == 2:
                upload = ""
            return done.status == 412
        finally:
            with suppress(Fault):
                if upload:
                    ask("DELETE", key, query={"uploadId": upload})
            with suppress(Fault):
                ask("DELETE", key)

    @contextmanager
    def claim(self, name: str, mark: str) -> Iterator[None]:
        """While this writer alone may make `name`. Raises `StorageFault` where another one is at it."""
        key = self.claims + name
        answer = self.client.ask("PUT", key, headers=ONCE | {MARK: mark}, allowed=(409, 412))
        if answer.status // 100 != 2 and self.client.ask("HEAD", key, allowed=(404,)).headers.get(MARK) != mark:
            raise StorageFault(f"{name} is being written by another writer", "a body is written once; use a new name")
        try:
            if self.client.ask("HEAD", self.bodies + name, allowed=(404,)).status != 404:
                raise exists(name)
            yield
        finally:
            with suppress(Fault):  # else the sweep removes it
                self.client.ask("DELETE", key, allowed=(404,))


class S3Writer:
    """Sequential writer of one body: up to `lanes` parts go out while one is filled. `abort` after any fault."""

    def __init__(self, making: Making, name: str) -> None:
        self._making = making
        self._client = making.client
        self._name = name
        self._key = making.bodies + name
        self._mark = secrets.token_hex(16)
        self._buffer = bytearray()
        self._size = 0
        self._upload = ""
        self._digests: list[bytes] = []
        self._lanes: ThreadPoolExecutor | None = None
        self._sent: set[Future[None]] = set()
        self._ended = False

    def write(self, data: Buffer) -> None:
        """Raises `StorageFault` once a part before could not be stored."""
        if self._ended:
            raise StorageFault(f"{self._name}: the writer has ended")
        rest = memoryview(data).cast("B")
        while rest:
            limit = self._limit()
            if len(self._buffer) == limit:
                self._send_part()
                limit = self._limit()
            taken = rest[: limit - len(self._buffer)]
            self._buffer += taken
            self._size += len(taken)
            rest = rest[len(taken) :]

    def commit(self) -> None:
        if self._ended:
            raise StorageFault(f"{self._name}: the writer has ended")
        try:
            if self._upload:
                self._commit_upload()
            else:
                self._commit_put()
        except BaseException:
            self.abort()
            raise
        self._end()

    def abort(self) -> None:
        """Frees what was stored. Where the server is away, `sweep` does it later."""
        if not self._ended and self._lanes is not None:
            for future in self._sent:
                future.cancel()
            wait(self._sent)
        if self._upload:
            with suppress(Fault):
                self._client.ask("DELETE", self._key, query={"uploadId": self._upload}, allowed=(404,))
        self._end()

    def _end(self) -> None:
        self._ended = True
        self._buffer = bytearray()
        if self._lanes is not None:
            self._lanes.shutdown()
            self._lanes = None
        self._making.living.discard(self._upload)
        self._upload = ""

    def _limit(self) -> int:
        return self._making.part * (1 if len(self._digests) < SMALL_PARTS else LARGE)

    def _send_part(self) -> None:
        """The full buffer goes out as a part, once there is a lane for it. Raises the fault of an earlier one."""
        if len(self._digests) == PARTS:
            raise StorageFault(f"{self._name} is too large for S3", f"it has more than {self._size} bytes")
        if self._lanes is None:
            self._upload = begin(self._client, self._key, {MARK: self._mark})
            self._making.living.add(self._upload)
            self._lanes = ThreadPoolExecutor(self._making.lanes, "s3-part")
        # Large parts go out two at a time: what is held in memory must not grow with the lanes as well.
        self._await(self._making.lanes if len(self._digests) < SMALL_PARTS else min(2, self._making.lanes))
        data, self._buffer = self._buffer, bytearray()
        self._digests.append(b"")
        self._sent.add(self._lanes.submit(self._store_part, len(self._digests), data))

    def _await(self, fewer: int) -> None:
        """Until fewer than `fewer` parts are on their way."""
        while len(self._sent) >= max(1, fewer):
            done, self._sent = wait(self._sent, return_when="FIRST_COMPLETED")
            for future in done:
                future.result()

    def _store_part(self, number: int, data: bytearray) -> None:
        digest = hashlib.md5(data, usedforsecurity=False).digest()
        query = {"partNumber": str(number), "uploadId": self._upload}
        answer = self._client.ask("PUT", self._key, query=query, body=memoryview(data), md5=digest)
        if answer.etag != digest.hex():
            raise StorageFault(f"{self._name}: the S3 server stored other bytes than were sent (part {number})")
        self._digests[number - 1] = digest

    def _commit_upload(self) -> None:
        if self._buffer:
            self._send_part()
        while self._sent:
            self._await(1)
        etags = [digest.hex() for digest in self._digests]
        expected = hashlib.md5(b"".join(self._digests), usedforsecurity=False).hexdigest() + f"-{len(etags)}"

        def make() -> bool:
            return complete(self._client, self._key, self._upload, etags).status // 100 == 2

        self._make(make, expected)

    def _commit_put(self) -> None:
        digest = hashlib.md5(self._buffer, usedforsecurity=False).digest()

        def make() -> bool:
            headers, body = ONCE | {MARK: self._mark}, memoryview(self._buffer)
            answer = self._client.ask("PUT", self._key, headers=headers, body=body, md5=digest, allowed=(409, 412))
            return answer.status // 100 == 2

        self._make(make, digest.hex())

    def _make(self, make: Callable[[], bool], expected: str) -> None:
        """Let the name appear, and look at what appeared. `make`: False where the server says that there is one."""
        if self._making.completes_once():
            self._appear(make, expected)
        else:
            with self._making.claim(self._name, self._mark):
                self._appear(make, expected)

    def _appear(self, make: Callable[[], bool], expected: str) -> None:
        said = make()
        shown = self._client.ask("HEAD", self._key, allowed=(404,))
        if shown.status == 404:
            raise StorageFault(
                f"{self._name}: the S3 server {'said that it stored it, and has not' if said else 'would not store it'}"
            )
        if shown.headers.get(MARK) != self._mark:
            raise exists(self._name)
        if shown.etag != expected or shown.headers.get("content-length") != str(self._size):
            with suppress(Fault):  # it is this writer's own
                self._client.ask("DELETE", self._key)
            raise StorageFault(
                f"{self._name}: the S3 server stored other bytes than were sent",
                "in a bucket encrypted with keys of a key service, use the server's own keys (SSE-S3) instead",
            )
        self._upload = ""


def begin(client: S3Client, key: str, headers: Mapping[str, str]) -> str:
    """A new multipart upload: its id."""
    found = client.ask("POST", key, query={"uploads": ""}, headers=headers).xml().findtext("UploadId")
    if not found:
        raise StorageFault("the S3 server began an upload without an id")
    return found


def complete(client: S3Client, key: str, upload: str, etags: Sequence[str]) -> Answer:
    """Complete an upload where its key is free. 2xx: it says that it did; 409 or 412: there was one; 404: it has no
    such upload, as after a completion whose answer was lost."""
    parts = "".join(
        f"<Part><PartNumber>{number}</PartNumber><ETag>&quot;{etag}&quot;</ETag></Part>"
        for number, etag in enumerate(etags, 1)
    )
    body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
    query = {"uploadId": upload}
    answer = client.ask("POST", key, query=query, headers=ONCE, body=body, allowed=(404, 409, 412))
    if answer.status // 100 == 2 and answer.xml().tag != "CompleteMultipartUploadResult":
        raise StorageFault("the S3 server could not complete an upload")  # it answers 200 before it knows
    return answer


def exists(name: str) -> StorageFault:
    return StorageFault(f"{name} exists already", "a body is written once; use a new name")
