"""Release: the one way out. Outputs of a run are sealed; a checker who is not the author decides on each file."""

from __future__ import annotations

from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "release"
Phase: TypeAlias = Literal["sealed", "in_review", "released", "rejected", "withdrawn"]


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One output. `seal_root`: hex, of the encrypted body (a digest of the plain bytes could be guessed); `approved`:
    the checker's word, None before it."""

    file_id: str
    size: int
    seal_root: str
    approved: bool | None = None
    checker: str = ""
    reason: str = ""


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """`people`: who is on the permit: none of them checks. `manifest`: hex SHA-256 over the items. `key_id`: the key
    pair that the outputs are sealed to. `context`: id of the author's text for the checker."""

    release_id: str
    run_id: str
    permit_id: str
    author: str
    people: tuple[str, ...]
    datasets: tuple[str, ...]
    key_id: str
    items: tuple[Item, ...]
    manifest: str
    phase: Phase = "sealed"
    context: str = ""

    @property
    def released(self) -> tuple[Item, ...]:
        """What the author may fetch."""
        return tuple(item for item in self.items if item.approved) if self.phase == "released" else ()


# --- commands ---
class Seal(Command, frozen=True, kw_only=True):
    release_id: str
    run_id: str
    permit_id: str
    author: str
    people: tuple[str, ...]
    datasets: tuple[str, ...]
    key_id: str
    items: tuple[Item, ...]
    manifest: str


class Request(Command, frozen=True, kw_only=True):
    """The author asks for the outputs. `context`: id of a text that explains them."""

    context: str


class Check(Command, frozen=True, kw_only=True):
    """A checker's word on one file. `manifest`: the seal that the checker saw; `reason`: id of a text."""

    file_id: str
    approve: bool
    reason: str
    manifest: str


class Withdraw(Command, frozen=True, kw_only=True):
    pass


class Fetch(Command, frozen=True, kw_only=True):
    """The author downloads a released file: evidence."""

    file_id: str


class Inspect(Command, frozen=True, kw_only=True):
    """A checker looks at the plain bytes: evidence."""

    file_id: str


Commands: TypeAlias = Seal | Request | Check | Withdraw | Fetch | Inspect


# --- events ---
class Sealed(Event, frozen=True, kw_only=True, tag="release.sealed"):
    release_id: str
    run_id: str
    permit_id: str
    author: str
    people: tuple[str, ...]
    datasets: tuple[str, ...]
    key_id: str
    items: tuple[Item, ...]
    manifest: str


class Requested(Event, frozen=True, kw_only=True, tag="release.requested"):
    context: str


class Checked(Event, frozen=True, kw_only=True, tag="release.checked"):
    file_id: str
    approved: bool
    checker: str
    reason: str


class Concluded(Event, frozen=True, kw_only=True, tag="release.concluded"):
    """Every file is decided; the approved ones may leave."""

    files: int


class Withdrawn(Event, frozen=True, kw_only=True, tag="release.withdrawn"):
    pass


class Fetched(Event, frozen=True, kw_only=True, tag="release.fetched"):
    file_id: str


class Inspected(Event, frozen=True, kw_only=True, tag="release.inspected"):
    file_id: str


Events: TypeAlias = Sealed | Requested | Checked | Concluded | Withdrawn | Fetched | Inspected


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`checker`: the actor may check outputs at all. `manifest`: hex digest recomputed over what is stored now."""

    checker: bool = False
    manifest: str = ""


TABLE: Table = {
    "new": {NODE: frozenset({Seal})},
    "sealed": {"author": frozenset({Request, Withdraw})},
    "in_review": {"checker": frozenset({Check, Inspect}), "author": frozenset({Withdraw})},
    "released": {"author": frozenset({Fetch})},
    "rejected": {},
    "withdrawn": {},
}


def roles(state: Release | None, by: str, facts: Facts) -> frozenset[str]:
    if by == NODE:
        return frozenset({NODE})
    found = set()
    if state and by == state.author:
        found.add("author")
    if state and facts.checker and by != state.author and by not in state.people:
        found.add("checker")
    return frozenset(found)


def decide(state: Release | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    if isinstance(command, Check | Inspect) and state and (command.by == state.author or command.by in state.people):
        return Refusal("own_outputs", "a checker who is not on the permit looks at them")
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Seal():
            return [
                Sealed(
                    release_id=command.release_id,
                    run_id=command.run_id,
                    permit_id=command.permit_id,
                    author=command.author,
                    people=command.people,
                    datasets=command.datasets,
                    key_id=command.key_id,
                    items=command.items,
                    manifest=command.manifest,
                )
            ]
        case Request():
            if state and not state.items:
                return Refusal("nothing_to_release")
            return [Requested(context=command.context)] if command.context else Refusal("context_missing")
        case Check():
            assert state is not None
            return _check(state, command, facts)
        case Withdraw():
            return [Withdrawn()]
        case Fetch():
            if state and all(item.file_id != command.file_id for item in state.released):
                return Refusal("not_released")
            return [Fetched(file_id=command.file_id)]
        case Inspect():
            if state and all(item.file_id != command.file_id for item in state.items):
                return Refusal("no_file")
            return [Inspected(file_id=command.file_id)]
        case _:
            assert_never(command)


def _check(state: Release, command: Check, facts: Facts) -> list[Events] | Refusal:
    item = next((item for item in state.items if item.file_id == command.file_id), None)
    if item is None:
        return Refusal("no_file")
    if not command.reason:
        return Refusal("reason_missing")
    if item.approved is not None:
        return Refusal("already_checked")
    if not command.manifest == state.manifest == facts.manifest:
        return Refusal("seal_broken", "the files are not the ones that were sealed")
    events: list[Events] = [
        Checked(file_id=item.file_id, approved=command.approve, checker=command.by, reason=command.reason)
    ]
    others = [other for other in state.items if other.file_id != item.file_id]
    if all(other.approved is not None for other in others):
        events.append(Concluded(files=sum(bool(other.approved) for other in others) + command.approve))
    return events


def evolve(state: Release | None, event: Events) -> Release:
    if isinstance(event, Sealed):
        return Release(
            release_id=event.release_id,
            run_id=event.run_id,
            permit_id=event.permit_id,
            author=event.author,
            people=event.people,
            datasets=event.datasets,
            key_id=event.key_id,
            items=event.items,
            manifest=event.manifest,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Sealed")
    match event:
        case Requested():
            return msgspec.structs.replace(state, phase="in_review", context=event.context)
        case Checked():
            items = tuple(
                msgspec.structs.replace(item, approved=event.approved, checker=event.checker, reason=event.reason)
                if item.file_id == event.file_id
                else item
                for item in state.items
            )
            return msgspec.structs.replace(state, items=items)
        case Concluded():
            return msgspec.structs.replace(state, phase="released" if event.files else "rejected")
        case Withdrawn():
            return msgspec.structs.replace(state, phase="withdrawn")
        case Fetched() | Inspected():
            return state
        case _:
            assert_never(event)
