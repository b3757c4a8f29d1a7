"""Files that come in pieces, and go on where they stopped (tus 1.0.0 at the HTTP door).

Each piece is encrypted before its first byte is written, the last segment included, as a body of its own under a data
key of its own, sealed to the key of the version: the server cannot open it again. A piece counts once its body and its
row are durable. A file that came in one piece is that body; several pieces are joined by a confined process
(`valv.app.joining`).

    open      bytes are missing
    whole     every byte is there, the pieces are to be joined
    done      it is a file of the deposit
    refused   it was no file that can be kept; `reason` says why
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from valv.app import streams
from valv.app.deposit import ALIVE, PARTICIPANTS, check_path, free, new_row, open_for
from valv.app.node import Node, Who, derived_id, each, new_id, refuse
from valv.app.streams import DEPOSIT
from valv.core import deposit
from valv.errors import ConflictFault, Fault, FormatFault, InputFault, RefusedFault
from valv.formats import crypt4gh, participants, paths
from valv.formats.seal import sidecar
from valv.ports.compute import MOST_JOINED
from valv.ports.records import Unit
from valv.vault.encrypt import Encryptor, Sealed

KEPT: Final = timedelta(days=7)
"""An upload to which nothing is added for so long is dropped."""
DEAD: Final = timedelta(hours=1)
"""A piece whose sender was not heard of for so long does not come any more."""
PIECE: Final = 4 << 30
"""Bytes after which a piece ends and the next one begins, so that a crash never costs more."""
CHECKSUMS: Final = ("sha256", "sha1")


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file on its way. `length`: bytes that it has, `offset`: that are there; `metadata`: as its sender wrote it."""

    upload_id: str
    deposit_id: str
    path: str
    length: int
    offset: int
    state: str
    reason: str
    metadata: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class Checksum:
    """Of what is sent in one go. `algorithm`: one of `CHECKSUMS`."""

    algorithm: str
    digest: bytes


def create(
    node: Node,
    who: Who,
    deposit_id: str,
    *,
    path: str,
    length: int,
    sha256: str = "",
    metadata: str = "",
    command: str,
) -> Upload:
    """Announce a file of `length` bytes. `sha256`: of the whole, hex, '' where it is not known. An upload of the same
    path that is not a file yet is dropped: the newest sender wins."""
    check_path(path)
    if length > node.config.serve.max_upload:
        raise refuse("file_larger", f"at most {node.config.serve.max_upload} bytes")
    if path == PARTICIPANTS and length > participants.LARGEST:
        raise FormatFault("participants.tsv is too large", f"at most {participants.LARGEST} bytes")
    ident, at = derived_id(who.account_id, "upload", command), node.clock()
    row = {
        "id": ident,
        "deposit": deposit_id,
        "path": path,
        "folded": paths.folded(path),
        "length": length,
        "offset": 0,
        "sha256": bytes.fromhex(sha256) or None,
        "metadata": metadata,
        "state": "open",
        "reason": "",
        "body": "",
        "created": at,
        "expires": at + KEPT,
    }
    with node.records.writing() as unit:
        open_for(node, who, unit, deposit_id)
        if known := unit.rows("upload", {"id": ident, "deposit": deposit_id}):
            row = known[0]
        else:
            free(node, unit, deposit_id, path)
            for other in unit.rows("upload", {"deposit": deposit_id, "folded": row["folded"]}):
                if other["path"] != path:
                    raise refuse("path_wrong", f"{path[:80]!r} differs from another file only in letter case or look")
                _leave(unit, other, at)
            unit.insert("upload", [row])
    # Of an empty file nothing is to come; also where the node was killed before it had become a file.
    if row["length"] == 0 and row["state"] == "open":
        return append(node, who, deposit_id, ident, offset=0, chunks=())
    return _shown(row)


