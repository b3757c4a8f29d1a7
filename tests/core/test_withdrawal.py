"""Withdrawal: every refusal, once; and, whatever the order of things: from the moment of asking nobody starts on the
old version, and after the end no live permit names it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from valv.core import dataset, permit, withdrawal
from valv.core.access import Wanted
from valv.core.consent import Purpose
from valv.core.process import NODE
from valv.errors import Refusal

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ASK = withdrawal.Ask(
    by="c",
    at=NOW,
    withdrawal_id="w",
    dataset_id="d",
    version=1,
    key_id="k",
    persons="t",
    count=1,
    reason="r",
    runs_end=True,
)
CUSTODIAN, NOBODY = withdrawal.Facts(custodian=True), withdrawal.Facts()
ASKED = withdrawal.evolve(None, withdrawal.decide(None, ASK, CUSTODIAN)[0])
REWRITING = replace(ASKED, phase="rewriting")
FILE = withdrawal.RecordFile(by=NODE, at=NOW, file_id="f", outcome="dropped", before="a", after="")
PUBLISH = withdrawal.Publish(by=NODE, at=NOW, successor=2)
FINISH = withdrawal.Finish(by=NODE, at=NOW)

CASES = [
    ("not_yours", None, ASK, NOBODY),
    ("person_missing", None, replace(ASK, count=0), CUSTODIAN),
    ("reason_missing", None, replace(ASK, reason=""), CUSTODIAN),
    ("withdrawal_going", None, ASK, replace(CUSTODIAN, going=True)),
    ("wrong_phase", ASKED, PUBLISH, NOBODY),
    ("not_yours", REWRITING, replace(FILE, by="c"), CUSTODIAN),
    ("not_yet", REWRITING, withdrawal.Wait(by=NODE, at=NOW, files=0), NOBODY),
    ("files_open", REWRITING, PUBLISH, withdrawal.Facts(left=1)),
    ("files_open", replace(ASKED, phase="waiting"), withdrawal.GoOn(by=NODE, at=NOW), withdrawal.Facts(asking=2)),
    ("permits_left", replace(ASKED, phase="carrying"), FINISH, withdrawal.Facts(named=1)),
    ("wrong_phase", replace(ASKED, phase="carrying"), withdrawal.Cancel(by="c", at=NOW), CUSTODIAN),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(withdrawal, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(withdrawal) <= {case[0] for case in CASES}


def test_a_run_that_had_begun_goes_on_only_where_the_custodian_let_it():
    moved = permit.VersionMoved(dataset_id="d", before=1, after=2, at=NOW)
    state = permit.evolve(issued(), moved)
    asked = {"account": "r", "dataset": Wanted("d", 1), "mode": "compute", "at": NOW + timedelta(days=1)}
    assert permit.permits(state, **asked).code == "no_permit"
    assert permit.permits(state, **asked, since=NOW - timedelta(hours=1)) is None
    assert permit.permits(state, **asked, since=NOW + timedelta(hours=1)).code == "no_permit"


def issued(ident="p"):
    order = permit.Issue(
        by=NODE,
        at=NOW,
        permit_id=ident,
        access_id="a",
        people=("r",),
        datasets=(Wanted("d", 1),),
        purpose=Purpose(aim="health"),
        mode="compute",
        starts=NOW - timedelta(days=1),
        ends=NOW + timedelta(days=30),
    )
    return permit.evolve(None, permit.decide(None, order, permit.Facts())[0])


class Leaving(RuleBasedStateMachine):
    """A dataset, permits and withdrawals, in any order of the steps of people and the node. Only `decide` says what may
    be done; the facts are what the use cases load."""

    def __init__(self):
        super().__init__()
        self.dataset = None
        self.permits = {}
        self.going = {}
        self.closed = set()
        self._dataset(
            dataset.Register(by="c", at=NOW, dataset_id="d", name="d", committee="k", country="SE", unit="u"),
            custodian=True,
        )
        self._add(0)

    def _dataset(self, order, **facts):
        decided = dataset.decide(self.dataset, order, dataset.Facts(**facts))
        if isinstance(decided, Refusal):
            return decided
        for event in decided:
            self.dataset = dataset.evolve(self.dataset, event)
        return None

    def _add(self, replaces):
        count = len(self.dataset.versions) if self.dataset else 0
        order = dataset.AddVersion(
            by=NODE,
            at=NOW,
            deposit_id=f"x{count}",
            key_id=f"k{count}",
            claimed="identifiable",
            consent=("GRU",),
            files=1,
            size=1,
            manifest="m",
            participants=1,
            replaces=replaces,
        )
        assert self._dataset(order) is None
        return len(self.dataset.versions)

    def _named(self, version):
        return [
            one for one in self.permits.values() if one.phase in permit.LIVE and Wanted("d", version) in one.datasets
        ]

    def _order(self, ident, order, **facts):
        decided = withdrawal.decide(self.going.get(ident), order, withdrawal.Facts(**facts))
        if isinstance(decided, Refusal):
            return decided
        for event in decided:
            self.going[ident] = withdrawal.evolve(self.going.get(ident), event)
        return None

    @rule()
    def deposit(self):
        if len(self.dataset.versions) < 4:
            self._add(0)

    @rule(number=st.integers(1, 6))
    def approve(self, number):
        """As the use case does: for the version that took the place."""
        found = self.dataset.living(number)
        if found is not None and not found.destroyed:
            ident = f"p{len(self.permits)}"
            self.permits[ident] = replace(issued(ident), datasets=(Wanted("d", found.number),))

    @rule(number=st.integers(1, 6))
    def ask(self, number):
        ident = f"w{len(self.going)}"
        going = any(one.version == number and one.phase in withdrawal.GOING for one in self.going.values())
        order = dataset.CloseVersion(by="c", at=NOW, version=number, withdrawal_id=ident, runs_end=True)
        before = self.dataset
        if self._dataset(order) is None:
            if self._order(ident, replace(ASK, withdrawal_id=ident, version=number), custodian=True, going=going):
                self.dataset = before
            else:
                self.closed.add(number)

    @precondition(lambda self: self.going)
    @rule(data=st.data(), kind=st.sampled_from(["plan", "publish", "carry", "finish", "fail", "cancel", "nobody"]))
    def step(self, data, kind):
        ident = data.draw(st.sampled_from(sorted(self.going)))
        state = self.going[ident]
        node = {"by": NODE, "at": NOW}
        if kind == "plan":
            self._order(ident, withdrawal.Plan(**node, files=1))
        elif kind == "publish" and state.phase == "rewriting":
            found = self.dataset.version(state.version)
            if found.closed and not found.successor:
                self._order(ident, withdrawal.Publish(**node, successor=self._add(state.version)))
        elif kind == "carry" and state.phase == "carrying":
            for one in self._named(state.version):
                order = permit.Move(**node, dataset_id="d", before=state.version, after=state.successor)
                for event in permit.decide(one, order, permit.Facts()):
                    self.permits[one.permit_id] = permit.evolve(self.permits[one.permit_id], event)
        elif kind == "finish":
            self._order(ident, FINISH, named=len(self._named(state.version)))
        elif kind == "fail":
            self._order(ident, withdrawal.Fail(**node, why="t"))
        elif kind == "cancel":
            self._order(ident, withdrawal.Cancel(by="c", at=NOW), custodian=True)
        elif kind == "nobody" and self._order(ident, withdrawal.FindNobody(**node)) is None:
            others = [one for one in self.going.values() if one.version == state.version]
            if not any(one.phase in ("failed", "cancelled") for one in others):
                assert self._dataset(dataset.OpenVersion(**node, version=state.version)) is None
                self.closed.discard(state.version)

    @invariant()
    def nobody_starts_on_a_version_that_was_asked_for(self):
        for number in self.closed:
            assert self.dataset.version(number).closed is not None

    @invariant()
    def after_the_end_no_live_permit_names_the_old_version(self):
        for one in self.going.values():
            if one.phase == "finished":
                assert not self._named(one.version)
                assert self.dataset.version(one.version).successor == one.successor
                assert self.dataset.living(one.version).number >= one.successor

    @invariant()
    def a_version_has_at_most_one_successor(self):
        successors = [found.successor for found in self.dataset.versions if found.successor]
        assert len(set(successors)) == len(successors)


Leaving.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLeaving = Leaving.TestCase
