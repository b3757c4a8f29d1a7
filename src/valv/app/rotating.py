"""The node's own steps with rotations. Each is one transaction after what it speaks of is done, so that it may be cut
off anywhere and is taken up again: a file's row names the body and the pair that open it, before and after."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from valv.app import copying, reading, streams, text
from valv.app import rotation as rotations
from valv.app.node import Node, each, new_id
from valv.app.streams import DATASET, ROTATION, RUN, Step, retried
from valv.core import dataset, rotation, run
from valv.core.process import NODE
from valv.errors import Fault, Refusal, RefusedFault
from valv.formats.seal import sidecar
from valv.ports.compute import DAMAGE, MOST_REKEYED, Reader, Rekeyed
from valv.ports.records import Unit

BATCH = 1000
WEIGHT = 900 << 10
"""Headers, and bytes of them, that are sealed in one go."""
BODIES = 1 << 30
"""Plain bytes of the files that one process encrypts anew; a larger file has one for itself."""
GRACE = timedelta(seconds=60)
"""A body that was replaced stays so long at least; who began to read up to then keeps it to the end."""
GONE = timedelta(minutes=5)
"""A download that was not noted for so long has ended."""
CLEARED = 100
"""Bodies deleted in one turn."""


def seal(node: Node) -> int:
    """Bring every rotation of headers one batch further, and retire what all files of a version have left. Returns how
    many rotations are under way."""
    return _each(node, lambda state: state.phase == "retiring" or state.aim == "rotate", lambda s: _seal(node, s))


def encrypt(node: Node, reader: Reader) -> int:
    """Encrypt one batch of files anew for every rekeying. Returns how many are under way."""
    _give_up_begun(node)
    return _each(
        node, lambda state: state.phase == "going" and state.aim == "rekey", lambda s: _encrypt(node, reader, s)
    )


def _each(node: Node, wanted: Callable[[rotation.Rotation], bool], step: Callable[[rotation.Rotation], None]) -> int:
    with node.records.reading() as unit:
        going = streams.find(unit, ROTATION, phases=rotations.GOING, newest_first=False, limit=1000)
        going = [state for state in going if wanted(state)]
        owners = {state.rotation_id: streams.need(unit, DATASET, state.dataset_id)[0] for state in going}

    def advance(state: rotation.Rotation) -> None:
        if _destroyed(owners[state.rotation_id], state):
            _end(node, state, "The key of the version was destroyed.")
        else:
            step(state)

    each(going, advance)
    return len(going)


def _destroyed(owner: dataset.Dataset, state: rotation.Rotation) -> bool:
    found = owner.version(state.version)
    return found is None or found.destroyed


# --- headers ---


def _seal(node: Node, state: rotation.Rotation) -> None:
    if state.phase == "retiring":
        _retire(node, state)
        return
    if not state.made:
        node.keys.rotate(state.key_id, state.pair)
        _record(node, state, rotation.RecordPair(by=NODE, at=node.clock()))
    rows = _next(node, state, BATCH)
    if not rows:
        _settle(node, state)
        return
    sealed = _resealed(node, state, rows)
    with node.records.writing() as unit:
        if streams.need(unit, ROTATION, state.rotation_id)[0].phase != "going":
            return
        unit.update_each(
            "file",
            (
                ({"id": row["id"], "pair": row["pair"], "body": row["body"]}, {"header": header, "pair": state.pair})
                for row, header in sealed
            ),
        )


def _next(node: Node, state: rotation.Rotation, most: int) -> list[dict[str, Any]]:
    """Files that are not of the new pair yet, except those that were found damaged: at most so many, and `WEIGHT`."""
    with node.records.reading() as unit:
        damaged = {row["file"] for row in unit.rows("rotation_file", {"rotation": state.rotation_id})}
        where = {"key_id": state.key_id, "pair": list(range(1, state.pair)), "state": rotations.KEPT}
        rows = unit.rows("file", where, limit=most + len(damaged))
    rows = [row for row in rows if row["id"] not in damaged]
    return _light(rows[:most], lambda row: len(row["header"]), WEIGHT)


def _light(rows: list[dict[str, Any]], weight: Callable[[dict[str, Any]], int], most: int) -> list[dict[str, Any]]:
    """As many of the first rows as weigh no more together; at least one."""
    sums = itertools.accumulate(map(weight, rows))
    return [row for row, total in zip(rows, sums, strict=True) if total <= most] or rows[:1]


def _resealed(
    node: Node, state: rotation.Rotation, rows: Sequence[dict[str, Any]]
) -> list[tuple[dict[str, Any], bytes]]:
    """Each row with its new header. One that does not open is noted, and the others go on without it."""
    try:
        return list(zip(rows, node.keys.reseal_within(state.key_id, [row["header"] for row in rows]), strict=True))
    except DAMAGE as fault:
        node.keys.rotate(state.key_id, state.pair)  # raises where it is the key that is at fault, and not a header
        if len(rows) == 1:
            _note(node, state, rows[0], fault)
            return []
    half = len(rows) // 2
    return _resealed(node, state, rows[:half]) + _resealed(node, state, rows[half:])


# --- bodies ---


def _encrypt(node: Node, reader: Reader, state: rotation.Rotation) -> None:
    public = node.keys.rotate(state.key_id, state.pair)
    if not state.made:
        _record(node, state, rotation.RecordPair(by=NODE, at=node.clock()))
    rows = _light(_next(node, state, MOST_REKEYED), lambda row: row["size"], BODIES)
    if not rows:
        _settle(node, state)
        return
    bodies = [new_id() for _ in rows]
    token, uid = reader.reserve()
    # Names are written down before the first byte, so that a killed step leaves nothing that nobody knows of.
    with node.records.writing() as unit:
        if streams.need(unit, ROTATION, state.rotation_id)[0].phase != "going":
            return
        named = zip(rows, bodies, strict=True)
        unit.insert(
            "rotation_file", [{"rotation": state.rotation_id, "file": row["id"], "body": b} for row, b in named]
        )
    grant = _grant(state.rotation_id)
    node.keys.revoke(grant)  # that of a step which was cut off was for another process
    try:
        node.keys.grant(grant, [state.key_id], uid, reading.GRANT)
        # Held against the hash tree too: what is wrong with an old body must not be sealed into the new one.
        files = [reading.mounted({**row, "known_outside": True}, row["path"]) for row in rows]
        with contextlib.closing(reader.rekey(token, grant, list(zip(files, bodies, strict=True)), public)) as answers:
            for row, body, made in zip(rows, bodies, answers, strict=True):
                if not _take(node, state, row, body, made):
                    break
    finally:
        with contextlib.suppress(Fault):  # it ends by itself
            node.keys.revoke(grant)


def _grant(rotation_id: str) -> str:
    return f"rekey-{rotation_id}"


def _take(node: Node, state: rotation.Rotation, row: dict[str, Any], body: str, made: Rekeyed | Fault) -> bool:
    """Record the answer for one file. Returns whether the rotation goes on."""
    if not isinstance(made, Fault):
        return _replace(node, state, row, body, made)
    node.keys.rotate(state.key_id, state.pair)  # raises where it is the key that is at fault, and not the file
    return _note(node, state, row, made, body)


@retried
def _replace(node: Node, state: rotation.Rotation, row: dict[str, Any], body: str, made: Rekeyed) -> bool:
    """The file has the new body from this transaction on; the old one waits for its last reader. Returns whether the
    rotation goes on."""
    at = node.clock()
    with node.records.writing() as unit:
        now, version = streams.need(unit, ROTATION, state.rotation_id)
        order = rotation.RecordBody(
            by=NODE, at=at, file_id=row["id"], before=row["tree_root"].hex(), after=made.tree_root.hex()
        )
        events = rotation.decide(now, order, rotation.Facts())
        gone = body
        owner = streams.need(unit, DATASET, state.dataset_id)[0]
        goes_on = not isinstance(events, Refusal) and not _destroyed(owner, state)
        if not isinstance(events, Refusal) and goes_on:
            values = {
                "body": body,
                "header": made.header,
                "cipher_size": made.cipher_size,
                "segments": made.segments,
                "seal_root": made.seal_root,
                "tree_root": made.tree_root,
                "pair": state.pair,
                "known_outside": False,
                "rekeyed": at,
            }
            if unit.update("file", {"id": row["id"], "body": row["body"], "pair": row["pair"]}, values):
                step = Step(ROTATION, state.rotation_id, version, now, events)
                streams.commit(unit, [step], by=NODE, at=at, command=new_id())
                gone = row["body"]
        unit.delete("rotation_file", {"rotation": state.rotation_id, "file": row["id"]})
        _leave(node, unit, gone, row["id"], row["dataset"])
    return goes_on


def _give_up_begun(node: Node) -> None:
    """Bodies that a step was writing when it was cut off: nobody reads them. A process that it left may still be
    ending, so that they are deleted a little later. What is noted of rotations that were stopped goes too."""
    with node.records.reading() as unit:
        kept = unit.rows("rotation_file")
        over = [row for row in kept if streams.need(unit, ROTATION, row["rotation"])[0].phase not in rotations.GOING]
    begun = [row for row in kept if row["body"]]
    for ident in {row["rotation"] for row in begun}:
        node.keys.revoke(_grant(ident))
    if not (begun or over):
        return
    with node.records.writing() as unit:
        for row in (*begun, *over):
            unit.delete("rotation_file", {"rotation": row["rotation"], "file": row["file"]})
        for row in begun:
            file = unit.rows("file", {"id": row["file"]})
            _leave(node, unit, row["body"], row["file"], file[0]["dataset"] if file else "")


def _leave(node: Node, unit: Unit, body: str, file_id: str, dataset_id: str) -> None:
    unit.insert("stale_body", [{"body": body, "dataset": dataset_id, "file": file_id, "since": node.clock()}])


# --- the end ---


def _note(node: Node, state: rotation.Rotation, row: dict[str, Any], fault: Fault, begun: str = "") -> bool:
    """This file cannot be taken along. Others go on without it, and the rotation fails at its end. `begun`: name of the
    new body that does not come. Returns whether the rotation goes on."""
    with node.records.writing() as unit:
        note = {"rotation": state.rotation_id, "file": row["id"], "body": "", "fault": str(fault)[:1000]}
        unit.upsert("rotation_file", note)
        if begun:
            _leave(node, unit, begun, row["id"], row["dataset"])
        return streams.need(unit, ROTATION, state.rotation_id)[0].phase == "going"


@retried
def _settle(node: Node, state: rotation.Rotation) -> None:
    """No file is left but damaged ones: retire the pairs before, or fail where there are some."""
    at = node.clock()
    with node.records.writing() as unit:
        now, version = streams.need(unit, ROTATION, state.rotation_id)
        damaged = {row["file"]: row["fault"] for row in unit.rows("rotation_file", {"rotation": now.rotation_id})}
        left = rotations.left(unit, now)
        if left > len(damaged):
            return
        order: rotation.Commands = rotation.Settle(by=NODE, at=at)
        if left:
            paths = {row["id"]: row["path"] for row in unit.rows("file", {"id": sorted(damaged)[: reading.BATCH]})}
            lines = [f"{paths.get(ident, ident)}: {fault}" for ident, fault in sorted(damaged.items())]
            said = _said(unit, now, f"{left} files stay as they are.", lines, at)
            order = rotation.Fail(by=NODE, at=at, why=said)
        facts = rotation.Facts(left=left, files=rotations.count(unit, now), readers=rotations.readers(unit, now))
        _commit(unit, now, version, order, facts)


def _said(unit: Unit, state: rotation.Rotation, head: str, lines: Sequence[str], at: Any) -> str:
    """The text, with as many of the lines as it has room for."""
    body, room = [head], text.LONGEST - len(head) - 10
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            body.append("…")
            break
        body.append(line)
    return text.put(unit, ROTATION.stream(state.rotation_id), "why", "\n".join(body), at)


def _retire(node: Node, state: rotation.Rotation) -> None:
    order = rotation.Retire(by=NODE, at=node.clock())
    with node.records.reading() as unit:
        facts = rotation.Facts(readers=rotations.readers(unit, state))
    if isinstance(rotation.decide(state, order, facts), Refusal):
        return
    try:
        node.keys.revoke(_grant(state.rotation_id))  # the last step may have been cut off before it did
        node.keys.retire(state.key_id, state.pair)
    except RefusedFault as fault:
        if fault.refusal.code != "key_in_use":
            raise
        return
    _record(node, state, order)


@retried
def _end(node: Node, state: rotation.Rotation, why: str) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        now, version = streams.need(unit, ROTATION, state.rotation_id)
        order = rotation.Fail(by=NODE, at=at, why=_said(unit, now, why, (), at))
        _commit(unit, now, version, order, rotation.Facts())


@retried
def _record(node: Node, state: rotation.Rotation, order: rotation.Commands) -> None:
    with node.records.writing() as unit:
        now, version = streams.need(unit, ROTATION, state.rotation_id)
        _commit(unit, now, version, order, rotation.Facts(readers=rotations.readers(unit, now)))


def _commit(
    unit: Unit, state: rotation.Rotation, version: int, order: rotation.Commands, facts: rotation.Facts
) -> None:
    """Where somebody stopped the rotation meanwhile, nothing happens."""
    events = rotation.decide(state, order, facts)
    if not isinstance(events, Refusal):
        step = Step(ROTATION, state.rotation_id, version, state, events)
        streams.commit(unit, [step], by=NODE, at=order.at, command=new_id())


# --- what is left behind ---


def clear(node: Node) -> int:
    """Delete bodies that no file has any more, once nobody reads them. Returns how many."""
    at = node.clock()
    with node.records.reading() as unit:
        stale = [row for row in unit.rows("stale_body", order="since") if row["since"] + GRACE <= at]
        opened = unit.rows("open_body")
        going = streams.find(unit, RUN, phases=("running", "stopping"), limit=rotations.MOST) if stale else []
    held = {row["body"] for row in opened if row["seen"] + GONE > at}
    over = [row["id"] for row in opened if row["seen"] + GONE <= at]
    free = [row for row in stale if row["body"] not in held and not _read_by(going, row)][:CLEARED]
    if not (free or over):
        return 0
    with node.records.reading() as unit:
        kept = reading.shared(unit, [row["body"] for row in free])  # by another version of the dataset
    for row in free:
        if row["body"] in kept:
            continue
        for name in (row["body"], sidecar(row["body"])):
            node.storage.delete(name)
    with node.records.writing() as unit:
        copying.forget(unit, [row["body"] for row in free if row["body"] not in kept])
        unit.delete("stale_body", {"body": [row["body"] for row in free]})
        unit.delete("open_body", {"id": over[: reading.BATCH]})
    return len(free)


def _read_by(going: Sequence[run.Run], row: dict[str, Any]) -> bool:
    """Whether a run may have the body open or be told its name: one that began before it was replaced."""
    return any(
        (one.started is None or one.started < row["since"] + GRACE)
        and any(wanted.dataset_id == row["dataset"] for wanted in one.datasets)
        for one in going
    )
