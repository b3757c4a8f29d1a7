"""Ways out: identifiable data leaves by none of them, anonymised data and outputs only as they were granted."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import sqlite3
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.attack.scene import CANARY, Stage, connected, form
from tests.e2e import work
from valv.errors import RefusedFault
from valv.formats import crypt4gh
from valv.keys.client import KeydClient
from valv.ports.lease import TERM

WHY = {"reason": "Because."}


class ServeClient(KeydClient):
    """Speaks to the real key holder over a connection that the server's own user made."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__("")
        self._mine = connection

    def _connect(self, seconds: float) -> socket.socket:
        return self._mine


def stored(stage: Stage, query: str, *values: str) -> list[sqlite3.Row]:
    """Rows of the node's database, as a compromised server reads them."""
    with contextlib.closing(sqlite3.connect(stage.database)) as database:
        database.row_factory = sqlite3.Row
        return database.execute(query, values).fetchall()


def files_of(stage: Stage, dataset: str) -> list[sqlite3.Row]:
    query = "select file.* from file join dataset on dataset.id = file.dataset where dataset.name = ? order by path"
    return stored(stage, query, dataset)


# --- the doors ---


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-"}, {"Range": "bytes=124-"}, {"Range": "bytes=0-0,5-9"}])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_identifiable_files_are_not_downloaded(stage: Stage, method: str, headers: dict[str, str]) -> None:
    key = stage.node.person("rikard").add_key(crypt4gh.generate_keypair(), "mine")
    for permit in (stage.compute, stage.download):
        for file in files_of(stage, stage.sealed):
            path = f"/permits/{permit}/files/{file['id']}"
            answered = stage.ask("rikard", method, path, params={"key": key}, headers=headers)
            assert answered.status_code in (403, 404), (answered.status_code, answered.text)
            assert "content-range" not in answered.headers and CANARY not in answered.text
    assert stage.ask("rikard", "GET", f"/permits/{stage.compute}/files").status_code == 403


def test_no_permit_for_downloads_of_identifiable_data_comes_to_be(stage: Stage) -> None:
    rikard, dagny = stage.node.person("rikard"), stage.node.person("dagny")
    both = rikard.post("/applications", form(stage.open, "download", datasets=[stage.open, stage.sealed]))["access_id"]
    assert rikard.refused("POST", f"/applications/{both}/submission") == "download_identifiable"
    access = stage.apply("rikard", form(stage.sealed))
    assert rikard.refused("PUT", f"/applications/{access}", form(stage.sealed, "download")) == "wrong_phase"
    forged = stage.ask("dagny", "POST", f"/applications/{access}/approval", WHY | {"mode": "download"})
    assert forged.status_code == 400
    longer = stage.ask("dagny", "POST", f"/applications/{access}/approval", WHY | {"days": 31})
    assert longer.json()["code"] == "duration"
    permit = dagny.post(f"/applications/{access}/approval", WHY)["permit_id"]
    assert rikard.get(f"/permits/{permit}")["state"]["mode"] == "compute"


def test_a_download_is_sealed_to_ones_own_registered_key_alone(stage: Stage) -> None:
    brita, rikard = stage.node.person("brita"), stage.node.person("rikard")
    hers, ended = brita.add_key(crypt4gh.generate_keypair(), "hers"), rikard.add_key(crypt4gh.generate_keypair(), "old")
    stage.ask("rikard", "DELETE", f"/account/keys/{ended}")
    public = "4" * 43 + "="
    unproven = rikard.post("/account/keys", {"public": public, "label": "unproven"})["challenge_id"]
    for key in (hers, ended, unproven, "none"):
        answered = stage.ask("rikard", "GET", f"/permits/{stage.download}/files/{stage.file}", params={"key": key})
        assert answered.json()["code"] == "no_key"
    answered = stage.ask("brita", "GET", f"/permits/{stage.download}/files/{stage.file}", params={"key": hers})
    assert answered.status_code == 403


def test_a_download_is_cut_when_the_data_turn_out_identifiable(stage: Stage, tmp_path: Path) -> None:
    size, name = 24 << 20, work.fresh("narrowed")
    (tmp_path / "large.bin").write_bytes(secrets.token_bytes(1 << 20) * (size >> 20))
    carin, rikard = stage.node.person("carin"), stage.node.person("rikard")
    work.deposit(carin, tmp_path, name, "anonymised", ["GRU"])
    work.confirm_anonymous(stage.node, name)
    permit = work.permit(stage.node, name, "download", ("GRU",))
    key = rikard.add_key(crypt4gh.generate_keypair(), "mine")
    path = f"/permits/{permit}/files/{rikard.get(f'/permits/{permit}/files')[0]['file_id']}"
    at = urlsplit(stage.node.url)
    with socket.create_connection((at.hostname, at.port), 30) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        head = f"GET /api/v1{path}?key={key} HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: {stage.token('rikard')}"
        connection.sendall(f"{head}\r\n\r\n".encode())
        seen = len(connection.recv(4096))
        carin.post(f"/datasets/{name}/narrowing", {"version": 1} | WHY)
        time.sleep(TERM)  # what is sent within the term of a lease is not cut
        began = time.monotonic()
        connection.settimeout(30)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                seen += len(part)
    assert seen < size, "the whole file went out"
    assert time.monotonic() - began < 10
    assert rikard.refused("GET", f"{path}?key={key}") == "download_identifiable"
    assert stage.ask("rikard", "HEAD", path).status_code == 403
    row = files_of(stage, name)[0]
    assert _refusals(stage, row["key_id"], row["header"])["reseal_outside"] == "key_stays_inside"


