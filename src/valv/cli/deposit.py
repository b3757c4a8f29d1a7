"""`valv deposit` and `valv deposits`: a folder as a new version of a dataset, and what became of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from valv.cli import folder as folders
from valv.cli.command import Door, Look, command, group
from valv.cli.folder import Folder
from valv.cli.text import size
from valv.errors import Fault, InputFault, Refusal, RefusedFault, Row

app = group("Send a folder.")
deposits = group("Look at deposits, or cancel one.", cls=Look, no_args_is_help=False)
PAUSE = 1.0
"""Seconds between two looks at what the node does."""
Ident = Annotated[str, typer.Argument(metavar="ID", help="The deposit.", show_default=False)]


@command(
    app,
    "deposit",
    action="deposit.open",
    example="valv deposit ./cohort --dataset heart-cohort --class anonymised --consent DUO:0000042 --consent NPU \\\n"
    "    --committee heart --title 'Heart cohort' --disease MONDO:0005267 --data-type VCF --wait",
)
def deposit(
    door: Door,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the files.", show_default=False)],
    dataset: Annotated[
        str, typer.Option(help="The dataset's name; made where there is none.", show_default=False)
    ] = "",
    data_class: Annotated[
        str, typer.Option("--class", metavar="CLASS", help="identifiable or anonymised.", show_default=False)
    ] = "",
    consent: Annotated[
        list[str] | None,
        typer.Option(metavar="DUO", help="What the donors consented to (repeat), for example GRU or DS=MONDO:0005147."),
    ] = None,
    committee: Annotated[str, typer.Option(help="The committee that decides on access.", show_default=False)] = "",
    title: Annotated[str, typer.Option(help="One line for the catalogue.", show_default=False)] = "",
    description: Annotated[str, typer.Option(help="A paragraph for the catalogue.", show_default=False)] = "",
    disease: Annotated[list[str] | None, typer.Option(help="A disease, for example MONDO:0005147 (repeat).")] = None,
    data_type: Annotated[list[str] | None, typer.Option(help="A kind of data, for example VCF (repeat).")] = None,
    keyword: Annotated[list[str] | None, typer.Option(help="A word to be found by (repeat).")] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest",
            "--checksums",
            metavar="FILE",
            help="Checksums as 'sha256sum' writes them; each file is compared with its own.",
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, max=16, help="Requests at a time.")] = 4,
    resume: Annotated[
        str,
        typer.Option("--continue", metavar="ID", help="Go on with a deposit that is still open.", show_default=False),
    ] = "",
    no_submit: Annotated[bool, typer.Option("--no-submit", help="Leave the deposit open for more files.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the version is published, or failed.")] = False,
) -> None:
    """Send every file of a folder as a new version of a dataset.

    Each file is encrypted on its way in, and its checksum, computed as it is sent, compared; one that is already
    Crypt4GH for the node's public key is kept as it is. A `participants.tsv` goes along. Symbolic links are not
    followed. What broke off goes on where it stopped (--continue). The version becomes visible all at once, when
    everything was verified.
    """
    known = folders.read_checksums(manifest) if manifest else {}
    found = folders.walk(directory, manifest)
    for line in found.skipped:
        door.warn(f"  skipped    {line}")
    if not found.items:
        raise RefusedFault(Refusal("deposit_empty", str(directory)))
    if manifest:
        for name in folders.declared(found, known, manifest):
            door.warn(f"  not named  {name}: {manifest} has no checksum of it")
    if resume:
        ident = resume
    else:
        ident = _open(
            door,
            {
                "dataset": dataset,
                "class": data_class,
                "consent": consent or [],
                "committee": committee,
                "title": title,
                "description": description,
                "diseases": disease or [],
                "data_types": data_type or [],
                "keywords": keyword or [],
            },
        )
    try:
        digests = _send_all(door, ident, found, known, parallel)
        if manifest:
            door.note(f"{len(known)} files are those of {manifest}.")
        if not no_submit:
            names = [item.name for item in found.items]
            door.post("deposits", ident, "submission", body={"expected": names, "sums": digests})
    except BaseException:
        door.warn(f"The deposit {ident} stays open. Go on with it: valv deposit {directory} --continue {ident}")
        raise
    view = _until_done(door, ident) if wait and not no_submit else door.get("deposits", ident)
    if door.answer(view):
        return
    if wait and not no_submit:
        door.say(f"{view['dataset']} version {view['state']['version']}")
    else:
        door.say(ident)
        door.note(
            f"The deposit is open. Hand it in: valv deposit {directory} --continue {ident}"
            if no_submit
            else f"Handed in. Follow it: valv deposits {ident}"
        )


def _open(door: Door, request: dict[str, Any]) -> str:
    options = {"dataset": "--dataset", "class": "--class", "consent": "--consent", "committee": "--committee"}
    missing = [option for key, option in options.items() if not request[key]]
    if missing:
        raise InputFault(f"{' and '.join(missing)} must be given", "see 'valv deposit --help'")
    if request["class"] not in ("identifiable", "anonymised"):
        raise InputFault(f"--class {request['class']!r} is not known", "write identifiable or anonymised")
    return str(door.post("deposits", body=request)["deposit_id"])


class Incomplete(Fault):
    """Some files could not be sent."""

    @property
    def row(self) -> Row:
        return Row(422, 65, "Not every file was sent", "mend what is named above, then go on with --continue")


def _send_all(door: Door, ident: str, found: Folder, known: dict[str, str], parallel: int) -> dict[str, str]:
    """SHA-256 (hex) of each file as it was sent, by name. Returns when the node has made files of all of them."""
    from valv.cli.sending import Sending

    sending = Sending(door, ident, known, parallel)
    sending.send(found.items)
    if len(sending.faults) == 1:
        raise sending.faults[0]
    if sending.faults:
        raise Incomplete("; ".join(fault.detail for fault in sending.faults[:5]))
    waits = False
    while True:
        states = {upload["path"]: upload for upload in door.get("deposits", ident, "uploads")}
        refused = {name: one for name, one in states.items() if one["state"] == "refused" and name in sending.digests}
        if refused:
            raise Incomplete("; ".join(f"{name}: {one['reason']}" for name, one in list(refused.items())[:5]))
        if not any(one["state"] == "whole" for one in states.values()):
            break
        if not waits:
            door.note("Waiting for the node to join what came in pieces …")
            waits = True
        time.sleep(PAUSE)
    door.note(f"{len(found.items)} files, {size(found.size)}.")
    return sending.digests


class Unpublished(Fault):
    """The node could not take the deposit."""

    @property
    def row(self) -> Row:
        return Row(422, 65, "The deposit was not published", "correct the files, then send them as a new deposit")


def _until_done(door: Door, ident: str) -> Any:
    """Wait for the end of a deposit's verification. Raises `Unpublished` where it failed."""
    door.note("Waiting for the node to verify and publish …")
    while True:
        view = door.get("deposits", ident)
        phase = view["state"]["phase"]
        if phase == "published":
            return view
        if phase in ("failed", "cancelled"):
            raise Unpublished(view["state"]["reason"] or phase)
        time.sleep(PAUSE)


