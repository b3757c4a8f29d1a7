"""The whole job on a node whose keys are looked for afterwards, with what breaks on the way."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import signal
import socket
import sqlite3
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.e2e import work
from tests.e2e.canary import BENT_KEY, SENT_KEY, WRONG_PASSPHRASE, Job, look_at, named
from tests.officers import Officers
from valv.assemble import up
from valv.assemble.demo import COMMITTEE
from valv.assemble.sockets import KEYD
from valv.config import Config
from valv.errors import Fault
from valv.formats import crypt4gh
from valv.formats.keyfile import read_public
from valv.keys.client import KeydClient

SEEN = 120.0
"""Seconds within which each kind of process must have been seen at its work."""
COUNT = "cat /data/*/* | wc -c > /outbox/count.txt"


def do(job: Job, folder: Path) -> None:
    """Deposits of both classes, plain and sent encrypted, a run, its release, a download, a checkpoint. `folder`: for
    the data that is sent."""
    node = job.node
    carin, rikard, audun, *_ = (listened(job, name) for name in ("carin", "rikard", "audun", "dagny", "kerttu"))
    node_key = read_public(carin.get("/node")["node_key"])
    closed, opened = work.fresh("closed"), work.fresh("open")
    for name, data_class in ((closed, "identifiable"), (opened, "anonymised")):
        data = folder / name
        data.mkdir()
        (data / "plain.txt").write_bytes(secrets.token_bytes(200_000))
        (data / "sent.txt.c4gh").write_bytes(sealed(secrets.token_bytes(100_000), SENT_KEY, node_key))
        work.deposit(carin, data, name, data_class, ["HMB"])
    work.confirm_anonymous(node, opened)
    crash(job, "keyd", signal.SIGSEGV)
    job.keys |= custody(job)
    permit = work.permit(node, closed, "compute")
    running = rikard.post("/runs", {"permit": permit, "command": ["sh", "-c", f"cat /data/{closed}/*; sleep 600"]})
    rikard.wait(f"/runs/{running['run_id']}", lambda found: found["state"]["phase"], ("running",))
    crash(job, "mount", signal.SIGSEGV)
    rikard.wait(f"/runs/{running['run_id']}", lambda found: found["state"]["phase"], ("collected", "cancelled"))
    done = work.run(node, permit, ["sh", "-c", COUNT])
    assert done["state"]["success"]
    got = work.release(node, done, {"count.txt"})
    assert got["count.txt"].strip() == b"300000"
    download(rikard, work.permit(node, opened, "download"), {"plain.txt": 200_000, "sent.txt": 100_000})
    rekey(job, closed)
    seen_closed(job, "rekey", lambda: rekey(job, closed))
    seen_closed(job, "collect", lambda: work.run(node, permit, ["sh", "-c", COUNT]))
    seen_closed(job, "read", lambda: read(job, folder, node_key))
    ask_api_wrong_things(job, folder, node_key)
    ask_keyd_wrong_things(job, closed, opened)
    for name, number in (("worker", signal.SIGABRT), ("serve", signal.SIGSEGV), ("keyd", signal.SIGABRT)):
        crash(job, name, number)
    end = time.monotonic() + 60
    while (proof := audun.get("/ledger/proof"))["checkpoint_size"] < proof["size"]:
        assert time.monotonic() < end, "no checkpoint was signed"
        time.sleep(0.3)
    audun.content("/ledger/export")
    carin.content(f"/datasets/{closed}/history")


def custody(job: Job) -> dict[str, bytes]:
    """A ceremony, and a drill in which the officers' shares pass through the key holder: what they must not leave."""
    officers = Officers(job.config.node.name)
    client = KeydClient(job.config.runtime / KEYD)
    job.said.append(("minutes", client.order(officers.ceremony(), []).encode()))
    words = officers.words(client, "anna", "eva")
    job.said.append(("minutes", client.order(officers.order("drill", "anna", "eva"), words).encode()))
    client.close()
    found = {f"key of {name}": key for name, key in officers.private.items()}
    return found | {f"share {number}": share.encode() for number, share in enumerate(words)}


def rekey(job: Job, dataset: str) -> None:
    """All files anew, through a process that has both data keys."""
    operator = listened(job, "olof")
    (ident,) = operator.post("/rotations", {"dataset": dataset, "aim": "rekey", "reason": "A drill."})["rotation_ids"]
    operator.wait(f"/rotations/{ident}", lambda found: found["state"]["phase"], ("done",))


