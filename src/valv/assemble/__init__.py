"""The one place that joins configuration, backends and use cases into a node; the `valv` command begins here.

Nothing heavy is imported before a command needs it: `valv --help` starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valv.cli.operator import (
        BackupDesk,
        Disks,
        KeyDesk,
        Opened,
        Operator,
        Recovery,
        Restored,
        Verified,
    )


def main() -> None:
    """The console entry. Ends with the command's exit code."""
    from valv.cli.app import build

    try:
        build(operator())(prog_name="valv")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def operator() -> Operator:
    """What operator commands do, given to the command line, which may not import the assembly."""
    from valv.cli.operator import Operator

    return Operator(
        create_node=_create_node,
        create_account=_create_account,
        up=_up,
        demo=_demo,
        unseal=_unseal,
        doctor=_doctor,
        keys=_keys,
        disks=_disks,
        recovery=_recovery,
        backups=_backups,
        verify_backup=_verify_backup,
        restore=_restore,
        open_restored=_open_restored,
    )


def _create_node(
    directory: Path,
    *,
    name: str,
    country: str,
    unit: str,
    title: str,
    port: int,
    passphrase: bytes,
    keys: Mapping[str, object],
) -> None:
    from valv.assemble import create

    create.create_node(
        directory,
        name=name,
        country=country,
        unit=unit,
        title=title,
        port=port,
        passphrase=passphrase,
        keys=keys,
    )


def _create_account(
    directory: Path,
    *,
    name: str,
    display: str,
    email: str,
    roles: Sequence[str],
    committees: Sequence[str],
    organisation: str,
    country: str,
    password: str,
    totp: bool,
) -> str:
    import msgspec

    from valv.assemble import create

    fields = {
        "name": name,
        "display": display,
        "email": email,
        "roles": tuple(roles),
        "committees": tuple(committees),
        "organisation": organisation,
        "country": country,
        "password": password,
        "totp": totp,
    }
    return create.create_accounts(directory, [msgspec.convert(fields, create.Account)])[name]


def _up(directory: Path) -> int:
    from valv import config
    from valv.assemble import up

    return up.up(config.load(directory))


def _demo(directory: Path, *, once: bool, port: int) -> int:
    from valv.assemble import demo

    return demo.demo(directory, once=once, port=port)


def _unseal(directory: Path, passphrase: bytes) -> None:
    from valv import config
    from valv.assemble import keyd
    from valv.keys.client import KeydClient

    client = KeydClient(config.load(directory).runtime / keyd.SOCKET)
    try:
        client.unseal(passphrase)
    finally:
        client.close()


def _doctor(directory: Path) -> int:
    from valv.assemble import doctor

    return doctor.doctor(directory)


def _keys(directory: Path) -> KeyDesk:
    from valv import config
    from valv.assemble import custody

    return custody.Desk(config.load(directory))


def _disks(directory: Path | None) -> Disks:
    from valv.assemble import disks

    return disks.Disks(directory)


def _recovery(directory: Path, place: Path) -> Recovery:
    from valv import config
    from valv.assemble import custody

    return custody.Recovery(config.load(directory), place)


def _backups(directory: Path) -> BackupDesk:
    from valv import config
    from valv.assemble import backup

    return backup.Desk(config.load(directory))


def _verify_backup(
    place: Path, private: bytes, *, generation: int, log_key: str, progress: Callable[[int], None]
) -> Verified:
    from valv.assemble import restore

    found = restore.open_place(place)
    return restore.verify(found, private, generation=generation, log_key=log_key, progress=progress)[0]


def _restore(
    place: Path,
    directory: Path,
    private: bytes,
    *,
    database: str,
    password_file: str,
    generation: int,
    log_key: str,
    progress: Callable[[int], None],
) -> Restored:
    from valv.assemble import restore

    return restore.restore(
        restore.open_place(place),
        directory,
        private,
        database=database,
        password_file=password_file,
        generation=generation,
        log_key=log_key,
        progress=progress,
    )


def _open_restored(directory: Path, *, places: list[Path], private: bytes | None, accept_loss: bool) -> Opened:
    from valv.assemble import restore

    return restore.open_restored(directory, places=places, private=private, accept_loss=accept_loss)
