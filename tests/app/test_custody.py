"""What officers order at the key holder comes into the ledger, and what follows from it is done: on a node of its own,
with a real key holder and a place for the key backup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import officers
from tests.app.conftest import Stage
from tests.world import World
from valv.app import (
    access,
    account,
    custody,
    dataset,
    deposit,
    download,
    inspection,
    outbox,
    permit,
    reading,
    run,
    running,
    streams,
)
from valv.app.node import new_id
from valv.core import custody as rules
from valv.core.process import NODE
from valv.errors import Fault, IntegrityFault, KeyFault, RefusedFault, UnreachableFault
from valv.formats import crypt4gh, minutes, note
from valv.ports.lease import Beat
from valv.worker.loops import TOPICS


class Custody(Stage):
    """A stage whose keys have officers. `place`: this node's folder of the key backup."""

    def __init__(self, made: World, place: Path) -> None:
        super().__init__(made)
        self.place = place
        self.officers = officers.Officers(self.node.config.node.name)
        self.operator = made.holder.client()
        self.hand_in(self.officers.ceremony())

    def hand_in(self, note: str, *shown: str) -> str:
        """Give the key holder an order; `shown`: officers whose shares are opened for it."""
        return str(self.operator.order(note, self.officers.words(self.operator, *shown)))

    def destroy(self, name: str, version: int = 1, **more: Any) -> str:
        """Two officers destroy a version; returns its key id. The node has not followed yet."""
        key_id = str(self.dataset(name).version(version).key_id)
        given = {"key_ids": (key_id,), "reason": "Withdrawn by the donors."} | more
        self.hand_in(self.officers.order("destroy", "anna", "eva", **given))
        return key_id

    def key(self, name: str) -> str:
        """A key registered for downloads."""
        pair, who = crypt4gh.generate_keypair(), self.who(name)
        asked = account.challenge_key(self.node, who, public=pair.public, label="laptop")
        data_key = crypt4gh.open_header(asked.header, [pair.private]).data_keys[0]
        account.add_key(self.node, who, challenge_id=asked.challenge_id, answer=account.answer(data_key))
        return asked.challenge_id

    def follow(self) -> int:
        return custody.follow(self.worker)

    def deliver(self) -> int:
        return outbox.deliver(self.worker, TOPICS)

    def show(self, name: str = "audun") -> custody.View:
        return custody.show(self.node, self.who(name))

    def plain(self, name: str) -> bytes:
        version = self.dataset(name).current
        with self.node.records.reading() as unit:
            row = reading.files(unit, self.dataset(name).dataset_id, version.number)[0]
        return b"".join(reading.plain(self.worker, self.reader, reading.mounted(row, row["path"])))


@pytest.fixture(scope="module")
def held() -> Iterator[Custody]:
    with officers.world() as (made, place):
        yield Custody(made, place)


@pytest.fixture
def c(held: Custody) -> Custody:
    held.follow()
    return held


def code(why: Any) -> str:
    assert isinstance(why.value, RefusedFault)
    return why.value.refusal.code


def test_orders_come_into_the_ledger_once_with_their_minutes(held: Custody) -> None:
    assert held.follow() == 1
    assert held.follow() == 0
    with held.node.records.reading() as unit:
        (event,) = unit.events("custody/node")
    assert (event.tag, event.actor) == ("custody.ceremony_held", NODE)
    view = held.show()
    assert view.state is not None and [one.name for one in view.state.officers] == ["anna", "bo", "eva"]
    assert view.holder == "open" and view.acts[0].signers == ("anna", "bo") and not view.overdue
    kept = view.acts[0].minutes
    note.verify(kept, held.node.keys.status().log_key)
    told = minutes.read(kept)
    assert told.generation == 2 and told.wanted.officers == held.officers.public
    note.verify(told.order, held.officers.public[0].sign_key, held.officers.public[1].sign_key)
    assert list(inspection.snapshots(held.node)) == [] and list(inspection.texts(held.node)) == []


def test_operators_and_auditors_see_it_and_nobody_else(c: Custody) -> None:
    for name in ("audun", "olle"):
        assert c.show(name).state is not None
    for name in ("carin", "rikard", "dagny", "kerttu", "nemo"):
        with pytest.raises(RefusedFault):
            c.show(name)
    shown = c.world.person("audun", second_factor=False).get("/custody")
    assert shown["holder"] == "open" and shown["acts"][-1]["event"] == "custody.ceremony_held"


def test_a_drill_makes_the_next_one_due_a_year_later(c: Custody) -> None:
    c.hand_in(c.officers.order("drill", "bo", "eva"), "bo", "eva")
    assert c.follow() == 1
    view = c.show()
    assert view.acts[0].event == "custody.drill_held" and view.state is not None
    assert view.due == view.state.drill_at + rules.DRILL_AFTER
    late = replace(c.node, clock=lambda: c.clock.now + rules.DRILL_AFTER)
    assert custody.show(late, c.who("audun")).overdue


