"""The contract of `valv.ports.compute`, held by the backend `sandbox` with the real launcher and key holder."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compute import stand
from tests.compute.stand import Node, limits, running, skip_unless_able
from valv.assemble import confine
from valv.errors import ComputeFault, Fault, InputFault, RefusedFault
from valv.ports.compute import RunSpec


@pytest.fixture(scope="module", name="node")
def running_node() -> Iterator[Node]:
    yield from stand.started()


def alive(marker: str) -> list[int]:
    """Processes of this machine with `marker` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture
def run_id(node: Node) -> Iterator[str]:
    """A run that is discarded after the test, whatever happens."""
    name = f"t{os.urandom(6).hex()}"
    yield name
    node("compute.discard", name)


# --- 1: what the command sees ---


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 3_000_001])
def test_data_is_equal_and_read_only(node: Node, size: int) -> None:
    data = os.urandom(size)
    file = node("put", "set/deep/data.bin", data)
    script = (
        "sha256sum < /data/set/deep/data.bin; stat -c %s /data/set/deep/data.bin;"
        "echo x 2>/dev/null >> /data/set/deep/data.bin || echo refused; "
        "rm -f /data/set/deep/data.bin 2>/dev/null || echo refused; touch /data/new 2>/dev/null || echo refused"
    )
    status, said, _ = node.shell(script, files=(file,))
    assert status.end == "exited"
    assert said.split() == [hashlib.sha256(data).hexdigest(), "-", str(size), *["refused"] * 3]
    assert status.reads.get(file.file_id, 0) == size


def test_exactly_the_files_of_the_spec(node: Node) -> None:
    one, two = node("put", "a/one", b"1"), node("put", "b/two", b"2")
    _, said, _ = node.shell("cd /data; find . -type f | sort", files=(one,))
    assert said.split() == ["./a/one"]
    _, said, _ = node.shell("cd /data; find . -type f | sort; cat a/one b/two", files=(one, two))
    assert said.split() == ["./a/one", "./b/two", "12"]


def test_work_and_outbox_are_empty_and_writable(node: Node) -> None:
    script = (
        "pwd; ls -A /work /outbox; echo w > /work/w; mkdir -p /outbox/sub; echo result > /outbox/sub/o; cat /work/w"
    )
    status, said, outputs = node.shell(script)
    assert status.exit_code == 0
    assert "stdout.txt" in said
    assert said.split()[0] == "/work"
    assert outputs == {"sub/o": b"result\n"}


def test_environment_is_the_runs_own(node: Node) -> None:
    _, said, _ = node.shell("env", environment={"ANSWER": "42", "PATH": "/usr/bin:/bin"})
    names = {line.partition("=")[0] for line in said.splitlines()}
    assert names <= {"ANSWER", "PATH", "HOME", "TMPDIR", "LANG", "USER", "LOGNAME", "PWD", "SHLVL", "_", "OLDPWD"}
    assert "ANSWER=42" in said.splitlines()


def test_many_files(node: Node) -> None:
    files = tuple(node("put", f"set/f{number:03}", b"%d" % number) for number in range(150))
    status, said, _ = node.shell("cat /data/set/* | wc -c", files=files)
    assert said.split() == [str(sum(len(str(number)) for number in range(150)))]
    assert len(status.reads) == 150


# --- 2: verbs are idempotent ---


def test_reserve_and_start_again_change_nothing(node: Node, run_id: str) -> None:
    uid = node("compute.reserve", run_id)
    assert node("compute.reserve", run_id) == uid
    node("start", run_id, ("/bin/sh", "-c", "echo once >> /outbox/o; sleep 0.3"), ())
    node("start", run_id, ("/bin/sh", "-c", "echo twice >> /outbox/o"), ())
    assert run_id in node("compute.runs")
    assert node.wait(run_id).end == "exited"
    node("start", run_id, ("/bin/sh", "-c", "echo twice >> /outbox/o"), ())
    assert node("collect", run_id)[0]["o"] == b"once\n"
    assert node("collect", run_id)[0]["o"] == b"once\n"


def test_stop_and_discard_again_are_no_error(node: Node) -> None:
    node("start", "again", ("sleep", "60"), ())
    for _ in range(2):
        node("compute.stop", "again")
        assert node("compute.status", "again").end == "stopped"
    for _ in range(2):
        node("compute.discard", "again")
    assert node("compute.status", "again").state == "unknown"
    node("compute.stop", "never-was")
    node("compute.discard", "never-was")
    assert node("compute.status", "never-was").state == "unknown"
    assert "again" not in node("compute.runs")


