"""Sending files into a deposit: several at a time, small ones together, large ones so that they go on after a cut."""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, Final

from valv.cli import folder as folders
from valv.cli.client import Client, Problem, path
from valv.cli.command import Door
from valv.cli.folder import Item
from valv.cli.screen import Advance, Bars
from valv.errors import Fault, InputFault, IntegrityFault, UnreachableFault
from valv.formats import batch
from valv.formats.batch import Record

SMALL: Final = 128 << 10
"""Bytes up to which files go together."""
TOGETHER: Final = 512
ROOM: Final = 8 << 20
"""Files, and bytes of them, that go in one request."""
WHOLE: Final = 8 << 20
"""Bytes up to which a file goes in one piece."""
TRIES: Final = 6
"""How often a broken connection is taken up again without any progress in between."""
PAUSES: Final = (0.3, 1.0, 2.0, 4.0, 8.0)
_TUS: Final = {"Tus-Resumable": "1.0.0"}
_MEDIA: Final = "application/offset+octet-stream"


class Sending:
    """Sends files into the deposit `ident`. `sums`: SHA-256 (hex) by name, as far as a manifest tells; `parallel`:
    requests at a time. `digests`: SHA-256 of what was sent, filled as it goes."""

    def __init__(self, door: Door, ident: str, sums: dict[str, str], parallel: int) -> None:
        self._door, self._ident, self._sums = door, ident, sums
        self._client: Client = door.client
        self._parallel = parallel
        self._stopped = threading.Event()
        self.digests: dict[str, str] = {}
        self.faults: list[Fault] = []

    def send(self, items: Sequence[Item]) -> None:
        """Send what is not there yet. A file that cannot be sent does not keep the others from it; `faults` has the
        reasons. Raises `UnreachableFault`, and what concerns all files."""
        view = self._door.get("deposits", self._ident)
        there = {file["path"]: file for file in view["files"] if file["state"] in ("received", "verified")}
        begun = {upload["path"]: upload for upload in self._door.get("deposits", self._ident, "uploads")}
        with self._door.transfers(f"{len(items)} files", sum(item.size for item in items)) as bars:
            steps: list[Callable[[], None]] = []
            small: list[Item] = []
            for item in items:
                known = _there(there, item)
                if known is not None or begun.get(item.name, {}).get("state") == "whole":
                    steps.append(self._step(item, partial(self._look, item, known, bars)))
                elif item.size <= SMALL:
                    small.append(item)
                elif item.size <= WHOLE:
                    steps.append(self._step(item, partial(self._put, item, bars)))
                else:
                    steps.append(self._step(item, partial(self._resume, item, begun.get(item.name), bars)))
            for group in _groups(small):
                steps.append(self._step(None, partial(self._together, group, bars)))
            self._run(steps)

    def _run(self, steps: Sequence[Callable[[], None]]) -> None:
        with ThreadPoolExecutor(self._parallel, "sending") as pool:
            doing = [pool.submit(step) for step in steps]
            try:
                for one in doing:
                    one.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _step(self, item: Item | None, step: Callable[[], None]) -> Callable[[], None]:
        """The step, which notes what is wrong with its file and raises what is wrong with the rest."""

        def run() -> None:
            if self._stopped.is_set():
                return
            try:
                step()
            except (InputFault, IntegrityFault) as fault:
                self._note(fault)
            except Problem as fault:
                if item is None or fault.row.status not in (400, 409, 413, 422):
                    raise
                if item.name not in fault.detail:
                    fault.detail = f"{item.name}: {fault.detail}".rstrip(": ")
                self._note(fault)

        return run

    def _note(self, fault: Fault) -> None:
        self.faults.append(fault)
        self._door.warn(f"  not sent   {fault.detail or fault}")

    def _done(self, item: Item, digest: str, what: str = "received") -> None:
        wanted = self._sums.get(item.name, digest)
        if wanted != digest:
            raise IntegrityFault(f"{item.name!r} is not the file of the manifest: checksum {digest[:16]}…")
        self.digests[item.name] = digest
        self._door.sent(item.name, item.size, what)

    # --- what is there ---

    def _look(self, item: Item, known: Any, bars: Bars) -> None:
        """Hold a file that the node has against ours. Of one that came encrypted it knows no checksum before it was
        opened; the submission compares that."""
        with bars.file(item.name, item.size) as advance:
            digest = folders.digest(item, advance)
        if known is not None and known["path"] == item.name and known["sha256"] not in ("", digest):
            raise InputFault(
                f"another file {item.name!r} is in the deposit already", "cancel the deposit, or rename the file"
            )
        self._done(item, digest, "was there")

    # --- in one piece ---

    def _put(self, item: Item, bars: Bars) -> None:
        with bars.file(item.name, item.size) as advance:
            content = folders.content(item, advance)
        digest = hashlib.sha256(content).hexdigest()
        if self._sums.get(item.name, digest) == digest:
            address = path("deposits", self._ident, "files", *item.name.split("/"))
            self._client.send(address, lambda: iter((content,)), item.size, digest)
        self._done(item, digest)

    def _together(self, group: Sequence[Item], bars: Bars) -> None:
        records, items = [], []
        for item in group:
            with bars.file(item.name, item.size) as advance:
                try:
                    content = folders.content(item, advance)
                except InputFault as fault:
                    self._note(fault)
                    continue
            digest = hashlib.sha256(content).hexdigest()
            records.append(Record(item.name, content, self._sums.get(item.name, digest)))
            items.append((item, digest))
        if not records:
            return
        answered = self._client.raw(
            "POST",
            path("deposits", self._ident, "batch"),
            headers={"Content-Type": batch.MEDIA},
            content=b"".join(map(batch.encode, records)),
        )
        for (item, digest), result in zip(items, answered.json(), strict=True):
            if result["state"] != "received":
                self._note(Problem(422, result | {"detail": f"{item.name}: {result['reason']}"}))
            else:
                self._done(item, digest)

    # --- in pieces ---

    def _resume(self, item: Item, begun: Any, bars: Bars) -> None:
        """One file by tus, hashed as it goes; a connection that breaks is taken up again where the node says."""
        address = ""
        if begun and begun["state"] == "open" and begun["length"] == item.size:
            address = path("deposits", self._ident, "uploads", begun["upload_id"])
        with folders.opened(item) as file, bars.file(item.name, item.size) as advance:
            passing = _Passing(item, file, advance)
            try:
                if not address:
                    address = self._announce(item)
                self._append(address, passing)
            except InputFault:
                # It changed under our hands: what came of it is worth nothing.
                if address:
                    self._client.raw("DELETE", address, headers=_TUS)
                raise
        self._done(item, passing.digest, "received")

    def _announce(self, item: Item) -> str:
        said = {"filename": item.name} | ({"sha256": self._sums[item.name]} if item.name in self._sums else {})
        metadata = ",".join(f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in said.items())
        headers = _TUS | {"Upload-Length": str(item.size), "Upload-Metadata": metadata}
        answered = self._client.raw("POST", path("deposits", self._ident, "uploads"), headers=headers)
        return str(answered.headers["Location"])

    def _append(self, address: str, passing: _Passing) -> None:
        tries, before = 0, -1
        while True:
            at = self._offset(address)
            passing.begin(at)
            if at >= passing.size:
                return
            tries = 0 if at > before else tries + 1
            before = at
            headers = _TUS | {
                "Upload-Offset": str(at),
                "Content-Type": _MEDIA,
                "Content-Length": str(passing.size - at),
            }
            try:
                self._client.raw("PATCH", address, headers=headers, content=passing.pieces, repeat=False)
                return
            except (UnreachableFault, Problem) as fault:
                broken = isinstance(fault, UnreachableFault) or fault.row.status in (409, 423, 500, 503)
                if not broken or tries >= TRIES or self._stopped.is_set():
                    raise
            time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])

    def _offset(self, address: str) -> int:
        return int(self._client.raw("HEAD", address, headers=_TUS).headers["Upload-Offset"])


