"""How each process of the node is shut in: its own view of the file system, its own user, no more rights than it needs.

A process sees the system's /usr, the Python installation and Valv's own code (read-only, at their own paths, so that it
does not matter whether its user could reach them), and of the node only the folders named for it. Bubblewrap makes that
view; where root starts the node, `setpriv` then changes to the process's user and drops every capability.

Each has its own process-id namespace: when its first process ends, for whatever reason, the kernel ends all of it. Each
is tied to its parent's life.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import valv
from valv.compute import box
from valv.compute.run import Slot
from valv.config import Config
from valv.errors import ConfigFault

INSIDE: Final = Path("/runs")
"""Where the launcher of a node that root started sees the folders of its runs: a place that every run's user can
reach, because it must find its own there."""
SECRETS: Final = "secrets"
READERS: Final = 64
_RUNS: Final = 100
_READERS_FROM: Final = 900
_RANGE: Final = 1000

_ETC: Final = (
    "alternatives",
    "ca-certificates.conf",
    "group",
    "host.conf",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "passwd",
    "pki",
    "services",
    "ssl",
)
_RESOLVER: Final = "/etc/resolv.conf"
_CHANGE_USER: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
LAUNCHER: Final = (
    *_CHANGE_USER,
    "CAP_SYS_ADMIN",  # mounts and namespaces
    "CAP_NET_ADMIN",  # an empty network namespace for the processes that it confines
    "CAP_CHOWN",
    "CAP_FOWNER",
    "CAP_DAC_OVERRIDE",
    "CAP_KILL",
)
"""Capabilities of the launcher, of all that root has."""


@dataclass(frozen=True, slots=True)
class Users:
    """User ids of a node. Where root starts it, each process has its own; else all are the one who starts it.

    base: the group of all; + 1 keyd, + 2 serve, + 3 worker; + 100 + 2k the mount and + 101 + 2k the command in place k;
    from + 900 on, readers.
    """

    root: bool
    group: int
    keyd: int
    serve: int
    worker: int
    slots: tuple[Slot, ...]
    readers: tuple[int, ...]

    @classmethod
    def of(cls, config: Config) -> Users:
        """Users where this process is the one that starts the others: root or not."""
        slots, own = config.compute.slots, os.geteuid()
        if own != 0:
            return cls(False, os.getegid(), own, own, own, (Slot(own, own),) * slots, (own,) * READERS)
        return cls.shared(config)

    @classmethod
    def shared(cls, config: Config) -> Users:
        """Users where root started the node."""
        slots, base = config.compute.slots, config.processes.uid_base
        return cls(
            root=True,
            group=base,
            keyd=base + 1,
            serve=base + 2,
            worker=base + 3,
            slots=tuple(Slot(base + _RUNS + 2 * k, base + _RUNS + 2 * k + 1) for k in range(slots)),
            readers=tuple(range(base + _READERS_FROM, base + _READERS_FROM + READERS)),
        )

    def check(self) -> None:
        """Raises `ConfigFault` where the range would meet the system's own users."""
        if self.root and not 1000 < self.group < (1 << 31) - _RANGE:
            raise ConfigFault(
                f"processes.uid_base: {self.group} is not free for {_RANGE} users", "choose a range like 610000"
            )


@dataclass(frozen=True, slots=True)
class View:
    """What a process may see and do. `read`, `write`: pairs of a path of the host and where it is inside (`same` makes
    them); `devices`: device files. `uid`: its user, None to stay who we are. `whole_etc`: for one that starts others:
    a single file of /etc that the host replaces meanwhile could not be shown to them. `hidden`: folders that are empty
    inside, whatever is above them."""

    uid: int | None
    groups: tuple[int, ...] = ()
    read: tuple[tuple[Path, Path], ...] = ()
    write: tuple[tuple[Path, Path], ...] = ()
    devices: tuple[Path, ...] = ()
    network: bool = False
    own_proc: bool = True
    whole_etc: bool = False
    capabilities: tuple[str, ...] = ()
    hidden: tuple[Path, ...] = ()


def same(*paths: Path) -> tuple[tuple[Path, Path], ...]:
    """Paths that are inside where they are outside."""
    return tuple((path, path) for path in paths)


def runs(config: Config) -> Path:
    """Where the runs' folders are: beside the runtime folder and not in it, because a process that saw a run's mount
    there would keep it from ending."""
    return config.runtime.with_name(f"{config.runtime.name}.runs")


def store_folders(config: Config) -> dict[str, Path]:
    """The stores that are folders, by their names: of backend `local`."""
    return {name: config.path(store.path) for name, store in config.all_stores.items() if store.backend == "local"}


def is_there(folder: Path) -> bool:
    """Whether it can be shown to a process: False also where its disk does not answer."""
    return os.path.isdir(folder)  # noqa: PTH112 - `is_dir` raises what a broken disk says


def copied_secrets(config: Config) -> Path:
    """Where the copies of secrets lie, in a folder for each process. No process sees this folder: each sees its own
    copies, in place of the files."""
    return config.runtime / SECRETS


