"""`valv run` and `valv runs`: a command on the data of a permit, and what became of it."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from valv.cli.command import Door, Look, command, group
from valv.cli.text import moment, plain, read_duration, read_size, size

app = group("Run a command.")
runs = group("Look at runs, or stop one.", cls=Look, no_args_is_help=False)
PAUSE = 1.0
"""Seconds between two looks at a run."""
FAILED = 1
"""Exit code of `valv run --wait` where the command itself failed."""
DONE = ("collected", "cancelled")


@command(
    app,
    "run",
    action="run.queue",
    example="valv run --permit ID --time 10m --memory 2G --wait -- bcftools stats /data/heart-cohort/calls.vcf.gz",
    context_settings={"allow_interspersed_args": False},
)
def run(
    door: Door,
    line: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="The command, after '--'.", show_default=False),
    ],
    permit: Annotated[str, typer.Option(metavar="ID", help="The permit to work under.", show_default=False)],
    dataset: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this dataset of the permit (repeat).")
    ] = None,
    seconds: Annotated[str, typer.Option("--time", help="At most so long, for example 10m.", show_default=False)] = "",
    memory: Annotated[str, typer.Option(help="At most so much memory, for example 2G.", show_default=False)] = "",
    processes: Annotated[int, typer.Option(min=0, help="At most so many processes.", show_default=False)] = 0,
    scratch: Annotated[str, typer.Option(help="At most so much in /work and /outbox.", show_default=False)] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for its end; exit code 1 where the command failed.")
    ] = False,
) -> None:
    """Run a command in the node, without network, on the datasets of a permit.

    It sees them read-only under /data/NAME, may write to /work, and leaves results in /outbox. What it prints is a
    result too. Results leave the node by release: valv release request.
    """
    limits = {
        "seconds": read_duration(seconds) if seconds else 0,
        "memory": read_size(memory) if memory else 0,
        "processes": processes,
        "scratch": read_size(scratch) if scratch else 0,
    }
    body: dict[str, Any] = {"permit": permit, "datasets": dataset or [], "command": line}
    if any(limits.values()):
        body["limits"] = {name: value for name, value in limits.items() if value}
    ident = str(door.post("runs", body=body)["run_id"])
    if not wait:
        if not door.answer({"run_id": ident}):
            door.say(ident)
            door.note(f"Queued. Follow it: valv runs {ident}")
        return
    door.note(f"Run {ident}. Ctrl-C leaves it running; stop it with: valv runs stop {ident}")
    view = _until_done(door, ident)
    if not door.answer(view):
        _page(door, view)
    if not view["state"]["success"]:
        raise typer.Exit(FAILED)


def _until_done(door: Door, ident: str) -> Any:
    """Wait until the run's outputs are sealed, or it was cancelled."""
    seen = ""
    while True:
        view = door.get("runs", ident)
        phase = view["state"]["phase"]
        if phase != seen:
            door.note(f"  {phase}")
            seen = phase
        if phase in DONE:
            return view
        time.sleep(PAUSE)


def _page(door: Door, view: dict[str, Any]) -> None:
    state = view["state"]
    asked = state["limits"]
    pairs: list[tuple[str, object]] = [
        ("run", state["run_id"]),
        ("permit", state["permit_id"]),
        ("datasets", ", ".join(view["datasets"])),
        ("command", " ".join(view["command"])),
        ("limits", f"{asked['seconds']} s, {size(asked['memory'])} memory, {asked['processes']} processes, "
                   f"{size(asked['scratch'])} scratch"),
        ("queued", moment(state["queued"])),
        ("started", moment(state["started"])),
        ("ended", moment(state["ended"])),
        ("state", state["phase"]),
        ("end", f"{state['end']}, {'success' if state['success'] else 'no success'}" if state["end"] else ""),
        ("why", view["detail"]),
        ("outputs", state["outputs"] if state["phase"] == "collected" else ""),
        ("release", view["release_id"]),
    ]  # fmt: skip
    door.facts([pair for pair in pairs if pair[1] != ""])
    if view["release_id"] and state["outputs"]:
        door.note(f"Ask for the outputs: valv release request {plain(view['release_id'])} --context '…'")


@command(runs, "show", action="run.see", example="valv runs\nvalv runs ID")
def show(
    door: Door, ident: Annotated[str, typer.Argument(metavar="[ID]", help="The run.", show_default=False)] = ""
) -> None:
    """List your runs, or show one."""
    if ident:
        view = door.get("runs", ident)
        if not door.answer(view):
            _page(door, view)
        return
    views = door.get("runs")
    if not door.answer(views):
        rows = [
            (
                view["state"]["run_id"],
                ", ".join(view["datasets"]),
                moment(view["state"]["queued"]),
                view["state"]["phase"],
                view["state"]["end"] or "–",
                "yes" if view["state"]["success"] else "–",
            )
            for view in views
        ]
        door.table(("run", "datasets", "queued", "state", "end", "success"), rows, "no run")


@command(runs, "stop", action="run.stop", example="valv runs stop ID")
def stop(door: Door, ident: Annotated[str, typer.Argument(metavar="ID", help="The run.", show_default=False)]) -> None:
    """Stop a run with everything that it started."""
    if not door.answer(door.post("runs", ident, "stop")):
        door.note(f"The run {plain(ident)} is being stopped.")
