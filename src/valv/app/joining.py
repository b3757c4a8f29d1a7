"""The node's own step with files that came in several pieces: one body is made of them, by a process that has the keys
for as long as it takes. It may be cut off anywhere and is taken up again."""

from __future__ import annotations

import contextlib
from typing import Any

from valv.app import reading, streams
from valv.app import upload as uploads
from valv.app.node import Node, each, new_id
from valv.app.streams import DEPOSIT
from valv.core import deposit
from valv.errors import Fault
from valv.ports.compute import DAMAGE, Joined, MountedFile, Reader

ROUND = 20
"""Files joined in one turn."""


def step(node: Node, reader: Reader) -> int:
    """Join what is whole, the oldest first. Returns how many there were."""
    with node.records.reading() as unit:
        rows = unit.rows("upload", {"state": "whole"}, order="created", limit=ROUND)
    each(rows, lambda row: _join(node, reader, row))
    return len(rows)


def _join(node: Node, reader: Reader, row: dict[str, Any]) -> None:
    body = new_id()
    # The name is written down before the first byte, so that a killed step leaves nothing that nobody knows of.
    with node.records.writing() as unit:
        state, _ = streams.need(unit, DEPOSIT, row["deposit"])
        now = unit.rows("upload", {"id": row["id"], "state": "whole"})
        if not now or state.phase != "open":
            return  # dropped meanwhile, or to be dropped
        uploads.leave_body(unit, now[0], node.clock())
        unit.update("upload", {"id": row["id"]}, {"body": body})
        parts = unit.rows("upload_part", {"upload": row["id"], "state": "whole"}, order="number")
    try:
        made = _made(node, reader, state, parts, body)
        header = node.keys.adopt(made.header, state.key_id) if made.sealed else made.header
    except DAMAGE as fault:
        with node.records.writing() as unit:
            if now := unit.rows("upload", {"id": row["id"], "body": body}):
                uploads.leave_body(unit, now[0], node.clock())
                uploads.refused(unit, now[0], fault)
        uploads.sweep(node, row["id"])
        return
    _record(node, row["id"], body, made, header)
    uploads.sweep(node, row["id"])


def _made(node: Node, reader: Reader, state: deposit.Deposit, parts: list[dict[str, Any]], body: str) -> Joined:
    public = node.keys.create(state.key_id, state.claimed)
    token, uid = reader.reserve()
    grant = f"join-{body}"
    try:
        node.keys.grant(grant, [state.key_id], uid, reading.GRANT)
        files = [_mounted(part, state.key_id) for part in parts]
        return reader.join(token, grant, files, body, public)
    finally:
        with contextlib.suppress(Fault):  # it ends by itself
            node.keys.revoke(grant)


def _mounted(part: dict[str, Any], key_id: str) -> MountedFile:
    return MountedFile(
        file_id=part["body"],
        path=f"{part['upload']}/{part['number']}",
        body=part["body"],
        header=part["header"],
        key_id=key_id,
        size=part["size"],
        seal_root=part["seal_root"],
        tree_root=part["tree_root"],
    )


def _record(node: Node, upload_id: str, body: str, made: Joined, header: bytes) -> None:
    """The upload is a file of the deposit from this transaction on, unless somebody dropped it meanwhile: then `body`
    is among those that are deleted a little later."""
    with node.records.writing() as unit:
        rows = unit.rows("upload", {"id": upload_id, "body": body})
        if not rows:
            uploads.leave_body(unit, {"id": upload_id, "body": body}, node.clock())
            return
        row = rows[0]
        state, _ = streams.need(unit, DEPOSIT, row["deposit"])
        found = {
            "header": header,
            "size": made.size,
            "cipher_size": made.cipher_size,
            "segments": made.segments,
            "seal_root": made.seal_root,
            "tree_root": made.tree_root,
            "known_outside": made.sealed,
        }
        if state.phase == "open":
            row = uploads.file(node, unit, state, row, found, body, made.sha256, sealed=made.sealed)
        if not unit.count("file", {"body": body}):
            uploads.leave_body(unit, row | {"body": body}, node.clock())
        unit.update("upload_part", {"upload": upload_id}, {"state": "going"})
