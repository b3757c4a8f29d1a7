"""`valv backup`: the key that opens backups, making them, looking at them and holding them against their digests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from valv.cli.command import HERE, Local, command, group
from valv.cli.text import moment, size
from valv.errors import InputFault

if TYPE_CHECKING:
    from valv.cli.operator import SavedState, Verified

backup = group("Backups of the node, and the key that opens them.")
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.", show_default=False)]
Place = Annotated[
    Path, typer.Argument(metavar="PLACE", help="The folder of the backups, or its settings (TOML).", show_default=False)
]
RecipientKey = Annotated[
    Path, typer.Option("--recipient-key", metavar="FILE", help="The key that opens backups.", show_default=False)
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Read its passphrase from a file.", show_default=False),
]
Generation = Annotated[int, typer.Option(help="The number of the backup; 0 for the newest.")]
LogKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The ledger's key, got from elsewhere.", show_default=False),
]
SHORTEST = 12
"""Letters of the passphrase of a recipient key."""


@command(backup, "key", action=HERE, example="valv backup key /media/stick/valv")
def make_key(
    screen: Local,
    name: Annotated[Path, typer.Argument(metavar="NAME", help="NAME.backup is written.", show_default=False)],
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make the key that backups are encrypted for. Keep it away from the node: who has it and a backup reads all
    records, though no file of a dataset. Without it no backup is of any use.
    """
    from base64 import b64encode

    from valv.cli import arriving
    from valv.formats import crypt4gh, keyfile

    file = name.with_name(f"{name.name}.backup")
    if file.exists():
        raise InputFault(f"{file} is there already", "keys are never overwritten; choose another name")
    pair = crypt4gh.generate_keypair()
    passphrase = screen.hidden("Passphrase", passphrase_file, "--passphrase-file", twice=True)
    if len(passphrase) < SHORTEST:
        raise InputFault("the passphrase is too short", f"use at least {SHORTEST} letters, for example five words")
    with arriving.fresh(file) as kept:
        kept.write(keyfile.write_private(pair.private, passphrase).encode())
    recipient = b64encode(pair.public).decode()
    if not screen.answer({"private": str(file), "recipient": recipient}):
        screen.say(f'[backup]\nrecipient = "{recipient}"')
        screen.note(f"Keep {file} in two places away from the node, and put these lines into its valv.toml.")


@command(backup, "make", action="node.operate", example="valv backup make /srv/valv --to vault")
def make(
    screen: Local,
    directory: Directory,
    to: Annotated[
        list[str] | None, typer.Option("--to", metavar="PLACE", help="Only there. Again for more.", show_default=False)
    ] = None,
) -> None:
    """Have the running node make a backup now, in all its places, and wait for it."""
    desk = screen.operator.backups(directory)
    with screen.progress("saving", None) as advance:
        done = 0

        def told(now: int, _all: int) -> None:
            nonlocal done
            advance(max(0, now - done))
            done = max(done, now)

        found = desk.make(list(to or ()), told)
    _show(screen, found)


@command(backup, "list", action="node.operate", example="valv backup list /srv/valv")
def list_places(screen: Local, directory: Directory) -> None:
    """The places and their newest backups; what is wrong with them."""
    _show(screen, screen.operator.backups(directory).status())


def _show(screen: Local, found: SavedState) -> None:
    from dataclasses import asdict

    if screen.answer(asdict(found)):
        return
    rows = []
    for one in found.places:
        state = (
            "away"
            if one.away
            else "going on"
            if one.busy
            else "failed"
            if one.fault
            else "late"
            if one.late
            else "good"
        )
        behind = max(0, found.size - one.outside)
        rows.append(
            (
                one.name,
                state,
                one.generation or "",
                moment(one.at) if one.at else "never",
                one.files,
                one.held_back,
                size(one.stored),
                behind,
            )
        )
    screen.table(
        ("place", "state", "number", "newest", "files", "not there", "came", "events behind"), rows, "no place"
    )
    for one in found.places:
        if one.fault:
            screen.warn(f"{one.name}: {one.fault}")
    screen.note(f"Restored for trial: {moment(found.drilled) if found.drilled else 'never'}.")


@command(backup, "verify", action="node.operate", example="valv backup verify /mnt/vault --recipient-key valv.backup")
def verify(
    screen: Local,
    place: Place,
    recipient_key: RecipientKey,
    passphrase_file: PassphraseFile = None,
    generation: Generation = 0,
    log_key: LogKey = None,
) -> None:
    """Read a backup from end to end: its digests, the signature, the ledger's tree, every file that lies there."""
    private = read_key(screen, recipient_key, passphrase_file)
    with screen.progress("reading", None) as advance:
        done = screen.operator.verify_backup(
            place, private, generation=generation, log_key=read_log_key(log_key), progress=advance
        )
    show_verified(screen, done)


def show_verified(screen: Local, done: Verified) -> None:
    """The answer to a drill or a check; ends the command with 65 where something was wrong."""
    from dataclasses import asdict

    if not screen.answer(asdict(done)):
        screen.facts(
            [
                ("node", done.node),
                ("backup", f"{done.generation} of {moment(done.at)}"),
                ("ledger", f"{done.size} events, root {done.root}"),
                ("signed by", done.log_key),
                ("files", done.bodies),
                ("missing", done.missing),
                ("seconds", done.seconds),
            ]
        )
    for line in done.wrong[:100]:
        screen.warn(f"Wrong: {line}")
    if done.wrong:
        raise typer.Exit(65)


def read_key(screen: Local, file: Path, passphrase_file: Path | None) -> bytes:
    """The raw private key of a recipient. Faults name the file."""
    from valv.cli import officer
    from valv.errors import Fault
    from valv.formats import keyfile

    text = officer.text_of(file, "it is made with 'valv backup key'")
    try:
        return keyfile.read_private(
            text, lambda: screen.hidden(f"Passphrase of {file.name}", passphrase_file, "--passphrase-file")
        )
    except Fault as fault:
        fault.detail = f"{file}: {fault.detail}"
        raise


def read_log_key(file: Path | None) -> str:
    from valv.cli import profile

    return profile.first_line(file, "the ledger's key") if file else ""
