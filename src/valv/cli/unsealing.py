"""`valv keys unseal` and `status`: opening a node's keys after a start, and how they are kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valv.cli.command import Local, command
from valv.cli.custody import Directory, PassphraseFile
from valv.cli.custody import keys as keys
from valv.errors import InputFault, SealedFault, UnreachableFault

if TYPE_CHECKING:
    from valv.cli.operator import KeyDesk
    from valv.core.custody import Custody
    from valv.ports.keys import Backup, KeyStatus


@command(
    keys,
    "unseal",
    action="node.unseal",
    example="valv keys unseal /srv/valv\nvalv keys unseal /srv/valv --officer-key anna.officer",
)
def unseal(
    screen: Local,
    directory: Directory,
    officer_key: Annotated[
        Path | None, typer.Option("--officer-key", metavar="NAME.officer", help="Your key.", show_default=False)
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Open the keys of a node that was started locked. The passphrase is asked for without echo.

    Where two persons unseal, each officer does this with their own key, within a quarter of an hour of each other.
    """
    if officer_key is None:
        passphrase = screen.hidden("Passphrase", passphrase_file, "--passphrase-file")
        screen.operator.unseal(directory, passphrase.encode())
        if not screen.answer({"open": True}):
            screen.note("The node's keys are open.")
        return
    from valv.cli import officer
    from valv.formats import shares

    desk = screen.operator.keys(directory)
    signer = officer.read(screen, officer_key, passphrase_file, "--passphrase-file")
    sealed = desk.shares(signer.name).unsealing
    if not sealed:
        raise InputFault("this node is unsealed with its passphrase", f"run 'valv keys unseal {directory}'")
    status = desk.unseal_share(shares.unseal(sealed, signer.private))
    if not screen.answer({"open": status.open, "persons": status.persons, "present": status.present}):
        left = status.persons - status.present
        more = f"{left} more officer{'' if left == 1 else 's'} must give a share"
        screen.note("The node's keys are open." if status.open else f"Taken. {more} within 15 minutes.")


@command(keys, "status", action="key.see", example="valv keys status /srv/valv")
def show_status(screen: Local, directory: Directory) -> None:
    """Whether the keys are open, who their officers are, when the next drill is due, how the key backup stands."""
    desk = screen.operator.keys(directory)
    holder, state, backups, status = _look(desk)
    now = datetime.now(UTC)
    answer = _answer(desk.name, holder, status, state, backups, now)
    if screen.answer(answer):
        return
    screen.facts(
        [(name.replace("_", " "), _said(value)) for name, value in answer.items() if not isinstance(value, list)]
    )
    if state is None:
        screen.warn("No ceremony was held: nobody could recover the keys. See 'valv keys ceremony --help'.")
    else:
        screen.table(["officer", "key of orders"], [(one.name, one.sign_key) for one in state.officers])
    if backups is not None:
        rows = [(one.path, one.generation or "-", one.fault or "whole") for one in backups]
        screen.table(["key backup", "generation", "state"], rows, empty="No place of the key backup is configured.")
    if state is not None and state.drill_due(now):
        screen.warn("A drill is due: 'valv keys drill'.")


def _look(desk: KeyDesk) -> tuple[str, Custody | None, tuple[Backup, ...] | None, KeyStatus | None]:
    """What the key holder says; as far as it says nothing, what the ledger says."""
    try:
        status = desk.status()
        found = desk.custody()
    except UnreachableFault:
        return "not running", desk.recorded(), None, None
    except SealedFault:
        return "locked", desk.recorded(), None, desk.status()
    return "open", found.state, found.backups, status


def _answer(
    name: str,
    holder: str,
    status: KeyStatus | None,
    state: Custody | None,
    backups: tuple[Backup, ...] | None,
    now: datetime,
) -> dict[str, Any]:
    from valv.core.custody import DRILL_AFTER

    found: dict[str, Any] = {"node": name, "keys": holder}
    if status is not None and not status.open and status.persons:
        found["shares_given"] = f"{status.present} of {status.persons}"
    if state is not None:
        latest = max(state.ceremony_at, state.drill_at)
        found |= {
            "generation": status.generation if status and status.open else state.generation,
            "recovered_by": f"{state.threshold} of {len(state.officers)} officers",
            "unsealed_by": f"{state.persons} officers" if state.persons > 1 else "a passphrase",
            "last_ceremony": state.ceremony_at.isoformat(timespec="seconds"),
            "last_drill": latest.isoformat(timespec="seconds") if state.drill_at > state.ceremony_at else None,
            "next_drill_until": (latest + DRILL_AFTER).isoformat(timespec="seconds"),
            "drill_due": state.drill_due(now),
            "destroyed_keys": len(state.destroyed),
            "officers": [{"name": one.name, "sign_key": one.sign_key} for one in state.officers],
        }
    elif status is not None and status.open:
        found["generation"] = status.generation
    if backups is not None:
        found["backups"] = [{"path": b.path, "generation": b.generation, "fault": b.fault} for b in backups]
    return found


def _said(value: object) -> object:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "never" if value is None else value
