"""`valv download`: files of a permit, sealed to a registered key. What broke off goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from valv.cli import arriving
from valv.cli.command import Door, command, group
from valv.errors import InputFault, Refusal, RefusedFault

app = group("Download files.")


@command(
    app,
    "download",
    action="data.download",
    example="valv download --permit ID -o data\nvalv download --permit ID calls.vcf.gz --parallel 8\n"
    "valv crypt decrypt data/heart-cohort/calls.vcf.gz.c4gh --secret me.sec",
)
def download(
    door: Door,
    permit: Annotated[str, typer.Option(metavar="ID", help="The permit, of mode download.", show_default=False)],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE]...", help="Only these: PATH or DATASET/PATH.", show_default=False),
    ] = None,
    named: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="Only the files named in FILE, one a line.", show_default=False),
    ] = None,
    key: Annotated[
        str,
        typer.Option(metavar="KEYID", help="The registered key; needed where there are several.", show_default=False),
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", "--to", metavar="DIR", help="Where the files go.")] = Path(),
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Only this dataset.", show_default=False)] = "",
    parallel: Annotated[int, typer.Option(min=1, max=16, help="Connections at a time.")] = 4,
) -> None:
    """Download the files of a permit, encrypted so that only your private key opens them.

    They arrive as DIR/DATASET/PATH.c4gh; `SHA256SUMS` beside them holds the checksums of the decrypted files. Large
    files come in several parts at a time, and what came is held against the hash tree of what the node keeps. A
    download that broke off goes on where it stopped when the same command is given again; it begins anew where the node
    has encrypted the file anew meanwhile.
    """
    from valv.cli.fetching import Fetching

    all_of = [file for file in door.get("permits", permit, "files") if dataset in ("", file["dataset"])]
    listed = _chosen(all_of, [*(files or ()), *(_names(named) if named else ())], some=bool(files or named))
    if not listed:
        raise RefusedFault(Refusal("no_file", "the permit has no file" + (f" of {dataset}" if dataset else "")))
    chosen = key or _only_key(door)
    targets = {file["file_id"]: arriving.place(output, f"{file['dataset']}/{file['path']}.c4gh") for file in listed}
    Fetching(door, permit, chosen, parallel).fetch([(file, targets[file["file_id"]]) for file in listed])
    for name in sorted({file["dataset"] for file in all_of}):
        lines = [f"{f['sha256']}  {f['path']}\n" for f in listed if f["dataset"] == name and f["sha256"]]
        if lines:
            sums = arriving.place(output, f"{name}/SHA256SUMS")
            arriving.save(sums, [line.encode() for line in lines], "", overwrite=True)
    rows = [{"file": str(targets[file["file_id"]]), "size": file["size"], "sha256": file["sha256"]} for file in listed]
    if not door.answer(rows):
        door.note("Decrypt each file: valv crypt decrypt FILE --secret YOUR.sec")


def _names(file: Path) -> list[str]:
    return [line for line in file.read_text("utf-8").splitlines() if line.strip()]


def _chosen(files: list[dict[str, Any]], names: list[str], *, some: bool) -> list[dict[str, Any]]:
    """The files that are meant, in their order. Raises the refusal `no_file` for a name that fits none."""
    if not some:
        return files
    wanted = set(names)
    chosen = [file for file in files if {file["path"], f"{file['dataset']}/{file['path']}"} & wanted]
    met = {name for file in chosen for name in (file["path"], f"{file['dataset']}/{file['path']}")}
    missing = sorted(wanted - met)
    if missing:
        raise RefusedFault(Refusal("no_file", ", ".join(map(repr, missing[:5]))))
    return chosen


def _only_key(door: Door) -> str:
    keys = door.get("account", "keys")
    if not keys:
        raise RefusedFault(Refusal("no_key", "register one: valv account key add FILE.pub --secret FILE.sec"))
    if len(keys) > 1:
        names = ", ".join(f"{key['id']} ({key['label']})" for key in keys)
        raise InputFault(f"several keys are registered: {names}", "choose one with --key")
    return str(keys[0]["id"])
