"""`kill -9` of the node, or of one of its processes, at random moments of resumable uploads: what was acknowledged is
there afterwards, nothing is half visible, and nothing is left over."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import killing
from tests.conftest import free_port, node_missing
from tests.e2e.test_killed import _log_in
from tests.e2e.test_uploads import MEDIA, TUS, announced
from tests.killing import PATIENCE, Victim
from tests.killing import again as _again
from valv.assemble import demo
from valv.assemble.demo import COMMITTEE

KILLS = 10
KILLS_LONG = 60


def test_nothing_acknowledged_is_lost(tmp_path: Path, long: bool) -> None:
    if node_missing():
        pytest.skip(node_missing())
    seed = int(os.environ.get(killing.SEED) or secrets.randbelow(1 << 30))
    dice = random.Random(seed)
    directory = tmp_path / "node"
    config = demo.prepare(directory, free_port())
    victim = Victim(directory, config, dice)
    victim.start()
    carin = _log_in(directory, config)["carin"]
    about = {"dataset": "killed-uploads", "class": "identifiable", "consent": ["HMB"], "committee": COMMITTEE}
    deposit = _again(lambda: carin.post("/deposits", about | {"title": "x"}, key="once"))["deposit_id"]
    wanted = KILLS_LONG if long else KILLS
    sent: dict[str, str] = {}
    faults: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            while not ended.is_set():
                name = f"{len(sent)}.bin"
                sent[name] = _upload(carin, str(deposit), name, random.Random(f"{seed}{name}"))
        except BaseException as fault:
            faults.append(fault)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        while victim.kills < wanted and worker.is_alive():
            time.sleep(dice.uniform(0.05, 2.0))
            victim.kill()
        ended.set()
        worker.join(2 * PATIENCE)
        assert not worker.is_alive(), f"the uploads hang (seed {seed})"
        assert not faults, f"seed {seed}: " + "".join(traceback.format_exception(faults[0]))
        assert victim.kills == wanted and sent
        _joined(carin, str(deposit))
        page = _again(lambda: carin.get(f"/deposits/{deposit}"))
        assert {file["path"]: file["sha256"] for file in page["files"]} == sent
    finally:
        ended.set()
        victim.stop()
    killing.looked_over(directory)


def _upload(person: Any, deposit: str, name: str, dice: random.Random) -> str:
    """Send one file in pieces. At each moment the node has what it acknowledged."""
    content = dice.randbytes(dice.choice((1, 70_000, 3_000_000)))
    address = _again(lambda: _good(lambda: announced(person, deposit, name, len(content))))
    known = 0
    end = time.monotonic() + PATIENCE
    while known < len(content):
        assert time.monotonic() < end, "no progress"
        try:
            answered = person._http.head(address, headers=TUS)
            if answered.status_code >= 500:
                time.sleep(0.1)
                continue
            assert answered.status_code == 200, answered.status_code
            at = int(answered.headers["Upload-Offset"])
            assert at >= known, f"{known} bytes were acknowledged, {at} are there"
            known = at
            piece = content[at : at + dice.randrange(1, 1_000_000)]
            if not piece:
                break
            headers = TUS | MEDIA | {"Upload-Offset": str(at)}
            answered = person._http.patch(address, headers=headers, content=piece)
            assert answered.status_code in (204, 409, 423) or answered.status_code >= 500, answered.text
            if answered.status_code == 204:
                known = int(answered.headers["Upload-Offset"])
                assert known == at + len(piece)
                end = time.monotonic() + PATIENCE
        except httpx.HTTPError:
            time.sleep(0.1)
    return hashlib.sha256(content).hexdigest()


def _good(step: Any) -> Any:
    """An answer that tells of a node on its way up is as good as none."""
    try:
        return step()
    except AssertionError as fault:
        raise httpx.ReadError(str(fault)) from None


def _joined(person: Any, deposit: str) -> None:
    end = time.monotonic() + PATIENCE
    while any(one["state"] != "done" for one in _again(lambda: person.get(f"/deposits/{deposit}/uploads"))):
        assert time.monotonic() < end, "some files are not joined"
        time.sleep(0.2)
