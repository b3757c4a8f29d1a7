"""Patterns by which a person can be recognised: the national identity numbers of the Nordic countries with their check
digits, addresses of mail, telephone numbers, and column names that announce names.

Not found, because too much else looks the same: national numbers of ten digits without a separator (the Icelandic one
has a check digit that tells), telephone numbers without '+' and country code, names of persons.

Uses the standard library only: the scan carries this text into a sandbox where nothing else is installed.
"""

from __future__ import annotations

import re

BEFORE = r"(?<![\w.+-])"
AFTER = r"(?![\w+-]|\.\d)"
"""A number stands alone: not in a word, a decimal number, a version, a UID or a UUID; a sentence may end behind it."""

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{2,63}){1,4}")
PHONE = re.compile(BEFORE + r"\+(?:354|358|4[567])[ -]?\d(?:[ -]?\d){6,9}" + AFTER)
SWEDISH = re.compile(
    BEFORE + r"(?:(?:19|20)?(\d{2})(\d{2})(\d{2})[-+](\d{4})|(?:19|20)(\d{2})(\d{2})(\d{2})(\d{4}))" + AFTER
)
NORWEGIAN = re.compile(BEFORE + r"(\d{2})(\d{2})(\d{2})[ ]?(\d{5})" + AFTER)
DANISH = re.compile(BEFORE + r"(\d{2})(\d{2})(\d{2})-(\d{4})" + AFTER)
FINNISH = re.compile(BEFORE + r"(\d{2})(\d{2})(\d{2})([-+A-FU-Y])(\d{3})([0-9A-FHJ-NPR-Y])" + AFTER)
ICELANDIC = re.compile(BEFORE + r"(\d{2})(\d{2})(\d{2})-?(\d{4})" + AFTER)
REGION = re.compile(r"(?:\d|\b(?:chr|Chr)?(?:X|Y|MT|M|W|Z))\Z")
"""The end of a sequence's name, before the ':' of an interval such as chr1:120312-124500."""
COLUMN = re.compile(
    r"^[\"']?(?:(?:first|last|family|given|full|patient|sur)[ _-]?name|name|namn|navn|nimi|fornamn|efternamn|fornavn"
    r"|etternavn|etunimi|sukunimi|personnummer|personnumer|fodselsnummer|cpr|cpr[ _-]?nr|hetu|henkilotunnus|kennitala"
    r"|ssn|mrn|address|adress|adresse|osoite|phone|telefon|email|e-mail|birth[ _-]?date|date[ _-]?of[ _-]?birth)"
    r"[\"']?$",
    re.IGNORECASE,
)
FINNISH_CHECKS = "0123456789ABCDEFHJKLMNPRSTUVWXY"
LETTERS = str.maketrans(
    {**dict.fromkeys("‐‑‒–—−", "-"), "å": "a", "ä": "a", "ö": "o", "ø": "o", "æ": "a", "Å": "A", "Ä": "A"}
    | {"Ö": "O", "Ø": "O", "Æ": "A", "\N{NO-BREAK SPACE}": " "}
)
"""Dashes that a word processor makes of '-', and Nordic letters as `COLUMN` spells them."""
LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def find(line: str) -> list[str]:
    """The kinds of identifiers in one line of text, each named once."""
    line = line.translate(LETTERS)
    found = []
    if "@" in line and any(_mail(match) for match in EMAIL.finditer(line)):
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
        if any(holds(match) and not _interval(line, match.start()) for match in pattern.finditer(line)):
            found.append(kind)
    return found


def columns(line: str) -> list[str]:
    """The column names of a table's first line that announce personal details."""
    line = line.translate(LETTERS)
    for separator in ("\t", ";", ","):
        cells = line.lstrip("#").split(separator)
        if len(cells) > 1:
            return [cell.strip() for cell in cells if COLUMN.match(cell.strip())]
    return [line.strip()] if COLUMN.match(line.strip()) else []


def _interval(line: str, start: int) -> bool:
    """Whether a number is the beginning of an interval on a sequence."""
    return start > 0 and line[start - 1] == ":" and REGION.search(line[max(0, start - 20) : start - 1]) is not None


def _mail(match: re.Match[str]) -> bool:
    """Base qualities of a sequencer look like addresses, but have no character above 'K' (a quality of 42)."""
    last = match[0].rpartition(".")[2]
    return last.isalpha() and any(letter > "K" and letter != "_" for letter in match[0])


def _date(day: int, month: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= LONGEST_MONTH[month - 1]


def _weighed(digits: list[int], weights: tuple[int, ...]) -> bool:
    return sum(weight * digit for weight, digit in zip(weights, digits, strict=False)) % 11 == 0


def _swedish(match: re.Match[str]) -> bool:
    """Luhn over the ten digits; a coordination number has 60 added to its day."""
    year, month, day, last = match.groups()[:4] if match[1] else match.groups()[4:]
    total = 0
    for place, digit in enumerate(year + month + day + last):
        value = int(digit) * (2 - place % 2)
        total += value // 10 + value % 10
    return _date(int(day) - 60 if int(day) > 60 else int(day), int(month)) and total % 10 == 0


def _norwegian(match: re.Match[str]) -> bool:
    """Two digits modulo 11; a D-number has 40 added to its day, a test or help number 40 or 80 to its month."""
    digits = [int(digit) for digit in "".join(match.groups())]
    day, month = int(match[1]), int(match[2])
    return (
        _date(day - 40 if day > 40 else day, month % 40)
        and _weighed(digits, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1))
        and _weighed(digits, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1))
    )


def _danish(match: re.Match[str]) -> bool:
    """A date and four digits; the old check modulo 11 holds no longer for all numbers. A replacement number has 60
    added to its day."""
    day = int(match[1])
    return _date(day - 60 if day > 60 else day, int(match[2]))


def _finnish(match: re.Match[str]) -> bool:
    """A check character modulo 31; the numbers of a day begin at 002."""
    number = int(match[1] + match[2] + match[3] + match[5])
    born = _date(int(match[1]), int(match[2]))
    return born and int(match[5]) >= 2 and FINNISH_CHECKS[number % 31] == match[6]


def _icelandic(match: re.Match[str]) -> bool:
    """The ninth digit checks the first eight, modulo 11; the tenth is the century."""
    digits = [int(digit) for digit in "".join(match.groups())]
    day = int(match[1])
    born = _date(day - 40 if day > 40 else day, int(match[2]))
    return born and digits[9] in (0, 8, 9) and _weighed(digits, (3, 2, 7, 6, 5, 4, 3, 2, 1))
