"""Deposit: from the first byte of a custodian to a dataset version that is visible all at once.

While open, files arrive one by one (plain rows: a file is evidence once the deposit is handed in). Submitting names the
manifest's digest; the node then opens every file and compares, and publishes all or nothing.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.classes import DataClass
from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "deposit"
Phase: TypeAlias = Literal["open", "submitted", "published", "failed", "cancelled"]


class Deposit(msgspec.Struct, frozen=True, kw_only=True):
    """`claimed`: the class that the custodian states; `consent`: DUO terms; `reason`: why it failed."""

    deposit_id: str
    dataset_id: str
    custodian: str
    key_id: str
    claimed: DataClass
    consent: tuple[str, ...]
    phase: Phase = "open"
    files: int = 0
    size: int = 0
    manifest: str = ""
    version: int | None = None
    reason: str = ""


# --- commands ---
class Open(Command, frozen=True, kw_only=True):
    deposit_id: str
    dataset_id: str
    key_id: str
    claimed: DataClass
    consent: tuple[str, ...]


class Submit(Command, frozen=True, kw_only=True):
    """Hand in what was received."""


class Publish(Command, frozen=True, kw_only=True):
    """The node has verified every file."""

    version: int


class Fail(Command, frozen=True, kw_only=True):
    """The node found a file that is not what was declared. `reason`: for the custodian, without file content."""

    reason: str


class Cancel(Command, frozen=True, kw_only=True):
    pass


Commands: TypeAlias = Open | Submit | Publish | Fail | Cancel


# --- events ---
class Opened(Event, frozen=True, kw_only=True, tag="deposit.opened"):
    deposit_id: str
    dataset_id: str
    custodian: str
    key_id: str
    claimed: DataClass
    consent: tuple[str, ...]


class Submitted(Event, frozen=True, kw_only=True, tag="deposit.submitted"):
    files: int
    size: int
    manifest: str


class Published(Event, frozen=True, kw_only=True, tag="deposit.published"):
    version: int


class Failed(Event, frozen=True, kw_only=True, tag="deposit.failed"):
    reason: str


class Cancelled(Event, frozen=True, kw_only=True, tag="deposit.cancelled"):
    pass


Events: TypeAlias = Opened | Submitted | Published | Failed | Cancelled


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`owner`: the actor is a custodian of the dataset. `files`, `size`: what was received, in plain bytes; `manifest`:
    hex digest over it; `missing`: names that were announced in a manifest and have not come; `one_person`: one person
    alone can unseal this node, and it is not for trying out."""

    owner: bool = False
    files: int = 0
    size: int = 0
    manifest: str = ""
    missing: tuple[str, ...] = ()
    one_person: bool = False


TABLE: Table = {
    "new": {"custodian": frozenset({Open})},
    "open": {"custodian": frozenset({Submit, Cancel}), NODE: frozenset({Fail, Cancel})},
    "submitted": {NODE: frozenset({Publish, Fail}), "custodian": frozenset({Cancel})},
    "published": {},
    "failed": {},
    "cancelled": {},
}


def roles(state: Deposit | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    mine = facts.owner if state is None else by == state.custodian or facts.owner
    return frozenset({"custodian"}) if mine else frozenset()


def decide(state: Deposit | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Open():
            if command.claimed == "identifiable" and facts.one_person:
                return Refusal("persons_missing")
            return [
                Opened(
                    deposit_id=command.deposit_id,
                    dataset_id=command.dataset_id,
                    custodian=command.by,
                    key_id=command.key_id,
                    claimed=command.claimed,
                    consent=command.consent,
                )
            ]
        case Submit():
            if facts.missing:
                return Refusal("files_missing", ", ".join(facts.missing[:5]))
            if not facts.files:
                return Refusal("deposit_empty")
            return [Submitted(files=facts.files, size=facts.size, manifest=facts.manifest)]
        case Publish():
            return [Published(version=command.version)]
        case Fail():
            return [Failed(reason=command.reason)]
        case Cancel():
            return [Cancelled()]
        case _:
            assert_never(command)


def evolve(state: Deposit | None, event: Events) -> Deposit:
    if isinstance(event, Opened):
        return Deposit(
            deposit_id=event.deposit_id,
            dataset_id=event.dataset_id,
            custodian=event.custodian,
            key_id=event.key_id,
            claimed=event.claimed,
            consent=event.consent,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Opened")
    match event:
        case Submitted():
            return msgspec.structs.replace(
                state, phase="submitted", files=event.files, size=event.size, manifest=event.manifest
            )
        case Published():
            return msgspec.structs.replace(state, phase="published", version=event.version)
        case Failed():
            return msgspec.structs.replace(state, phase="failed", reason=event.reason)
        case Cancelled():
            return msgspec.structs.replace(state, phase="cancelled")
        case _:
            assert_never(event)
