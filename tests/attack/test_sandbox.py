"""Getting out of a sandbox, into other data, or past a limit. Each test runs the attack in a real run."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compute import stand
from tests.compute.stand import Node, limits
from valv.compute import stream, wire
from valv.compute.client import LauncherClient

PROBE = """
import ctypes, errno, json, os, platform, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
out = {}
def call(name, x86, arm, *arguments):
    number = x86 if X86 else arm
    if number is None:
        return
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    out[name] = "done" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def attempt(name, function):
    try:
        function()
        out[name] = "done"
    except OSError as error:
        out[name] = errno.errorcode.get(error.errno, str(error))
"""


@pytest.fixture(scope="module", name="node")
def running_node() -> Iterator[Node]:
    yield from stand.started()


def probe(node: Node, script: str, **more: Any) -> dict[str, Any]:
    """Run Python in a sandbox; `out`, which it fills, comes back."""
    file = node("put", "probe/probe.py", f"{PROBE}\n{script}\njson.dump(out, open('/outbox/out.json', 'w'))\n".encode())
    more["files"] = (file, *more.get("files", ()))
    status, taken, _ = node.run("/usr/bin/python3", "/data/probe/probe.py", **more)
    assert "out.json" in taken, (status, taken)
    return dict(json.loads(taken["out.json"]))


# --- the kernel ---


def test_system_calls_that_no_run_needs_are_refused(node: Node) -> None:
    said = probe(
        node,
        """
call("keyctl", 250, 219, 0, -3, 0)
call("add_key", 248, 217, b"user", b"a", b"b", 1, -3)
call("request_key", 249, 218, b"user", b"a", None, -3)
call("ptrace", 101, 117, 0, 0, 0, 0)
call("bpf", 321, 280, 0, 0, 0)
call("perf_event_open", 298, 241, 0, 0, 0, 0, 0)
call("userfaultfd", 323, 282, 0)
call("process_vm_readv", 310, 270, 1, 0, 0, 0, 0, 0)
call("unshare_user", 272, 97, 0x10000000)
call("unshare_mount", 272, 97, 0x20000)
call("setns", 308, 268, 0, 0)
call("clone_user", 56, 220, 0x10000000 | 17, 0, 0, 0, 0)
call("clone_net", 56, 220, 0x40000000 | 17, 0, 0, 0, 0)
call("mount", 165, 40, b"none", b"/tmp", b"tmpfs", 0, 0)
call("umount", 166, 39, b"/data", 2)
call("pivot_root", 155, 41, b"/tmp", b"/tmp")
call("chroot", 161, 51, b"/tmp")
call("open_tree", 428, 428, -100, b"/", 1)
call("fsopen", 430, 430, b"tmpfs", 0)
call("mount_setattr", 442, 442, -100, b"/", 0, 0, 0)
call("open_by_handle_at", 304, 265, -100, 0, 0)
call("kexec_load", 246, 104, 0, 0, 0, 0)
call("init_module", 175, 105, 0, 0, b"")
call("reboot", 169, 142, 0, 0, 0, 0)
call("swapon", 167, 224, b"/work/x", 0)
call("acct", 163, 89, b"/work/x")
call("personality", 135, 92, 0x0040000)
call("pidfd_getfd", 438, 438, 0, 0, 0)
call("quotactl", 179, 60, 0, 0, 0, 0)
call("modify_ldt", 154, None, 0, 0, 0)
call("iopl", 172, None, 3)
""",
    )
    assert set(said.values()) == {"EPERM"}, said


def test_system_calls_with_an_older_way_are_missing(node: Node) -> None:
    said = probe(
        node,
        """
call("io_uring_setup", 425, 425, 1, 0)
call("io_uring_enter", 426, 426, 0, 0, 0, 0, 0, 0)
call("io_uring_register", 427, 427, 0, 0, 0, 0)
call("clone3", 435, 435, 0, 0)
call("statmount", 457, 457, 0, 0, 0, 0)
call("yet unknown", 1000, 1000)
call("x32", 0x40000000 | 39, 0x40000000 | 172)
""",
    )
    assert set(said.values()) == {"ENOSYS"}, said


def test_input_cannot_be_pushed_into_a_terminal(node: Node) -> None:
    said = probe(
        node,
        """
