"""Fetching files of a permit: several at a time, large ones in parts, and what broke off goes on where it stopped.

Beside a file that is not whole lie `NAME.part`, with its parts in their places, and `NAME.part.state`: of which stored
body it is (`ETag`), how long its header is, and up to where each part has come. What counts as come was synced before
that was written down.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from valv.cli import arriving
from valv.cli.client import path
from valv.cli.command import Door
from valv.cli.screen import Advance, Bars
from valv.errors import FormatFault, IntegrityFault, Refusal, RefusedFault, UnreachableFault
from valv.formats import crypt4gh, hashtree

PIECE: Final = 1 << 20
PART: Final = 64 << 20
"""Bytes of a part."""
NOTED: Final = 8 << 20
"""Bytes after which it is written down how far a part has come."""
TRIES: Final = 5
"""How often a broken connection is taken up again without any progress in between."""


class _Part(msgspec.Struct):
    """Bytes `start` to `end` (not included) of header and body together; they have come up to `at`."""

    start: int
    end: int
    at: int


class _State(msgspec.Struct):
    etag: str
    header: int
    size: int
    parts: list[_Part]


class _Anew(Exception):
    """The node keeps another body of the file now."""


class Fetching:
    """Fetches files with the registered key `key`; `parallel`: connections at a time."""

    def __init__(self, door: Door, permit: str, key: str, parallel: int) -> None:
        self._door, self._permit, self._key = door, permit, key
        self._parallel = parallel
        self._client = door.client
        self._stopped = threading.Event()

    def fetch(self, files: Sequence[tuple[dict[str, Any], Path]]) -> None:
        """Each file, as the node lists it, to its place. Raises the first fault, when no other connection is open any
        more; what came of the other files stays for the next try."""
        for file, _ in files:
            _check_listed(file)
        total = sum(crypt4gh.cipher_size(file["size"]) for file, _ in files)
        with (
            self._door.transfers(f"{len(files)} files", total) as bars,
            ThreadPoolExecutor(self._parallel, "part") as parts,
            ThreadPoolExecutor(self._parallel, "file") as pool,
        ):
            doing = [pool.submit(self._one, file, target, bars, parts) for file, target in files]
            try:
                for one in doing:
                    one.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, file: dict[str, Any], target: Path, bars: Bars, pool: ThreadPoolExecutor) -> None:
        if self._stopped.is_set():
            return
        if _has_size(target, file):
            self._door.sent(str(target), target.stat().st_size, "was there")
            return
        for _ in range(TRIES):
            with bars.file(target.name, crypt4gh.cipher_size(file["size"])) as advance:
                try:
                    self._parts(file, target, advance, pool)
                    break
                except _Anew:
                    self._door.note(f"  begins anew: {file['path']} was encrypted anew in the node")
                    _drop(target)
                    file = self._listed_anew(file)
        else:
            raise UnreachableFault(f"{target.name}: the node encrypts it anew again and again", "try again later")
        if self._stopped.is_set():
            return
        part = _part(target)
        if not _is_whole(part, file):
            _drop(target)
            raise IntegrityFault(f"{target.name} is not what the node keeps", "download it again")
        with arriving.writing(target):
            part.replace(target)
        _state(target).unlink(missing_ok=True)
        self._door.sent(str(target), target.stat().st_size, "received")

    def _listed_anew(self, file: dict[str, Any]) -> dict[str, Any]:
        """The file as the node lists it now: another body has another hash tree. Raises the refusal `no_file`."""
        for now in self._door.get("permits", self._permit, "files"):
            if now["file_id"] == file["file_id"]:
                _check_listed(now)
                return dict(now)
        raise RefusedFault(Refusal("no_file", f"{file['path']} is not in the permit any more"))

    def _parts(self, file: dict[str, Any], target: Path, advance: Advance, pool: ThreadPoolExecutor) -> None:
        """Fill the `.part` file. The first part is asked for by itself: it tells of which body it is, and how long."""
        state = _read(target, file)
        noting = threading.Lock()
        if state is not None:
            advance(sum(part.at - part.start for part in state.parts))
        else:
            if _state(target).exists():
                self._door.note(f"  begins anew: {file['path']} was encrypted anew in the node, or nothing had come")
            state = self._begin(file, target, advance, noting)
        left = [part for part in state.parts if part.at < part.end]
        doing = [pool.submit(self._fill, file, target, state, part, advance, noting) for part in left]
        faults = [fault for fault in (one.exception() for one in doing) if fault is not None]
        if faults:
            raise next((fault for fault in faults if isinstance(fault, _Anew)), faults[0])

    def _begin(self, file: dict[str, Any], target: Path, advance: Advance, noting: threading.Lock) -> _State:
        """Header and first part of a file of which nothing is there. The header is made anew each time, so that it
        comes whole or not at all."""
        body = crypt4gh.cipher_size(file["size"])
        for turn in range(TRIES):
            try:
                with self._asked(file, {}) as response:
                    etag = response.headers.get("ETag", "")
                    if etag != f'"{file["etag"]}"':
                        raise _Anew
                    pieces = response.iter_raw(PIECE)
                    prefix = b""
                    while (length := crypt4gh.header_length(prefix)) is None:
                        piece = next(pieces, None)
                        if piece is None:
                            raise IntegrityFault(f"{target.name} ends within its header", "download it again")
                        prefix += piece
                    size = length + body
                    bounds = [0, *range(length + PART, size, PART), size]
                    parts = [_Part(a, b, a) for a, b in itertools.pairwise(bounds)]
                    state = _State(etag, length, size, parts)
                    with arriving.writing(target):
                        _part(target).unlink(missing_ok=True)
                    _write(target, state)
                    self._pour(target, state, parts[0], _chained(prefix, pieces), advance, noting)
                return state
            except UnreachableFault:
                state_now = _read(target, file)
                if state_now is not None and state_now.parts[0].at > state_now.header:
                    return state_now
                if turn == TRIES - 1 or self._stopped.is_set():
                    raise
        raise AssertionError

    def _fill(
        self,
        file: dict[str, Any],
        target: Path,
        state: _State,
        part: _Part,
        advance: Advance,
        noting: threading.Lock,
    ) -> None:
        tries = 0
        while part.at < part.end and not self._stopped.is_set():
            before = part.at
            headers = {"Range": f"bytes={part.at}-{part.end - 1}", "If-Range": state.etag}
            try:
                with self._asked(file, headers) as response:
                    if response.status_code != 206 or response.headers.get("ETag") != state.etag:
                        raise _Anew
                    if _begins(response) != part.at:
                        raise IntegrityFault("the node sent another part than was asked for", "download it again")
                    self._pour(target, state, part, response.iter_raw(PIECE), advance, noting)
                if part.at < part.end:
                    raise UnreachableFault(f"{target.name} ended early", "try again")
            except UnreachableFault:
                # Something came: begin to count anew. Nothing came several times: it is not to be had.
                tries = 0 if part.at > before else tries + 1
                if tries >= TRIES:
                    raise

    @contextmanager
    def _asked(self, file: dict[str, Any], headers: dict[str, str]) -> Iterator[Any]:
        address = path("permits", self._permit, "files", file["file_id"])
        with self._client.stream(address, query={"key": self._key}, headers=headers) as response:
            yield response

    def _pour(
        self,
        target: Path,
        state: _State,
        part: _Part,
        pieces: Iterator[bytes],
        advance: Advance,
        noting: threading.Lock,
    ) -> None:
        """Write what comes to its place, as far as the part goes."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with arriving.writing(target), os.fdopen(os.open(_part(target), flags, 0o600), "r+b", buffering=0) as kept:
            at = noted = part.at
            kept.seek(at)

            def note() -> None:
                os.fsync(kept.fileno())
                with noting:
                    part.at = at
                    _write(target, state)

            try:
                for piece in pieces:
                    piece = piece[: part.end - at]
                    kept.write(piece)
                    at += len(piece)
                    advance(len(piece))
                    if at - noted >= NOTED:
                        note()
                        noted = at
                    if at == part.end or self._stopped.is_set():
                        break
            finally:
                # Half of a header is worth nothing: it is sealed anew for each download.
                if at > state.header or at == part.end or part.start:
                    note()


