"""Placement: how many copies of a dataset's files there are to be, and in which stores.

A rule is one line, its clauses separated by commas; an empty one is `copies = 1`:

    copies = 2, tape after 90 d, only in NO, in archive, not in main

`plan` says what is to be done next for one file. It makes copies before it drops any, and drops none before all that
are wanted are whole and have been so for a while: who looked for a copy just before they came has then found another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

import msgspec

from valv.errors import Refusal

State: TypeAlias = Literal["coming", "whole", "suspect", "bad", "going"]
"""Of a copy. `coming`: being written, a crash may have left anything; `whole`; `suspect`: a read failed or did not
hold; `bad`: it does not hold; `going`: being deleted."""
EXAMPLE: Final = "copies = 2, tape after 90 d, only in NO"
LONGEST: Final = 500
MOST_COPIES: Final = 9
MOST_DAYS: Final = 36_500
MOST_NAMES: Final = 20
STORE_NAME: Final = r"[a-z][a-z0-9-]{0,30}"
"""A regular expression of the names of stores, as the configuration has them."""
SETTLE: Final = timedelta(seconds=5)
"""How long all wanted copies have been whole before another one is dropped."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """`copies`: how many; `tape_after`: days without use after which stores with tapes are taken first, None for never;
    `only_in`: ISO 3166 codes of the countries, none for any; `inside`: stores that must have a copy; `outside`: stores
    that must not."""

    copies: int = 1
    tape_after: int | None = None
    only_in: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A store as one file sees it. `allowed`: the policies let the file's data rest there; `room`: the file fits in;
    `away`: it does not answer; `distance`: 0 is the nearest."""

    name: str
    country: str = ""
    unit: str = ""
    tape: bool = False
    distance: int = 0
    allowed: bool = True
    room: bool = True
    away: bool = False


class Copy(msgspec.Struct, frozen=True):
    """What a store has of the file. `since`: when it came to this state."""

    state: State
    since: datetime


class Make(msgspec.Struct, frozen=True):
    """Copy the file into `store`, from the copy in `source`."""

    store: str
    source: str


class Drop(msgspec.Struct, frozen=True):
    store: str


Step: TypeAlias = Make | Drop


class Plan(msgspec.Struct, frozen=True):
    """`steps`: what can be done now, in this order; `lacks`: why the rule cannot be satisfied now, in words, '' where
    nothing stands against it; `wait`: until when there is nothing to do but to wait, None where there is no need."""

    steps: tuple[Step, ...]
    lacks: str = ""
    wait: datetime | None = None


# --- the language ---


def parse(text: str) -> Rule | Refusal:
    """The rule that a line says, or the refusal `rule_wrong` that says which clause is at fault."""
    if len(text) > LONGEST:
        return Refusal("rule_wrong", f"it has {len(text)} letters; at most {LONGEST}")
    found: dict[str, object] = {}
    for clause in filter(None, (" ".join(part.split()) for part in text.split(","))):
        for pattern, read in _CLAUSES:
            match = pattern.fullmatch(clause)
            if match is None:
                continue
            read_clause = read(match[1])
            if isinstance(read_clause, Refusal):
                return read_clause
            name, value = read_clause
            if name in found:
                return Refusal("rule_wrong", f"{clause[:60]!r}: this was said before; say it once")
            found[name] = value
            break
        else:
            return Refusal(
                "rule_wrong",
                f"{clause[:60]!r} is not understood; there are 'copies = N', 'tape after N d', 'only in COUNTRY',"
                " 'in STORE' and 'not in STORE'",
            )
    rule = msgspec.convert(found, Rule)
    both = sorted(set(rule.inside) & set(rule.outside))
    if both:
        return Refusal("rule_wrong", f"'in {both[0]}' and 'not in {both[0]}' contradict each other")
    return rule


def write(rule: Rule) -> str:
    """The rule as one line, which `parse` reads back to the same."""
    parts = [f"copies = {rule.copies}"]
    if rule.tape_after is not None:
        parts.append(f"tape after {rule.tape_after} d")
    for word, names in (("only in", rule.only_in), ("in", rule.inside), ("not in", rule.outside)):
        if names:
            parts.append(f"{word} {' '.join(names)}")
    return ", ".join(parts)


Read: TypeAlias = Callable[[str], "tuple[str, object] | Refusal"]


def _copies(text: str) -> tuple[str, object] | Refusal:
    if not 1 <= int(text) <= MOST_COPIES:
        return Refusal("rule_wrong", f"'copies = {int(text)}': from 1 to {MOST_COPIES}")
    return "copies", int(text)


def _days(text: str) -> tuple[str, object] | Refusal:
    if int(text) > MOST_DAYS:
        return Refusal("rule_wrong", f"'tape after {int(text)} d': at most {MOST_DAYS} days")
    return "tape_after", int(text)


def _names(field: str, *, country: bool = False) -> Read:
    wanted = re.compile(r"[A-Z]{2}" if country else STORE_NAME)

    def read(text: str) -> tuple[str, object] | Refusal:
        words = [word for word in text.split() if word.lower() not in ("or", "and")]
        names = tuple(dict.fromkeys(word.upper() if country else word for word in words))
        wrong = next((name for name in names if not wanted.fullmatch(name)), None)
        if wrong is not None:
            what = "the two letters of a country" if country else "the name of a store"
            return Refusal("rule_wrong", f"{wrong[:60]!r} is not {what}")
        if not 0 < len(names) <= MOST_NAMES:
            return Refusal("rule_wrong", f"from 1 to {MOST_NAMES} names, not {len(names)}")
        return field, names

    return read