def test_what_is_destroyed_is_gone_and_the_rest_stays(c: Custody) -> None:
    name, other = c.fresh(), c.fresh()
    c.anonymised(name, {"a.txt": b"destroyed", "b.txt": b"destroyed too"})
    c.anonymised(other, {"a.txt": b"stays"})
    computing, downloading = c.permit(name), c.permit(name, mode="download")
    waiting = c.apply(name)
    key = c.key("rikard")
    file = download.files(c.node, c.who("rikard"), downloading)[0]
    opened = download.open_file(c.node, c.who("rikard"), downloading, file.file_id, key_id=key)
    rikard = c.who("rikard")
    queued = _queue(c, computing)
    rows = c.rows("file", dataset=c.dataset(name).dataset_id)
    before = c.bodies()
    assert {row["body"] for row in rows} <= before

    c.destroy(name)
    assert c.follow() == 1
    state = c.dataset(name)
    assert state.current.destroyed and not state.current.certificate
    with c.node.records.reading() as unit:
        events = unit.events(f"dataset/{state.dataset_id}")
    assert events[-1].tag == "dataset.key_destroyed"
    assert msgspec.json.decode(events[-1].data)["generation"] == c.operator.status().generation
    assert {(row["state"], row["header"]) for row in c.rows("file", dataset=state.dataset_id)} == {("destroyed", None)}

    # Nobody uses it any more: going downloads are cut, queued runs do not start, nothing new begins.
    with pytest.raises(RefusedFault) as why:
        for _ in opened.chunks:
            pass
    assert code(why) == "version_destroyed"
    with pytest.raises(RefusedFault) as why:
        _queue(c, computing)
    assert code(why) == "version_destroyed"
    with pytest.raises(RefusedFault) as why:
        download.files(c.node, rikard, downloading)
    assert code(why) == "version_destroyed"
    with pytest.raises(RefusedFault) as why:
        access.draft(c.node, rikard, c.form(name), command=new_id())
    assert code(why) == "dataset_unknown"
    with pytest.raises(RefusedFault) as why:
        access.approve(c.node, c.who("dagny"), waiting, reason="It fits.", days=None, command=new_id())
    assert code(why) == "dataset_unknown"
    assert permit.show(c.node, rikard, computing).standing is not None
    assert not permit.lease(c.node, Beat("grant", queued))
    running.start_queued(c.worker, c.world.compute)
    assert c.state(streams.RUN, queued).phase == "cancelled"
    assert dataset.catalogue(c.node, rikard, query=name).total == 0
    assert dataset.show(c.node, rikard, name).state.versions[0].destroyed
    with pytest.raises(RefusedFault) as why:
        dataset.narrow(c.node, c.who("carin"), name, version=1, reason="x", command=new_id())
    assert code(why) == "version_destroyed"
    with pytest.raises(KeyFault):
        c.worker.keys.reseal_within(rows[0]["key_id"], [rows[0]["header"]])

    # The bodies and their seals go; the certificate is written when nothing is left.
    left = c.show().acts[0].destroyed[0].left
    assert left == ("files in the store",)
    c.deliver()
    names = {one for row in rows for one in (row["body"], f"{row['body']}.seal")}
    assert before - c.bodies() == names
    missing, unknown = inspection.bodies(c.node)
    assert not missing and not unknown
    assert list(inspection.manifests(c.node)) == [] and list(inspection.snapshots(c.node)) == []
    assert c.plain(other) == b"stays"
    told = c.show().acts[0].destroyed[0]
    assert (told.dataset, told.version, told.files, told.left) == (name, 1, 2, ())
    for part in (name, "anna, eva", "Withdrawn by the donors.", str(c.place), "State:        complete"):
        assert part in told.certificate
    with c.node.records.reading() as unit:
        assert unit.events(f"dataset/{state.dataset_id}")[-1].tag == "dataset.destruction_certified"
        mails = [row["body"] for row in unit.rows("outbox", {"topic": "mail"})]
    assert any(one["subject"] == "A dataset version was destroyed" and name in one["body"] for one in mails)
    assert dataset.show(c.node, c.who("carin"), name).certificates == ((1, told.certificate),)
    assert dataset.show(c.node, rikard, name).certificates == ()
    c.deliver()
    assert c.follow() == 0


