"""`valv permits` and `valv permit`: what may be used until when, and the early end of it."""

from __future__ import annotations

from typing import Annotated

import typer

from valv.cli.command import Door, command, group
from valv.cli.text import moment, plain

app = group("Permits.")
permit = group("Revoke a permit, resume it or give it back.")
Ident = Annotated[str, typer.Argument(metavar="ID", help="The permit.", show_default=False)]


@command(app, "permits", action="permit.see", example="valv permits\nvalv permits ID")
def permits(
    door: Door, ident: Annotated[str, typer.Argument(metavar="[ID]", help="The permit.", show_default=False)] = ""
) -> None:
    """List your permits and those of datasets that you answer for, or show one."""
    if not ident:
        views = door.get("permits")
        if not door.answer(views):
            rows = [
                (
                    view["state"]["permit_id"],
                    ", ".join(f"{d['name']}@{d['version']}" for d in view["datasets"]),
                    view["state"]["mode"],
                    moment(view["state"]["ends"]),
                    "stands" if view["standing"] is None else view["state"]["phase"],
                )
                for view in views
            ]
            door.table(("permit", "datasets", "mode", "ends", "state"), rows, "no permit")
        return
    view = door.get("permits", ident)
    if door.answer(view):
        return
    state, standing = view["state"], view["standing"]
    door.facts(
        [
            ("permit", state["permit_id"]),
            ("application", state["access_id"]),
            ("people", ", ".join(view["people"].values())),
            ("mode", state["mode"]),
            ("class", view["data_class"]),
            ("starts", moment(state["starts"])),
            ("ends", moment(state["ends"])),
            ("state", state["phase"]),
            ("now", "it stands" if standing is None else f"it does not allow use: {standing['code']}"),
        ]
    )
    if view["reason"]:
        door.facts([("reason", view["reason"])])
    for move in view["moves"]:
        what = f"{move['dataset']}: version {move['after']} in place of {move['before']}, since {moment(move['at'])}"
        door.facts([("moved", f"{what}: participants withdrew")])
    files = [(f"{d['name']}@{d['version']}", d["class"], d["files"]) for d in view["datasets"]]
    door.table(("dataset", "class", "files"), files)


@command(permit, "revoke", action="permit.revoke", example="valv permit revoke ID --reason 'A donor withdrew.'")
def revoke(
    door: Door,
    ident: Ident,
    reason: Annotated[str, typer.Option(help="Why, in one sentence.", show_default=False)] = "",
) -> None:
    """End a permit now: reads, runs and downloads under it end within a second."""
    if not door.answer(door.post("permits", ident, "revocation", body={"reason": reason})):
        door.note(f"The permit {plain(ident)} is revoked.")


@command(permit, "resume", action="permit.resume", example="valv permit resume ID --reason 'It still fits.'")
def resume(
    door: Door,
    ident: Ident,
    reason: Annotated[str, typer.Option(help="Why, in one sentence.", show_default=False)] = "",
) -> None:
    """Let a permit be used again that was suspended because participants narrowed their consent (the committee)."""
    if not door.answer(door.post("permits", ident, "resumption", body={"reason": reason})):
        door.note(f"The permit {plain(ident)} may be used again.")


@command(permit, "surrender", action="permit.give_back", example="valv permit surrender ID")
def surrender(door: Door, ident: Ident) -> None:
    """Give back a permit that you need no longer."""
    if not door.answer(door.post("permits", ident, "surrender")):
        door.note(f"The permit {plain(ident)} is given back.")
