"""Stores that confined processes read through the worker: the protocol, who may do what, and what a hostile one can."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from valv.compute import bodies_wire as wire
from valv.compute.bodies import Client, RemoteStorage
from valv.compute.bodies_room import Limits
from valv.compute.bodies_server import BodiesServer, Served
from valv.compute.wire import LENGTH, Answer, Failure
from valv.errors import (
    Fault,
    FullFault,
    InputFault,
    IntegrityFault,
    MissingFault,
    StorageFault,
    UnreachableFault,
)
from valv.formats.crypt4gh import generate_keypair
from valv.formats.seal import sidecar
from valv.ports.storage import Body, BodyWriter, Place, Usage
from valv.storage.local import LocalStorage
from valv.vault.copies import Copies
from valv.vault.encrypt import Encryptor
from valv.vault.reader import open_reader

PLACE = Place("SE", "test")
OWN = os.geteuid()
MIB = 1 << 20
LIMITS = Limits()
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


class Counted:
    """A body that tells when it is opened and closed, and can be slow or broken."""

    def __init__(self, body: Body, store: Store) -> None:
        self._body = body
        self._store = store
        self.size = body.size

    def pread_into(self, target: Buffer, offset: int) -> int:
        if self._store.fault is not None:
            raise self._store.fault
        return self._body.pread_into(target, offset)

    def close(self) -> None:
        self._store.closed += 1
        self._body.close()


@dataclass
class Store:
    """A store in a folder, as if it were far away."""

    inner: LocalStorage
    fault: Exception | None = None
    opened: int = 0
    closed: int = 0
    writers: list[BodyWriter] = field(default_factory=list)

    @property
    def place(self) -> Place:
        return self.inner.place

    def open(self, name: str) -> Body:
        self.opened += 1
        return Counted(self.inner.open(name), self)

    def writer(self, name: str) -> BodyWriter:
        if isinstance(self.fault, FullFault):
            raise self.fault
        self.writers.append(self.inner.writer(name))
        return self.writers[-1]

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def delete(self, name: str) -> None:
        self.inner.delete(name)

    def names(self) -> Iterator[str]:
        return self.inner.names()

    def usage(self) -> Usage:
        return self.inner.usage()

    def sweep(self) -> int:
        return self.inner.sweep()


@dataclass
class Scene:
    folder: Path
    store: Store
    served: Served
    server: BodiesServer
    told: list[tuple[str, str, str, int]]
    limits: Limits

    @property
    def path(self) -> Path:
        return self.folder / "bodies.sock"

    def client(self) -> Client:
        return Client(self.path, OWN)

    def remote(self) -> RemoteStorage:
        return self.client().store("far", PLACE)

    def put(self, name: str, data: bytes) -> None:
        writer = self.store.inner.writer(name)
        writer.write(data)
        writer.commit()

    def restart(self) -> None:
        self.server.close()
        self.server = BodiesServer(self.path, self.served, lambda *tale: self.told.append(tale), self.limits)

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20)
        connection.connect(str(self.path))
        return connection

    def ask(self, connection: socket.socket, message: Any, data: bytes = b"") -> Answer | None:
        """Any message, as a process that holds to no rule would send it."""
        body = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
        with contextlib.suppress(OSError):
            connection.sendall(LENGTH.pack(len(body)) + body + data)
        return answer(connection)


def answer(connection: socket.socket) -> Answer | None:
    try:
        received = wire.receive(connection, 20, 20)
    except OSError:
        return None
    return None if received is None else msgspec.msgpack.decode(received, type=Answer)


@contextlib.contextmanager
def scene(
    folder: Path,
    *,
    mounts: frozenset[int] = frozenset(),
    readers: frozenset[int] = frozenset({OWN}),
    written: str = "far",
    limits: Limits = LIMITS,
) -> Iterator[Scene]:
    store = Store(LocalStorage(folder / "store", PLACE))
    served = Served({"far": store}, written, frozenset({"main", "far"}), mounts, readers)
    told: list[tuple[str, str, str, int]] = []
    server = BodiesServer(folder / "bodies.sock", served, lambda *tale: told.append(tale), limits)
    it = Scene(folder, store, served, server, told, limits)
    try:
        yield it
    finally:
        it.server.close()


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Scene]:
    with scene(tmp_path) as made:
        yield made


def soon(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if check():
            return True
        time.sleep(0.01)
    return False


# --- reading ---


def test_ranges_are_those_of_the_body(it: Scene) -> None:
    data = random.Random(1).randbytes(2 * wire.PIECE + 12_345)
    it.put("body", data)
    body = it.remote().open("body")
    assert body.size == len(data)
    draw = random.Random(2)
    for _ in range(50):
        offset, size = draw.randrange(len(data) + 1000), draw.choice((0, 1, 65_564, MIB))
        target = bytearray(size)
        assert body.pread_into(target, offset) == max(0, min(size, len(data) - offset))
        assert target[: max(0, len(data) - offset)] == data[offset : offset + size]
    whole = bytearray(len(data) + 10)
    assert body.pread_into(whole, 0) == len(data)
    assert whole[: len(data)] == data
    body.close()
    assert it.store.opened == 1  # kept open from read to read


def test_a_file_is_decrypted_from_there(it: Scene) -> None:
    keys, plain = generate_keypair(), random.Random(3).randbytes(3 * MIB)
    encryptor = Encryptor(it.remote().writer("b"), it.remote().writer(sidecar("b")), keys.public)
    encryptor.write(plain)
    sealed = encryptor.finish()
    nearer = LocalStorage(it.folder / "main", PLACE)
    storage = Copies({"main": nearer, "far": it.remote()}, ["main", "far"])
    reader = open_reader(
        storage.open,
        "b",
        sealed.header,
        keys.private,
        size=len(plain),
        seal_root=sealed.seal_root,
        tree_root=sealed.tree_root,
    )
    assert reader.read(0, len(plain)) == plain
    reader.close()


def test_many_threads_and_clients_at_once(it: Scene) -> None:
    bodies = {f"b{number}": random.Random(number).randbytes(MIB + number) for number in range(6)}
    for name, data in bodies.items():
        it.put(name, data)
    shared, wrong = it.client(), []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        remote = (shared if seed % 2 else it.client()).store("far", PLACE)
        try:
            for _ in range(30):
                name = draw.choice(list(bodies))
                body, offset = remote.open(name), draw.randrange(MIB)
                target = bytearray(draw.choice((10, 300_000)))
                count = body.pread_into(target, offset)
                if target[:count] != bodies[name][offset : offset + len(target)]:
                    wrong.append(name)
        except BaseException as fault:
            wrong.append(repr(fault))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    it.server.close()
    assert it.store.closed == it.store.opened


def test_faults_are_those_of_the_store(it: Scene) -> None:
    remote = it.remote()
    with pytest.raises(MissingFault, match="nothing"):
        remote.open("nothing")
    with pytest.raises(InputFault):
        remote.open("../etc")
    it.put("body", b"x" * 1000)
    body = remote.open("body")
    for fault in (
        StorageFault("the medium failed"),
        UnreachableFault("the store is away"),
        IntegrityFault("it is another"),
        MissingFault("gone"),
    ):
        it.store.fault = fault
        with pytest.raises(type(fault), match=fault.detail):
            body.pread_into(bytearray(10), 0)
    it.store.fault = ValueError("a mistake, with a /path")
    with pytest.raises(StorageFault) as caught:
        body.pread_into(bytearray(10), 0)
    assert "/path" not in str(caught.value)
    it.store.fault = None
    assert body.pread_into(bytearray(10), 0) == 10
    with pytest.raises(StorageFault, match="not read here"):
        it.client().store("main", PLACE).open("body")  # a folder, which the worker does not give out
    for call in (remote.names, remote.usage, remote.sweep):
        with pytest.raises(StorageFault):
            call()


def test_a_worker_that_is_started_again_is_found_again(it: Scene) -> None:
    it.put("body", b"0123456789")
    body = it.remote().open("body")
    target = bytearray(10)
    assert body.pread_into(target, 0) == 10
    it.restart()
    assert body.pread_into(target, 0) == 10
    it.server.close()
    threading.Timer(1.0, it.restart).start()
    assert body.pread_into(target, 0) == 10


def test_a_worker_that_is_away_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valv.compute.bodies.RESTART", 0.2)
    client = Client(tmp_path / "bodies.sock", OWN)
    with pytest.raises(UnreachableFault):
        client.store("far", PLACE).size("body")
    with pytest.raises(UnreachableFault):
        client.store("far", PLACE).writer("body")
    began = time.monotonic()
    client.suspect("body", "far", IntegrityFault("x"))  # and says nothing, at once
    assert time.monotonic() - began < 0.1


def test_somebody_else_who_answers_is_not_believed(it: Scene) -> None:
    it.put("body", b"bytes")
    with pytest.raises(UnreachableFault, match="somebody else"):
        Client(it.path, OWN + 1).store("far", PLACE).size("body")


# --- writing ---


def test_a_body_is_written_once_and_taken_back_by_its_writer_alone(it: Scene) -> None:
    remote, data = it.remote(), random.Random(4).randbytes(wire.PIECE + 99_999)
    writer = remote.writer("new")
    writer.write(data[:10])
    writer.write(data[10:])
    assert "new" not in set(it.store.names())
    writer.commit()
    body = remote.open("new")
    found = bytearray(len(data))
    assert body.pread_into(found, 0) == len(data) and found == data
    with pytest.raises(StorageFault, match="exists"):
        remote.writer("new")
    with pytest.raises(StorageFault):
        it.remote().delete("new")
    it.put("other", b"x")
    with pytest.raises(StorageFault):
        remote.delete("other")
    remote.delete("never")
    with remote._client.connect() as connection:
        refused = it.ask(connection, wire.Delete("far", "new"))
        assert refused is not None and refused.fault is not None and refused.fault.code == "fault.input"
    remote.delete("new")
    remote.delete("new")
    assert set(it.store.names()) == {"other"}


def test_two_bodies_are_written_at_once_and_connections_used_again(it: Scene) -> None:
    remote = it.remote()
    for number in range(20):
        one, other = remote.writer(f"a{number}"), remote.writer(f"a{number}.seal")
        one.write(b"one")
        other.write(b"other")
        other.commit()
        one.commit()
    assert len(list(it.store.names())) == 40
    assert len(it.server._connections) <= 3
    for number in range(20):
        for name in (f"a{number}", f"a{number}.seal"):
            remote.delete(name)
    assert not list(it.store.names())


def test_what_is_given_up_or_cut_leaves_nothing(it: Scene) -> None:
    remote = it.remote()
    writer = remote.writer("given-up")
    writer.write(b"bytes")
    writer.abort()
    writer.abort()
    with pytest.raises(StorageFault):
        writer.write(b"more")
    writer = remote.writer("cut")
    writer.write(b"bytes")
    connection = writer._writing._connection  # type: ignore[union-attr]
    connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(UnreachableFault):
        writer.write(b"more")
    writer.abort()
    new = it.folder / "store" / "new"
    assert soon(lambda: not list(new.iterdir()))
    assert not list(it.store.names())
    remote.writer("given-up").commit()


def test_a_full_store_is_full_here_too(it: Scene) -> None:
    remote = it.remote()
    it.store.fault = FullFault("no room")
    with pytest.raises(FullFault, match="no room"):
        remote.writer("body")


def test_new_bodies_go_to_one_store_only(tmp_path: Path) -> None:
    with scene(tmp_path, written="main") as it, pytest.raises(InputFault, match="do not go"):
        it.remote().writer("body")
    assert not list(it.store.names())


# --- who may ---

CHILD = """
import os, sys
from valv.compute.bodies import Client, exchange
from valv.compute.bodies_wire import Suspect
from valv.errors import Fault, UnreachableFault
from valv.ports.storage import Place
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
client = Client(sys.argv[1], 0)
remote = client.store("far", Place("SE", "test"))
def said(message):
    try:
        with client.connect() as connection:
            exchange(connection, message)
    except OSError as error:
        raise UnreachableFault(str(error)) from None
