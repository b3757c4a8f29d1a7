"""Re-encryption through the launcher and the key holder, both really running: who may ask, what it leaves, and that it
ends with whoever waits for it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.attack.scene import connected
from tests.compute import stand
from tests.compute.stand import Node
from tests.compute.test_rootless import as_user
from valv.compute import stream, wire
from valv.compute.client import LauncherClient
from valv.errors import (
    ComputeFault,
    Fault,
    FormatFault,
    InputFault,
    IntegrityFault,
    KeyFault,
    MissingFault,
    RefusedFault,
    StorageFault,
    UnreachableFault,
)
from valv.formats.crypt4gh import KeyPair, build_header, generate_keypair, open_header
from valv.ports.compute import MOST_REKEYED, MountedFile, Rekeyed
from valv.vault.reader import open_reader

BIG = 192 << 20
"""Bytes of a file that takes a while."""
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", name="node")
def _node() -> Iterator[Node]:
    yield from stand.started()


@pytest.fixture(scope="module")
def big(node: Node) -> tuple[MountedFile, bytes]:
    data = random.Random(1).randbytes(1 << 20) * (BIG >> 20)
    return node("put", "set/big", data), data


@pytest.fixture
def body(node: Node) -> Iterator[str]:
    """A name for a new body; nothing is left under it, and nothing else is new."""
    before = set(node("stored"))
    name = f"n{os.urandom(8).hex()}"
    yield name
    for one in (name, f"{name}.seal"):
        node("storage.delete", one)
    node("storage.sweep")
    assert set(node("stored")) <= before | {one for one in node("stored") if one[0] == "b"}
    assert new_files(node) == []


def new_files(node: Node) -> list[Path]:
    return list((node.home / "store" / "new").iterdir())


def granted(node: Node, *files: MountedFile) -> tuple[str, str]:
    """A token and a grant for its user."""
    token, uid = node("reader.reserve")
    grant = f"rekey-{os.urandom(6).hex()}"
    node("keyd.grant", grant, [file.key_id for file in files], uid, 60.0)
    return token, grant


def rekeyed(node: Node, file: MountedFile, public: bytes, body: str) -> Rekeyed:
    return taken(node("rekey_all", *granted(node, file), [(file, body)], public))


def taken(answers: list[Rekeyed | Fault]) -> Rekeyed:
    """The one answer; where it is a fault, that is raised."""
    (made,) = answers
    if isinstance(made, Fault):
        raise made
    return made


def anew(node: Node, file: MountedFile, made: Rekeyed, key_id: str, body: str) -> MountedFile:
    """The file as its record then has it."""
    return msgspec.structs.replace(
        file, body=body, header=made.header, key_id=key_id, seal_root=made.seal_root, tree_root=made.tree_root
    )


def processes(node: Node) -> list[int]:
    """Python processes of the module `valv.assemble.rekey`, without what confines them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            ours = "valv.assemble.rekey" in words and str(node.home) in words
            if ours and words[0].endswith(Path(sys.executable).name):
                found.append(int(entry.name))
    return found


