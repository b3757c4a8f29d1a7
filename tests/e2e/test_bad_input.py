"""Bad input at a really running node: each a clear error that says what to do, nothing half-visible, nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import free_port, node_missing
from tests.e2e import work
from valv.assemble import demo
from valv.assemble.demo import COMMITTEE
from valv.assemble.demo_client import Person
from valv.errors import CATALOGUE
from valv.formats import crypt4gh, keyfile


def _open(person: Any, name: str) -> str:
    about = {"dataset": name, "class": "identifiable", "consent": ["HMB"], "committee": COMMITTEE, "title": name}
    return str(person.post("/deposits", about)["deposit_id"])


def _put(person: Any, deposit: str, path: str, content: bytes, declared: bytes | None = None) -> httpx.Response:
    headers = {}
    if declared is not None:
        headers["Content-Digest"] = f"sha-256=:{b64encode(declared).decode()}:"
    answer: httpx.Response = person._http.put(
        f"/api/v1/deposits/{deposit}/files/{path}", content=content, headers=headers
    )
    return answer


def _encrypted(public: bytes, content: bytes) -> bytes:
    """A Crypt4GH file, by hand."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    key = secrets.token_bytes(32)
    body = b""
    for at in range(0, len(content), crypt4gh.SEGMENT):
        nonce = secrets.token_bytes(12)
        body += nonce + ChaCha20Poly1305(key).encrypt(nonce, content[at : at + crypt4gh.SEGMENT], None)
    return crypt4gh.build_header(key, [public]) + body


def _problem(answer: httpx.Response, code: str) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert found["code"] == code, found
    assert answer.status_code == CATALOGUE[code].status
    assert "Traceback" not in answer.text
    return found


def test_a_checksum_that_differs_keeps_nothing(running_node: Any) -> None:
    carin = running_node.person("carin")
    deposit = _open(carin, work.fresh("bad"))
    answer = _put(carin, deposit, "a.txt", b"content", hashlib.sha256(b"other").digest())
    assert _problem(answer, "checksum")["hint"]
    assert carin.get(f"/deposits/{deposit}")["files"] == []
    assert _put(carin, deposit, "a.txt", b"content", hashlib.sha256(b"content").digest()).is_success


def test_a_file_for_another_key_is_refused_at_once(running_node: Any) -> None:
    carin = running_node.person("carin")
    deposit = _open(carin, work.fresh("bad"))
    stranger = crypt4gh.generate_keypair()
    found = _problem(_put(carin, deposit, "a.c4gh", _encrypted(stranger.public, b"x" * 100)), "fault.key")
    assert "SHA256:" in found["detail"], found
    assert carin.get(f"/deposits/{deposit}")["files"] == []


@pytest.mark.parametrize("cut", [10, 60, 300])
def test_a_truncated_file_is_not_published(running_node: Any, cut: int) -> None:
    """In the header it is refused at once; in the body the node finds it when it opens the file."""
    carin = running_node.person("carin")
    name = work.fresh("bad")
    deposit = _open(carin, name)
    node_key = keyfile.read_public(carin.get("/node")["node_key"])
    answer = _put(carin, deposit, "a.c4gh", _encrypted(node_key, secrets.token_bytes(100_000))[:cut])
    if not answer.is_success:
        assert _problem(answer, "fault.format")["detail"]
        assert carin.get(f"/deposits/{deposit}")["files"] == []
        return
    carin.post(f"/deposits/{deposit}/submission")
    page = carin.wait(f"/deposits/{deposit}", lambda found: found["state"]["phase"], ("failed", "published"))
    assert page["state"]["phase"] == "failed"
    assert "a" in page["state"]["reason"]
    assert all(row["name"] != name for row in carin.get("/datasets", query=name)["rows"])


