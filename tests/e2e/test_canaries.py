"""Canaries: a run on identifiable data tries every outlet at once, and nothing of it reaches the researcher before the
release; and what is secret rests nowhere on the node in plain form."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e import work
from valv import config as configuration

# Every canary is made inside the sandbox from the data, so that the command line, which its owner may see, has none.
OUTLETS = r"""
import glob, hashlib, os, pathlib, sys, time
secret = pathlib.Path(glob.glob("/data/*/secret.txt")[0]).read_text().strip()
def canary(place):
    return "CNRY" + hashlib.sha256((secret + place).encode()).hexdigest()[:20]
print(canary("stdout"), flush=True)
print(canary("stderr"), file=sys.stderr, flush=True)
out = pathlib.Path("/outbox")
(out / (canary("name") + ".txt")).write_text(canary("content"))
(out / canary("folder")).mkdir()
(out / canary("folder") / "x").write_text("x")
os.symlink("/" + canary("target"), out / (canary("link") + ".lnk"))
os.mkfifo(out / (canary("fifo") + ".pipe"))
(out / "size.bin").write_bytes(bytes(100_000 + int(canary("size")[4:8], 16)))
try:
    os.utime(out / "size.bin", (1234567890, 1234567890))
except OSError:
    pass
try:
    import ctypes
    ctypes.CDLL(None).prctl(15, canary("process").encode()[:15], 0, 0, 0)
except Exception:
    pass
time.sleep(float(sys.argv[2]))
if sys.argv[1] == "raise":
    raise RuntimeError(canary("traceback"))
if sys.argv[1].startswith("-"):
    os.kill(os.getpid(), int(sys.argv[1][1:]))
