"""The client: it comes back after a restart, gives up in time, and says what to do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from valv_tests_keys_running import RUN, SERVE, WORKER, ClientAs, Running, Tree

from valv.assemble import keyd as keyd_process
from valv.errors import ConflictFault, InputFault, KeyFault, SealedFault, UnreachableFault
from valv.formats import crypt4gh
from valv.keys import messages
from valv.keys.client import KeydClient


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFault, match="valv up"):
        KeydClient(tmp_path / "keyd.sock").status()


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def test_somebody_who_does_not_answer(tmp_path: Path) -> None:
    with listening(tmp_path / "s"), pytest.raises(UnreachableFault, match="did not answer within"):
        KeydClient(tmp_path / "s", seconds=0.2).status()


@pytest.mark.parametrize(
    "answer", [b"", b"\0\0", b"\0\0\0\x01\xc1", b"\0\0\0\x01\x80", b"\xff\xff\xff\xff", b"\0\0\0\0"]
)
def test_somebody_else_who_answers(tmp_path: Path, answer: bytes) -> None:
    with listening(tmp_path / "s") as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            connection.sendall(answer)
            connection.close()

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises((UnreachableFault, InputFault)):
            KeydClient(tmp_path / "s", seconds=5).status()
        thread.join()


def test_it_comes_back_after_a_restart(keyd: Running) -> None:
    worker = keyd.client(WORKER)
    public = worker.create("v1", "result")
    keyd.stop(signal.SIGKILL)
    with pytest.raises(UnreachableFault):
        worker.status()
    keyd.start()
    assert worker.create("v1", "result") == public
    keyd.stop()
    keyd.start()
    assert worker.create("v1", "result") == public


def test_a_thread_has_its_own_connection(keyd: Running) -> None:
    worker = keyd.client(WORKER)
    publics = {name: worker.create(name, "result") for name in ("a", "b", "c", "d")}
    wrong: list[str] = []

    def ask(name: str) -> None:
        for _ in range(100):
            if worker.create(name, "result") != publics[name]:
                wrong.append(name)
        worker.close()

    threads = [threading.Thread(target=ask, args=(name,)) for name in publics]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_does_not_share_the_connection(shared_keyd: Running) -> None:
    client = shared_keyd.client(shared_keyd.uid)
    public = client.create("a", "result")
    child = os.fork()
    if child == 0:
        os._exit(0 if all(client.create("a", "result") == public for _ in range(50)) else 1)
    assert all(client.status().open for _ in range(50))
    assert os.waitpid(child, 0)[1] == 0


def test_a_message_too_large_is_told_before_it_is_sent(keyd: Running) -> None:
    worker = keyd.client(WORKER)
    with pytest.raises(InputFault, match="at most"):
        worker.adopt(bytes(messages.LARGEST + 1), "v1")
    assert worker.status().open


def test_a_second_key_holder_does_not_start(keyd: Running) -> None:
    first = keyd.process
    keyd.process = None
    with pytest.raises(AssertionError, match="another key holder listens"):
        _start_again(keyd)
    keyd.process = first
    assert keyd.client(WORKER).status().open


def _start_again(keyd: Running) -> None:
    keyd.start()
    assert keyd.process is not None
    keyd.process.wait(60)
    raise AssertionError(keyd.log.read_text())


def test_a_wrong_passphrase_file_ends_the_start(keyd: Running) -> None:
    keyd.stop()
    (keyd.folder / "passphrase").write_bytes(b"another passphrase\n")
    assert _ends(keyd) == KeyFault().row.exit
    assert "the passphrase is wrong" in keyd.log.read_text()
    assert "another passphrase" not in keyd.log.read_text()


def test_keys_of_another_node_are_refused(keyd: Running) -> None:
    keyd.stop()
    config = keyd.folder / "valv.toml"
    config.write_text(config.read_text().replace("valv.example", "other.example"))
    assert _ends(keyd) == 78
    assert "the keys are those of the node valv.example" in keyd.log.read_text()


def _ends(keyd: Running) -> int:
    """Start it, and its exit code once it has given up."""
    with contextlib.suppress(AssertionError):
        keyd.start()
    assert keyd.process is not None
    return keyd.process.wait(60)


def test_creating_keys_twice_is_refused(keyd: Running) -> None:
    with pytest.raises(ConflictFault, match="exists"):
        keyd_process.create(keyd.config, b"a passphrase")


def test_an_inherited_socket(keyd: Running) -> None:
    keyd.stop()
    path = keyd.folder / "inherited.sock"
    with listening(path) as listener:
        path.chmod(0o666)
        command = [sys.executable, "-m", "valv.assemble.keyd", "--node", str(keyd.folder)]
        with subprocess.Popen(
            [*command, "--listen-fd", str(listener.fileno())], pass_fds=[listener.fileno()], stderr=subprocess.DEVNULL
        ) as process:
            try:
                client = ClientAs(path, WORKER)
                assert client.create("v1", "result")
                client.close()
            finally:
                process.terminate()
            assert process.wait(60) == 0
    assert path.exists()


def test_processes_of_other_users(keyd: Running) -> None:
    """The whole way with real client processes: the worker's, the server's and a run's."""
    script = """
import sys, os
from valv.keys.client import KeydClient
from valv.formats import crypt4gh
from valv.errors import RefusedFault
uid = int(sys.argv[2]); os.setgroups([int(sys.argv[3])]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
client = KeydClient(sys.argv[1])
exec(sys.argv[4])
"""

    def do(uid: int, text: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", script, str(keyd.socket), str(uid), str(keyd.uid), text],
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr

    do(WORKER, f"client.create('v1', 'identifiable'); client.grant('g', ['v1'], {RUN}, 60)")
    header = crypt4gh.build_header(bytes(32), [keyd.client(WORKER).create("v1", "identifiable")])
    reseal = f"pair = crypt4gh.generate_keypair(); client.reseal('g', 'v1', {header!r}, pair.public)"
    do(RUN, reseal)
    refused = f"pair = crypt4gh.generate_keypair()\ntry: client.reseal('g', 'v1', {header!r}, pair.public)\n"
    refused += "except RefusedFault: pass\nelse: sys.exit(1)"
    do(RUN + 1, refused)
    do(SERVE, refused)


def test_stopping_under_load_is_orderly(keyd: Running) -> None:
    acknowledged: dict[str, bytes] = {}

    def ask(name: str) -> None:
        worker = keyd.client(WORKER)
        try:
            for number in range(10_000):
                acknowledged[f"{name}{number}"] = worker.create(f"{name}{number}", "result")
        except (UnreachableFault, SealedFault):
            pass

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 30:
        assert any(thread.is_alive() for thread in threads)
    assert keyd.stop() == 0
    for thread in threads:
        thread.join()
    log = keyd.log.read_text()
    assert "Traceback" not in log and "failed verb" not in log
    assert not keyd.socket.exists()
    keyd.start()
    worker = keyd.client(WORKER)
    assert all(worker.create(key_id, "result") == public for key_id, public in acknowledged.items())


def kill_while_signing(keyd: Running, times: int) -> None:
    tree, size = Tree(4096), 0
    for number in range(times):
        assert keyd.process is not None
        timer = threading.Timer(0.01 + 0.03 * (number % 7), keyd.process.kill)
        worker = keyd.client(WORKER)
        timer.start()
        acknowledged = size
        try:
            while True:
                worker.sign(acknowledged + 1, tree.root(acknowledged + 1), tree.proof(acknowledged, acknowledged + 1))
                acknowledged += 1
        except UnreachableFault:
            pass
        timer.join()
        keyd.process.wait(60)
        keyd.start()
        size = keyd.client(WORKER).status().signed_size
        assert acknowledged <= size <= acknowledged + 1


def test_kill_9_while_signing(keyd: Running) -> None:
    kill_while_signing(keyd, 6)


@pytest.mark.slow
def test_kill_9_while_signing_often(keyd: Running) -> None:
    kill_while_signing(keyd, 100)
