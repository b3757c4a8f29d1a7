"""`valv keys rotate`, `rekey`, `rotations` and `rotation`: new key pairs for dataset versions, while they are used."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from valv.cli.command import Door, command, group
from valv.cli.text import moment, plain
from valv.errors import Fault, InputFault, UnreachableFault

app = group("Rotate the keys of datasets.")
one = group("One rotation of a dataset's keys.")
app.add_typer(one, name="rotation")
PAUSE = 0.5
PATIENCE = 60.0
"""Seconds between two looks at a rotation, and how long `--wait` bears a node that does not answer."""
FAILED = 1
"""Exit code of `--wait` where a rotation did not come to its end."""
WHAT = {"rotate": "headers", "rekey": "bodies"}

Name = Annotated[str, typer.Argument(metavar="[DATASET]", help="The dataset; none with --all.", show_default=False)]
Version = Annotated[int | None, typer.Option(min=1, help="Its version; the newest unless named.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="Every live version in the node that you may rotate.")]
Reason = Annotated[str, typer.Option(help="Why, in one sentence.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end; exit code 1 where it failed or was stopped.")]
Ident = Annotated[str, typer.Argument(metavar="ID", help="The rotation.", show_default=False)]


@command(
    app,
    "rotate",
    action="key.rotate",
    example="valv keys rotate heart-cohort --reason 'The year is over.' --wait\nvalv keys rotate --all --reason Yearly",
)
def rotate(
    door: Door,
    dataset: Name = "",
    version: Version = None,
    every: All = False,
    reason: Reason = "",
    wait: Wait = False,
) -> None:
    """Give a dataset version a new key pair and seal its files' headers to it. The bodies stay as they are.

    It goes on in the node by itself, while the dataset is used. The pair before is forgotten once nobody reads by it.
    """
    _start(door, "rotate", dataset, version, every, reason, wait)


@command(
    app,
    "rekey",
    action="key.rotate",
    example="valv keys rekey heart-cohort --reason 'A data key became known.' --wait",
)
def rekey(
    door: Door,
    dataset: Name = "",
    version: Version = None,
    every: All = False,
    reason: Reason = "",
    wait: Wait = False,
) -> None:
    """Encrypt a dataset version anew, under data keys that nobody knew, and give it a new key pair.

    For use after a compromise, and for files that were encrypted elsewhere. Until their last reader has ended the old
    bodies stay, so that the store needs room for both.
    """
    _start(door, "rekey", dataset, version, every, reason, wait)


def _start(door: Door, aim: str, dataset: str, version: int | None, every: bool, reason: str, wait: bool) -> None:
    if every == bool(dataset) or (every and version):
        raise InputFault("name one dataset, or give --all")
    body: dict[str, Any] = {"aim": aim, "reason": reason}
    body |= {"every": True} if every else {"dataset": dataset, "version": version or 0}
    idents: list[str] = door.post("rotations", body=body)["rotation_ids"]
    if not idents:
        door.note("Every version is being rotated already.")
    views = [_wait(door, ident) for ident in idents] if wait else []
    if not door.answer(views if wait else {"rotation_ids": idents}):
        for ident in idents:
            door.say(ident)
        if idents and not wait:
            door.note("It goes on in the node. Look at it: valv keys rotations")
    if any(view["state"]["phase"] != "done" for view in views):
        raise typer.Exit(FAILED)


def _wait(door: Door, ident: str) -> Any:
    """Follow a rotation to its end, with a bar over its files. A node that is started again meanwhile is waited for."""
    view = _look(door, ident)
    title = f"{view['dataset']}@{view['state']['version']} {WHAT[view['state']['aim']]}"
    shown, waiting = 0, False
    with door.progress(title, view["files"], counted=True) as advance:
        while True:
            advance(view["done"] - shown)
            shown = view["done"]
            phase = view["state"]["phase"]
            if phase not in ("going", "retiring"):
                break
            if phase == "retiring" and not waiting:
                waiting = True
                door.note(f"  {title}: all files are of the new pair; the one before goes when its last reader ends")
            time.sleep(PAUSE)
            view = _look(door, ident)
    door.note(f"  {title}: {phase}" + (f": {view['why']}" if view["why"] else ""))
    return view


def _look(door: Door, ident: str) -> Any:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return door.get("rotations", ident)
        except Fault as fault:
            passing = isinstance(fault, UnreachableFault) or fault.row.exit in (69, 75)
            if not passing or time.monotonic() > end:
                raise
        time.sleep(PAUSE)


@command(app, "rotations", action="key.see", example="valv keys rotations")
def rotations(door: Door) -> None:
    """List the rotations of datasets that you answer for; operators and auditors see all."""
    views = door.get("rotations")
    if not door.answer(views):
        rows = [
            (
                view["state"]["rotation_id"],
                f"{view['dataset']}@{view['state']['version']}",
                view["state"]["aim"],
                moment(view["state"]["started"]),
                view["state"]["phase"],
                f"{view['done']}/{view['files']}",
            )
            for view in views
        ]
        door.table(("rotation", "dataset", "aim", "started", "state", "files"), rows, "no rotation")


@command(one, "show", action="key.see", example="valv keys rotation show ID")
def show(door: Door, ident: Ident) -> None:
    """Show a rotation."""
    view = door.get("rotations", ident)
    if door.answer(view):
        return
    state = view["state"]
    pairs: list[tuple[str, object]] = [
        ("rotation", state["rotation_id"]),
        ("dataset", f"{view['dataset']}@{state['version']}"),
        ("aim", state["aim"]),
        ("by", view["by"]),
        ("reason", view["reason"]),
        ("started", moment(state["started"])),
        ("ended", moment(state["ended"])),
        ("state", state["phase"]),
        ("key pair", state["pair"]),
        ("files", f"{view['done']} of {view['files']} are of it"),
        ("waits for", f"{len(state['readers'])} runs that began before" if state["phase"] == "retiring" else ""),
        ("why", view["why"]),
    ]
    door.facts([pair for pair in pairs if pair[1] != ""])


@command(one, "stop", action="key.rotate", example="valv keys rotation stop ID")
def stop(door: Door, ident: Ident) -> None:
    """Stop a rotation (an operator). All files stay readable; the next rotation takes the rest along."""
    if not door.answer(door.post("rotations", ident, "stop")):
        door.note(f"The rotation {plain(ident)} is stopped.")