def _chained(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _check_listed(file: dict[str, Any]) -> None:
    """Raises `UnreachableFault` where the node's list lacks what a download is held against."""
    for name in ("etag", "body_root"):
        if not file.get(name):
            raise UnreachableFault(
                f"the node does not tell {name} of {file['path']}", "use the version of valv that the node has"
            )


def _begins(response: Any) -> int:
    """The first byte of a partial answer, -1 where it says none."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _state(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.state")


def _drop(target: Path) -> None:
    for name in (_part(target), _state(target)):
        name.unlink(missing_ok=True)


def _read(target: Path, file: dict[str, Any]) -> _State | None:
    """How far an earlier try came; None where nothing of it can be used."""
    try:
        state = msgspec.json.decode(_state(target).read_bytes(), type=_State)
        there = _part(target).stat().st_size
    except (OSError, msgspec.DecodeError):
        return None
    whole = state.size == state.header + crypt4gh.cipher_size(file["size"]) and bool(state.parts)
    follow = whole and [part.start for part in state.parts[1:]] == [part.end for part in state.parts[:-1]]
    bounds = follow and (state.parts[0].start, state.parts[-1].end) == (0, state.size)
    held = all(part.start <= part.at <= max(part.start, min(part.end, there)) for part in state.parts)
    if not (bounds and held) or state.etag != f'"{file["etag"]}"' or state.parts[0].at <= state.header:
        return None
    return state


def _write(target: Path, state: _State) -> None:
    """Whole or not at all: a half-written note would cost everything that came."""
    note, fresh = _state(target), _state(target).with_suffix(".new")
    with arriving.writing(note):
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(state))
        fresh.replace(note)


def _has_size(place: Path, file: dict[str, Any]) -> bool:
    """Whether a file is there with a whole header and a body of the right size. It got its name after it was looked at;
    that the node has encrypted its own anew since makes it no worse."""
    try:
        with place.open("rb") as opened:
            length = crypt4gh.header_length(opened.read(crypt4gh.MAX_HEADER))
        return length is not None and place.stat().st_size == length + crypt4gh.cipher_size(file["size"])
    except (OSError, FormatFault):
        return False


def _is_whole(place: Path, file: dict[str, Any]) -> bool:
    """Whether a file is there with a whole header and the very body that the node keeps."""
    tree = hashtree.TreeBuilder()
    try:
        with place.open("rb") as opened:
            length = crypt4gh.header_length(opened.read(crypt4gh.MAX_HEADER))
            size = crypt4gh.cipher_size(file["size"])
            if length is None or place.stat().st_size != length + size:
                return False
            opened.seek(length)
            while cipher := opened.read(16 * crypt4gh.CIPHER_SEGMENT):
                tree.add(hashtree.hashes(cipher))
    except (OSError, FormatFault):
        return False
    return bool(tree.finish(size).hex() == file["body_root"])
