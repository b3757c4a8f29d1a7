"""The node's own steps with runs: start them, watch them, end what is no longer permitted, seal what they leave."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from valv.app import permit as permits
from valv.app import reading, streams, text
from valv.app.node import Node, derived_id, each, new_id
from valv.app.streams import DATASET, PERMIT, RELEASE, RUN, Step, retried
from valv.core import release, run
from valv.core.access import Wanted
from valv.core.process import NODE
from valv.errors import ConflictFault, Fault, Refusal, RefusedFault
from valv.formats.seal import sidecar
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
        going = len(unit.find(run.KIND, phases=("running", "stopping"), limit=1000))
    started = 0
    for state in waiting[: max(0, node.config.compute.slots - going)]:
        try:
            started += _start(node, compute, state)
        except ConflictFault:
            continue  # a permit or dataset moved on meanwhile: decide anew at the next turn
        except Fault as fault:
            finish(node, compute, state, RunStatus(state.run_id, "ended", end="not_started", detail=str(fault)))
    return started


def _start(node: Node, compute: Compute, state: run.Run) -> bool:
    at = node.clock()
    with node.records.reading() as unit:
        refusal = _still_permitted(node, unit, state)
    if refusal is not None:
        _ask_stop(node, state.run_id, "revoked")
        compute.discard(state.run_id)  # a place that an earlier turn reserved
        return False
    uid = compute.reserve(state.run_id)
    grant = _grant(state.run_id)
    node.keys.revoke(grant)  # one that an interrupted start left: a live grant never changes
    node.keys.grant(grant, _keys(node, state), uid, LEASE)
    with node.records.writing() as unit:
        now, version = streams.need(unit, RUN, state.run_id)
        facts_from = _versions(unit, now)  # before the facts: what is revoked after this look makes the commit fail
        facts = run.Facts(permit=_still_permitted(node, unit, now))
        events = run.decide(now, run.Start(by=NODE, at=at), facts)
        if isinstance(events, Refusal):
            compute.discard(state.run_id)
            return False
        step = Step(RUN, state.run_id, version, now, events)
        streams.commit(unit, [step], by=NODE, at=at, command=new_id(), asserts=facts_from)
    with node.records.reading() as unit:
        # Headers and bodies as they are once the start is on record: a rotation leaves those of going runs alone.
        spec = _spec(unit, state)
    compute.start(spec)
    return True


def _versions(unit: Unit, state: run.Run) -> dict[str, int]:
    """The streams that say whether a run may start, at the versions that they have now."""
    names = [DATASET.stream(wanted.dataset_id) for wanted in state.datasets]
    names += [PERMIT.stream(state.permit_id)] if state.permit_id else []
    return {name: snapshot.version if (snapshot := unit.load(name)) else 0 for name in names}


def _spec(unit: Unit, state: run.Run) -> RunSpec:
    """What the backend needs to start a run; the same each time it is asked for."""
    files: list[MountedFile] = []
    for found, version in permits.behind(unit, state.datasets):
        rows = reading.files(unit, found.dataset_id, version.number)
        files.extend(reading.mounted(row, f"{found.name}/{row['path']}") for row in rows)
    return RunSpec(
        run_id=state.run_id,
        grant_id=_grant(state.run_id),
        command=msgspec.json.decode(text.get(unit, state.command) or "[]", type=tuple[str, ...]),
        files=tuple(files),
        limits=Limits(**msgspec.structs.asdict(state.limits)),
    )


def _grant(run_id: str) -> str:
    return f"run-{run_id}"


def resume(node: Node, compute: Compute) -> None:
    """Once, when the worker begins: bring runs further that it left on the way when it last ended."""
    with node.records.reading() as unit:
        going = streams.find(unit, RUN, phases=("running",), limit=1000)
        specs = [_spec(unit, state) for state in going]
    for spec in specs:
        if compute.status(spec.run_id).state == "starting":
            compute.start(spec)  # idempotent: a run that was reserved and not started begins now
    for run_id in compute.runs():
        with node.records.reading() as unit:
            state = streams.load(unit, RUN, run_id).state
        if state is None or state.phase in ("collected", "cancelled"):
            compute.discard(run_id)


def _renew(node: Node, compute: Compute, state: run.Run) -> None:
    """Keep the run's grant alive; make it anew where the key holder was restarted and knows it no more."""
    grant = _grant(state.run_id)
    try:
        node.keys.renew(grant, LEASE)
    except RefusedFault:
        node.keys.grant(grant, _keys(node, state), compute.reserve(state.run_id), LEASE)


def _keys(node: Node, state: run.Run) -> list[str]:
    """Of the versions that the run may read, as the ledger has them and not as rows of files say."""
    with node.records.reading() as unit:
        return sorted({version.key_id for _, version in permits.behind(unit, state.datasets)})


def _still_permitted(node: Node, unit: Unit, state: run.Run) -> Refusal | None:
    if state.aim == "scan":
        gone = any(version.destroyed for _, version in permits.behind(unit, state.datasets))
        return Refusal("version_destroyed") if gone else None
    at = node.clock()
    for wanted in state.datasets:
        refusal = permits.stands(
            unit,
            state.permit_id,
            account_id=state.owner,
            wanted=wanted,
            mode="compute",
            at=at,
            since=state.started,
        )
        if refusal is not None:
            return refusal
    return None


