"""`valv ledger`: reading it, keeping a copy, and proving on this computer that it was not rewritten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from valv.cli import arriving
from valv.cli.command import Door, command, group
from valv.cli.text import moment
from valv.errors import InputFault, IntegrityFault

ledger = group("The ledger: read it, prove it, keep a copy.")
PIECE = 1 << 16
LONGEST = 16 << 20
"""Bytes of one line of an exported ledger."""
SMALL = 1 << 20


@command(ledger, "show", action="ledger.show", example="valv ledger show\nvalv ledger show --after 1200 --limit 50")
def show(
    door: Door,
    after: Annotated[
        int | None, typer.Option(min=-1, help="Events behind this position; else the newest.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
) -> None:
    """Show events: what happened, when, by whom. Oldest first."""
    asked: dict[str, Any] = {"newest": "true"} if after is None else {"after": after}
    entries = door.get("ledger", limit=limit, **asked)
    if not door.answer(entries):
        rows = [(e["position"], moment(e["at"]), e["actor"], e["event"], e["stream"], e["version"]) for e in entries]
        door.table(("position", "time", "who", "what", "stream", "version"), rows, "no event")


@command(ledger, "export", action="ledger.verify", example="valv ledger export -o ledger.jsonl")
def export(
    door: Door,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where it goes.", show_default=False)],
) -> None:
    """Keep a copy: FILE with an event a line, FILE.checkpoint signed by the node, FILE.key to check the signature."""
    proof = door.get("ledger", "proof")
    if not proof["checkpoint"]:
        raise InputFault("the ledger was not signed yet", "wait a minute")
    count = 0
    with arriving.fresh(output) as file:
        for line in _lines_of(door, proof["checkpoint_size"]):
            file.write(line + b"\n")
            count += 1
    for name, text in (("checkpoint", proof["checkpoint"]), ("key", proof["log_key"] + "\n")):
        arriving.save(_beside(output, name), [text.encode()], "", overwrite=True)
    if not door.answer({"file": str(output), "size": count}):
        door.note(f"{count} events. Check them anywhere: valv ledger verify --file {output}")


@command(
    ledger,
    "verify",
    action="ledger.verify",
    example="valv ledger verify\nvalv ledger verify --file ledger.jsonl --log-key node.key",
)
def verify(
    door: Door,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An exported ledger; no node is asked.", show_default=False)
    ] = None,
    log_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The ledger's key, got from elsewhere.", show_default=False)
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hold it against this signed checkpoint.", show_default=False)
    ] = None,
) -> None:
    """Prove on this computer that the ledger was not rewritten.

    Every event is hashed into the Merkle tree, each stream's versions must follow one another, and the tree's root
    must be the signed one. With a checkpoint that you kept from earlier, whatever it covers must still be the same.
    """
    from valv.formats.ledger import verify_export

    if file is not None:
        note = _text(checkpoint or _beside(file, "checkpoint"))
        key = _text(log_key or _beside(file, "key")).strip()
        report = verify_export(_lines_in(file), note, key)
        whole = report.size
    else:
        proof = door.get("ledger", "proof")
        note = _text(checkpoint) if checkpoint else proof["checkpoint"]
        key = _text(log_key).strip() if log_key else proof["log_key"]
        if not note:
            raise InputFault("the ledger was not signed yet", "wait a minute")
        report = verify_export(_lines_of(door, proof["size"]), note, key)
        whole = proof["size"]
        if report.ok and (report.size != whole or report.root.hex() != proof["root"]):
            raise IntegrityFault(
                f"the node says {whole} events with root {proof['root'][:16]}…, its export has {report.size} with "
                f"{report.root.hex()[:16]}…",
                "tell the node's auditor",
            )
    if not report.ok:
        raise IntegrityFault(report.fault, "tell the node's auditor, and keep this copy of the ledger")
    found = {"size": report.size, "root": report.root.hex(), "signed_size": report.signed_size, "origin": report.origin}
    if door.answer(found | {"key": key}):
        return
    door.facts(
        [
            ("events", report.size),
            ("root", report.root.hex()),
            ("signed", f"the first {report.signed_size} events, by {report.origin}"),
            ("key", key),
        ]
    )
    if log_key is None:
        whence = "The key lay beside the ledger" if file else "The key came from the node itself"
        door.note(f"{whence}: compare it with one that you got elsewhere (--log-key).")
    door.note("The ledger holds.")


def _beside(file: Path, name: str) -> Path:
    return file.with_name(f"{file.name}.{name}")


def _text(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", newline="") as kept:
            return kept.read(SMALL)
    except (OSError, UnicodeDecodeError) as error:
        raise InputFault(f"{file}: {getattr(error, 'strerror', None) or 'not text'}", "name it: see --help") from None


def _lines_in(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as kept:
            yield from _lines(iter(lambda: kept.read(PIECE), b""))
    except OSError as error:
        raise InputFault(f"{file}: {error.strerror}") from None


def _lines_of(door: Door, size: int) -> Iterator[bytes]:
    """The first `size` leaves, as the node exports them."""
    from valv.cli.client import path

    with door.client.stream(path("ledger", "export"), query={"size": size}) as response:
        yield from _lines(response.iter_bytes(PIECE))


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends. What follows the last line break is a line too: a copy that was cut off shows."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
        if len(rest) > LONGEST:
            raise IntegrityFault("a line of the ledger has no end", "get the copy again")
    if rest:
        yield rest
