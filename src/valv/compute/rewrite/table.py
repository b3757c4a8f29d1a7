"""CSV and TSV (RFC 4180; tab separated) without some people: their rows, and columns that are named after them.

Rows that stay are kept byte for byte, unless a column goes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator

from .names import Cannot, Names
from .packed import LONGEST

WHOSE = frozenset(
    f"{who}{end}"
    for who in ("pseudonym", "participant", "patient", "sample", "subject", "individual", "person", "donor", "case")
    for end in ("", "id", "name", "identifier", "accession")
) | {"iid", "specimenid", "biosampleid", "studyid", "pid"}
"""Headers, without blanks and signs, of columns that say whose a row is."""


def rewrite(source: Iterator[bytes], names: Names, write: Callable[[bytes], None]) -> bool:
    """Write the table without these people. Returns False where nobody would be left. Raises `Cannot`."""
    csv.field_size_limit(LONGEST)
    head = next(source, b"")
    mark = _separator(head)
    columns = _cells(head, mark)
    whose = [at for at, name in enumerate(columns) if _plain(name) in WHOSE]
    theirs = {at for at, name in enumerate(columns) if names.are(name)}
    if not whose and not theirs:
        raise Cannot("no_column")
    write(_without(columns, theirs, mark) if theirs else head)
    removed, left = len(theirs), 0
    for row in _records(source):
        cells = _cells(row, mark)
        if any(names.are(cells[at]) for at in whose if at < len(cells)):
            removed += 1
            continue
        left += 1
        write(_without(cells, theirs, mark) if theirs else row)
    if not removed:
        raise Cannot("not_found")
    return bool(left) and len(columns) > len(theirs)


def _separator(head: bytes) -> str:
    text = head.decode("utf-8-sig")
    return max("\t,;", key=lambda mark: (text.count(mark), mark == ","))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _records(source: Iterator[bytes]) -> Iterator[bytes]:
    """Rows; one may go over several lines within quotes."""
    held = bytearray()
    for line in source:
        held += line
        if len(held) > LONGEST:
            raise Cannot("long_row")
        if held.count(b'"') % 2 == 0:
            if held.strip():
                yield bytes(held)
            held.clear()
    if held:
        raise Cannot("broken")


def _cells(row: bytes, mark: str) -> list[str]:
    text = row.decode("utf-8-sig").rstrip("\r\n")
    try:
        return next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), [])
    except csv.Error:
        raise Cannot("broken") from None


def _without(cells: list[str], places: set[int], mark: str) -> bytes:
    out = io.StringIO(newline="")
    kept = [cell for at, cell in enumerate(cells) if at not in places]
    csv.writer(out, delimiter=mark, lineterminator="\n").writerow(kept)
    return out.getvalue().encode()