def watch(node: Node, compute: Compute) -> int:
    """Look after runs that go on: renew their grants, stop what is no longer permitted. Returns how many go on."""
    with node.records.reading() as unit:
        going = streams.find(unit, RUN, phases=("running", "stopping"), limit=1000)
        refused = {state.run_id: _still_permitted(node, unit, state) for state in going if state.phase == "running"}
    # The processes end first and each on its own account, so that no other part that is away lets one go on.
    ending = [state for state in going if state.phase == "stopping" or refused[state.run_id] is not None]
    each(ending, lambda state: _end(node, compute, state))
    each((state for state in going if state not in ending), lambda state: _keep_up(node, compute, state))
    return len(going)


def _end(node: Node, compute: Compute, state: run.Run) -> None:
    if state.phase == "running":
        _ask_stop(node, state.run_id, "revoked")
    compute.stop(state.run_id)
    node.keys.revoke(_grant(state.run_id))


def _keep_up(node: Node, compute: Compute, state: run.Run) -> None:
    if compute.status(state.run_id).state in ("starting", "running"):
        _renew(node, compute, state)


@retried
def _ask_stop(node: Node, run_id: str, why: Any) -> None:
    with node.records.writing() as unit:
        state, version = streams.need(unit, RUN, run_id)
        events = run.decide(state, run.Stop(by=NODE, at=node.clock(), why=why), run.Facts())
        if not isinstance(events, Refusal):
            step = Step(RUN, run_id, version, state, events)
            streams.commit(unit, [step], by=NODE, at=node.clock(), command=new_id())


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


def finish_ended(node: Node, compute: Compute) -> int:
    """Seal the outputs of runs that ended. Their end is on record together with what they left: a run is not called
    successful before its outputs are safe. Returns how many runs were dealt with."""
    with node.records.reading() as unit:
        going = streams.find(unit, RUN, phases=("running", "stopping"), newest_first=False, limit=100)
    ended = [(state, compute.status(state.run_id)) for state in going]
    ended = [(state, status) for state, status in ended if status.state in ("ended", "unknown")]
    each(ended, lambda one: _finish_ended(node, compute, *one))
    return len(ended)


def _finish_ended(node: Node, compute: Compute, state: run.Run, status: RunStatus) -> None:
    node.keys.revoke(_grant(state.run_id))
    finish(node, compute, state, status)


def finish(node: Node, compute: Compute, state: run.Run, status: RunStatus) -> None:
    """Collect what a run left and write down its end, or that it was lost."""
    outputs: list[Output] = []
    skipped: list[Skipped] = []
    try:
        if status.state == "ended" and status.end not in ("lost", "not_started"):
            public = node.keys.create(state.result_key, "result")
            for item in compute.collect(state.run_id, public):
                outputs.append(item) if isinstance(item, Output) else skipped.append(item)
        _seal(node, state.run_id, status, outputs, skipped)
    except BaseException:
        for output in outputs:  # nothing of a failed collection stays; it is begun anew or the run is lost
            for name in (output.body, sidecar(output.body)):
                node.storage.delete(name)
        raise
    compute.discard(state.run_id)


@retried
def _seal(node: Node, run_id: str, status: RunStatus, outputs: Sequence[Output], skipped: Sequence[Skipped]) -> None:
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, RUN, run_id)
        end = status.end or "lost"
        if end == "stopped" and state.stop == "revoked":
            end = "revoked"
        orders: list[run.Commands] = [
            run.Finish(by=NODE, at=at, end=end, success=end == "exited" and status.exit_code == 0),
            run.RecordReads(by=NODE, at=at, reads=_untold(unit, run_id, status.reads)),
            run.Collect(by=NODE, at=at, outputs=len(outputs), skipped=len(skipped)),
        ]
        events: list[run.Events] = []
        after = state
        for order in orders:
            decided = run.decide(after, order, run.Facts())
            if isinstance(decided, Refusal):
                raise RefusedFault(decided)
            events += decided
            for event in decided:
                after = run.evolve(after, event)
        ended = Step(RUN, run_id, version, state, events)
        release_id = derived_id(NODE, "release", run_id)
        rows = [_row(release_id, state.result_key, output) for output in outputs]
        sealed = Step(RELEASE, release_id, 0, None, _release(unit, state, release_id, rows, at))
        streams.commit(unit, [ended, sealed], by=NODE, at=at, command=f"finish:{run_id}")
        unit.insert("release_file", rows)
        if skipped:
            lines = "\n".join(f"{item.path!r}: {item.reason}" for item in skipped[:200])
            text.put(unit, RELEASE.stream(release_id), "skipped", lines, at)
        if status.detail:
            text.put(unit, RUN.stream(run_id), "detail", status.detail, at)


def _release(
    unit: Unit, state: run.Run, release_id: str, rows: Sequence[dict[str, Any]], at: datetime
) -> list[release.Events] | Refusal:
    people = streams.need(unit, PERMIT, state.permit_id)[0].people if state.permit_id else ()
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
    return release.decide(None, seal, release.Facts())


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
        "tree_root": output.tree_root,
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