def test_no_certificate_while_a_backup_has_what_was_destroyed(c: Custody) -> None:
    name = c.fresh()
    c.publish(name, {"a.txt": b"x"})
    away = c.place.with_name("away")
    old = c.operator.status().generation
    c.place.rename(away)  # as a place that is not mounted
    try:
        key_id = c.destroy(name)
        c.follow()
        c.deliver()
        told = c.show()
        assert told.behind and str(c.place) in told.acts[0].destroyed[0].left[0]
        assert not told.acts[0].destroyed[0].certificate
        with pytest.raises(UnreachableFault):
            body = {"key_id": key_id, "dataset": c.dataset(name).dataset_id, "version": 1}
            custody.certify(c.worker, body | {"generation": old + 1})
    finally:
        away.rename(c.place)
    assert custody.look_after(c.worker)[0].generation == old + 1
    assert [one.name for one in c.place.iterdir()] == [f"generation-{old + 1:06d}"]
    c.clock.forward(hours=2)
    c.deliver()
    told = c.show()
    assert not told.behind and told.acts[0].destroyed[0].certificate


def test_an_older_version_can_be_destroyed_alone(c: Custody) -> None:
    name = c.fresh()
    c.anonymised(name, {"a.txt": b"first"})
    c.publish(name, {"a.txt": b"second"}, claimed="anonymised")
    old = c.permit(f"{name}@1")
    c.destroy(name, version=1)
    c.follow()
    c.deliver()
    assert [one.destroyed for one in c.dataset(name).versions] == [True, False]
    assert dataset.catalogue(c.node, c.who("rikard"), query=name).total == 1
    assert c.plain(name) == b"second"
    with pytest.raises(RefusedFault) as why:
        _queue(c, old)
    assert code(why) == "version_destroyed"
    with pytest.raises(RefusedFault) as why:
        access.draft(c.node, c.who("rikard"), c.form(f"{name}@1"), command=new_id())
    assert code(why) == "dataset_unknown"


def _queue(c: Custody, permit_id: str) -> str:
    who, line = c.who("rikard"), ["true"]
    return run.queue(c.node, who, permit_id=permit_id, datasets=(), command_line=line, limits=None, command=new_id())


def test_a_key_of_an_open_deposit_destroyed(c: Custody) -> None:
    """The deposit cannot be published any more."""
    name = c.fresh()
    ident = c.open(name)
    c.send(ident, "a.txt", b"x")
    c.hand_in(c.officers.order("destroy", "anna", "bo", key_ids=(f"version-{ident}",), reason="A mistake."))
    c.follow()
    c.deliver()
    with pytest.raises(Fault):
        c.send(ident, "b.txt", b"y")
    assert c.show().acts[0].destroyed == ()


def test_one_officer_is_not_enough_and_nothing_follows(c: Custody) -> None:
    name = c.fresh()
    c.publish(name, {"a.txt": b"x"})
    key_id = c.dataset(name).current.key_id
    with pytest.raises(RefusedFault) as why:
        c.hand_in(c.officers.order("destroy", "anna", key_ids=(key_id,), reason="alone"))
    assert code(why) == "two_officers"
    assert c.follow() == 0 and c.plain(name) == b"x"


def test_identifiable_data_need_a_node_that_two_persons_unseal(c: Custody) -> None:
    config = msgspec.structs.replace(c.node.config, node=msgspec.structs.replace(c.node.config.node, demo=False))
    real = replace(c.node, config=config)

    def begin(claimed: Any) -> str:
        about = dataset.Description(title="x")
        return deposit.open_deposit(
            real,
            c.who("carin"),
            name=c.fresh(),
            claimed=claimed,
            consent=("GRU",),
            committee="dac",
            about=about,
            command=new_id(),
        )

    before = c.size()
    with pytest.raises(RefusedFault) as why:
        begin("identifiable")
    assert code(why) == "persons_missing" and c.size() == before
    assert begin("anonymised")
    two = c.officers.ceremony("anna", "eva", persons=2)
    c.hand_in(two)
    assert c.follow() == 1 and c.node.keys.status().persons == 2
    assert begin("identifiable")


def test_an_older_copy_of_the_key_holder_is_noticed(c: Custody) -> None:
    """The ledger knows of an order that the key holder has never heard of."""
    with c.node.records.writing() as unit:
        known = streams.load(unit, streams.CUSTODY, rules.STREAM_ID)
        event = rules.DrillHeld(at=c.clock.now, generation=9, signers=("anna", "bo"))
        step = streams.Step(streams.CUSTODY, known.ident, known.version, known.state, [event])
        streams.commit(unit, [step], by=NODE, at=c.clock.now, command=new_id())
    with pytest.raises(IntegrityFault, match="older copy"):
        custody.look_after(c.worker)
    assert any("older copy" in found.what for found in inspection.signed(c.node))
    assert c.follow() == 0
    assert c.show().acts[0].minutes == ""
