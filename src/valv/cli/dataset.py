"""`valv datasets` and `valv dataset`: the catalogue, a dataset's page and history, and what is said about it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from valv.cli import destruction
from valv.cli.command import Door, command, group
from valv.cli.text import moment, plain, size
from valv.errors import InputFault

app = group("Search the catalogue.")
dataset = group("A dataset: its page, its history, its assessment.")
dataset.add_typer(destruction.app)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.", show_default=False)]
Version = Annotated[int, typer.Option(help="The version; the newest where none is named.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why, in one sentence.", show_default=False)]


@command(
    app,
    "datasets",
    action="catalogue.find",
    example="valv datasets diabetes\nvalv datasets --disease MONDO:0005147 --consent HMB",
)
def datasets(
    door: Door,
    query: Annotated[str, typer.Argument(metavar="[QUERY]", help="Words to look for.", show_default=False)] = "",
    disease: Annotated[str, typer.Option(help="A disease, for example MONDO:0005147.", show_default=False)] = "",
    data_type: Annotated[str, typer.Option(help="A kind of data, for example VCF.", show_default=False)] = "",
    consent: Annotated[str, typer.Option(help="A DUO term, for example GRU.", show_default=False)] = "",
    offset: Annotated[int, typer.Option(min=0, help="How many to pass over.")] = 0,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many to show.")] = 50,
) -> None:
    """Search the catalogue. No log-in is needed where the node allows that."""
    query_parts = {"query": query, "disease": disease, "data_type": data_type, "consent": consent}
    found = door.get("datasets", **query_parts, offset=offset, limit=limit)
    if door.answer(found):
        return
    rows = [
        (row["name"], row["title"], row["class"], ", ".join(row["consent"]), row["files"], size(row["bytes"]))
        for row in found["rows"]
    ]
    door.table(("name", "title", "class", "consent", "files", "size"), rows, "nothing fits")
    if offset + len(rows) < found["total"]:
        door.note(f"{len(rows)} of {found['total']}; go on with --offset {offset + len(rows)}.")


@command(dataset, "show", action="dataset.see", example="valv dataset show heart-cohort")
def show(door: Door, name: Name) -> None:
    """Show a dataset's page: what it is, what the donors consented to, its versions."""
    page = door.get("datasets", name)
    if door.answer(page):
        return
    row = page["row"]
    pairs: list[tuple[str, object]] = [(key.replace("_", " "), _shown(key, value)) for key, value in row.items()]
    door.facts([*pairs, ("in words", "\n".join(page["sentences"]))])
    versions = [
        (v["number"], v["claimed"], {None: "–", True: "confirmed", False: "denied"}[v["confirmed"]], size(v["size"]))
        for v in page["state"]["versions"]
    ]
    door.table(("version", "claimed", "assessment", "size"), versions, "no version yet")
    if page["report"]:
        door.facts([("scan", page["report"])])
    if page["may_assess"]:
        door.note(f"You may assess it: valv dataset assess {plain(name)} --confirm --reason '…'")


def _shown(key: str, value: Any) -> object:
    if key == "bytes":
        return size(value)
    if key == "published":
        return moment(value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return "–" if value in (None, "") else value


@command(dataset, "history", action="dataset.history", example="valv dataset history heart-cohort")
def history(door: Door, name: Name) -> None:
    """Show who touched a dataset: every event of it and of what hangs off it."""
    events = door.get("datasets", name, "history")
    if not door.answer(events):
        rows = [(e["position"], moment(e["at"]), e["actor"], e["event"], e["stream"]) for e in events]
        door.table(("position", "time", "who", "what", "stream"), rows)


@command(
    dataset,
    "assess",
    action="dataset.assess",
    example="valv dataset assess heart-cohort --confirm --reason 'No direct identifier; k = 12.'",
)
def assess(
    door: Door,
    name: Name,
    confirm: Annotated[
        bool | None, typer.Option("--confirm/--deny", help="Is it anonymised, or is it not?", show_default=False)
    ] = None,
    reason: Reason = "",
    version: Version = 0,
) -> None:
    """Say, as a second person, whether a version is anonymised as its custodian claims."""
    if confirm is None:
        raise InputFault("nothing is said yet", "give --confirm or --deny, after reading 'valv dataset show'")
    body = {"version": version or _newest(door, name), "confirm": confirm, "reason": reason}
    if not door.answer(door.post("datasets", name, "assessment", body=body)):
        door.note(f"{name} version {body['version']}: {'confirmed' if confirm else 'denied'}.")


@command(
    dataset, "narrow", action="dataset.narrow", example="valv dataset narrow heart-cohort --reason 'A name was found.'"
)
def narrow(door: Door, name: Name, reason: Reason = "", version: Version = 0) -> None:
    """Make a version identifiable again. Downloads of it end at once; there is no way back."""
    body = {"version": version or _newest(door, name), "reason": reason}
    if not door.answer(door.post("datasets", name, "narrowing", body=body)):
        door.note(f"{name} version {body['version']} is identifiable.")


def _newest(door: Door, name: str) -> int:
    number = door.get("datasets", name)["row"]["version"]
    if number is None:
        raise InputFault(f"{name} has no version yet", "look at its deposits: 'valv deposits'")
    return int(number)


@command(
    dataset, "describe", action="dataset.describe", example="valv dataset describe heart-cohort --title 'Heart cohort'"
)
def describe(
    door: Door,
    name: Name,
    title: Annotated[str | None, typer.Option(help="One line.", show_default=False)] = None,
    description: Annotated[str | None, typer.Option(help="A paragraph.", show_default=False)] = None,
    disease: Annotated[list[str] | None, typer.Option(help="A disease (repeat).", show_default=False)] = None,
    data_type: Annotated[list[str] | None, typer.Option(help="A kind of data (repeat).", show_default=False)] = None,
    keyword: Annotated[list[str] | None, typer.Option(help="A word (repeat).", show_default=False)] = None,
) -> None:
    """Write a dataset's catalogue text. What is not named stays as it is."""
    from valv.cli.client import path

    fields = ("title", "description", "diseases", "data_types", "keywords")
    given = dict(zip(fields, (title, description, disease, data_type, keyword), strict=True))
    changed = {key: value for key, value in given.items() if value is not None}
    if not changed:
        raise InputFault("nothing to change is named", "see 'valv dataset describe --help'")
    row = door.get("datasets", name)["row"]
    body = {key: row[key] for key in fields} | changed
    if not door.answer(door.client.ask("PATCH", path("datasets", name), body)):
        door.note(f"{name} is described anew.")