# --- a server that was taken over ---


def _refusals(stage: Stage, key_id: str, header: bytes) -> dict[str, str]:
    """What the key holder says to the server's own user, by verb."""
    if os.geteuid() != 0:
        pytest.skip("the node's processes have users of their own only where root starts it")
    base, mine = stage.config.processes.uid_base, crypt4gh.generate_keypair()
    told = {}
    with connected(stage.config.runtime / "keyd.sock", base + 2, (base,)) as connection:
        client = ServeClient(connection)
        for verb, ask in {
            "reseal_outside": lambda: client.reseal_outside(key_id, header, mine.public),
            "reseal": lambda: client.reseal("mine", key_id, header, mine.public),
            "grant": lambda: client.grant("mine", [key_id], base + 900, 60),
            "grant to itself": lambda: client.grant("mine", [f"result-{stage.run}"], base + 2, 60),
            "renew": lambda: client.renew(f"run-{stage.run}", 60),
            "adopt": lambda: client.adopt(header, key_id),
            "destroy": lambda: client.destroy(key_id),
            "unseal": lambda: client.unseal(b"guess"),
            "as a result": lambda: client.create(key_id, "result"),
        }.items():
            try:
                ask()
                told[verb] = ""
            except RefusedFault as fault:
                told[verb] = fault.refusal.code
            except Exception as fault:
                told[verb] = type(fault).__name__
    return told


def test_the_servers_user_gets_no_identifiable_header_opened(stage: Stage) -> None:
    for row in files_of(stage, stage.sealed):
        told = _refusals(stage, row["key_id"], row["header"])
        assert told["reseal_outside"] == "key_stays_inside"
        assert told["reseal"] == told["destroy"] == told["unseal"] == told["renew"] == "key_not_yours"
        assert told["grant"] == told["grant to itself"] == "no_grant"
        assert told["adopt"] != ""
    # An identifiable key answers every class with its public half, and stays what it is.
    assert _refusals(stage, row["key_id"], row["header"])["reseal_outside"] == "key_stays_inside"


