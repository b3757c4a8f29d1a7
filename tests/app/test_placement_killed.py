"""`kill -9` at random moments of moves and rules: at every moment each file can be read, no copy that is not whole
counts as whole, and at the end nothing is left that no record knows."""

from __future__ import annotations

import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest

from tests import killing
from tests.app import copy_child
from tests.conftest import free_port
from valv.app import copying, placement
from valv.app.deposit import manifest
from valv.app.node import Node, Who, new_id
from valv.app.streams import DATASET, Step, commit, need
from valv.assemble import doctor
from valv.core import dataset
from valv.core.authorize import Principal
from valv.core.process import NODE
from valv.db.database import Database
from valv.errors import Fault
from valv.formats.crypt4gh import KeyPair, generate_keypair
from valv.formats.seal import sidecar
from valv.ports.storage import Place, Storage
from valv.storage.s3 import S3Storage
from valv.vault import fixity
from valv.vault.encrypt import Encryptor
from valv.vault.reader import open_reader

FILES = 12
OLLE = Who(principal=Principal("olle", frozenset({"operator"}), "SE"), name="olle")


class Moved:
    """A node's records and stores with a published dataset, and a reader that never stops."""

    def __init__(self, folder: Path, dice: random.Random, ceph: Any = None) -> None:
        """`ceph`: where the third store is a bucket."""
        self.folder, self.dice, self.ceph = folder, dice, ceph
        (folder / "db").mkdir(mode=0o700)
        third = 'path = "third"'
        if ceph is not None:
            self.bucket = ceph.bucket()
            third = f'backend = "s3"\nurl = "{ceph.url}"\nbucket = "{self.bucket}"\npath = "valv"\n'
            third += f'region = "us-east-1"\ncredentials = "{ceph.account.file}"'
        (folder / "valv.toml").write_text(
            '[node]\nname = "killed"\ncountry = "SE"\nunit = "test"\n'
            f'[serve]\nport = {free_port()}\n[storage]\npath = "main"\n'
            f'[stores.second]\npath = "second"\ndistance = 1\n[stores.third]\n{third}\ndistance = 2\n'
        )
        self.node: Node = copy_child.node(folder)
        assert isinstance(self.node.records, Database)
        self.node.records.create()
        self.keys: KeyPair = generate_keypair()
        self.content = {f"f{n}": bytes([n]) * (n * 250_000) for n in range(FILES)}
        self.faults: list[str] = []
        self.reads = 0
        self._publish()

    def _publish(self) -> None:
        at = datetime.now(UTC)
        rows = [self._file(path, content) for path, content in self.content.items()]
        place = {"country": "SE", "unit": "test", "committee": "dac"}
        register = dataset.Registered(dataset_id="d", name="d", custodian="carin", **place)
        added = dataset.VersionAdded(
            number=1,
            deposit_id="x",
            key_id="k",
            claimed="identifiable",
            consent=("GRU",),
            files=len(rows),
            size=1,
            manifest=manifest(rows),
            participants=0,
        )
        row = {"id": "d", "name": "d", "title": "d", "class": "identifiable", "custodian": "carin", "changed": at}
        with self.node.records.writing() as unit:
            commit(unit, [Step(DATASET, "d", 0, None, [register, added])], by=NODE, at=at, command="publish")
            unit.insert("dataset", [row | place | {"visible": True, "version": 1}])
            unit.insert("file", rows)
            links = [{"dataset": "d", "version": 1, "file": file["id"]} for file in rows]
            unit.insert("dataset_version_file", links)

    def _file(self, path: str, content: bytes) -> dict[str, object]:
        body, main = new_id(), self.node.each_store()["main"]
        encryptor = Encryptor(main.writer(body), main.writer(sidecar(body)), self.keys.public)
        encryptor.write(content)
        made = encryptor.finish()
        kept = {
            "id": new_id(),
            "dataset": "d",
            "deposit": "x",
            "version": 1,
            "path": path,
            "folded": path,
            "body": body,
        }
        named = ("size", "cipher_size", "segments", "seal_root", "tree_root", "header")
        kept |= {name: getattr(made, name) for name in named}
        return kept | {"key_id": "k", "state": "verified", "sha256": made.sha256, "received": datetime.now(UTC)}

    def rows(self) -> list[dict[str, object]]:
        with self.node.records.reading() as unit:
            return unit.rows("file")

    def read(self) -> None:
        """Every file, through whichever copy there is."""
        for row in self.rows():
            facts = {name: row[name] for name in ("size", "seal_root", "tree_root")}
            reader = open_reader(
                self.node.storage.open,
                row["body"],  # type: ignore[arg-type]
                row["header"],  # type: ignore[arg-type]
                self.keys.private,
                **facts,  # type: ignore[arg-type]
            )
            try:
                assert b"".join(reader.chunks()) == self.content[str(row["path"])]
            finally:
                reader.close()
        self.reads += 1

    def read_on(self, over: threading.Event) -> None:
        while not over.is_set():
            try:
                self.read()
            except (Fault, AssertionError) as fault:
                self.faults.append(f"{type(fault).__name__}: {fault}")
                return

    def order(self) -> None:
        """Another rule, or a move."""
        try:
            if self.dice.random() < 0.3:
                rule = self.dice.choice(["copies = 2", "copies = 3", "copies = 1", "in third, not in main"])
                placement.set_rule(self.node, OLLE, "d", rule, command=new_id())
            else:
                source, target = self.dice.sample(copy_child.NAMES, 2)
                placement.move(self.node, OLLE, "d", source=source, target=target, command=new_id())
        except Fault as fault:
            assert "moving" in str(fault)

    def last_order(self) -> None:
        """Two copies, none of them in `main`; once a move that goes on has come to its end."""
        end = time.monotonic() + 60
        while True:
            try:
                placement.set_rule(self.node, OLLE, "d", "copies = 2, not in main", command=new_id())
                return
            except Fault as fault:
                assert "moving" in str(fault) and time.monotonic() < end, fault
                time.sleep(0.1)

    def an_hour_later(self) -> S3Storage:
        """Uploads that were begun, and claims of names, go by themselves once they are old enough."""
        store = S3Storage(self.ceph.settings(self.bucket, path="valv"), Path("/"), Place("SE", "test"), stale=0.0)
        store.sweep()
        return store

    def nothing_else_in_the_bucket(self, bodies: set[str]) -> None:
        store = self.an_hour_later()
        assert store.sweep() == 0
        listed = obstore.list(store._store).collect()
        assert {one["path"] for one in listed} == {f"valv/bodies/{name}" for name in bodies}

    def whole_are_whole(self) -> None:
        """What the records call whole holds, byte for byte. Nobody works meanwhile."""
        files = {row["body"]: row for row in self.rows()}
        with self.node.records.reading() as unit:
            copies = unit.rows("copy", {"state": "whole"})
        for copy in copies:
            check(self.node.each_store()[copy["store"]], files[copy["body"]])


