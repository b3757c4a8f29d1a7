"""What must be in order before the processes of a node start: folders, their owners, secrets, and each one's view.

Where root starts the node, the folders are shared out among its users (`confine.Users`):

    keys/            keyd alone, who also sees what its token needs (`keys.binds`; their owners stay as they are)
    db/ store/       serve and worker, by the node's group; mounts and readers may read the stores that are folders,
                     who encrypts a file anew may write to the first
    runtime folder   sockets, by the node's group; nobody may remove what is another's (sticky)
    valv.toml        all may read it; it holds no secret

A secret that the configuration names is copied into the runtime folder for the process that needs it, and the copy put
in its place in that process's view; others do not see it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from valv.assemble import confine
from valv.assemble.confine import INSIDE, Users, View
from valv.config import MAIN, Config
from valv.errors import ConfigFault, StorageFault

LOG: Final = "log"
PROCESSES: Final = ("keyd", "launcher", "worker", "serve")
"""In the order of their start."""

Pairs = tuple[tuple[Path, Path], ...]
"""Paths outside, and where they are inside."""


def prepare(config: Config, users: Users) -> None:
    """Make and share out the folders. Repeating changes nothing. Raises `StorageFault`, `ConfigFault`."""
    users.check()
    runtime = config.runtime
    try:
        runtime.parent.mkdir(parents=True, exist_ok=True)
        _folder(runtime, 0o1770 if users.root else 0o700, group=users.group if users.root else None)
        _folder(confine.runs(config), 0o711)
        _folder(Path(config.home, LOG), 0o750)
        for folder in _shared(config):
            try:
                folder.mkdir(exist_ok=True, parents=True)
            except OSError:
                if folder not in _others(config):  # without the disk of another store the node runs all the same
                    raise
        for place in config.keys.backup:
            if config.path(place).is_dir():
                _folder(config.key_place(place), 0o700, owner=users.keyd if users.root else None)
        for path in saved_to(config):
            _folder(path, 0o700, owner=users.worker if users.root else None)
        if users.root:
            _share(config, users)
        _copy_secrets(config, users)
    except OSError as error:
        raise StorageFault(f"{error.filename}: {error.strerror}", "the node's folder must be writable") from None


def views(config: Config, users: Users) -> dict[str, View]:
    """Each process's view, by its name. The launcher's only where root starts the node."""
    stores, db = list(confine.store_folders(config).values()), Path(config.home, "db")
    toml = Path(config.home, "valv.toml")
    database = [Path("/run/postgresql")] if config.database.url.startswith("postgres") else []
    stores = [path for path in stores if confine.is_there(path)]
    data = [path for path in (db, *stores, *database) if path.exists()]
    trusted = {name: certificates(config) for name in ("worker", "serve")}

    def view(name: str, uid: int, write: list[Path], bound: Pairs = (), *, network: bool) -> View:
        return View(
            uid=uid if users.root else None,
            groups=(users.group,),
            write=(*confine.same(*write, config.runtime), *bound),
            read=(*confine.same(toml, *trusted.get(name, [])), *confine.secrets_seen(config, name)),
            network=network,
            hidden=(confine.copied_secrets(config),),
        )

    far = config.keys.backend == "barbican"  # the one backend whose keys are asked for over the network
    found = {
        "keyd": view("keyd", users.keyd, [config.path(config.keys.path), *backups(config)], bound(config), network=far),
        "worker": view(
            "worker", users.worker, [*data, config.path(config.mail.folder), *saved_to(config)], network=True
        ),
        "serve": view("serve", users.serve, data, network=True),
    }
    if users.root:
        runtime = config.runtime
        found["launcher"] = View(
            uid=None,
            read=confine.same(toml, runtime),
            write=((confine.runs(config), INSIDE), *confine.same(*stores, Path("/proc"), Path("/sys"))),
            devices=(Path("/dev/fuse"),),
            own_proc=False,
            whole_etc=True,
            capabilities=confine.LAUNCHER,
            hidden=(confine.copied_secrets(config),),
        )
    return found


def backups(config: Config) -> list[Path]:
    """This node's folders in the places of the key backup that are there. One that is away is written later."""
    found = [config.key_place(place) for place in config.keys.backup]
    return [path for path in found if path.exists()]