import fcntl, pty, termios
one, two = pty.openpty()
attempt("TIOCSTI", lambda: fcntl.ioctl(two, 0x5412, b"x"))
attempt("TIOCLINUX", lambda: fcntl.ioctl(two, 0x541C, b"\\x03"))
attempt("size", lambda: fcntl.ioctl(two, termios.TIOCGWINSZ, b"\\0" * 8))
""",
    )
    assert said == {"TIOCSTI": "EPERM", "TIOCLINUX": "EPERM", "size": "done"}


def test_what_programs_need_still_works(node: Node) -> None:
    said = probe(
        node,
        """
import concurrent.futures, multiprocessing, subprocess, threading, tempfile, mmap
def square(x): return x * x
if True:
    with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(square, range(10))) == 285
    with multiprocessing.get_context("fork").Pool(2) as pool: assert sum(pool.map(square, range(10))) == 285
    assert subprocess.run(["ls", "/"], capture_output=True).returncode == 0
    a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
    with tempfile.TemporaryFile() as f: f.write(b"x")
    mmap.mmap(-1, 4096)
    s = socket.socket(socket.AF_UNIX); s.bind("/work/s")
    out["all"] = "done"
""",
    )
    assert said == {"all": "done"}


# --- network ---


def test_no_network_of_any_family(node: Node) -> None:
    families = "range(0, 46)"
    said = probe(
        node,
        f"""
for family in {families}:
    for kind in (1, 2, 3):
        if family != 1:
            attempt(f"{{family}}/{{kind}}", lambda: socket.socket(family, kind))
attempt("vsock", lambda: socket.socket(40, 1))
attempt("netlink", lambda: socket.socket(16, 3))
""",
    )
    assert "done" not in said.values()
    assert len(said) > 100


def test_abstract_unix_sockets_of_the_host_cannot_be_reached(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0valv-test-{os.getpid()}")
        server.listen()
        said = probe(
            node,
            f"attempt('abstract', lambda: socket.socket(socket.AF_UNIX).connect('\\0valv-test-{os.getpid()}'))",
        )
    assert said == {"abstract": "ECONNREFUSED"}


def test_sockets_of_the_node_cannot_be_reached(node: Node) -> None:
    runtime = node.config.runtime
    said = probe(
        node,
        f"""
for name in ("keyd.sock", "launcher.sock", "lease.sock"):
    attempt(name, lambda: socket.socket(socket.AF_UNIX).connect("{runtime}/" + name))
out["run"] = os.path.exists("/run")
""",
    )
    assert said == {"keyd.sock": "ENOENT", "launcher.sock": "ENOENT", "lease.sock": "ENOENT", "run": False}


# --- files ---


def test_nothing_of_the_host_shows(node: Node) -> None:
    (node.home / "canary").write_text("canary")
    file = node("put", "other/secret", b"another dataset")
    said = probe(
        node,
        f"""
out["root"] = sorted(os.listdir("/"))
out["etc"] = sorted(os.listdir("/etc"))
out["local"] = os.listdir("/usr/local")
for path in ("{node.home}", "{node.home}/canary", "/root", "/home", "/var", "/srv", "/sys", "/boot",
             "/data/other", "/etc/shadow", "/etc/hostname", "{node.home}/store/bodies", "/runs"):
    out[path] = os.path.exists(path)
out["mounts"] = open("/proc/self/mountinfo").read()
out["users"] = open("/etc/passwd").read()
""",
    )
    assert file.body not in json.dumps(said)
    assert set(said.pop("root")) <= {"bin", "data", "dev", "etc", "lib", "lib32", "lib64", "libx32", "outbox", "proc",
                                     "sbin", "tmp", "usr", "work"}  # fmt: skip
    assert set(said.pop("etc")) <= {"alternatives", "fonts", "group", "hosts", "ld.so.cache", "ld.so.conf",
                                    "ld.so.conf.d", "localtime", "mime.types", "passwd"}  # fmt: skip
    assert said.pop("local") == []
    assert str(node.home) not in said.pop("mounts")
    assert said.pop("users").count("\n") == 3
    assert not any(said.values()), said


def test_everything_writable_is_bounded_and_nosuid(node: Node) -> None:
    said = probe(
        node,
        """
out["mounts"] = [line.split()[4:6] for line in open("/proc/self/mountinfo")]
writable = []
for top, folders, _ in os.walk("/"):
    if top.startswith("/proc"):
        folders.clear()
        continue
    if os.access(top, os.W_OK):
        writable.append(top)
out["writable"] = writable
""",
    )
    for point, options in said["mounts"]:
        assert "nosuid" in options.split(","), (point, options)
        if not point.startswith("/dev/"):
            assert "nodev" in options.split(",") or point == "/dev", (point, options)
    assert set(said["writable"]) <= {"/tmp", "/work", "/outbox", "/dev/shm", "/dev/pts"}


def test_devices_are_the_harmless_ones(node: Node) -> None:
    said = probe(
        node,
        """
