"""The backend `sandbox`: runs on the node itself, through the launcher. Entry point of the group `valv.compute`."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress

import msgspec

from valv.compute import stream, wire
from valv.compute.client import LauncherClient
from valv.errors import Fault, FormatFault, IntegrityFault
from valv.formats.crypt4gh import CIPHER_SEGMENT, cipher_size, header_length, segments
from valv.formats.hashtree import HASH
from valv.formats.seal import sidecar
from valv.ports.compute import (
    DAMAGE,
    Job,
    Joined,
    MountedFile,
    Output,
    Rekeyed,
    Rewritten,
    RunSpec,
    RunStatus,
    Skipped,
)
from valv.ports.storage import Storage
from valv.vault.sealing import BATCH, SealingWriter


class SandboxCompute:
    """Implements `valv.ports.compute.Compute`. `storage`: where collected outputs go."""

    def __init__(self, client: LauncherClient, storage: Storage) -> None:
        self._client = client
        self._storage = storage

    def reserve(self, run_id: str) -> int:
        return self._client.reserve(run_id)

    def start(self, spec: RunSpec) -> None:
        self._client.start(spec)

    def status(self, run_id: str) -> RunStatus:
        return self._client.status(run_id)

    def stop(self, run_id: str) -> None:
        self._client.stop(run_id)

    def collect(self, run_id: str, public_key: bytes) -> Iterator[Output | Skipped]:
        """Outputs arrive encrypted; each is in the store when it is yielded. A body is written while its segments are
        sealed anew from the bytes that came, so what has not the form of encrypted segments, or not the seal that was
        told, is refused (`IntegrityFault`)."""
        with self._client.collect(run_id, public_key) as connection:
            arriving: _Arriving | None = None
            try:
                for kind, payload in stream.frames(connection):
                    match kind:
                        case b"S" if arriving is None:
                            yield msgspec.msgpack.decode(payload, type=Skipped)
                        case b"F" if arriving is None:
                            arriving = _Arriving(payload.decode(), self._storage)
                        case b"D" if arriving is not None:
                            arriving.add(payload)
                        case b"E" if arriving is not None:
                            output = arriving.finish(msgspec.msgpack.decode(payload, type=stream.Ended))
                            arriving = None
                            yield output
                        case _:
                            raise FormatFault("the collecting process lost its order")
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise FormatFault("the collecting process sent something that is no frame") from None
            finally:
                if arriving is not None:
                    arriving.abort()

    def discard(self, run_id: str) -> None:
        self._client.discard(run_id)

    def runs(self) -> list[str]:
        return self._client.runs()


class SandboxReader:
    """Implements `valv.ports.compute.Reader`."""

    def __init__(self, client: LauncherClient) -> None:
        self._client = client

    def reserve(self) -> tuple[str, int]:
        return self._client.reserve_reader()

    def read(self, token: str, grant_id: str, file: MountedFile) -> Iterator[bytes]:
        with self._client.read(token, grant_id, file) as connection:
            for kind, payload in stream.frames(connection):
                if kind != b"D":
                    raise FormatFault("the reading process sent something else than bytes")
                yield payload

    def rekey(
        self, token: str, grant_id: str, files: Sequence[tuple[MountedFile, str]], public_key: bytes
    ) -> Generator[Rekeyed | Fault, None, None]:
        """Waits as long as the process lives. After `UnreachableFault` for a cut stream it is dead, so that no new body
        appears any more."""
        asked = iter(files)
        with self._client.rekey(token, grant_id, files, public_key) as connection:
            for kind, payload in stream.frames(connection, patience=None):
                file, _ = next(asked, (None, ""))
                if file is None:
                    raise FormatFault("the rekeying process sent more answers than it was asked for")
                yield _answer(kind, payload, file)
        if next(asked, None) is not None:
            raise FormatFault("the rekeying process ended without an answer for each file")

    def join(self, token: str, grant_id: str, parts: Sequence[MountedFile], body: str, public_key: bytes) -> Joined:
        """Waits as long as the process lives. After `UnreachableFault` for a cut stream it is dead."""
        with self._client.join(token, grant_id, parts, body, public_key) as connection:
            answers = list(stream.frames(connection, patience=None))
        if len(answers) != 1 or answers[0][0] != b"R":
            raise FormatFault("the joining process sent something that is no answer")
        try:
            return _joined(msgspec.msgpack.decode(answers[0][1], type=Joined), parts)
        except msgspec.DecodeError:
            raise FormatFault("the joining process sent something that is no answer") from None

    def rewrite(
        self, token: str, grant_id: str, file: MountedFile, job: Job, *, public_key: bytes, body: str
    ) -> Rewritten:
        """Waits as long as the process lives. After `UnreachableFault` for a cut stream it is dead."""
        with self._client.rewrite(token, grant_id, file, job, public_key=public_key, body=body) as connection:
            answers = list(stream.frames(connection, patience=None))
        if len(answers) != 1:
            raise FormatFault("the rewriting process sent something that is no answer")
        kind, payload = answers[0]
        try:
            if kind == b"R":
                return _rewritten(msgspec.msgpack.decode(payload, type=Rewritten))
            fault = msgspec.msgpack.decode(payload, type=wire.Failure).exception() if kind == b"N" else None
        except msgspec.DecodeError:
            fault = None
        raise fault or FormatFault("the rewriting process sent something that is no answer")


def _rewritten(made: Rewritten) -> Rewritten:
    """What the process tells of the body, if it can be so."""
    if made.outcome != "rewritten":
        return made
    sizes, roots = (made.cipher_size, made.segments), (len(made.seal_root), len(made.tree_root), len(made.sha256))
    if sizes != (cipher_size(made.size), segments(made.size)) or roots != (HASH, HASH, HASH):
        raise FormatFault("the rewriting process told of a body that cannot be")
    if header_length(made.header) != len(made.header):
        raise FormatFault("the rewriting process told no whole header")
    return made


def _joined(made: Joined, parts: Sequence[MountedFile]) -> Joined:
    """What the process tells of the body, if it can be so."""
    _check(made)
    came = sum(part.size for part in parts)
    held = len(made.header) + made.cipher_size if made.sealed else made.size
    if held != came or len(made.sha256) != HASH:
        raise FormatFault("the joining process told of another body than the one asked for")
    return made


def _check(made: Rekeyed | Joined) -> None:
    if (len(made.seal_root), len(made.tree_root)) != (HASH, HASH):
        raise FormatFault("a process told of a body without its roots")
    if isinstance(made, Joined) and (made.cipher_size, made.segments) != (cipher_size(made.size), segments(made.size)):
        raise FormatFault("the joining process told of sizes that cannot be")
    if header_length(made.header) != len(made.header):
        raise FormatFault("a process told no whole header")


def _answer(kind: bytes, payload: bytes, file: MountedFile) -> Rekeyed | Fault:
    """What the process tells of this file, if it can be so."""
    try:
        if kind == b"R":
            return _rekeyed(msgspec.msgpack.decode(payload, type=Rekeyed), file)
        fault = msgspec.msgpack.decode(payload, type=wire.Failure).exception() if kind == b"N" else None
    except msgspec.DecodeError:
        fault = None
    if not isinstance(fault, DAMAGE):
        raise FormatFault("the rekeying process sent something that is no answer")
    return fault


def _rekeyed(made: Rekeyed, file: MountedFile) -> Rekeyed:
    if (made.cipher_size, made.segments) != (cipher_size(file.size), segments(file.size)):
        raise FormatFault("the rekeying process told of another body than the one asked for")
    _check(made)
    return made


class _Arriving:
    """One output on its way into the store, under a random name."""

    def __init__(self, path: str, storage: Storage) -> None:
        self._path = path
        self._storage = storage
        self._name = secrets.token_hex(16)
        self._out = SealingWriter(storage.writer(self._name), storage.writer(sidecar(self._name)))
        self._buffer = self._out.buffer()
        self._filled = 0

    def add(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if self._filled == 0:
                self._buffer = self._out.buffer()
            count = min(len(rest), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == BATCH * CIPHER_SEGMENT:
                self._out.put(self._filled)
                self._filled = 0

    def finish(self, ended: stream.Ended) -> Output:
        try:
            if self._filled:
                self._out.put(self._filled)
            if header_length(ended.header) != len(ended.header):
                raise FormatFault("an output came without a whole header")
            body = self._out.finish()
            if (body.size, body.seal_root) != (ended.size, ended.seal_root):
                raise IntegrityFault("an output arrived otherwise than it was sealed")
        except Fault:
            self.abort()
            for name in (self._name, sidecar(self._name)):
                with suppress(Fault):
                    self._storage.delete(name)
            raise
        return Output(self._path, self._name, ended.header, body.size, ended.sha256, body.seal_root, body.tree_root)

    def abort(self) -> None:
        self._out.abort()