def show(node: Node, who: Who, deposit_id: str, upload_id: str) -> Upload:
    with node.records.reading() as unit:
        open_for(node, who, unit, deposit_id)
        return _shown(_row(unit, deposit_id, upload_id))


def listed(node: Node, who: Who, deposit_id: str) -> list[Upload]:
    """Those of a deposit that are no files yet, by path."""
    with node.records.reading() as unit:
        open_for(node, who, unit, deposit_id)
        rows = unit.rows("upload", {"deposit": deposit_id, "state": ["open", "whole", "refused"]}, order="path")
    return [_shown(row) for row in rows]


def drop(node: Node, who: Who, deposit_id: str, upload_id: str) -> None:
    """Give an upload up. Of one that is a file already only the upload is forgotten."""
    with node.records.writing() as unit:
        open_for(node, who, unit, deposit_id)
        _leave(unit, _row(unit, deposit_id, upload_id), node.clock())
    sweep(node, upload_id)


def append(
    node: Node,
    who: Who,
    deposit_id: str,
    upload_id: str,
    *,
    offset: int,
    chunks: Iterable[bytes],
    checksum: Checksum | None = None,
) -> Upload:
    """Add what comes, from `offset` on; durable when this returns. Only one sender at a time.

    Where the sender is cut off (`InputFault` out of `chunks`), what came until then is kept and the fault is raised;
    with a checksum, nothing is kept of it, as of one that does not hold (`checksum`).
    """
    with node.records.reading() as unit:
        open_for(node, who, unit, deposit_id)
        row = _row(unit, deposit_id, upload_id)
    if offset != row["offset"]:
        raise refuse("offset_wrong", f"{row['offset']} bytes are there")
    if row["state"] != "open":
        return _shown(row)
    stream = _Stream(iter(chunks), row["length"] - offset, checksum)
    while True:
        row = _add(node, who, row, stream)
        if row["state"] in ("done", "refused"):
            sweep(node, upload_id)
        if stream.fault is not None:
            raise stream.fault
        if stream.ended or row["state"] != "open":
            return _shown(row)


class _Stream:
    """What one sender sends. `came`: bytes so far; `fault`: why it ended early."""

    def __init__(self, chunks: Iterator[bytes], room: int, checksum: Checksum | None) -> None:
        self._chunks, self._room, self._checksum = chunks, room, checksum
        self._hash = hashlib.new(checksum.algorithm, usedforsecurity=False) if checksum else None
        self.ended = False
        self.fault: Fault | None = None
        self.first = b""

    def pieces(self) -> Iterator[bytes]:
        """Up to the end, or to where a piece is long enough. A sum is over all that is sent, so that nothing may be
        kept before its end."""
        came = 0
        while came < PIECE or self._checksum:
            try:
                chunk = next(self._chunks, None)
            except InputFault as fault:
                self.fault, self.ended = fault, True
                if self._checksum:
                    raise
                return
            if chunk is None:
                self.ended = True
                self._check()
                return
            if len(chunk) > self._room:
                raise refuse("file_larger", "more bytes came than were announced")
            self._room -= len(chunk)
            if self._hash:
                self._hash.update(chunk)
            if len(self.first) < len(crypt4gh.MAGIC):
                self.first += chunk[: len(crypt4gh.MAGIC)]
            came += len(chunk)
            yield chunk

    def _check(self) -> None:
        if self._checksum and self._hash and self._hash.digest() != self._checksum.digest:
            raise refuse("checksum", "of what was sent last; nothing of it was kept")