def secrets_seen(config: Config, name: str) -> tuple[tuple[Path, Path], ...]:
    """Where process `name` sees the secret files that it needs: copies of its own in place of the files."""
    folder = copied_secrets(config) / name
    return tuple((folder / key, path) for key, path, readers in secrets(config) if name in readers)


def secrets(config: Config) -> list[tuple[str, Path, tuple[str, ...]]]:
    """(key of the configuration, file, processes that need it)."""
    stores, places = config.stores.items(), config.backup.places.items()
    named = (
        ("keys.passphrase_file", config.keys.passphrase_file, ("keyd",)),
        ("keys.clouds_file", config.keys.clouds_file, ("keyd",)),
        ("database.password_file", config.database.password_file, ("serve", "worker")),
        ("storage.credentials", config.storage.credentials, ("serve", "worker")),
        *((f"stores.{name}.credentials", store.credentials, ("serve", "worker")) for name, store in stores),
        *((f"backup.places.{name}.credentials", one.credentials, ("worker",)) for name, one in places),
    )
    return [(key, config.path(value), readers) for key, value, readers in named if value]


def command(view: View, program: Sequence[str]) -> list[str]:
    """The command line that starts `program` with this view. For root and for others; the kernel must allow others
    user namespaces."""
    root = os.geteuid() == 0
    arguments = ["bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--new-session"]
    if not view.network:
        arguments.append("--unshare-net")
    if not root:
        arguments += ["--unshare-user", "--uid", str(os.geteuid()), "--gid", str(os.getegid())]
    kept = view.capabilities or (_CHANGE_USER if view.uid is not None else ())
    arguments += ["--cap-drop", "ALL"]
    for capability in kept if root else ():
        arguments += ["--cap-add", capability]
    arguments += _tree(view)
    arguments += ["--chdir", "/", "--clearenv", "--setenv", "PATH", box.PATH, "--setenv", "LANG", "C.UTF-8"]
    arguments += ["--setenv", "HOME", "/tmp", "--"]  # noqa: S108 - its own
    if root and view.uid is not None:
        arguments += ["setpriv", "--reuid", str(view.uid), "--regid", str(view.uid)]
        groups = ",".join(map(str, view.groups))
        arguments += ["--groups", groups] if groups else ["--clear-groups"]
        arguments += ["--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"]
    # Files are shared with the node's group and nobody else. Set this late: bubblewrap's own folders must be open.
    return [*arguments, "/bin/sh", "-c", 'umask 007; exec "$@"', "sh", *program]


def python(name: str, *arguments: str) -> list[str]:
    """The command line of a process entry, module `valv.assemble.<name>`, deaf to environment and user folders."""
    return [sys.executable, "-I", "-B", "-m", f"valv.assemble.{name}", *arguments]


def _tree(view: View) -> list[str]:
    arguments = [*box.system(), "--dev", "/dev"]
    arguments += ["--perms", "1777", "--tmpfs", "/tmp"]  # noqa: S108 - its own
    if view.own_proc:
        arguments += ["--proc", "/proc"]
    if view.whole_etc:
        arguments += ["--ro-bind", "/etc", "/etc"]
        for path in sorted(Path("/etc").glob("*shadow*")):  # nobody's passwords are a launcher's business
            arguments += ["--ro-bind", "/dev/null", str(path)]
    else:
        arguments += ["--perms", "0755", "--dir", "/etc"]
        for name in _ETC:
            arguments += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    if view.network:
        # Often a link into /run, so what it leads to is shown in its place.
        arguments += ["--ro-bind-try", str(Path(_RESOLVER).resolve()), _RESOLVER]
    installed = same(*_installation())
    arguments += _open_folders([inside for _, inside in (*installed, *view.write, *view.read)])
    for host, inside in installed:
        arguments += ["--ro-bind", str(host), str(inside)]
    for host, inside in view.write:
        arguments += ["--bind", str(host), str(inside)]
    for host, inside in view.read:
        arguments += ["--ro-bind", str(host), str(inside)]
    for path in view.hidden:
        arguments += ["--perms", "0755", "--tmpfs", str(path)]
    for path in view.devices:
        arguments += ["--dev-bind-try", str(path), str(path)]
    return arguments


def _open_folders(paths: list[Path]) -> list[str]:
    """Folders on the way to these paths, which every user may pass; bubblewrap's own would be closed."""
    folders = sorted({parent for path in paths for parent in path.parents if parent != Path("/")})
    return [word for folder in folders for word in ("--perms", "0755", "--dir", str(folder))]


def _installation() -> list[Path]:
    """Folders of the Python installation, the environment and Valv's code, as far as /usr does not hold them."""
    source = Path(valv.__file__).resolve().parent.parent
    found: list[Path] = []
    for path in (Path(sys.base_prefix), Path(sys.prefix), source):
        if not any(path.is_relative_to(other) for other in (Path("/usr"), *found)):
            found.append(path)
    return found
