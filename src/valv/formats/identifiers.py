"""Patterns by which a person can be recognised: the national identity numbers of the Nordic countries with their check
digits, addresses of mail, telephone numbers, and column names that announce names.

Uses the standard library only: the scan carries this text into a sandbox where nothing else is installed.
"""

from __future__ import annotations

import re

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}")
PHONE = re.compile(r"(?<![\w.+-])\+(?:354|358|4[567])[ -]?\d(?:[ -]?\d){6,9}(?![\w.])")
SWEDISH = re.compile(
    r"(?<![\w.:-])(?:19|20)?(\d{2})(\d{2})(\d{2})([-+])(\d{4})(?![\w.-])"
    r"|(?<![\w.:-])(?:19|20)(\d{2})(\d{2})(\d{2})()(\d{4})(?![\w.-])"
)
NORWEGIAN = re.compile(r"(?<![\w.:-])(\d{2})(\d{2})(\d{2})[ ]?(\d{5})(?![\w.-])")
DANISH = re.compile(r"(?<![\w.:-])(\d{2})(\d{2})(\d{2})-(\d{4})(?![\w.-])")
FINNISH = re.compile(r"(?<![\w.:-])(\d{2})(\d{2})(\d{2})([-+A-FU-Y])(\d{3})([0-9A-FHJ-NPR-Y])(?![\w.-])")
ICELANDIC = re.compile(r"(?<![\w.:-])(\d{2})(\d{2})(\d{2})-?(\d{4})(?![\w.-])")
COLUMN = re.compile(
    r"^[\"']?(?:(?:first|last|family|given|full|patient|sur)[ _-]?name|name|namn|navn|nimi|fornamn|efternamn|fornavn"
    r"|etternavn|etunimi|sukunimi|personnummer|personnumer|fodselsnummer|cpr|cpr[ _-]?nr|hetu|henkilotunnus|kennitala"
    r"|ssn|mrn|address|adress|adresse|osoite|phone|telefon|email|e-mail|birth[ _-]?date|date[ _-]?of[ _-]?birth)[\"']?$",
    re.IGNORECASE,
)
FINNISH_CHECKS = "0123456789ABCDEFHJKLMNPRSTUVWXY"


def find(line: str) -> list[str]:
    """The kinds of identifiers in one line of text, each named once."""
    found = []
    if "@" in line and EMAIL.search(line):
        found.append("mail address")
    if "+" in line and PHONE.search(line):
        found.append("telephone number")
    for kind, pattern, holds in (
        ("Swedish identity number", SWEDISH, _swedish),
        ("Norwegian identity number", NORWEGIAN, _norwegian),
        ("Danish identity number", DANISH, _danish),
        ("Finnish identity number", FINNISH, _finnish),
        ("Icelandic identity number", ICELANDIC, _icelandic),
    ):
        if any(holds(match) for match in pattern.finditer(line)):
            found.append(kind)
    return found


def columns(line: str) -> list[str]:
    """The column names of a table's first line that announce personal details."""
    for separator in ("\t", ";", ","):
        cells = line.lstrip("#").split(separator)
        if len(cells) > 1:
            return [cell.strip() for cell in cells if COLUMN.match(cell.strip())]
    return [line.strip()] if COLUMN.match(line.strip()) else []


def _date(day: str, month: str) -> bool:
    return 1 <= int(day) <= 31 and 1 <= int(month) <= 12


def _swedish(match: re.Match[str]) -> bool:
    """Luhn over the ten digits; a coordination number has 60 added to its day."""
    year, month, day, _, last = (part or "" for part in (match.groups()[:5] if match[1] else match.groups()[5:]))
    born = int(day) - 60 if int(day) > 60 else int(day)
    total = 0
    for place, digit in enumerate(year + month + day + last):
        value = int(digit) * (2 - place % 2)
        total += value // 10 + value % 10
    return _date(str(born), month) and total % 10 == 0


def _norwegian(match: re.Match[str]) -> bool:
    """Two digits modulo 11; a D-number has 4 added to its first digit."""
    digits = [int(digit) for digit in "".join(match.groups())]
    day, month = int(match[1]), int(match[2])
    first = (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)
    second = (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)
    return (
        _date(str(day - 40 if day > 40 else day), str(month % 40))
        and sum(weight * digit for weight, digit in zip(first, digits)) % 11 == 0  # noqa: B905 - one shorter
        and sum(weight * digit for weight, digit in zip(second, digits)) % 11 == 0  # noqa: B905
    )


def _danish(match: re.Match[str]) -> bool:
    """A date and four digits; the old check modulo 11 holds no longer for all numbers."""
    return _date(match[1], match[2])


def _finnish(match: re.Match[str]) -> bool:
    number = int(match[1] + match[2] + match[3] + match[5])
    return _date(match[1], match[2]) and FINNISH_CHECKS[number % 31] == match[6]


def _icelandic(match: re.Match[str]) -> bool:
    digits = [int(digit) for digit in "".join(match.groups())]
    weights = (3, 2, 7, 6, 5, 4, 3, 2, 1)
    day = digits[0] * 10 + digits[1]
    return (
        _date(str(day - 40 if day > 40 else day), match[2])
        and digits[9] in (0, 8, 9)
        and sum(weight * digit for weight, digit in zip(weights, digits)) % 11 == 0  # noqa: B905
    )
