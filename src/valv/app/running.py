"""The node's own steps with runs: start them, watch them, end what is no longer permitted, seal what they leave."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from valv.app import permit as permits
from valv.app import reading, streams, text
from valv.app.node import Node, derived_id, new_id
from valv.app.streams import PERMIT, RELEASE, RUN, Step, retried
from valv.core import release, run
from valv.core.access import Wanted
from valv.core.process import NODE
from valv.errors import ComputeFault, Fault, Refusal, RefusedFault
from valv.ports.compute import Compute, Limits, MountedFile, Output, RunSpec, RunStatus, Skipped
from valv.ports.records import Unit

LEASE = 10.0
"""Seconds that a run's grant at the key holder lasts between two renewals."""


def queue_scan(
    node: Node, ident: str, dataset_id: str, version: int, command_line: Sequence[str], limits: Limits
) -> None:
    """The node's own search for identifiers in a version, as a run like others."""
    at = node.clock()
    with node.records.writing() as unit:
        said = text.put(unit, RUN.stream(ident), "command", msgspec.json.encode(list(command_line)).decode(), at)
        order = run.Queue(
            by=NODE,
            at=at,
            run_id=ident,
            aim="scan",
            permit_id="",
            datasets=(Wanted(dataset_id, version),),
            command=said,
            limits=run.Asked(**msgspec.structs.asdict(limits)),
            result_key=f"result-{ident}",
        )
        step = Step(RUN, ident, 0, None, run.decide(None, order, run.Facts()))
        streams.commit(unit, [step], by=NODE, at=at, command=f"scan-run:{ident}")


def start_queued(node: Node, compute: Compute) -> int:
    """Start queued runs, oldest first, while the backend has free slots. Returns how many were started."""
    with node.records.reading() as unit:
        waiting = streams.find(unit, RUN, phases=("queued",), newest_first=False, limit=node.config.compute.slots)
        going = len(unit.find(run.KIND, phases=("running", "stopping", "ended"), limit=1000))
    started = 0
    for state in waiting[: max(0, node.config.compute.slots - going)]:
        try:
            started += _start(node, compute, state)
        except Fault as fault:
            _finish(node, state.run_id, RunStatus(state.run_id, "ended", end="not_started", detail=str(fault)))
    return started


def _start(node: Node, compute: Compute, state: run.Run) -> bool:
    at = node.clock()
    with node.records.reading() as unit:
        refusal = _still_permitted(node, unit, state)
        files = _files(unit, state.datasets) if refusal is None else ()
        line = msgspec.json.decode(text.get(unit, state.command) or "[]", type=tuple[str, ...])
    if refusal is not None:
        _ask_stop(node, state.run_id, "revoked")
        return False
    uid = compute.reserve(state.run_id)
    grant = f"run-{state.run_id}"
    node.keys.revoke(grant)  # one that an interrupted start left: a live grant never changes
    node.keys.grant(grant, sorted({file.key_id for file in files}), uid, LEASE)
    with node.records.writing() as unit:
        now, version = streams.need(unit, RUN, state.run_id)
        facts = run.Facts(permit=_still_permitted(node, unit, now))
        events = run.decide(now, run.Start(by=NODE, at=at), facts)
        if isinstance(events, Refusal):
            compute.discard(state.run_id)
            return False
        streams.commit(unit, [Step(RUN, state.run_id, version, now, events)], by=NODE, at=at, command=new_id())
    compute.start(
        RunSpec(
            run_id=state.run_id,
            grant_id=grant,
            command=line,
            files=files,
            limits=Limits(**msgspec.structs.asdict(state.limits)),
        )
    )
    return True


def _renew(node: Node, compute: Compute, state: run.Run) -> None:
    """Keep the run's grant alive; make it anew where the key holder was restarted and knows it no more."""
    grant = f"run-{state.run_id}"
    try:
        node.keys.renew(grant, LEASE)
    except RefusedFault:
        with node.records.reading() as unit:
            key_ids = sorted({version.key_id for _, version in permits.behind(unit, state.datasets)})
        node.keys.grant(grant, key_ids, compute.reserve(state.run_id), LEASE)


