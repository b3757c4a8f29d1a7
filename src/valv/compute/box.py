"""The sandbox of one command: the bubblewrap arguments, and the shell lines that start the command inside.

The command sees the host's /usr read-only (without /usr/local), its own /proc, an empty /tmp, `/data` read-only, and
`/work` and `/outbox` writable. Every namespace is its own, it has no capability, cannot get one, and cannot make
namespaces. Every folder it can write to has a bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MISSING: Final = b"missing"
"""What the starter says on its standard input when there is no such program."""

UID: Final = 1000
OWN_PROCESSES: Final = 4
"""How many processes bubblewrap itself may need besides the command's."""
PATH: Final = "/usr/bin:/bin:/usr/sbin:/sbin"

_ENVIRONMENT: Final = {
    "PATH": PATH,
    "HOME": "/work",
    "TMPDIR": "/tmp",  # noqa: S108 - the run's own
    "LANG": "C.UTF-8",
    "USER": "run",
    "LOGNAME": "run",
}

_ETC: Final = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "fonts")

_PASSWD: Final = (
    b"root:x:0:0::/:/usr/sbin/nologin\nrun:x:1000:1000::/work:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
)
_GROUP: Final = b"root:x:0:\nrun:x:1000:\nnogroup:x:65534:\n"
_HOSTS: Final = b"127.0.0.1 localhost\n"

# Whether the program exists can only be told inside. The answer goes to standard input, the write end of a pipe
# until the program takes over. A shell's built-in command is no program.
STARTER: Final = f"""\
set -f
_valv_no() {{ printf {MISSING.decode()} >&0; exit 127; }}
case $1 in
-*) _valv_no ;;
*/*) [ -f "$1" ] && [ -x "$1" ] || _valv_no ;;
*)
    _valv_found=
    IFS=:
    for _valv_folder in $PATH; do
        if [ -f "$_valv_folder/$1" ] && [ -x "$_valv_folder/$1" ]; then _valv_found=yes; break; fi
    done
    unset IFS
    [ "$_valv_found" ] || _valv_no ;;
esac
exec "$@" </dev/null
"""


@dataclass(frozen=True, slots=True)
class Folders:
    """Where on the host the run's folders are. `work` is None where it shall be memory of the sandbox itself."""

    data: Path
    outbox: Path
    work: Path | None


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Numbers of the open descriptors that bubblewrap reads the filter and small files from and tells its status to."""

    seccomp: int
    status: int
    passwd: int
    group: int
    hosts: int


def small_files() -> dict[str, bytes]:
    """Contents of the files that `Descriptors` names."""
    return {"passwd": _PASSWD, "group": _GROUP, "hosts": _HOSTS}


def options(folders: Folders, descriptors: Descriptors, environment: Mapping[str, str], scratch: int) -> list[str]:
    """Options of bubblewrap, all but the command. `scratch`: bound in bytes of each folder in the sandbox's memory."""
    size = str(scratch)
    arguments = [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--uid", str(UID), "--gid", str(UID)),
        *("--hostname", "run", "--cap-drop", "ALL", "--die-with-parent", "--new-session"),
        *("--seccomp", str(descriptors.seccomp), "--json-status-fd", str(descriptors.status)),
        *system(),
        *("--size", "4096", "--tmpfs", "/usr/local", "--remount-ro", "/usr/local"),
    ]
    for name in _ETC:
        arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in small_files():
        arguments += ["--ro-bind-data", str(getattr(descriptors, name)), f"/etc/{name}"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]  # noqa: S108
    arguments += ["--size", size, "--tmpfs", "/tmp"]  # noqa: S108
    arguments += ["--ro-bind", str(folders.data), "/data", "--bind", str(folders.outbox), "/outbox"]
    if folders.work is None:
        arguments += ["--size", size, "--tmpfs", "/work"]
    else:
        arguments += ["--bind", str(folders.work), "/work"]
    arguments += ["--remount-ro", "/", "--chdir", "/work", "--clearenv"]
    for variable, value in {**_ENVIRONMENT, **environment}.items():
        arguments += ["--setenv", variable, value]
    return arguments


def alone(seccomp: str, scratch: int) -> list[str]:
    """Options of bubblewrap for a program that has nothing but its standard streams: no folder of the host but /usr, no
    network, no other process. `seccomp`: number of the filter's descriptor; `scratch`: bound in bytes of /tmp."""
    arguments = [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--uid", str(UID), "--gid", str(UID)),
        *("--hostname", "run", "--cap-drop", "ALL", "--die-with-parent", "--new-session", "--seccomp", seccomp),
        *system(),
        *("--size", "4096", "--tmpfs", "/usr/local", "--remount-ro", "/usr/local"),
    ]
    for name in _ETC:
        arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    arguments += ["--size", str(scratch), "--tmpfs", "/tmp", "--chdir", "/tmp", "--clearenv"]  # noqa: S108 - its own
    for variable in ("PATH", "TMPDIR", "LANG"):
        arguments += ["--setenv", variable, _ENVIRONMENT[variable]]
    return arguments


def system() -> list[str]:
    """Bubblewrap options for the host's /usr, read-only, and the names at the root that lead into it."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            arguments += ["--ro-bind", str(path), str(path)]
    return arguments


def inside(command: Sequence[str], processes: int | None = None) -> list[str]:
    """What bubblewrap starts: the starter with the command as its arguments. `processes`: where nothing else bounds
    their number; it must be set inside, because the kernel counts them per user namespace."""
    starter = ["/bin/sh", "-c", STARTER, "sh", *command]
    if processes is None:
        return starter
    return ["/usr/bin/prlimit", f"--nproc={processes + OWN_PROCESSES}", "--", *starter]
