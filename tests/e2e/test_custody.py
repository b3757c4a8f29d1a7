"""The keys of a really running node in the hands of officers: ceremony, unsealing by two, drill, destruction, recovery;
and what old backups are worth after a destruction. The tests build upon each other, on one node."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningNode, free_port, node_missing
from tests.e2e import work
from tests.officers import Officers
from valv.assemble import demo
from valv.assemble.confine import Users
from valv.assemble.sockets import KEYD
from valv.errors import KeyFault
from valv.formats import minutes, note
from valv.keys.client import KeydClient

PATIENCE = 60.0
GONE, STAYS = b"what the donors took back", b"what may stay"
READ_FOR_EVER = "while true; do cat /data/*/* > /dev/null; sleep 0.1; done"
READ = "cat /data/*/* > /outbox/seen.txt"


class Kept:
    """A node that is stopped and started, with a place for its key backup and officers' key files."""

    def __init__(self, folder: Path, *database: str) -> None:
        """`database`: address and password file, where it is not the embedded one."""
        config = demo.prepare(folder / "node", free_port(), *database)
        accounts = json.loads(demo.accounts_file(folder / "node").read_text("utf-8"))
        self.node = RunningNode(config.public_url, folder / "node", accounts)
        self.url, self.directory, self.person = self.node.url, self.node.directory, self.node.person
        (folder / "place").mkdir()
        toml = self.directory / "valv.toml"
        toml.write_text(toml.read_text().replace("[keys]\n", f'[keys]\nbackup = ["{folder / "place"}"]\n'))
        self.folder = folder
        self.config = config
        self.officers = Officers("demo.valv")
        self.secret = self.officers.write(folder)
        self.names: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.directory / "log").mkdir(exist_ok=True)
        with (self.directory / "log" / "up.log").open("ab") as log:
            command = [sys.executable, "-m", "valv.assemble.up", "--node", str(self.directory)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.until(lambda: self.health() != "")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)
            self._process = None

    def health(self) -> str:
        assert self._process is not None and self._process.poll() is None, self.node.last_words()
        with contextlib.suppress(httpx.HTTPError):
            return str(httpx.get(f"{self.url}/health", timeout=5).json()["status"])
        return ""

    def until(self, true: Callable[[], Any]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < end, self.node.last_words()
            time.sleep(0.2)

    def valv(self, *words: object, code: int = 0) -> Any:
        """`valv keys …`: its JSON, or what it said where it must fail."""
        line = [sys.executable, "-c", "from valv.assemble import main; main()", "--json", "keys", *map(str, words)]
        ran = subprocess.run(line, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return json.loads(ran.stdout) if code == 0 else ran.stderr

    def signing(self, *names: str) -> list[object]:
        keys = [part for name in names for part in ("--sign", self.folder / f"{name}.officer")]
        return [*keys, *(part for _ in names for part in ("--sign-passphrase-file", self.secret))]

    def unseal(self, name: str) -> Any:
        key = ("--officer-key", self.folder / f"{name}.officer", "--passphrase-file", self.secret)
        return self.valv("unseal", self.directory, *key)

    def open(self, *names: str) -> None:
        """Start it, and have these officers unseal it."""
        self.start()
        for name in names:
            answer = self.unseal(name)
        assert answer["open"]
        self.until(lambda: self.health() == "ok")

    @property
    def keys(self) -> Path:
        return self.directory / "keys"

    @property
    def place(self) -> Path:
        return self.config.key_place(str(self.folder / "place"))

    def page(self, name: str) -> Any:
        return self.person("carin").get(f"/datasets/{self.names[name]}")

    def destroyed(self, name: str) -> bool:
        return bool(self.page(name)["state"]["versions"][0]["destroyed"])

    def reads(self, name: str) -> bool:
        """Whether a run reads the dataset under the permit that there is for it."""
        done = work.run(self, self.names[f"{name} permit"], ["sh", "-c", READ])
        return bool(done["state"]["success"])

    def rows(self, query: str, *values: object) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.directory / "db" / "valv.sqlite", timeout=30)) as database:
            return database.execute(query, values).fetchall()

    def bodies(self, name: str) -> set[str]:
        """Names of the stored files that the records have for a dataset."""
        query = "select f.body from file f join dataset d on d.id = f.dataset where d.name = ?"
        return {name for (body,) in self.rows(query, self.names[name]) for name in (body, f"{body}.seal")}

    def stored(self) -> set[str]:
        return {path.name for path in (self.directory / "store").rglob("*") if path.is_file()}

    # --- ordinary backups ---

    def save(self, to: Path) -> None:
        """The database and the store, as an ordinary backup has them; while the node runs or not."""
        to.mkdir()
        with (
            contextlib.closing(sqlite3.connect(self.directory / "db" / "valv.sqlite", timeout=30)) as database,
            contextlib.closing(sqlite3.connect(to / "valv.sqlite")) as copy,
        ):
            database.backup(copy)
        shutil.copytree(self.directory / "store", to / "store")

    def restore(self, saved: Path) -> None:
        """The node is stopped."""
        for path in (self.directory / "db").iterdir():
            path.unlink()
        shutil.copy(saved / "valv.sqlite", self.directory / "db")
        shutil.copytree(saved / "store", self.directory / "store", dirs_exist_ok=True)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    why = node_missing()
    if why:
        pytest.skip(why)
    node = Kept(tmp_path_factory.mktemp("custody"))
    try:
        node.start()
        node.until(lambda: node.health() == "ok")
        yield node
    finally:
        node.stop()


