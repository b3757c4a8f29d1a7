"""`valv download`: files of a permit, sealed to a registered key. What broke off goes on where it stopped."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from valv.cli import arriving
from valv.cli.command import Door, command, group
from valv.cli.screen import Advance
from valv.errors import FormatFault, InputFault, IntegrityFault, Refusal, RefusedFault, UnreachableFault
from valv.formats import crypt4gh

app = group("Download files.")
PIECE = 1 << 20
TRIES = 5
"""How often a broken connection is taken up again without any progress in between."""
_ETAG: Final = re.compile(r'"[!#-~]{1,100}"')


@command(
    app,
    "download",
    action="data.download",
    example="valv download --permit ID -o data\nvalv crypt decrypt data/heart-cohort/calls.vcf.gz.c4gh --secret me.sec",
)
def download(
    door: Door,
    permit: Annotated[str, typer.Option(metavar="ID", help="The permit, of mode download.", show_default=False)],
    key: Annotated[
        str,
        typer.Option(metavar="KEYID", help="The registered key; needed where there are several.", show_default=False),
    ] = "",
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where the files go.")] = Path(),
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Only this dataset.", show_default=False)] = "",
) -> None:
    """Download the files of a permit, encrypted so that only your private key opens them.

    They arrive as DIR/DATASET/PATH.c4gh; `SHA256SUMS` beside them holds the checksums of the decrypted files. A
    download that broke off goes on where it stopped when the same command is given again; it begins anew where the node
    has encrypted the file anew meanwhile.
    """
    listed = [file for file in door.get("permits", permit, "files") if dataset in ("", file["dataset"])]
    if not listed:
        raise RefusedFault(Refusal("no_file", "the permit has no file" + (f" of {dataset}" if dataset else "")))
    chosen = key or _only_key(door)
    rows = []
    for number, file in enumerate(listed, 1):
        name = f"{file['dataset']}/{file['path']}.c4gh"
        target = arriving.place(output, name)
        if not _complete(target, file["size"]):
            with door.progress(f"{number}/{len(listed)} {name}", crypt4gh.cipher_size(file["size"])) as advance:
                _fetch(door, permit, file, chosen, target, advance)
            door.sent(str(target), target.stat().st_size, "received")
        else:
            door.sent(str(target), target.stat().st_size, "was there")
        rows.append({"file": str(target), "size": file["size"], "sha256": file["sha256"]})
    for name in sorted({file["dataset"] for file in listed}):
        lines = [f"{f['sha256']}  {f['path']}\n" for f in listed if f["dataset"] == name and f["sha256"]]
        sums = arriving.place(output, f"{name}/SHA256SUMS")
        arriving.save(sums, [line.encode() for line in lines], "", overwrite=True)
    if not door.answer(rows):
        door.note("Decrypt each file: valv crypt decrypt FILE --secret YOUR.sec")


def _only_key(door: Door) -> str:
    keys = door.get("account", "keys")
    if not keys:
        raise RefusedFault(Refusal("no_key", "register one: valv account key add FILE.pub --secret FILE.sec"))
    if len(keys) > 1:
        names = ", ".join(f"{key['id']} ({key['label']})" for key in keys)
        raise InputFault(f"several keys are registered: {names}", "choose one with --key")
    return str(keys[0]["id"])


def _fetch(door: Door, permit: str, file: dict[str, Any], key: str, target: Path, advance: Advance) -> None:
    """Fill `target.part`, then give it its name. A connection that breaks is taken up again."""
    part = target.with_name(f"{target.name}.part")
    tries = 0
    while not _complete(part, file["size"]):
        before = _kept(part)
        try:
            _stream(door, permit, file, key, part, before, advance)
            if not _complete(part, file["size"]):
                part.unlink(missing_ok=True)
                _note_of(part).unlink(missing_ok=True)
                raise IntegrityFault(f"{target.name} has not the size that is listed", "download it again")
        except UnreachableFault:
            # Something came: begin to count anew. Nothing came several times: it is not to be had.
            tries = 0 if _kept(part) > before else tries + 1
            if tries >= TRIES:
                raise
    with arriving.writing(target):
        part.replace(target)
        _note_of(part).unlink(missing_ok=True)


def _kept(part: Path) -> int:
    """How many bytes of an earlier try count. A header is sealed anew for each download, so that half of one is
    worthless; 0 then."""
    try:
        with part.open("rb") as file:
            length = crypt4gh.header_length(file.read(crypt4gh.MAX_HEADER))
    except (OSError, FormatFault):
        return 0
    return part.stat().st_size if length is not None else 0


def _stream(door: Door, permit: str, file: dict[str, Any], key: str, part: Path, start: int, advance: Advance) -> None:
    from valv.cli.client import path

    address = path("permits", permit, "files", file["file_id"])
    before = _etag(part) if start else ""
    headers = {"Range": f"bytes={start}-"} if start else {}
    headers |= {"If-Range": before} if before else {}
    with door.client.stream(address, query={"key": key}, headers=headers) as response, arriving.writing(part):
        resumed = response.status_code == 206
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if resumed else os.O_TRUNC)
        if start and not resumed:
            if before and before != response.headers.get("ETag"):
                door.note(f"  begins anew: {file['path']} was encrypted anew in the node since the download began")
            start = 0
        if resumed and _begins(response) != start:
            raise IntegrityFault("the node sent another part than was asked for", "delete the .part file and repeat")
        with os.fdopen(os.open(part, flags, 0o600), "r+b" if resumed else "wb") as kept:
            if not resumed:
                _note_etag(part, response.headers.get("ETag", ""))
            kept.seek(start)
            advance(start)
            try:
                for chunk in response.iter_raw(PIECE):
                    kept.write(chunk)
                    advance(len(chunk))
            finally:
                kept.flush()
                os.fsync(kept.fileno())


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _note_etag(part: Path, etag: str) -> None:
    """Write down of which stored body a part is, before the first byte of it comes."""
    note = _note_of(part)
    note.unlink(missing_ok=True)
    if _ETAG.fullmatch(etag):
        with os.fdopen(os.open(note, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(etag)


def _etag(part: Path) -> str:
    try:
        found = _ETAG.fullmatch(_note_of(part).read_text("ascii"))
    except (OSError, UnicodeDecodeError):
        return ""
    return found[0] if found else ""


def _begins(response: Any) -> int:
    """The first byte of a partial answer, -1 where it says none."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1


def _complete(path: Path, size: int) -> bool:
    """Whether a file is there with a whole header and the body of `size` plain bytes."""
    try:
        with path.open("rb") as file:
            length = crypt4gh.header_length(file.read(crypt4gh.MAX_HEADER))
        return length is not None and path.stat().st_size == length + crypt4gh.cipher_size(size)
    except (OSError, FormatFault):
        return False
