"""`kill -9` at random moments while files arrive, as resumable uploads, in batches and one by one, and are published:
what was acknowledged is there, nothing is half visible, and nothing is left over."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import threading
import time
import traceback
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests import killing
from tests.conftest import free_port
from tests.keys import running as keyd
from tests.world import COMMITTEE, World
from valv import config as configuration
from valv.app import reading
from valv.formats import batch, crypt4gh
from valv.formats.batch import Record

SIZES = (0, 1, 70_000, 400_000, 1_500_000)
SMALL = (0, 1, 1_000, 70_000, 250_000)
TUS = {"Tus-Resumable": "1.0.0"}
MEDIA = {"Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def w() -> Iterator[World]:
    """A node whose key holder runs and whose server is the child; the one in this process is for logging in."""
    with keyd.running(keyd.KEYD if os.geteuid() == 0 else None) as holder:
        with (holder.folder / "valv.toml").open("a") as toml:
            toml.write(
                f'[serve]\nport = {free_port()}\n[login]\nbackend = "demo"\nidle = 86400\nabsolute = 86400\n'
                'step_up = 86400\n[stores.second]\npath = "second"\ndistance = 1\n'
            )
        holder.config = configuration.load(holder.folder)
        made = World(holder)
        (made.folder / "db").chmod(0o700)
        try:
            yield made
        finally:
            made.http.close()
            made.server.close()
            made.records.close()


class Sender(threading.Thread):
    """Deposits dataset after dataset, each file in one `way`, until `ended`; what is acknowledged is in `published`."""

    def __init__(self, way: str, url: str, token: str, node_key: bytes, dice: random.Random) -> None:
        super().__init__()
        self.way, self.node_key, self.dice = way, node_key, dice
        self.http = httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60)
        self.ended = threading.Event()
        self.published: dict[str, dict[str, str]] = {}
        self.begun: dict[str, int] = {}
        self.fault = ""

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                self.deposit(f"{self.way}-{len(self.begun)}")
        except BaseException:
            self.fault = traceback.format_exc()
        finally:
            self.http.close()

    def ask(self, method: str, path: str, *, passing: tuple[int, ...] = (409, 423), **more: Any) -> httpx.Response:
        """Again and again, under the same key, until the node answers; `passing`: also answers that pass by."""

        def once() -> httpx.Response:
            answered = self.http.request(method, path, **more)
            if answered.status_code >= 500 or (answered.status_code in passing and _passes(answered)):
                raise httpx.ReadError(f"{answered.status_code} {answered.text}")
            return answered

        answered: httpx.Response = killing.again(once)
        assert answered.is_success, f"{method} {path}: {answered.status_code} {answered.text}"
        return answered

    def order(self, path: str, body: Any) -> Any:
        key = f"{self.way}-{self.dice.randrange(1 << 60)}"
        return self.ask("POST", path, json=body, headers={"Idempotency-Key": key}).json()

    def deposit(self, name: str) -> None:
        most, sizes = (40, SMALL) if self.way == "batch" else (5, SIZES)
        count = self.dice.randrange(1, most)
        content = {f"{number}/f.bin": self.dice.randbytes(self.dice.choice(sizes)) for number in range(count)}
        sums = {path: hashlib.sha256(data).hexdigest() for path, data in content.items()}
        about = {"dataset": name, "class": "identifiable", "consent": ["GRU"], "committee": COMMITTEE, "title": name}
        self.begun[name] = len(content)
        ident = self.order("/deposits", about)["deposit_id"]
        getattr(self, self.way)(f"/deposits/{ident}", content)
        page = self.ask("GET", f"/deposits/{ident}").json()
        listed = {file["path"]: (file["state"], file["sha256"]) for file in page["files"]}
        for path, whole in sums.items():  # what was acknowledged is there, though the node was killed since
            assert listed[path][0] == "received" and listed[path][1] in ("", whole), (path, listed)
        self.order(f"/deposits/{ident}/submission", {"expected": list(content)})
        end = time.monotonic() + killing.PATIENCE
        while (page := self.ask("GET", f"/deposits/{ident}").json())["state"]["phase"] != "published":
            assert page["state"]["phase"] == "submitted" and time.monotonic() < end, page
            time.sleep(0.05)
        assert {file["path"]: file["sha256"] for file in page["files"]} == sums
        self.published[name] = sums

    def plain(self, deposit: str, content: dict[str, bytes]) -> None:
        """One by one, some of them encrypted by their sender."""
        for path, data in content.items():
            if self.dice.random() < 0.3:
                path, data = f"{path}.c4gh", _sealed(data, self.node_key)
            digest = b64encode(hashlib.sha256(data).digest()).decode()
            headers = {"Content-Digest": f"sha-256=:{digest}:"}
            self.ask("PUT", f"{deposit}/files/{path}", content=data, headers=headers)

    def batch(self, deposit: str, content: dict[str, bytes]) -> None:
        records = [Record(path, data, hashlib.sha256(data).hexdigest()) for path, data in content.items()]
        data = b"".join(map(batch.encode, records))
        end = time.monotonic() + killing.PATIENCE
        while True:
            results = self.ask("POST", f"{deposit}/batch", headers={"Content-Type": batch.MEDIA}, content=data).json()
            if all(one["state"] == "received" for one in results):
                return
            assert {one["code"] for one in results} <= {"", "fault.conflict"} and time.monotonic() < end, results

    def tus(self, deposit: str, content: dict[str, bytes]) -> None:
        for path, data in content.items():
            self._resumable(deposit, path, data)
        end = time.monotonic() + killing.PATIENCE
        while any(one["state"] != "done" for one in self.ask("GET", f"{deposit}/uploads").json()):
            assert time.monotonic() < end, self.ask("GET", f"{deposit}/uploads").text
            time.sleep(0.05)

    def _resumable(self, deposit: str, path: str, data: bytes) -> None:
        headers = TUS | {"Upload-Length": str(len(data)), "Idempotency-Key": f"{self.dice.randrange(1 << 60)}"}
        headers["Upload-Metadata"] = f"filename {b64encode(path.encode()).decode()}"
        made = self.ask("POST", f"{deposit}/uploads", headers=headers)
        address, known = made.headers["Location"].removeprefix("/api/v1"), 0
        end = time.monotonic() + killing.PATIENCE
        while known < len(data):
            assert time.monotonic() < end, "no progress"
            at = int(self.ask("HEAD", address, headers=TUS).headers["Upload-Offset"])
            assert at >= known, f"{known} bytes were acknowledged, {at} are there"
            known = at
            piece = data[at : at + self.dice.randrange(1, 600_000)]
            if not piece:
                return
            with contextlib.suppress(httpx.HTTPError):
                more = TUS | MEDIA | {"Upload-Offset": str(at)}
                answered = self.http.patch(address, headers=more, content=piece)
                assert answered.status_code in (204, 409, 423) or answered.status_code >= 500, answered.text
                if answered.status_code == 204:
                    known = int(answered.headers["Upload-Offset"])
                    assert known == at + len(piece)
                    end = time.monotonic() + killing.PATIENCE


def _passes(answered: httpx.Response) -> bool:
    return bool(answered.json().get("code") in killing.PASSING)


def _sealed(data: bytes, recipient: bytes) -> bytes:
    key, body = os.urandom(32), b""
    for at in range(0, len(data), crypt4gh.SEGMENT):
        nonce = os.urandom(12)
        body += nonce + ChaCha20Poly1305(key).encrypt(nonce, data[at : at + crypt4gh.SEGMENT], None)
    return crypt4gh.build_header(key, [recipient]) + body


@pytest.mark.timeout(1800)
def test_nothing_acknowledged_is_lost(w: World, long: bool) -> None:
    url = f"http://127.0.0.1:{w.config.serve.port}"
    users = (keyd.SERVE, keyd.WORKER, keyd.RUN) if os.geteuid() == 0 else (-1, -1, -1)
    token, node_key = w.person("carin").token, w.node.keys.status().node_key
    with killing.dice() as dice, killing.Forked("tests.app.intake_child", w.folder, *users) as child:
        senders = [Sender(way, url, token, node_key, random.Random(dice.random())) for way in ("plain", "batch", "tus")]
        child.start()
        for sender in senders:
            sender.start()
        try:
            while child.kills < (killing.MOMENTS_LONG if long else killing.MOMENTS):
                time.sleep(dice.uniform(0.02, 1.5))
                child.kill()
                child.start()
                _nothing_half_visible(url, token, senders)
                _no_fault(senders)
        finally:
            for sender in senders:
                sender.ended.set()
            for sender in senders:
                sender.join(2 * killing.PATIENCE)
        assert not any(sender.is_alive() for sender in senders), "senders hang"
        _no_fault(senders)
        assert all(sender.published for sender in senders)
        _nothing_half_visible(url, token, senders, every=True)
        child.kill()
        published = {name: sums for sender in senders for name, sums in sender.published.items()}
        print(f"{child.kills} kills, {len(published)} datasets, {sum(map(len, published.values()))} files")
        _equal(w, published)
        killing.looked_over(w.folder)


def _no_fault(senders: list[Sender]) -> None:
    for sender in senders:
        assert not sender.fault, sender.fault


def _nothing_half_visible(url: str, token: str, senders: list[Sender], every: bool = False) -> None:
    """Datasets that can be seen have all their files; every one that was acknowledged can be seen."""
    acknowledged = {name for sender in senders for name in sender.published}
    begun = {name: count for sender in senders for name, count in sender.begun.items()}
    with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=60) as http:
        seen: dict[str, Any] = {}
        for offset in range(0, len(begun) + 1, 200):
            page = http.get("/datasets", params={"offset": offset, "limit": 200}).raise_for_status().json()
            seen |= {row["name"]: row for row in page["rows"]}
        visible = {name for name, row in seen.items() if row["version"]}
        assert acknowledged <= visible, acknowledged - visible
        for name in sorted(visible) if every else sorted(visible - acknowledged):
            versions = http.get(f"/datasets/{name}").raise_for_status().json()["state"]["versions"]
            assert [version["files"] for version in versions] == [begun[name]], name


def _equal(w: World, published: dict[str, dict[str, str]]) -> None:
    """Each file, opened and checked, is what its sender sent."""
    with w.node.records.reading() as unit:
        names = {row["id"]: row["name"] for row in unit.rows("dataset")}
        rows = [row for row in unit.rows("file") if names[row["dataset"]] in published]
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        whole = hashlib.sha256()
        for chunk in reading.plain(w.worker, w.reader, reading.mounted({**row, "known_outside": True}, row["path"])):
            whole.update(chunk)
        found.setdefault(names[row["dataset"]], {})[row["path"]] = whole.hexdigest()
    assert found == published