for name, act in {
    "read": lambda: remote.open("body").pread_into(bytearray(5), 0),
    "write": lambda: remote.writer("new").abort(),
    "delete": lambda: remote.delete("body"),
    "suspect": lambda: said(Suspect("far", "body", "fault.integrity")),
}.items():
    try:
        act(); print(name, "yes")
    except Fault as fault:
        print(name, fault.code)
"""


@root_only
def test_each_user_may_what_its_process_must() -> None:
    mount, reader, command = 615100, 615900, 615101
    with (
        tempfile.TemporaryDirectory() as name,
        scene(Path(name), mounts=frozenset({mount}), readers=frozenset({reader})) as it,
    ):
        it.folder.chmod(0o755)
        it.put("body", b"bytes")

        def asked(uid: int) -> dict[str, str]:
            command = [sys.executable, "-c", CHILD, str(it.path), str(uid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return dict(line.split() for line in done.stdout.splitlines())

        yes = {"read": "yes", "suspect": "yes"}
        assert asked(mount) == yes | {"write": "fault.input", "delete": "fault.storage"}
        assert asked(reader) == yes | {"write": "yes", "delete": "fault.storage"}
        refused = dict.fromkeys(("read", "write", "delete", "suspect"), "fault.unreachable")
        assert asked(command) == refused
        assert asked(0) == refused  # nobody else, whoever it is
        assert {uid for _, _, _, uid in it.told} == {mount, reader}
        assert set(it.store.names()) == {"body"}


# --- suspicion ---


def test_a_suspicion_is_a_code_and_nothing_else(it: Scene) -> None:
    client = it.client()
    client.suspect("body", "main", IntegrityFault("segment 3: a secret"))
    client.suspect("body", "far", UnreachableFault("x"))
    client.suspect("body", "nowhere", IntegrityFault("x"))
    assert it.told == [("body", "main", "fault.integrity", OWN), ("body", "far", "fault.unreachable", OWN)]
    with it.connect() as connection:
        for message in (
            wire.Suspect("far", "body", "plain bytes, as text"),
            wire.Suspect("far", "a/b", "fault.integrity"),
        ):
            with it.connect() as connection:
                refused = it.ask(connection, message)
                assert refused is not None and refused.fault is not None
    assert len(it.told) == 2


# --- hostile ---


def test_requests_out_of_order_are_refused(it: Scene) -> None:
    it.put("body", b"bytes")
    with it.connect() as connection:
        for message in (wire.Commit(), wire.Write("far", "body"), wire.Write("main", "x")):
            refused = it.ask(connection, message)
            assert refused is not None and refused.fault is not None, message
        assert it.ask(connection, wire.Abort()) == Answer()
        refused = it.ask(connection, wire.Piece(3), b"abc")
        assert refused is not None and refused.fault is not None
        assert it.ask(connection, wire.Write("far", "x")) == Answer()
        refused = it.ask(connection, wire.Write("far", "y"))
        assert refused is not None and refused.fault is not None
        assert it.ask(connection, wire.Piece(3), b"abc") == Answer()
        assert it.ask(connection, wire.Size("far", "body")) == Answer(value=5)
        assert it.ask(connection, wire.Commit()) == Answer()
    assert it.store.size("x") == 3


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        b"\x90" * 1000,
        b"\x91" * 60_000,
        msgspec.msgpack.encode({"type": "nothing"}),
        wire.Read("far", "body", -1, 10),
        wire.Read("far", "body", 1 << 62, 10),
        wire.Read("far", "body", 0, -1),
        wire.Read("far", "body", 0, wire.PIECE + 1),
        wire.Piece(wire.PIECE + 1),
        wire.Piece(-1),
        wire.Size("far", "../body"),
        wire.Size("far", "b" * 201),
        wire.Size("far", ""),
        wire.Size("FAR", "body"),
        wire.Write("far", ".hidden"),
        wire.Delete("far", "a\0b"),
    ],
)
def test_what_is_no_request_is_answered_so_and_ends_the_connection(it: Scene, message: Any) -> None:
    it.put("body", b"bytes")
    with it.connect() as connection:
        refused = it.ask(connection, message)
        assert refused is not None and refused.fault is not None and refused.fault.code == "fault.input"
        assert answer(connection) is None
    assert it.remote().size("body") == 5


def test_a_frame_without_end_is_not_read(it: Scene) -> None:
    with it.connect() as connection:
        connection.sendall(LENGTH.pack(0xFFFF_FFFF))
        refused = answer(connection)
        assert refused is not None and refused.fault is not None
        assert answer(connection) is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.binary(max_size=200).map(lambda data: LENGTH.pack(len(data)) + data),
            st.builds(
                lambda tag, store, name, offset, count, why: (lambda data: LENGTH.pack(len(data)) + data)(
                    msgspec.msgpack.encode(
                        {"type": tag, "store": store, "name": name, "offset": offset, "count": count, "why": why}
                    )
                ),
                st.sampled_from(["size", "read", "write", "piece", "commit", "abort", "delete", "suspect", "x"]),
                st.sampled_from(["far", "main", "", "\0"]),
                st.sampled_from(["body", "new", "../x", "", "a" * 300]) | st.text(max_size=10),
                st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 10),
                st.integers(-5, 20) | st.integers(-(1 << 40), 1 << 40),
                st.text(max_size=20),
            ),
        ),
        max_size=8,
    )
)
def test_no_bytes_break_the_server(it: Scene, pieces: list[bytes]) -> None:
    if "body" not in set(it.store.names()):
        it.put("body", b"bytes")
    with it.connect() as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"".join(pieces))
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # it closed before it had read all
            while connection.recv(1 << 16):
                pass
    assert set(it.store.names()) <= {"body", "new"}
    remote = it.remote()
    body = remote.open("body")
    target = bytearray(5)
    assert body.pread_into(target, 0) == 5 and target == b"bytes"
    remote._client.close()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_no_answer_breaks_the_client(data: bytes) -> None:
    """Whatever the other side says, it is a fault or a value, and never more bytes than were asked for."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(LENGTH.pack(len(data)) + data)
        theirs.shutdown(socket.SHUT_WR)
        client = Client("/nowhere")
        target = bytearray(10)
        with contextlib.suppress(Fault, OSError):
            client._ask(ours, wire.Read("far", "body", 0, 10), memoryview(target))
    client.close()


