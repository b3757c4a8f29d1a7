"""What every process has: commands with an actor and a time, events with a tag, and a table of who may do what when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from valv.errors import Refusal

NODE: Final = "node"
"""The actor of everything the node does by itself, and its role in the tables."""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """An order. `by` is the account id of the actor (`node` for the node itself), `at` an aware UTC time."""

    by: str
    at: datetime


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event"):
    """Something that happened. Tags are wire format and never renamed; fields may only be added, with a default."""


Table: TypeAlias = Mapping[str, Mapping[str, frozenset[type[Command]]]]
"""phase → role → the commands that this role may give in this phase."""


def tag(event: Event | type[Event]) -> str:
    """The event's tag, for example `access.submitted`."""
    return str(event.__struct_config__.tag)


def guard(table: Table, phase: str, roles: frozenset[str], command: Command) -> Refusal | None:
    """Refuse a command that its actor's roles do not allow in this phase.

    The two reasons are told apart, because the user's next step differs: `not_yours` (another role may) and
    `wrong_phase` (nobody may now).
    """
    allowed = table.get(phase, {})
    kind = type(command)
    if any(kind in allowed.get(role, frozenset()) for role in roles):
        return None
    name = command_name(kind)
    if any(kind in commands for commands in allowed.values()):
        return Refusal("not_yours", f"'{name}' is for {_who(allowed, kind)} while this is {phase}")
    return Refusal("wrong_phase", f"'{name}' is not possible while this is {phase}")


def _who(allowed: Mapping[str, frozenset[type[Command]]], kind: type[Command]) -> str:
    return " or ".join(sorted(role for role, commands in allowed.items() if kind in commands))


def command_name(kind: type[Command]) -> str:
    """`ReturnForChanges` → `return for changes`."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in kind.__name__).strip()


def encode(event: Event) -> tuple[str, bytes]:
    """The event as the journal keeps it: its tag and its JSON with sorted keys."""
    return tag(event), msgspec.json.encode(event, order="sorted")


def encode_state(state: Any) -> bytes:
    return msgspec.json.encode(state)
