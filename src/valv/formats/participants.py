"""`participants.tsv`: whose data lie in which file. One line a person, tab separated, with a header line:

pseudonym   consent_group   files             samples
P-0001      main            a.vcf;b.dcm       HG00096
"""

from __future__ import annotations

import msgspec

from valv.errors import FormatFault

COLUMNS = ("pseudonym", "consent_group", "files", "samples")
LARGEST = 64 << 20
"""Bytes."""


class Participant(msgspec.Struct, frozen=True):
    pseudonym: str
    consent_group: str
    files: tuple[str, ...]
    samples: tuple[str, ...]


def parse(content: bytes) -> list[Participant]:
    """Read the table. Raises `FormatFault` naming the line (never its content: it may be personal)."""
    try:
        # Only these end a line: cells may hold other characters that Python, too, would take for its end.
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise FormatFault("participants.tsv is not UTF-8", "save it as UTF-8 text") from error
    header = tuple(lines[0].split("\t"))
    if header[:2] != COLUMNS[:2] or not set(header) <= set(COLUMNS) or len(set(header)) != len(header):
        raise FormatFault("participants.tsv: the first line must name the columns", "\\t".join(COLUMNS))
    found: dict[str, Participant] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) != len(header):
            raise FormatFault(f"participants.tsv line {number}: {len(cells)} columns, not {len(header)}")
        row = dict(zip(header, cells, strict=True))
        if not row["pseudonym"] or not row["consent_group"]:
            raise FormatFault(f"participants.tsv line {number}: pseudonym and consent group must not be empty")
        if row["pseudonym"] in found:
            raise FormatFault(f"participants.tsv line {number}: this pseudonym was named before")
        found[row["pseudonym"]] = Participant(
            row["pseudonym"], row["consent_group"], _list(row.get("files", "")), _list(row.get("samples", ""))
        )
    return list(found.values())


def _list(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(";") if part.strip())


def without(content: bytes, pseudonyms: frozenset[str], dropped: frozenset[str]) -> bytes:
    """The table without the lines of these people, and without the names of files that are there no more. Other lines
    stay as they are. `content` is one that `parse` takes."""
    lines = content.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    header = lines[0].split("\t")
    whose, files = header.index("pseudonym"), header.index("files") if "files" in header else -1
    kept = [lines[0]]
    for line in lines[1:]:
        cells = line.split("\t")
        if line.strip() and cells[whose].strip() in pseudonyms:
            continue
        if line.strip() and files >= 0 and dropped.intersection(_list(cells[files])):
            cells[files] = ";".join(path for path in _list(cells[files]) if path not in dropped)
            line = "\t".join(cells)
        kept.append(line)
    return "\n".join(kept).encode()
