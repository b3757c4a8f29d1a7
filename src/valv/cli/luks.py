"""`valv luks`: encrypted disks of the node, and scratch under a key that nobody keeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from valv.cli.command import HERE, Local, command, group
from valv.cli.custody import Directory
from valv.errors import InputFault

if TYPE_CHECKING:
    from valv.cli.operator import Disk

luks = group("Encrypted disks of a node, under its keys.")
Device = Annotated[Path, typer.Argument(metavar="DEVICE", help="A disk, or a file that is one.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="It appears as /dev/mapper/NAME.", show_default=False)]
Erase = Annotated[bool, typer.Option("--erase", help="Lose what is on it.")]
OfficerKeys = Annotated[
    list[Path] | None,
    typer.Option("--officer-key", metavar="NAME.officer", help="An officer's key. Again for the next."),
]
PassphraseFiles = Annotated[
    list[Path] | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Read that key's passphrase from a file.", hidden=True),
]
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"


@command(
    luks,
    "create",
    action="node.operate",
    example="valv luks create /srv/valv /dev/sdb\nvalv luks create /srv/valv disk.img --size 500G",
)
def create(
    screen: Local,
    directory: Directory,
    device: Device,
    size: Annotated[str, typer.Option(help="Make DEVICE as a file of this size: 500G.", show_default=False)] = "",
    erase: Erase = False,
) -> None:
    """Encrypt a disk. Its passphrase is random; the node's key holder seals it into the disk's own header."""
    if size:
        _make_file(device, _bytes(size))
    _show(screen, screen.operator.disks(directory).create(device, erase=erase))


@command(luks, "open", action="node.operate", example="valv luks open /srv/valv /dev/sdb vault")
def open_disk(
    screen: Local,
    directory: Directory,
    device: Device,
    name: Name,
    officer_key: OfficerKeys = None,
    passphrase_file: PassphraseFiles = None,
) -> None:
    """Open a disk, with the node's running key holder or, where that is gone, with the keys of its officers."""
    _check_name(name)
    if officer_key:
        path = screen.operator.disks(None).open_with(device, name, _keys(screen, officer_key, passphrase_file))
    else:
        path = screen.operator.disks(directory).open(device, name)
    if not screen.answer({"path": str(path)}):
        screen.note(f"Open: mount {path}")


@command(luks, "close", action="node.operate", example="valv luks close vault")
def close(screen: Local, name: Name) -> None:
    """Close an open disk. Closing it again is no error."""
    _check_name(name)
    screen.operator.disks(None).close(name)
    if not screen.answer({"open": False}):
        screen.note(f"{name} is closed.")


@command(luks, "rotate", action="node.operate", example="valv luks rotate /srv/valv /dev/sdb")
def rotate(
    screen: Local,
    directory: Directory,
    device: Device,
    drop_others: Annotated[
        bool, typer.Option("--drop-others", help="Also drop key slots that nobody can account for.")
    ] = False,
) -> None:
    """Give a disk a new passphrase; the old one does not open it any more. The disk may be in use."""
    _show(screen, screen.operator.disks(directory).rotate(device, drop_others=drop_others))


@command(
    luks,
    "escrow",
    action="node.operate",
    example="valv luks escrow /srv/valv /dev/sdb --officer anna.officer.pub --officer bo.officer.pub --threshold 2",
)
def escrow(
    screen: Local,
    directory: Directory,
    device: Device,
    officer: Annotated[
        list[Path], typer.Option(metavar="NAME.officer.pub", help="Who gets a share. Again for the next.")
    ],
    threshold: Annotated[int, typer.Option(help="How many of them open the disk together.")] = 2,
) -> None:
    """Let officers together open a disk whose node is lost. Those of an earlier escrow cannot any more."""
    from valv.cli import officer as officers

    named = [officers.read_public(path) for path in officer]
    _show(screen, screen.operator.disks(directory).escrow(device, named, threshold))


