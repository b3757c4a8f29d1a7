"""The `keyd` process: sole holder of the root key and of all that it wraps.

It reads the configuration and its own folder, writes the key backup, and talks over one unix socket; it opens no other
file, no database and no network (but with the backend `barbican`). Whoever starts it confines it and gives it its
user id.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from valv import config as configuration
from valv.assemble.backend import backend
from valv.config import Config
from valv.errors import ConfigFault, ConflictFault, Fault, UnreachableFault
from valv.keys import disk, folder
from valv.keys.keyd import Keyd
from valv.keys.memory import protect_process
from valv.keys.roles import Roles
from valv.keys.server import Server
from valv.ports.keys import Keyring

SOCKET: Final = "keyd.sock"
BACKLOG: Final = 128

log = logging.getLogger("valv.keyd")


def create(config: Config, passphrase: bytes, keyring: Keyring | None = None) -> None:
    """Make the key folder of a new node: its root key under `passphrase`, its intake and ledger keys. `keyring`: in
    place of the one that the configuration names.

    All at once or not at all. Where root makes the node, the folder is given to the key holder's user. Raises
    `ConflictFault` where there is a key folder already: keys are never overwritten.
    """
    keyring = keyring or keyring_of(config)
    path = config.path(config.keys.path)
    if path.exists():
        raise ConflictFault(f"{path} exists", "keys are never overwritten; choose another keys.path")
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with disk.storage_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir(mode=0o700)
        try:
            root = folder.create(fresh, config.node.name, keyring, passphrase)
            try:
                if os.geteuid() == 0:
                    give(fresh, config.processes.uid_base + 1)
                fresh.rename(path)
                disk.sync_folder(path.parent)
            except BaseException:
                folder.discard(fresh, root)
                raise
            root.wipe()
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """Run the key holder until SIGTERM or SIGINT. The exit code is 0, or that of the fault that is logged."""
    options = _options(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        protect_process()
        _many_descriptors()
        config = configuration.load(options.node)
        _run(config, options.socket or config.runtime / SOCKET, options.listen_fd)
    except Fault as fault:
        log.error("%s", fault)
        return fault.row.exit
    except OSError as error:
        log.error("the key holder cannot start: %s", error)
        return UnreachableFault().row.exit
    return 0


def _run(config: Config, path: Path, listen_fd: int | None) -> None:
    roles = Roles.of(config)
    path_of_keys, places = config.path(config.keys.path), [config.key_place(place) for place in config.keys.backup]
    keyd = Keyd(path_of_keys, config.node.name, roles, keyring_of(config), backup=places)
    listener = _listen(path) if listen_fd is None else _inherit(listen_fd)
    server = Server(keyd, roles, listener)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    signal.signal(signal.SIGINT, lambda *_: server.stop())
    try:
        opens = bool(config.keys.passphrase_file) and folder.unsealing(path_of_keys) is None
        if opens:
            keyd.unseal(read_passphrase(config.path(config.keys.passphrase_file)))
            if not keyd.locked_in_memory:
                log.warning("the root key may be swapped out: raise the limit on locked memory (ulimit -l)")
        log.info("key holder ready, %s", "open" if opens else "locked")
        server.serve()
    finally:
        listener.close()
        keyd.close()
        if listen_fd is None:
            path.unlink(missing_ok=True)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="valv keyd", description="The key holder of a node.")
    parser.add_argument("--node", type=Path, required=True, help="the node's folder")
    parser.add_argument("--socket", type=Path, help="where to listen, if not at keyd.sock in the runtime folder")
    parser.add_argument("--listen-fd", type=int, help="an inherited descriptor that listens already")
    return parser.parse_args(argv)


def keyring_of(config: Config) -> Keyring:
    """The backend that the configuration names."""
    made: Keyring = backend("keys", config.keys.backend)(config.keys)
    return made


def read_passphrase(path: Path) -> bytes:
    """The first line of the file."""
    return disk.read(path).split(b"\n", 1)[0].rstrip(b"\r")


def _listen(path: Path) -> socket.socket:
    """Bind the socket: the key holder's group may connect, and each peer is then checked by user id."""
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(BACKLOG)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed key holder left. Raises `ConflictFault` where one is alive."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ConflictFault(f"{path} is in the way: it is no socket", "remove it")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise ConflictFault(f"another key holder listens at {path}", "stop it first, by its process id")
        path.unlink()


def _inherit(descriptor: int) -> socket.socket:
    listener = socket.socket(fileno=descriptor)
    listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM or not listening:
        raise ConfigFault(f"descriptor {descriptor} is not a listening unix stream socket")
    listener.set_inheritable(False)
    return listener


def give(folder: Path, uid: int) -> None:
    """Make all of a key folder a user's own."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, uid, follow_symlinks=False)


def _many_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