def test_an_altered_body_is_not_published(running_node: Any) -> None:
    carin = running_node.person("carin")
    name = work.fresh("bad")
    deposit = _open(carin, name)
    node_key = keyfile.read_public(carin.get("/node")["node_key"])
    content = bytearray(_encrypted(node_key, secrets.token_bytes(200_000)))
    content[-1000] ^= 1
    assert _put(carin, deposit, "a.c4gh", bytes(content)).is_success
    carin.post(f"/deposits/{deposit}/submission")
    page = carin.wait(f"/deposits/{deposit}", lambda found: found["state"]["phase"], ("failed", "published"))
    assert page["state"]["phase"] == "failed"
    assert "segment" in page["state"]["reason"]
    assert all(row["name"] != name for row in carin.get("/datasets", query=name)["rows"])


@pytest.mark.parametrize("name", ["../up", "a/../../b", "A b", "", "x" * 300, "näme"])
def test_a_dataset_name_is_a_name(running_node: Any, name: str) -> None:
    about = {"dataset": name, "class": "identifiable", "consent": ["HMB"], "committee": COMMITTEE}
    code = running_node.person("carin").refused("POST", "/deposits", about)
    assert code in ("name_wrong", "fault.input"), code


@pytest.mark.parametrize(
    "path", ["..%2Fup", "a%2F..%2F..%2Fb", "a%00b", "a%0Ab", "%2Fetc%2Fpasswd", "a%2F%2Fb", "x" * 300]
)
def test_a_file_name_stays_inside(running_node: Any, path: str) -> None:
    carin = running_node.person("carin")
    deposit = _open(carin, work.fresh("bad"))
    answer = _put(carin, deposit, path, b"x")
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["code"] in ("path_wrong", "fault.input", "fault.missing"), answer.text
    assert carin.get(f"/deposits/{deposit}")["files"] == []


def test_what_a_run_may_get_wrong(running_node: Any, tmp_path: Path) -> None:
    """A command that is not there; outputs that are links, devices and pipes."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    name = work.fresh("bad")
    work.deposit(running_node.person("carin"), tmp_path / "in", name, "identifiable", ["HMB"])
    permit = work.permit(running_node, name, "compute")
    lost = work.run(running_node, permit, ["no-such-program", "--help"])
    assert lost["state"]["end"] == "not_started"
    assert "no-such-program" in lost["detail"]

    links = (
        f"ln -s /etc/passwd /outbox/link; ln -s /data/{name} /outbox/folder; mkfifo /outbox/pipe;"
        " echo good > /outbox/good.txt; ln /outbox/good.txt /outbox/twin.txt; mkdir /outbox/sub; echo x > /outbox/sub/x"
    )
    done = work.run(running_node, permit, ["sh", "-c", links])
    assert done["state"]["success"]
    rikard, kerttu = running_node.person("rikard"), running_node.person("kerttu")
    rikard.post(f"/releases/{done['release_id']}/request", {"context": "A test."})
    page = kerttu.get(f"/releases/{done['release_id']}")
    taken = {file["path"] for file in page["files"]}
    assert "sub/x" in taken
    assert not taken & {"link", "folder", "pipe"}
    for left in ("link", "folder", "pipe"):
        assert left in page["skipped"], page["skipped"]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    why = node_missing() or ("" if os.geteuid() == 0 else "mounting a small disk needs root")
    if why:
        pytest.skip(why)
    directory = tmp_path / "node"
    config = demo.prepare(directory, free_port())
    store = directory / "store"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(store)], check=True)
    try:
        with demo.running(directory, config) as url:
            kept = json.loads(demo.accounts_file(directory).read_text("utf-8"))["carin"]
            carin = Person(url, "carin", kept["password"], kept["totp"])
            deposit = _open(carin, "small")
            assert _put(carin, deposit, "fits.bin", secrets.token_bytes(500_000)).is_success
            answer = _put(carin, deposit, "large.bin", secrets.token_bytes(6_000_000))
            assert "operator" in _problem(answer, "fault.full")["hint"]
            assert [file["path"] for file in carin.get(f"/deposits/{deposit}")["files"]] == ["fits.bin"]
            assert _put(carin, deposit, "also.bin", secrets.token_bytes(300_000)).is_success
            carin.post(f"/deposits/{deposit}/submission")
            carin.wait(f"/deposits/{deposit}", lambda found: found["state"]["phase"], ("published",))
    finally:
        subprocess.run(["umount", "-l", str(store)], check=True)
