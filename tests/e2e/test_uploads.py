"""Uploads that are cut, on a real node: nothing of them rests in plain form, and they go on."""

from __future__ import annotations

import hashlib
import random
import secrets
import socket
import time
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e import work
from tests.e2e.test_canaries import everywhere, forms
from valv.assemble.demo import COMMITTEE

TUS = {"Tus-Resumable": "1.0.0"}
MEDIA = {"Content-Type": "application/offset+octet-stream"}
SIZE = 5 << 20
CUTS = 6


def begun(person: Any, name: str) -> str:
    about = {"dataset": name, "class": "identifiable", "consent": ["HMB"], "committee": COMMITTEE, "title": name}
    return str(person.post("/deposits", about)["deposit_id"])


def announced(person: Any, deposit: str, filename: str, length: int) -> str:
    headers = TUS | {"Upload-Length": str(length)}
    headers["Upload-Metadata"] = f"filename {b64encode(filename.encode()).decode()}"
    answered = person._http.post(f"/api/v1/deposits/{deposit}/uploads", headers=headers)
    assert answered.status_code == 201, answered.text
    return str(answered.headers["Location"])


def offset(person: Any, address: str) -> int:
    return int(person._http.head(address, headers=TUS).headers["Upload-Offset"])


def cut(node: Any, person: Any, method: str, address: str, content: bytes, length: int, *headers: str) -> None:
    """Send a part of what was announced, then go away."""
    url = urlsplit(node.url)
    token = str(person._http.headers["Authorization"])
    lines = [
        f"{method} {address} HTTP/1.1",
        "Host: x",
        f"Authorization: {token}",
        f"Content-Length: {length}",
        *headers,
    ]
    with socket.create_connection((url.hostname, url.port), timeout=60) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + content)
        time.sleep(0.3)


@pytest.mark.parametrize("way", ["tus", "put", "batch"])
def test_nothing_of_a_cut_upload_rests_in_plain_form(running_node: Any, way: str) -> None:
    carin = running_node.person("carin")
    word = "CUTCANARY" + secrets.token_hex(12)
    content = (word.encode() + b"\n") * (SIZE // (len(word) + 1))
    deposit = begun(carin, work.fresh("cut"))
    files = f"/api/v1/deposits/{deposit}"
    dice = random.Random(secrets.randbelow(1 << 30))
    at, address = 0, ""
    if way == "tus":
        address = announced(carin, deposit, "canary.txt", len(content))
    for _ in range(CUTS):
        length = dice.randrange(1, len(content) // CUTS)
        if way == "tus":
            tus = [f"{name}: {value}" for name, value in (TUS | MEDIA | {"Upload-Offset": str(at)}).items()]
            cut(running_node, carin, "PATCH", address, content[at : at + length], len(content) - at, *tus)
        elif way == "put":
            cut(running_node, carin, "PUT", f"{files}/files/canary.txt", content[:length], len(content))
        else:
            cut(running_node, carin, "POST", f"{files}/batch", content[:length], len(content))
        for where, kept in everywhere(running_node):
            assert not any(form in kept for form in forms(word)), f"the canary is in {where}"
        if way == "tus":
            now = offset(carin, address)
            assert at <= now <= at + length
            at = now
    if way != "tus":
        assert carin.get(f"/deposits/{deposit}")["files"] == []
        return
    assert at > 0
    answered = carin._http.patch(address, headers=TUS | MEDIA | {"Upload-Offset": str(at)}, content=content[at:])
    assert answered.status_code == 204
    end = time.monotonic() + 60
    while not (found := carin.get(f"/deposits/{deposit}")["files"])[0]["sha256"]:
        assert time.monotonic() < end and found[0]["state"] == "received", found
        time.sleep(0.1)
    assert found[0]["sha256"] == hashlib.sha256(content).hexdigest()
    for where, kept in everywhere(running_node):
        assert not any(form in kept for form in forms(word)), f"the canary is in {where}"
    parts = list((Path(running_node.directory) / "store" / "new").iterdir())
    assert parts == []