def test_places_are_limited_and_given_back(node: Node) -> None:
    for number in range(3):
        node("compute.reserve", f"place{number}")
    with pytest.raises(ComputeFault, match="all 3 places"):
        node("compute.reserve", "place3")
    node("compute.discard", "place0")
    node("compute.reserve", "place3")
    for number in (1, 2, 3):
        node("compute.discard", f"place{number}")


def test_places_have_users_of_their_own(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("users differ only where root starts the node")
    uids = {node("compute.reserve", f"own{number}") for number in range(3)}
    for number in range(3):
        node("compute.discard", f"own{number}")
    assert len(uids) == 3


# --- 3: a run ends as a whole tree ---


def test_stop_ends_the_tree_within_a_second(node: Node, run_id: str) -> None:
    marker = f"314{os.getpid()}"
    script = (
        f"for i in 1 2 3; do (setsid sleep {marker} & ) ; done; trap '' TERM HUP INT; touch /work/up; sleep {marker}"
    )
    node("start", run_id, ("/bin/sh", "-c", script), ())
    until = time.monotonic() + 30
    while len([pid for pid in alive(marker) if b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()[:6]]) < 4:
        assert time.monotonic() < until
        time.sleep(0.02)
    before = time.monotonic()
    node("compute.stop", run_id)
    assert time.monotonic() - before < 5.0  # generous: a second on an idle machine
    assert alive(marker) == []
    assert node("compute.status", run_id).end == "stopped"


def test_daemons_die_with_the_command(node: Node) -> None:
    marker = f"271{os.getpid()}"
    status, _, _ = node.shell(f"(setsid setsid sleep {marker} >/dev/null 2>&1 &) ; exit 5")
    assert (status.end, status.exit_code) == ("exited", 5)
    assert alive(marker) == []


def test_time_limit(node: Node) -> None:
    marker = f"161{os.getpid()}"
    before = time.monotonic()
    status, _, _ = node.shell(f"sleep {marker}", limits=limits(seconds=1))
    assert status.end == "time"
    assert status.exit_code is None
    assert time.monotonic() - before < 30
    assert alive(marker) == []


def test_the_nodes_bounds_hold_whatever_a_run_asks() -> None:
    skip_unless_able()
    with running(seconds=1) as small:
        status, _, _ = small.shell("sleep 60", limits=limits(seconds=3600))
        assert status.end == "time"


# --- ends ---


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("nonesuch",), "nonesuch"),
        (("/data/none",), "/data/none"),
        (("./x",), "./x"),
        (("cd",), "cd"),
        (("/etc",), "/etc"),
    ],
)
def test_a_command_that_does_not_exist(node: Node, command: tuple[str, ...], named: str) -> None:
    status, outputs, _ = node.run(*command)
    assert (status.end, status.exit_code) == ("not_started", None)
    assert named in status.detail
    assert outputs.get("stderr.txt", b"") == b""


def test_a_command_of_the_run_s_own_making(node: Node) -> None:
    file = node("put", "set/tool", b"#!/bin/sh\necho made it\n")
    _, said, _ = node.shell("cp /data/set/tool /work/tool; chmod +x /work/tool; /work/tool", files=(file,))
    assert said == "made it\n"


@pytest.mark.parametrize("code", [0, 1, 2, 77, 126, 127, 255])
def test_exit_codes(node: Node, code: int) -> None:
    status, _, _ = node.shell(f"exit {code}")
    assert (status.end, status.exit_code) == ("exited", code)


def test_a_signal_shows_as_the_shell_shows_it(node: Node) -> None:
    status, _, _ = node.shell("kill -9 $$")
    assert (status.end, status.exit_code) == ("exited", 128 + 9)


def test_use_is_told(node: Node) -> None:
    status, _, _ = node.run("/usr/bin/python3", "-c", "x = bytearray(100 << 20)\nfor i in range(10**7): pass")
    assert status.cpu > 0.05
    assert status.memory > 90 << 20
    assert status.started is not None and status.ended is not None and status.ended >= status.started


