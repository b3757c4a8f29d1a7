"""`kill -9` at random moments of scrubs that repair: no healthy copy is ever lost, and at the end all are healthy."""

from __future__ import annotations

import os
import random
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests import killing
from tests.app import scrub_child
from tests.app.stores import lies
from tests.conftest import free_port
from valv.app import streams
from valv.app.node import Node, new_id
from valv.app.streams import FIXITY
from valv.db.database import Database
from valv.formats.crypt4gh import generate_keypair
from valv.vault import copying
from valv.vault.encrypt import Encryptor
from valv.vault.fixity import Sealed

FILES = 6


class Damaged:
    """A node's records and stores, with `FILES` files of two copies each, and what their bytes are."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.folder, self.dice = folder, dice
        (folder / "db").mkdir(mode=0o700)
        (folder / "valv.toml").write_text(
            '[node]\nname = "killed"\ncountry = "SE"\nunit = "test"\n'
            f'[serve]\nport = {free_port()}\n[storage]\npath = "main"\n[stores.second]\npath = "second"\n'
        )
        self.slowness = folder / "slowness"
        self.node: Node = scrub_child.node(folder)
        assert isinstance(self.node.records, Database)
        self.node.records.create()
        self.good: dict[Path, bytes] = {}
        rows = [self.file(number) for number in range(FILES)]
        with self.node.records.writing() as unit:
            unit.insert("file", rows)
            at = datetime.now(UTC)
            for row in rows:
                for store in ("main", "second"):
                    one = {"body": row["body"], "store": store, "state": "whole", "size": row["cipher_size"]}
                    unit.insert("copy", [one | {"since": at}])

    def file(self, number: int) -> dict[str, object]:
        body, stores = new_id(), self.node.each_store()
        main = stores["main"]
        encryptor = Encryptor(main.writer(body), main.writer(f"{body}.seal"), generate_keypair().public)
        encryptor.write(os.urandom(number * 400_000))
        made = encryptor.finish()
        record = Sealed(
            size=made.size, cipher_size=made.cipher_size, seal_root=made.seal_root, tree_root=made.tree_root
        )
        copying.copy_body(main, stores["second"], body, record)
        for store in stores:
            for name in (body, f"{body}.seal"):
                path = lies(self.folder / store, name)
                self.good[path] = path.read_bytes()
        kept = {"id": new_id(), "dataset": "d", "deposit": "d", "version": 1, "path": str(number), "body": body}
        kept |= {"folded": str(number), "header": made.header, "key_id": "k", "state": "verified", "sha256": None}
        return kept | {name: getattr(made, name) for name in _SEALED} | {"received": datetime.now(UTC)}

    def copies(self) -> dict[str, list[list[Path]]]:
        """body → its copies, each the paths of body and seal."""
        with self.node.records.reading() as unit:
            bodies = [row["body"] for row in unit.rows("file")]
        stores = self.node.each_store()
        return {
            body: [[lies(self.folder / store, name) for name in (body, f"{body}.seal")] for store in stores]
            for body in bodies
        }

    def whole(self, copy: list[Path]) -> bool:
        return all(path.exists() and path.read_bytes() == self.good[path] for path in copy)

    def hurt(self) -> None:
        """Damage one copy of each file of which both are whole, sometimes."""
        for copies in self.copies().values():
            if all(self.whole(copy) for copy in copies) and self.dice.random() < 0.7:
                path = self.dice.choice(self.dice.choice(copies))
                content = path.read_bytes()
                if content and self.dice.random() < 0.7:
                    at = self.dice.randrange(len(content))
                    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
                else:
                    path.unlink()


_SEALED = ("size", "cipher_size", "segments", "seal_root", "tree_root")


@pytest.mark.timeout(1800)
def test_no_healthy_copy_is_ever_lost(tmp_path: Path, long: bool) -> None:
    with (
        killing.dice() as dice,
        killing.Forked("tests.app.scrub_child", tmp_path, tmp_path / "slowness") as child,
    ):
        d = Damaged(tmp_path, dice)
        while child.kills < (killing.MOMENTS_LONG if long else killing.MOMENTS):
            d.hurt()
            healthy = [copy for copies in d.copies().values() for copy in copies if d.whole(copy)]
            d.slowness.write_text(str(dice.choice([0.0, 0.02, 0.1])))
            child.start()
            time.sleep(dice.uniform(0.0, 0.5))
            child.kill()
            lost = [copy[0].name for copy in healthy if not d.whole(copy)]
            assert not lost, lost
        d.slowness.write_text("0")
        for _ in range(2):  # the scrub that was cut off, and one of everything
            child.start()
            child.wait()
        wrong = [copy[0] for copies in d.copies().values() for copy in copies if not d.whole(copy)]
        assert not wrong, wrong
        with d.node.records.reading() as unit:
            assert {row["state"] for row in unit.rows("copy")} == {"whole"}
            scrubs = streams.find(unit, FIXITY, limit=1000)
            assert {one.phase for one in scrubs} == {"done"} and not any(one.lost for one in scrubs)
            assert sum(one.repaired for one in scrubs) > 0
        killing.looked_over(tmp_path)