def _add(node: Node, who: Who, row: dict[str, Any], stream: _Stream) -> dict[str, Any]:
    """Encrypt and keep one piece. Returns the upload's row as it is then."""
    body, at = new_id(), node.clock()
    sweep(node, row["id"], begun=True)  # what a sender left that was killed with the node
    with node.records.writing() as unit:
        state = open_for(node, who, unit, row["deposit"])
        number = unit.count("upload_part", {"upload": row["id"], "state": "whole"})
        if number >= MOST_JOINED:
            raise refuse("over_limit", f"a file comes in at most {MOST_JOINED} pieces: send it in larger ones")
        part = {"body": body, "upload": row["id"], "number": number, "state": "coming", "seen": at}
        unit.insert("upload_part", [part])
    try:
        made = _encrypt(node, body, state, stream)
        if not made.size and row["length"]:
            _forget(node, body)
            return row
        return _keep(node, who, row, part, made, stream)
    except BaseException:
        _forget(node, body)
        raise


def _encrypt(node: Node, body: str, state: deposit.Deposit, stream: _Stream) -> Sealed:
    public = node.keys.create(state.key_id, state.claimed)
    writer = node.storage.writer(body)
    try:
        sink = Encryptor(writer, node.storage.writer(sidecar(body)), public)
    except BaseException:
        writer.abort()
        raise
    told = node.clock()
    try:
        for chunk in stream.pieces():
            sink.write(chunk)
            if node.clock() - told >= ALIVE:
                told = node.clock()
                with node.records.writing() as unit:
                    unit.update("upload_part", {"body": body}, {"seen": told})
        return sink.finish()
    except BaseException:
        sink.abort()
        raise


def _keep(
    node: Node, who: Who, row: dict[str, Any], part: dict[str, Any], made: Sealed, stream: _Stream
) -> dict[str, Any]:
    """Count the piece in; where it is the whole file, it is a file of the deposit from this transaction on."""
    at = node.clock()
    with node.records.writing() as unit:
        state = open_for(node, who, unit, row["deposit"])
        values: dict[str, Any] = {"offset": row["offset"] + made.size, "expires": at + KEPT}
        if values["offset"] == row["length"]:
            values["state"] = "whole"
        # Whoever came first has moved the offset on.
        if not unit.update("upload", {"id": row["id"], "offset": row["offset"], "state": "open"}, values):
            raise ConflictFault("another sender added to this file, or it was dropped", "ask for the offset")
        kept = {
            "state": "whole",
            "size": made.size,
            "header": made.header,
            "seal_root": made.seal_root,
            "tree_root": made.tree_root,
            "seen": at,
        }
        unit.update("upload_part", {"body": part["body"]}, kept)
        row = row | values
        if row["state"] == "whole" and part["number"] == 0 and not stream.first.startswith(crypt4gh.MAGIC):
            found = {
                "header": made.header,
                "size": made.size,
                "cipher_size": made.cipher_size,
                "segments": made.segments,
                "seal_root": made.seal_root,
                "tree_root": made.tree_root,
                "known_outside": False,
            }
            row = file(node, unit, state, row, found, part["body"], made.sha256)
            if unit.count("file", {"body": part["body"]}):
                unit.delete("upload_part", {"body": part["body"]})
    return row


def file(
    node: Node,
    unit: Unit,
    state: deposit.Deposit,
    row: dict[str, Any],
    found: dict[str, Any],
    body: str,
    sha256: bytes,
    *,
    sealed: bool = False,
) -> dict[str, Any]:
    """Make the upload a file of the deposit, with the columns `found` and the body; `sha256`: of what was sent. Where
    it cannot be one it is refused, and nobody has the body then. Returns the upload's row."""
    path = row["path"].removesuffix(".c4gh") if sealed else row["path"]
    try:
        check_path(path)
        if row["sha256"] not in (None, sha256):
            raise refuse("checksum", f"received {sha256.hex()[:16]}…, declared {row['sha256'].hex()[:16]}…")
        known = free(node, unit, row["deposit"], path, sha256.hex())
    except RefusedFault as fault:
        return refused(unit, row, fault)
    if known is None:
        made = new_row(state, path, node.clock()) | found
        # A table of participants is read when it is verified, as everything of which the content is not known yet.
        digest = None if sealed or path == PARTICIPANTS else sha256
        made |= {"body": body, "state": "received", "sha256": digest, "sent_sha256": sha256}
        unit.insert("file", [made])
    else:
        unit.update("upload_part", {"upload": row["id"]}, {"state": "going"})
    values = {"state": "done", "body": ""}
    unit.update("upload", {"id": row["id"]}, values)
    return row | values


