"""Does a planned use fit what the donors consented to?

The answer is *permitted*, *refused* or *a human must decide*, with a finding for every statement of the consent. A rule
that is not certain never says yes: the committee decides. The hierarchy DS ⊂ HMB ⊂ GRU ⊂ NRES and the modifiers are
GA4GH DUO's; NPOA, NPU and NCU are taken for what they say, not from the ontology's is-a links, which are wrong there.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Literal, TypeAlias

import msgspec

from valv.formats import duo

Verdict: TypeAlias = Literal["permitted", "refused", "human"]
Aim: TypeAlias = Literal["general", "health", "disease", "ancestry", "methods"]


class Purpose(msgspec.Struct, frozen=True, kw_only=True):
    """What the data are to be used for. `diseases`: MONDO or OMIM ids. The flags are the applicant's declarations;
    `country` (ISO 3166) and `institution` say where the work is done."""

    aim: Aim
    diseases: tuple[str, ...] = ()
    genetic: bool = False
    for_profit: bool = False
    commercial: bool = False
    clinical_care: bool = False
    will_publish: bool = False
    will_collaborate: bool = False
    will_return: bool = False
    ethics_approval: bool = False
    country: str = ""
    institution: str = ""
    project: str = ""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`statement`: the consent's term; `sentence`: what it says; `why`: the rule, in plain language."""

    statement: str
    sentence: str
    verdict: Verdict
    why: str


class Match(msgspec.Struct, frozen=True):
    verdict: Verdict
    findings: tuple[Finding, ...]


def match(
    consent: tuple[duo.Statement, ...],
    purpose: Purpose,
    *,
    starts: date,
    days: int,
    ancestors: Mapping[str, frozenset[str]] | None = None,
) -> Match:
    """Hold a purpose against a consent. `ancestors`: for each requested disease the terms that it descends from, where
    an ontology is at hand."""
    permissions = [s for s in consent if s.code in duo.PERMISSIONS]
    modifiers = [s for s in consent if s.code not in duo.PERMISSIONS]
    # Several permissions are alternatives: one that fits is enough.
    found = [_permission(s, purpose, ancestors or {}, permissions) for s in permissions]
    best = min(found, key=lambda f: _RANK[f.verdict]) if found else None
    findings = [best] if best and best.verdict == "permitted" else found
    verdicts: list[Verdict] = [best.verdict if best else "refused"]
    for code in dict.fromkeys(s.code for s in modifiers):
        # The same modifier with several values (two countries, say) gives alternatives too.
        group = [_modifier(s, purpose, starts, days) for s in modifiers if s.code == code]
        fits = min(group, key=lambda f: _RANK[f.verdict])
        findings.extend([fits] if fits.verdict == "permitted" else group)
        verdicts.append(fits.verdict)
    return Match(max(verdicts, key=lambda v: _RANK[v]), tuple(findings))


_RANK: dict[Verdict, int] = {"permitted": 0, "human": 1, "refused": 2}


def _permission(
    statement: duo.Statement, purpose: Purpose, ancestors: Mapping[str, frozenset[str]], all_: list[duo.Statement]
) -> Finding:
    aim = purpose.aim
    match statement.code:
        case duo.NRES:
            return _say(statement, "permitted", "any use is allowed")
        case duo.GRU:
            return _say(statement, "permitted", f"{_AIMS[aim]} is research, and any research is allowed")
        case duo.HMB:
            if aim in ("health", "disease"):
                return _say(statement, "permitted", f"{_AIMS[aim]} is biomedical research")
            if aim == "methods":
                return _say(statement, "human", "methods are covered only where they serve biomedical research")
            return _say(statement, "refused", f"{_AIMS[aim]} is not biomedical research")
        case duo.DS:
            return _disease(statement, purpose, ancestors, all_)
        case duo.POA:
            if aim == "ancestry":
                return _say(statement, "permitted", "ancestry research is what the donors agreed to")
            return _say(statement, "refused", f"{_AIMS[aim]} is not ancestry research")
        case _:
            return _say(statement, "human", "no rule for this term")


