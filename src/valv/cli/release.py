"""`valv releases` and `valv release`: asking for outputs, checking them, fetching what was released."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from valv.cli import arriving
from valv.cli.command import Door, command, group
from valv.cli.text import plain, size
from valv.errors import InputFault, Refusal, RefusedFault

app = group("Releases.")
release = group("Ask for outputs, check them, fetch them.")
PIECE = 1 << 20
SHOWN = 64 << 10
"""Bytes of an output that a terminal shows."""
Ident = Annotated[str, typer.Argument(metavar="ID", help="The release.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="FILE", help="The output's path or id.", show_default=False)]


@command(app, "releases", action="release.see", example="valv releases\nvalv releases ID")
def releases(
    door: Door, ident: Annotated[str, typer.Argument(metavar="[ID]", help="The release.", show_default=False)] = ""
) -> None:
    """List your releases and those that wait for your check, or show one with its files."""
    if not ident:
        views = door.get("releases")
        if not door.answer(views):
            rows = [
                (v["state"]["release_id"], v["author"], ", ".join(v["datasets"]), len(v["files"]), v["state"]["phase"])
                for v in views
            ]
            door.table(("release", "author", "datasets", "files", "state"), rows, "no release")
        return
    view = door.get("releases", ident)
    if door.answer(view):
        return
    state = view["state"]
    pairs: list[tuple[str, object]] = [
        ("release", state["release_id"]),
        ("run", state["run_id"]),
        ("author", view["author"]),
        ("datasets", ", ".join(view["datasets"])),
        ("state", state["phase"]),
        ("context", view["context"]),
        ("manifest", state["manifest"]),
        ("left out", view["skipped"]),
    ]
    door.facts([pair for pair in pairs if pair[1]])
    rows = [(f["path"], size(f["size"]), f["verdict"] or "–", f["reason"], f["file_id"]) for f in view["files"]]
    door.table(("file", "size", "verdict", "reason", "id"), rows, "no file")
    if view["may"]:
        door.note(f"You may: {', '.join(sorted(view['may']))}.")


@command(release, "request", action="release.request", example="valv release request ID --context 'Counts by disease.'")
def request(
    door: Door,
    ident: Ident,
    context: Annotated[str, typer.Option(help="What the outputs are, for the checker.", show_default=False)] = "",
) -> None:
    """Ask for the outputs of a run. A checker looks at each of them."""
    if not door.answer(door.post("releases", ident, "request", body={"context": context})):
        door.note(f"The release {plain(ident)} waits for a checker.")


@command(release, "withdraw", action="release.withdraw", example="valv release withdraw ID")
def withdraw(door: Door, ident: Ident) -> None:
    """Withdraw the request."""
    if not door.answer(door.post("releases", ident, "withdrawal")):
        door.note(f"The request for {plain(ident)} is withdrawn.")


@command(
    release,
    "inspect",
    action="release.inspect",
    example="valv release inspect ID counts.tsv\nvalv release inspect ID plot.png -o plot.png",
)
def inspect(
    door: Door,
    ident: Ident,
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it to a file.", show_default=False)
    ] = None,
) -> None:
    """Look at an output before it is released (a checker). The look is kept in the ledger."""
    file = _find(door.get("releases", ident), name)
    from valv.cli.client import path

    with door.client.stream(path("releases", ident, "files", file["file_id"], "inspection")) as response:
        if output is not None:
            arriving.save(output, response.iter_bytes(PIECE), file["sha256"])
            door.note(f"{output}: {size(file['size'])}, checksum as listed")
        elif sys.stdout.isatty():
            _show_beginning(door, response.iter_bytes(SHOWN), file["size"])
        else:
            for chunk in response.iter_bytes(PIECE):
                sys.stdout.buffer.write(chunk)


def _show_beginning(door: Door, chunks: Any, whole: int) -> None:
    """On a terminal: text only, and none of the characters that command it."""
    content = next(chunks, b"")
    text = content.decode("utf-8", errors="replace")
    if "\0" in text:
        raise InputFault("this output is not text", "write it to a file: -o FILE")
    print(plain(text, lines=True))
    if whole > len(content):
        door.note(f"… {size(whole - len(content))} more; see all of it with -o FILE")


@command(
    release,
    "check",
    action="release.check",
    example="valv release check ID counts.tsv --approve --reason 'Every count is 10 or more.'",
)
def check(
    door: Door,
    ident: Ident,
    name: Name,
    approve: Annotated[
        bool | None, typer.Option("--approve/--reject", help="May it leave the node?", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, in one sentence.", show_default=False)] = "",
) -> None:
    """Approve or reject one output (a checker)."""
    if approve is None:
        raise InputFault("nothing is decided yet", "give --approve or --reject, after 'valv release inspect'")
    view = door.get("releases", ident)
    file = _find(view, name)
    body = {"approve": approve, "reason": reason, "manifest": view["state"]["manifest"]}
    if not door.answer(door.post("releases", ident, "files", file["file_id"], "decision", body=body)):
        door.note(f"{file['path']}: {'approved' if approve else 'rejected'}.")


@command(
    release,
    "fetch",
    action="release.fetch",
    example="valv release fetch ID -o results\nvalv release fetch ID counts.tsv",
)
def fetch(
    door: Door,
    ident: Ident,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]…", help="Only these outputs.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where they go.")] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that differ.")] = False,
) -> None:
    """Fetch released outputs. Each is written whole or not at all, and held against its checksum."""
    from valv.cli.client import path

    view = door.get("releases", ident)
    chosen = [_find(view, name) for name in names or []] or [f for f in view["files"] if f["verdict"] == "approved"]
    if not chosen or view["state"]["phase"] != "released":
        raise RefusedFault(Refusal("not_released", f"the release is {view['state']['phase']}"))
    rows = []
    for file in chosen:
        target = arriving.place(output, file["path"])
        if arriving.digest(target) == file["sha256"]:
            door.sent(str(target), file["size"], "was there")
        else:
            address = path("releases", ident, "files", file["file_id"])
            with door.client.stream(address) as answer, door.progress(file["path"], file["size"]) as advance:
                arriving.save(target, _counted(answer, advance), file["sha256"], overwrite=overwrite)
            door.sent(str(target), file["size"], "fetched")
        rows.append({"file": str(target), "size": file["size"], "sha256": file["sha256"]})
    door.answer(rows)


def _counted(response: Any, advance: Any) -> Any:
    for chunk in response.iter_bytes(PIECE):
        advance(len(chunk))
        yield chunk


def _find(view: dict[str, Any], name: str) -> dict[str, Any]:
    """The output of this path or id. Raises the refusal `no_file`."""
    for file in view["files"]:
        if name in (file["path"], file["file_id"]):
            return dict(file)
    raise RefusedFault(Refusal("no_file", f"{name!r} is not in this release"))