def until(good: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := good()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


def key_of(node: Node) -> tuple[str, bytes]:
    """A new key of the node: its id and its public half."""
    key_id = f"key-{os.urandom(6).hex()}"
    return key_id, node("keyd.create", key_id, "identifiable")


# --- what it does ---


@pytest.mark.parametrize("size", [0, 1, 65536, 9_000_000])
def test_a_file_is_encrypted_anew_and_read_with_its_new_key(node: Node, body: str, size: int) -> None:
    data = os.urandom(size)
    file = node("put", "set/x", data)
    key_id, public = key_of(node)
    made = rekeyed(node, file, public, body)
    new = anew(node, file, made, key_id, body)
    assert node("read", new) == data
    assert node("read", file) == data
    assert node("storage.size", body) == made.cipher_size
    with pytest.raises(Fault):  # the old key opens nothing of the new file
        node("read", msgspec.structs.replace(new, key_id=file.key_id))
    again, further = key_of(node), f"{body}-2"
    second = rekeyed(node, new, again[1], further)
    assert node("read", anew(node, new, second, again[0], further)) == data
    for one in (further, f"{further}.seal"):
        node("storage.delete", one)
    until(lambda: not processes(node))


def test_worker_and_server_can_read_and_delete_what_it_wrote(node: Node, body: str) -> None:
    file = node("put", "set/x", b"x" * 100_000)
    pair = generate_keypair()
    made = rekeyed(node, file, pair.public, body)
    for name in (body, f"{body}.seal"):
        (path,) = node.home.glob(f"store/bodies/*/{name}")
        found, folder = path.stat(), path.parent.stat()
        assert stat.S_IMODE(found.st_mode) == 0o640
        if node.users.root:
            assert found.st_gid == folder.st_gid == node.users.group
            assert found.st_uid in node.users.readers
            assert stat.S_IMODE(folder.st_mode) == 0o2770
            for uid in (node.users.worker, node.users.serve):
                assert as_one_of_the_node(node, uid, ["cat", str(path)]) == path.read_bytes()
    node("storage.delete", body)  # as the worker
    if node.users.root:
        (path,) = node.home.glob(f"store/bodies/*/{body}.seal")
        as_one_of_the_node(node, node.users.serve, ["rm", str(path)])
        assert not path.exists()
    assert made.segments == 2
    # Folders that it made are open to the worker, too: new bodies of any name can still be written.
    assert node("read", node("put", "set/y", b"y")) == b"y"


def as_one_of_the_node(node: Node, uid: int, command: list[str]) -> bytes:
    user = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--groups", str(node.users.group)]
    return subprocess.run([*user, *command], check=True, capture_output=True).stdout


def test_the_header_is_for_the_key_that_was_named(node: Node, body: str) -> None:
    file, pair = node("put", "set/x", b"secret" * 20_000), generate_keypair()
    made = rekeyed(node, file, pair.public, body)
    assert len(open_header(made.header, [pair.private]).data_keys) == 1
    storage = stand.LocalStorage(node.config.path("store"), stand.Place("SE", "test"))
    reader = open_reader(
        storage.open,
        body,
        made.header,
        pair.private,
        size=file.size,
        seal_root=made.seal_root,
        tree_root=made.tree_root,
    )
    assert reader.read(0, file.size) == b"secret" * 20_000
    reader.close()


# --- what is refused ---


def test_a_damaged_file_is_refused(node: Node, body: str) -> None:
    file = node("put", "set/x", os.urandom(500_000))
    (path,) = node.home.glob(f"store/bodies/*/{file.body}")
    raw = bytearray(path.read_bytes())
    raw[300_000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(IntegrityFault, match="segment 4 "):
        rekeyed(node, file, generate_keypair().public, body)
    assert body not in node("stored")
    assert new_files(node) == []
    with pytest.raises(MissingFault):
        rekeyed(node, msgspec.structs.replace(file, body="b-nonesuch"), generate_keypair().public, body)


def test_no_grant_no_token_no_second_use(node: Node, body: str) -> None:
    file, public = node("put", "set/x", b"x"), generate_keypair().public
    token, _ = node("reader.reserve")
    with pytest.raises(RefusedFault):
        node("rekey_all", token, "rekey-unknown", [(file, body)], public)
    with pytest.raises(ComputeFault, match="token"):
        node("rekey_all", token, "rekey-unknown", [(file, body)], public)
    other = node("put", "set/y", b"y")
    with pytest.raises(RefusedFault):  # the grant is for another key
        node("rekey_all", *granted(node, other), [(file, body)], public)
    rekeyed(node, file, public, body)
    with pytest.raises(StorageFault, match="exists"):
        rekeyed(node, file, public, body)
    assert node("storage.size", body) == 1 + 28


@pytest.mark.parametrize("name", ["", "../up", "a/b", "-x", ".x", "x.seal", "A", "a" * 65, "x\n"])
def test_names_that_are_more_than_a_name(node: Node, name: str) -> None:
    file = node("put", "set/x", b"x")
    token, grant = granted(node, file)
    with pytest.raises(InputFault):
        node("rekey_all", token, grant, [(file, "good"), (file, name)], bytes(31) + b"x")
    # Nor does the launcher take what another client would send.
    key = bytes(31) + b"x"
    for bodies in ((name,), ("good", name), ("good,", "bad"), (), ("good", "good"), tuple(f"n{n}" for n in range(257))):
        answer = asked(node, node.users.worker, wire.Rekey(token, grant, key, bodies))
        assert answer.fault is not None and answer.fault.code == "fault.input"
    for key in (b"", bytes(31), bytes(33)):
        answer = asked(node, node.users.worker, wire.Rekey(token, grant, key, ("good",)))
        assert answer.fault is not None and answer.fault.code == "fault.input"


def asked(node: Node, uid: int, request: wire.Request) -> wire.Answer:
    """What the launcher answers this user, two descriptors with it."""
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0:
            groups = (node.users.group,)
            connection = stack.enter_context(connected(node.config.runtime / "launcher.sock", uid, groups))
        else:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(node.config.runtime / "launcher.sock"))
        (description, _), (ours, theirs) = (wire.files_descriptor(()), 0), socket.socketpair()
        with ours, theirs:
            socket.send_fds(connection, [wire.frame(request)], [description, theirs.fileno()])
            os.close(description)
            (length,) = wire.LENGTH.unpack(connection.recv(4, socket.MSG_WAITALL))
            return msgspec.msgpack.decode(connection.recv(length, socket.MSG_WAITALL), type=wire.Answer)


@pytest.mark.skipif(os.geteuid() != 0, reason="one user for all")
def test_the_server_may_not_ask(node: Node) -> None:
    file = node("put", "set/x", b"x")
    token, grant = granted(node, file)
    answer = asked(node, node.users.serve, wire.Rekey(token, grant, generate_keypair().public, ("mine",)))
    assert answer.fault is not None and "may only read" in answer.fault.detail
    assert "mine" not in node("stored")
    assert not processes(node)


# --- many files ---


def many(node: Node, count: int) -> list[MountedFile]:
    return [node("put", f"set/{number}", content(number)) for number in range(count)]


def content(number: int) -> bytes:
    return bytes([number]) * (number + 1)


def named(files: list[MountedFile], body: str) -> list[tuple[MountedFile, str]]:
    return [(file, f"{body}-{number}") for number, file in enumerate(files)]


def cleared(node: Node, body: str) -> None:
    for name in set(node("stored")):
        if name.startswith(body):
            node("storage.delete", name)


def test_a_damaged_file_does_not_keep_back_the_others(node: Node, body: str) -> None:
    files = many(node, 7)
    (path,) = node.home.glob(f"store/bodies/*/{files[3].body}")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    files[1] = msgspec.structs.replace(files[1], body="b-nonesuch")
    files[5] = msgspec.structs.replace(files[5], header=files[5].header[:-1] + bytes([files[5].header[-1] ^ 1]))
    files[6] = msgspec.structs.replace(files[6], header=b"crypt4gh")
    key_id, public = key_of(node)
    answers = node("rekey_all", *granted(node, *files), named(files, body), public)
    bad = {1: MissingFault, 3: IntegrityFault, 5: KeyFault, 6: FormatFault}
    for number, made in enumerate(answers):
        if number in bad:
            assert type(made) is bad[number]
            assert not {f"{body}-{number}", f"{body}-{number}.seal"} & set(node("stored"))
        else:
            assert node("read", anew(node, files[number], made, key_id, f"{body}-{number}")) == content(number)
    assert len(answers) == 7 and new_files(node) == []
    cleared(node, body)


def test_a_fault_of_the_store_ends_the_batch_and_what_was_told_stands(node: Node, body: str) -> None:
    files = many(node, 6)
    asked_for = named(files, body)
    asked_for[3] = (files[3], files[2].body)  # taken already
    reader, (key_id, public) = stand.SandboxReader(LauncherClient(node.config.runtime / "launcher.sock")), key_of(node)
    made = []
    with pytest.raises(StorageFault, match="exists"):
        for answer in reader.rekey(*granted(node, *files), asked_for, public):
            made.append(answer)
    assert len(made) == 3
    for number, one in enumerate(made):
        assert isinstance(one, Rekeyed)
        assert node("read", anew(node, files[number], one, key_id, f"{body}-{number}")) == content(number)
    assert node("read", files[2]) == content(2)
    assert {name for name in node("stored") if name.startswith(body)} == {
        f"{body}-{n}{end}" for n in range(3) for end in ("", ".seal")
    }
    cleared(node, body)


@pytest.mark.parametrize("end", ["kill", "close"])
def test_cut_off_in_the_middle_of_a_batch(node: Node, body: str, big: tuple[MountedFile, bytes], end: str) -> None:
    """What was told is there, and stays; after the end nothing more comes."""
    files = many(node, 40)
    key_id, public = key_of(node)
    token, grant = granted(node, big[0], *files)
    reader = stand.SandboxReader(LauncherClient(node.config.runtime / "launcher.sock"))
    asked_for = named([*files[:20], big[0], *files[20:]], body)  # the large one is where it is cut off
    answers, made = reader.rekey(token, grant, asked_for, public), []
    for answer in answers:
        made.append(answer)
        if len(made) == 20:
            break
    (pid,) = processes(node)
    if end == "close":
        answers.close()
    else:
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UnreachableFault):
            next(answers)
    until(lambda: not processes(node), 5)
    assert {name for name in node("stored") if name.startswith(body)} == {
        f"{body}-{n}{end}" for n in range(20) for end in ("", ".seal")
    }
    for number, one in enumerate(made):
        assert isinstance(one, Rekeyed)
        assert node("read", anew(node, files[number], one, key_id, f"{body}-{number}")) == content(number)
    node("storage.sweep")
    assert new_files(node) == []
    rest = [(file, f"{name}-again") for file, name in named(files, body)[20:]]
    again = node("rekey_all", *granted(node, *files), rest, public)
    for (file, name), one in zip(rest, again, strict=True):
        number = int(file.path.removeprefix("set/"))
        assert node("read", anew(node, file, one, key_id, name)) == content(number)
    cleared(node, body)


