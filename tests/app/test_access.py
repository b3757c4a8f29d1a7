"""Applications and the decision: facts are those of the moment of writing, orders are carried out once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.app.faults import Interfering
from valv.app import access, dataset, permit, streams
from valv.app.node import new_id
from valv.app.streams import ACCESS, DATASET, Step
from valv.core import access as core
from valv.errors import ConflictFault, RefusedFault


def refused(code: str, call: Any, /, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(RefusedFault) as fault:
        call(*args, **kwargs)
    assert fault.value.refusal.code == code, fault.value


def test_a_decision_on_facts_that_changed_is_taken_anew(s: Any) -> None:
    """The version is narrowed between the committee's reading and writing: the approval for download is refused."""
    name = s.fresh()
    s.anonymised(name, {"a": b"1"})
    ident = s.apply(name, mode="download", purpose=("GRU",))

    class Racing(Interfering):
        """Loses its first transaction, and in between the other one takes place."""

        def writing(self) -> Any:
            if self.done and not self.narrowed:
                self.narrowed = True
                dataset.narrow(s.node, s.who("carin"), name, version=1, reason="A name was found.", command=new_id())
            return super().writing()

        narrowed = False

    def lost() -> None:
        raise ConflictFault("a stream moved on")

    records = Racing(s.node.records, lost)
    node = replace(s.node, records=records)
    refused(
        "download_identifiable",
        access.approve,
        node,
        s.who("dagny"),
        ident,
        reason="It fits.",
        days=None,
        command=new_id(),
    )
    assert records.narrowed
    assert s.state(ACCESS, ident).phase == "submitted"
    assert not [view for view in permit.mine(s.node, s.who("rikard")) if view.state.access_id == ident]


def test_a_dataset_that_moved_on_stops_the_append(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    ident = s.apply(name)
    owner = s.dataset(name).dataset_id
    with s.node.records.writing() as unit:
        state, version = streams.need(unit, ACCESS, ident)
        step = Step(ACCESS, ident, version, state, [core.Withdrawn()])
        stale = {DATASET.stream(owner): 0}
        with pytest.raises(ConflictFault):
            streams.commit(unit, [step], by=s.who("rikard").account_id, at=s.clock(), command=new_id(), asserts=stale)
    assert s.state(ACCESS, ident).phase == "submitted"


def test_a_conflict_that_stays_is_said(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    ident = s.apply(name)

    class Losing(Interfering):
        def strike(self, when: str) -> None:
            if when == "before":
                raise ConflictFault("a stream moved on")

    with pytest.raises(ConflictFault):
        access.withdraw(
            replace(s.node, records=Losing(s.node.records, lambda: None)), s.who("rikard"), ident, command=new_id()
        )
    assert s.state(ACCESS, ident).phase == "submitted"


def test_approval_and_permit_are_one_step(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    ident = s.apply(name)

    def fail() -> None:
        raise OSError("the power is gone")

    node = replace(s.node, records=Interfering(s.node.records, fail, "after"))
    before, mails = s.size(), len(s.rows("outbox"))
    with pytest.raises(OSError, match="power"):
        access.approve(node, s.who("dagny"), ident, reason="Fits.", days=None, command=new_id())
    assert s.size() == before
    assert len(s.rows("outbox")) == mails
    assert not [view for view in permit.mine(s.node, s.who("rikard")) if view.state.access_id == ident]


def test_orders_are_carried_out_once(s: Any) -> None:
    name, command = s.fresh(), new_id()
    s.publish(name, {"a": b"1"})
    rikard, ronja = s.who("rikard"), s.who("ronja")
    first = access.draft(s.node, rikard, s.form(name), command=command)
    before = s.size()
    assert access.draft(s.node, rikard, s.form(name, title="Another"), command=command) == first
    assert s.size() == before
    other = access.draft(s.node, ronja, s.form(name), command=command)
    assert other != first
    for _ in range(3):
        access.submit(s.node, rikard, first, command="submit-1")
    access.submit(s.node, ronja, other, command="submit-1")
    assert (s.state(ACCESS, first).phase, s.state(ACCESS, other).phase) == ("submitted", "submitted")
    command = new_id()
    issued = {access.approve(s.node, s.who("dagny"), first, reason="Fits.", days=7, command=command) for _ in range(3)}
    assert len(issued) == 1
    assert len([view for view in permit.mine(s.node, rikard) if view.state.access_id == first]) == 1


def test_one_application_gives_one_permit(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    ident = s.apply(name)
    access.approve(s.node, s.who("dagny"), ident, reason="Fits.", days=None, command=new_id())
    refused("wrong_phase", access.approve, s.node, s.who("dagny"), ident, reason="x", days=None, command=new_id())


@pytest.mark.parametrize("days", [0, -1, 31])
def test_no_more_days_than_were_asked_for(s: Any, days: int) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    ident = s.apply(name)
    refused("duration", access.approve, s.node, s.who("dagny"), ident, reason="x", days=days, command=new_id())


def test_nobody_decides_on_their_own(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    alma = s.who("alma")
    ident = access.draft(s.node, alma, s.form(name), command=new_id())
    access.submit(s.node, alma, ident, command=new_id())
    with pytest.raises(RefusedFault):
        access.approve(s.node, alma, ident, reason="mine", days=None, command=new_id())
    assert s.state(ACCESS, ident).phase == "submitted"


def test_the_ledger_has_no_word_of_a_form(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    ident = s.apply(name, title="TITLE-CANARY", summary="SUMMARY-CANARY")
    access.reject(s.node, s.who("dagny"), ident, reason="REASON-CANARY", command=new_id())
    with s.node.records.reading() as unit:
        assert all(b"CANARY" not in record.leaf for record in unit.follow(-1, 1_000_000))
    assert access.show(s.node, s.who("rikard"), ident).reason == "REASON-CANARY"