def read(job: Job, folder: Path, node_key: bytes) -> None:
    """One more deposit that came encrypted, which a process opens to look at it."""
    name = work.fresh("read")
    data = folder / name
    data.mkdir()
    (data / "sent.txt.c4gh").write_bytes(sealed(secrets.token_bytes(100_000), SENT_KEY, node_key))
    work.deposit(job.node.person("carin"), data, name, "identifiable", ["HMB"])


def seen_closed(job: Job, name: str, step: Callable[[], object]) -> None:
    """Take a step again until such a process was seen after it had closed itself. It lives for a moment only, and who
    watches may have met it while it started each time. One that never closes itself is never seen so."""
    end = time.monotonic() + SEEN
    while time.monotonic() < end:
        if any(one.name == name and one.closed and one.core == ["0", "0"] for one in list(job.shown.values())):
            return
        step()


def listened(job: Job, name: str) -> Any:
    """A person whose every answer from the node is kept, with its headers."""

    def keep(response: Any) -> None:
        head = f"{response.status_code} {sorted(response.headers.items())}".encode()
        job.said.append((f"answer to {response.request.method} {response.request.url}", head + response.read()))

    person = job.node.person(name)
    person._http.event_hooks = {"response": [keep]}
    return person


def sealed(plain: bytes, data_key: bytes, recipient: bytes, body_key: bytes = b"") -> bytes:
    """A Crypt4GH file. `body_key`: the key that its body is really under, where the header tells a wrong one."""
    cipher = ChaCha20Poly1305(body_key or data_key)
    parts = [crypt4gh.build_header(data_key, [recipient])]
    for at in range(0, len(plain), crypt4gh.SEGMENT):
        nonce = secrets.token_bytes(crypt4gh.NONCE)
        parts += [nonce, cipher.encrypt(nonce, plain[at : at + crypt4gh.SEGMENT], None)]
    return b"".join(parts)