@command(
    luks,
    "recover",
    action="node.operate",
    example="valv luks recover /srv/valv /dev/sdb --officer-key anna.officer --officer-key bo.officer",
)
def recover(
    screen: Local,
    directory: Directory,
    device: Device,
    officer_key: OfficerKeys = None,
    passphrase_file: PassphraseFiles = None,
) -> None:
    """Make a disk this node's, with the keys of officers who hold shares of it. The lost node opens it no more."""
    if not officer_key:
        raise InputFault("no officer's key is named", "give --officer-key once for each officer")
    private = _keys(screen, officer_key, passphrase_file)
    _show(screen, screen.operator.disks(directory).recover(device, private))


@command(luks, "status", action=HERE, example="valv luks status /dev/sdb")
def status(screen: Local, device: Device) -> None:
    """Whose keys open a disk. Needs no key."""
    _show(screen, screen.operator.disks(None).status(device))


@command(luks, "erase", action="node.operate", example="valv luks erase /dev/sdb")
def erase(
    screen: Local, device: Device, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """Destroy a disk's keys, all of them: what is on it is gone for ever."""
    disk = screen.operator.disks(None).status(device)
    if not yes and not typer.confirm(f"Lose everything on {device} ({disk.uuid})?"):
        raise InputFault("nothing was done", "")
    screen.operator.disks(None).erase(device)
    if not screen.answer({"erased": disk.uuid}):
        screen.note(f"{device} opens with no key any more.")


@command(luks, "scratch", action="node.operate", example="valv luks scratch /dev/nvme1n1 scratch")
def scratch(screen: Local, device: Device, name: Name, erase: Erase = False) -> None:
    """Open a disk under a new key that is kept nowhere: when it is closed, what was on it is gone."""
    _check_name(name)
    path = screen.operator.disks(None).scratch(device, name, erase=erase)
    if not screen.answer({"path": str(path)}):
        screen.note(f"Open: make a file system on {path}")


def _keys(screen: Local, files: list[Path], passphrase_files: list[Path] | None) -> dict[str, bytes]:
    from valv.cli import officer

    return {one.name: one.private for one in officer.read_all(screen, files, passphrase_files or [])}


def _show(screen: Local, disk: Disk) -> None:
    held = [{"threshold": threshold, "officers": list(names)} for threshold, names in disk.officers]
    answer = {
        "device": str(disk.device),
        "uuid": disk.uuid,
        "cipher": disk.cipher,
        "nodes": list(disk.nodes),
        "escrow": held,
        "others": list(disk.others),
    }
    if screen.answer(answer):
        return
    officers = "; ".join(f"{threshold} of {', '.join(names)}" for threshold, names in disk.officers)
    screen.facts(
        [
            ("device", disk.device),
            ("uuid", disk.uuid),
            ("cipher", disk.cipher),
            ("opened by", ", ".join(disk.nodes) or "no node"),
            ("or by officers", officers or "nobody: see 'valv luks escrow --help'"),
        ]
    )
    if disk.others:
        slots = ", ".join(map(str, disk.others))
        screen.warn(f"Key slots {slots}: who opens them is not known. 'valv luks rotate --drop-others' drops them.")


def _check_name(name: str) -> None:
    import re

    if not re.fullmatch(NAME, name):
        raise InputFault(f"{name!r} cannot name a disk", "use up to 64 letters, digits, '_', '.' and '-'")


def _bytes(text: str) -> int:
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, unit = text[:-1], text[-1:].upper()
    if unit.isdigit():
        number, unit = text, ""
    if not number.isdigit() or unit not in units:
        raise InputFault(f"{text!r} is no size", "write it like 500G")
    return int(number) * units[unit]


def _make_file(path: Path, size: int) -> None:
    try:
        with path.open("xb") as file:
            path.chmod(0o600)
            file.truncate(size)
    except FileExistsError:
        raise InputFault(f"{path} is there already", "leave out --size") from None
    except OSError as error:
        raise InputFault(f"{path}: {error.strerror}", "") from None
