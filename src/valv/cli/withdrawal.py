"""`valv withdrawal` and `valv consent`: participants who withdraw, or narrow what they consent to.

A pseudonym is never an option: options stand in the shell's history and in the list of processes. It is read from a
file, or asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from valv.cli.command import Door, command, group
from valv.cli.text import moment, plain
from valv.errors import InputFault
from valv.formats import participants

withdrawal = group("Take participants out of a dataset who withdrew.")
consent = group("Narrow what participants of a dataset consent to.")
PAUSE = 0.5
FAILED = 1
"""Exit code of `--wait` where no successor came."""
GOING = ("asked", "rewriting", "carrying")

Name = Annotated[str, typer.Argument(metavar="DATASET", help="The dataset.", show_default=False)]
Ident = Annotated[str, typer.Argument(metavar="ID", help="The withdrawal.", show_default=False)]
FilePath = Annotated[
    str, typer.Argument(metavar="PATH", help="The file, as the withdrawal names it.", show_default=False)
]
Reason = Annotated[str, typer.Option(help="Why, in one sentence, without the person's name.", show_default=False)]
Persons = Annotated[
    Path | None,
    typer.Option(
        "--pseudonym-file",
        metavar="FILE",
        help="One pseudonym a line; asked for where it is missing.",
        show_default=False,
    ),
]


@command(
    withdrawal,
    "start",
    action="dataset.withdraw",
    example="valv withdrawal start heart-cohort --pseudonym-file gone.txt --reason 'They asked us to.' --wait",
)
def start(
    door: Door,
    dataset: Name,
    pseudonym_file: Persons = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="Only this version; every open one unless named.", show_default=False)
    ] = None,
    let_runs_end: Annotated[bool, typer.Option("--let-runs-end", help="Runs that go on are not stopped.")] = False,
    reason: Reason = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the successor; exit code 1 where none came.")] = False,
) -> None:
    """Take participants out of a dataset. Its versions are closed at once, for new runs and for downloads.

    The node makes a version without them, from participants.tsv, and permits move to it. Runs that go on are stopped.
    """
    body = {
        "dataset": dataset,
        "pseudonyms": _people(door, pseudonym_file),
        "version": version or 0,
        "runs_end": not let_runs_end,
        "reason": reason,
    }
    idents: list[str] = door.post("withdrawals", body=body)["withdrawal_ids"]
    views = [_wait(door, ident) for ident in idents] if wait else []
    if not door.answer(views if wait else {"withdrawal_ids": idents}):
        for ident in idents:
            door.say(ident)
        if not wait:
            door.note(f"The dataset is closed. How it goes on: valv withdrawal list {plain(dataset)}")
    if any(view["state"]["phase"] != "finished" for view in views):
        raise typer.Exit(FAILED)


def _people(door: Door, file: Path | None) -> list[str]:
    if file is None:
        return [door.hidden("Pseudonym of the participant", None, "--pseudonym-file")]
    try:
        return [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise InputFault(f"{file} is not UTF-8", "one pseudonym a line") from None


def _wait(door: Door, ident: str) -> Any:
    view = door.get("withdrawals", ident)
    title = f"{view['dataset']}@{view['state']['version']} without who withdrew"
    shown = 0
    with door.progress(title, view["state"]["files"] or 1, counted=True) as advance:
        while view["state"]["phase"] in GOING:
            done = max(0, view["state"]["files"] - view["left"]) if view["state"]["files"] else 0
            advance(done - shown)
            shown = done
            time.sleep(PAUSE)
            view = door.get("withdrawals", ident)
    phase = view["state"]["phase"]
    door.note(f"  {title}: {phase}" + (f": {view['why']}" if view["why"] else ""))
    if phase == "waiting":
        door.note(f"  Files wait for your word: valv withdrawal show {ident}")
    return view


@command(withdrawal, "list", action="dataset.withdrawals", example="valv withdrawal list heart-cohort")
def list_(
    door: Door,
    dataset: Annotated[str, typer.Argument(metavar="[DATASET]", help="The dataset.", show_default=False)] = "",
) -> None:
    """List the withdrawals from datasets that you answer for. Who withdrew is not told."""
    views = door.get("withdrawals", dataset=dataset)
    if not door.answer(views):
        rows = [
            (
                view["state"]["withdrawal_id"],
                f"{view['dataset']}@{view['state']['version']}",
                moment(view["state"]["asked"]),
                view["state"]["phase"],
                view["state"]["successor"] or "",
                view["left"] or "",
            )
            for view in views
        ]
        door.table(("withdrawal", "dataset", "asked", "state", "successor", "files left"), rows, "no withdrawal")


@command(withdrawal, "show", action="dataset.withdrawals", example="valv withdrawal show ID")
def show(door: Door, ident: Ident) -> None:
    """Show a withdrawal: how it goes on, which files wait for you, and what to do next."""
    view = door.get("withdrawals", ident)
    if door.answer(view):
        return
    state = view["state"]
    pairs: list[tuple[str, object]] = [
        ("withdrawal", state["withdrawal_id"]),
        ("dataset", f"{view['dataset']}@{state['version']}"),
        ("by", view["by"]),
        ("reason", view["reason"]),
        ("asked", moment(state["asked"])),
        ("people", state["count"]),
        ("state", state["phase"]),
        ("files left", view["left"] or ""),
        ("dropped", state["dropped"]),
        ("rewritten", state["rewritten"]),
        ("taken over", state["taken"]),
        ("successor", f"{view['dataset']}@{state['successor']}" if state["successor"] else ""),
        ("permits", f"{state['permits']} moved" if state["permits"] else ""),
        ("why", view["why"]),
        ("old version", f"closed; officers may destroy its key {view['old_key']}" if view["old_key"] else ""),
    ]
    door.facts([pair for pair in pairs if pair[1] != ""])
    if view["waiting"]:
        rows = [(one["path"], one["why"]) for one in view["waiting"]]
        door.table(("waits for you", "why"), rows)
        door.note(
            f"Say for each: valv withdrawal drop {plain(ident)} PATH, or valv withdrawal keep {plain(ident)} PATH"
        )


@command(withdrawal, "drop", action="dataset.withdraw", example="valv withdrawal drop ID notes.docx")
def drop(door: Door, ident: Ident, path: FilePath) -> None:
    """Leave a file out that the node cannot rewrite by itself. A later deposit may bring it again."""
    _settle(door, ident, path, "drop")


@command(withdrawal, "keep", action="dataset.withdraw", example="valv withdrawal keep ID protocol.pdf")
def keep(door: Door, ident: Ident, path: FilePath) -> None:
    """Keep a file that the node cannot look into: you answer for it that nothing in it is of who withdrew."""
    _settle(door, ident, path, "keep")


def _settle(door: Door, ident: str, path: str, fate: str) -> None:
    waiting = {one["path"]: one["file_id"] for one in door.get("withdrawals", ident)["waiting"]}
    if path not in waiting:
        raise InputFault(f"{path} does not wait for anybody", f"see 'valv withdrawal show {ident}'")
    if not door.answer(door.post("withdrawals", ident, "files", waiting[path], body={"fate": fate})):
        door.note(f"{len(waiting) - 1} files wait still." if len(waiting) > 1 else "The node goes on.")


@command(withdrawal, "cancel", action="dataset.withdraw", example="valv withdrawal cancel ID")
def cancel(door: Door, ident: Ident) -> None:
    """Make no successor. The version stays closed; ask again, naming everybody who withdraws."""
    if not door.answer(door.post("withdrawals", ident, "cancellation")):
        door.note(f"The withdrawal {plain(ident)} is cancelled. The version stays closed.")


@command(
    consent,
    "narrow",
    action="dataset.withdraw",
    example=(
        "valv consent narrow heart-cohort --pseudonym-file some.txt --consent HMB --consent NCU --reason Letter\n"
        "valv consent narrow heart-cohort --participants participants.tsv --group clinical --consent HMB --reason 'x'"
    ),
)
def narrow(
    door: Door,
    dataset: Name,
    pseudonym_file: Persons = None,
    table: Annotated[
        Path | None,
        typer.Option("--participants", metavar="FILE", help="A participants.tsv, with --group.", show_default=False),
    ] = None,
    consent_group: Annotated[
        str, typer.Option("--group", help="Whose consent it is: a consent group of that table.", show_default=False)
    ] = "",
    terms: Annotated[
        list[str] | None,
        typer.Option("--consent", help="What they consent to: DUO terms, several.", show_default=False),
    ] = None,
    reason: Reason = "",
) -> None:
    """Narrow what participants consent to. Permits that no longer fit are suspended at once; the committee is told."""
    if bool(table) != bool(consent_group) or (table and pseudonym_file):
        raise InputFault("name --participants and --group together, or --pseudonym-file", "")
    if table:
        people = [one.pseudonym for one in participants.parse(table.read_bytes()) if one.consent_group == consent_group]
        if not people:
            raise InputFault(f"nobody is of the group {consent_group!r} in {table}")
    else:
        people = _people(door, pseudonym_file)
    body = {"pseudonyms": people, "consent": terms or [], "reason": reason}
    made = door.post("datasets", dataset, "consents", body=body)
    if not door.answer(made):
        count = len(made["permits"])
        door.note(f"It is on record for {len(people)} people. {count} permits were suspended.")
        for ident in made["permits"]:
            door.say(ident)


@command(consent, "list", action="dataset.withdrawals", example="valv consent list heart-cohort")
def consents(door: Door, dataset: Name) -> None:
    """List what participants consent to besides the version's own consent, without who they are."""
    found = door.get("datasets", dataset, "consents")
    if not door.answer(found):
        rows = [(one["version"], one["people"], ", ".join(one["consent"])) for one in found]
        door.table(("version", "people", "consent"), rows, "nobody has narrowed their consent")
