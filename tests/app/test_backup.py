"""Backups of a node with a real key holder, database and stores: made, tried out, altered, restored, opened."""

from __future__ import annotations

import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.world import World, world
from valv.app import backup, ledger, outside, permit, saving, streams
from valv.app.node import NOBODY, Node, allow, new_id
from valv.app.streams import BACKUP, PERMIT
from valv.assemble import node as nodes
from valv.assemble import restore
from valv.config import Backup, BackupPlace
from valv.core.authorize import Resource
from valv.core.backup import STREAM_ID
from valv.core.permit import Revoke
from valv.core.process import NODE
from valv.db.database import Database
from valv.errors import ConflictFault, Fault, IntegrityFault, KeyFault, RefusedFault
from valv.formats.crypt4gh import generate_keypair
from valv.ports.storage import Place
from valv.storage.local import LocalStorage

HEART, SMALL = os.urandom(300_000), b"a line\n"
PAIR = generate_keypair()


class Saved:
    """`node`: the worker's, with a place for backups at home and one abroad."""

    def __init__(self, made: World, folder: Path) -> None:
        self.world, self.folder = made, folder
        places = {
            "vault": BackupPlace(path=str(folder), country="SE", unit="test", keep=2),
            "abroad": BackupPlace(path=str(folder / "abroad"), country="NO", unit="test"),
        }
        about = Backup(recipient=b64encode(PAIR.public).decode(), places=places)
        self.vault = LocalStorage(folder / "vault", Place("SE", "test"))
        self.abroad = LocalStorage(folder / "abroad", Place("NO", "test"))
        self.node: Node = replace(
            made.worker,
            config=msgspec.structs.replace(made.config, backup=about),
            places={"vault": self.vault, "abroad": self.abroad},
        )

    def make(self, name: str = "vault") -> int:
        return backup.make(self.node, name)

    def sign(self) -> None:
        ledger.checkpoint(self.node)

    def head(self) -> tuple[int, bytes]:
        with self.node.records.reading() as unit:
            head = unit.head()
        return head.size, head.root

    def revoke(self, ident: str) -> None:
        at = self.node.clock()
        with self.node.records.writing() as unit:
            state, version = streams.need(unit, PERMIT, ident)
            from valv.core import permit as core

            events = core.decide(state, Revoke(by=NODE, at=at, reason="r"), core.Facts())
            step = streams.Step(PERMIT, ident, version, state, events)
            streams.commit(unit, [step], by=NODE, at=at, command=new_id())


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as one:
        one.anonymised("heart", {"a.bin": HEART, "b.txt": SMALL})
        yield one


@pytest.fixture
def saved(made: World, tmp_path: Path) -> Iterator[Saved]:
    found = Saved(made, tmp_path)
    _reset(found)
    yield found


def _reset(saved: Saved) -> None:
    """Forget the places of the test before: they are gone."""
    with saved.node.records.writing() as unit:
        for row in unit.rows("setting"):
            if row["name"].startswith("backup."):
                unit.delete("setting", {"name": row["name"]})


def _restored(saved: Saved, name: str = "again", **more: Any) -> tuple[Any, Path]:
    directory = saved.folder / name
    return restore.restore(saved.vault, directory, PAIR.private, **more), directory


def test_a_restored_node_has_the_same_ledger_and_files(saved: Saved) -> None:
    number = saved.make()
    done, directory = _restored(saved)
    assert done.generation == number and not done.missing
    assert done.backup_root == done.root or done.taken
    node = nodes.build(restore.configuration.load(directory)).node
    with saved.node.records.reading() as unit, node.records.reading() as again:
        assert again.root(done.backup_size) == unit.root(done.backup_size)
        for table in ("account", "file", "dataset", "text", "dataset_version_file"):
            assert again.rows(table) == unit.rows(table)
        assert not again.rows("session")
        for row in saving.bodies(again):
            assert saving.whole(node.storage, row["body"], saving.record_of(row))
            for one in (row["body"], f"{row['body']}.seal"):
                assert backup.read_small(node.storage, one) == backup.read_small(saved.node.storage, one)
    assert done.seconds > 0