def refused(unit: Unit, row: dict[str, Any], fault: Fault) -> dict[str, Any]:
    """Note why the upload is no file; its pieces go."""
    unit.update("upload_part", {"upload": row["id"]}, {"state": "going"})
    values = {"state": "refused", "body": "", "reason": str(fault)[:1000]}
    unit.update("upload", {"id": row["id"]}, values)
    return row | values


def clear(node: Node) -> int:
    """Drop what expired, what belongs to deposits that take no files any more, and pieces that nobody has. Returns how
    many uploads were dropped."""
    at = node.clock()
    with node.records.reading() as unit:
        rows = unit.rows("upload")
        living = {part["upload"] for part in unit.rows("upload_part", {"state": "coming"}) if part["seen"] + DEAD > at}
        states = {ident: streams.load(unit, DEPOSIT, ident).state for ident in {row["deposit"] for row in rows}}
    closed = {ident for ident, state in states.items() if state is None or state.phase != "open"}
    over = [row for row in rows if row["id"] not in living and (row["expires"] <= at or row["deposit"] in closed)]

    def leave(row: dict[str, Any]) -> None:
        with node.records.writing() as unit:
            if now := unit.rows("upload", {"id": row["id"], "offset": row["offset"], "state": row["state"]}):
                _leave(unit, now[0], at)

    each(over, leave)
    with node.records.reading() as unit:
        parts = unit.rows("upload_part", {"state": ["coming", "going"]})
    dead = [part for part in parts if part["state"] == "going" or part["seen"] + DEAD <= at]
    each(dead, lambda part: _forget(node, part["body"]))
    return len(over)


def sweep(node: Node, upload_id: str, *, begun: bool = False) -> None:
    """Delete the pieces of an upload that nobody has any more; `begun`: and those that did not come to their end."""
    with node.records.reading() as unit:
        states = ["going", "coming"] if begun else ["going"]
        parts = unit.rows("upload_part", {"upload": upload_id, "state": states})
    for part in parts:
        _forget(node, part["body"])


def _leave(unit: Unit, row: dict[str, Any], at: datetime) -> None:
    """The upload is gone; its pieces are deleted after this transaction. A body that is being joined may still come: it
    is deleted a little later."""
    unit.update("upload_part", {"upload": row["id"]}, {"state": "going"})
    leave_body(unit, row, at)
    unit.delete("upload", {"id": row["id"]})


def leave_body(unit: Unit, row: dict[str, Any], at: datetime) -> None:
    """The body that pieces were being joined under is nobody's."""
    if row["body"]:
        unit.upsert("stale_body", {"body": row["body"], "dataset": "", "file": row["id"], "since": at})


def _forget(node: Node, body: str) -> None:
    """Bodies first, so that a fault here leaves a row to find them by."""
    for name in (body, sidecar(body)):
        node.storage.delete(name)
    with node.records.writing() as unit:
        unit.delete("upload_part", {"body": body})


def _row(unit: Unit, deposit_id: str, upload_id: str) -> dict[str, Any]:
    rows = unit.rows("upload", {"id": upload_id, "deposit": deposit_id})
    if not rows:
        raise refuse("not_found", "this upload ended or was dropped")
    return rows[0]


def _shown(row: dict[str, Any]) -> Upload:
    return Upload(
        upload_id=row["id"],
        deposit_id=row["deposit"],
        path=row["path"],
        length=row["length"],
        offset=row["offset"],
        state=row["state"],
        reason=row["reason"],
        metadata=row["metadata"],
        expires=row["expires"],
    )