out["dev"] = sorted(os.listdir("/dev"))
attempt("mknod", lambda: os.mknod("/work/disk", 0o660 | 0o060000, os.makedev(8, 0)))
attempt("fuse", lambda: os.open("/dev/fuse", os.O_RDWR))
attempt("mem", lambda: os.open("/dev/mem", os.O_RDONLY))
""",
    )
    assert set(said.pop("dev")) <= {"core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
                                    "stdout", "tty", "urandom", "zero", "console"}  # fmt: skip
    assert said == {"mknod": "EPERM", "fuse": "ENOENT", "mem": "ENOENT"}


def test_links_in_data_lead_nowhere(node: Node) -> None:
    file = node("put", "set/f", b"x")
    said = probe(
        node,
        """
for path in ("/data/../../etc/shadow", "/data/set/../../../root", "/proc/1/root/root", "/proc/1/root/home"):
    attempt(path, lambda: os.stat(path))
attempt("link", lambda: os.link("/data/set/f", "/outbox/f"))
attempt("chmod", lambda: os.chmod("/data/set/f", 0o777))
attempt("setxattr", lambda: os.setxattr("/data/set/f", "user.a", b"b"))
""",
        files=(file,),
    )
    assert "done" not in said.values(), said


# --- rights and processes ---


def test_no_rights_and_none_to_gain(node: Node) -> None:
    said = probe(
        node,
        """
status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
wanted = ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp")
out["status"] = {key: status[key].strip() for key in wanted}
import subprocess
for program in ("su", "sudo", "mount", "passwd", "fusermount3", "newuidmap"):
    for folder in ("/usr/bin", "/bin"):
        path = f"{folder}/{program}"
        if os.path.exists(path):
            line = f"{path} --help >/dev/null 2>&1; id -u"
            done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True)
            out[program] = done.stdout.strip()
attempt("setuid", lambda: os.setuid(0))
attempt("setgroups", lambda: os.setgroups([0]))
attempt("chown", lambda: (open("/work/f", "w").close(), os.chown("/work/f", 0, 0)))
attempt("nice", lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))
def suid():
    open("/work/s", "w").close()
    os.chmod("/work/s", 0o4755)
attempt("suid bit", suid)
""",
    )
    status = said.pop("status")
    assert (status.pop("NoNewPrivs"), status.pop("Seccomp")) == ("1", "2")
    assert {int(value, 16) for value in status.values()} == {0}
    said.pop("suid bit")  # may be set, and means nothing: the mount is nosuid
    assert said.pop("setuid") in ("EPERM", "EINVAL")
    assert said.pop("setgroups") == "EPERM"
    assert said.pop("chown") in ("EPERM", "EINVAL")
    assert said.pop("nice") in ("EPERM", "EACCES")
    assert set(said.values()) <= {"1000"}


def test_only_the_runs_own_processes_show(node: Node) -> None:
    said = probe(
        node,
        """
out["pids"] = [int(name) for name in os.listdir("/proc") if name.isdigit()]
out["lines"] = [open(f"/proc/{pid}/cmdline").read() for pid in out["pids"]]
attempt("kill", lambda: os.kill(100000, 0))
attempt("memory of 1", lambda: open("/proc/1/mem", "rb").read(1))
""",
    )
    assert len(said["pids"]) <= 4
    assert max(said["pids"]) < 20
    assert str(node.config.runtime) not in "".join(said["lines"])
    assert said["kill"] == "ESRCH"
    assert said["memory of 1"] != "done"


def test_the_environment_of_a_run_does_not_show_on_the_host(node: Node) -> None:
    node("start", "hidden", ("sleep", "60"), (), environment={"TOKEN": "marker-of-the-environment"})
    try:
        node.until("hidden", lambda status: status.state == "running")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    assert b"marker-of-the-environment" not in (entry / "cmdline").read_bytes()
                except OSError:
                    continue
    finally:
        node("compute.discard", "hidden")


def test_two_runs_do_not_meet(node: Node) -> None:
    secret = node("put", "one/secret", b"secret")
    script = "cp /data/one/secret /tmp/; cp /tmp/secret /dev/shm/; cp /tmp/secret /work/; sleep 60"
    node("start", "first", ("/bin/sh", "-c", script), (secret,))
    try:
        node.until("first", lambda status: status.reads)
        status, said, _ = node.shell("ls -A /tmp /dev/shm /work /data; pgrep -a sleep; ipcs -m 2>/dev/null | wc -l")
        assert "secret" not in said
        assert "sleep" not in said
        assert status.end == "exited"
    finally:
        node("compute.discard", "first")


def test_system_v_memory_is_the_runs_own(node: Node) -> None:
    said = probe(node, "out['ipc'] = os.readlink('/proc/self/ns/ipc')\nout['uts'] = os.uname().nodename")
    assert said["ipc"] != os.readlink("/proc/self/ns/ipc")
    assert said["uts"] == "run"


# --- limits ---


def test_a_fork_bomb_is_contained(node: Node) -> None:
    script = ":(){ :|:& };:; sleep 3"
    status, _, _ = node.run("/bin/bash", "-c", script, limits=limits(seconds=5, processes=40))
    assert status.end in ("exited", "time")
    assert node.shell("echo alive")[1] == "alive\n"


def test_the_number_of_processes_is_bounded(node: Node) -> None:
    said = probe(
        node,
        """