def test_after_a_ceremony_two_officers_unseal(kept: Kept) -> None:
    public = [part for name in ("anna", "bo", "eva") for part in ("--officer", kept.folder / f"{name}.officer.pub")]
    assert "nobody could recover" not in kept.valv("status", kept.directory)
    kept.valv("ceremony", kept.directory, *public, "--threshold", 2, *kept.signing("anna"), code=77)
    told = kept.valv("ceremony", kept.directory, *public, "--threshold", 2, *kept.signing("anna", "bo"))
    assert minutes.read(told["minutes"]).wanted.persons == 2
    note.verify(told["minutes"], kept.person("carin").get("/node")["log_key"])
    status = kept.valv("status", kept.directory)
    assert status["unsealed_by"] == "2 officers" and status["backups"][0]["fault"] == ""

    folder = kept.folder / "in"
    for name, content, claimed in (("gone", GONE, "anonymised"), ("stays", STAYS, "identifiable")):
        folder.mkdir()
        (folder / "a.txt").write_bytes(content)
        kept.names[name] = work.fresh(name)
        work.deposit(kept.person("carin"), folder, kept.names[name], claimed, ["NRES"])
        if claimed == "anonymised":
            work.confirm_anonymous(kept, kept.names[name])
            kept.names[f"{name} download"] = work.permit(kept, kept.names[name], "download", ("GRU",))
        kept.names[f"{name} permit"] = work.permit(kept, kept.names[name], "compute", ("GRU", "IRB"))
        shutil.rmtree(folder)
        assert kept.reads(name)

    kept.stop()
    kept.start()
    assert kept.health() == "degraded"
    told = kept.valv("unseal", kept.directory, "--passphrase-file", kept.directory / "secrets/passphrase", code=77)
    assert "Two officers" in told
    status = kept.valv("status", kept.directory)
    assert (status["keys"], status["shares_given"]) == ("locked", "0 of 2")
    assert kept.unseal("eva") == {"open": False, "persons": 2, "present": 1}
    assert kept.unseal("eva")["present"] == 1, "the same officer twice is one"
    assert kept.unseal("anna")["open"]
    kept.until(lambda: kept.health() == "ok")
    assert kept.reads("gone") and kept.reads("stays")


def test_a_drill(kept: Kept) -> None:
    told = kept.valv("drill", kept.directory, *kept.signing("eva", "bo"))
    assert minutes.read(told["minutes"]).signers == ("bo", "eva")
    assert kept.valv("status", kept.directory)["last_drill"]
    assert "do not fit" in kept.valv("drill", kept.directory, *kept.signing("eva"), code=65)


