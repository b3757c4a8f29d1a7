"""Runs: every refusal, once."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from valv.core import run
from valv.core.access import Wanted
from valv.core.process import NODE
from valv.errors import Refusal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LIMITS = run.Asked(seconds=10, memory=10, processes=10, scratch=10)
QUEUE = run.Queue(
    by="r",
    at=NOW,
    run_id="x",
    aim="research",
    permit_id="p",
    datasets=(Wanted("d", 1),),
    command="t",
    limits=LIMITS,
    result_key="k",
)
SCAN = replace(QUEUE, by=NODE, aim="scan", permit_id="")
HELD = run.Facts(permit=None, ceiling=LIMITS)
RUN = run.Run(
    run_id="x",
    owner="r",
    aim="research",
    permit_id="p",
    datasets=(Wanted("d", 1),),
    command="t",
    limits=LIMITS,
    result_key="k",
    queued=NOW,
)
RUNNING = replace(RUN, phase="running", started=NOW)
START = run.Start(by=NODE, at=NOW)
ENDED = run.Facts(permit=Refusal("permit_ended"))

CASES = [
    ("no_permit", None, QUEUE, run.Facts()),
    ("permit_ended", None, QUEUE, ENDED),
    ("no_permit", RUN, START, run.Facts()),
    ("permit_ended", RUN, START, ENDED),
    ("no_permit", None, replace(SCAN, by="r"), run.Facts()),
    ("not_yours", None, replace(SCAN, by="r"), HELD),
    ("command_missing", None, QUEUE, replace(HELD, command_empty=True)),
    ("dataset_missing", None, replace(QUEUE, datasets=()), HELD),
    *(
        ("over_limit", None, replace(QUEUE, limits=replace(LIMITS, **{name: value})), HELD)
        for name in run.Asked.__struct_fields__
        for value in (0, -1, 11)
    ),
    ("not_yours", RUNNING, run.Stop(by="s", at=NOW, why="stopped"), HELD),
    ("not_yours", RUN, replace(START, by="r"), HELD),
    ("wrong_phase", replace(RUN, phase="ended"), run.Stop(by="r", at=NOW, why="stopped"), HELD),
    ("wrong_phase", RUNNING, START, HELD),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(run, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(run) <= {case[0] for case in CASES}


def test_the_nodes_own_scan_needs_no_permit(follow):
    state = follow(run, None, SCAN, run.Facts())
    assert follow(run, state, START, run.Facts()).phase == "running"


def test_an_owner_cannot_say_that_a_permit_was_revoked():
    (event,) = run.decide(RUNNING, run.Stop(by="r", at=NOW, why="revoked"), HELD)
    assert event.why == "stopped"
    (event,) = run.decide(RUNNING, run.Stop(by=NODE, at=NOW, why="revoked"), HELD)
    assert event.why == "revoked"


def test_a_queued_run_is_cancelled_and_a_running_one_is_stopped(follow):
    stop = run.Stop(by="r", at=NOW, why="stopped")
    assert follow(run, RUN, stop, HELD).phase == "cancelled"
    assert follow(run, RUNNING, stop, HELD).phase == "stopping"


def test_no_reads_no_event():
    assert run.decide(RUNNING, run.RecordReads(by=NODE, at=NOW, reads={}), HELD) == []
