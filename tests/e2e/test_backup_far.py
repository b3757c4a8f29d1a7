"""A node on PostgreSQL whose backups go into a bucket of a real S3 server: lost as a whole, restored on an empty folder
into the embedded database, lost again and restored into PostgreSQL; and at last its end is lost, which officers accept.
The tests build upon each other, on one node."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import node_missing
from tests.e2e import work
from tests.e2e.test_backup import MINUTES_SECONDS, Saved
from valv import config as configuration
from valv.db.database import Database
from valv.formats import note
from valv.formats.note import Checkpoint

CONTENT = os.urandom(1_500_000)
SHORT = 75
"""Exit code of `valv restore open` where the end of the ledger is missing."""


class Far(Saved):
    """`bucket`: the settings of the place, in a file that is not on the node."""

    def __init__(self, folder: Path, ceph: Any, postgres: Any) -> None:
        self.ceph, self.postgres = ceph, postgres
        self.bucket = folder / "bucket.toml"
        self.databases = [str(postgres.create())]
        self.hand_over(folder / "node")
        super().__init__(folder, postgres.tcp_url(self.databases[0]), "secrets/database")

    def hand_over(self, directory: Path) -> None:
        """The secrets that a configuration names, and no backup has."""
        (directory / "secrets").mkdir(parents=True)
        for source, name in ((self.postgres.password_file, "database"), (self.ceph.account.file, "vault")):
            shutil.copyfile(source, directory / "secrets" / name)
            (directory / "secrets" / name).chmod(0o600)

    def place_text(self) -> str:
        shutil.copyfile(self.ceph.account.file, self.folder / "bucket.credentials")
        (self.folder / "bucket.credentials").chmod(0o600)
        about = f'backend = "s3"\nurl = "{self.ceph.url}"\nbucket = "{self.ceph.bucket()}"\npath = "backups"\n'
        about += 'region = "us-east-1"\ncountry = "SE"\nunit = "Demonstration"\n'
        self.bucket.write_text(f'{about}credentials = "bucket.credentials"\n')
        return f'{about}credentials = "secrets/vault"\n'

    @contextlib.contextmanager
    def records(self) -> Iterator[Database]:
        config = configuration.load(self.directory)
        password = str(config.path(config.database.password_file)) if config.database.password_file else ""
        opened = Database(config.database_url, password)
        try:
            yield opened
        finally:
            opened.close()

    def head(self) -> tuple[int, str]:
        with self.records() as records, records.reading() as unit:
            head = unit.head()
        return head.size, head.root.hex()

    def signed(self) -> tuple[int, str]:
        """How many events the newest checkpoint covers, and its note."""
        with self.records() as records, records.reading() as unit:
            return unit.checkpoint() or (0, "")

    def lose(self) -> None:
        """The machine, with its folder and its database; the bucket, the sticks and the key backup are elsewhere."""
        self.stop()
        shutil.rmtree(self.directory)
        while self.databases:
            self.postgres.drop(self.databases.pop())

    def restore(self, *database: object) -> Any:
        self.hand_over(self.directory)
        done = self.call("restore", self.bucket, self.directory, *self.opening, *database)
        assert done["gap"] == "" and done["missing"] == []
        self.forget()
        return done

    def fresh_database(self) -> list[object]:
        self.databases.append(str(self.postgres.create()))
        url = self.postgres.tcp_url(self.databases[-1])
        return ["--database", url, "--password-file", self.directory / "secrets" / "database"]

    def recover(self) -> None:
        where = ("recover", self.directory, "--backup", self.folder / "place")
        self.valv(*where, *self.signing("anna", "bo"))

    def backed_up(self) -> int:
        """Make a backup while the node runs; how many events it covers."""
        (place,) = self.call("backup", "make", self.directory)["places"]
        assert place["generation"] and not place["fault"] and place["bodies"] == "value"
        return int(place["size"])

    def brought_out(self) -> tuple[int, str]:
        """Wait until the outside record has all; the ledger then."""
        end = time.monotonic() + MINUTES_SECONDS
        while self.call("backup", "list", self.directory)["places"][0]["outside"] < self.head()[0]:
            assert time.monotonic() < end, self.node.last_words()
            time.sleep(2)
        self.stop()
        return self.head()

    def revoke(self, name: str) -> None:
        self.person("dagny").post(f"/permits/{self.names[name]}/revocation", {"reason": "A complaint."})

    def refused(self, name: str) -> str:
        body = {"permit": self.names[name], "command": ["true"]}
        return str(self.person("rikard").refused("POST", "/runs", body))

    def closed(self) -> bool:
        answered = httpx.get(f"{self.url}/api/v1/datasets", timeout=30)
        return (answered.status_code, answered.json().get("code")) == (503, "node_closed")


@pytest.fixture(scope="module")
def far(ceph: Any, postgres_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    why = node_missing()
    if why:
        pytest.skip(why)
    node = Far(tmp_path_factory.mktemp("far"), ceph, postgres_server)
    try:
        node.start()
        node.until(lambda: node.health() == "ok")
        yield node
    finally:
        node.stop()
        for name in node.databases:
            postgres_server.drop(name)


def test_a_node_on_postgresql_is_backed_up_into_a_bucket(far: Far) -> None:
    public = [part for name in ("anna", "bo", "eva") for part in ("--officer", far.folder / f"{name}.officer.pub")]
    far.valv("ceremony", far.directory, *public, "--threshold", 2, *far.signing("anna", "bo"))
    toml = far.directory / "valv.toml"
    toml.write_text(toml.read_text().replace('passphrase_file = "secrets/passphrase"\n', ""))
    folder = far.folder / "in"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    far.names["stays"] = work.fresh("stays")
    work.deposit(far.person("carin"), folder, far.names["stays"], "identifiable", ["NRES"])
    for name in ("stays permit", "first permit", "second permit", "third permit"):
        far.names[name] = work.permit(far, far.names["stays"], "compute", ("GRU", "IRB"))
    faults: list[BaseException] = []

    def read() -> None:
        try:
            assert far.reads("stays")
        except BaseException as error:
            faults.append(error)

    reading = threading.Thread(target=read)
    reading.start()
    far.backed_up()
    reading.join(120)
    assert not faults, faults
    done = far.call("backup", "verify", far.bucket, *far.opening)
    assert done["wrong"] == [] and done["bodies"] >= 1 and done["missing"] == 0
    drilled = far.call("drill", "restore", far.directory, "vault", *far.opening)
    assert drilled["wrong"] == []


def test_it_comes_back_from_the_bucket_into_the_embedded_database(far: Far) -> None:
    before = far.backed_up()
    far.revoke("first permit")
    size, root = far.brought_out()
    assert size > before
    far.lose()
    done = far.restore("--database", "sqlite")
    assert done["backup_size"] == before and (done["size"], done["root"]) == (size, root)
    assert configuration.load(far.directory).database_url.startswith("sqlite")
    far.recover()
    far.open("anna", "eva")
    assert far.closed()
    with httpx.Client(timeout=30) as http:
        body = {"name": "rikard", "password": far.node.accounts["rikard"]["password"]}
        assert http.post(f"{far.url}/api/v1/sessions", json=body).status_code == 503
    assert far.call("restore", "open", far.directory)["lost_events"] == 0
    far.forget()
    assert far.refused("first permit") == "permit_ended"
    assert far.reads("stays")
    far.until(lambda: far.signed()[0] > size)  # the key holder goes on from where it was
    with far.records() as records:
        assert records.verify(far.signed()[1], done["log_key"]).ok


def test_and_from_there_into_postgresql(far: Far) -> None:
    before = far.backed_up()
    far.revoke("second permit")
    size, root = far.brought_out()
    far.lose()
    done = far.restore(*far.fresh_database())
    assert done["backup_size"] == before and (done["size"], done["root"]) == (size, root)
    assert configuration.load(far.directory).database_url.startswith("postgresql")
    far.recover()
    far.open("anna", "bo")
    assert far.closed()
    assert far.call("restore", "open", far.directory)["lost_events"] == 0
    far.forget()
    assert far.refused("first permit") == far.refused("second permit") == "permit_ended"
    assert far.reads("stays")
    far.until(lambda: far.signed()[0] > size)
    assert far.call("backup", "verify", far.bucket, *far.opening)["wrong"] == []


def test_what_was_lost_for_good_is_accepted_with_officers(far: Far) -> None:
    """The key folder lives on, and has signed more than any place of backups knows."""
    far.backed_up()
    far.revoke("third permit")
    far.until(lambda: far.signed()[0] == far.head()[0])
    witnessed, known = far.signed()
    kept = far.folder / "kept keys"
    far.stop()
    shutil.copytree(far.directory / "keys", kept)
    far.lose()
    done = far.restore(*far.fresh_database())
    assert done["size"] < witnessed
    shutil.copytree(kept, far.directory / "keys")
    far.open("anna", "bo")
    said = far.call("restore", "open", far.directory, code=SHORT)
    assert "The end of the ledger is missing" in said
    assert far.closed()
    opened = far.call("restore", "open", far.directory, "--accept-loss")
    assert opened["lost_events"] == witnessed - done["size"] > 0
    far.forget()
    assert not far.closed()
    # One person alone cannot shorten what was signed: the key holder signs no other end.
    before = far.signed()[0]
    time.sleep(4)
    assert far.signed()[0] == before <= done["size"]
    assert "does not continue the one that was signed" in (far.directory / "log" / "worker.log").read_text()

    far.stop()
    (far.directory / "keys").rename(far.folder / "put aside")
    far.recover()
    far.open("anna", "bo")
    far.until(lambda: far.signed()[0] > done["size"])
    far.forget()
    assert far.reads("stays")
    # The revocation is gone with the end, and whoever has the old checkpoint sees the fork, and the reason for it.
    assert far.refused("first permit") == "permit_ended"
    assert far.person("rikard").get(f"/permits/{far.names['third permit']}")["state"]["phase"] == "issued"
    old = Checkpoint.decode(note.verify(known, done["log_key"]))
    far.until(lambda: far.signed()[0] >= witnessed)
    with far.records() as records, records.reading() as unit:
        assert old.size == witnessed and unit.root(witnessed) != old.root
        tags = [one.tag for one in unit.follow(done["size"] - 1, 1)]
    assert tags == ["backup.restored"]
    with far.records() as records:
        assert records.verify(far.signed()[1], done["log_key"]).ok
    place = far.call("backup", "make", far.directory)
    assert place["epoch"] == 1 and not place["places"][0]["fault"]
    assert far.call("backup", "verify", far.bucket, *far.opening)["wrong"] == []
