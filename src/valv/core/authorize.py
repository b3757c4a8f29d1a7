"""May this person do this? One function, over policy files that a lawyer can read (Cedar).

Without a `permit` the answer is no, and a `forbid` wins. A country's overlay may hold `forbid` only. The policies speak
of roles and relations; what a permit, a phase or a consent allows is decided by the processes, after this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import cedarpy
import msgspec

from valv.core.actions import ACTIONS, Kind
from valv.core.classes import DataClass, Mode
from valv.errors import CATALOGUE, ConfigFault, InternalFault, Refusal


class Principal(msgspec.Struct, frozen=True):
    """Who asks. `country`: ISO 3166, of the person's institution; `committees`: the committees that the person sits on;
    `second_factor`: one was shown in this session a short while ago. An empty `account_id` is nobody: see
    `ANONYMOUS`."""

    account_id: str
    roles: frozenset[str] = frozenset()
    country: str = ""
    committees: frozenset[str] = frozenset()
    second_factor: bool = False


ANONYMOUS: Final = Principal("")


class Resource(msgspec.Struct, frozen=True):
    """What is acted on. `kind` as in `ACTIONS`; `owner`: the account whose it is (applicant, author, the account
    itself); `people`: everybody on its permit or application; `custodian`, `committee`, `country`, `unit`: those of the
    dataset behind it. `data_class`: of the strictest dataset behind it, "" where no data are meant.

    Where several datasets with different committees are behind it, ask once for each committee."""

    kind: Kind
    id: str = ""
    custodian: str = ""
    committee: str = ""
    owner: str = ""
    people: frozenset[str] = frozenset()
    data_class: DataClass | Literal[""] = ""
    country: str = ""
    unit: str = ""


class Context(msgspec.Struct, frozen=True):
    """The request. `country`: from which the data would be looked at (ISO 3166; "" is unknown, which counts as abroad
    for identifiable data); where data are put, `country` and `unit` of the store; `mode`: asked for; `outside`: data
    would be sealed to a key from outside; `ethics`: the applicant declares an ethics approval; `second_factor`: one
    came with this very request."""

    country: str = ""
    mode: Mode | Literal[""] = ""
    outside: bool = False
    ethics: bool = False
    second_factor: bool = False
    unit: str = ""


class _Forbid(msgspec.Struct, frozen=True):
    """What the annotations of one `forbid` say to the person."""

    code: str
    reason: str


class Policies:
    """The parsed policies: the base rules and any number of overlays that can only forbid more.

    `base` and each of `overlays` are (file name, text). Raises `ConfigFault` naming the file and what is wrong with it:
    it cannot be read, speaks of what the schema does not know, gives an unknown refusal code, or an overlay permits.
    """

    def __init__(self, schema: str, base: tuple[str, str], overlays: tuple[tuple[str, str], ...] = ()) -> None:
        known = _schema(schema)
        for name, text in (base, *overlays):
            _validate(name, text, known)
        for name, text in overlays:
            if any(policy.effect == "permit" for policy in _parsed(name, text).values()):
                raise ConfigFault(f"{name}: an overlay may only forbid, but this one permits", "remove the 'permit'")
        self._set = cedarpy.PolicySet.from_str("\n".join(text for _, text in (base, *overlays)))
        self._forbids = {
            policy_id: _Forbid(policy.annotations.get("code", "not_allowed"), policy.annotations.get("reason", ""))
            for policy_id, policy in self._set.to_pst().static_policies.items()
            if policy.effect == "forbid"
        }

    def ask(self, request: dict[str, object], entities: str) -> tuple[bool, list[_Forbid]]:
        """The answer of the policies, and the `forbid`s that spoke. A policy that cannot be evaluated is a fault, since
        Cedar would pass over a broken `forbid`."""
        answer = cedarpy.is_authorized(request, self._set, entities)
        if answer.diagnostics.errors:
            raise InternalFault(f"a policy cannot be evaluated: {answer.diagnostics.errors[0]}")
        reasons = sorted(answer.diagnostics.reasons) if not answer.allowed else []
        return answer.allowed, [self._forbids[reason] for reason in reasons]


def authorize(
    policies: Policies, principal: Principal, action: str, resource: Resource, context: Context
) -> Refusal | None:
    """None: yes. A `Refusal`: `login_needed` for a stranger, `second_factor` where nothing but that is missing, the
    code and reason of the `forbid` that speaks against it, else `not_allowed`.

    An unknown action, or a resource of another kind than the action's, is an error of the program: `ValueError`.
    """
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r}")
    if resource.kind != ACTIONS[action].kind:
        raise ValueError(f"{action!r} acts on {ACTIONS[action].kind!r}, not on {resource.kind!r}")
    entities = _entities(principal, resource)
    shown = principal.second_factor or context.second_factor
    allowed, forbids = policies.ask(_request(principal, action, resource, context, shown), entities)
    if allowed:
        return None
    if not principal.account_id:
        return Refusal("login_needed")
    factor = [forbid for forbid in forbids if forbid.code == "second_factor"]
    if factor:
        # Whoever may not do it with a second factor either is told why, and is not sent to fetch one in vain.
        allowed, forbids = policies.ask(_request(principal, action, resource, context, True), entities)
        if allowed:
            return Refusal("second_factor", factor[0].reason)
    if not forbids:
        return Refusal("not_allowed", f"your roles do not let you {ACTIONS[action].summary} here")
    first = min(forbids, key=lambda forbid: (forbid.code == "not_allowed", forbid.code))
    return Refusal(first.code, first.reason)


def _request(
    principal: Principal, action: str, resource: Resource, context: Context, second_factor: bool
) -> dict[str, object]:
    return {
        "principal": _uid(principal),
        "action": {"type": "Action", "id": action},
        "resource": {"type": resource.kind, "id": resource.id},
        "context": {
            "country": context.country,
            "unit": context.unit,
            "mode": context.mode,
            "outside": context.outside,
            "ethics": context.ethics,
            "second_factor": second_factor,
        },
    }


def _uid(principal: Principal) -> dict[str, str]:
    return {"type": "Account" if principal.account_id else "Anonymous", "id": principal.account_id}


def _entities(principal: Principal, resource: Resource) -> str:
    """Both as Cedar's JSON. A stranger has no attributes: no rule can compare an empty id with an empty field."""
    person: dict[str, object] = {}
    if principal.account_id:
        person = {
            "id": principal.account_id,
            "roles": principal.roles,
            "committees": principal.committees - {""},
            "country": principal.country,
        }
    thing = {
        "id": resource.id,
        "custodian": resource.custodian,
        "committee": resource.committee,
        "owner": resource.owner,
        "people": resource.people,
        "data_class": resource.data_class,
        "country": resource.country,
        "unit": resource.unit,
    }
    return msgspec.json.encode(
        [
            {"uid": _uid(principal), "attrs": person, "parents": []},
            {"uid": {"type": resource.kind, "id": resource.id}, "attrs": thing, "parents": []},
        ]
    ).decode()


