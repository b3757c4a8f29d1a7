"""Secrets in memory: what happens to the page at its end, in a forked process, in a core dump, before a debugger; each
with the kernel's secret memory and without it."""

from __future__ import annotations

import copy
import os
import pickle
import resource
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from valv.errors import InputFault
from valv.keys.memory import LONGEST, Secret

# A process of its own, because it is forked, killed and looked at. The secret comes through a pipe right into its page,
# so that nothing else in the process ever had it; "without" takes the system call away, as an older kernel would.
CHILD = """
import ctypes, mmap, os, resource, struct, sys, time
from valv.keys import memory
from valv.keys.memory import Secret, protect_process

libc = ctypes.CDLL(None, use_errno=True)

def refuse(number):
    \"\"\"A filter (seccomp) that answers ENOSYS to one system call, and lets all others through.\"\"\"
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0

def pages():
    \"\"\"(lines of smaps) of each part of this process's memory.\"\"\"
    part = []
    for line in open("/proc/self/smaps"):
        if "-" in line.split(" ")[0] and part:
            yield part
            part = []
        part.append(line)
    yield part

def flags(address):
    for part in pages():
        start, end = (int(word, 16) for word in part[0].split(" ")[0].split("-"))
        if start <= address < end:
            return part[-1].split(":")[1].split()

if sys.argv[1] == "without":
    refuse(447)
length = int(sys.argv[2])
secret = Secret.filled(length, lambda page: os.readv(0, [page]))
where = memory._address(secret._page)
needle = b"NEEDLE-" + bytes(reversed(sys.argv[3].encode()))
def ready():
    print("ready", int(secret.hidden), int(secret.locked), flush=True)
"""
KERNEL = ("with", "without")


