"""Custody of the node's keys: what one person alone must not do.

Officers hold the shares of the recovery key, and sign orders: a ceremony (who the officers are), the destruction of
keys, a drill, a recovery. Two of them must sign, always. The key holder decides with this before it acts, and the
ledger follows it: there is one stream, `custody/node`.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias, assert_never

import msgspec

from valv.core.process import Command, Event
from valv.errors import Refusal
from valv.formats.officer import MOST as MOST_OFFICERS
from valv.formats.officer import Officer

KIND = "custody"
STREAM_ID: Final = "node"
Phase: TypeAlias = Literal["held"]

PERSONS: Final = 2
"""How many officers sign an order."""
FRESH: Final = timedelta(days=1)
"""How old an order may be: so long has the second officer to sign it."""
AHEAD: Final = timedelta(minutes=5)
"""How far in the future it may be: clocks differ."""
DRILL_AFTER: Final = timedelta(days=365)
"""A drill or a ceremony must not lie longer back."""


class Custody(msgspec.Struct, frozen=True, kw_only=True):
    """`threshold`: how many shares recover the keys; `persons`: how many officers unseal the node, 1 for a passphrase
    that one person may know; `generation`: of the root key after the last act; `destroyed`: key ids."""

    officers: tuple[Officer, ...]
    threshold: int
    persons: int
    generation: int
    ceremony_at: datetime
    drill_at: datetime
    recovered_at: datetime | None = None
    destroyed: tuple[str, ...] = ()
    phase: Phase = "held"

    def officer(self, name: str) -> Officer | None:
        return next((officer for officer in self.officers if officer.name == name), None)

    @property
    def void_before(self) -> datetime:
        """Orders that were made before are void: nobody brings back a former officer with one, nor with one that the
        key holder carried out already and forgot, recovered from a backup that is older."""
        return max(self.ceremony_at, self.recovered_at or self.ceremony_at)

    def drill_due(self, at: datetime) -> bool:
        return at - max(self.drill_at, self.ceremony_at) > DRILL_AFTER


# --- commands ---
class HoldCeremony(Command, frozen=True, kw_only=True):
    """Name the officers and deal new shares; the root key is made anew."""

    officers: tuple[Officer, ...]
    threshold: int
    persons: int


class Destroy(Command, frozen=True, kw_only=True):
    """Destroy keys for ever; the root key is made anew, so that no copy of the old wrapped keys opens."""

    key_ids: tuple[str, ...]


class HoldDrill(Command, frozen=True, kw_only=True):
    """Show that the shares still open what they should."""


class Recover(Command, frozen=True, kw_only=True):
    """Open the key backup with the officers' shares."""


Commands: TypeAlias = HoldCeremony | Destroy | HoldDrill | Recover


# --- events ---
class CeremonyHeld(Event, frozen=True, kw_only=True, tag="custody.ceremony_held"):
    """`at`: whole seconds, as orders have (`Custody.void_before`). `generation`: of the root key that was made;
    `signers`: names of the officers who signed, as everywhere here."""

    at: datetime
    officers: tuple[Officer, ...]
    threshold: int
    persons: int
    generation: int
    signers: tuple[str, ...]


class Destroyed(Event, frozen=True, kw_only=True, tag="custody.destroyed"):
    at: datetime
    key_ids: tuple[str, ...]
    generation: int
    signers: tuple[str, ...]


class DrillHeld(Event, frozen=True, kw_only=True, tag="custody.drill_held"):
    at: datetime
    generation: int
    signers: tuple[str, ...]


class Recovered(Event, frozen=True, kw_only=True, tag="custody.recovered"):
    at: datetime
    generation: int
    signers: tuple[str, ...]


