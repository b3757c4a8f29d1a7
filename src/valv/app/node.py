"""What every use case needs of the world, and who is asking."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b32encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

import msgspec

from valv.config import MAIN, Config
from valv.core.actions import ACTIONS
from valv.core.authorize import ANONYMOUS, Context, Policies, Principal, Resource, authorize
from valv.errors import Fault, Refusal, RefusedFault
from valv.ports.keys import KeyHolder
from valv.ports.login import Login
from valv.ports.records import Records
from valv.ports.storage import Storage

WHILE_CLOSED: Final = frozenset(
    {"node.see", "node.operate", "node.unseal", "session.open", "session.see", "session.close"}
    | {"ledger.show", "ledger.verify", "key.see"}
)
"""Actions on a node that was restored and is not open yet."""


def _open() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Node:
    """`storage`: all stores as one; `stores`: each of them by its name, `main` first, where there are several; `clock`
    gives aware UTC times; `places`: where backups lie, those that are there; `closed`: whether this is a restored node
    that was not opened yet."""

    config: Config
    records: Records
    storage: Storage
    keys: KeyHolder
    policies: Policies
    login: Login
    clock: Callable[[], datetime]
    stores: Mapping[str, Storage] = field(default_factory=dict)
    places: Mapping[str, Storage] = field(default_factory=dict)
    closed: Callable[[], bool] = _open

    def each_store(self) -> Mapping[str, Storage]:
        """Every store by its name."""
        return self.stores or {MAIN: self.storage}


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """The actor of a request. `session`: the hash under which the session is kept, empty for none."""

    principal: Principal
    name: str = ""
    display: str = ""
    session: bytes = b""

    @property
    def account_id(self) -> str:
        return self.principal.account_id


NOBODY = Who(principal=ANONYMOUS)


def allow(node: Node, who: Who, action: str, resource: Resource, context: Context | None = None) -> None:
    """Raise `RefusedFault` unless the policies allow it. Every use case begins here."""
    refusal = permitted(node, who, action, resource, context)
    if refusal is not None:
        raise RefusedFault(refusal)


def permitted(node: Node, who: Who, action: str, resource: Resource, context: Context | None = None) -> Refusal | None:
    if action not in WHILE_CLOSED and node.closed():
        return Refusal("node_closed")
    resource = msgspec.structs.replace(resource, kind=ACTIONS[action].kind)
    context = context or Context(country=who.principal.country)
    return authorize(node.policies, who.principal, action, resource, context)


def refuse(code: str, detail: str = "") -> RefusedFault:
    return RefusedFault(Refusal(code, detail))


Item = TypeVar("Item")


def each(items: Iterable[Item], step: Callable[[Item], object]) -> None:
    """Take the step for every item, also where it fails for one of them; then raise the first fault."""
    first: Fault | None = None
    for item in items:
        try:
            step(item)
        except Fault as fault:
            first = first or fault
    if first is not None:
        raise first


def new_id() -> str:
    """160 random bits, 32 letters and digits."""
    return b32encode(secrets.token_bytes(20)).decode().lower()


def derived_id(who: str, kind: str, command: str) -> str:
    """The id of what a command creates. The same command by the same actor names the same thing, so that a repeated
    request (after a lost answer) creates nothing twice."""
    digest = hashlib.sha256(f"{kind}\0{who}\0{command}".encode()).digest()
    return b32encode(digest[:20]).decode().lower()