def saved_to(config: Config) -> list[Path]:
    """This node's folders in the places of backups that are folders and are there."""
    named = {name: place for name, place in config.backup.places.items() if place.backend == "local"}
    return [Path(config.backup_place(name).path) for name, place in named.items() if config.path(place.path).is_dir()]


def certificates(config: Config) -> list[Path]:
    """The files of certificates by which stores are known. Raises `ConfigFault` where one is absent."""
    known = (*config.all_stores.values(), *config.backup.places.values())
    found = [config.path(store.ca) for store in known if store.ca]
    for path in found:
        if not path.is_file():
            raise ConfigFault(f"a store's ca: {path} is not a file", "name the file of the certificates to trust")
    return list(dict.fromkeys(found))


def bound(config: Config) -> Pairs:
    """What the key holder sees besides for its token: `keys.binds`. Raises `ConfigFault` where one is absent."""
    found = []
    for bind in config.keys.binds:
        outside, _, inside = bind.partition(":")
        path = config.path(outside)
        if not path.exists():
            raise ConfigFault(f"keys.binds: {path} does not exist", "name what the token's library needs")
        found.append((path, Path(inside) if inside else path))
    return tuple(found)


def _copy_secrets(config: Config, users: Users) -> None:
    folder = confine.copied_secrets(config)
    shutil.rmtree(folder, ignore_errors=True)
    _folder(folder, 0o711)
    owners = {"keyd": users.keyd, "serve": users.serve, "worker": users.worker}
    for key, path, readers in confine.secrets(config):
        for name in readers:
            _folder(folder / name, 0o700, owner=owners[name] if users.root else None)
            _write(folder / name / key, path.read_bytes())
            if users.root:
                os.chown(folder / name / key, owners[name], owners[name])


def clear(config: Config) -> None:
    """Remove sockets, copies of secrets and folders of runs. After the end of all processes."""
    shutil.rmtree(confine.copied_secrets(config), ignore_errors=True)
    with contextlib.suppress(OSError):
        for path in config.runtime.iterdir():
            if path.is_socket():
                path.unlink()
        config.runtime.rmdir()
    shutil.rmtree(confine.runs(config), ignore_errors=True)


def _shared(config: Config) -> tuple[Path, ...]:
    """The folders of the node's group."""
    return (Path(config.home, "db"), *confine.store_folders(config).values(), config.path(config.mail.folder))


def _others(config: Config) -> list[Path]:
    """The folders of stores besides `main`."""
    return [path for name, path in confine.store_folders(config).items() if name != MAIN]


def _share(config: Config, users: Users) -> None:
    keys = config.path(config.keys.path)
    if keys.exists():
        for path in (keys, *keys.rglob("*")):
            os.chown(path, users.keyd, users.keyd, follow_symlinks=False)
        keys.chmod(0o700)
    for top in _shared(config):
        if top in _others(config) and not confine.is_there(top):
            continue
        if top.stat().st_gid != users.group or top.name == "db":  # a large store is gone through once only
            for path in (*top.rglob("*"), top):
                _give(path, users.group)
    toml = Path(config.home, "valv.toml")
    os.chown(toml, -1, users.group)
    toml.chmod(0o640)


def _give(path: Path, group: int) -> None:
    """To the group, which what is made in a folder later then has too."""
    if not path.is_symlink():
        os.chown(path, -1, group)
        path.chmod(0o2770 if path.is_dir() else 0o660)


def _folder(path: Path, mode: int, *, owner: int | None = None, group: int | None = None) -> None:
    path.mkdir(exist_ok=True)
    if owner is not None or group is not None:
        os.chown(path, -1 if owner is None else owner, -1 if group is None else group)
    path.chmod(mode)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
