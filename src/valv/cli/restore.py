"""`valv restore` and `valv drill`: a node from its backup, opening it again, and trying a backup out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from valv.cli.backup import (
    Directory,
    Generation,
    LogKey,
    PassphraseFile,
    Place,
    RecipientKey,
    read_key,
    read_log_key,
    show_verified,
)
from valv.cli.command import Local, command, group
from valv.cli.text import moment


class Restoring(TyperGroup):
    """`valv restore PLACE DIR` is `valv restore node PLACE DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["node", *args]
        return super().parse_args(ctx, args)


restore = group("Restore a node, and open it again.", cls=Restoring)
drill = group("Restore a backup for trial.")
MoreKey = Annotated[
    Path | None,
    typer.Option("--recipient-key", metavar="FILE", help="The key that opens backups.", show_default=False),
]


@command(
    restore,
    "node",
    action="node.operate",
    example="valv restore /mnt/vault /srv/valv --recipient-key valv.backup",
)
def node(
    screen: Local,
    place: Place,
    directory: Directory,
    recipient_key: RecipientKey,
    passphrase_file: PassphraseFile = None,
    database: Annotated[
        str, typer.Option(metavar="URL", help="Into this database; 'sqlite' for the embedded one.", show_default=False)
    ] = "",
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With that database's password.", show_default=False)
    ] = None,
    generation: Generation = 0,
    log_key: LogKey = None,
) -> None:
    """Make a node's folder anew from its newest backup: configuration, records, files, and what came after.

    The node stays closed: its keys come by 'valv keys recover', and 'valv restore open' opens it. An interrupted
    restore goes on when the same command is given again.
    """
    from dataclasses import asdict

    private = read_key(screen, recipient_key, passphrase_file)
    with screen.progress("restoring", None) as advance:
        done = screen.operator.restore(
            place,
            directory,
            private,
            database=database,
            password_file=str(password_file.resolve()) if password_file else "",
            generation=generation,
            log_key=read_log_key(log_key),
            progress=advance,
        )
    if screen.answer(asdict(done)):
        return
    screen.facts(
        [
            ("node", done.node),
            ("backup", f"{done.generation} of {moment(done.at)}"),
            ("its ledger", f"{done.backup_size} events, root {done.backup_root}"),
            ("ledger now", f"{done.size} events, root {done.root}"),
            ("signed by", done.log_key),
            ("files", done.bodies),
            ("seconds", done.seconds),
        ]
    )
    if done.gap:
        screen.warn(f"The outside record here has a gap: {done.gap}.")
    if done.missing:
        screen.warn(f"{len(done.missing)} files are not there: bring their store back, or see 'valv doctor'.")
    screen.note(f"The node is closed. Next: valv keys recover {directory} …, then valv up, then valv restore open.")


@command(restore, "open", action="node.operate", example="valv restore open /srv/valv --recipient-key valv.backup")
def open_restored(
    screen: Local,
    directory: Directory,
    place: Annotated[
        list[Path] | None,
        typer.Option("--place", metavar="PLACE", help="A place besides those configured.", show_default=False),
    ] = None,
    recipient_key: MoreKey = None,
    passphrase_file: PassphraseFile = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Go on without the end of the ledger; the ledger says so for ever.")
    ] = False,
) -> None:
    """Hold a restored node against everything that is known of its ledger, and open it.

    With the recipient key it first takes over what places have come to know since. The node stays closed while anybody
    knows a checkpoint that its ledger does not reach.
    """
    from dataclasses import asdict

    private = read_key(screen, recipient_key, passphrase_file) if recipient_key else None
    done = screen.operator.open_restored(directory, places=list(place or ()), private=private, accept_loss=accept_loss)
    if screen.answer(asdict(done)):
        return
    screen.note(f"The node is open. Its ledger has {done.size} events, {done.taken} of them taken over now.")
    if done.lost_events:
        screen.warn(f"{done.lost_events} events that were signed once are lost, and the ledger says so.")
    for one in done.lost:
        screen.warn(f"Files that no backup has: {one}.")


@command(
    drill, "restore", action="node.operate", example="valv drill restore /srv/valv vault --recipient-key valv.backup"
)
def drill_restore(
    screen: Local,
    directory: Directory,
    place: Annotated[str, typer.Argument(metavar="NAME", help="The place, as configured.", show_default=False)],
    recipient_key: RecipientKey,
    passphrase_file: PassphraseFile = None,
    within: Annotated[
        Path | None,
        typer.Option("--in", metavar="FOLDER", help="Where records lie meanwhile; else memory.", show_default=False),
    ] = None,
) -> None:
    """Restore the newest backup into a folder that goes away again, once a year. The ledger keeps the evidence."""
    private = read_key(screen, recipient_key, passphrase_file)
    with screen.progress("reading", None) as advance:
        done = screen.operator.backups(directory).drill(place, private, within, advance)
    show_verified(screen, done)
