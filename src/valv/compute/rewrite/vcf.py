"""VCF without some of its samples (VCF 4.4, hts-specs).

Their columns go. AC, AN, AF and NS are counted anew; other INFO fields that sum over the samples (`STALE`) are removed,
because the difference to the file before would tell what the removed samples had. An allele that nobody has any more is
removed from the line, with its values; a line that is left without such an allele goes as a whole. Header lines that
name a removed sample go too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

from .names import Cannot, Names

FIXED = 9
STALE = re.compile(
    r"DP|DP4|MAC|MAF|MLEAC|MLEAF|HWE|ExcHet|InbreedingCoeff|F_MISSING|nhomalt|[A-Z]{3}_(AF|AC|AN)"
    r"|(AC|AN|AF|MAF|MAC|NS|nhomalt)_\w+"
)
COUNTED = ("AC", "AN", "AF", "NS")
_DEFINED = re.compile(rb"##(INFO|FORMAT)=<ID=([^,>]+),Number=([^,>]+)")
_ALLELE = re.compile(r"\d+")
Many = dict[tuple[str, str], str]


def rewrite(source: Iterator[bytes], names: Names, write: Callable[[bytes], None]) -> bool:
    """Write the file without the samples `names`. Returns False where nobody would be left: what was written is void
    then. Raises `Cannot`."""
    many: Many = {}
    for row in source:
        if row.startswith(b"##"):
            if defined := _DEFINED.match(row):
                many[defined[1].decode(), defined[2].decode()] = defined[3].decode()
            if not names.found(row):
                write(row)
            continue
        if not row.startswith(b"#CHROM\t"):
            raise Cannot("broken")
        columns = row.decode().rstrip("\r\n").split("\t")
        samples = columns[FIXED:]
        kept = [at for at, name in enumerate(samples) if not names.are(name)]
        if len(kept) == len(samples):
            raise Cannot("not_found")
        if not kept:
            return False
        write("\t".join([*columns[:FIXED], *(samples[at] for at in kept)]).encode() + b"\n")
        gone = [at for at in range(len(samples)) if at not in set(kept)]
        records = Records(len(columns), kept, gone, many)
        for line in source:
            made = records.without(line)
            if made is not None:
                write(made)
        return True
    raise Cannot("broken")


class Records:
    """Lines of a file with `width` columns. `kept`, `gone`: places of the samples that stay, and that go."""

    def __init__(self, width: int, kept: Sequence[int], gone: Sequence[int], many: Many) -> None:
        self._width = width
        self._count = len(kept)
        picked = itemgetter(*(FIXED + at for at in kept))
        self._keep: Callable[[list[str]], tuple[str, ...]] = (
            picked if len(kept) > 1 else lambda cells: (cells[FIXED + kept[0]],)
        )
        self._gone = [FIXED + at for at in gone]
        self._many = many

    def without(self, row: bytes) -> bytes | None:
        """The line without the samples that go; None where the line goes."""
        cells = row.decode().rstrip("\r\n").split("\t")
        if len(cells) != self._width:
            raise Cannot("broken")
        kept = self._keep(cells)
        form = cells[8].split(":")
        alts = cells[4].split(",") if cells[4] != "." else []
        counts, present = self._counted(kept, form, len(alts))
        lost = self._lost(cells, form, counts)
        if lost:
            left = [at for at in range(len(alts) + 1) if at not in lost]
            if len(left) == 1:
                return None
            kept = tuple(self._sample(cell, form, left) for cell in kept)
            alts = [alts[at - 1] for at in left[1:]]
            counts = [counts[at] for at in left]
            cells[4] = ",".join(alts)
        else:
            left = []
        cells[7] = self._info(cells[7], "GT" in form, counts, present, left)
        return "\t".join([*cells[:FIXED], *kept]).encode() + b"\n"

    def _counted(self, kept: Sequence[str], form: list[str], alts: int) -> tuple[list[int], int]:
        """How often each allele, REF first, is in what stays, and how many samples have a call."""
        if "GT" not in form:
            return [0] * (alts + 1), 0
        if form == ["GT"]:
            calls: Sequence[str] = kept
        else:
            at = form.index("GT")
            calls = [parts[at] if len(parts := cell.split(":", at + 1)) > at else "." for cell in kept]
        joined = "\t".join(calls)
        if alts < 10:
            counts = [joined.count(str(allele)) for allele in range(alts + 1)]
        else:
            counts = [0] * (alts + 1)
            for word in _ALLELE.findall(joined):
                if int(word) > alts:
                    raise Cannot("broken")
                counts[int(word)] += 1
        missing = sum("." in call and not any(letter.isdigit() for letter in call) for call in calls)
        return counts, len(calls) - missing

    def _lost(self, cells: list[str], form: list[str], counts: list[int]) -> set[int]:
        """Alleles that only those who go had."""
        if "GT" not in form:
            return set()
        at = form.index("GT")
        had: set[int] = set()
        for place in self._gone:
            parts = cells[place].split(":")
            had.update(map(int, _ALLELE.findall(parts[at] if len(parts) > at else ".")))
        if had and max(had) >= len(counts):
            raise Cannot("broken")
        return {allele for allele in had if allele and not counts[allele]}

    def _sample(self, cell: str, form: list[str], left: list[int]) -> str:
        values = cell.split(":")
        if len(values) > len(form):
            raise Cannot("broken")
        made = []
        for key, value in zip(form, values, strict=False):
            if key == "GT":
                made.append(_ALLELE.sub(lambda found: str(left.index(int(found[0]))), value))
            else:
                made.append(_picked(value, self._many.get(("FORMAT", key), ""), left))
        return ":".join(made)

    def _info(self, cell: str, called: bool, counts: list[int], present: int, left: list[int]) -> str:
        if cell == ".":
            return cell
        total = sum(counts)
        anew = {
            "AC": ",".join(map(str, counts[1:])) or ".",
            "AN": str(total),
            "AF": ",".join(f"{count / total:.6g}" if total else "." for count in counts[1:]) or ".",
            "NS": str(present),
        }
        made = []
        for entry in cell.split(";"):
            key, equal, value = entry.partition("=")
            if key in COUNTED:
                if called:
                    made.append(f"{key}={anew[key]}")
            elif not STALE.fullmatch(key):
                if equal and left:
                    value = _picked(value, self._many.get(("INFO", key), ""), left)
                made.append(f"{key}{equal}{value}")
        return ";".join(made) or "."


def _picked(value: str, number: str, left: list[int]) -> str:
    """The values of the alleles that are left, of a field with one for each ALT (A), each allele (R) or each genotype
    (G)."""
    if number not in ("A", "R", "G") or value == ".":
        return value
    values = value.split(",")
    if number == "A":
        places = [at - 1 for at in left[1:]]
    elif number == "R":
        places = left
    elif len(values) > left[-1] and _triangle(len(values)):
        # Genotypes of two alleles j ≤ k stand at k (k + 1) / 2 + j.
        places = [k * (k + 1) // 2 + j for turn, k in enumerate(left) for j in left[: turn + 1]]
    else:
        places = left  # of one allele
    if places[-1] >= len(values):
        return "."
    return ",".join(values[at] for at in places)


def _triangle(count: int) -> bool:
    """Whether so many values can be one for each pair of at least two alleles."""
    alleles = int((2 * count) ** 0.5)
    return alleles > 1 and alleles * (alleles + 1) // 2 == count
