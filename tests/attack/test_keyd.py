"""Attacks on the key holder: malformed and slow peers, secrets that might leak, files edited by hand."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import random
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.keys.officers import People, ordered
from valv.config import Keys
from valv.errors import Fault, KeyFault, RefusedFault, UnreachableFault
from valv.formats import crypt4gh
from valv.keys import folder as folders
from valv.keys import messages, recovery
from valv.keys.file import FileKeyring
from valv.keys.keyd import Keyd
from valv.keys.messages import LARGEST
from valv.keys.roles import ALLOWED, Caller, Role, Roles
from valv.keys.server import Limits, Server
from valv.keys.store import Store


def _load() -> ModuleType:
    name = "valv_tests_keys_running"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "keys" / "running.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


running = _load()
SERVE, WORKER, RUN, PASSPHRASE = running.SERVE, running.WORKER, running.RUN, running.PASSPHRASE
DATA_KEY = bytes(range(100, 132))


@pytest.fixture
def keyd() -> Iterator[Any]:
    if os.geteuid() != 0:
        pytest.skip("processes of several users can only be started by root")
    with running.running(running.KEYD) as holder:
        yield holder


def resident(holder: Any) -> int:
    """KiB of memory that the key holder's process has."""
    status = Path(f"/proc/{holder.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


def open_descriptors(holder: Any) -> int:
    return len(os.listdir(f"/proc/{holder.process.pid}/fd"))


def answers(holder: Any) -> bool:
    client = holder.client(WORKER)
    try:
        return bool(client.status().open)
    finally:
        client.close()


def drain(connection: socket.socket) -> bytes:
    """All that still comes until the other side closes."""
    data = b""
    connection.settimeout(60)
    try:
        while part := connection.recv(65536):
            data += part
    except ConnectionError:
        pass
    return data


# --- malformed frames ------------------------------------------------------------------------------------------------


def frames(choose: random.Random) -> Iterator[bytes]:
    """Frames and what only looks like one."""
    good = messages.frame(messages.Create("fuzz", "result"))
    while True:
        body = choose.randbytes(choose.randrange(0, 200))
        yield len(body).to_bytes(4, "big") + body
        bent = bytearray(good)
        for _ in range(choose.randrange(1, 4)):
            bent[choose.randrange(4, len(bent))] = choose.randrange(256)
        yield bytes(bent)
        yield good[: choose.randrange(len(good))]
        yield choose.randrange(1 << 32).to_bytes(4, "big") + body
        yield choose.randbytes(choose.randrange(1, 64))
        deep = b"\x91" * 5000
        yield len(deep).to_bytes(4, "big") + deep
        huge = b"\xdd\xff\xff\xff\xff" + body  # an array that claims 4 G elements
        yield len(huge).to_bytes(4, "big") + huge
        yield (b"\x00" * 4) * 3


def fuzz(holder: Any, count: int) -> None:
    choose = random.Random(4)
    source = frames(choose)
    client = holder.client(WORKER)
    public = client.create("stays", "identifiable")
    before = 0
    for number in range(count):
        connection = running.connect_as(holder.socket, choose.choice([SERVE, WORKER, RUN, 0]))
        with connection:
            connection.settimeout(60)
            try:
                for _ in range(choose.randrange(1, 6)):
                    connection.sendall(next(source))
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it hung up on us, as it may
            drain(connection)
        if number == count // 4:
            before = resident(holder)
    assert client.create("stays", "identifiable") == public
    assert resident(holder) - before < 16 << 10
    assert holder.process.poll() is None
    assert "Traceback" not in holder.log.read_text() and "failed verb" not in holder.log.read_text()


def test_malformed_frames(keyd: Any) -> None:
    fuzz(keyd, 300)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_malformed_frames(keyd: Any) -> None:
    fuzz(keyd, 10_000)


@pytest.mark.parametrize("length", [0, LARGEST + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_out_of_bounds_is_refused_at_once(keyd: Any, length: int) -> None:
    before = resident(keyd)
    with running.connect_as(keyd.socket, WORKER) as connection:
        connection.sendall(length.to_bytes(4, "big"))
        answer = messages.decode_answer(drain(connection)[4:])
        assert isinstance(answer, messages.Failed) and answer.code == "fault.input"
    assert resident(keyd) - before < 8 << 10
    assert answers(keyd)


def test_a_claimed_length_takes_no_memory(keyd: Any) -> None:
    answers(keyd)
    before = resident(keyd)
    connections = [running.connect_as(keyd.socket, WORKER) for _ in range(60)]
    for connection in connections:
        connection.sendall(LARGEST.to_bytes(4, "big") + b"x")
    time.sleep(0.5)
    assert resident(keyd) - before < 24 << 10
    for connection in connections:
        connection.close()
    assert answers(keyd)


def test_descriptors_do_not_leak(keyd: Any) -> None:
    answers(keyd)
    before = open_descriptors(keyd)
    for _ in range(50):
        running.connect_as(keyd.socket, WORKER).close()
        with pytest.raises(RefusedFault):
            keyd.client(running.STRANGER).status()
    deadline = time.monotonic() + 30
    while open_descriptors(keyd) > before + 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert open_descriptors(keyd) <= before + 1


def test_one_run_cannot_take_the_connections_of_the_others(keyd: Any) -> None:
    hogging = [running.connect_as(keyd.socket, RUN) for _ in range(40)]
    with pytest.raises(UnreachableFault, match="too many connections"):
        keyd.client(RUN).status()
    assert keyd.client(RUN + 1).status().open
    assert answers(keyd)
    for connection in hogging:
        connection.close()


REQUESTS = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.binary(max_size=40), st.text()
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
FIELDS = ["passphrase", "key_id", "key_class", "header", "grant_id", "key_ids", "uid", "seconds", "public_key", "size"]
FIELDS += ["headers", "pair", "note", "shares", "words", "officer", "after"]
LIKELY = st.one_of(
    REQUESTS,
    st.sampled_from(["k", "../k", "result", "anonymised", 1, -1, 1 << 40, b"", bytes(32), [bytes(32)], ["k"], 1.5]),
)


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same server and verbs in this process, so that many requests can be tried."""
    folder = tmp_path_factory.mktemp("attack") / "keys"
    folder.mkdir(mode=0o700)
    keyring = FileKeyring(Keys(), running.CHEAP)
    folders.create(folder, "valv.example", keyring, PASSPHRASE).wipe()
    roles = Roles(own_uid=os.geteuid(), shared=True)
    holder = Keyd(folder, "valv.example", roles, keyring)
    holder.unseal(PASSPHRASE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        server = Server(holder, roles, listener, Limits(idle=2, transfer=0.5))
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        server.path = folder / "s"  # type: ignore[attr-defined]
        yield server
        server.stop()
        thread.join(10)
        assert not thread.is_alive()
    holder.close()


@settings(max_examples=400, deadline=None)
@given(
    body=st.one_of(
        st.binary(max_size=300),
        REQUESTS.map(msgspec.msgpack.encode),
        st.builds(
            lambda verb, rest: msgspec.msgpack.encode({"verb": verb, **rest}),
            st.sampled_from(sorted(ALLOWED)),
            st.dictionaries(st.sampled_from([*FIELDS, "root", "proof", "other"]), LIKELY, max_size=5),
        ),
    ),
    role=st.sampled_from([*(frozenset({role}) for role in Role), frozenset(Role), frozenset()]),
)
def test_any_request_has_an_answer(inside: Server, body: bytes, role: frozenset[Role]) -> None:
    """Whatever comes, by whomever: one well-formed answer, never `fault.internal`."""
    framed = inside._answer(Caller(os.geteuid(), role), body)
    assert int.from_bytes(framed[:4], "big") == len(framed) - 4
    answer = messages.decode_answer(framed[4:])
    if isinstance(answer, messages.Failed):
        assert answer.code != "fault.internal"
    if not role:
        assert isinstance(answer, messages.Failed)


def test_a_slow_or_silent_peer_is_left(inside: Server) -> None:
    path = inside.path  # type: ignore[attr-defined]
    with running.connect_as(path, None) as silent, running.connect_as(path, None) as slow:
        slow.sendall(b"\0\0")
        started = time.monotonic()
        assert drain(slow) == b""
        assert drain(silent) == b""
        assert time.monotonic() - started < 60
    good = running.connect_as(path, None)
    good.close()


def test_a_peer_that_never_reads_is_left(inside: Server) -> None:
    path = inside.path  # type: ignore[attr-defined]
    with running.connect_as(path, None) as deaf:
        deaf.settimeout(30)
        with pytest.raises(OSError):
            while True:
                deaf.sendall(messages.frame(messages.Status()) * 100)
    deadline = time.monotonic() + 30
    while inside._open and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not inside._open


# --- secrets ---------------------------------------------------------------------------------------------------------


def spellings(secret: bytes) -> list[bytes]:
    """A secret as it might slip out."""
    found = [secret, secret[::-1], secret.hex().encode(), secret.hex().upper().encode(), repr(secret).encode()]
    found += [base64.b64encode(secret).rstrip(b"="), base64.urlsafe_b64encode(secret).rstrip(b"=")]
    return found


def secrets_of(folder: Path, key_ids: list[str]) -> dict[str, bytes]:
    """Every secret in a copy of a key folder."""
    living = folder / f"generation-{folders.newest(folder):06d}"
    root = FileKeyring(Keys()).open(living, PASSPHRASE)
    store = Store(living, root)
    found = {
        f"pair {number} of {key_id}": private
        for key_id in key_ids
        for number, private in enumerate(store.unlock(key_id)[1])
    }
    secrets = {"root key": root._root}
    given = recovery.read(living)
    if given is not None:
        secrets["recovery key"] = given.key(root)._root
    for name, secret in secrets.items():
        with secret.view() as view:
            found[name] = bytes(view)
    found |= {"intake key": store.intake_private(), "ledger key": store.log_private()}
    found |= {"passphrase": PASSPHRASE, "data key": DATA_KEY}
    store.close()
    return found


def test_no_verb_gives_a_secret_away(tmp_path: Path) -> None:
    """All bytes that the key holder sends over a session of every verb, and its log, searched for every secret."""
    if os.geteuid() != 0:
        pytest.skip("processes of several users can only be started by root")
    with running.running(running.KEYD, places=1) as holder:
        session(holder, tmp_path)


def session(keyd: Any, tmp_path: Path) -> None:
    operator, serve, worker, run = (keyd.client(uid) for uid in (0, SERVE, WORKER, RUN))
    mine = crypt4gh.generate_keypair()
    tree = running.Tree(9)
    operator.unseal(PASSPHRASE)
    with pytest.raises(KeyFault):
        operator.unseal(PASSPHRASE[:-1])
    names = ["identifiable", "anonymised", "result", "intake"]
    headers = {name: crypt4gh.build_header(DATA_KEY, [worker.create(name, name)]) for name in names}
    keyd.client(WORKER).confirm("anonymised")
    worker.adopt(crypt4gh.build_header(DATA_KEY, [serve.status().node_key]), "identifiable")
    worker.grant("g", names, RUN, 60)
    worker.renew("g", 60)
    for name in names:
        run.reseal("g", name, headers[name], mine.public)
        try:
            serve.reseal_outside(name, headers[name], mine.public)
        except RefusedFault:
            assert name != "anonymised"
    worker.sign(5, tree.root(5), [])
    worker.sign(9, tree.root(9), tree.proof(5, 9))
    for client in (operator, serve, worker, run):
        for request in (
            messages.Create("identifiable", "result"),
            messages.Adopt(b"x", "result"),
            messages.Adopt(headers["result"], "result"),
            messages.ResealOutside("result", headers["anonymised"], bytes(32)),
            messages.Reseal("g", "result", headers["anonymised"], bytes(32)),
            messages.Sign(3, bytes(32), []),
            messages.Unseal(b"guess"),
        ):
            with pytest.raises(Fault):
                client._ask(request, None)
    worker.rotate("identifiable", 2)
    worker.reseal_within("identifiable", [headers["identifiable"]])
    shutil.copytree(keyd.keys, tmp_path / "copy")
    known = secrets_of(tmp_path / "copy", names)
    people = People("anna", "bo", "eva")
    operator.order(people.ceremony("anna", "bo", "eva"), [])
    words = [people.opened(operator.shares(name).recovery, name) for name in ("anna", "bo")]
    operator.order(people.signed(ordered("drill"), "anna", "eva"), words)
    shutil.copytree(keyd.keys, tmp_path / "second")
    known |= {f"second {name}": secret for name, secret in secrets_of(tmp_path / "second", names).items()}
    operator.order(people.ceremony("anna", "bo", "eva", persons=2), [])
    [act, *_] = serve.held(0)
    assert act.minutes and worker.custody().state.persons == 2 and not worker.back_up()[0].fault
    keyd.stop()
    keyd.start()
    for name in ("bo", "eva"):
        opened = people.opened(operator.shares(name).unsealing, name)
        words.append(opened)
        operator.unseal_share(opened)
        with contextlib.suppress(Fault):
            operator.unseal_share(words[0])
            operator.unseal_share(opened)
    for name in ("bo", "eva"):
        operator.unseal_share(people.opened(operator.shares(name).unsealing, name))
    known |= {f"share {number}": one.encode() for number, one in enumerate(words)}
    living = keyd.keys / f"generation-{folders.newest(keyd.keys):06d}"
    unsealing = recovery.read_unsealing(living)
    assert unsealing is not None
    known["dealt passphrase"] = unsealing.passphrase(words[2:])
    known |= {f"officer {name}": private for name, private in people.private.items()}
    worker.retire("identifiable", 2)
    worker.narrow("anonymised")
    worker.revoke("g")
    worker.destroy("result")
    operator.order(people.signed(ordered("destroy", key_ids=("identifiable", "intake")), "anna", "bo"), [])
    keyd.stop()
    sent = b"".join(b"".join(client.seen) for client in (operator, serve, worker, run))
    assert len(sent) > 2000
    said = sent + keyd.log.read_bytes()
    places = (keyd.keys, *keyd.places, tmp_path / "copy", tmp_path / "second")
    disk = b"".join(file.read_bytes() for place in places for file in place.rglob("*.json"))
    for name, secret in known.items():
        for spelling in spellings(secret):
            assert spelling not in said, f"the {name} was sent or logged"
            assert spelling not in disk, f"the {name} lies open on disk"


def test_the_process_gives_no_core_and_no_debugger(keyd: Any) -> None:
    limits = Path(f"/proc/{keyd.process.pid}/limits").read_text()
    assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]
    # Files in /proc of a process that is not dumpable belong to root, whatever its user.
    assert Path(f"/proc/{keyd.process.pid}/environ").stat().st_uid == 0
    command = Path(f"/proc/{keyd.process.pid}/cmdline").read_bytes()
    environment = Path(f"/proc/{keyd.process.pid}/environ").read_bytes()
    assert PASSPHRASE not in command + environment
    locked = Path(f"/proc/{keyd.process.pid}/status").read_text().split("VmLck:")[1].split()[0]
    assert int(locked) >= 4


# --- what must stay inside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        {"key_class": "anonymised", "confirmed": True},
        {"key_class": "anonymised", "confirmed": True, "version": 9},
        {"confirmed": True},
    ],
)
@pytest.mark.parametrize("restart", [False, True])
def test_editing_files_does_not_let_identifiable_data_out(keyd: Any, edit: dict[str, object], restart: bool) -> None:
    serve = keyd.client(SERVE)
    header = crypt4gh.build_header(DATA_KEY, [serve.create("v1", "identifiable")])
    outside = crypt4gh.generate_keypair()
    with pytest.raises(RefusedFault):
        serve.reseal_outside("v1", header, outside.public)
    living = keyd.keys / "generation-000001"
    record = living / "keys" / "v1.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **edit}))
    index = living / "index.json"
    if restart:
        keyd.stop()
        keyd.start()
    with pytest.raises(KeyFault, match="altered"):
        serve.reseal_outside("v1", header, outside.public)
    text = json.loads(index.read_text())
    text["content"]["versions"]["v1"] = 0
    index.write_text(json.dumps(text))
    with pytest.raises(KeyFault, match="altered"):
        serve.reseal_outside("v1", header, outside.public)


def test_files_from_before_narrowing_do_not_let_data_out(keyd: Any) -> None:
    serve = keyd.client(SERVE)
    header = crypt4gh.build_header(DATA_KEY, [serve.create("v1", "anonymised")])
    outside = crypt4gh.generate_keypair()
    keyd.client(WORKER).confirm("v1")
    assert serve.reseal_outside("v1", header, outside.public)
    record = keyd.keys / "generation-000001" / "keys" / "v1.json"
    before = record.read_bytes()
    serve.narrow("v1")
    record.write_bytes(before)
    for _ in range(2):
        with pytest.raises(KeyFault, match="older copy"):
            serve.reseal_outside("v1", header, outside.public)
        keyd.stop()
        keyd.start()


def test_a_header_of_one_key_does_not_open_under_another(keyd: Any) -> None:
    """A header of identifiable data, presented as one of an anonymised version."""
    serve = keyd.client(SERVE)
    header = crypt4gh.build_header(DATA_KEY, [serve.create("closed", "identifiable")])
    serve.create("free", "anonymised")
    keyd.client(WORKER).confirm("free")
    with pytest.raises(KeyFault):
        serve.reseal_outside("free", header, crypt4gh.generate_keypair().public)
    with pytest.raises(KeyFault):
        serve.adopt(header, "free")