def test_connections_are_bounded_for_each_user(tmp_path: Path) -> None:
    limits = Limits(connections=6, connections_each=3)
    with scene(tmp_path, mounts=frozenset({OWN + 1}), limits=limits) as it:
        it.put("body", b"bytes")
        held = [it.connect() for _ in range(3)]
        assert all(it.ask(one, wire.Size("far", "body")) == Answer(value=5) for one in held)
        with it.connect() as more:
            assert it.ask(more, wire.Size("far", "body")) is None
        held.pop().close()
        assert soon(lambda: _size(it) == 5)
        for one in held:
            one.close()


def _size(it: Scene) -> int | None:
    with it.connect() as connection:
        found = it.ask(connection, wire.Size("far", "body"))
        return None if found is None else found.value


def test_memory_is_bounded_where_nobody_takes_the_answers(tmp_path: Path) -> None:
    """Slow readers hold their own share and no more, and are hung up on."""
    limits = Limits(room=3 * wire.PIECE, room_each=2 * wire.PIECE, transfer=1.5)
    with scene(tmp_path, mounts=frozenset({OWN + 1}), limits=limits) as it:
        it.put("body", bytes(2 * wire.PIECE))
        held = [it.connect() for _ in range(8)]
        message = msgspec.msgpack.encode(wire.Read("far", "body", 0, wire.PIECE))
        for one in held:
            one.sendall(LENGTH.pack(len(message)) + message)
        room = it.server._room
        most = 0
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            most = max(most, room._taken.total())
            time.sleep(0.01)
        assert most == 2 * wire.PIECE
        assert soon(lambda: room._taken.total() == 0, 15)
        assert len(it.server._connections) < len(held)
        for one in held:
            one.close()
        assert _size(it) == 2 * wire.PIECE