def _schema(text: str) -> cedarpy.Schema:
    actions = (
        f'action "{name}" appliesTo {{ principal: [Account, Anonymous], resource: {action.kind}, context: Request }};'
        for name, action in ACTIONS.items()
    )
    try:
        return cedarpy.Schema.from_str("\n".join((text, *actions)))
    except ValueError as error:
        raise ConfigFault(f"schema.cedarschema: {error}") from None


def _parsed(name: str, text: str) -> Mapping[str, cedarpy.pst.Template]:
    try:
        parsed = cedarpy.policies_to_pst(text)
    except ValueError as error:
        raise ConfigFault(f"{name}: {error}") from None
    if parsed.templates:
        raise ConfigFault(f"{name}: a template with a ?slot applies to nobody", "write out the principal and resource")
    return parsed.static_policies


def _validate(name: str, text: str, schema: cedarpy.Schema) -> None:
    for policy in _parsed(name, text).values():
        code = policy.annotations.get("code", "not_allowed")
        if policy.effect == "forbid" and code not in CATALOGUE:
            raise ConfigFault(f"{name}: {policy.id}: {code!r} is not a refusal code")
        if policy.effect == "forbid" and not policy.annotations.get("reason"):
            raise ConfigFault(f"{name}: {policy.id}: a forbid needs an annotation @reason that says why")
    result = cedarpy.validate_policies(text, schema)
    if not result.validation_passed:
        raise ConfigFault(f"{name}: {'; '.join(str(error) for error in result.errors)}")