def _still_permitted(node: Node, unit: Unit, state: run.Run) -> Refusal | None:
    if state.aim == "scan":
        return None
    at = node.clock()
    for wanted in state.datasets:
        refusal = permits.stands(unit, state.permit_id, account_id=state.owner, wanted=wanted, mode="compute", at=at)
        if refusal is not None:
            return refusal
    return None


def _files(unit: Unit, wanted: Sequence[Wanted]) -> tuple[MountedFile, ...]:
    found: list[MountedFile] = []
    for state, version in permits.behind(unit, wanted):
        rows = reading.files(unit, state.dataset_id, version.number)
        found.extend(reading.mounted(row, f"{state.name}/{row['path']}") for row in rows)
    return tuple(found)


def watch(node: Node, compute: Compute) -> int:
    """Look after runs that go on: renew their grants, stop what is no longer permitted, finish what ended. Returns how
    many go on."""
    with node.records.reading() as unit:
        going = streams.find(unit, RUN, phases=("running", "stopping"), limit=1000)
        refused = {state.run_id: _still_permitted(node, unit, state) for state in going if state.phase == "running"}
    for state in going:
        grant = f"run-{state.run_id}"
        if state.phase == "stopping" or refused[state.run_id] is not None:
            node.keys.revoke(grant)
            if state.phase == "running":
                _ask_stop(node, state.run_id, "revoked")
            compute.stop(state.run_id)
        status = compute.status(state.run_id)
        if status.state in ("ended", "unknown"):
            node.keys.revoke(grant)
            _finish(node, state.run_id, status)
        elif state.phase == "running":
            _renew(node, compute, state)
    return len(going)


@retried
def _ask_stop(node: Node, run_id: str, why: Any) -> None:
    with node.records.writing() as unit:
        state, version = streams.need(unit, RUN, run_id)
        events = run.decide(state, run.Stop(by=NODE, at=node.clock(), why=why), run.Facts())
        if not isinstance(events, Refusal):
            step = Step(RUN, run_id, version, state, events)
            streams.commit(unit, [step], by=NODE, at=node.clock(), command=new_id())


@retried
def _finish(node: Node, run_id: str, status: RunStatus) -> None:
    with node.records.writing() as unit:
        state, version = streams.need(unit, RUN, run_id)
        end = status.end or "lost"
        if end == "stopped" and any(
            record.data.find(b'"revoked"') >= 0 for record in unit.events(RUN.stream(run_id))[-2:]
        ):
            end = "revoked"
        order = run.Finish(by=NODE, at=node.clock(), end=end, success=end == "exited" and status.exit_code == 0)
        events = run.decide(state, order, run.Facts())
        if isinstance(events, Refusal):
            return
        ended = Step(RUN, run_id, version, state, events)
        read = run.decide(
            ended.after,
            run.RecordReads(by=NODE, at=node.clock(), reads=_untold(unit, run_id, status.reads)),
            run.Facts(),
        )
        both = [*events, *(read if not isinstance(read, Refusal) else [])]
        streams.commit(
            unit, [Step(RUN, run_id, version, state, both)], by=NODE, at=node.clock(), command=f"finish:{run_id}"
        )


def record_reads(node: Node, run_id: str, reads: dict[str, int]) -> None:
    """Evidence of what a run has read so far: one event with what came since the last one."""
    with node.records.writing() as unit:
        state, version = streams.need(unit, RUN, run_id)
        order = run.RecordReads(by=NODE, at=node.clock(), reads=_untold(unit, run_id, reads))
        events = run.decide(state, order, run.Facts())
        if not isinstance(events, Refusal):
            step = Step(RUN, run_id, version, state, events)
            streams.commit(unit, [step], by=NODE, at=node.clock(), command=new_id())