def check(store: Storage, row: dict[str, object]) -> None:
    record = fixity.Sealed(**{name: row[name] for name in ("size", "cipher_size", "seal_root", "tree_root")})  # type: ignore[arg-type]
    seen = fixity.look(store, str(row["body"]), record)
    assert seen.fault is None, seen.fault


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("third", ["folder", "bucket"])
def test_no_kill_loses_a_file_or_leaves_half_a_copy(
    tmp_path: Path, long: bool, third: str, request: pytest.FixtureRequest
) -> None:
    settings = (request.getfixturevalue("ceph"),) if third == "bucket" else ()
    with killing.dice() as dice:
        m = Moved(tmp_path, dice, *settings)
        over = threading.Event()
        reader = threading.Thread(target=m.read_on, args=(over,))
        reader.start()
        try:
            with killing.Forked("tests.app.copy_child", tmp_path) as child:
                while child.kills < (killing.MOMENTS_LONG if long else killing.MOMENTS):
                    child.start()
                    m.order()
                    time.sleep(dice.uniform(0.0, 0.6))
                    child.kill()
                    assert not m.faults, m.faults
                    m.whole_are_whole()
                if third == "bucket":
                    m.an_hour_later()
                child.start()  # and now to the end
                m.last_order()
                end = time.monotonic() + 120
                while left(m.node):
                    assert time.monotonic() < end, left(m.node)
                    time.sleep(0.1)
                child.kill()
        finally:
            over.set()
            reader.join(60)
        assert not m.faults and m.reads > 0, m.faults
        m.whole_are_whole()
        m.read()
        killing.looked_over(tmp_path)
        assert copying.stray(m.node) == ([], [])
        bodies = {name for row in m.rows() for name in (str(row["body"]), sidecar(str(row["body"])))}
        stores = m.node.each_store()
        assert set(stores["main"].names()) == set()
        assert set(stores["second"].names()) == set(stores["third"].names()) == bodies
        if third == "bucket":
            m.nothing_else_in_the_bucket(bodies)
        with m.node.records.reading() as unit:
            assert need(unit, DATASET, "d")[0].phase == "live"


def left(node: Node) -> list[dict[str, object]]:
    with node.records.reading() as unit:
        return unit.rows("placing")


def test_the_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    m = Moved(tmp_path, random.Random())
    copying.look(m.node)
    while copying.follow(m.node) or copying.turn(m.node):
        pass
    row = m.rows()[3]
    m.node.each_store()["main"].delete(sidecar(str(row["body"])))
    writer = m.node.each_store()["third"].writer(str(row["body"]))
    writer.write(b"half")
    writer.commit()
    said = list(doctor._copies(m.node, True))
    assert [finding.what for finding in said] == [
        f"the copy of {row['body']} in main is not whole",
        "1 bodies are in a store where no record says so",
    ]
    list(doctor._copies(m.node, False))
    assert set(m.node.each_store()["third"].names()) == set()
