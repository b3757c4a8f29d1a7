"""When a permit ends, bytes end within a second: in mounts, in runs, in downloads."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.e2e import work
from valv.assemble import demo_data
from valv.errors import RefusedFault
from valv.formats import crypt4gh

READ_AND_NOTE = """
import errno, glob, os, time
path = glob.glob("/data/*/case.bin")[0]
last, kind = 0.0, ""
while True:
    try:
        with open(path, "rb") as file:
            file.read(4096)
        last = time.time()
    except OSError as error:
        kind = errno.errorcode[error.errno]
    with open("/outbox/new.txt", "w") as out:
        out.write(f"{last:.3f} {kind}")
    os.rename("/outbox/new.txt", "/outbox/seen.txt")
    if kind:
        time.sleep(60)
    time.sleep(0.01)
"""


def test_a_reading_run_is_cut(running_node: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "case.bin").write_bytes(secrets.token_bytes(200_000))
    name = work.fresh("cut")
    work.deposit(running_node.person("carin"), folder, name, "identifiable", ["HMB"])
    permit = work.permit(running_node, name, "compute")
    rikard, dagny, kerttu = (running_node.person(who) for who in ("rikard", "dagny", "kerttu"))
    ident = rikard.post("/runs", {"permit": permit, "command": ["python3", "-c", READ_AND_NOTE]})["run_id"]
    rikard.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("running",))
    time.sleep(2.0)
    dagny.post(f"/permits/{permit}/revocation", {"reason": "A test of the end."})
    revoked = time.time()
    done = rikard.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("collected",))
    assert done["state"]["end"] == "revoked"
    rikard.post(f"/releases/{done['release_id']}/request", {"context": "Times only."})
    page = kerttu.get(f"/releases/{done['release_id']}")
    seen = next(file for file in page["files"] if file["path"] == "seen.txt")
    text = kerttu.content(f"/releases/{done['release_id']}/files/{seen['file_id']}/inspection").decode()
    last, _, kind = text.partition(" ")
    assert float(last) <= revoked + 1.0, f"a byte was read {float(last) - revoked:.2f} s after the revocation"
    assert kind in ("", "EACCES", "ENOTCONN"), kind
    assert rikard.refused("POST", "/runs", {"permit": permit, "command": ["true"]}) == "permit_ended"


def test_a_download_is_cut(running_node: Any, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    demo_data.variants(folder, samples=5, sites=20)
    (folder / "big.bin").write_bytes(bytes(96 << 20))
    name = work.fresh("stream")
    work.deposit(running_node.person("carin"), folder, name, "anonymised", ["GRU"])
    work.confirm_anonymous(running_node, name)
    permit = work.permit(running_node, name, "download", ("GRU",))
    rikard, dagny = running_node.person("rikard"), running_node.person("dagny")
    key = rikard.add_key(crypt4gh.generate_keypair(), "cut")
    big = next(file for file in rikard.get(f"/permits/{permit}/files") if file["path"] == "big.bin")
    url, headers = f"{running_node.url}/api/v1/permits/{permit}/files/{big['file_id']}", dict(rikard._http.headers)
    got, cut = 0, threading.Event()
    times: list[float] = []
    try:
        with httpx.stream("GET", url, params={"key": key}, headers=headers, timeout=30) as answer:
            assert answer.status_code == 200
            for chunk in answer.iter_raw(1 << 16):
                got += len(chunk)
                times.append(time.monotonic())
                if got > 1 << 20 and not cut.is_set():
                    dagny.post(f"/permits/{permit}/revocation", {"reason": "A test of the end."})
                    cut.set()
                    revoked = time.monotonic()
                time.sleep(0.02)
    except httpx.HTTPError:
        pass
    assert cut.is_set()
    assert got < big["size"], "the whole file came although the permit had ended"
    # What lies in socket buffers still arrives; nothing is sent later than a second after the end.
    assert got < 64 << 20
    assert times[-1] >= revoked
    try:
        rikard.content(f"/permits/{permit}/files/{big['file_id']}", key=key)
        raise AssertionError("a new download began")
    except RefusedFault as fault:
        assert fault.refusal.code == "permit_ended"