_CLAUSES: Final[tuple[tuple[re.Pattern[str], Read], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE | re.ASCII), read)
    for pattern, read in (
        (r"copies ?= ?([0-9]{1,6})", _copies),
        (r"tape after ([0-9]{1,6}) ?d(?:ays?)?", _days),
        (r"only in (.+)", _names("only_in", country=True)),
        (r"in (.+)", _names("inside")),
        (r"not in (.+)", _names("outside")),
    )
)


def moved(rule: Rule, source: str, target: str) -> Rule:
    """The rule after a move: a copy in `target`, and none in `source`."""
    inside = tuple(name for name in rule.inside if name not in (source, target))
    outside = tuple(name for name in rule.outside if name not in (source, target))
    return msgspec.structs.replace(rule, inside=(*inside, target), outside=(*outside, source))


# --- what is to be done ---


def cold(rule: Rule, used: datetime, now: datetime) -> bool:
    """Whether data that were last used then are for tapes now."""
    return rule.tape_after is not None and used + timedelta(days=rule.tape_after) <= now


def fits(rule: Rule, store: StoreFacts) -> bool:
    """Whether rule and policies let a file rest in this store."""
    return store.allowed and store.name not in rule.outside and (not rule.only_in or store.country in rule.only_in)


def chosen(
    rule: Rule, stores: Sequence[StoreFacts], copies: Mapping[str, Copy], *, tape: bool
) -> tuple[list[StoreFacts], str]:
    """The stores that are to have a copy, and why these are fewer than the rule asks for ('' where they are not).

    Those that the rule names come first, then those of the kind that is wanted (`tape` or disk), those that have a copy
    already, those with room that answer, the nearest.
    """
    fitting = [store for store in stores if fits(rule, store)]

    def rank(store: StoreFacts) -> tuple[object, ...]:
        held = copies.get(store.name)
        return (
            store.name not in rule.inside,
            store.tape != tape,
            held is None or held.state == "going",
            store.away or not store.room,
            store.distance,
            store.name,
        )

    fitting.sort(key=rank)
    named = {store.name for store in fitting} & set(rule.inside)
    missing = [name for name in rule.inside if name not in named]
    wanted = fitting[: max(rule.copies, len(named))]
    if missing:
        return wanted, f"no copy may rest in {', '.join(missing)}, where the rule wants one"
    if len(wanted) < rule.copies:
        words = {0: "no store", 1: "only one store"}.get(len(fitting), f"only {len(fitting)} stores")
        return (
            wanted,
            f"{rule.copies} {'copy is' if rule.copies == 1 else 'copies are'} wanted, and {words} may hold it",
        )
    return wanted, ""


def plan(rule: Rule, used: datetime, stores: Sequence[StoreFacts], copies: Mapping[str, Copy], now: datetime) -> Plan:
    """What is to be done for one file. `used`: when its data were last published or used; `copies`: what each store has
    of it; stores that are not among `stores` are left alone."""
    known = {store.name: store for store in stores}
    held = {name: copy for name, copy in copies.items() if name in known}
    wanted, lacks = chosen(rule, stores, held, tape=cold(rule, used, now))
    whole = {name for name, copy in held.items() if copy.state == "whole"}
    debris = tuple(Drop(name) for name in sorted(held) if held[name].state == "going" and not known[name].away)
    making, stuck = _makes(wanted, held, _source(known, held))
    if making or stuck:
        return Plan((*debris, *making), stuck or lacks)
    if not wanted:
        return Plan(debris, lacks or "no store may hold it")
    names = {store.name for store in wanted}
    damaged = sorted(names - whole)
    if damaged:
        return Plan(debris, f"the copy in {damaged[0]} is to be repaired first")
    surplus = [name for name in sorted(held) if name not in names and held[name].state != "going"]
    if not surplus:
        return Plan(debris, lacks)
    away = [name for name in sorted(names) if known[name].away]
    if away:
        return Plan(debris, f"{away[0]} does not answer: nothing is dropped meanwhile")
    settled = max(held[name].since for name in names) + SETTLE
    if settled > now:
        return Plan(debris, lacks, settled)
    drops = tuple(Drop(name) for name in surplus if not known[name].away)
    hidden = [name for name in surplus if known[name].away]
    return Plan((*debris, *drops), f"{hidden[0]} does not answer: its copy cannot be dropped" if hidden else lacks)


def _makes(wanted: Sequence[StoreFacts], held: Mapping[str, Copy], source: str) -> tuple[tuple[Make, ...], str]:
    """Copies that can be made now, and why others cannot. A damaged one is not made: it is there, to be repaired."""
    making, stuck = [], ""
    for store in wanted:
        copy = held.get(store.name)
        if copy is not None and copy.state in ("whole", "suspect", "bad"):
            continue
        if copy is not None and copy.state == "going":
            stuck = stuck or f"what {store.name} has is being deleted first"
        elif store.away:
            stuck = stuck or f"{store.name} does not answer"
        elif not store.room:
            stuck = stuck or f"{store.name} is full"
        elif not source:
            stuck = stuck or "no whole copy can be read"
        else:
            making.append(Make(store.name, source))
    return tuple(making), stuck


def _source(known: Mapping[str, StoreFacts], held: Mapping[str, Copy]) -> str:
    """The nearest copy that can be read, '' where there is none. A suspect one only where no other is: every byte is
    held against the hash tree while it is copied."""
    order = {"whole": 0, "suspect": 1}
    able = [name for name, copy in held.items() if copy.state in order and not known[name].away]
    return min(
        able, key=lambda name: (order[held[name].state], known[name].tape, known[name].distance, name), default=""
    )
