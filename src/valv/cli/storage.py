"""`valv storage`: the stores, the rule by which a dataset is placed in them, and moves while it is used."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from valv.cli.command import Door, command, group
from valv.cli.text import moment, plain, size
from valv.errors import Fault, InputFault, UnreachableFault

storage = group("The stores, and where datasets lie in them.")
PAUSE = 0.5
PATIENCE = 60.0
"""Seconds between two looks at a move, and how long `--wait` bears a node that does not answer."""
GIVEN_UP = 1
"""Exit code of `--wait` where another rule was set before the move came to its end."""

Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.", show_default=False)]
Shown = Annotated[str, typer.Argument(metavar="[DATASET]", help="One dataset; the stores without.", show_default=False)]
Rule = Annotated[
    str | None,
    typer.Argument(metavar="[RULE]", help="The new rule, in quotes; without, the present one.", show_default=False),
]
Source = Annotated[str, typer.Option("--from", metavar="STORE", help="Where it is now.", show_default=False)]
Target = Annotated[str, typer.Option("--to", metavar="STORE", help="Where it is to be.", show_default=False)]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end; exit code 1 where the move was given up.")]


@command(
    storage,
    "status",
    action="storage.see",
    example="valv storage status\nvalv storage status heart-cohort",
)
def status(door: Door, dataset: Shown = "") -> None:
    """Show usage, quota, copies and health of the stores, and the moves that go on; or where one dataset lies."""
    if dataset:
        _dataset(door, door.get("storage", "datasets", dataset))
        return
    found = door.get("storage")
    if door.answer(found):
        return
    rows = [
        (
            store["name"],
            f"{store['country']} {store['unit']}",
            "tape" if store["tape"] else "disk",
            size(store["used"]),
            size(store["quota"]) if store["quota"] else "-",
            size(store["free"]) if store["free"] is not None else "-",
            ", ".join(f"{count} {state}" for state, count in sorted(store["copies"].items())) or "-",
            _health(store),
        )
        for store in found["stores"]
    ]
    door.table(("store", "place", "kind", "used", "quota", "free", "copies", "health"), rows)
    for move in found["moves"]:
        door.say(
            f"moving {move['dataset']} from {move['source']} to {move['target']}: {move['done']} of {move['files']}"
            f" files, since {moment(move['since'])}, by {move['by']}"
        )
    _waiting(door, found["waiting"], found["reasons"])


def _health(store: dict[str, Any]) -> str:
    if not store["seen"]:
        return "not looked at yet"
    return f"away: {store['fault']}" if store["fault"] else "answers"


def _waiting(door: Door, waiting: int, reasons: list[dict[str, Any]]) -> None:
    if waiting:
        door.say(f"{waiting} files wait for the node to look after their copies")
    for reason in reasons:
        door.say(f"  {reason['files']}: {reason['text']}")


def _dataset(door: Door, view: dict[str, Any]) -> None:
    if door.answer(view):
        return
    moving = view["moving"]
    pairs: list[tuple[str, object]] = [
        ("dataset", view["dataset"]),
        ("rule", view["rule"] + ("" if view["given"] else " (the default)")),
        ("copies", f"{view['copies']} whole of {view['wanted']} wanted, {view['files']} files"),
    ]
    if moving:
        done = f"{moving['done']} of {moving['files']} files, since {moment(moving['since'])}, by {moving['by']}"
        pairs.append(("moving", f"from {moving['source']} to {moving['target']}: {done}"))
    door.facts(pairs)
    rows = [
        (
            held["store"],
            f"{held['country']} {held['unit']}",
            "tape" if held["tape"] else "disk",
            held["whole"],
            held["others"],
            size(held["size"]),
        )
        for held in view["stores"]
    ]
    door.table(("store", "place", "kind", "whole", "others", "size"), rows, "no copy is known yet")
    _waiting(door, view["waiting"], view["reasons"])


@command(
    storage,
    "rule",
    action="storage.rule",
    example="valv storage rule heart-cohort\nvalv storage rule heart-cohort 'copies = 2, tape after 90 d, only in NO'",
)
def rule(door: Door, dataset: Dataset, text: Rule = None) -> None:
    """Show or set the rule of a dataset: how many copies there are, and in which stores.

    Clauses, with commas between them: 'copies = N', 'tape after N d' (without use), 'only in COUNTRY', 'in STORE',
    'not in STORE'. An empty rule is one copy. The node goes on by itself; nobody who reads notices.
    """
    if text is None:
        view = door.get("storage", "datasets", dataset)
    else:
        view = door.post("storage", "datasets", dataset, "rule", body={"rule": text})
    if door.answer(view):
        return
    door.say(view["rule"])
    if text is not None:
        door.note(f"{view['waiting']} files are looked at. See how it goes on: valv storage status {plain(dataset)}")


@command(
    storage,
    "move",
    action="storage.move",
    example="valv storage move heart-cohort --from main --to archive --wait",
)
def move(door: Door, dataset: Dataset, source: Source = "", target: Target = "", wait: Wait = False) -> None:
    """Move a dataset from one store to another, while it is used (an operator).

    Every byte is checked on the way. A file leaves the old store only when it is whole in the new one.
    """
    if not source or not target:
        raise InputFault("name both stores: --from STORE --to STORE", "see 'valv storage status'")
    view = door.post("storage", "datasets", dataset, "move", body={"source": source, "target": target})
    ordered = view["rule"]
    if not wait:
        if not door.answer(view):
            door.note(f"It goes on in the node. Look at it: valv storage status {plain(dataset)}")
        return
    view = _wait(door, dataset, source, target, view)
    door.answer(view)
    if view["rule"] != ordered:
        door.note(f"  {plain(dataset)}: another rule was set meanwhile: {view['rule']}")
        raise typer.Exit(GIVEN_UP)
    door.note(f"  {plain(dataset)}: all {view['files']} files are in {plain(target)}")


def _wait(door: Door, dataset: str, source: str, target: str, view: dict[str, Any]) -> dict[str, Any]:
    """Follow a move to its end, with a bar over its files. A node that is started again meanwhile is waited for."""
    shown, said = 0, ""
    with door.progress(f"{plain(dataset)}: {plain(source)} to {plain(target)}", view["files"], counted=True) as advance:
        while view["moving"]:
            advance(view["moving"]["done"] - shown)
            shown = view["moving"]["done"]
            reason = view["reasons"][0]["text"] if view["reasons"] else ""
            if reason and reason != said:
                said = reason
                door.note(f"  {plain(dataset)}: {reason}")
            time.sleep(PAUSE)
            view = _look(door, dataset)
        advance(view["files"] - shown)
    return view


def _look(door: Door, dataset: str) -> dict[str, Any]:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            found: dict[str, Any] = door.get("storage", "datasets", dataset)
            return found
        except Fault as fault:
            passing = isinstance(fault, UnreachableFault) or fault.row.exit in (69, 75)
            if not passing or time.monotonic() > end:
                raise
        time.sleep(PAUSE)