def test_the_ledger_proves_the_backup(saved: Saved) -> None:
    number = saved.make()
    proof = backup.read_proof(saved.vault, number)
    key = saved.node.keys.status().log_key
    event = backup.check_proof(proof, key)
    assert event.generation == number and event.place == "vault"
    other = msgspec.structs.replace(proof, leaf=proof.leaf.replace('"stored":', '"stored":1'))
    with pytest.raises(IntegrityFault):
        backup.check_proof(other, key)


def test_bodies_come_once_and_old_backups_go(saved: Saved) -> None:
    first = saved.make()
    with saved.node.records.reading() as unit:
        assert backup.state_of(unit).places["vault"].stored > len(HEART)
    inodes = {path.name: path.stat().st_ino for path in (saved.folder / "vault" / "bodies").rglob("*.seal")}
    second, third = saved.make(), saved.make()
    with saved.node.records.reading() as unit:
        assert backup.state_of(unit).places["vault"].stored == 0
    assert backup.in_force(saved.vault) == [second, third]
    assert first not in backup.generations(saved.vault)
    assert inodes == {path.name: path.stat().st_ino for path in (saved.folder / "vault" / "bodies").rglob("*.seal")}


def test_what_is_identifiable_does_not_rest_abroad(saved: Saved) -> None:
    saved.world.deposit("genomes", {"g.bin": b"x" * 1000}, claimed="identifiable")
    saved.make("abroad")
    saved.make("vault")
    with saved.node.records.reading() as unit:
        state = backup.state_of(unit)
        rows = unit.rows("file")
    hidden = {row["body"] for row in rows if row["size"] == 1000}
    assert state.places["abroad"].held_back >= 1 and state.places["vault"].held_back == 0
    assert not hidden & set(saved.abroad.names())
    assert hidden <= set(saved.vault.names())
    done, _ = restore.verify(saved.abroad, PAIR.private, node=saved.node)
    assert not done.wrong


def test_no_key_and_no_session_is_in_a_backup(saved: Saved) -> None:
    """Wrapped keys, the passphrase, tokens: neither in what is stored nor in what the recipient reads."""
    saved.world.person("rikard")
    number = saved.make()
    canaries = [b"correct horse battery", saved.world.person("rikard").token.encode()]
    canaries += [
        path.read_bytes()[40:90] for path in saved.world.holder.keys.rglob("*.json") if path.stat().st_size > 90
    ]
    canaries.append((saved.world.folder / "passphrase").read_bytes().strip())
    with saved.node.records.reading() as unit:
        sessions = unit.rows("session")
    assert sessions
    canaries += [b64encode(row["hash"]) for row in sessions]
    plain = b"".join(
        backup.parcel.read(saved.vault, backup.part(number, kind), PAIR.private, None).__next__()
        if False
        else b"".join(backup.parcel.read(saved.vault, backup.part(number, kind), PAIR.private, None))
        for kind in ("records", "manifest")
    )
    stored = b"".join(path.read_bytes() for path in (saved.folder / "vault").rglob("*") if path.is_file())
    for canary in canaries:
        assert len(canary) > 8
        assert canary not in plain and canary not in stored
    assert b"Rikard Researcher" in plain and b"Rikard Researcher" not in stored