def _disease(
    statement: duo.Statement, purpose: Purpose, ancestors: Mapping[str, frozenset[str]], all_: list[duo.Statement]
) -> Finding:
    if purpose.aim == "methods":
        return _say(statement, "human", "methods are covered only where they serve research on this disease")
    if purpose.aim != "disease" or not purpose.diseases:
        return _say(statement, "refused", f"{_AIMS[purpose.aim]} goes beyond the named disease")
    agreed = {s.value for s in all_ if s.code == duo.DS}
    outside = [d for d in purpose.diseases if d not in agreed and not agreed & ancestors.get(d, frozenset())]
    if not outside:
        return _say(statement, "permitted", "every requested disease is the named one or a form of it")
    unknown = [d for d in outside if d not in ancestors]
    if unknown:
        return _say(statement, "human", f"whether {', '.join(unknown)} is a form of it is not known here")
    return _say(statement, "refused", f"{', '.join(outside)} is another disease")


def _modifier(statement: duo.Statement, purpose: Purpose, starts: date, days: int) -> Finding:
    value = statement.value
    match statement.short:
        case "NMDS":
            bad = purpose.aim == "methods"
            return _yes_no(statement, not bad, "the purpose is not methods", "the purpose is methods in general")
        case "GSO":
            return _yes_no(statement, purpose.genetic, "a genetic study is declared", "no genetic study is declared")
        case "NPU":
            return _yes_no(statement, not purpose.for_profit, "not for profit", "the organisation works for profit")
        case "NCU":
            return _yes_no(statement, not purpose.commercial, "not commercial", "the use is commercial")
        case "NPUNCU":
            fits = not (purpose.for_profit or purpose.commercial)
            return _yes_no(statement, fits, "neither for profit nor commercial", "for profit or commercial")
        case "PUB":
            return _yes_no(statement, purpose.will_publish, "publication is promised", "publication is not promised")
        case "COL":
            why = "a collaboration is declared; the committee must see the agreement"
            return (
                _say(statement, "human", why)
                if purpose.will_collaborate
                else _say(statement, "refused", "no collaboration with the study's investigators is declared")
            )
        case "IRB":
            why = "an ethics approval is declared; the committee must see it"
            return (
                _say(statement, "human", why)
                if purpose.ethics_approval
                else _say(statement, "refused", "no ethics approval is declared")
            )
        case "GS":
            fits = purpose.country.upper() == value.upper()
            return _yes_no(statement, fits, f"the work is done in {value}", f"the work is done outside {value}")
        case "MOR":
            return _yes_no(
                statement,
                starts >= date.fromisoformat(value),
                "the waiting time is over",
                f"use before {value} would have to wait",
            )
        case "TS":
            limit = int(value) * 365 / 12
            return _yes_no(statement, days <= limit, f"{days} days are within it", f"{days} days are more than that")
        case "IS":
            fits = purpose.institution.casefold() == value.casefold()
            return _yes_no(statement, fits, "the institution is the approved one", "it is another institution")
        case "PS":
            fits = purpose.project.casefold() == value.casefold()
            return _yes_no(statement, fits, "the project is the approved one", "it is another project")
        case "RTN":
            return _yes_no(statement, purpose.will_return, "returning results is promised", "return is not promised")
        case "CC":
            return _yes_no(statement, purpose.clinical_care, "clinical care is declared", "it is not clinical care")
        case "NPOA":
            return _yes_no(statement, purpose.aim != "ancestry", "not ancestry research", "it is ancestry research")
        case _:
            return _say(statement, "human", "the committee must judge this")


def _yes_no(statement: duo.Statement, fits: bool, yes: str, no: str) -> Finding:
    return _say(statement, "permitted" if fits else "refused", yes if fits else no)


def _say(statement: duo.Statement, verdict: Verdict, why: str) -> Finding:
    return Finding(statement=str(statement), sentence=statement.sentence, verdict=verdict, why=why)


_AIMS: dict[Aim, str] = {
    "general": "research in general",
    "health": "health or biomedical research",
    "disease": "research on a disease",
    "ancestry": "research on population origins",
    "methods": "development of methods",
}