class _Passing:
    """A file on its way: hashed once from end to end, however often parts of it are sent."""

    def __init__(self, item: Item, file: BinaryIO, advance: Advance) -> None:
        self._item, self._file, self._advance = item, file, advance
        self._whole = hashlib.sha256()
        self._hashed = self._at = 0
        self.size = item.size

    @property
    def digest(self) -> str:
        return self._whole.hexdigest()

    def begin(self, at: int) -> None:
        """Go on from here. What the node has of an earlier sending is read, so that the sum is over all."""
        self._advance(at - self._at)
        self._file.seek(self._hashed)
        while self._hashed < at:
            self._take(min(folders.PIECE, at - self._hashed), self._hashed)
        self._at = at

    def pieces(self) -> Iterator[bytes]:
        self._file.seek(self._at)
        while self._at < self.size:
            piece = self._take(min(folders.PIECE, self.size - self._at), self._at)
            if self._at + len(piece) == self.size:
                folders.steady(self._item, self._file)  # before the node has all of it
            self._at += len(piece)
            self._advance(len(piece))
            yield piece

    def _take(self, count: int, at: int) -> bytes:
        piece = self._file.read(count)
        if not piece:
            folders.steady(self._item, self._file)
            raise InputFault(f"{self._item.name!r} ended early", folders.AGAIN)
        if at + len(piece) > self._hashed:
            self._whole.update(piece[max(0, self._hashed - at) :])
            self._hashed = at + len(piece)
        return piece


def _there(there: dict[str, Any], item: Item) -> Any:
    """What the node has of this name; of a file that came encrypted, under its name without `.c4gh`."""
    if item.name in there:
        return there[item.name]
    sealed = there.get(item.name.removesuffix(".c4gh"))
    return sealed if sealed is not None and not sealed["sha256"] else None


def _groups(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Files that go together."""
    group: list[Item] = []
    room = ROOM
    for item in items:
        if group and (len(group) >= TOGETHER or item.size > room):
            yield group
            group, room = [], ROOM
        group.append(item)
        room -= item.size
    if group:
        yield group