def test_every_altered_file_is_found(saved: Saved) -> None:
    number = saved.make()
    key = saved.node.keys.status().log_key
    assert not restore.verify(saved.vault, PAIR.private, log_key=key)[0].wrong
    names = [name for name in saved.vault.names() if not name.startswith("after-")]
    assert {backup.part(number, kind) for kind in ("proof", "manifest", "names", "records")} <= set(names)
    for name in names:
        path = next((saved.folder / "vault" / "bodies").rglob(name))
        good = path.read_bytes()
        for place in (0, len(good) // 2, len(good) - 1):
            path.chmod(0o600)
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            try:
                wrong = restore.verify(saved.vault, PAIR.private, log_key=key)[0].wrong
            except Fault as fault:
                wrong = [str(fault)]
            assert wrong, (name, place)
        path.write_bytes(good[:-1])
        try:
            wrong = restore.verify(saved.vault, PAIR.private, log_key=key)[0].wrong
        except Fault as fault:
            wrong = [str(fault)]
        assert wrong, name
        path.write_bytes(good)
    assert not restore.verify(saved.vault, PAIR.private, log_key=key)[0].wrong


def test_another_key_opens_nothing(saved: Saved) -> None:
    saved.make()
    with pytest.raises(KeyFault, match="not made for any of our keys"):
        restore.find(saved.vault, generate_keypair().private)
    with pytest.raises(KeyFault):
        restore.restore(saved.vault, saved.folder / "again", generate_keypair().private)
    assert not (saved.folder / "again").exists()


def test_one_without_a_proof_is_no_backup(saved: Saved) -> None:
    number = saved.make()
    saved.vault.delete(backup.part(number, "proof"))
    with pytest.raises(Fault, match="no backup in force"):
        restore.find(saved.vault, PAIR.private)
    assert backup.prove(saved.node, "vault")
    assert restore.find(saved.vault, PAIR.private).manifest.generation == number
    saved.vault.delete(backup.part(number, "proof"))
    saved.vault.delete(backup.part(number, "manifest"))
    assert not backup.prove(saved.node, "vault")
    assert saved.make() == number + 1
    assert set(backup.generations(saved.vault)) == {number + 1}


def test_a_restored_node_is_closed_until_it_knows_what_came_after(saved: Saved) -> None:
    ident = saved.world.permit("heart")
    saved.make()
    early = saved.folder / "early"
    restore.restore(saved.vault, early, PAIR.private)
    saved.revoke(ident)
    saved.sign()
    outside.flush(saved.node)
    size, root = saved.head()

    node = nodes.build(restore.configuration.load(early)).node
    assert node.closed()
    with pytest.raises(RefusedFault, match="restored"):
        allow(node, NOBODY, "catalogue.find", Resource("catalogue"))
    allow(node, NOBODY, "node.see", Resource("node"))
    with pytest.raises(RefusedFault) as refused:
        permit.expire_due(replace(node, clock=lambda: saved.node.clock() + timedelta(days=400)))
    assert refused.value.refusal.code == "node_closed"
    with pytest.raises(RefusedFault) as short:
        restore.open_restored(early, places=[saved.folder / "vault"])
    assert short.value.refusal.code == "ledger_short"
    assert node.closed()

    done = restore.open_restored(early, places=[saved.folder / "vault"], private=PAIR.private)
    assert done.open and done.taken and done.lost_events == 0
    assert not node.closed()
    with node.records.reading() as unit:
        assert unit.root(size) == root
        state, _ = streams.need(unit, PERMIT, ident)
        assert state.phase == "revoked"
        assert unit.head().size == size + 1
        assert streams.load(unit, BACKUP, STREAM_ID).state.epoch == 0
    report = node.records.verify()
    assert report.ok, report.fault
    with node.records.reading() as unit:
        for process in streams.PROCESSES.values():
            for snapshot in unit.find(process.kind, limit=1000):
                assert process.fold(unit.events(snapshot.stream)) == process.decode(snapshot)
    assert restore.open_restored(early, places=[saved.folder / "vault"]).open


def test_a_loss_is_accepted_in_the_open(saved: Saved) -> None:
    saved.make()
    directory = saved.folder / "again"
    restore.restore(saved.vault, directory, PAIR.private)
    saved.sign()
    ident = saved.world.permit("heart")
    saved.sign()
    outside.flush(saved.node)
    size, _ = saved.head()
    for segment in outside.segments(saved.vault):
        saved.vault.delete(segment.name("leaves"))
    assert ident
    with pytest.raises(RefusedFault):
        restore.open_restored(directory, places=[saved.folder / "vault"])
    done = restore.open_restored(directory, places=[saved.folder / "vault"], accept_loss=True)
    assert done.lost_events > 0
    node = nodes.build(restore.configuration.load(directory)).node
    with node.records.reading() as unit:
        state = backup.state_of(unit)
        event = msgspec.json.decode(unit.events(BACKUP.stream(STREAM_ID))[-1].data)
    assert state.epoch == 1 and not state.places
    assert event["event"] == "backup.restored" and event["known"] == size and event["reached"] < size


def test_a_forged_outside_record_is_refused(saved: Saved) -> None:
    saved.make()
    directory = saved.folder / "again"
    restore.restore(saved.vault, directory, PAIR.private)
    saved.world.permit("heart")
    saved.sign()
    outside.flush(saved.node)
    (segment,) = outside.segments(saved.vault)
    leaves = list(outside.leaves(saved.vault, segment, PAIR.private))
    leaves[-1] = leaves[-1].replace(b'"actor":"', b'"actor":"x')
    saved.vault.delete(segment.name("leaves"))
    backup.parcel.write(saved.vault, segment.name("leaves"), [one + b"\n" for one in leaves], PAIR.public)
    with pytest.raises(IntegrityFault):
        restore.open_restored(directory, places=[saved.folder / "vault"], private=PAIR.private)
    node = nodes.build(restore.configuration.load(directory)).node
    assert node.closed()
    with node.records.reading() as unit:
        assert unit.head().size <= segment.first


def test_it_goes_to_postgresql_and_back(saved: Saved, postgres_url: str) -> None:
    saved.make()
    there = Database(postgres_url)
    found = restore.find(saved.vault, PAIR.private)
    restore.fill(found, there)
    with saved.node.records.reading() as unit, there.reading() as again:
        assert again.rows("account") == unit.rows("account")
        assert again.rows("file") == unit.rows("file")
        lines = list(again.dump())
    back = Database(f"sqlite:///{saved.folder / 'back.sqlite'}")
    back.create()
    with back.writing() as unit:
        unit.fill(line.removesuffix(b"\n") for line in lines)
    with there.reading() as again, back.reading() as unit:
        assert list(unit.dump()) == lines == list(again.dump())
    report = back.verify()
    assert report.ok and report.root.hex() == found.manifest.root
    with there.writing() as unit:  # generated ids go on behind those that came
        row = {"topic": "t", "key": new_id(), "body": {}, "created": saved.node.clock(), "due": saved.node.clock()}
        unit.insert("outbox", [row | {"tries": 0, "error": "", "done": None}])
    there.close()
    back.close()


def test_it_is_restored_into_an_empty_folder_only(saved: Saved) -> None:
    saved.make()
    directory = saved.folder / "again"
    directory.mkdir()
    (directory / "other").write_text("x")
    with pytest.raises(ConflictFault, match="not empty"):
        restore.restore(saved.vault, directory, PAIR.private)


def test_one_that_was_interrupted_goes_on(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    saved.make()
    directory = saved.folder / "again"
    steps: list[Callable[..., Any]] = [restore.fill, restore._bring, restore.apply]
    for step in steps:

        def broken(*_: Any, **__: Any) -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(restore, step.__name__, broken)
            with pytest.raises(KeyboardInterrupt):
                restore.restore(saved.vault, directory, PAIR.private)
        assert (directory / restore.MARKER).exists()
    done = restore.restore(saved.vault, directory, PAIR.private)
    assert not done.missing and not (directory / restore.MARKER).exists()
    shutil.rmtree(directory)


def test_a_drill_is_evidence(saved: Saved) -> None:
    number = saved.make()
    done, event = restore.verify(saved.vault, PAIR.private, node=saved.node)
    backup.record_drill(saved.node, event, bodies=done.bodies, wrong=0, milliseconds=int(done.seconds * 1000))
    found = backup.status(saved.node)
    assert found.drilled is not None and not found.drill_due
    late = replace(saved.node, clock=lambda: saved.node.clock() + timedelta(days=366))
    assert backup.status(late).drill_due
    assert {one.name: one.late for one in backup.status(late).places}["vault"]
    with saved.node.records.reading() as unit:
        last = msgspec.json.decode(unit.events(BACKUP.stream(STREAM_ID))[-1].data)
    assert last["event"] == "backup.drilled" and last["generation"] == number and last["milliseconds"] > 0


def test_the_worker_makes_one_when_it_is_due_or_asked_for(saved: Saved) -> None:
    def step() -> None:
        backup.step(saved.node, "vault", lambda: 0.0)

    assert backup.due(saved.node, "vault") is False or True
    word = backup.ask(saved.node, "vault")
    step()
    known = backup.recall(saved.node, "vault")
    assert known["answered"] == word and known["fault"] == "" and len(backup.in_force(saved.vault)) == 1
    step()
    assert len(backup.in_force(saved.vault)) == 1
    later = replace(saved.node, clock=lambda: saved.node.clock() + timedelta(hours=25))
    assert backup.due(later, "vault")