def _untold(unit: Unit, run_id: str, reads: dict[str, int]) -> dict[str, int]:
    """What of these totals the ledger does not say yet, by file id; remembers the totals."""
    told = {row["file"]: row["ledgered"] for row in unit.rows("read_tally", {"run": run_id})}
    for file, total in reads.items():
        unit.upsert(
            "read_tally", {"run": run_id, "file": file, "bytes": total, "ledgered": max(total, told.get(file, 0))}
        )
    return {file: total - told.get(file, 0) for file, total in sorted(reads.items()) if total > told.get(file, 0)}


def collect_ended(node: Node, compute: Compute) -> int:
    """Encrypt and seal the outputs of runs that ended. Returns how many runs were dealt with."""
    with node.records.reading() as unit:
        ended = streams.find(unit, RUN, phases=("ended",), newest_first=False, limit=20)
    for state in ended:
        _collect(node, compute, state)
    return len(ended)


def _collect(node: Node, compute: Compute, state: run.Run) -> None:
    public = node.keys.create(state.result_key, "result")
    outputs: list[Output] = []
    skipped: list[Skipped] = []
    if state.end not in ("lost", "not_started"):
        try:
            for item in compute.collect(state.run_id, public):
                outputs.append(item) if isinstance(item, Output) else skipped.append(item)
        except ComputeFault:
            # The backend lost the run meanwhile (a restart): what it left is gone with it.
            outputs.clear()
    _seal(node, state, outputs, skipped)
    compute.discard(state.run_id)


@retried
def _seal(node: Node, state: run.Run, outputs: list[Output], skipped: list[Skipped]) -> None:
    at = node.clock()
    release_id = derived_id(NODE, "release", state.run_id)
    with node.records.writing() as unit:
        now, version = streams.need(unit, RUN, state.run_id)
        order = run.Collect(by=NODE, at=at, outputs=len(outputs), skipped=len(skipped))
        events = run.decide(now, order, run.Facts())
        if isinstance(events, Refusal):
            return
        steps: list[Step[Any]] = [Step(RUN, state.run_id, version, now, events)]
        rows = [_row(release_id, state.result_key, output) for output in outputs]
        people: tuple[str, ...] = ()
        if state.permit_id:
            people = streams.need(unit, PERMIT, state.permit_id)[0].people
        seal = release.Seal(
            by=NODE,
            at=at,
            release_id=release_id,
            run_id=state.run_id,
            permit_id=state.permit_id,
            author=state.owner,
            people=people,
            datasets=tuple(sorted({wanted.dataset_id for wanted in state.datasets})),
            key_id=state.result_key,
            items=tuple(
                release.Item(file_id=row["id"], size=row["size"], seal_root=row["seal_root"].hex()) for row in rows
            ),
            manifest=manifest(rows),
        )
        steps.append(Step(RELEASE, release_id, 0, None, release.decide(None, seal, release.Facts())))
        streams.commit(unit, steps, by=NODE, at=at, command=f"collect:{state.run_id}")
        unit.insert("release_file", rows)
        if skipped:
            lines = "\n".join(f"{item.path!r}: {item.reason}" for item in skipped[:200])
            text.put(unit, RELEASE.stream(release_id), "skipped", lines, at)


def _row(release_id: str, key_id: str, output: Output) -> dict[str, Any]:
    return {
        "id": new_id(),
        "release": release_id,
        "path": output.path,
        "body": output.body,
        "header": output.header,
        "key_id": key_id,
        "size": output.size,
        "sha256": output.sha256,
        "seal_root": output.seal_root,
        "media": "",
    }


def manifest(rows: Sequence[dict[str, Any]]) -> str:
    """SHA-256, hex, over path, size, plain digest and seal of every output in the order of their paths. (The seal is
    random to an outsider, so that the manifest tells nothing of the content.)"""
    whole = hashlib.sha256()
    for row in sorted(rows, key=lambda row: str(row["path"])):
        whole.update(
            msgspec.json.encode([row["id"], row["path"], row["size"], row["sha256"].hex(), row["seal_root"].hex()])
        )
    return whole.hexdigest()