@pytest.fixture(params=KERNEL)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Child:
    """A process that holds `value` as a `Secret`, and `needle` as ordinary bytes."""

    def __init__(self, kernel: str, body: str, folder: Path, **options: Any) -> None:
        self.value = secrets.token_bytes(32)
        mark = secrets.token_hex(16)
        self.needle = b"NEEDLE-" + mark[::-1].encode()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD + body, kernel, str(len(self.value)), mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what is not read as a line stays for `communicate`
            cwd=folder,
            **options,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(self.value)
        word, hidden, locked = self.process.stdout.readline().split()
        assert word == b"ready"
        self.hidden, self.locked = hidden == b"1", locked == b"1"
        assert not (self.hidden and kernel == "without")

    def status(self) -> int:
        """The wait status, which the module `subprocess` does not keep: it tells whether a core was written."""
        _, status = os.waitpid(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self._close()
        return status

    def end(self) -> bytes:
        """Let it go on to its end; what it said."""
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def hides() -> bool:
    secret = Secret(b"x")
    try:
        return secret.hidden
    finally:
        secret.wipe()


# --- the object ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 32, LONGEST])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_it_holds_what_it_was_given(length: int, kind: Any) -> None:
    value = secrets.token_bytes(length)
    secret = Secret(kind(value))
    with secret.view() as view:
        assert bytes(view) == value
        assert view.readonly
    secret.wipe()


def test_a_page_is_the_most() -> None:
    for make in (lambda: Secret(bytes(LONGEST + 1)), lambda: Secret.filled(LONGEST + 1, lambda page: None)):
        with pytest.raises(InputFault, match="4096"):
            make()


def test_wiped_bytes_are_zero_before_the_page_is_given_back() -> None:
    secret = Secret(b"\xff" * 32)
    view = secret.view()
    with pytest.raises(BufferError):
        secret.wipe()  # a view keeps the page, and shows what is in it by now
    assert bytes(view) == bytes(32)
    assert not secret.wiped
    view.release()
    secret.wipe()
    secret.wipe()
    assert secret.wiped
    with pytest.raises(ValueError):
        secret.view()


def test_what_fails_while_it_is_filled_leaves_nothing() -> None:
    seen: list[memoryview[int]] = []

    def fill(page: memoryview[int]) -> None:
        page[:4] = b"half"
        seen.append(page)
        raise RuntimeError("no more")

    before = Path("/proc/self/maps").read_text().count("secretmem")
    with pytest.raises(RuntimeError, match="no more"):
        Secret.filled(32, fill)
    with pytest.raises(ValueError):
        bytes(seen[0])
    assert Path("/proc/self/maps").read_text().count("secretmem") == before


def test_it_is_not_shown_nor_serialised() -> None:
    secret = Secret(b"canary of a secret")
    for text in (repr(secret), str(secret), f"{secret}", repr([secret]), repr(dir(secret))):
        assert "canary" not in text
    for serialise in (pickle.dumps, copy.copy, copy.deepcopy, msgspec.json.encode, msgspec.msgpack.encode):
        with pytest.raises(TypeError):
            serialise(secret)
    with pytest.raises(TypeError):
        vars(secret)
    secret.wipe()


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_locked_left_out_of_dumps_and_not_inherited(tmp_path: Path, kernel: str) -> None:
    child = Child(
        kernel,
        'ready(); print(*flags(where)); print("descriptors", *map(os.readlink, '
        '(f"/proc/self/fd/{name}" for name in range(20) if os.path.lexists(f"/proc/self/fd/{name}"))))',
        tmp_path,
    )
    flags, descriptors = child.end().decode().splitlines()
    assert {"lo", "dc", "dd"} <= set(flags.split())
    assert "secretmem" not in descriptors, "a forked process could map the page again"
    assert child.locked


def test_a_forked_process_does_not_have_it(tmp_path: Path, kernel: str) -> None:
    body = """
ready()
child = os.fork()
if child == 0:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(where, length)
    os._exit(0)
_, status = os.waitpid(child, 0)
with secret.view() as view:
    print(os.WTERMSIG(status) if os.WIFSIGNALED(status) else -1, bytes(view).hex())
"""
    child = Child(kernel, body, tmp_path)
    ended, kept = child.end().split()
    assert int(ended) == signal.SIGSEGV
    assert bytes.fromhex(kept.decode()) == child.value


def test_without_a_right_to_lock_it_says_so_and_works(tmp_path: Path) -> None:
    """Another user whose limit on locked memory is zero. The imports come before the change of user."""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without the right to lock memory")
    body = """
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
with secret.view() as view:
    secret = Secret(view)
ready()
with secret.view() as view:
    print(bytes(view).hex(), *flags(memory._address(secret._page)))
"""
    child = Child("with", body, tmp_path)
    kept, *flags = child.end().decode().split()
    assert (child.hidden, child.locked) == (False, False)
    assert bytes.fromhex(kept) == child.value
    assert {"dc", "dd"} <= set(flags)


@pytest.mark.may_skip
def test_hidden_memory_cannot_be_read_through_proc(tmp_path: Path) -> None:
    """Not by the process itself and not by root from outside, who both can read any other page."""
    if not hides():
        pytest.skip("this kernel has no secret memory, or it is switched off")
    look = """
def look(address, count):
    with open("/proc/self/mem", "rb", 0) as file:
        file.seek(address)
        try:
            return file.read(count).hex()
        except OSError as error:
            return error.strerror.replace(" ", "-")
ready()
other = ctypes.create_string_buffer(needle)
print(look(where, length), look(ctypes.addressof(other), len(needle)), where, ctypes.addressof(other), flush=True)
time.sleep(600)
"""
    for kernel in KERNEL:
        child = Child(kernel, look, tmp_path)
        try:
            assert child.process.stdout is not None
            own, other, secret_at, other_at = child.process.stdout.readline().decode().split()
            assert bytes.fromhex(other) == child.needle
            with Path(f"/proc/{child.process.pid}/mem").open("rb", 0) as memory:
                memory.seek(int(other_at))
                assert memory.read(len(child.needle)) == child.needle
                memory.seek(int(secret_at))
                if kernel == "with":
                    assert own == "Input/output-error"
                    with pytest.raises(OSError):
                        memory.read(32)
                else:  # what protects here is that the process is not dumpable, for all but root
                    assert bytes.fromhex(own) == memory.read(32) == child.value
        finally:
            child.kill()


# --- core dumps ------------------------------------------------------------------------------------------------------


def with_cores() -> None:
    """Runs in the child before the program: as large a core as the machine allows."""
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))