def test_bad_requests(node: Node) -> None:
    for name in ("", "../x", "a/b", "-x", "x" * 65, "ä"):
        with pytest.raises(InputFault):
            node("compute.reserve", name)
    node("compute.reserve", "bad")
    try:
        with pytest.raises(InputFault, match="empty"):
            node("start", "bad", (), ())
        with pytest.raises(InputFault, match="NUL"):
            node("start", "bad", ("a\0b",), ())
        with pytest.raises(InputFault, match="environment"):
            node("start", "bad", ("true",), (), environment={"A=B": "c"})
        with pytest.raises(InputFault, match="positive"):
            node("start", "bad", ("true",), (), limits=limits(seconds=0))
        with pytest.raises(ComputeFault, match="not ended"):
            node("collect", "bad")
        node("start", "bad", ("true",), ())  # none of that took the place away
        assert node.wait("bad").end == "exited"
    finally:
        node("compute.discard", "bad")


def test_a_long_command_line(node: Node) -> None:
    _, said, _ = node.shell("x=" + "y" * 100_000 + "; echo ${#x}")
    assert said == "100000\n"
    with pytest.raises(InputFault):
        node.run("echo", *["y" * 100_000] * 11)
    for name in node("compute.runs"):
        node("compute.discard", name)


# --- 4: the permit ---


def test_losing_the_permit_ends_reads_and_run(node: Node, run_id: str) -> None:
    file = node("put", "set/data", os.urandom(1 << 20))
    script = "while cat /data/set/data >/dev/null; do sleep 0.02; done; echo denied > /outbox/seen; sleep 60"
    node("start", run_id, ("/bin/sh", "-c", script), (file,))
    node.until(run_id, lambda status: status.reads)
    before = time.monotonic()
    node("deny", run_id)
    status = node.wait(run_id)
    assert status.end == "revoked"
    assert time.monotonic() - before < 10  # generous: two seconds are promised
    assert status.reads[file.file_id] > 0


@pytest.mark.slow
def test_silence_about_the_permit_ends_reads_and_then_the_run(node: Node, run_id: str) -> None:
    file = node("put", "set/data", os.urandom(1 << 20))
    script = "while cat /data/set/data >/dev/null; do sleep 0.02; done; echo denied > /outbox/seen; sleep 300"
    node("start", run_id, ("/bin/sh", "-c", script), (file,))
    node.until(run_id, lambda status: status.reads)
    node("set", "silent", True)
    try:
        status = node.wait(run_id, 120)
    finally:
        node("set", "silent", False)
    assert status.end == "revoked"
    assert node("collect", run_id)[0]["seen"] == b"denied\n"


def test_a_run_without_permit_reads_nothing(node: Node, run_id: str) -> None:
    file = node("put", "set/data", b"secret")
    node("deny", run_id)
    node("start", run_id, ("cat", "/data/set/data"), (file,))
    assert node.wait(run_id).end == "revoked"
    taken, _ = node("collect", run_id)
    assert b"secret" not in b"".join(taken.values())


def test_beats_come_from_the_mounts_user_with_its_reads(node: Node, run_id: str) -> None:
    file = node("put", "set/data", b"x" * 1000)
    uid = node("start", run_id, ("/bin/sh", "-c", "cat /data/set/data; sleep 1"), (file,))
    node.wait(run_id)
    beats = [(beat, who) for beat, who in node("call", "beats") if beat.run_id == run_id]
    assert {who for _, who in beats} == {uid}
    assert {beat.grant_id for beat, _ in beats} == {f"run-{run_id}"}
    assert max(beat.reads.get(file.file_id, 0) for beat, _ in beats) == 1000


def test_a_file_whose_key_was_not_granted_cannot_be_read(node: Node) -> None:
    granted, other = node("put", "set/granted", b"yes"), node("put", "set/other", b"no")
    uid = node("compute.reserve", "partly")
    node("keyd.grant", "run-partly", [granted.key_id], uid, 60.0)
    try:
        node(
            "compute.start",
            RunSpec("partly", "run-partly", ("cat", "/data/set/granted", "/data/set/other"), (granted, other)),
        )
        assert node.wait("partly").exit_code == 1
        taken, _ = node("collect", "partly")
        assert taken["stdout.txt"] == b"yes"
        assert b"Permission denied" in taken.get("stderr.txt", b"")
    finally:
        node("compute.discard", "partly")


# --- 5: outputs ---


