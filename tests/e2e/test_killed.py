"""`kill -9` of the node, or of one of its processes, at random moments of the loop: what was acknowledged is there
afterwards, and nothing happened twice."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import secrets
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import killing
from tests.conftest import free_port, node_missing
from tests.killing import PATIENCE, Victim
from tests.killing import again as _again
from valv.assemble import demo
from valv.assemble.demo import COMMITTEE
from valv.assemble.demo_client import Person
from valv.assemble.node import build
from valv.config import Config

KILLS = 12
KILLS_LONG = 50


def test_nothing_acknowledged_is_lost_and_nothing_happens_twice(tmp_path: Path, long: bool) -> None:
    if node_missing():
        pytest.skip(node_missing())
    seed = int(os.environ.get(killing.SEED) or secrets.randbelow(1 << 30))
    dice = random.Random(seed)
    directory = tmp_path / "node"
    config = demo.prepare(directory, free_port())
    victim = Victim(directory, config, dice)
    victim.start()
    people = _log_in(directory, config)
    wanted = KILLS_LONG if long else KILLS
    done: list[dict[str, str]] = []
    faults: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                done.append(_loop(people, ended))
        except BaseException as fault:
            faults.append(fault)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while victim.kills < wanted and worker.is_alive():
            time.sleep(dice.uniform(0.05, 3.0))
            victim.kill()
        ended.set()
        worker.join(3 * PATIENCE)
        assert not worker.is_alive(), f"the loop hangs (seed {seed})"
    finally:
        ended.set()
        victim.stop()
    assert not faults, f"seed {seed}: " + "".join(traceback.format_exception(faults[0]))
    assert victim.kills == wanted
    assert done
    _all_there(config, done)
    killing.looked_over(directory)


def _log_in(directory: Path, config: Config) -> dict[str, Person]:
    kept = json.loads(demo.accounts_file(directory).read_text("utf-8"))
    return {
        name: Person(config.public_url, name, kept[name]["password"], kept[name]["totp"])
        for name in ("carin", "rikard", "dagny", "kerttu")
    }


def _loop(people: dict[str, Person], ended: threading.Event) -> dict[str, str]:
    """The loop once, every order under a key of its own. Returns what was acknowledged."""
    carin, rikard, dagny, kerttu = (people[name] for name in ("carin", "rikard", "dagny", "kerttu"))
    name = f"killed-{secrets.token_hex(4)}"
    said: dict[str, str] = {"dataset": name}

    def order(person: Person, path: str, body: Any = None) -> Any:
        key = secrets.token_hex(8)
        return _again(lambda: person.post(path, body, key=key))

    about = {"dataset": name, "class": "identifiable", "consent": ["HMB"], "committee": COMMITTEE, "title": name}
    said["deposit"] = order(carin, "/deposits", about)["deposit_id"]
    for number in range(4):
        content = secrets.token_bytes(150_000)
        said[f"file-{number}"] = hashlib.sha256(content).hexdigest()
        _again(functools.partial(_send, carin, f"/api/v1/deposits/{said['deposit']}/files/part-{number}.bin", content))
    order(carin, f"/deposits/{said['deposit']}/submission", {"expected": [f"part-{n}.bin" for n in range(4)]})
    _until(lambda: carin.get(f"/deposits/{said['deposit']}")["state"]["phase"], ("published",))
    form = {
        "title": "x",
        "datasets": [name],
        "purpose": ["HMB", "IRB"],
        "country": "SE",
        "days": 5,
        "licence": True,
        "mode": "compute",
    }
    said["access"] = order(rikard, "/applications", form)["access_id"]
    order(rikard, f"/applications/{said['access']}/submission")
    said["permit"] = order(dagny, f"/applications/{said['access']}/approval", {"reason": "Fits."})["permit_id"]
    command = ["sh", "-c", f"sha256sum /data/{name}/* > /outbox/sums.txt"]
    for _ in range(20):
        said["run"] = order(rikard, "/runs", {"permit": said["permit"], "command": command})["run_id"]
        _until(lambda: rikard.get(f"/runs/{said['run']}")["state"]["phase"], ("collected", "cancelled"))
        page = _again(lambda: rikard.get(f"/runs/{said['run']}"))
        if page["state"]["success"]:
            break  # a run that a kill took with it is said to be lost, and is queued anew
    else:
        raise AssertionError("no run came to its end")
    said["release"] = page["release_id"]
    order(rikard, f"/releases/{said['release']}/request", {"context": "Checksums."})
    page = _again(lambda: kerttu.get(f"/releases/{said['release']}"))
    for file in page["files"]:
        body = {"approve": file["path"] == "sums.txt", "reason": "Seen.", "manifest": page["state"]["manifest"]}
        order(kerttu, f"/releases/{said['release']}/files/{file['file_id']}/decision", body)
    sums = next(file for file in page["files"] if file["path"] == "sums.txt")
    content = _again(lambda: rikard.content(f"/releases/{said['release']}/files/{sums['file_id']}")).decode()
    for number in range(4):
        assert said[f"file-{number}"] in content
    return said


def _send(person: Person, url: str, content: bytes) -> None:
    digest = b64encode(hashlib.sha256(content).digest()).decode()
    person._answer(person._http.put(url, content=content, headers={"Content-Digest": f"sha-256=:{digest}:"}))


def _until(phase: Callable[[], str], good: tuple[str, ...]) -> None:
    end = time.monotonic() + PATIENCE
    while (found := _again(phase)) not in good:
        assert found not in ("failed", "cancelled"), found
        assert time.monotonic() < end, f"still {found}"
        time.sleep(0.1)


def _all_there(config: Config, done: list[dict[str, str]]) -> None:
    """Look into the stopped node itself."""
    from valv.app import streams
    from valv.db.database import Database

    node = build(config).node
    assert isinstance(node.records, Database)
    report = node.records.verify()
    assert report.ok, report.fault
    with node.records.reading() as unit:
        for snapshot in (s for kind in streams.PROCESSES for s in unit.find(kind, limit=100_000)):
            process = streams.PROCESSES[snapshot.kind]
            assert process.fold(unit.events(snapshot.stream)) == process.decode(snapshot), snapshot.stream
        for said in done:
            row = unit.rows("dataset", {"name": said["dataset"]})[0]
            dataset = streams.need(unit, streams.DATASET, row["id"])[0]
            assert [version.deposit_id for version in dataset.versions] == [said["deposit"]]
            files = unit.rows("file", {"deposit": said["deposit"]}, order="path")
            assert [file["sha256"].hex() for file in files] == [said[f"file-{n}"] for n in range(4)]
            assert streams.need(unit, streams.ACCESS, said["access"])[0].phase == "approved"
            permits = streams.find(unit, streams.PERMIT, link=("dataset", row["id"]))
            assert [permit.permit_id for permit in permits] == [said["permit"]]
            assert streams.need(unit, streams.RELEASE, said["release"])[0].phase == "released"
            tags = [event.tag for event in unit.events(f"run/{said['run']}")]
            assert tags.count("run.queued") == tags.count("run.ended") == tags.count("run.collected") == 1
        kept = {f["body"] for f in unit.rows("file")} | {f["body"] for f in unit.rows("release_file")}
    names = set(node.storage.names())
    missing = {name for body in kept for name in (body, f"{body}.seal")} - names
    assert not missing, missing
