"""Identifiers: the cases of `vectors/identifiers`, and numbers made here by the rules of their countries."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.formats import identifiers

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "identifiers"
FINNISH = "0123456789ABCDEFHJKLMNPRSTUVWXY"
DATES = st.dates(date(1900, 1, 1), date(1999, 12, 31))


def cases() -> Iterator[Any]:
    for file in sorted(VECTORS.glob("*.json")):
        for case in json.loads(file.read_text("utf-8"))["cases"]:
            yield pytest.param(case, id=f"{file.stem}: {case['name']}")


@pytest.mark.parametrize("case", list(cases()))
def test_vectors(case: dict[str, Any]) -> None:
    assert sorted(identifiers.find(case["text"])) == sorted(case.get("found", []))


def test_there_are_enough_vectors() -> None:
    assert len(list(cases())) >= 60


# --- numbers made by the rules ---


def luhn(digits: str) -> str:
    total = 0
    for place, digit in enumerate(digits):
        value = int(digit) * (1 + (place + 1) % 2)
        total += value - 9 if value > 9 else value
    return str(-total % 10)


def modulo_11(digits: str, weights: tuple[int, ...]) -> str:
    """The digit that makes the sum divisible by 11, '' where it would be ten."""
    check = -sum(weight * int(digit) for weight, digit in zip(weights, digits, strict=True)) % 11
    return "" if check == 10 else str(check)


def norwegian(front: str) -> str:
    first = modulo_11(front, (3, 7, 6, 1, 8, 9, 4, 5, 2))
    second = modulo_11(front + first, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2)) if first else ""
    return front + first + second if second else ""


@given(DATES, st.integers(0, 999), st.sampled_from([0, 60]), st.sampled_from(["-", "+", "long", "twelve"]))
def test_every_swedish_number_is_found(born: date, serial: int, added: int, form: str) -> None:
    front = f"{born:%y%m}{born.day + added:02d}"
    last = f"{serial:03d}" + luhn(f"{front}{serial:03d}")
    century = "19" if form in ("long", "twelve") else ""
    number = century + front + {"-": "-", "+": "+", "long": "-", "twelve": ""}[form] + last
    kind = "Swedish identity number"
    assert kind in identifiers.find(f"x;{number};y")
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert kind not in identifiers.find(f"x;{wrong};y")


@given(DATES, st.integers(0, 499), st.sampled_from([(0, 0), (40, 0), (0, 40), (0, 80)]))
def test_every_norwegian_number_is_found(born: date, serial: int, added: tuple[int, int]) -> None:
    number = norwegian(f"{born.day + added[0]:02d}{born.month + added[1]:02d}{born:%y}{serial:03d}")
    if number:
        kind = "Norwegian identity number"
        assert kind in identifiers.find(number)
        assert kind not in identifiers.find(number[:-1] + str((int(number[-1]) + 1) % 10))


@given(DATES, st.integers(2, 999), st.sampled_from("-+AYXWVUBCDEF"))
def test_every_finnish_number_is_found(born: date, serial: int, separator: str) -> None:
    front = f"{born:%d%m%y}"
    place = int(f"{front}{serial:03d}") % 31
    number = f"{front}{separator}{serial:03d}"
    assert "Finnish identity number" in identifiers.find(f"({number}{FINNISH[place]})")
    assert "Finnish identity number" not in identifiers.find(f"({number}{FINNISH[(place + 1) % 31]})")


@given(DATES, st.integers(20, 99), st.sampled_from(["", "-"]))
def test_every_icelandic_number_is_found(born: date, serial: int, separator: str) -> None:
    front = f"{born:%d%m%y}"
    check = modulo_11(f"{front}{serial}", (3, 2, 7, 6, 5, 4, 3, 2))
    if check:
        kind = "Icelandic identity number"
        assert kind in identifiers.find(f"{front}{separator}{serial}{check}9")
        assert kind not in identifiers.find(f"{front}{separator}{serial}{(int(check) + 1) % 10}9")


@given(DATES, st.integers(0, 9999))
def test_every_danish_number_is_found(born: date, serial: int) -> None:
    assert "Danish identity number" in identifiers.find(f"CPR {born:%d%m%y}-{serial:04d}, seen")


@given(st.text(max_size=400))
def test_no_text_breaks_the_search(text: str) -> None:
    for kind in identifiers.find(text):
        assert kind
    identifiers.columns(text)


# --- false alarms ---


def test_variants_raise_no_alarm(tmp_path: Path) -> None:
    """Sites of a whole chromosome's length: positions, rs numbers, counts and frequencies."""
    draw = random.Random(22)
    for _ in range(20_000):
        position, rs, count = draw.randrange(1, 248_956_422), draw.randrange(1, 2_500_000_000), draw.randrange(5008)
        line = (
            f"chr{draw.randrange(1, 23)}\t{position}\trs{rs}\tA\tG\t{draw.random() * 100:.6f}\tPASS\tAC={count};"
            f"AF={count / 5008:.10f};AN=5008;END={position + count};DP={draw.randrange(10**6)}\tGT:DP:PL"
            f"\t0|1:{draw.randrange(99)}:0,{draw.randrange(10**5)},{draw.randrange(10**6)}"
        )
        assert identifiers.find(line) == []


def test_base_qualities_raise_no_alarm() -> None:
    draw = random.Random(33)
    letters = [chr(33 + quality) for quality in range(43)]
    for _ in range(20_000):
        line = "".join(draw.choices(letters, k=150))
        assert "mail address" not in identifiers.find(line)


def test_real_variants_raise_no_alarm(shared_data: Path) -> None:
    """Records of a real VCF: nobody is named in them, so that each finding is a false alarm."""
    looked = 0
    for path in sorted((shared_data / "genomes").rglob("*.vcf.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(itertools.islice(lines, 700), 1):
                looked += 1
                assert identifiers.find(line) == [], f"{path.name} line {number}"
    if not looked:
        pytest.skip("the folder of real data has no VCF")


# --- columns ---


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("id\tName\tdiagnosis", ["Name"]),
        ("id;personnummer;age", ["personnummer"]),
        ("id,First Name,last_name", ["First Name", "last_name"]),
        ("#sample\temail", ["email"]),
        ("id\tFörnamn\tHenkilötunnus\tfødselsnummer", ["Fornamn", "Henkilotunnus", "fodselsnummer"]),
        ('"id","phone"', ['"phone"']),
        ("name", ["name"]),
        ("#CHROM\tPOS\tID\tREF\tALT", []),
        ("filename\tgene_name\tsample", []),
        ("pseudonym\tconsent_group\tfiles\tsamples", []),
    ],
)
def test_columns(line: str, found: list[str]) -> None:
    assert identifiers.columns(line) == found