Events: TypeAlias = CeremonyHeld | Destroyed | DrillHeld | Recovered


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`signed`: verifier keys whose signatures on the order are right; `now`: the time at the key holder (the command
    has that of the order); `generation`: the root key's, before; `shares`: those that were shown and fit together, for
    a drill and a recovery."""

    signed: frozenset[str]
    now: datetime
    generation: int
    shares: frozenset[str] = frozenset()


def decide(state: Custody | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    if not -AHEAD <= facts.now - command.at <= FRESH:
        return Refusal("order_old", f"it is of {command.at:%Y-%m-%d %H:%M} UTC")
    if state is not None and command.at < state.void_before:
        return Refusal("order_old", f"a ceremony or recovery was held at {state.void_before:%Y-%m-%d %H:%M} UTC")
    if isinstance(command, HoldCeremony):
        return _ceremony(state, command, facts)
    if state is None:
        return Refusal("ceremony_missing")
    signers = signed_by(state.officers, facts.signed)
    if len(signers) < PERSONS:
        return Refusal("two_officers", _who(signers))
    match command:
        case Destroy():
            if not command.key_ids:
                return Refusal("key_missing")
            gone = tuple(dict.fromkeys(command.key_ids))
            return [Destroyed(at=facts.now, key_ids=gone, generation=facts.generation + 1, signers=signers)]
        case HoldDrill():
            if len(facts.shares) < state.threshold:
                return Refusal("shares_missing", f"{len(facts.shares)} of {state.threshold}")
            return [DrillHeld(at=facts.now, generation=facts.generation, signers=signers)]
        case Recover():
            if len(facts.shares) < state.threshold:
                return Refusal("shares_missing", f"{len(facts.shares)} of {state.threshold}")
            at = facts.now.replace(microsecond=0)
            return [Recovered(at=at, generation=facts.generation + 1, signers=signers)]
        case _:
            assert_never(command)


def _ceremony(state: Custody | None, command: HoldCeremony, facts: Facts) -> list[Events] | Refusal:
    officers = command.officers
    for values in zip(*((one.name, one.share_key, one.sign_public) for one in officers), strict=True):
        if len(set(values)) != len(officers):
            return Refusal("officer_twice")
    if not PERSONS <= len(officers) <= MOST_OFFICERS:
        return Refusal("two_officers", f"{len(officers)} are named, {PERSONS} to {MOST_OFFICERS} can be")
    if not PERSONS <= command.threshold <= len(officers):
        return Refusal("threshold", f"{command.threshold} of {len(officers)}")
    if command.persons not in (1, PERSONS):
        return Refusal("threshold", f"{command.persons} persons to unseal")
    if state is not None and command.persons < state.persons:
        return Refusal("threshold", "a node that takes two persons to unseal does not go back to one")
    signers = signed_by(officers, facts.signed)
    if len(signers) < PERSONS:
        return Refusal("two_officers", _who(signers))
    if state is not None:
        before = signed_by(state.officers, facts.signed)
        if len(before) < PERSONS:
            return Refusal("two_officers", f"of those appointed before; {_who(before)}")
        signers = tuple(sorted({*signers, *before}))
    return [
        CeremonyHeld(
            at=max(facts.now, command.at).replace(microsecond=0),
            officers=officers,
            threshold=command.threshold,
            persons=command.persons,
            generation=facts.generation + 1,
            signers=signers,
        )
    ]


def signed_by(officers: tuple[Officer, ...], signed: frozenset[str]) -> tuple[str, ...]:
    """Names of the officers whose verifier keys are among `signed`, sorted."""
    return tuple(sorted(officer.name for officer in officers if officer.sign_key in signed))


def _who(signers: tuple[str, ...]) -> str:
    return f"signed by {', '.join(signers)}" if signers else "nobody signed"


def evolve(state: Custody | None, event: Events) -> Custody:
    if isinstance(event, CeremonyHeld):
        return Custody(
            officers=event.officers,
            threshold=event.threshold,
            persons=event.persons,
            generation=event.generation,
            ceremony_at=event.at,
            drill_at=event.at,
            destroyed=state.destroyed if state else (),
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before CeremonyHeld")
    match event:
        case Destroyed():
            gone = (*state.destroyed, *event.key_ids)
            return msgspec.structs.replace(state, generation=event.generation, destroyed=gone)
        case DrillHeld():
            return msgspec.structs.replace(state, drill_at=event.at)
        case Recovered():
            return msgspec.structs.replace(state, generation=event.generation, recovered_at=event.at)
        case _:
            assert_never(event)
