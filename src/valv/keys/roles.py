"""Who may ask the key holder for what. A caller is known by the user id that the kernel reports for its connection."""

from __future__ import annotations

import os
from enum import Enum
from typing import Final

import msgspec

from valv.config import Config


class Role(Enum):
    """`OPERATOR`: root and the key holder's own user. `RUN`: mount and reader processes, one user id each."""

    OPERATOR = "operator"
    SERVE = "serve"
    WORKER = "worker"
    RUN = "run"


ALLOWED: Final[dict[str, frozenset[Role]]] = {
    "status": frozenset({Role.OPERATOR, Role.SERVE, Role.WORKER, Role.RUN}),
    "unseal": frozenset({Role.OPERATOR}),
    "unseal_share": frozenset({Role.OPERATOR}),
    "shares": frozenset({Role.OPERATOR}),
    "create": frozenset({Role.SERVE, Role.WORKER}),
    "create_volume": frozenset({Role.OPERATOR}),
    "confirm": frozenset({Role.WORKER}),
    "narrow": frozenset({Role.OPERATOR, Role.SERVE, Role.WORKER}),
    "adopt": frozenset({Role.SERVE, Role.WORKER}),
    "grant": frozenset({Role.SERVE, Role.WORKER}),
    "renew": frozenset({Role.WORKER}),
    "revoke": frozenset({Role.OPERATOR, Role.SERVE, Role.WORKER}),
    "reseal": frozenset({Role.RUN}),
    "reseal_outside": frozenset({Role.SERVE}),
    "reseal_volume": frozenset({Role.OPERATOR}),
    "sign": frozenset({Role.WORKER}),
    "rotate": frozenset({Role.WORKER}),
    "reseal_within": frozenset({Role.WORKER}),
    "reseal_across": frozenset({Role.WORKER}),
    "retire": frozenset({Role.WORKER}),
    "destroy": frozenset({Role.WORKER}),
    "order": frozenset({Role.OPERATOR, Role.WORKER}),
    "custody": frozenset({Role.OPERATOR, Role.SERVE, Role.WORKER}),
    "held": frozenset({Role.OPERATOR, Role.SERVE, Role.WORKER}),
    "back_up": frozenset({Role.OPERATOR, Role.WORKER}),
}
"""verb → roles that may ask for it. The table in docs/keyd.md is written from it."""


class Caller(msgspec.Struct, frozen=True):
    """Who is at the other end of a connection. Without roles: a stranger."""

    uid: int
    roles: frozenset[Role]

    def may(self, verb: str) -> bool:
        return not self.roles.isdisjoint(ALLOWED[verb])

    @property
    def only_runs(self) -> bool:
        return self.roles == {Role.RUN}


class Roles(msgspec.Struct, frozen=True):
    """Which user id has which role.

    `own_uid`: the key holder's. `shared`: all processes of the node have this one user id, as where it was started
    without root. Roles cannot be told apart then: the own user has all of them, and nobody else has any.
    """

    own_uid: int
    operator_uid: int = 0
    serve_uid: int = -1
    worker_uid: int = -1
    first_run_uid: int = 0
    last_run_uid: int = -1
    shared: bool = False

    @classmethod
    def of(cls, config: Config) -> Roles:
        """The layout of the node that this process belongs to: separate users where it runs as root or as the key
        holder's user of `processes.uid_base`, else one shared user."""
        own, base = os.geteuid(), config.processes.uid_base
        if own not in (0, base + 1):
            return cls(own_uid=own, shared=True)
        return cls.separate(base)

    @classmethod
    def separate(cls, base: int) -> Roles:
        """base + 1 key holder, + 2 server, + 3 worker, + 100 to + 999 runs and mounts."""
        return cls(
            own_uid=base + 1,
            serve_uid=base + 2,
            worker_uid=base + 3,
            first_run_uid=base + 100,
            last_run_uid=base + 999,
        )

    def caller(self, uid: int) -> Caller:
        if self.shared:
            return Caller(uid, frozenset(Role) if uid == self.own_uid else frozenset())
        roles = {
            Role.OPERATOR: uid in (self.operator_uid, self.own_uid),
            Role.SERVE: uid == self.serve_uid,
            Role.WORKER: uid == self.worker_uid,
            Role.RUN: self.may_run(uid),
        }
        return Caller(uid, frozenset(role for role, held in roles.items() if held))

    def may_run(self, uid: int) -> bool:
        """Whether a grant may name this user."""
        return uid == self.own_uid if self.shared else self.first_run_uid <= uid <= self.last_run_uid


def table() -> str:
    """`ALLOWED` as a Markdown table."""
    head = "| verb | " + " | ".join(role.value for role in Role) + " |"
    rule = "|---|" + "---|" * len(Role)
    rows = [
        f"| `{verb}` | " + " | ".join("yes" if role in roles else "" for role in Role) + " |"
        for verb, roles in ALLOWED.items()
    ]
    return "\n".join([head, rule, *rows]) + "\n"
