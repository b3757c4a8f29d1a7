"""Rotation: every refusal, once; and, whatever the order of things, every file opens with exactly one key pair."""

from datetime import UTC, datetime

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from valv.core import rotation
from valv.core.process import NODE
from valv.errors import Refusal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
START = rotation.Start(by="o", at=NOW, rotation_id="x", dataset_id="d", version=1, key_id="k", aim="rotate", reason="t")
OPERATOR, CUSTODIAN, NOBODY = rotation.Facts(operator=True), rotation.Facts(custodian=True), rotation.Facts()
GOING = rotation.Rotation(
    rotation_id="x",
    dataset_id="d",
    version=1,
    key_id="k",
    aim="rotate",
    pair=2,
    reason="t",
    by="o",
    started=NOW,
    made=True,
)
BODY = rotation.RecordBody(by=NODE, at=NOW, file_id="f", before="a", after="b")
SETTLE, RETIRE = rotation.Settle(by=NODE, at=NOW), rotation.Retire(by=NODE, at=NOW)
STOP = rotation.Stop(by="o", at=NOW)

CASES = [
    ("not_yours", None, START, NOBODY),
    ("reason_missing", None, replace(START, reason=""), OPERATOR),
    ("rotation_going", None, START, replace(OPERATOR, going=True)),
    ("not_yours", GOING, STOP, CUSTODIAN),
    ("wrong_phase", replace(GOING, phase="retiring"), STOP, OPERATOR),
    ("not_yours", GOING, replace(SETTLE, by="o"), OPERATOR),
    ("files_left", GOING, SETTLE, rotation.Facts(left=1, files=3)),
    ("files_left", replace(GOING, made=False), SETTLE, NOBODY),
    ("body_stays", GOING, BODY, NOBODY),
    ("body_stays", replace(GOING, aim="rekey", made=False), BODY, NOBODY),
    ("wrong_phase", replace(GOING, aim="rekey", phase="stopped"), BODY, NOBODY),
    ("key_in_use", replace(GOING, phase="retiring", readers=("r",)), RETIRE, rotation.Facts(readers=("q", "r"))),
    ("wrong_phase", GOING, RETIRE, NOBODY),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(rotation, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(rotation) <= {case[0] for case in CASES}


def test_the_pair_is_the_one_after_the_newest_that_was_made(follow):
    assert follow(rotation, None, START, OPERATOR).pair == 2
    assert follow(rotation, None, START, replace(CUSTODIAN, pair=7)).pair == 8


def test_runs_that_began_later_do_not_hold_up(follow):
    state = follow(rotation, GOING, SETTLE, rotation.Facts(files=3, readers=("p", "q")))
    assert (state.phase, state.files, state.readers) == ("retiring", 3, ("p", "q"))
    assert follow(rotation, state, RETIRE, rotation.Facts(readers=("r",))).phase == "done"


class Custody(RuleBasedStateMachine):
    """A key holder, files and rotations, in any order of the steps that the node takes, each of which may be the last
    before a crash. Only `decide` says what may be done. A run keeps the headers that it found when it began."""

    def __init__(self):
        super().__init__()
        self.pairs = {1}
        self.files = dict.fromkeys("abc", 1)
        self.rotations = []
        self.runs = {}
        self.began = 0

    def give(self, command, **facts):
        """The newest rotation after a command; whether it was allowed."""
        state = self.rotations[-1]
        decided = rotation.decide(state, command, rotation.Facts(**facts))
        if isinstance(decided, Refusal):
            return False
        for event in decided:
            state = rotation.evolve(state, event)
        self.rotations[-1] = state
        return True

    @property
    def now(self):
        return self.rotations[-1] if self.rotations else None

    def under_way(self, *phases):
        return self.now is not None and self.now.phase in phases

    @rule(aim=st.sampled_from(["rotate", "rekey"]))
    def start(self, aim):
        facts = rotation.Facts(
            operator=True,
            going=self.under_way("going", "retiring"),
            pair=max((one.pair for one in self.rotations if one.made), default=1),
        )
        decided = rotation.decide(None, replace(START, aim=aim), facts)
        if isinstance(decided, Refusal):
            assert decided.code == "rotation_going"
        else:
            self.rotations.append(rotation.evolve(None, decided[0]))

    @precondition(lambda self: self.under_way("going"))
    @rule()
    def the_key_holder_makes_the_pair(self):
        """Also again, after a crash that lost the answer."""
        assert self.now.pair <= max(self.pairs) + 1, "the key holder knows no such pair"
        assert self.now.pair >= max(self.pairs), "an older pair cannot be made anew"
        self.pairs.add(self.now.pair)

    @precondition(lambda self: self.under_way("going") and self.now.pair in self.pairs)
    @rule()
    def the_pair_is_written_down(self):
        assert self.give(rotation.RecordPair(by=NODE, at=NOW))

    @precondition(lambda self: self.under_way("going") and self.now.made)
    @rule(name=st.sampled_from("abc"))
    def a_file_is_taken_along(self, name):
        if self.files[name] >= self.now.pair:
            return
        if self.now.aim == "rekey":
            assert self.give(replace(BODY, file_id=name))
        self.files[name] = self.now.pair

    @rule()
    def a_run_begins(self):
        self.began += 1
        self.runs[f"r{self.began}"] = dict(self.files)

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def a_run_ends(self, data):
        del self.runs[data.draw(st.sampled_from(sorted(self.runs)))]

    @precondition(lambda self: self.under_way("going"))
    @rule()
    def settle(self):
        left = sum(pair < self.now.pair for pair in self.files.values())
        done = self.give(SETTLE, left=left, files=3, readers=tuple(self.runs))
        assert done == (left == 0 and self.rotations[-1].made)

    @precondition(lambda self: self.under_way("retiring"))
    @rule(crash=st.booleans())
    def retire(self, crash):
        facts = rotation.Facts(readers=tuple(self.runs))
        if isinstance(rotation.decide(self.now, RETIRE, facts), Refusal):
            return
        self.pairs = {self.now.pair}
        if not crash:
            assert self.give(RETIRE, readers=tuple(self.runs))

    @precondition(lambda self: self.under_way("going"))
    @rule()
    def stop(self):
        assert self.give(STOP, operator=True)

    @precondition(lambda self: self.under_way("going", "retiring"))
    @rule()
    def fail(self):
        assert self.give(rotation.Fail(by=NODE, at=NOW, why="w"))

    @invariant()
    def every_file_and_every_run_opens(self):
        assert all(pair in self.pairs for pair in self.files.values())
        assert all(pair in self.pairs for run in self.runs.values() for pair in run.values())

    def teardown(self):
        """Whatever came before, one more rotation brings all files to one pair."""
        self.runs = {}
        if self.under_way("going"):
            self.stop()
        if self.under_way("retiring"):
            self.retire(crash=False)
        self.start("rotate")
        self.the_key_holder_makes_the_pair()
        self.the_pair_is_written_down()
        for name in "abc":
            self.a_file_is_taken_along(name)
        self.settle()
        self.retire(crash=False)
        assert self.now.phase == "done" and self.pairs == {self.now.pair} == set(self.files.values())


Custody.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestCustody = Custody.TestCase
