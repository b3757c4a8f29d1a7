"""The Data Use Ontology (GA4GH DUO, release 2021-02-23): its terms, and how they are written down here.

A statement is a term with an optional parameter: `DUO:0000007=MONDO:0005147` (disease specific research, type 1
diabetes), `DUO:0000022=SE` (geographical restriction), `DUO:0000042` (general research use).
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final

import msgspec

from valv.errors import FormatFault

NRES: Final = "DUO:0000004"
GRU: Final = "DUO:0000042"
HMB: Final = "DUO:0000006"
DS: Final = "DUO:0000007"
POA: Final = "DUO:0000011"
METHODS: Final = "DUO:0000031"

PERMISSIONS: Final = (NRES, GRU, HMB, DS, POA)

TERMS: Final[dict[str, tuple[str, str]]] = {
    "DUO:0000004": ("NRES", "no restriction"),
    "DUO:0000042": ("GRU", "general research use"),
    "DUO:0000006": ("HMB", "health, medical or biomedical research"),
    "DUO:0000007": ("DS", "research on a named disease"),
    "DUO:0000011": ("POA", "population origins or ancestry research only"),
    "DUO:0000012": ("RS", "research of a stated type only"),
    "DUO:0000015": ("NMDS", "no general methods research"),
    "DUO:0000016": ("GSO", "genetic studies only"),
    "DUO:0000018": ("NPUNCU", "not for profit, and non-commercial use only"),
    "DUO:0000019": ("PUB", "results must be published"),
    "DUO:0000020": ("COL", "collaboration with the study's investigators required"),
    "DUO:0000021": ("IRB", "ethics approval required"),
    "DUO:0000022": ("GS", "use only within a stated region"),
    "DUO:0000024": ("MOR", "no publication before a stated date"),
    "DUO:0000025": ("TS", "use for a limited time (months)"),
    "DUO:0000026": ("US", "use by approved users only"),
    "DUO:0000027": ("PS", "use within an approved project only"),
    "DUO:0000028": ("IS", "use within an approved institution only"),
    "DUO:0000029": ("RTN", "results must be returned"),
    "DUO:0000031": ("METHODS", "development of methods"),
    "DUO:0000043": ("CC", "clinical care use"),
    "DUO:0000044": ("NPOA", "no population origins or ancestry research"),
    "DUO:0000045": ("NPU", "not-for-profit organisations only"),
    "DUO:0000046": ("NCU", "non-commercial use only"),
}
WITH_PARAMETER: Final = {
    "DUO:0000007": "a disease, for example MONDO:0005147",
    "DUO:0000012": "the type of research",
    "DUO:0000022": "a country, for example SE",
    "DUO:0000024": "a date, for example 2027-01-31",
    "DUO:0000025": "a number of months",
    "DUO:0000027": "a project",
    "DUO:0000028": "an institution",
}
_SHAPE = re.compile(r"DUO:\d{7}")
_BY_SHORT = {short: code for code, (short, _) in TERMS.items()}


class Statement(msgspec.Struct, frozen=True):
    """One DUO term with its parameter (empty where the term takes none)."""

    code: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.code}={self.value}" if self.value else self.code

    @property
    def short(self) -> str:
        return TERMS[self.code][0]

    @property
    def sentence(self) -> str:
        """In plain words, for applicants and committees."""
        label = TERMS[self.code][1]
        return f"{label}: {self.value}" if self.value else label


def parse(text: str) -> Statement:
    """Read `DUO:0000007=MONDO:0005147`, or the short form `DS=MONDO:0005147`. Raises `FormatFault`."""
    code, _, value = text.strip().partition("=")
    code = _BY_SHORT.get(code.upper(), code)
    if code not in TERMS:
        why = "is not a term of DUO that can be used" if _SHAPE.fullmatch(code) else "is not a DUO term"
        raise FormatFault(f"{text!r} {why}", "write for example DUO:0000042 or DS=MONDO:0005147")
    value = value.strip()
    if code in WITH_PARAMETER and not value:
        raise FormatFault(f"{code} needs {WITH_PARAMETER[code]}", f"write {code}=…")
    if code not in WITH_PARAMETER and value:
        raise FormatFault(f"{code} takes no parameter, but has {value!r}", f"write {code}")
    if code == "DUO:0000025" and not value.isdecimal():
        raise FormatFault(f"{text!r}: months must be a number", "write for example TS=24")
    if code == "DUO:0000024" and not _is_date(value):
        raise FormatFault(f"{text!r}: not a date", "write for example MOR=2027-01-31")
    return Statement(code, value)


def _is_date(value: str) -> bool:
    try:
        return date.fromisoformat(value).isoformat() == value
    except ValueError:
        return False


def code(text: str) -> str:
    """The code of a term given by code or short form, without its parameter."""
    wanted = _BY_SHORT.get(text.strip().upper(), text.strip())
    if wanted not in TERMS:
        raise FormatFault(f"{text!r} is not a DUO term", "write for example GRU or DUO:0000042")
    return wanted


def parse_consent(texts: tuple[str, ...] | list[str]) -> tuple[Statement, ...]:
    """A dataset's consent: at least one permission (NRES, GRU, HMB, DS or POA), any number of modifiers."""
    statements = tuple(dict.fromkeys(parse(text) for text in texts))
    if not any(statement.code in PERMISSIONS for statement in statements):
        raise FormatFault("the consent names no permitted use", "add one of NRES, GRU, HMB, DS=<disease>, POA")
    return statements
