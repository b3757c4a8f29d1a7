"""A node that somebody other than root starts: the same contract, with one user for all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from valv.assemble.confine import _installation

UID = 61234
HERE = Path(__file__).resolve().parent

# A root of its own, in which an unprivileged user reaches the Python installation. Bubblewrap cannot make it: it
# forbids set-user-id programs for good, and fusermount3 is one.
ENTER = r"""
set -e
new=$1; uid=$2; shift 2
mount -t tmpfs -o mode=755 tmpfs "$new"
for name in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$name" ]; then ln -s "$(readlink "/$name")" "$new/$name"; elif [ -d "/$name" ]; then
        mkdir "$new/$name"; mount --rbind "/$name" "$new/$name"; fi
done
for name in usr etc dev proc sys; do mkdir "$new/$name"; mount --rbind "/$name" "$new/$name"; done
while [ "$1" != -- ]; do mkdir -p "$new$1"; mount --bind "$1" "$new$1"; shift; done; shift
mknod "$new/fuse" c 10 229; chmod 666 "$new/fuse"; mount --bind "$new/fuse" "$new/dev/fuse"
{ cat /etc/passwd; echo "valvtest:x:$uid:$uid::/tmp:/bin/sh"; } > "$new/passwd"
mount --bind "$new/passwd" "$new/etc/passwd"
mkdir -p "$new/tmp"; chmod 1777 "$new/tmp"; mkdir "$new/old"
cd "$new"; pivot_root . old; umount -l /old
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
"""


def as_user(script: str) -> subprocess.CompletedProcess[str]:
    """Run a test script of this folder as an ordinary user."""
    program = [sys.executable, "-I", "-B", "-c", script]
    if os.geteuid() != 0:
        return subprocess.run(program, capture_output=True, text=True, timeout=280, check=False)
    new = tempfile.mkdtemp()
    try:
        paths = [str(path) for path in (*_installation(), HERE)]
        line = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh", new, str(UID), *paths, "--"]
        return subprocess.run([*line, *program], capture_output=True, text=True, timeout=280, check=False)
    finally:
        os.rmdir(new)


@pytest.fixture(scope="module")
def said() -> Iterator[list[str]]:
    if shutil.which("fusermount3") is None or shutil.which("unshare") is None:
        pytest.skip("fusermount3 and unshare are needed")
    done = as_user(SCRIPT.replace("HERE", repr(str(HERE))))
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    yield done.stdout.splitlines()


SCRIPT = """
import os, sys, time
sys.path.insert(0, HERE)
import stand
from stand import limits
from pathlib import Path
import pytest
try:
    stand.skip_unless_able()
except pytest.skip.Exception as why:
    print(why); sys.exit(77)
with stand.running() as node:
    file = node("put", "set/data", b"x" * 300_000)
    status, text, outputs = node.shell(
        "id -u; cat /data/set/data | wc -c; echo no > /data/set/data || echo read-only; ls /run /home /root; "
        "echo r > /outbox/r; (setsid sleep 98765 &); python3 -c 'import socket; socket.socket()'", files=(file,))
    print("basic", status.end, status.reads == {file.file_id: 300_000}, outputs == {"r": b"r\\n"}, "read-only" in text,
          "300000" in text, "not supported" in text)
    print("daemon", os.system("pgrep -f '^sleep 98765' >/dev/null") != 0)
    print("missing", node.run("nonesuch")[0].end)
    print("time", node.shell("sleep 60", limits=limits(seconds=1))[0].end)
    status = node.run("/usr/bin/python3", "-c", "x = bytearray(1 << 30)", limits=limits(memory=100 << 20))[0]
    print("memory of one", status.end, status.exit_code)
    grow = "import time; x = bytearray(60 << 20); x[::4096] = bytes(len(x[::4096])); time.sleep(30)"
    many = "for i in 1 2 3 4; do python3 -c '%s' & done; wait" % grow
    print("memory of all", node.shell(many, limits=limits(memory=150 << 20))[0].end)
    fill = "head -c 90000000 /dev/zero > /work/f || exit 3"
    print("work", node.shell(fill, limits=limits(scratch=8 << 20))[0].exit_code)
    fill = "for i in 1 2 3 4 5 6 7 8 9; do head -c 4000000 /dev/zero > /outbox/$i; done; sleep 30"
    print("outbox", node.shell(fill, limits=limits(scratch=8 << 20))[0].end)
    status = node.run("/bin/bash", "-c", ":(){ :|:& };:; sleep 2", limits=limits(seconds=5, processes=40))[0]
    print("forks", status.end in ("exited", "time"))
    print("read", node("read", file) == b"x" * 300_000)
    node("start", "stop", ("sleep", "60"), (file,))
    node.until("stop", lambda status: status.state == "running")
    node("compute.stop", "stop")
    print("stop", node("compute.status", "stop").end)
    node("compute.discard", "stop")
    reading = "while cat /data/set/data > /dev/null; do sleep 0.05; done; sleep 60"
    node("start", "deny", ("/bin/sh", "-c", reading), (file,))
    node.until("deny", lambda status: status.reads)
    node("deny", "deny")
    print("deny", node.wait("deny").end)
    node("compute.discard", "deny")
    end = node.shell("mkdir -p /outbox/a/b/c; chmod 0 /outbox/a/b /outbox/a; exit 0")[0].end
    print("shut", end in ("exited", "memory"))
    node("start", "lost", ("sleep", "87654"), (file,))
    node.until("lost", lambda status: status.state == "running")
    os.kill(node.pid("launcher"), 9)
    print("lost", node.wait("lost").end)
    print("killed", os.system("pgrep -f '^sleep 87654' >/dev/null") != 0)
    node("compute.discard", "lost")
    print("again", node.shell("cat /data/set/data | wc -c", files=(file,))[1].strip())
    print("left", list(stand.confine.runs(node.config).iterdir()),
          [line for line in open("/proc/self/mounts") if str(node.config.runtime) in line])
"""


@pytest.mark.parametrize(
    "line",
    [
        "basic exited True True True True True",
        "daemon True",
        "missing not_started",
        "time time",
        "memory of one exited 1",
        "memory of all memory",
        "work 3",
        "outbox memory",
        "forks True",
        "read True",
        "stop stopped",
        "deny revoked",
        "shut True",
        "lost lost",
        "killed True",
        "again 300000",
        "left [] []",
    ],
)
def test_rootless(said: list[str], line: str) -> None:
    assert line in said