def test_the_most_files_in_one_process(node: Node, body: str) -> None:
    """One process answers for all of them; its grant may end once the first answer came."""
    files = many(node, MOST_REKEYED)
    key_id, public = key_of(node)
    token, grant = granted(node, *files)
    reader = stand.SandboxReader(LauncherClient(node.config.runtime / "launcher.sock"))
    seen, made = set(), []
    for answer in reader.rekey(token, grant, named(files, body), public):
        if not made:
            node("keyd.revoke", grant)
        seen |= set(processes(node))
        made.append(answer)
    assert len(made) == MOST_REKEYED and len(seen) == 1
    for number in (0, 100, MOST_REKEYED - 1):
        one = made[number]
        assert isinstance(one, Rekeyed)
        assert node("read", anew(node, files[number], one, key_id, f"{body}-{number}")) == content(number)
    cleared(node, body)


# --- its end ---


class Asking:
    """A `rekey` in a thread."""

    def __init__(self, node: Node, file: MountedFile, public: bytes, body: str) -> None:
        self.made: Rekeyed | None = None
        self.fault: Fault | None = None
        token, grant = granted(node, file)

        def ask() -> None:
            try:
                self.made = taken(node("rekey_all", token, grant, [(file, body)], public))
            except Fault as fault:
                self.fault = fault

        self._thread = threading.Thread(target=ask)
        self._thread.start()

    def end(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()


def test_killed_at_any_moment(node: Node, body: str, big: tuple[MountedFile, bytes], long: bool) -> None:
    """The old file stays readable; under the new name there is nothing, or a whole body that the caller deletes."""
    file, data = big
    pair, draw, turns = generate_keypair(), random.Random(7), 100 if long else 12
    before = set(node("stored"))
    began = time.monotonic()
    made = rekeyed(node, file, pair.public, body)
    took = time.monotonic() - began
    assert_whole(node, file, pair, body, made, data)
    for name in (body, f"{body}.seal"):
        node("storage.delete", name)
    killed = listed = 0
    for turn in range(turns):
        asking = Asking(node, file, pair.public, body)
        (pid,) = until(lambda: processes(node))
        time.sleep(draw.random() * took)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        asking.end()
        left = set(node("stored")) - before
        assert left <= {body, f"{body}.seal"}
        if asking.made is None:
            assert isinstance(asking.fault, UnreachableFault)
            killed += 1
            listed += bool(left)
        else:
            assert left == {body, f"{body}.seal"}
        if body in left:
            assert_whole(node, file, pair, body, asking.made, data)
        for name in (body, f"{body}.seal"):
            node("storage.delete", name)
        node("storage.sweep")
        assert new_files(node) == []
        if turn % 4 == 0:
            assert node("read", file) == data
    assert killed >= turns // 3
    assert listed < killed
    assert node("read", file) == data
    made = rekeyed(node, file, pair.public, body)  # and the work can be done after all
    assert_whole(node, file, pair, body, made, data)


def assert_whole(node: Node, file: MountedFile, pair: KeyPair, body: str, made: Rekeyed | None, data: bytes) -> None:
    """A committed body has its sidecar and its whole length; where the caller was told of it, it can be read."""
    assert node("storage.size", body) == len(data) + 28 * (len(data) >> 16)
    assert node("storage.size", f"{body}.seal") == 60 * (len(data) >> 16)
    if made is None:
        return
    storage = stand.LocalStorage(node.config.path("store"), stand.Place("SE", "test"))
    roots = {"seal_root": made.seal_root, "tree_root": made.tree_root}
    reader = open_reader(storage.open, body, made.header, pair.private, size=file.size, **roots)
    assert reader.read(0, file.size) == data
    reader.close()


def test_it_ends_with_whoever_waits_for_it(node: Node, body: str, big: tuple[MountedFile, bytes]) -> None:
    file, data = big
    client = LauncherClient(node.config.runtime / "launcher.sock")
    for pause in (0.0, 0.1, 0.2):
        with client.rekey(*granted(node, file), [(file, body)], generate_keypair().public):
            (pid,) = until(lambda: processes(node))
            time.sleep(pause)
        until(lambda: not Path(f"/proc/{pid}").exists(), 5)  # noqa: B023
        assert not processes(node)
        assert body not in node("stored")
        node("storage.sweep")
        assert new_files(node) == []
    assert node("read", file) == data


def test_its_place_is_free_again(node: Node, body: str) -> None:
    """More times than there are readers' users, some of them given up."""
    file, public = node("put", "set/x", b"x"), generate_keypair().public
    client = LauncherClient(node.config.runtime / "launcher.sock")
    for turn in range(stand.confine.READERS + 6):
        with client.rekey(*granted(node, file), [(file, f"{body}-{turn}")], public) as connection:
            if turn % 8 == 0:
                assert [kind for kind, _ in stream.frames(connection, None)] == [b"R"]
        if turn % 8:
            until(lambda: len(processes(node)) < 4)
    until(lambda: not processes(node))
    for name in set(node("stored")):
        if name.startswith(body):
            node("storage.delete", name)


def test_a_launcher_that_ends_takes_it_along(node: Node, body: str, big: tuple[MountedFile, bytes]) -> None:
    asking = Asking(node, big[0], generate_keypair().public, body)
    until(lambda: processes(node))
    os.kill(node.pid("launcher"), signal.SIGKILL)
    asking.end()
    assert isinstance(asking.fault, UnreachableFault)
    assert not processes(node)
    assert body not in node("stored")


# --- the answer ---


@pytest.mark.parametrize(
    "answer",
    ["nothing", "twice", "bytes", "junk", "other size", "no header", "cut", "junk fault", "fault of the store"],
)
def test_an_answer_that_is_none_is_refused(answer: str) -> None:
    """The process handles what others wrote: what it says is looked at."""
    made = Rekeyed(header_for(generate_keypair()), 1028, 1, bytes(32), bytes(32))
    file = MountedFile("f", "p", "b", b"", "k", 1000, bytes(32))

    class Client(LauncherClient):
        @contextlib.contextmanager
        def rekey(self, *_: object) -> Iterator[socket.socket]:
            ours, theirs = socket.socketpair()
            with ours:
                sender = stream.Sender(theirs)
                match answer:
                    case "twice":
                        sender.send(b"R", msgspec.msgpack.encode(made))
                        sender.send(b"R", msgspec.msgpack.encode(made))
                    case "junk fault":
                        sender.send(b"N", b"\xc1")
                    case "fault of the store":
                        sender.send(b"N", msgspec.msgpack.encode(wire.Failure.of(StorageFault("broken"))))
                    case "damaged":
                        sender.send(b"N", msgspec.msgpack.encode(wire.Failure.of(IntegrityFault("segment 4 is bad"))))
                    case "bytes":
                        sender.send(b"D", msgspec.msgpack.encode(made))
                    case "junk":
                        sender.send(b"R", b"\xc1")
                    case "other size":
                        sender.send(b"R", msgspec.msgpack.encode(msgspec.structs.replace(made, cipher_size=1029)))
                    case "no header":
                        sender.send(b"R", msgspec.msgpack.encode(msgspec.structs.replace(made, header=b"crypt4gh")))
                    case "good" | "cut":
                        sender.send(b"R", msgspec.msgpack.encode(made))
                if answer != "cut":
                    sender.finish()
                theirs.close()
                yield ours

    reader = stand.SandboxReader(Client("/nowhere"))
    with pytest.raises(UnreachableFault if answer == "cut" else FormatFault):
        list(reader.rekey("token", "grant", [(file, "new")], bytes(32)))
    answer = "good"
    assert list(reader.rekey("token", "grant", [(file, "new")], bytes(32))) == [made]
    with pytest.raises(FormatFault, match="without an answer"):
        list(reader.rekey("token", "grant", [(file, "new"), (file, "second")], bytes(32)))
    answer = "damaged"
    (fault,) = reader.rekey("token", "grant", [(file, "new")], bytes(32))
    assert isinstance(fault, IntegrityFault) and fault.detail == "segment 4 is bad"


def header_for(pair: KeyPair) -> bytes:
    return build_header(os.urandom(32), [pair.public])


# --- without root ---


ROOTLESS = """
import os, sys
sys.path.insert(0, HERE)
import stand, pytest
try:
    stand.skip_unless_able()
except pytest.skip.Exception as why:
    print(why); sys.exit(77)
with stand.running() as node:
    file = node("put", "set/data", b"x" * 300_000)
    token, uid = node("reader.reserve")
    node("keyd.grant", "once", [file.key_id], uid, 60.0)
    public = node("keyd.create", "key-new", "identifiable")
    (made,) = node("rekey_all", token, "once", [(file, "new")], public)
    new = stand.MountedFile("f", "set/data", "new", made.header, "key-new", file.size, made.seal_root, made.tree_root)
    print(node("read", new) == node("read", file) == b"x" * 300_000)
"""


def test_without_root() -> None:
    done = as_user(ROOTLESS.replace("HERE", repr(str(HERE))))
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stdout + done.stderr