def test_outputs_arrive_encrypted_and_whole(node: Node, run_id: str) -> None:
    script = "head -c 5000000 /dev/zero > /outbox/zeros; : > /outbox/empty; echo text; echo trouble >&2"
    node("start", run_id, ("/bin/sh", "-c", script), ())
    node.wait(run_id)
    before = set(node("stored"))
    taken, skipped = node("collect", run_id)
    assert taken == {"zeros": bytes(5_000_000), "empty": b"", "stdout.txt": b"text\n", "stderr.txt": b"trouble\n"}
    assert skipped == {}
    new = set(node("stored")) - before
    assert len(new) == 8  # four bodies with their seals
    for name in new:
        for path in node.home.glob(f"store/bodies/*/{name}"):
            assert bytes(100) not in path.read_bytes()
            assert b"trouble" not in path.read_bytes()


def test_collect_of_a_stopped_run_gives_what_is_there(node: Node, run_id: str) -> None:
    node("start", run_id, ("/bin/sh", "-c", "echo partly > /outbox/o; echo up; sleep 60"), ())
    node.until(run_id, lambda status: status.state == "running")
    time.sleep(0.3)
    node("compute.stop", run_id)
    taken, _ = node("collect", run_id)
    assert taken["o"] == b"partly\n"


def test_collecting_before_the_end_is_refused(node: Node, run_id: str) -> None:
    node("start", run_id, ("sleep", "60"), ())
    with pytest.raises(ComputeFault, match="not ended"):
        node("collect", run_id)


# --- 6: nothing outlives ---


def test_nothing_of_a_run_is_left(node: Node) -> None:
    runs = confine.runs(node.config)
    node.shell("echo x > /outbox/x; mkdir -p /outbox/d; chmod 0 /outbox/d")
    until = time.monotonic() + 10
    while list(runs.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(runs.iterdir()) == []
    groups = [path for path in Path("/sys/fs/cgroup").glob("**/valv-*/*") if path.is_dir()]
    assert [path for path in groups if path.name.startswith(("r", "t"))] == []


def test_a_restart_of_the_launcher() -> None:
    skip_unless_able()
    marker = f"577{os.getpid()}"
    with running() as restarted:
        file = restarted("put", "set/data", b"x" * 100)
        restarted("start", "before", ("/bin/sh", "-c", f"cat /data/set/data; sleep {marker}"), (file,))
        restarted.until("before", lambda status: status.reads)
        assert alive(marker)
        os.kill(restarted.pid("launcher"), 9)
        until = time.monotonic() + 30
        while alive(marker) or alive("--run"):
            assert time.monotonic() < until
            time.sleep(0.05)
        status = restarted.wait("before")
        assert (status.end, status.state) == ("lost", "ended")
        assert restarted("compute.runs") == ["before"]
        with pytest.raises(ComputeFault, match="no outputs"):
            restarted("collect", "before")
        restarted("compute.discard", "before")
        status, said, _ = restarted.shell("cat /data/set/data | wc -c", files=(file,))
        assert said.split() == ["100"]


# --- reader ---


@pytest.mark.parametrize("size", [0, 1, 65536, 9_000_000])
def test_reading_a_file(node: Node, size: int) -> None:
    data = os.urandom(size)
    assert node("read", node("put", "set/x", data)) == data


def test_reading_without_grant_is_refused(node: Node) -> None:
    with pytest.raises((RefusedFault, Fault)) as caught:
        node("read", node("put", "set/x", b"secret"), grant=False)
    assert "secret" not in str(caught.value)


def test_a_reader_token_counts_once(node: Node) -> None:
    file = node("put", "set/x", b"x")
    token, uid = node("reader.reserve")
    node("keyd.grant", "read-once", [file.key_id], uid, 60.0)
    assert node("read_all", token, "read-once", file) == b"x"
    with pytest.raises(ComputeFault, match="token"):
        node("read_all", token, "read-once", file)


def test_a_damaged_file_gives_a_fault_and_no_wrong_byte(node: Node) -> None:
    file = node("put", "set/x", b"y" * 200_000)
    (path,) = node.home.glob(f"store/bodies/*/{file.body}")
    raw = bytearray(path.read_bytes())
    raw[150_000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(Fault, match="segment"):
        node("read", file)
    _, said, _ = node.shell(
        "cat /data/set/x | tr -d y | wc -c; cat /data/set/x >/dev/null || echo failed", files=(file,)
    )
    assert "0" in said.split()
    assert "failed" in said
