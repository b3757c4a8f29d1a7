"""Account: a person's key, second factor and log-ins, as evidence. Names and addresses are plain rows, not events."""

from __future__ import annotations

from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "account"
Phase: TypeAlias = Literal["active"]
Role: TypeAlias = Literal["researcher", "custodian", "committee", "checker", "operator", "auditor"]
ROLES: tuple[Role, ...] = ("researcher", "custodian", "committee", "checker", "operator", "auditor")


class Key(msgspec.Struct, frozen=True):
    """A registered Crypt4GH public key: its id and fingerprint."""

    key_id: str
    fingerprint: str


class Account(msgspec.Struct, frozen=True, kw_only=True):
    account_id: str
    roles: tuple[Role, ...]
    committees: tuple[str, ...] = ()
    phase: Phase = "active"
    second_factor: bool = False
    keys: tuple[Key, ...] = ()


# --- commands ---
class Create(Command, frozen=True, kw_only=True):
    account_id: str
    roles: tuple[Role, ...]
    committees: tuple[str, ...] = ()


class AddKey(Command, frozen=True, kw_only=True):
    key_id: str
    fingerprint: str


class EndKey(Command, frozen=True, kw_only=True):
    key_id: str


class EnrolFactor(Command, frozen=True, kw_only=True):
    """A second factor was set up and proven once."""

    method: Literal["totp"]


class RecordLogin(Command, frozen=True, kw_only=True):
    """`how`: `page` or `token`; `second_factor`: a second factor was shown."""

    how: Literal["page", "token"]
    second_factor: bool


Commands: TypeAlias = Create | AddKey | EndKey | EnrolFactor | RecordLogin


# --- events ---
class Created(Event, frozen=True, kw_only=True, tag="account.created"):
    account_id: str
    roles: tuple[Role, ...]
    committees: tuple[str, ...] = ()


class KeyAdded(Event, frozen=True, kw_only=True, tag="account.key_added"):
    key_id: str
    fingerprint: str


class KeyEnded(Event, frozen=True, kw_only=True, tag="account.key_ended"):
    key_id: str


class FactorEnrolled(Event, frozen=True, kw_only=True, tag="account.factor_enrolled"):
    method: str


class LoggedIn(Event, frozen=True, kw_only=True, tag="account.logged_in"):
    how: str
    second_factor: bool


Events: TypeAlias = Created | KeyAdded | KeyEnded | FactorEnrolled | LoggedIn


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`proven`: the actor showed possession of the private key; `second_factor`: a fresh second factor in this
    session."""

    proven: bool = False
    second_factor: bool = False


TABLE: Table = {
    "new": {NODE: frozenset({Create})},
    "active": {
        "self": frozenset({AddKey, EndKey, EnrolFactor, RecordLogin}),
        NODE: frozenset[type[Command]]((EndKey, EnrolFactor)),
    },
}


def roles(state: Account | None, by: str, facts: Facts) -> frozenset[str]:
    del facts
    if by == NODE:
        return frozenset({NODE})
    return frozenset({"self"}) if state and by == state.account_id else frozenset()


def decide(state: Account | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Create():
            return [Created(account_id=command.account_id, roles=command.roles, committees=command.committees)]
        case AddKey():
            if not facts.second_factor:
                return Refusal("second_factor", "registering a key needs a fresh second factor")
            if not facts.proven:
                return Refusal("not_proven", "show that you hold the private key: 'valv account key add'")
            if state and any(key.fingerprint == command.fingerprint for key in state.keys):
                return Refusal("key_known")
            return [KeyAdded(key_id=command.key_id, fingerprint=command.fingerprint)]
        case EndKey():
            if state and all(key.key_id != command.key_id for key in state.keys):
                return Refusal("no_key")
            return [KeyEnded(key_id=command.key_id)]
        case EnrolFactor():
            # Else whoever takes over an open session could exchange the second factor for their own.
            if state and state.second_factor and command.by != NODE and not facts.second_factor:
                return Refusal("second_factor", "replacing a second factor needs the present one")
            return [FactorEnrolled(method=command.method)]
        case RecordLogin():
            return [LoggedIn(how=command.how, second_factor=command.second_factor)]
        case _:
            assert_never(command)


def evolve(state: Account | None, event: Events) -> Account:
    if isinstance(event, Created):
        return Account(account_id=event.account_id, roles=event.roles, committees=event.committees)
    if state is None:
        raise ValueError(f"{type(event).__name__} before Created")
    match event:
        case KeyAdded():
            return msgspec.structs.replace(state, keys=(*state.keys, Key(event.key_id, event.fingerprint)))
        case KeyEnded():
            return msgspec.structs.replace(state, keys=tuple(k for k in state.keys if k.key_id != event.key_id))
        case FactorEnrolled():
            return msgspec.structs.replace(state, second_factor=True)
        case LoggedIn():
            return state
        case _:
            assert_never(event)
