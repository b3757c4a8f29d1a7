"""The golden table of rights: every action, by every kind of actor, on every class of resource.

`tests/golden/authorize.tsv` is made from it; a change of a policy shows there as changed words that a reviewer reads.
"""

from __future__ import annotations

from typing import Final

from valv.assemble.policies import OVERLAYS, load_policies
from valv.core.actions import ACTIONS
from valv.core.authorize import ANONYMOUS, Context, Policies, Principal, Resource, authorize

HOME: Final = "SE"
ABROAD: Final = "NO"


def _person(name: str, *roles: str, committees: tuple[str, ...] = ()) -> Principal:
    return Principal(name, frozenset(roles), HOME, frozenset(committees))


ACTORS: Final[dict[str, Principal]] = {
    "anonymous": ANONYMOUS,
    "owner": _person("owner", "researcher"),
    "on_permit": _person("named", "researcher"),
    "researcher": _person("stranger", "researcher"),
    "custodian": _person("custodian", "custodian"),
    "other_custodian": _person("custodian2", "custodian"),
    "committee": _person("member", "committee", committees=("c1",)),
    "other_committee": _person("member2", "committee", committees=("c2",)),
    "committee_on_permit": _person("named", "committee", committees=("c1",)),
    "checker": _person("checker", "checker"),
    "checker_on_permit": _person("named", "checker"),
    "custodian_checker": _person("custodian", "custodian", "checker"),
    "operator": _person("operator", "operator"),
    "auditor": _person("auditor", "auditor"),
    "no_role": _person("guest"),
}
"""Who may ask, relative to the resource below. `on_permit`: named on its permit or application."""

ACTOR_TEXTS: Final[dict[str, str]] = {
    "anonymous": "anybody",
    "no_role": "everybody who is logged in",
    "owner": "its owner",
    "on_permit": "people on the permit or application",
    "researcher": "researchers",
    "custodian": "the dataset's custodian",
    "other_custodian": "custodians",
    "committee": "the dataset's committee",
    "other_committee": "members of any committee",
    "checker": "output checkers",
    "operator": "operators",
    "auditor": "auditors",
}
"""The plain words for an actor, from the widest to the narrowest where one includes the other."""

UNIT: Final = "unit"
_PLACES: Final = {
    "home": Context(HOME, unit=UNIT),
    "abroad": Context(ABROAD, unit=UNIT),
    "outside_key": Context(HOME, outside=True, unit=UNIT),
    "other_unit": Context(HOME, unit="another"),
}
_DATA_KINDS: Final = ("access", "data", "run", "release", "permit", "dataset", "deposit")


def resource(action: str, data_class: str) -> Resource:
    """The thing that the actors above stand in relation to."""
    classes: dict[str, Resource] = {
        "identifiable": Resource(ACTIONS[action].kind, data_class="identifiable"),
        "anonymised": Resource(ACTIONS[action].kind, data_class="anonymised"),
        "-": Resource(ACTIONS[action].kind),
    }
    blank = classes[data_class]
    return Resource(
        blank.kind,
        id="thing",
        custodian="custodian",
        committee="c1",
        owner="owner",
        people=frozenset({"named", "owner"}),
        data_class=blank.data_class,
        country=HOME,
        unit=UNIT,
    )


def answer(
    policies: Policies, actor: str, action: str, data_class: str, place: str, *, factor: bool, ethics: bool = True
) -> str:
    """`yes` or the refusal's code."""
    at = _PLACES[place]
    context = Context(at.country, outside=at.outside, ethics=ethics, second_factor=factor, unit=at.unit)
    refusal = authorize(policies, ACTORS[actor], action, resource(action, data_class), context)
    return refusal.code if refusal else "yes"


def classes_of(action: str) -> tuple[str, ...]:
    return ("identifiable", "anonymised") if ACTIONS[action].kind in _DATA_KINDS else ("-",)


def table() -> list[tuple[str, ...]]:
    """Header and rows. A cell is `yes`, `factor` (yes with a second factor, refused `second_factor` without) or the
    refusal's code. First the base rules, then, for each overlay, the rows in which it differs."""
    rows = [("policies", "action", "class", "place", "ethics_approval", *ACTORS)]
    base = _rows(load_policies(""))
    rows.extend(("base", *key, *cells) for key, cells in base.items())
    for code in OVERLAYS:
        own = _rows(load_policies(code))
        rows.extend((code, *key, *cells) for key, cells in own.items() if cells != base[key])
    return rows


def _places(action: str, data_class: str) -> tuple[str, ...]:
    if data_class != "identifiable":
        return ("home",)
    return tuple(place for place in _PLACES if place != "other_unit" or action == "storage.place")


def _rows(policies: Policies) -> dict[tuple[str, ...], tuple[str, ...]]:
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    for action in ACTIONS:
        for data_class in classes_of(action):
            for place in _places(action, data_class):
                for ethics in (True, False) if action in ("access.submit", "access.approve") else (True,):
                    cells = (_cell(policies, actor, action, data_class, place, ethics) for actor in ACTORS)
                    rows[action, data_class, place, "declared" if ethics else "none"] = tuple(cells)
    return rows


def _cell(policies: Policies, actor: str, action: str, data_class: str, place: str, ethics: bool) -> str:
    with_factor = answer(policies, actor, action, data_class, place, factor=True, ethics=ethics)
    without = answer(policies, actor, action, data_class, place, factor=False, ethics=ethics)
    if with_factor == without:
        return with_factor
    return "factor" if (with_factor, without) == ("yes", "second_factor") else f"{with_factor}|{without}"
