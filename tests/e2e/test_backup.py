"""A really running node is backed up while people work, lost as a whole, and restored on an empty folder. The tests
build upon each other, on one node."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import node_missing
from tests.e2e import work
from tests.e2e.test_custody import Kept
from valv.assemble.doctor import _below
from valv.formats import minutes

LARGE = os.urandom(3_000_000)
MINUTES_SECONDS = 150.0
"""How long the outside record may take until it has everything: it is written once a minute."""


class Saved(Kept):
    """A node with a place for its backups, and the key that opens them."""

    def __init__(self, folder: Path, *database: str) -> None:
        super().__init__(folder, *database)
        made = self.call("backup", "key", folder / "stick", "--passphrase-file", self.secret)
        toml = self.directory / "valv.toml"
        about = f'[backup]\nrecipient = "{made["recipient"]}"\nhours = 1000\n[backup.places.vault]\n{self.place_text()}'
        toml.write_text(f"{toml.read_text().rstrip()}\n\n{about}")

    def place_text(self) -> str:
        """The settings of the place."""
        (self.folder / "vault").mkdir()
        return f'path = "{self.folder / "vault"}"\ncountry = "SE"\nunit = "Demonstration"\n'

    def call(self, *words: object, code: int = 0) -> Any:
        """`valv …`: its JSON, or what it said where it must fail."""
        ran = subprocess.run(self.line(*words), capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return json.loads(ran.stdout) if code == 0 else ran.stderr

    def line(self, *words: object) -> list[str]:
        return [sys.executable, "-c", "from valv.assemble import main; main()", "--json", *map(str, words)]

    @property
    def opening(self) -> list[object]:
        return ["--recipient-key", self.folder / "stick.backup", "--passphrase-file", self.secret]

    @property
    def supervisor(self) -> int:
        assert self._process is not None
        return self._process.pid

    def worker(self) -> int:
        for process in _below(self.supervisor):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if b"valv.assemble.worker" in words and b"bwrap" not in words[0] and words[0] != b"setpriv":
                    return int(process.name)
        return 0

    def head(self) -> tuple[int, str]:
        ((size, root),) = self.rows("select size, hex(root) from head")
        return int(size), str(root).lower()

    def forget(self) -> None:
        """Log-ins are of the node that was."""
        self.node.people.clear()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    why = node_missing()
    if why:
        pytest.skip(why)
    node = Saved(tmp_path_factory.mktemp("backup"))
    try:
        node.start()
        node.until(lambda: node.health() == "ok")
        yield node
    finally:
        node.stop()


def test_a_backup_is_made_while_people_work(saved: Saved) -> None:
    public = [part for name in ("anna", "bo", "eva") for part in ("--officer", saved.folder / f"{name}.officer.pub")]
    saved.valv("ceremony", saved.directory, *public, "--threshold", 2, *saved.signing("anna", "bo"))
    toml = saved.directory / "valv.toml"  # as the ceremony tells: that passphrase opens nothing any more
    toml.write_text(toml.read_text().replace('passphrase_file = "secrets/passphrase"\n', ""))
    folder = saved.folder / "in"
    for name in ("gone", "stays"):
        folder.mkdir()
        (folder / "a.bin").write_bytes(LARGE)
        saved.names[name] = work.fresh(name)
        work.deposit(saved.person("carin"), folder, saved.names[name], "identifiable", ["NRES"])
        saved.names[f"{name} permit"] = work.permit(saved, saved.names[name], "compute", ("GRU", "IRB"))
        shutil.rmtree(folder)
    saved.names["revoked permit"] = work.permit(saved, saved.names["stays"], "compute", ("GRU", "IRB"))

    ended = threading.Event()
    faults: list[BaseException] = []

    def upload() -> None:
        try:
            while not ended.is_set():
                with contextlib.suppress(FileExistsError):
                    folder.mkdir()
                (folder / "b.bin").write_bytes(os.urandom(500_000))
                work.deposit(saved.person("carin"), folder, work.fresh("busy"), "identifiable", ["NRES"])
        except BaseException as error:
            faults.append(error)

    def compute() -> None:
        try:
            while not ended.is_set():
                assert saved.reads("stays")
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=upload), threading.Thread(target=compute)]
    saved.person("rikard")
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            state = saved.call("backup", "make", saved.directory)
            (place,) = state["places"]
            assert place["generation"] and not place["fault"] and place["held_back"] == 0
            done = saved.call("backup", "verify", saved.folder / "vault", *saved.opening)
            assert done["wrong"] == [] and done["bodies"] >= 2 and done["missing"] == 0
            assert done["log_key"] == saved.person("carin").get("/node")["log_key"]
    finally:
        ended.set()
        for thread in threads:
            thread.join(120)
    assert not faults, faults


def test_a_drill_is_held(saved: Saved) -> None:
    done = saved.call("drill", "restore", saved.directory, "vault", *saved.opening)
    assert done["wrong"] == [] and done["seconds"] > 0
    state = saved.call("backup", "list", saved.directory)
    assert state["drilled"] and not state["drill_due"]
    wrong = ["--recipient-key", saved.folder / "anna.officer", "--passphrase-file", saved.secret]
    assert "not made for any of our keys" in saved.call("backup", "verify", saved.folder / "vault", *wrong, code=65)


def test_a_worker_that_is_killed_leaves_no_half_backup(saved: Saved) -> None:
    rng = random.Random(7)
    for _ in range(4):
        going = subprocess.Popen(
            saved.line("backup", "make", saved.directory), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(1.0 + rng.random() * 3)
        with contextlib.suppress(ProcessLookupError):
            os.kill(saved.worker(), signal.SIGKILL)
        assert saved.call("backup", "verify", saved.folder / "vault", *saved.opening)["wrong"] == []
        going.wait(120)
    saved.until(lambda: saved.health() == "ok")


def test_everything_is_lost_and_restored(saved: Saved) -> None:
    state = saved.call("backup", "make", saved.directory)
    before = state["places"][0]["size"]
    body = {"reason": "A complaint."}
    saved.person("dagny").post(f"/permits/{saved.names['revoked permit']}/revocation", body)
    destroy = ("destroy", saved.directory, saved.names["gone"], "--reason", "Withdrawn.", "--yes")
    told = saved.valv(*destroy, *saved.signing("anna", "eva"))
    assert minutes.read(told["minutes"]).signers == ("anna", "eva")
    saved.until(lambda: saved.page("gone")["certificates"])
    end = time.monotonic() + MINUTES_SECONDS
    while saved.call("backup", "list", saved.directory)["places"][0]["outside"] < saved.head()[0]:
        assert time.monotonic() < end, saved.node.last_words()
        time.sleep(2)
    saved.stop()
    size, root = saved.head()
    assert size > before

    accounts = (saved.directory / "demo" / "accounts.json").read_bytes()
    shutil.rmtree(saved.directory)
    rng = random.Random(11)
    restore = ("restore", saved.folder / "vault", saved.directory, *saved.opening)
    for _ in range(4):
        going = subprocess.Popen(saved.line(*restore), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.8 + rng.random() * 2)
        going.kill()
        going.wait(60)
        assert not (saved.directory / "keys").exists()
    shutil.rmtree(saved.directory, ignore_errors=True)
    done = saved.call(*restore)
    assert done["backup_size"] == before
    assert (done["size"], done["root"]) == (size, root), "the same ledger, root by root"
    # The file of the destroyed dataset is in the backup still, and of no use.
    assert done["gap"] == "" and done["missing"] == [] and done["seconds"] > 0
    (saved.directory / "demo").mkdir()
    (saved.directory / "demo" / "accounts.json").write_bytes(accounts)

    recover = ("recover", saved.directory, "--backup", saved.folder / "place")
    saved.valv(*recover, *saved.signing("anna", "bo"))
    saved.forget()
    saved.open("anna", "eva")


def test_it_is_closed_until_it_is_opened(saved: Saved) -> None:
    answered = httpx.get(f"{saved.url}/api/v1/datasets", timeout=30)
    assert (answered.status_code, answered.json()["code"]) == (503, "node_closed")
    page = httpx.get(f"{saved.url}/catalogue", timeout=30)
    assert page.status_code == 503 and "restored" in page.text
    account = saved.node.accounts["rikard"]
    refused = httpx.post(
        f"{saved.url}/api/v1/sessions", json={"name": "rikard", "password": account["password"]}, timeout=30
    )
    assert (refused.status_code, refused.json()["code"]) == (503, "node_closed")
    size = saved.head()[0]
    assert saved.person("audun").get("/ledger") and saved.person("olof").get("/custody")
    time.sleep(3)
    assert saved.head()[0] == size, "a closed node writes nothing into its ledger"


def test_what_was_taken_back_stays_so(saved: Saved) -> None:
    size = saved.head()[0]
    opened = saved.call("restore", "open", saved.directory)
    assert opened["lost_events"] == 0
    saved.forget()
    rikard = saved.person("rikard")
    ended = {"permit": saved.names["revoked permit"], "command": ["true"]}
    assert rikard.refused("POST", "/runs", ended) == "permit_ended"
    gone = {"permit": saved.names["gone permit"], "command": ["true"]}
    assert rikard.refused("POST", "/runs", gone) == "version_destroyed"
    assert saved.destroyed("gone")
    assert saved.reads("stays")
    saved.until(lambda: not saved.bodies("gone") & saved.stored())

    def signed() -> bool:
        return int(saved.rows("select max(size) from checkpoint")[0][0]) > size

    saved.until(signed)  # the key holder goes on from where it was
    events = [tag for (tag,) in saved.rows("select tag from journal where position >= ? order by position", size)]
    assert events[0] == "backup.restored" and "custody.recovered" in events
    state = saved.call("backup", "make", saved.directory)
    assert not state["places"][0]["fault"]
    assert saved.call("backup", "verify", saved.folder / "vault", *saved.opening)["wrong"] == []