def test_who_sends_too_slowly_is_hung_up_on(tmp_path: Path) -> None:
    with scene(tmp_path, limits=Limits(transfer=0.5, idle=1.0)) as it:
        it.put("body", b"bytes")
        with it.connect() as idle, it.connect() as slow, it.connect() as writing:
            began = time.monotonic()
            slow.sendall(b"\0")
            assert it.ask(writing, wire.Write("far", "x")) == Answer()
            piece = msgspec.msgpack.encode(wire.Piece(MIB))
            writing.sendall(LENGTH.pack(len(piece)) + piece + b"some")
            assert [one.recv(1) for one in (slow, writing, idle)] == [b"", b"", b""]
            assert time.monotonic() - began < 5
        assert soon(lambda: not list((it.folder / "store" / "new").iterdir()))
        assert it.server._room._taken.total() == 0


def test_bodies_are_kept_open_for_a_while_and_not_too_many(tmp_path: Path) -> None:
    with scene(tmp_path, limits=replace(LIMITS, bodies=5, open=0.3)) as it:
        remote = it.remote()
        for number in range(20):
            it.put(f"b{number}", b"bytes")
            assert remote.open(f"b{number}").pread_into(bytearray(5), 0) == 5
        assert it.store.opened - it.store.closed <= 5
        time.sleep(0.4)
        assert remote.size("b0") == 5
        assert it.store.opened - it.store.closed == 1


def test_reading_is_fast_enough(it: Scene) -> None:
    """A guard against copying bytes about: 64 MiB through the socket must take no second of processor time."""
    it.put("body", bytes(64 * MIB))
    body = it.remote().open("body")
    target = bytearray(MIB)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for at in range(0, body.size, MIB):
        assert body.pread_into(target, at) == MIB
    after = resource.getrusage(resource.RUSAGE_SELF)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_a_fault_keeps_its_kind_on_the_way() -> None:
    for fault in (FullFault("a", "b"), MissingFault("a"), UnreachableFault("a")):
        found = Failure.of(fault).exception()
        assert type(found) is type(fault) and found.detail == "a"