def kernel_writes_cores_here() -> bool:
    """Whether the kernel puts cores into the folder of the process that dies, and may be let to."""
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    return pattern[:1] not in ("|", "@", "/", "") and resource.getrlimit(resource.RLIMIT_CORE)[1] != 0


def core_of(child: Child, folder: Path) -> bytes:
    """A real core dump of it: the kernel's, where that writes one here, else the debugger's."""
    if kernel_writes_cores_here():
        child.process.send_signal(signal.SIGSEGV)
        assert os.WCOREDUMP(child.status())
        [path] = folder.glob("*core*")
        return path.read_bytes()
    if shutil.which("gcore") is None:
        child.kill()
        pytest.skip("the kernel gives its cores to another program, and gcore (gdb) is not installed")
    command = ["gcore", "-o", str(folder / "core"), str(child.process.pid)]
    taken = subprocess.run(command, capture_output=True, text=True, timeout=120)
    child.kill()
    if taken.returncode != 0:
        pytest.skip(f"gcore cannot attach here: {taken.stderr.strip()[-200:]}")
    [path] = folder.glob("*core*")
    return path.read_bytes()


@pytest.mark.may_skip
def test_it_is_not_in_a_core(tmp_path: Path, kernel: str) -> None:
    """The core is real and whole: it has the ordinary bytes of the same process."""
    child = Child(kernel, "ready(); time.sleep(600)", tmp_path, preexec_fn=with_cores)
    core = core_of(child, tmp_path)
    assert child.needle in core, "the search finds nothing at all in this core"
    assert child.value not in core
    assert child.value[:16] not in core and child.value[16:] not in core


@pytest.mark.may_skip
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGQUIT])
def test_a_protected_process_writes_no_core(tmp_path: Path, number: signal.Signals) -> None:
    if not kernel_writes_cores_here():
        pytest.skip("the kernel gives its cores to another program")
    for protected in (False, True):
        folder = tmp_path / str(protected)
        folder.mkdir()
        body = ("protect_process(); " if protected else "") + "ready(); time.sleep(600)"
        child = Child("with", body, folder, preexec_fn=with_cores)
        child.process.send_signal(number)
        status = child.status()
        assert os.WTERMSIG(status) == number
        assert os.WCOREDUMP(status) == (not protected)
        assert bool(list(folder.iterdir())) == (not protected)


def test_a_protected_process_is_closed_to_its_own_user(tmp_path: Path) -> None:
    """Nobody of the same user reads its memory, its environment or its descriptors, or attaches a debugger."""
    if os.geteuid() != 0:
        pytest.skip("only root can start processes of another user")
    user = "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
    look = user + "open(sys.argv[1], 'rb').read(1)\n"
    for protected in (False, True):
        # A change of user makes a process not dumpable as well; 4 is PR_SET_DUMPABLE.
        body = user + "libc.prctl(4, 1, 0, 0, 0)\n"
        child = Child(
            "with", body + ("protect_process(); " if protected else "") + "ready(); time.sleep(600)", tmp_path
        )
        try:
            for name in ("environ", "maps"):
                command = [sys.executable, "-c", "import os, sys\n" + look, f"/proc/{child.process.pid}/{name}"]
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert (done.returncode == 0) == (not protected), done.stderr
                assert ("PermissionError" in done.stderr) == protected
            assert Path(f"/proc/{child.process.pid}/environ").stat().st_uid == (0 if protected else 65534)
        finally:
            child.kill()
