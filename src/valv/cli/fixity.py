"""`valv fixity`: how the copies of all files are, and scrubs that read them again."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from valv.cli.command import Door, command, group
from valv.cli.text import moment, size
from valv.errors import Fault, UnreachableFault

fixity = group("Have copies read again, and damaged ones made anew.")
PAUSE = 0.5
PATIENCE = 60.0
"""Seconds between two looks at a scrub, and how long `--wait` bears a node that does not answer."""
LEFT = 1
"""Exit code of `--wait` where copies are damaged, or could not be reached."""


@command(fixity, "status", action="fixity.see", example="valv fixity status")
def status(door: Door) -> None:
    """Show the copies in each store: when they were last read from end to end, what is damaged, and the last scrubs."""
    view = door.get("fixity")
    if door.answer(view):
        return
    rows = [
        (
            one["name"],
            one["copies"],
            size(one["size"]),
            one["states"]["bad"],
            one["states"]["suspect"],
            one["recent"] + one["timely"],
            one["late"],
            one["never"],
            moment(one["oldest"]) or "–",
        )
        for one in view["stores"]
    ]
    columns = ("store", "copies", "size", "damaged", "suspect", "in time", "overdue", "never read", "longest ago")
    door.table(columns, rows, "no store")
    damaged = [(one["body"], one["store"], one["dataset"], one["whole"], one["fault"]) for one in view["damaged"]]
    if damaged:
        door.table(("damaged", "store", "dataset", "whole copies", "what is wrong"), damaged)
    scrubs = [
        (
            one["state"]["scrub_id"],
            moment(one["state"]["begun"]),
            one["state"]["phase"],
            one["dataset"] or "everything",
            f"{one['copies']}/{one['state']['expected']}",
            one["state"]["damaged"],
            one["state"]["repaired"],
            one["state"]["left"],
        )
        for one in view["scrubs"]
    ]
    door.table(("scrub", "begun", "state", "of", "read", "damaged", "repaired", "left"), scrubs, "no scrub yet")


@command(
    fixity,
    "run",
    action="fixity.run",
    example="valv fixity run --wait\nvalv fixity run heart-cohort --all --wait\nvalv fixity run --store archive --all",
)
def run(
    door: Door,
    dataset: Annotated[str, typer.Argument(metavar="[DATASET]", help="Of this one only.", show_default=False)] = "",
    store: Annotated[str, typer.Option(metavar="NAME", help="In this store only.", show_default=False)] = "",
    every: Annotated[bool, typer.Option("--all", help="Also copies that were read a short while ago.")] = False,
    tape: Annotated[bool, typer.Option("--tape", help="Fetch copies from tape and read them too.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end; exit code 1 where copies stay bad.")] = False,
) -> None:
    """Read copies again, hold them against their seals, and make damaged ones anew from whole ones.

    The node does so by itself; this is for once more, and sooner. It goes on in the node at a bounded rate.
    """
    body = {"dataset": dataset, "store": store, "every": every, "tape": tape}
    ident = door.post("fixity", body=body)["scrub_id"]
    if not wait:
        if not door.answer({"scrub_id": ident}):
            door.say(ident)
            door.note("It goes on in the node. Look at it: valv fixity status")
        return
    view = _wait(door, ident)
    state = view["state"]
    if not door.answer(view):
        pairs: list[tuple[str, object]] = [
            ("read", f"{view['copies']} copies, {size(view['size'])}"),
            ("damaged", state["damaged"]),
            ("repaired", state["repaired"]),
            ("not reached", state["unreached"]),
            ("left damaged", state["left"]),
        ]
        door.facts(pairs)
    if state["left"] or state["unreached"]:
        raise typer.Exit(LEFT)


def _wait(door: Door, ident: str) -> Any:
    """Follow a scrub to its end, with a bar over its copies. A node that is started again meanwhile is waited for."""
    view, shown = _look(door, ident), 0
    with door.progress("scrub", view["state"]["expected"], counted=True) as advance:
        while view["state"]["phase"] == "going":
            advance(view["copies"] - shown)
            shown = view["copies"]
            time.sleep(PAUSE)
            view = _look(door, ident)
        advance(view["copies"] - shown)
    return view


def _look(door: Door, ident: str) -> Any:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return door.get("fixity", ident)
        except Fault as fault:
            passing = isinstance(fault, UnreachableFault) or fault.row.exit in (69, 75)
            if not passing or time.monotonic() > end:
                raise
        time.sleep(PAUSE)
