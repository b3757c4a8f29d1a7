"""A node with two stores, a folder and a real S3 server: what is damaged in one is read from the other, by processes
that have no network and no credentials, and the damage is noted and not hidden."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.conftest import RunningNode, free_port, node_missing
from tests.e2e import work
from valv import config as configuration
from valv.assemble import demo
from valv.assemble.doctor import doctor
from valv.formats import ledger
from valv.formats.crypt4gh import CIPHER_SEGMENT
from valv.formats.seal import sidecar

FILES = {name: random.Random(name).randbytes(size) for name, size in (("a", 3 << 20), ("b", 70_000), ("c", 1 << 20))}
DIGESTS = """
import hashlib, json, pathlib
files = [path for path in pathlib.Path("/data").rglob("*") if path.is_file()]
found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
pathlib.Path("/outbox/digests.json").write_text(json.dumps(found))
"""
WAIT = """
import pathlib, time
for path in pathlib.Path("/data").rglob("*"):
    if path.is_file():
        path.read_bytes()
time.sleep(60)
"""
NOW = "SELECT file.path, file.body FROM file JOIN dataset ON dataset.id = file.dataset WHERE dataset.name = ?"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def node(ceph: Any) -> Iterator[RunningNode]:
    """`second`: in a bucket, further away than `main`."""
    with started(ceph, "[stores.second]\ndistance = 1") as made:
        yield made


@pytest.fixture
def far_node(ceph: Any) -> Iterator[RunningNode]:
    """A node whose only store is a bucket: all that confined processes read and write goes through the worker."""
    with started(ceph, "[storage]") as made:
        yield made


@contextlib.contextmanager
def started(ceph: Any, section: str) -> Iterator[RunningNode]:
    """`section`: head of the store in the bucket."""
    why = node_missing()
    if why:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="valv-node-") as name:
        directory = Path(name)
        demo.prepare(directory, free_port())
        credentials = directory / "second.credentials"
        shutil.copyfile(ceph.account.file, credentials)
        credentials.chmod(0o600)
        with (directory / "valv.toml").open("a") as toml:
            toml.write(
                f'\n{section}\nbackend = "s3"\nurl = "{ceph.url}"\nbucket = "{ceph.bucket()}"\npath = "valv"\n'
                'region = "us-east-1"\ncredentials = "second.credentials"\n'
            )
        accounts = json.loads(demo.accounts_file(directory).read_text("utf-8"))
        with demo.running(directory, configuration.load(directory, secrets=True)) as url:
            yield RunningNode(url, directory, accounts)


def rows(node: RunningNode, query: str, *values: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(node.directory / "db" / "valv.sqlite", timeout=30)) as database:
        return database.execute(query, values).fetchall()


def until(check: Callable[[], bool], node: RunningNode) -> None:
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end, node.last_words()
        time.sleep(0.2)


def published(node: RunningNode, folder: Path, stem: str) -> tuple[str, dict[str, str]]:
    """A dataset with a copy of each file in both stores: its name, and the files' bodies."""
    name, bodies = deposited(node, folder, stem)
    node.person("carin").post(f"/storage/datasets/{name}/rule", {"rule": "copies = 2"})
    until(lambda: all(states(node, body) == {"main": "whole", "second": "whole"} for body in bodies.values()), node)
    return name, bodies


def deposited(node: RunningNode, folder: Path, stem: str) -> tuple[str, dict[str, str]]:
    folder.mkdir()
    for path, content in FILES.items():
        (folder / path).write_bytes(content)
    name = work.fresh(stem)
    work.deposit(node.person("carin"), folder, name, "identifiable", ["HMB", "GS=SE"])
    bodies = {path: body for path, body in rows(node, NOW, name) if path in FILES}
    assert set(bodies) == set(FILES)
    return name, bodies


def states(node: RunningNode, body: str) -> dict[str, str]:
    return dict(rows(node, "SELECT store, state FROM copy WHERE body = ?", body))


def stored(node: RunningNode, name: str) -> Path:
    (found,) = (node.directory / "store" / "bodies").glob(f"*/{name}")
    return found


