"""The `launcher` process: the privileged one, which starts mounts and sandboxes (`valv.compute.launcher`)."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import platform
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from valv import config as configuration
from valv.assemble import confine
from valv.assemble.confine import INSIDE, Users, View
from valv.assemble.sockets import LAUNCHER
from valv.compute import cgroup, command, scratch, seccomp
from valv.compute.launcher import Launcher, RekeyCommand, Settings
from valv.config import MAIN, Config
from valv.errors import ComputeFault, ConflictFault, Fault, UnreachableFault
from valv.ports.compute import Limits

OUTBOX: Final = Path("/outbox")
_BACKLOG: Final = 128

log: Final = logging.getLogger("valv.launcher")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher until SIGTERM or SIGINT. The exit code is 0, or that of the fault that is logged."""
    parser = argparse.ArgumentParser(prog="valv launcher", description="Starts mounts and sandboxes.")
    parser.add_argument("--node", type=Path, required=True, help="the node's folder")
    parser.add_argument("--listen-fd", type=int, help="an inherited descriptor that listens already")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        config = configuration.load(options.node)
        command.check()
        listener = (
            listen(config.runtime / LAUNCHER) if options.listen_fd is None else socket.socket(fileno=options.listen_fd)
        )
        listener.set_inheritable(False)
        launcher = Launcher(settings(config), listener)
        signal.signal(signal.SIGTERM, lambda *_: launcher.stop())
        signal.signal(signal.SIGINT, lambda *_: launcher.stop())
        log.info("launcher ready for %d runs", config.compute.slots)
        launcher.serve()
    except Fault as fault:
        log.error("%s", fault)
        return fault.row.exit
    except OSError as error:
        log.error("the launcher cannot start: %s", error)
        return UnreachableFault().row.exit
    return 0


def settings(config: Config) -> Settings:
    """What the launcher needs to know, and the command lines of the processes that it starts."""
    users = Users.of(config)
    if users.root and not INSIDE.is_dir():
        raise ComputeFault("the launcher was started outside of its confinement", "start the node with 'valv up'")
    if users.root:
        scratch.mount_proc()
    mark = hashlib.sha256(config.home.encode()).hexdigest()[:10]
    groups = cgroup.find(f"valv-{mark}")
    if groups is None:
        log.warning("no control groups: limits are set per process, and memory is looked at now and then")
    folder = INSIDE if users.root else confine.runs(config)
    node = ("--node", config.home)
    toml = Path(config.home, "valv.toml")
    stores = confine.store_folders(config)
    hidden = (confine.copied_secrets(config),)

    def there(*, but: str = "") -> list[Path]:
        """Folders of stores that can be shown now: a lost disk must not keep a process from reading the others."""
        return [path for name, path in stores.items() if name != but and confine.is_there(path)]

    def view(uid: int) -> View:
        read = confine.same(*there(), toml, config.runtime)
        return View(uid=uid, groups=(users.group,), read=read, devices=(Path("/dev/fuse"),), hidden=hidden)

    def writing_view(uid: int) -> View:
        write = confine.same(*(path for name, path in stores.items() if name == MAIN))
        read = confine.same(*there(but=MAIN), toml, config.runtime)
        return View(uid=uid, groups=(users.group,), read=read, write=write, hidden=hidden)

    def mount_command(uid: int, *, fuse: int, files: int, reports: int, grant_id: str, run_id: str) -> list[str]:
        arguments = ("--fuse", fuse, "--files", files, "--reports", reports, "--grant", grant_id, "--run", run_id)
        return confine.command(view(uid), confine.python("mount", *node, *map(str, arguments)))

    def collect_command(uid: int, *, outbox: Path, out: int, public_key: bytes, limit: int) -> list[str]:
        arguments = ("--outbox", OUTBOX, "--out", out, "--public-key", public_key.hex(), "--limit", limit)
        return confine.command(View(uid=uid, read=((outbox, OUTBOX),)), confine.python("collect", *map(str, arguments)))

    def read_command(uid: int, *, file: int, out: int, grant_id: str) -> list[str]:
        arguments = ("--file", file, "--out", out, "--grant", grant_id)
        return confine.command(view(uid), confine.python("read", *node, *map(str, arguments)))

    def rewriting(entry: str) -> RekeyCommand:
        def made(uid: int, *, file: int, out: int, grant_id: str, public_key: bytes, body: str) -> list[str]:
            arguments = (
                "--file",
                file,
                "--out",
                out,
                "--grant",
                grant_id,
                "--public-key",
                public_key.hex(),
                "--body",
                body,
            )
            return confine.command(writing_view(uid), confine.python(entry, *node, *map(str, arguments)))

        return made

    def rewrite_command(
        uid: int, *, file: int, out: int, into: int, back: int, grant_id: str, public_key: bytes, body: str
    ) -> list[str]:
        pipes = ("--into", str(into), "--back", str(back))
        command = rewriting("rewrite")
        return [*command(uid, file=file, out=out, grant_id=grant_id, public_key=public_key, body=body), *pipes]

    return Settings(
        folder=folder,
        root=users.root,
        slots=users.slots,
        readers=users.readers,
        worker_uid=users.worker,
        serve_uid=users.serve,
        most=Limits(
            seconds=config.compute.seconds,
            memory=config.compute.memory,
            processes=config.compute.processes,
            scratch=config.compute.scratch,
        ),
        seccomp=seccomp.program(platform.machine()),
        groups=groups,
        mount_command=mount_command,
        collect_command=collect_command,
        read_command=read_command,
        rekey_command=rewriting("rekey"),
        join_command=rewriting("join"),
        rewrite_command=rewrite_command,
    )


def listen(path: Path, group: int | None = None) -> socket.socket:
    """A listening socket at `path` for this user and `group`. Raises `ConflictFault` where another process listens."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConflictFault(f"{path} is in the way: it is no socket", "remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ConflictFault(f"another process listens at {path}", "stop it first, by its process id")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    if group is not None:
        os.chown(path, -1, group)
    listener.listen(_BACKLOG)
    return listener


if __name__ == "__main__":
    sys.exit(main())