def test_a_destroyed_dataset_is_gone_for_everybody(kept: Kept) -> None:
    # What somebody kept from before: an ordinary backup, the key backup, and the key holder's own folder.
    kept.save(kept.folder / "before")
    shutil.copytree(kept.place.parent, kept.folder / "old-place")
    shutil.copytree(kept.keys, kept.folder / "old-keys")
    bodies = kept.bodies("gone")
    assert bodies <= kept.stored()

    order = kept.folder / "destroy.order"
    name, reason = kept.names["gone"], "Withdrawn by the donors."
    kept.valv("destroy", kept.directory, name, "--reason", reason, "--order", order, code=64)
    kept.valv("destroy", kept.directory, name, "--reason", reason, "--order", order, "--yes")
    kept.valv("order", kept.directory, order, code=64)
    for officer in ("anna", "eva"):
        key = ("--officer-key", kept.folder / f"{officer}.officer", "--passphrase-file", kept.secret, "--yes")
        kept.valv("sign", order, *key)
        if officer == "anna":
            assert "Two officers" in kept.valv("order", kept.directory, order, code=77)
            kept.valv("sign", order, *key, code=64)
    rikard = kept.person("rikard")
    reading = {"permit": kept.names["gone permit"], "command": ["sh", "-c", READ_FOR_EVER]}
    going = rikard.post("/runs", reading)["run_id"]
    rikard.wait(f"/runs/{going}", lambda found: found["state"]["phase"], ("running",))
    told = kept.valv("order", kept.directory, order)
    ended = rikard.wait(f"/runs/{going}", lambda found: found["state"]["phase"], ("collected",))
    assert ended["state"]["end"] == "revoked"
    assert kept.valv("order", kept.directory, order) == told, "an order is carried out once"
    assert minutes.read(told["minutes"]).wanted.reason == reason

    kept.until(lambda: kept.page("gone")["certificates"])
    assert "complete" in kept.page("gone")["certificates"][0][1]
    again = {"permit": kept.names["gone permit"], "command": ["true"]}
    assert rikard.refused("POST", "/runs", again) == "version_destroyed"
    assert rikard.refused("GET", f"/permits/{kept.names['gone download']}/files") == "version_destroyed"
    assert not bodies & kept.stored()
    assert kept.reads("stays")
    kept.valv("destroy", kept.directory, name, "--reason", reason, "--yes", *kept.signing("anna", "eva"), code=64)
    olof = kept.person("olof").get("/custody")
    assert olof["acts"][0]["destroyed"][0]["certificate"] and not olof["acts"][0]["destroyed"][0]["left"]