def alter(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def digests(node: RunningNode, permit: str) -> dict[str, str]:
    done = work.run(node, permit, ["python3", "-c", DIGESTS])
    assert done["state"]["success"], done
    return dict(json.loads(work.release(node, done["state"] | done, {"digests.json"})["digests.json"]))


EXPECTED = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def test_a_run_reads_what_holds_and_the_damage_is_noted(node: RunningNode, tmp_path: Path) -> None:
    # The first suspicion makes the node look at all of its copies, and mend them; after that it waits ten minutes.
    name, bodies = published(node, tmp_path / "first", "mended")
    body = stored(node, bodies["b"])
    content = body.read_bytes()
    body.unlink()
    assert digests(node, work.permit(node, name, "compute")).items() >= EXPECTED.items()
    assert f"the copy of {bodies['b']} in main is suspect: Not found" in (node.directory / "log/worker.log").read_text()
    until(lambda: rows(node, "SELECT phase FROM snapshot WHERE kind = 'fixity'") == [("done",)], node)
    assert states(node, bodies["b"]) == {"main": "whole", "second": "whole"}
    assert body.read_bytes() == content

    name, bodies = published(node, tmp_path / "second", "copied")
    permit = work.permit(node, name, "compute")
    alter(stored(node, bodies["a"]), 20 * CIPHER_SEGMENT + 500)
    stored(node, bodies["b"]).unlink()
    alter(stored(node, sidecar(bodies["c"])), 3)
    assert digests(node, permit).items() >= EXPECTED.items()
    until(lambda: all(states(node, body)["main"] == "suspect" for body in bodies.values()), node)
    assert all(states(node, body)["second"] == "whole" for body in bodies.values())
    told = dict(rows(node, "SELECT body, fault FROM copy WHERE state = 'suspect'"))
    assert "not found" in told[bodies["b"]].lower()
    assert "sealed" in told[bodies["a"]] and "sealed" in told[bodies["c"]]
    _nobody_lies(node, bodies)
    assert digests(node, permit).items() >= EXPECTED.items()  # and again


def _nobody_lies(node: RunningNode, bodies: dict[str, str]) -> None:
    audun = node.person("audun")
    end = time.monotonic() + 20
    proof = audun.get("/ledger/proof")
    while proof["checkpoint_size"] < proof["size"] and time.monotonic() < end:
        time.sleep(0.3)
        proof = audun.get("/ledger/proof")
    lines = audun.content("/ledger/export", size=proof["checkpoint_size"]).splitlines()
    assert ledger.verify_export(lines, proof["checkpoint"], proof["log_key"]).ok
    said = io.StringIO()
    doctor(node.directory, Console(file=said, width=500))
    text = said.getvalue()
    assert "✓ every file is in the store" in text, text
    assert "✓ the ledger holds" in text, text
    assert f"{len(bodies)} copies in main are suspect" in text, text


def test_files_are_encrypted_anew_from_what_holds(node: RunningNode, tmp_path: Path) -> None:
    name, bodies = published(node, tmp_path / "in", "rekeyed")
    permit = work.permit(node, name, "compute")
    alter(stored(node, bodies["a"]), 20 * CIPHER_SEGMENT + 500)
    stored(node, sidecar(bodies["b"])).unlink()
    rekeyed(node, name, bodies)
    assert digests(node, permit).items() >= EXPECTED.items()


def rekeyed(node: RunningNode, name: str, bodies: dict[str, str]) -> None:
    """All files have other bodies."""
    node.person("carin").post("/rotations", {"dataset": name, "aim": "rekey", "reason": "A test."})

    def renewed() -> bool:
        now = rows(node, NOW, name)
        return all(bodies[path] != body for path, body in now if path in bodies)

    until(renewed, node)


def test_a_node_without_any_folder_of_bodies(far_node: RunningNode, tmp_path: Path) -> None:
    name, bodies = deposited(far_node, tmp_path / "in", "far")
    permit = work.permit(far_node, name, "compute")
    assert digests(far_node, permit).items() >= EXPECTED.items()
    rekeyed(far_node, name, bodies)
    assert digests(far_node, permit).items() >= EXPECTED.items()
    assert not [path for path in (far_node.directory / "store").rglob("*") if path.is_file()]


def test_who_reads_sees_neither_credentials_nor_copies_of_them(node: RunningNode, tmp_path: Path) -> None:
    name, _ = published(node, tmp_path / "in", "hidden")
    permit = work.permit(node, name, "compute")
    rikard = node.person("rikard")
    ident = rikard.post("/runs", {"permit": permit, "command": ["python3", "-c", WAIT]})["run_id"]
    rikard.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("running",), ("collected", "cancelled"))
    until(lambda: bool(_processes("valv.assemble.mount", node)), node)
    config = configuration.load(node.directory)
    credentials = node.directory / "second.credentials"
    secret = credentials.read_bytes().split(b"aws_secret_access_key")[1].split()[1]
    seen: dict[str, list[bool]] = {}
    for module in ("mount", "keyd", "launcher", "worker", "serve"):
        for process in _processes(f"valv.assemble.{module}", node):
            root = process / "root"
            inside = Path(f"{root}{credentials}")
            seen.setdefault(module, []).append(inside.exists() and secret in inside.read_bytes())
            copies = Path(f"{root}{config.runtime}") / "secrets"
            assert not copies.exists() or not list(copies.iterdir()), module
            assert secret not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    assert all(seen["worker"]) and all(seen["serve"])
    assert not any(seen["mount"] + seen["keyd"] + seen["launcher"])
    rikard.post(f"/runs/{ident}/stop")


def _processes(module: str, node: RunningNode) -> list[Path]:
    """The Python processes of this module and node, not what confines them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if "python" in Path(words[0].decode()).name and {module.encode(), str(node.directory).encode()} <= {*words}:
                found.append(process)
    return found
