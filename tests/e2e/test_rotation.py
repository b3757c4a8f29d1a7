"""Rotation and rekeying of a node that really runs: its worker, its key holder and the whole of it are killed at random
moments, and runs and downloads go on meanwhile."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.conftest import RunningNode, free_port, node_missing
from tests.e2e import work
from tests.killing import PATIENCE, Victim
from tests.killing import again as _again
from valv.app import inspection
from valv.app.rotation import GOING
from valv.assemble import demo
from valv.assemble.node import build
from valv.config import Config
from valv.db.database import Database
from valv.errors import KeyFault
from valv.formats import crypt4gh, keyfile
from valv.formats.crypt4gh import CIPHER_SEGMENT, KeyPair
from valv.keys.file import FileKeyring
from valv.keys.folder import Folder
from valv.ports.compute import MOST_REKEYED
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.reader import open_reader

KILLS = 10
KILLS_LONG = 100
FILES = 12
ROW = "SELECT path, header, pair, body, size, seal_root, tree_root, sha256, key_id, sent_sha256 FROM file"


class Rotating(Victim):
    """Kills the worker, the key holder or all of the node. A process that dies often is started again later and later,
    so that the whole of it must go now and then."""

    def kill(self) -> None:
        assert self._process is not None
        self.kills += 1
        if self.kills % 4 == 0:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.at_rest()
            self.start()
            return
        wanted = self._dice.choice([b"valv.assemble.worker", b"valv.assemble.keyd"])
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)

    def at_rest(self) -> None:
        """The keys and records as the kill left them: each header opens with exactly one of the key's pairs."""
        with_keys(self._directory, self._config, exactly_one)


def with_keys(directory: Path, config: Config, check: Any) -> None:
    copied = directory.with_name(f"copy-{secrets.token_hex(4)}")
    shutil.copytree(directory / "keys", copied / "keys")
    shutil.copytree(directory / "db", copied / "db")
    passphrase = config.path(config.keys.passphrase_file).read_bytes().rstrip(b"\n")
    folder = Folder(copied / "keys", FileKeyring(config.keys), passphrase)
    try:
        with contextlib.closing(sqlite3.connect(copied / "db" / "valv.sqlite")) as database:
            database.row_factory = sqlite3.Row
            check(folder, config, database.execute(ROW).fetchall())
    finally:
        folder.close()
        shutil.rmtree(copied)


def exactly_one(folder: Folder, config: Config, rows: list[sqlite3.Row]) -> None:
    storage = LocalStorage(config.path(config.storage.path), Place("SE", "test"))
    assert len(rows) == FILES + 1
    for row in rows:
        record, privates = folder.store.unlock(row["key_id"])
        numbers = [pair.number for pair in reversed(record.pairs)]
        opening = [(number, key) for number, key in zip(numbers, privates, strict=True) if opens(row["header"], key)]
        assert [number for number, _ in opening] == [row["pair"]], (row["path"], numbers)
        reader = open_reader(
            storage.open,
            row["body"],
            row["header"],
            opening[0][1],
            size=row["size"],
            seal_root=row["seal_root"],
            tree_root=row["tree_root"],
        )
        try:
            assert hashlib.sha256(b"".join(reader.chunks())).digest() == row["sha256"], row["path"]
        finally:
            reader.close()


def opens(header: bytes, private: bytes) -> bool:
    try:
        return len(crypt4gh.open_header(header, [private]).data_keys) == 1
    except KeyFault:
        return False


def decrypted(sealed: bytes, pair: KeyPair) -> bytes:
    length = crypt4gh.header_length(sealed)
    assert length
    (key,) = crypt4gh.open_header(sealed[:length], [pair.private]).data_keys
    parts = (sealed[at : at + CIPHER_SEGMENT] for at in range(length, len(sealed), CIPHER_SEGMENT))
    return b"".join(ChaCha20Poly1305(key).decrypt(part[:12], part[12:], None) for part in parts)


def fill(folder: Path, node_key: bytes) -> dict[str, bytes]:
    """Files for a deposit, one of them encrypted elsewhere. Returns what they are when they are plain."""
    folder.mkdir()
    plain = {f"part-{number}.bin": os.urandom(100_000 * (number % 3) + number) for number in range(FILES)}
    for path, content in plain.items():
        (folder / path).write_bytes(content)
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = nonce + ChaCha20Poly1305(key).encrypt(nonce, b"from elsewhere", None)
    (folder / "sent.c4gh").write_bytes(crypt4gh.build_header(key, [node_key]) + sealed)
    return plain | {"sent": b"from elsewhere"}