@command(deposits, "show", action="deposit.see", example="valv deposits\nvalv deposits ID")
def show(
    door: Door, ident: Annotated[str, typer.Argument(metavar="[ID]", help="The deposit.", show_default=False)] = ""
) -> None:
    """List your deposits, or show one with its files."""
    if not ident:
        views = door.get("deposits")
        if not door.answer(views):
            rows = [(v["deposit_id"], v["dataset"], v["state"]["claimed"], v["state"]["phase"]) for v in views]
            door.table(("deposit", "dataset", "class", "state"), rows, "no deposit yet")
        return
    view = door.get("deposits", ident)
    if door.answer(view):
        return
    state = view["state"]
    version = state["version"] if state["version"] is not None else "–"
    pairs = [("deposit", view["deposit_id"]), ("dataset", view["dataset"]), ("class", state["claimed"])]
    pairs += [("consent", ", ".join(state["consent"])), ("state", state["phase"]), ("version", version)]
    door.facts([*pairs, ("reason", state["reason"])] if state["reason"] else pairs)
    door.table(
        ("file", "size", "state", "sha256", "reason"),
        [(f["path"], size(f["size"]), f["state"], f["sha256"] or "–", f["reason"]) for f in view["files"]],
        "no file yet",
    )


@command(deposits, "status", action="deposit.see", example="valv deposits status ID")
def status(door: Door, ident: Ident) -> None:
    """How far the files of a deposit are: received, verified, archived, or the reason why not."""
    view = door.get("deposits", ident)
    if door.answer(view):
        return
    states = [file["state"] for file in view["files"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no file yet"
    door.note(f"{view['dataset']}: {view['state']['phase']}; {counts}")
    rows = [(f["path"], size(f["size"]), f["state"], f["reason"]) for f in view["files"]]
    door.table(("file", "size", "state", "reason"), rows, "no file yet")


@command(deposits, "cancel", action="deposit.cancel", example="valv deposits cancel ID")
def cancel(door: Door, ident: Ident) -> None:
    """Cancel a deposit that was not published. Its files are dropped."""
    from valv.cli.client import path

    if not door.answer(door.client.ask("DELETE", path("deposits", ident))):
        door.note(f"The deposit {ident} is cancelled.")
