"""The trusted side of a rewriting: decrypts one stored file into the pipe to its sandbox, and encrypts what comes back.

What comes back was made of content that nobody may trust: it is bounded, and only known words are believed.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from typing import Final, get_args

import msgspec

from valv.errors import Fault, FormatFault
from valv.formats.seal import sidecar
from valv.ports.compute import WHY, Job, MountedFile, RewriteOutcome, Rewritten
from valv.ports.storage import Storage
from valv.vault.encrypt import Encryptor
from valv.vault.reader import SealedReader, open_reader

_HEAD: Final = struct.Struct(">cI")
_FRAME: Final = 4 << 20
_ROOM: Final = 16 << 20
"""What a new file may be larger than twice the old one."""
BROKE: Final = "the file could not be worked on within the bounds of memory and time, or breaks its format"


class Work(msgspec.Struct, frozen=True):
    """What the process is to do, as it is described to it."""

    file: MountedFile
    job: Job


class _End(msgspec.Struct, frozen=True):
    outcome: RewriteOutcome
    why: str


def rewrite(
    storage: Storage,
    work: Work,
    header: bytes,
    private_key: bytes,
    *,
    public_key: bytes,
    body: str,
    into: int,
    back: int,
) -> Rewritten:
    """Do the job. `header` (in place of the file's own) opens with `private_key`; a new file is sealed for
    `public_key` under the name `body` and is durable when this returns. `into`, `back`: descriptors of the pipes to and
    from the sandbox, which are closed. Where no new file is made nothing is left of it. Raises the faults of
    `open_reader` and of the storage; `FormatFault` where the sandbox ended without an answer."""
    file = work.file
    with os.fdopen(into, "wb", buffering=0) as target, os.fdopen(back, "rb", buffering=0) as source:
        reader = open_reader(
            storage.open,
            file.body,
            header,
            private_key,
            size=file.size,
            seal_root=file.seal_root,
            tree_root=file.tree_root,
        )
        feeder = _Feeder(reader, work.job, target)
        out = _Out(storage, public_key, body, 2 * file.size + _ROOM)
        try:
            end = _receive(source.fileno(), out)
            # A file that could not be read to its end must not count as one that ends there.
            if not feeder.finish():
                raise FormatFault(BROKE)
            if end.outcome == "rewritten":
                return out.finish()
        except BaseException:
            source.close()  # so that nobody waits for the sandbox any more
            out.abort()
            raise
        finally:
            feeder.wait()
            reader.close()
        out.abort()
        return Rewritten(end.outcome, end.why)


def _receive(source: int, out: _Out) -> _End:
    for kind, payload in _frames(source):
        if kind == b"D":
            out.write(payload)
            continue
        try:
            end = msgspec.json.decode(payload, type=_End)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise FormatFault(BROKE) from None
        if end.outcome not in get_args(RewriteOutcome) or end.why not in ("", *WHY):
            raise FormatFault(BROKE)
        return end
    raise FormatFault(BROKE)


def _frames(source: int) -> Iterator[tuple[bytes, bytes]]:
    while head := _exactly(source, _HEAD.size):
        kind, length = _HEAD.unpack(head)
        if kind not in (b"D", b"E") or length > _FRAME:
            raise FormatFault(BROKE)
        payload = _exactly(source, length) if length else b""
        if len(payload) != length:
            raise FormatFault(BROKE)
        yield kind, payload


def _exactly(source: int, length: int) -> bytes:
    """So many bytes; none at the end."""
    data = b""
    while len(data) < length:
        more = os.read(source, length - len(data))
        if not more:
            return b""
        data += more
    return data


class _Feeder:
    """Writes the job and the plain bytes, in a thread beside the one that takes the answer."""

    def __init__(self, reader: SealedReader, job: Job, target: FileIO) -> None:
        self._reader = reader
        self._target = target
        self._fault: BaseException | None = None
        self._whole = False
        said = msgspec.json.encode(job)
        self._said = len(said).to_bytes(4, "big") + said
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def finish(self) -> bool:
        """Whether the sandbox took all of it. Raises what went wrong while it was read."""
        self.wait()
        if self._fault is not None:
            raise self._fault
        return self._whole

    def wait(self) -> None:
        self._thread.join()

    def _feed(self) -> None:
        try:
            self._write(self._said)
            for chunk in self._reader.chunks():
                self._write(chunk)
            self._whole = True
        except BrokenPipeError:
            pass  # the sandbox has ended; whoever reads its answer finds out
        except BaseException as fault:
            self._fault = fault
        finally:
            with suppress(OSError):
                self._target.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._target.write(view) :]


class _Out:
    """The new file, which is begun with its first bytes. At most `most` plain bytes."""

    def __init__(self, storage: Storage, public_key: bytes, body: str, most: int) -> None:
        self._storage = storage
        self._public = public_key
        self._body = body
        self._left = most
        self._encryptor: Encryptor | None = None
        self._done = False

    def write(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            raise FormatFault(BROKE)
        self._begun().write(data)

    def finish(self) -> Rewritten:
        made = self._begun().finish()
        self._done = True
        return Rewritten(
            "rewritten",
            "",
            header=made.header,
            size=made.size,
            cipher_size=made.cipher_size,
            segments=made.segments,
            seal_root=made.seal_root,
            tree_root=made.tree_root,
            sha256=made.sha256,
        )

    def abort(self) -> None:
        if self._encryptor is not None and not self._done:
            self._encryptor.abort()
            for name in (self._body, sidecar(self._body)):
                with suppress(Fault):
                    self._storage.delete(name)

    def _begun(self) -> Encryptor:
        if self._encryptor is None:
            writer = self._storage.writer(self._body)
            try:
                seal_writer = self._storage.writer(sidecar(self._body))
            except BaseException:
                writer.abort()
                raise
            self._encryptor = Encryptor(writer, seal_writer, self._public)
        return self._encryptor