@pytest.mark.timeout(3600)
def test_killed_at_random_moments(tmp_path: Path, long: bool) -> None:
    if node_missing():
        pytest.skip(node_missing())
    seed = secrets.randbelow(1 << 30)
    dice = random.Random(seed)
    directory = tmp_path / "node"
    config = demo.prepare(directory, free_port())
    (directory / "log").mkdir(exist_ok=True)
    victim = Rotating(directory, config, dice)
    victim.start()
    try:
        node = RunningNode(config.public_url, directory, json.loads(demo.accounts_file(directory).read_text("utf-8")))
        plain, permit_id, key, pair = stored(node, tmp_path)
        olof, done = node.person("olof"), 0
        wanted = KILLS_LONG if long else KILLS
        going = ""
        while victim.kills < wanted:
            if not going:
                body = {
                    "dataset": dataset_of(node, permit_id),
                    "aim": dice.choice(["rotate", "rekey"]),
                    "reason": "Due.",
                }
                order = functools.partial(olof.post, "/rotations", body, secrets.token_hex(8))
                (going,) = _again(order)["rotation_ids"]
            time.sleep(dice.uniform(0.0, 0.8))
            victim.kill()
            readable(node, permit_id, key, pair, plain)
            state = _again(lambda: olof.get(f"/rotations/{going}"))["state"]  # noqa: B023
            assert state["phase"] in (*GOING, "done"), f"seed {seed}: {state}"
            if state["phase"] == "done":
                going, done = "", done + 1
        end = time.monotonic() + PATIENCE
        while going and _again(lambda: olof.get(f"/rotations/{going}"))["state"]["phase"] != "done":
            assert time.monotonic() < end, f"seed {seed}: the work was not taken up again"
            time.sleep(0.2)
        assert done or not going
        readable(node, permit_id, key, pair, plain)
    except BaseException:
        print(f"seed {seed}")
        raise
    finally:
        victim.stop()
    with_keys(directory, config, exactly_one)
    with_keys(directory, config, one_pair_is_left)
    rest = build(config).node
    assert list(inspection.manifests(rest)) == [] and list(inspection.snapshots(rest)) == []
    assert inspection.bodies(rest)[0] == set()
    assert isinstance(rest.records, Database) and rest.records.verify().ok


def one_pair_is_left(folder: Folder, _config: Config, rows: list[sqlite3.Row]) -> None:
    assert {len(folder.store.unlock(row["key_id"])[0].pairs) for row in rows} == {1}


def stored(node: RunningNode, tmp_path: Path) -> tuple[dict[str, bytes], str, str, KeyPair]:
    """An anonymised dataset with a permit to download it."""
    name = work.fresh("rotated")
    node_key = keyfile.read_public(node.person("rikard").get("/node")["node_key"])
    plain = fill(tmp_path / "in", node_key)
    work.deposit(node.person("carin"), tmp_path / "in", name, "anonymised", ["GRU"])
    work.confirm_anonymous(node, name)
    permit_id = work.permit(node, name, "download", ("GRU",))
    pair = crypt4gh.generate_keypair()
    return plain, permit_id, node.person("rikard").add_key(pair, "test"), pair


def dataset_of(node: RunningNode, permit_id: str) -> str:
    return str(_again(lambda: node.person("rikard").get(f"/permits/{permit_id}"))["datasets"][0]["name"])


def readable(node: RunningNode, permit_id: str, key: str, pair: KeyPair, plain: dict[str, bytes]) -> None:
    """Every file comes as what it was."""
    rikard = node.person("rikard")
    listed = _again(lambda: rikard.get(f"/permits/{permit_id}/files"))
    assert {file["path"] for file in listed} == set(plain)
    for file in listed:
        url = f"/permits/{permit_id}/files/{file['file_id']}"
        sealed = _again(functools.partial(rikard.content, url, key=key))
        assert decrypted(sealed, pair) == plain[file["path"]], file["path"]


# --- many files ---


def rekeying(directory: Path) -> set[int]:
    """Processes of this node that encrypt anew, without what confines them. Each lives for tenths of a second at
    least, so that none is missed by who looks often."""
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            ours = b"valv.assemble.rekey" in words and str(directory).encode() in words
            if ours and words[0].endswith(Path(sys.executable).name.encode()):
                found.add(int(entry.name))
    return found