def test_a_claim_is_not_enough_for_the_key_holder(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("claimed\n")
    name = work.fresh("claimed")
    work.deposit(stage.node.person("carin"), tmp_path, name, "anonymised", ["GRU"])
    row = files_of(stage, name)[0]
    told = _refusals(stage, row["key_id"], row["header"])
    assert told["reseal_outside"] == "key_stays_inside"
    assert told["as a result"] == "key_class"


def test_headers_of_identifiable_files_do_not_open_under_a_key_that_may_leave(stage: Stage) -> None:
    if os.geteuid() != 0:
        pytest.skip("the node's processes have users of their own only where root starts it")
    base, mine = stage.config.processes.uid_base, crypt4gh.generate_keypair()
    sealed, opened = files_of(stage, stage.sealed)[0], files_of(stage, stage.open)[0]
    with connected(stage.config.runtime / "keyd.sock", base + 2, (base,)) as connection:
        client = ServeClient(connection)
        assert client.reseal_outside(opened["key_id"], opened["header"], mine.public)
        with pytest.raises(Exception, match=r"header|key"):
            client.reseal_outside(opened["key_id"], sealed["header"], mine.public)
        with pytest.raises(Exception, match=r"header|key"):
            client.reseal_outside(opened["key_id"], sealed["header"] + opened["header"], mine.public)


def test_a_run_is_granted_the_keys_of_its_permit_whatever_the_rows_say(stage: Stage, tmp_path: Path) -> None:
    """Somebody who writes the database hangs an identifiable file into a version that a permit covers."""
    (tmp_path / "mine.txt").write_text("mine\n")
    name = work.fresh("widened")
    work.deposit(stage.node.person("carin"), tmp_path, name, "anonymised", ["GRU"])
    permit = work.permit(stage.node, name, "compute", ("GRU", "IRB"))
    prey, own = files_of(stage, stage.sealed)[0], files_of(stage, name)[0]
    values = (own["dataset"], own["version"], prey["id"])
    with contextlib.closing(sqlite3.connect(stage.database, timeout=30)) as database:
        database.execute("insert into dataset_version_file (dataset, version, file) values (?, ?, ?)", values)
        database.commit()
    try:
        script = f"cat /data/{name}/mine.txt && ! grep -q CANARY /data/{name}/{prey['path']}"
        done = work.run(stage.node, permit, ["sh", "-c", script])
        assert done["state"]["success"], done
    finally:
        with contextlib.closing(sqlite3.connect(stage.database, timeout=30)) as database:
            database.execute("delete from dataset_version_file where dataset = ? and version = ? and file = ?", values)
            database.commit()


# --- outputs ---


def test_outputs_leave_after_the_check_and_to_their_author_alone(stage: Stage) -> None:
    node = stage.node
    rikard, brita, kerttu = (node.person(name) for name in ("rikard", "brita", "kerttu"))
    access = stage.apply("rikard", form(stage.open, people=["brita"]))
    permit = node.person("dagny").post(f"/applications/{access}/approval", WHY)["permit_id"]
    done = work.run(node, permit, ["sh", "-c", "echo good > /outbox/good; echo bad > /outbox/bad"])
    release = done["release_id"]
    files = {
        file["path"]: f"/releases/{release}/files/{file['file_id']}"
        for file in rikard.get(f"/releases/{release}")["files"]
    }
    assert rikard.refused("GET", files["good"]) in ("wrong_phase", "not_released")
    assert kerttu.refused("GET", f"{files['good']}/inspection") == "wrong_phase"  # nobody asked yet
    rikard.post(f"/releases/{release}/request", {"context": "Words."})
    manifest = rikard.get(f"/releases/{release}")["state"]["manifest"]
    assert rikard.refused("GET", files["good"]) in ("wrong_phase", "not_released")
    for name in ("rikard", "brita", "carin", "dagny", "audun", "olof"):
        assert stage.ask(name, "GET", f"{files['good']}/inspection").status_code == 403, name
        decision = {"approve": True, "manifest": manifest} | WHY
        assert stage.ask(name, "POST", f"{files['good']}/decision", decision).status_code == 403, name
    forged = {"approve": True, "manifest": "0" * 64} | WHY
    assert kerttu.refused("POST", f"{files['good']}/decision", forged) == "seal_broken"
    for path, url in files.items():
        kerttu.post(f"{url}/decision", {"approve": path == "good", "manifest": manifest} | WHY)
        assert rikard.refused("GET", files["bad"]) in ("wrong_phase", "not_released")
    assert rikard.content(files["good"]) == b"good\n"
    assert rikard.refused("GET", files["bad"]) == "not_released"
    assert brita.refused("GET", files["good"]) == "not_allowed"
    other = f"/releases/{stage.release}/files/{files['good'].rsplit('/', 1)[1]}"
    assert rikard.refused("GET", other) in ("no_file", "wrong_phase", "not_released")


def test_outputs_of_identifiable_data_tell_their_author_nothing_before_the_check(stage: Stage) -> None:
    """Neither names nor sizes nor digests, in no field: each of them could carry data."""
    page = stage.node.person("rikard").get(f"/releases/{stage.release}")
    assert page["files"] and page["skipped"] == ""
    assert all(re.fullmatch("output [0-9]+", f["path"]) and not f["size"] and not f["sha256"] for f in page["files"])
    assert all(not item["size"] and not item["seal_root"] for item in page["state"]["items"])
    state = stage.node.person("rikard").get(f"/runs/{stage.run}")["state"]
    assert state["skipped"] == 0
    assert all(state[moment].endswith(":00Z") for moment in ("started", "ended"))


def test_no_door_shows_a_canary(stage: Stage) -> None:
    """It is in the data, in standard output and error, and in the name of an output."""
    paths = ["/datasets", f"/datasets/{stage.sealed}", f"/datasets/{stage.sealed}/history", "/applications"]
    paths += [f"/applications/{stage.access}", "/permits", f"/permits/{stage.compute}", "/deposits", "/ledger"]
    paths += ["/ledger/export", "/node", "/account", f"/permits/{stage.compute}/files"]
    paths += ["/runs", f"/runs/{stage.run}", "/releases", f"/releases/{stage.release}"]
    people = ["rikard", "brita", "carin", "dagny", "audun", "olof", "cai", ""]
    for name in people:
        for path in paths:
            text = stage.ask(name, "GET", path).text
            shown = json.dumps(stage.node.person("rikard").get(f"/runs/{stage.run}")["command"]) if name else ""
            assert CANARY not in text.replace(json.loads(shown)[-1] if shown else "\0", ""), (name, path)
    for place in ("log", "mail"):
        for file in (stage.node.directory / place).rglob("*"):
            assert CANARY.encode() not in file.read_bytes(), file


def test_a_fault_in_a_run_tells_nothing(stage: Stage) -> None:
    """A command that ends by its own hand with data in its exit code, or is killed, shows success or not."""
    seen = []
    for script in ("exit 7", "exit 77", "kill -9 $$"):
        done = work.run(stage.node, stage.compute, ["sh", "-c", script])
        state = {key: value for key, value in done["state"].items() if key not in _OWN}
        seen.append(state)
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["end"] == "exited" and seen[0]["success"] is False


_OWN = {"run_id", "command", "queued", "started", "ended", "result_key"}