def test_an_old_backup_does_not_bring_it_back(kept: Kept) -> None:
    """Somebody restores the ordinary backup of before, and has old copies of key records, of the whole generation and
    of the key backup as well."""
    before = kept.folder / "before"
    ((body, header, key_id),) = _file(before / "valv.sqlite", kept.names["gone"])
    kept.stop()
    kept.save(kept.folder / "now")

    # The database and the store as they were: the dataset is in the catalogue, its files are there, their key is not.
    kept.restore(before)
    assert body in kept.stored()
    living = max(path for path in kept.keys.iterdir() if path.name.startswith("generation-"))
    old = max(path for path in (kept.folder / "old-keys").iterdir() if path.name.startswith("generation-"))
    assert old.name < living.name
    shutil.copy(old / "keys" / f"{key_id}.json", living / "keys")  # an old record of the key itself
    shutil.copytree(old, kept.keys / old.name)  # and the old generation, whole
    kept.start()
    kept.unseal("bo")
    assert kept.unseal("eva")["open"]
    with pytest.raises(KeyFault, match="destroyed"):
        _unwrapped(kept, key_id, header)
    kept.until(lambda: kept.destroyed("gone"))  # the key holder remembers what the old ledger does not
    again = {"permit": kept.names["gone permit"], "command": ["true"]}
    assert kept.person("rikard").refused("POST", "/runs", again) == "version_destroyed"
    kept.until(lambda: body not in kept.stored())
    assert kept.reads("stays")
    kept.stop()
    assert [path.name for path in kept.keys.iterdir() if path.name.startswith("generation-")] == [living.name]
    assert not (living / "keys" / f"{key_id}.json").exists()

    # An old index that still names the key, with its old record: the key holder does not open at all.
    good = (living / "index.json").read_bytes()
    shutil.copy(old / "keys" / f"{key_id}.json", living / "keys")
    (living / "index.json").write_bytes((old / "index.json").read_bytes())
    kept.start()
    kept.unseal("bo")
    key = ("--officer-key", kept.folder / "eva.officer", "--passphrase-file", kept.secret)
    assert "altered" in kept.valv("unseal", kept.directory, *key, code=65)
    kept.stop()
    (living / "index.json").write_bytes(good)
    kept.restore(kept.folder / "now")

    # The old key backup, which has the key, with the officers' own help, and the node's ledger: what was destroyed
    # since is left out.
    assert any(path.name == f"{key_id}.json" for path in (kept.folder / "old-place").rglob("*.json"))
    kept.keys.rename(kept.folder / "put-aside")
    from_old = ("--backup", kept.folder / "old-place")
    kept.valv("recover", kept.directory, *from_old, *kept.signing("anna"), code=65)
    assert not kept.keys.exists()
    kept.valv("recover", kept.directory, *from_old, *kept.signing("anna", "bo"))
    assert not [path for path in kept.keys.rglob("*.json") if path.name == f"{key_id}.json"]
    kept.open("anna", "eva")
    with pytest.raises(KeyFault, match="destroyed"):
        _unwrapped(kept, key_id, header)
    assert kept.destroyed("gone") and kept.reads("stays")
    kept.stop()
    shutil.rmtree(kept.keys)
    (kept.folder / "put-aside").rename(kept.keys)
    shutil.rmtree(kept.place)  # it has the recovered generation, newer than that of these keys
    kept.restore(kept.folder / "now")


@contextlib.contextmanager
def _as_worker(kept: Kept) -> Iterator[KeydClient]:
    """The key holder as the worker reaches it, who may ask the most."""
    users = Users.of(kept.config)
    client = KeydClient(kept.config.runtime / KEYD)
    if users.root:
        os.setegid(users.group)
        os.seteuid(users.worker)
    try:
        client.status()  # connects
    finally:
        if users.root:
            os.seteuid(0)
            os.setegid(0)
    yield client
    client.close()


def _unwrapped(kept: Kept, key_id: str, header: bytes) -> list[bytes]:
    with _as_worker(kept) as keys:
        return keys.reseal_within(key_id, [header])


def _file(database: Path, name: str) -> list[Any]:
    """Body, header and key of the files that an old copy of the database has for a dataset."""
    query = "select f.body, f.header, f.key_id from file f join dataset d on d.id = f.dataset where d.name = ?"
    with contextlib.closing(sqlite3.connect(database)) as old:
        return old.execute(query, (name,)).fetchall()


def test_lost_keys_are_recovered(kept: Kept) -> None:
    kept.open("bo", "eva")
    status = kept.valv("status", kept.directory)
    generation = status["generation"]
    assert status["backups"] == [{"path": str(kept.place), "generation": generation, "fault": ""}]
    recover = ("recover", kept.directory, "--backup", kept.folder / "place", *kept.signing("anna", "eva"))
    assert "runs" in kept.valv(*recover, code=75)
    kept.stop()
    assert "exists" in kept.valv(*recover, code=75)
    shutil.rmtree(kept.keys)
    database = kept.directory / "db" / "valv.sqlite"
    database.rename(database.with_suffix(".away"))
    assert "restore the node's database" in kept.valv(*recover, code=66)
    database.with_suffix(".away").rename(database)
    told = minutes.read(kept.valv(*recover)["minutes"])
    assert told.signers == ("anna", "eva") and told.generation == generation + 1
    kept.open("anna", "bo")
    status = kept.valv("status", kept.directory)
    assert status["generation"] == generation + 1 and status["backups"][0]["fault"] == ""
    assert [path.name for path in kept.place.iterdir()] == [f"generation-{generation + 1:06d}"]
    assert kept.destroyed("gone") and kept.reads("stays")
    kept.until(lambda: kept.person("olof").get("/custody")["acts"][0]["event"] == "custody.recovered")