sys.exit(int(sys.argv[1]))
"""
PLACES = ("stdout", "stderr", "name", "content", "folder", "target", "link", "fifo", "process", "traceback")
DATA = "DATACANARY" + secrets.token_hex(12)
TABLE = "TABLECANARY" + secrets.token_hex(12)
NAME = "NAMECANARY" + secrets.token_hex(12)


def canary(secret: str, place: str) -> str:
    return "CNRY" + hashlib.sha256((secret + place).encode()).hexdigest()[:20]


def forms(word: str) -> list[bytes]:
    """A word as it may stand somewhere: plain, hex, base64 (at each of the three shifts), UTF-16."""
    raw = word.encode()
    shifted = [base64.b64encode(b"\0" * shift + raw)[4 if shift else 0 : -4] for shift in range(3)]
    return [raw, raw.hex().encode(), *shifted, word.encode("utf-16-le"), raw[:15]]


@pytest.fixture(scope="module")
def planted(running_node: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """An identifiable dataset with canaries in it, a permit, and runs that let them out wherever they can."""
    folder = tmp_path_factory.mktemp("canaries")
    secret = secrets.token_hex(16)
    (folder / "secret.txt").write_text(secret)
    (folder / f"{NAME}.txt").write_text("a name of a file that may be a person's")
    (folder / "data.txt").write_text(f"{DATA}\n" * 5000)
    (folder / "participants.tsv").write_text(f"pseudonym\tconsent_group\n{TABLE}\tmain\n")
    name = work.fresh("canaries")
    work.deposit(running_node.person("carin"), folder, name, "identifiable", ["HMB"])
    permit = work.permit(running_node, name, "compute")
    ends = ("0", "7", "93", "raise", "-9", "-11")
    runs = {
        how: work.run(running_node, permit, ["python3", "-c", OUTLETS, how, "1.5" if how == "7" else "0"])
        for how in ends
    }
    yield {"secret": secret, "name": name, "permit": permit, "runs": runs}


def answers(node: Any, found: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """All that the researcher's account is told: every answer of the API and every page, with its headers."""
    http: httpx.Client = node.person("rikard")._http
    token = str(http.headers["Authorization"]).removeprefix("Bearer ")
    done = list(found["runs"].values())
    runs = [run["state"]["run_id"] for run in done]
    releases = [run["release_id"] for run in done]
    files = [
        (ident, file["file_id"]) for ident in releases for file in http.get(f"/api/v1/releases/{ident}").json()["files"]
    ]
    permit, name = found["permit"], found["name"]
    reads = ["/health", "/api/v1/node", "/api/v1/openapi.json", "/api/v1/account", "/api/v1/account/keys"]
    for part in ("datasets", "applications", "permits", "runs", "releases", "deposits"):
        reads.append(f"/api/v1/{part}")
    for part in ("", "/report", "/history"):
        reads.append(f"/api/v1/datasets/{name}{part}")
    reads += [f"/api/v1/permits/{permit}", f"/api/v1/permits/{permit}/files"]
    reads += [f"/api/v1/{part}" for part in ("ledger", "ledger?newest=true", "ledger/proof", "ledger/export")]
    for ident in runs:
        reads += [f"/api/v1/runs/{ident}", f"/runs/{ident}"]
    for ident in releases:
        reads += [f"/api/v1/releases/{ident}", f"/releases/{ident}"]
    for ident, file in files:
        reads += [f"/api/v1/releases/{ident}/files/{file}", f"/api/v1/releases/{ident}/files/{file}/inspection"]
        reads += [f"/releases/{ident}/files/{file}{end}" for end in ("", "/fetch", "/image")]
    reads += [f"/{part}" for part in ("", "catalogue", "account", "permits", "runs", "releases", "ledger", "deposits")]
    reads += [f"/datasets/{name}", f"/datasets/{name}/history", f"/permits/{permit}"]
    with httpx.Client(base_url=node.url, timeout=60, cookies={cookie_name(): token}) as pages:
        for path in reads:
            got = (http if path.startswith(("/api", "/health")) else pages).get(path)
            assert got.status_code < 500, (path, got.status_code)
            yield path, str(sorted(got.headers.items())).encode() + got.content
        page = pages.get(f"/runs/{runs[0]}")
        assert page.status_code == 200, "the portal's pages were not really seen"
    for ident in runs:
        got = http.post(f"/api/v1/runs/{ident}/stop", json={})
        yield f"stop {ident}", got.content
    for ident, file in files[:3]:
        body = {"approve": True, "reason": "mine", "manifest": ""}
        got = http.post(f"/api/v1/releases/{ident}/files/{file}/decision", json=body)
        assert got.status_code >= 400
        yield "decision", got.content


def cookie_name() -> str:
    from valv.web import visit

    return str(visit.SESSION)


def search(node: Any, found: dict[str, Any]) -> None:
    wanted = {place: forms(canary(found["secret"], place)) for place in PLACES}
    wanted |= {"secret": forms(found["secret"]), "data": forms(DATA), "table": forms(TABLE), "file": forms(NAME)}
    size = 100_000 + int(canary(found["secret"], "size")[4:8], 16)
    wanted["size"] = [str(size).encode(), f"{size:,}".encode()]
    count = 0
    for path, content in answers(node, found):
        count += 1
        for place, words in wanted.items():
            assert not any(word in content for word in words), f"{path} shows the canary of {place}"
    assert count > 60


def test_no_outlet_leads_out_before_the_release(running_node: Any, planted: dict[str, Any]) -> None:
    search(running_node, planted)


def test_nor_while_the_checker_looks(running_node: Any, planted: dict[str, Any]) -> None:
    done = planted["runs"]["0"]
    rikard, kerttu = running_node.person("rikard"), running_node.person("kerttu")
    rikard.post(f"/releases/{done['release_id']}/request", {"context": "A test of outlets."})
    page = kerttu.get(f"/releases/{done['release_id']}")
    text = json.dumps(page)
    # The checker does see them: they were really let out.
    for place in ("name", "folder", "link"):
        assert canary(planted["secret"], place) in text, place
    assert canary(planted["secret"], "target") not in text
    for file in page["files"]:
        content = kerttu.content(f"/releases/{done['release_id']}/files/{file['file_id']}/inspection")
        if file["path"] == "stdout.txt":
            assert canary(planted["secret"], "stdout").encode() in content
    search(running_node, planted)
    kerttu.post(
        f"/releases/{done['release_id']}/files/{page['files'][0]['file_id']}/decision",
        {"approve": False, "reason": "No.", "manifest": page["state"]["manifest"]},
    )
    search(running_node, planted)


