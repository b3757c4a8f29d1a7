"""Does a planned use fit what the donors consented to?

The answer is *permitted*, *refused* or *a human must decide*, with a finding for every statement of the consent. A rule
that is not certain never says yes: the committee decides. The hierarchy DS ⊂ HMB ⊂ GRU ⊂ NRES and the modifiers are
GA4GH DUO's; NPOA, NPU and NCU are taken for what they say, not from the ontology's is-a links, which are wrong there.
What the applicant did not declare counts as not so. Every rule has its cases in `vectors/duo/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Final, Literal, TypeAlias

import msgspec

from valv.formats import duo

Verdict: TypeAlias = Literal["permitted", "refused", "human"]
Aim: TypeAlias = Literal["general", "health", "disease", "ancestry", "methods"]


class Purpose(msgspec.Struct, frozen=True, kw_only=True):
    """What the data are to be used for. `diseases`: MONDO or OMIM ids. The flags are the applicant's declarations;
    `for_profit` (the organisation) and `commercial` (the use) are None where nothing was declared. `country` (ISO 3166)
    and `institution` say where the work is done."""

    aim: Aim
    diseases: tuple[str, ...] = ()
    genetic: bool = False
    for_profit: bool | None = None
    commercial: bool | None = None
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
    lineage = {_term(d): frozenset(map(_term, above)) for d, above in (ancestors or {}).items()}
    findings, verdict = _permissions([_permission(s, purpose, lineage, permissions) for s in permissions])
    verdicts = [verdict]
    if purpose.clinical_care and verdict == "permitted":
        care = _care(permissions, modifiers)
        findings.extend(care)
        verdicts.extend(finding.verdict for finding in care)
    for code in dict.fromkeys(s.code for s in modifiers):
        group = [_modifier(s, purpose, starts, days) for s in modifiers if s.code == code]
        if code in _ALTERNATIVES and any(finding.verdict == "permitted" for finding in group):
            group = [finding for finding in group if finding.verdict == "permitted"]
        findings.extend(group)
        pick = min if code in _ALTERNATIVES else max
        verdicts.append(pick((finding.verdict for finding in group), key=_rank))
    return Match(max(verdicts, key=_rank), tuple(findings))


def match_all(consents: Sequence[tuple[duo.Statement, ...]], purpose: Purpose, *, starts: date, days: int) -> Match:
    """Hold a purpose against the consents of several groups of donors: it must fit each of them. What several say the
    same is said once."""
    matches = [match(one, purpose, starts=starts, days=days) for one in consents]
    verdicts: list[Verdict] = [found.verdict for found in matches] or ["refused"]
    findings = dict.fromkeys(finding for found in matches for finding in found.findings)
    return Match(max(verdicts, key=_rank), tuple(findings))


def fits_less(before: Match, after: Match) -> bool:
    """Whether a use that was granted with the match `before` needs a new decision with the match `after`: a finding
    that nobody has decided on speaks against it."""
    known = {(finding.statement, finding.verdict) for finding in before.findings}
    open_ = [
        finding
        for finding in after.findings
        if finding.verdict != "permitted" and (finding.statement, finding.verdict) not in known
    ]
    return after.verdict != "permitted" and (bool(open_) or _rank(after.verdict) > _rank(before.verdict))


_RANK: Final[dict[Verdict, int]] = {"permitted": 0, "human": 1, "refused": 2}
_ALTERNATIVES: Final = ("DUO:0000012", "DUO:0000022", "DUO:0000027", "DUO:0000028")
"""RS, GS, PS, IS: with several values (two countries, say) one that fits is enough. Of two time limits both hold."""


def _rank(verdict: Verdict) -> int:
    return _RANK[verdict]


def _permissions(found: list[Finding]) -> tuple[list[Finding], Verdict]:
    """Where permissions disagree, whether the narrower one was meant to limit the wider, or to add to it, only people
    can say. Several diseases do not disagree: each finding speaks for all of them."""
    if not found:
        return [], "refused"
    verdicts = {finding.verdict for finding in found}
    if len(verdicts) == 1:
        return found, found[0].verdict
    return found, "human"


def _permission(
    statement: duo.Statement, purpose: Purpose, lineage: Mapping[str, frozenset[str]], all_: list[duo.Statement]
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
            return _disease(statement, purpose, lineage, all_)
        case duo.POA:
            if aim == "ancestry":
                return _say(statement, "permitted", "ancestry research is what the donors agreed to")
            if aim == "methods":
                return _say(statement, "human", "methods are covered only where they serve ancestry research")
            return _say(statement, "refused", f"{_AIMS[aim]} is not ancestry research")
        case _:
            return _say(statement, "human", "no rule for this term")


def _disease(
    statement: duo.Statement, purpose: Purpose, lineage: Mapping[str, frozenset[str]], all_: list[duo.Statement]
) -> Finding:
    if purpose.aim == "methods":
        return _say(statement, "human", "methods are covered only where they serve research on this disease")
    if purpose.aim != "disease":
        return _say(statement, "refused", f"{_AIMS[purpose.aim]} goes beyond the named disease")
    if not purpose.diseases:
        return _say(statement, "refused", "the purpose names no disease")
    agreed = {_term(s.value) for s in all_ if s.code == duo.DS}
    outside = [d for d in map(_term, purpose.diseases) if d not in agreed and not agreed & lineage.get(d, frozenset())]
    if not outside:
        return _say(statement, "permitted", "every requested disease is an agreed one or a form of it")
    unknown = [d for d in outside if d not in lineage or any(_vocabulary(a) != _vocabulary(d) for a in agreed)]
    if len(unknown) == len(outside):
        return _say(statement, "human", f"whether {', '.join(unknown)} is a form of it is not known here")
    others = [d for d in outside if d not in unknown]
    return _say(statement, "refused", f"{', '.join(others)} is another disease")


def _term(disease: str) -> str:
    return disease.strip().upper()


def _vocabulary(disease: str) -> str:
    """`MONDO:0005147` → `MONDO`. Terms of two vocabularies may mean the same."""
    return disease.partition(":")[0]


def _care(permissions: list[duo.Statement], modifiers: list[duo.Statement]) -> list[Finding]:
    """Clinical care is more than research: 'no restriction' and CC cover it, nothing else does for certain."""
    if any(s.code == duo.NRES for s in permissions) or any(s.short == "CC" for s in modifiers):
        return []
    return [_say(s, "human", "clinical care is declared, and the consent speaks of research only") for s in permissions]


def _modifier(statement: duo.Statement, purpose: Purpose, starts: date, days: int) -> Finding:
    value = statement.value
    match statement.short:
        case "NMDS":
            return _excluded(statement, purpose, "methods", "development of methods")
        case "NPOA":
            return _excluded(statement, purpose, "ancestry", "ancestry research")
        case "GSO":
            return _yes_no(statement, purpose.genetic, "a genetic study is declared", "no genetic study is declared")
        case "NPU":
            return _denied(statement, (purpose.for_profit,), "an organisation that works for profit")
        case "NCU":
            return _denied(statement, (purpose.commercial,), "commercial use")
        case "NPUNCU":
            return _denied(statement, (purpose.for_profit, purpose.commercial), "work for profit or commercial use")
        case "PUB":
            return _yes_no(statement, purpose.will_publish, "publication is promised", "publication is not promised")
        case "RTN":
            return _yes_no(statement, purpose.will_return, "returning results is promised", "return is not promised")
        case "COL":
            why = "a collaboration is declared; the committee must see the agreement"
            no = "no collaboration with the study's investigators is declared"
            return _say(statement, "human", why) if purpose.will_collaborate else _say(statement, "refused", no)
        case "IRB":
            why = "an ethics approval is declared; the committee must see it"
            no = "no ethics approval is declared"
            return _say(statement, "human", why) if purpose.ethics_approval else _say(statement, "refused", no)
        case "CC":
            return _say(statement, "permitted", "clinical care is allowed besides the permitted research")
        case "GS":
            return _region(statement, purpose.country)
        case "MOR":
            return _moratorium(statement, starts)
        case "TS":
            limit = int(value) * 365 / 12
            return _yes_no(statement, days <= limit, f"{days} days are within it", f"{days} days are more than that")
        case "IS":
            return _named(statement, purpose.institution, "institution")
        case "PS":
            return _named(statement, purpose.project, "project")
        case _:
            return _say(statement, "human", "the committee must judge this")


def _excluded(statement: duo.Statement, purpose: Purpose, aim: Aim, what: str) -> Finding:
    if purpose.aim == aim:
        return _say(statement, "refused", f"the purpose is {what}")
    if purpose.aim == "general":
        return _say(statement, "human", f"research in general may include {what}")
    return _say(statement, "permitted", f"the purpose is not {what}")


def _denied(statement: duo.Statement, declared: tuple[bool | None, ...], what: str) -> Finding:
    if any(declared):
        return _say(statement, "refused", f"{what} is declared")
    if None in declared:
        return _say(statement, "refused", f"that it is not {what} was not declared")
    return _say(statement, "permitted", f"not {what}, as declared")


def _region(statement: duo.Statement, country: str) -> Finding:
    region, place = statement.value.strip().upper(), country.strip().upper()
    if not place:
        return _say(statement, "refused", "the place of work is not named")
    if region == place:
        return _say(statement, "permitted", f"the work is done in {statement.value}")
    if len(region) == 2 and region.isalpha() and region not in ("EU", "UK"):
        return _say(statement, "refused", f"the work is done outside {statement.value}")
    return _say(statement, "human", f"whether {country} lies within {statement.value} is not known here")


def _moratorium(statement: duo.Statement, starts: date) -> Finding:
    """The work may begin before; it is the publication that waits, and that is a promise nobody can compute."""
    try:
        over = starts >= date.fromisoformat(statement.value)
    except ValueError:
        return _say(statement, "human", f"{statement.value!r} is not a date")
    if over:
        return _say(statement, "permitted", "the waiting time is over")
    return _say(statement, "human", f"nothing may be published before {statement.value}; agree it with the applicant")


def _named(statement: duo.Statement, declared: str, what: str) -> Finding:
    if not declared.strip():
        return _say(statement, "refused", f"the {what} is not named")
    if declared.strip().casefold() == statement.value.strip().casefold():
        return _say(statement, "permitted", f"the {what} is the approved one")
    return _say(statement, "human", f"the {what} is named {declared!r}; the committee must say whether it is the same")


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