import time
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        count += 1
except OSError as error:
    out["why"] = errno.errorcode[error.errno]
out["count"] = count
""",
        limits=limits(processes=30),
    )
    assert said["why"] == "EAGAIN"
    assert 20 <= said["count"] <= 35


@pytest.mark.parametrize("where", ["heap", "/tmp", "/dev/shm"])
def test_a_memory_bomb_is_contained(node: Node, where: str) -> None:
    heap = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    file = f"f = open('{where}/bomb', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush()"
    status, taken, _ = node.run(
        "/usr/bin/python3", "-c", heap if where == "heap" else file, limits=limits(memory=64 << 20, scratch=32 << 20)
    )
    if where == "heap":
        assert status.end == "memory", status
        assert status.exit_code is None
    else:
        assert b"No space" in taken["stderr.txt"] or b"too large" in taken["stderr.txt"]
    assert status.memory <= 100 << 20


def test_a_memory_bomb_in_a_child_is_told(node: Node) -> None:
    """The killed child must not look like a success of its parent."""
    script = "python3 -c 'x = bytearray(1 << 30)' ; exit 0"
    status, _, _ = node.run("/bin/sh", "-c", script, limits=limits(memory=64 << 20, scratch=16 << 20))
    assert status.end == "memory"


@pytest.mark.parametrize("folder", ["/work", "/outbox"])
def test_a_disk_filler_is_contained(node: Node, folder: str) -> None:
    status, _, _ = node.run(
        "/bin/sh", "-c", f"i=0; while head -c 4000000 /dev/zero > {folder}/f$i; do i=$((i+1)); done; exit 3",
        limits=limits(scratch=20 << 20),
    )  # fmt: skip
    assert (status.end, status.exit_code) == ("exited", 3)


def test_empty_files_are_bounded_too(node: Node) -> None:
    said = probe(
        node,
        """
count = 0
try:
    while count < 100000:
        open(f"/outbox/{count}", "w").close()
        count += 1
except OSError as error:
    out["why"] = errno.errorcode[error.errno]
for number in range(count):
    os.unlink(f"/outbox/{number}")
out["count"] = count
""",
        limits=limits(scratch=4 << 20),
    )
    assert said["why"] == "ENOSPC"
    assert said["count"] < 2000


def test_a_sparse_giant_is_refused(node: Node) -> None:
    said = probe(
        node,
        """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
attempt("giant", lambda: os.truncate(os.open("/outbox/giant", os.O_CREAT | os.O_RDWR), 1 << 40))
""",
        limits=limits(scratch=16 << 20),
    )
    assert said == {"giant": "EFBIG"}


def test_no_core_dumps_and_few_descriptors(node: Node) -> None:
    _, said, _ = node.shell("ulimit -c; ulimit -n; ulimit -l")
    assert said.split()[0] == "0"
    assert int(said.split()[1]) <= 4096


# --- the way out ---


def test_only_plain_outputs_are_collected(node: Node) -> None:
    script = r"""
