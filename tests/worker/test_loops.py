"""The worker's loops: a fault ends none of them, checkpoints hold, and leases go to the right user only."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from valv.app import intake, ledger, permit, run, running
from valv.app.node import new_id
from valv.app.streams import RUN
from valv.errors import ConflictFault, StorageFault, UnreachableFault
from valv.formats import ledger as format
from valv.ports.lease import Beat
from valv.worker.loops import Worker


def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def worker(s: Any) -> Worker:
    return Worker(s.worker, s.world.compute, s.reader)


@pytest.mark.parametrize(
    "fault", [StorageFault("full"), ConflictFault("again"), ValueError("broken"), ZeroDivisionError(), KeyError("x")]
)
def test_a_loop_survives(worker: Worker, fault: Exception, caplog: Any) -> None:
    turns = []

    def turn() -> None:
        turns.append(1)
        if len(turns) < 3:
            raise fault

    thread = threading.Thread(target=worker._loop, args=(0.01, turn))
    thread.start()
    until(lambda: len(turns) > 5)
    worker.stop()
    thread.join(60)
    assert not thread.is_alive()
    said = [record for record in caplog.records if record.name == "valv.worker"]
    expected = 0 if isinstance(fault, ConflictFault) else 1 if isinstance(fault, StorageFault) else 2
    assert len(said) == expected, "a fault that stays is said once"


def test_everything_runs_by_itself(s: Any, worker: Worker, caplog: Any) -> None:
    """Deposit, checkpoint and run, done by the loops in their threads."""
    s.who("audun")
    name = s.fresh()
    ident = s.open(name)
    s.send(ident, "a", b"1")
    s.submit(ident)
    with caplog.at_level(logging.WARNING):
        worker.start()
        try:
            until(lambda: s.deposit(ident).phase == "published")
            granted = s.permit(name)
            run_id = queue(s, granted)
            until(lambda: s.state(RUN, run_id).phase == "collected")
            until(lambda: ledger.proof(s.node, s.who("audun")).checkpoint_size == s.size())
        finally:
            worker.stop()
    proof = ledger.proof(s.node, s.who("audun"))
    lines = b"".join(ledger.export(s.node, s.who("audun"), proof.checkpoint_size)).splitlines()
    report = format.verify_export(lines, proof.checkpoint, proof.log_key)
    assert report.ok, report.fault
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def queue(s: Any, permit_id: str) -> str:
    rikard = s.who("rikard")
    return run.queue(
        s.node, rikard, permit_id=permit_id, datasets=(), command_line=["true"], limits=None, command=new_id()
    )


@pytest.fixture
def going(s: Any) -> tuple[str, str]:
    """A permit and a run under it that goes on."""
    name = s.fresh()
    ident = s.open(name)
    s.send(ident, "a", b"1")
    s.submit(ident)
    intake.process_submitted(s.worker, s.reader)
    permit_id = s.permit(name)
    run_id = queue(s, permit_id)
    assert running._start(s.worker, s.world.compute, s.state(RUN, run_id))
    return permit_id, run_id


def test_a_lease_goes_to_the_mount_s_user_only(s: Any, worker: Worker, going: tuple[str, str]) -> None:
    permit_id, run_id = going
    beat = Beat(grant_id=f"run-{run_id}", run_id=run_id)
    uid = s.world.compute.uid
    for stranger in (0, uid + 1, 65534):
        assert not worker.lease(beat, stranger)
    assert worker.lease(beat, uid)
    assert not worker.lease(beat, uid + 1)
    permit.revoke(s.node, s.who("dagny"), permit_id, reason="Over.", command=new_id())
    assert not worker.lease(beat, uid)
    assert not worker.lease(beat, uid)


def test_a_made_up_run_takes_no_place(s: Any, going: tuple[str, str]) -> None:
    reserved: list[str] = []

    class Counting:
        def reserve(self, run_id: str) -> int:
            reserved.append(run_id)
            return int(s.world.compute.reserve(run_id))

        def __getattr__(self, name: str) -> Any:
            return getattr(s.world.compute, name)

    worker = Worker(s.worker, Counting(), s.reader)  # type: ignore[arg-type]
    for number in range(20):
        assert not worker.lease(Beat(grant_id="x", run_id=f"made-up-{number}"), s.world.compute.uid)
    assert reserved == []
    assert worker.lease(Beat(grant_id="x", run_id=going[1]), s.world.compute.uid)


def test_reads_of_a_stranger_are_no_evidence(s: Any, worker: Worker, going: tuple[str, str]) -> None:
    _, run_id = going
    worker.lease(Beat(grant_id="x", run_id=run_id, reads={"file": 7}), s.world.compute.uid + 1)
    before = s.size()
    worker.evidence()
    assert s.size() == before
    worker.lease(Beat(grant_id="x", run_id=run_id, reads={"file": 7}), s.world.compute.uid)
    worker.evidence()
    assert s.size() == before + 1
    worker.lease(Beat(grant_id="x", run_id=run_id, reads={"file": 7}), s.world.compute.uid)
    worker.evidence()
    assert s.size() == before + 1, "what was told before is told again"


def test_a_key_holder_that_is_away_lets_no_run_go_on(s: Any, going: tuple[str, str]) -> None:
    """A run whose permit was revoked is stopped, also where another part does not answer."""
    from dataclasses import replace

    permit_id, run_id = going
    permit.revoke(s.node, s.who("dagny"), permit_id, reason="Over.", command=new_id())
    stopped: list[str] = []

    class Away:
        def __getattr__(self, name: str) -> Any:
            def away(*_: Any) -> None:
                raise UnreachableFault("the key holder is away")

            return away

    class Stopping:
        def stop(self, run_id: str) -> None:
            stopped.append(run_id)

        def __getattr__(self, name: str) -> Any:
            return getattr(s.world.compute, name)

    with pytest.raises(UnreachableFault):
        running.watch(replace(s.worker, keys=Away()), Stopping())  # type: ignore[arg-type]
    assert run_id in stopped
    assert s.state(RUN, run_id).phase == "stopping"
