"""participants.tsv: what is read, what is refused, and that no message repeats what stands in the file."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.errors import FormatFault
from valv.formats import participants
from valv.formats.participants import Participant, parse

HEADER = "pseudonym\tconsent_group\tfiles\tsamples"
CELL = st.text(st.characters(blacklist_characters="\t\r\n;", blacklist_categories=("Cs",)), min_size=1, max_size=20)


def test_a_table() -> None:
    text = f"{HEADER}\nP-1\tmain\ta.vcf; b.dcm;\tHG00096\n\nP-2\tlate\t\t\n"
    assert parse(text.encode()) == [
        Participant("P-1", "main", ("a.vcf", "b.dcm"), ("HG00096",)),
        Participant("P-2", "late", (), ()),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_as_spreadsheets_write_it(end: str, mark: bytes) -> None:
    assert parse(mark + end.join(["pseudonym\tconsent_group", "P-1\tmain", ""]).encode()) == [
        Participant("P-1", "main", (), ())
    ]


def test_columns_in_another_order_behind_the_first_two() -> None:
    assert parse(b"pseudonym\tconsent_group\tsamples\nP-1\tmain\tS1;S2")[0].samples == ("S1", "S2")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "first line"),
        (b"\xff\xfep\x00", "UTF-8"),
        (b"consent_group\tpseudonym\nmain\tP-1", "first line"),
        (b"pseudonym\tconsent_group\tsecret_name\n", "first line"),
        (b"pseudonym\tconsent_group\tfiles\tfiles\n", "first line"),
        (b"pseudonym\tconsent_group\nP-1", "line 2: 1 columns, not 2"),
        (b"pseudonym\tconsent_group\nP-1\tmain\textra", "line 2: 3 columns, not 2"),
        (b"pseudonym\tconsent_group\n\tmain", "line 2"),
        (b"pseudonym\tconsent_group\n \tmain", "line 2"),
        (b"pseudonym\tconsent_group\nP-1\t", "line 2"),
        (b"pseudonym\tconsent_group\nP-1\tmain\nP-1\tmain", "line 3"),
        (b"pseudonym\tconsent_group\nP-1\tmain\nP-1 \tmain", "line 3"),
    ],
)
def test_refused_with_its_line(content: bytes, said: str) -> None:
    with pytest.raises(FormatFault) as fault:
        parse(content)
    assert said in str(fault.value)


@given(st.binary(max_size=300))
def test_no_bytes_break_it(content: bytes) -> None:
    with contextlib.suppress(FormatFault):
        parse(content)


@given(st.lists(st.lists(CELL, min_size=1, max_size=6), max_size=8))
def test_messages_never_repeat_the_file(lines: list[list[str]]) -> None:
    """Whatever follows the right header: each message is one of the fixed sentences with numbers in it."""
    body = "\n".join("\t".join(cells) for cells in lines)
    try:
        parse(f"{HEADER}\n{body}".encode())
    except FormatFault as fault:
        text = re.sub(r"\d+", "N", fault.detail)
        assert text in {
            "participants.tsv line N: N columns, not N",
            "participants.tsv line N: pseudonym and consent group must not be empty",
            "participants.tsv line N: this pseudonym was named before",
        }


@given(st.lists(st.tuples(CELL, CELL, st.lists(CELL, max_size=3), st.lists(CELL, max_size=3)), max_size=8))
def test_what_is_written_is_read(rows: list[tuple[str, str, list[str], list[str]]]) -> None:
    """Also with the many characters that other programs take for the end of a line."""
    seen: dict[str, Participant] = {}
    for pseudonym, group, files, samples in rows:
        if pseudonym.strip() and group.strip():
            listed = tuple(tuple(part.strip() for part in cell if part.strip()) for cell in (files, samples))
            seen.setdefault(pseudonym.strip(), Participant(pseudonym.strip(), group.strip(), *listed))
    lines = ["\t".join((p.pseudonym, p.consent_group, ";".join(p.files), ";".join(p.samples))) for p in seen.values()]
    assert parse("\n".join([HEADER, *lines]).encode()) == list(seen.values())


def test_the_bound_is_stated() -> None:
    assert participants.LARGEST == 64 << 20