import os, socket
os.chdir("/outbox")
os.symlink("/etc/shadow", "link-file"); os.symlink("/", "link-folder"); os.symlink("good", "link-inside")
open("good", "w").write("good"); os.mkdir("sub"); open("sub/inner", "w").write("inner")
open("one", "w").write("x"); os.link("one", "two")
os.mkfifo("fifo"); socket.socket(socket.AF_UNIX).bind("socket")
open("new\nline", "w"); open(b"not-utf8-\xff", "w"); open("turn\u202eexe.txt", "w")
open(" space", "w"); open("back\\slash", "w")
open("closed", "w").write("x"); os.chmod("closed", 0)
os.mkdir("shut"); open("shut/in", "w").write("x"); os.chmod("shut", 0)
deep = "d/" * 40
os.makedirs(deep); open(deep + "end", "w").write("x")
open("gr\u00f6\u00dfe \u4f60.txt", "w").write("unicode")
"""
    status, taken, skipped = node.run("/usr/bin/python3", "-c", script)
    assert status.exit_code == 0, taken
    assert taken == {"good": b"good", "sub/inner": b"inner", "größe 你.txt": b"unicode"}
    assert skipped.pop("new\\x0aline") == "name"
    assert skipped.pop("not-utf8-\\xff") == "name"
    assert skipped.pop(" space") == "name"
    assert skipped.pop("back\\slash") == "name"
    assert [path for path, reason in skipped.items() if "exe.txt" in path and reason == "name"]
    deepest = [path for path, reason in skipped.items() if reason == "too_deep"]
    assert len(deepest) == 1
    left = {path: why for path, why in skipped.items() if why not in ("name", "too_deep")}
    assert left == {
        "link-file": "symlink",
        "link-folder": "symlink",
        "link-inside": "symlink",
        "one": "hardlink",
        "two": "hardlink",
        "fifo": "fifo",
        "socket": "socket",
        "closed": "unreadable",
        "shut": "unreadable",
    }


@pytest.mark.slow  # ten thousand files are encrypted, and each made durable
def test_too_many_outputs(node: Node) -> None:
    script = "import os\nfor i in range(10020): open(f'/outbox/{i:05}', 'w')"
    _, taken, skipped = node.run("/usr/bin/python3", "-c", script)
    assert len(taken) == 10_000
    assert list(skipped.values()) == ["too_many"]


def test_an_outbox_that_was_taken_away(node: Node) -> None:
    status, taken, _ = node.shell("rm -rf /outbox/* ; rmdir /outbox; exec >&- 2>&-; exit 0")
    assert status.end == "exited"
    assert taken in ("", {})


# --- the launcher's door ---


def test_strangers_and_the_server_cannot_start_runs(node: Node) -> None:
    if os.geteuid() != 0:
        pytest.skip("users differ only where root starts the node")
    path = str(node.config.runtime / "launcher.sock")

    def ask_as(uid: int, frame: bytes) -> bytes:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            answer = b"refused"
            try:
                os.setgroups([node.users.group])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(path)
                    connection.sendall(frame)
                    answer = connection.recv(1000)
            except OSError:
                pass
            finally:
                os.write(writer, answer or b"refused")
                os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            return pipe.read()

    runs, reserve = wire.frame(wire.Runs()), wire.frame(wire.Reserve("x"))
    assert ask_as(12345, runs) == b"refused"
    assert ask_as(node.users.keyd, runs) == b"refused"
    assert ask_as(node.users.slots[0].mount_uid, runs) == b"refused"
    assert b"may only read" in ask_as(node.users.serve, runs)
    assert b"may only read" in ask_as(node.users.serve, reserve)
    assert b"may only read" not in ask_as(node.users.serve, wire.frame(wire.ReserveReader()))
    assert b"may only read" not in ask_as(node.users.worker, runs)


def test_rubbish_does_not_disturb_the_launcher(node: Node) -> None:
    path = str(node.config.runtime / "launcher.sock")
    for data in (b"", b"\0", b"\xff" * 8, b"\0\0\0\4abcd", b"\0\0\0\0", os.urandom(10_000), b"\x7f\xff\xff\xff"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(path)
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1000) is not None
    slow = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    for connection in slow:
        connection.connect(path)
        connection.sendall(b"\0\0")
    assert node("compute.runs") == []
    for connection in slow:
        connection.close()


def test_a_caller_that_takes_nothing_does_not_hold_up_others(node: Node) -> None:
    file = node("put", "set/big", os.urandom(20_000_000))
    token, uid = node("reader.reserve")
    node("keyd.grant", "read-slow", [file.key_id], uid, 60.0)
    client = LauncherClient(node.config.runtime / "launcher.sock")
    with client.read(token, "read-slow", file) as connection:
        assert node("compute.runs") == []
        assert node.shell("echo alive")[1] == "alive\n"
        assert b"".join(payload for _, payload in stream.frames(connection)) == node("read", file)
