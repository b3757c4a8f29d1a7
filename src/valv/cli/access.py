"""`valv apply`, `valv applications` and `valv application`: asking for access, and deciding on it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from valv.cli.command import Door, command, group
from valv.cli.text import plain
from valv.errors import InputFault

app = group("Apply for access.")
application = group("Change, decide or withdraw an application.")
Ident = Annotated[str, typer.Argument(metavar="ID", help="The application.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why, in one sentence.", show_default=False)]


@command(
    app,
    "apply",
    action="access.draft",
    example="valv apply --title 'Risk of heart failure' --dataset heart-cohort --purpose DS=MONDO:0005267 \\\n"
    "    --purpose NPU --country SE --institution 'Uppsala University' --days 365 --mode compute --accept-licence",
)
def apply(
    door: Door,
    title: Annotated[str, typer.Option(help="One line.", show_default=False)] = "",
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A dataset, or NAME@VERSION (repeat).")
    ] = None,
    purpose: Annotated[list[str] | None, typer.Option(metavar="DUO", help="What the use is (repeat).")] = None,
    summary: Annotated[str, typer.Option(help="A paragraph for the committee.", show_default=False)] = "",
    country: Annotated[str, typer.Option(help="Where the work is done, ISO 3166.", show_default=False)] = "",
    institution: Annotated[str, typer.Option(help="Who answers for it.", show_default=False)] = "",
    project: Annotated[str, typer.Option(help="The project's name or number.", show_default=False)] = "",
    person: Annotated[list[str] | None, typer.Option(metavar="NAME", help="An account that joins (repeat).")] = None,
    days: Annotated[int, typer.Option(min=1, help="For how long.")] = 365,
    mode: Annotated[str, typer.Option(help="compute or download.")] = "compute",
    for_profit: Annotated[bool, typer.Option("--for-profit", help="The organisation is for profit.")] = False,
    commercial: Annotated[bool, typer.Option("--commercial", help="The use is commercial.")] = False,
    licence: Annotated[bool, typer.Option("--accept-licence", help="Accept the terms of use.")] = False,
    draft: Annotated[bool, typer.Option("--draft", help="Keep it as a draft; do not hand it in.")] = False,
    change: Annotated[
        str,
        typer.Option("--change", metavar="ID", help="Write a draft or returned application anew.", show_default=False),
    ] = "",
) -> None:
    """Apply for access to datasets: for what purpose, where, who, how long, and how."""
    from valv.cli.client import path

    wanting = {"--title": title, "--dataset": dataset, "--purpose": purpose}
    missing = [option for option, value in wanting.items() if not value]
    if missing:
        raise InputFault(f"{' and '.join(missing)} must be given", "see 'valv apply --help'")
    if mode not in ("compute", "download"):
        raise InputFault(f"--mode {mode!r} is not known", "write compute or download")
    form = {
        "title": title,
        "summary": summary,
        "datasets": dataset or [],
        "purpose": purpose or [],
        "country": country,
        "institution": institution,
        "project": project,
        "for_profit": for_profit,
        "commercial": commercial,
        "people": person or [],
        "mode": mode,
        "days": days,
        "licence": licence,
    }
    if change:
        ident = change
        door.client.ask("PUT", path("applications", ident), form)
    else:
        ident = str(door.post("applications", body=form)["access_id"])
    if not draft:
        try:
            door.post("applications", ident, "submission")
        except BaseException:
            door.warn(f"The application {ident} is kept as a draft. Hand it in: valv application submit {ident}")
            raise
    if not door.answer({"access_id": ident}):
        door.say(ident)
        door.note("Kept as a draft." if draft else f"Handed in. Follow it: valv applications {ident}")


@command(app, "applications", action="access.list", example="valv applications\nvalv applications ID")
def applications(
    door: Door, ident: Annotated[str, typer.Argument(metavar="[ID]", help="The application.", show_default=False)] = ""
) -> None:
    """List the applications that you may see, or show one with the consent match of each dataset."""
    if not ident:
        views = door.get("applications")
        if not door.answer(views):
            rows = [
                (v["state"]["access_id"], v["title"], v["applicant"], _names(v), v["state"]["phase"]) for v in views
            ]
            door.table(("application", "title", "applicant", "datasets", "state"), rows, "no application")
        return
    view = door.get("applications", ident)
    if not door.answer(view):
        _page(door, view)


def _names(view: dict[str, Any]) -> str:
    return ", ".join(f"{fact['name']}@{fact['version']}" for fact in view["datasets"])


def _page(door: Door, view: dict[str, Any]) -> None:
    state, request = view["state"], view["state"]["request"]
    purpose = request["purpose"]
    pairs: list[tuple[str, object]] = [
        ("application", state["access_id"]),
        ("title", view["title"]),
        ("summary", view["summary"]),
        ("applicant", view["applicant"]),
        ("with", ", ".join(view["people"].values())),
        ("purpose", purpose["aim"] + (f" ({', '.join(purpose['diseases'])})" if purpose["diseases"] else "")),
        ("place", ", ".join(filter(None, (purpose["institution"], purpose["country"])))),
        ("mode", f"{request['mode']} for {request['days']} days"),
        ("state", state["phase"]),
        ("reason", view["reason"]),
        ("permit", state["permit_id"]),
    ]
    door.facts([pair for pair in pairs if pair[1]])
    rows = [
        (f"{fact['name']}@{fact['version']}", finding["verdict"], finding["sentence"], finding["why"])
        for fact in view["datasets"]
        for finding in fact["match"]["findings"]
    ]
    door.table(("dataset", "verdict", "the donors said", "why"), rows)
    for fact in view["datasets"]:
        door.say(f"{fact['name']}@{fact['version']}: {fact['match']['verdict']}")
    if view["may"]:
        door.note(f"You may: {', '.join(sorted(view['may']))}.")


def _step(door: Door, ident: str, step: str, said: str, **body: Any) -> None:
    if not door.answer(door.post("applications", ident, step, body=body)):
        door.note(f"The application {plain(ident)} is {said}.")


@command(application, "submit", action="access.submit", example="valv application submit ID")
def submit(door: Door, ident: Ident) -> None:
    """Hand in a draft, or an application that was returned for changes."""
    _step(door, ident, "submission", "handed in")


@command(application, "withdraw", action="access.withdraw", example="valv application withdraw ID")
def withdraw(door: Door, ident: Ident) -> None:
    """Withdraw your application."""
    _step(door, ident, "withdrawal", "withdrawn")


@command(
    application, "return", action="access.return", example="valv application return ID --reason 'Name the disease.'"
)
def send_back(door: Door, ident: Ident, reason: Reason = "") -> None:
    """Return an application for changes (the committee)."""
    _step(door, ident, "return", "returned", reason=reason)


@command(
    application, "approve", action="access.approve", example="valv application approve ID --reason 'Fits the consent.'"
)
def approve(
    door: Door,
    ident: Ident,
    reason: Reason = "",
    days: Annotated[
        int | None, typer.Option(min=1, help="For fewer days than applied for.", show_default=False)
    ] = None,
) -> None:
    """Approve an application, which issues a permit (the committee)."""
    body: dict[str, Any] = {"reason": reason} | ({"days": days} if days else {})
    answer = door.post("applications", ident, "approval", body=body)
    if not door.answer(answer):
        door.say(answer["permit_id"])
        door.note("Approved; this is the permit.")


@command(
    application, "reject", action="access.reject", example="valv application reject ID --reason 'Against the consent.'"
)
def reject(door: Door, ident: Ident, reason: Reason = "") -> None:
    """Reject an application (the committee)."""
    _step(door, ident, "rejection", "rejected", reason=reason)