def test_ways_to_fail_look_the_same(running_node: Any, planted: dict[str, Any]) -> None:
    """Zero or not zero is all that an exit code tells; seconds, signals and sizes tell nothing."""
    shown = {}
    for how, done in planted["runs"].items():
        page = running_node.person("rikard").get(f"/runs/{done['state']['run_id']}")
        state = page["state"]
        for key in ("run_id", "command", "result_key"):
            state.pop(key, None)
        for key in ("started", "ended"):
            assert re.search(r":00(\.0+)?(Z|\+00:00)$", state[key]), f"{key} tells seconds: {state[key]}"
            state.pop(key)
        state.pop("queued")
        for key in ("release_id", "command", "run_id"):
            page.pop(key, None)
        shown[how] = json.dumps(page, sort_keys=True)
    assert len({shown[how] for how in shown if how != "0"}) == 1, shown
    assert '"success": true' in shown["0"]
    assert '"success": false' in shown["7"]


# --- at rest ---


def everywhere(node: Any) -> Iterator[tuple[str, bytes]]:
    """All bytes that the node keeps: its folder, its runtime folder, and what its processes tell of themselves."""
    config = configuration.load(node.directory)
    left_out = (node.directory / "demo", node.directory / "secrets")
    for root in (node.directory, config.runtime):
        for path in sorted(root.rglob("*")):
            if any(path.is_relative_to(out) for out in left_out):
                continue
            yield f"name {path}", str(path).encode()
            if path.is_file() and not path.is_symlink():
                yield str(path), path.read_bytes()
    mark = str(node.directory).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line, environ = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark in line + environ:
                yield f"process {line!r}", line + environ


def test_nothing_secret_rests_in_plain_form(running_node: Any, planted: dict[str, Any]) -> None:
    rikard, audun = running_node.person("rikard"), running_node.person("audun")
    token = str(rikard._http.headers["Authorization"]).removeprefix("Bearer ")
    time.sleep(1.0)  # the worker's mails and checkpoints
    kept = dict(everywhere(running_node))
    kept["ledger export"] = audun.content("/ledger/export")
    kept["history"] = audun.content(f"/datasets/{planted['name']}/history")
    assert sum(name.startswith("process") for name in kept) >= 3
    assert any(name.endswith(".log") for name in kept)
    assert any("sqlite" in name for name in kept)
    wanted = {"data": forms(DATA), "participants": forms(TABLE), "secret file": forms(planted["secret"])}
    wanted |= {place: forms(canary(planted["secret"], place)) for place in ("stdout", "stderr", "content", "traceback")}
    wanted["token"] = [token.encode(), token.encode().hex().encode()]
    for name, account in running_node.accounts.items():
        wanted[f"password of {name}"] = [account["password"].encode()]
    for where, content in kept.items():
        for what, words in wanted.items():
            assert not any(word in content for word in words), f"{what} is in {where}"


def test_names_of_files_are_not_in_the_ledger(running_node: Any, planted: dict[str, Any]) -> None:
    """The journal cannot be erased, so that it has no name that may be a person's; nor has it secrets of log-ins."""
    lines = running_node.person("audun").content("/ledger/export")
    words = [NAME.encode(), *(canary(planted["secret"], place).encode() for place in PLACES)]
    words += [account[key].encode() for account in running_node.accounts.values() for key in ("password", "totp")]
    assert not [word for word in words if word in lines]


def test_the_second_factor_s_secret_is_in_the_database_alone(running_node: Any, planted: dict[str, Any]) -> None:
    for where, content in everywhere(running_node):
        if "/db/" not in where:
            for account in running_node.accounts.values():
                assert account["totp"].encode() not in content, where