@pytest.mark.timeout(600)
def test_a_thousand_small_files_take_a_few_processes(running_node: Any, tmp_path: Path) -> None:
    olof = running_node.person("olof")
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(1000):
        (folder / f"{number:04}").write_bytes(os.urandom(number))
    whole = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()
    name = work.fresh("many")
    work.deposit(running_node.person("carin"), folder, name, "identifiable", ["HMB"])
    permit_id = work.permit(running_node, name, "compute")
    (ident,) = olof.post("/rotations", {"dataset": name, "aim": "rekey", "reason": "A test."})["rotation_ids"]
    seen: set[int] = set()
    end = time.monotonic() + 300
    asked = 0.0
    state: dict[str, Any] = {}
    while state.get("phase") != "done":
        seen |= rekeying(running_node.directory)
        if time.monotonic() > asked + 0.5:
            asked, state = time.monotonic(), olof.get(f"/rotations/{ident}")["state"]
        assert state["phase"] in (*GOING, "done") and time.monotonic() < end
        time.sleep(0.01)
    assert state["bodies"] == 1000
    assert 1 <= len(seen) <= -(-1000 // MOST_REKEYED)
    done = work.run(running_node, permit_id, ["sh", "-c", f"cat /data/{name}/* | sha256sum > /outbox/sum.txt"])
    assert whole in work.release(running_node, done, {"sum.txt"})["sum.txt"].decode()


# --- readers ---

READ = """
import glob, hashlib, os, sys, time
paths = sorted(glob.glob("/data/*/*"))
first = open(paths[0], "rb", buffering=0)
sums = {}
half = first.read(70_000)
open("/outbox/begun", "w").close()
for path in paths[1:]:
    time.sleep(float(sys.argv[1]))
    sums[path] = hashlib.sha256(open(path, "rb").read()).hexdigest()
while chunk := first.read(70_000):
    half += chunk
sums[paths[0]] = hashlib.sha256(half).hexdigest()
with open("/outbox/sums.txt", "w") as file:
    file.write("".join(f"{sums[path]} {os.path.basename(path)}\\n" for path in paths))
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("aim", ["rotate", "rekey"])
def test_a_run_reads_on(running_node: Any, tmp_path: Path, aim: str, long: bool) -> None:
    """It opens its first file before, the others one by one while the rotation goes on and after; in the long form also
    after bodies that were replaced would have been deleted."""
    rikard, olof = running_node.person("rikard"), running_node.person("olof")
    folder = tmp_path / "in"
    plain = fill(folder, keyfile.read_public(rikard.get("/node")["node_key"]))
    (folder / "part-0.bin").write_bytes(content := os.urandom(400_000))
    plain["part-0.bin"] = content
    name = work.fresh("reading")
    work.deposit(running_node.person("carin"), folder, name, "identifiable", ["HMB"])
    permit_id = work.permit(running_node, name, "compute")
    seconds = 90 if long else 12
    command = ["python3", "-c", READ, str(seconds / FILES)]
    run_id = rikard.post("/runs", {"permit": permit_id, "command": command})["run_id"]
    rikard.wait(f"/runs/{run_id}", lambda found: found["state"]["phase"], ("running",))
    time.sleep(2.0)
    body = {"dataset": name, "aim": aim, "reason": "A test."}
    (ident,) = olof.post("/rotations", body)["rotation_ids"]
    state = olof.wait(f"/rotations/{ident}", lambda found: found["state"]["phase"], ("retiring",))["state"]
    assert state["readers"] == [run_id]
    assert rikard.get(f"/runs/{run_id}")["state"]["phase"] == "running", "it ended too early to show anything"
    done = rikard.wait(f"/runs/{run_id}", lambda found: found["state"]["phase"], ("collected", "cancelled"))
    assert done["state"]["success"], done
    sums = work.release(running_node, done, {"sums.txt"})["sums.txt"].decode()
    assert dict(reversed(line.split()) for line in sums.splitlines()) == {  # type: ignore[misc]
        path: hashlib.sha256(content).hexdigest() for path, content in plain.items()
    }
    olof.wait(f"/rotations/{ident}", lambda found: found["state"]["phase"], ("done",))
    again = work.run(running_node, permit_id, ["sh", "-c", f"cat /data/{name}/* | sha256sum > /outbox/sum.txt"])
    whole = hashlib.sha256(b"".join(plain[path] for path in sorted(plain))).hexdigest()
    assert whole in work.release(running_node, again, {"sum.txt"})["sum.txt"].decode()


def test_a_download_comes_to_its_end_and_a_broken_one_begins_anew(running_node: Any, tmp_path: Path) -> None:
    rikard, olof = running_node.person("rikard"), running_node.person("olof")
    folder = tmp_path / "in"
    folder.mkdir()
    content = os.urandom(24 << 20)
    (folder / "large.bin").write_bytes(content)
    name = work.fresh("downloaded")
    work.deposit(running_node.person("carin"), folder, name, "anonymised", ["GRU"])
    work.confirm_anonymous(running_node, name)
    permit_id = work.permit(running_node, name, "download", ("GRU",))
    pair = crypt4gh.generate_keypair()
    key = rikard.add_key(pair, "test")
    (file,) = rikard.get(f"/permits/{permit_id}/files")
    url = f"{running_node.url}/api/v1/permits/{permit_id}/files/{file['file_id']}"
    headers = {"Authorization": rikard._http.headers["Authorization"]}
    with httpx.stream("GET", url, params={"key": key}, headers=headers, timeout=60) as answer:
        tag = answer.headers["etag"]
        pieces = answer.iter_raw(65536)
        begun = [next(pieces)]
        (ident,) = olof.post("/rotations", {"dataset": name, "aim": "rekey", "reason": "A test."})["rotation_ids"]
        olof.wait(f"/rotations/{ident}", lambda found: found["state"]["phase"], ("done",))
        assert decrypted(b"".join([*begun, *pieces]), pair) == content
    for more in ({}, {"If-Range": tag}):
        again = httpx.get(url, params={"key": key}, headers={**headers, "Range": "bytes=1000000-", **more}, timeout=60)
        assert again.status_code == 200 and again.headers["etag"] != tag
        assert decrypted(again.content, pair) == content