def download(person: Any, permit: str, sizes: dict[str, int]) -> None:
    pair = crypt4gh.generate_keypair()
    key = person.add_key(pair, "canary")
    for listed in person.get(f"/permits/{permit}/files"):
        content = person.content(f"/permits/{permit}/files/{listed['file_id']}", key=key)
        length = crypt4gh.header_length(content) or 0
        assert crypt4gh.open_header(content[:length], [pair.private]).data_keys
        segments = -(-sizes.pop(listed["path"]) // crypt4gh.SEGMENT)
        assert len(content) - length == listed["size"] + crypt4gh.OVERHEAD * segments
    assert not sizes


# --- what breaks on the way ------------------------------------------------------------------------------------------


def crash(job: Job, name: str, number: signal.Signals) -> None:
    """Make the process die as a fault in it would, and wait for the next one, where there is to be one."""
    end = time.monotonic() + 60
    while not (found := named(job.config, name)):
        assert time.monotonic() < end, f"{name} does not run"
        time.sleep(0.1)
    victim = found[0]
    while not look_at(victim).closed and time.monotonic() < end - 57:
        time.sleep(0.05)  # it is still starting
    folders = []
    for link in ("root", "cwd"):
        with contextlib.suppress(OSError):
            folders.append(os.open(f"/proc/{victim}/{link}/", os.O_RDONLY | os.O_DIRECTORY))
    try:
        os.kill(victim, number)
        while Path(f"/proc/{victim}").exists():
            assert time.monotonic() < end, f"{name} survived"
            time.sleep(0.05)
        left = [entry for folder in folders for entry in os.listdir(folder) if "core" in entry]
        job.crashes.append((name, number, left))
    finally:
        for descriptor in folders:
            os.close(descriptor)
    while name != "mount" and not (set(named(job.config, name)) - {victim} and answers(job)):
        assert time.monotonic() < end + 30, f"{name} did not start again"
        time.sleep(0.1)


def answers(job: Job) -> bool:
    keyd = KeydClient(job.config.runtime / KEYD, seconds=5.0)
    try:
        with socket.socket(socket.AF_UNIX) as lease:
            lease.connect(str(job.config.runtime / "lease.sock"))
        up._healthy(job.config)
        return keyd.status().open
    except (Fault, OSError):
        return False
    finally:
        keyd.close()


def ask_api_wrong_things(job: Job, folder: Path, node_key: bytes) -> None:
    carin, rikard = job.node.person("carin"), job.node.person("rikard")
    stranger = crypt4gh.generate_keypair().public
    good = sealed(b"x" * 1000, BENT_KEY, node_key)
    wrong = {
        "not-ours.c4gh": sealed(b"x", BENT_KEY, stranger),
        "garbage.c4gh": crypt4gh.MAGIC + secrets.token_bytes(500),
        "packets.c4gh": crypt4gh.MAGIC + struct.pack("<II", 1, 1 << 31) + bytes(100),
        "cut.c4gh": good[:100],
        "bent.c4gh": sealed(b"x" * 1000, BENT_KEY, node_key, secrets.token_bytes(32)),
    }
    for name, content in wrong.items():
        data = folder / name.removesuffix(".c4gh")
        data.mkdir()
        (data / name).write_bytes(content)
        with pytest.raises(Fault) as fault:
            work.deposit(carin, data, work.fresh("wrong"), "identifiable", ["HMB"])
        job.said.append((f"fault at {name}", str(fault.value).encode()))
    for method, path, body in (
        ("GET", f"/permits/{secrets.token_hex(16)}/files", None),
        ("POST", "/account/keys", {"public": "AAAA", "label": "x"}),
        ("POST", "/account/keys", {"public": base64.b64encode(bytes(32)).decode(), "label": "x"}),
        ("POST", "/deposits", {"dataset": "../x", "class": "identifiable", "committee": COMMITTEE}),
    ):
        assert rikard.refused(method, path, body)


def ask_keyd_wrong_things(job: Job, closed: str, opened: str) -> None:
    """Every verb that works on a key, with a wrong header, key, caller or order; and what is no request at all."""
    base = job.config.processes.uid_base
    serve, worker, run = (base + 2, base + 3, base + 100) if os.geteuid() == 0 else (None,) * 3
    (key_id, header), (open_id, other) = (any_file(job.config, name) for name in (closed, opened))
    bent = bytes([*header[:-1], header[-1] ^ 1])
    public = crypt4gh.generate_keypair().public
    adopt: dict[str, Any] = {"verb": "adopt", "key_id": key_id}
    reseal: dict[str, Any] = {"verb": "reseal", "key_id": key_id, "grant_id": "none", "public_key": public}
    outside: dict[str, Any] = {"verb": "reseal_outside", "public_key": public}
    asked: list[tuple[int | None, dict[str, Any] | bytes]] = [
        (None, {"verb": "unseal", "passphrase": WRONG_PASSPHRASE}),
        *((worker, adopt | {"header": wrong}) for wrong in (b"x", header, bent, header[:-5], crypt4gh.MAGIC + header)),
        *((serve, outside | {"key_id": key_id, "header": wrong}) for wrong in (header, other, bent, b"")),
        *((serve, outside | {"key_id": open_id, "header": wrong}) for wrong in (header, other[:-3], bent, b"")),
        *((run, reseal | {"header": wrong}) for wrong in (header, other)),
        (worker, {"verb": "create", "key_id": open_id, "key_class": "result"}),
        (worker, {"verb": "create", "key_id": "../root", "key_class": "result"}),
        (worker, {"verb": "confirm", "key_id": "nobody-s"}),
        (worker, {"verb": "sign", "size": 1, "root": bytes(32), "proof": []}),
        (serve, {"verb": "grant", "grant_id": "g", "key_ids": ["nobody-s"], "uid": 0, "seconds": 1.0}),
        (worker, {"verb": "unwrap", "key_id": key_id}),
        (worker, b"\xff" * 50),
        (worker, secrets.token_bytes(200)),
    ]
    for uid, request in asked:
        body = request if isinstance(request, bytes) else msgspec.msgpack.encode(request)
        with connect_as(job.config, uid) as connection:
            connection.sendall(len(body).to_bytes(4, "big") + body)
            connection.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b"failed" in answer, request
        job.said.append((f"the key holder's answer to {request!r:.40}", answer))


def any_file(config: Config, dataset: str) -> tuple[str, bytes]:
    """Key id and header of a file of the dataset."""
    wanted = "select key_id, header from file join dataset on dataset.id = file.dataset where dataset.name = ?"
    with contextlib.closing(sqlite3.connect(config.path("db/valv.sqlite"), timeout=30)) as database:
        key_id, header = database.execute(wanted, (dataset,)).fetchone()
    return str(key_id), bytes(header)


def connect_as(config: Config, uid: int | None) -> socket.socket:
    """A connection to the key holder, made by a process of this user: the kernel notes who connects."""
    connection = socket.socket(socket.AF_UNIX)
    child = os.fork() if uid is not None else -1
    if child == 0:
        with contextlib.suppress(BaseException):
            os.setgroups([config.processes.uid_base])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            connection.connect(str(config.runtime / KEYD))
        os._exit(0)
    if child > 0:
        os.waitpid(child, 0)
    else:
        connection.connect(str(config.runtime / KEYD))
    connection.settimeout(30)
    return connection
