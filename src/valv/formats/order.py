"""Orders to the key holder: a text that officers read and sign, as a C2SP signed note.

    valv order 1
    node: uu.valv
    order: 3q2j…                      random: the same order is carried out once
    at: 2026-11-23T18:00:00Z
    do: destroy                       or ceremony, drill, recover
    key: ds-…-1                       destroy: one line for each key
    reason: withdrawn by the donors   destroy: one line

A ceremony has `threshold`, `persons`, and for each officer a line `officer: <name> <X25519 key, hex> <verifier key>`.
One spelling only: a text that does not come out the same again is refused. All of it is printable (no control, bidi or
invisible characters), so that what officers read is what they sign.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from valv.errors import FormatFault
from valv.formats.officer import MOST as MOST_OFFICERS
from valv.formats.officer import Officer

Deed: TypeAlias = Literal["ceremony", "destroy", "drill", "recover"]
HEAD: Final = "valv order 1"
MOST_LINES: Final = 5000
LONGEST: Final = 192 << 10
"""Characters of an order, without signatures: the key holder tells of what it did in one message."""
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_LINE: Final = re.compile(r"([a-z]+): (\S(?:.*\S)?)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ONCE: Final = ("node", "order", "at", "do", "threshold", "persons", "reason")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """`at`: whole seconds, UTC. `key_ids`, `reason`: for `destroy`; the others for `ceremony`."""

    node: str
    ident: str
    at: datetime
    deed: Deed
    key_ids: tuple[str, ...] = ()
    reason: str = ""
    officers: tuple[Officer, ...] = ()
    threshold: int = 0
    persons: int = 0

    def encode(self) -> str:
        """The text to be signed; it ends in a newline. Raises `FormatFault` where a part cannot be written."""
        text = _text(self)
        if decode(text) != self:
            raise FormatFault("this order cannot be written: a part of it is too much, or of the wrong form")
        return text


def decode(text: str) -> Order:
    """Read an order. Raises `FormatFault` where it is none, or not in its one spelling."""
    head, *lines = text.removesuffix("\n").split("\n")
    if head != HEAD or not text.endswith("\n"):
        raise FormatFault(f"this is not an order: it does not begin with '{HEAD}'")
    if len(lines) > MOST_LINES or len(text) > LONGEST:
        raise FormatFault(f"an order has at most {MOST_LINES} lines and {LONGEST} characters", "make several of it")
    found: dict[str, list[str]] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        if match is None or not line.isprintable():
            raise FormatFault(f"this line of the order cannot be read: {line[:80]!r}")
        found.setdefault(match[1], []).append(match[2])
    once = {name: found.pop(name)[0] for name in _ONCE if len(found.get(name, ())) == 1}
    keys, named = found.pop("key", []), found.pop("officer", [])
    if found:
        raise FormatFault(f"the order has {next(iter(found))!r} twice, or nobody knows what that is")
    if len(named) > MOST_OFFICERS:
        raise FormatFault(f"a node has at most {MOST_OFFICERS} officers")
    order = _order(once, tuple(keys), tuple(map(Officer.read, named)))
    if _text(order) != text:
        raise FormatFault("the order is not in its one spelling", "make it anew; do not edit it by hand")
    return order


def _order(once: dict[str, str], keys: tuple[str, ...], officers: tuple[Officer, ...]) -> Order:
    try:
        at = datetime.strptime(once["at"], _TIME).replace(tzinfo=UTC)
        deed, ident, node = once["do"], once["order"], once["node"]
        threshold, persons = int(once.get("threshold", "0")), int(once.get("persons", "0"))
    except (KeyError, ValueError):
        raise FormatFault("the order lacks its node, id, time or deed, or a number is none") from None
    if deed not in get_args(Deed) or not all(map(_NAME.fullmatch, (ident, *keys))):
        raise FormatFault("the order's deed, id or key is none that there can be")
    return Order(
        node=node,
        ident=ident,
        at=at,
        deed=deed,  # type: ignore[arg-type]
        key_ids=keys,
        reason=once.get("reason", ""),
        officers=officers,
        threshold=threshold,
        persons=persons,
    )


def _text(order: Order) -> str:
    pairs: list[tuple[str, Any]] = [
        ("node", order.node),
        ("order", order.ident),
        ("at", order.at.astimezone(UTC).strftime(_TIME)),
        ("do", order.deed),
    ]
    if order.deed == "ceremony":
        pairs += [("threshold", order.threshold), ("persons", order.persons)]
        pairs += [("officer", officer.written) for officer in order.officers]
    if order.deed == "destroy":
        pairs += [("key", key_id) for key_id in order.key_ids]
        pairs += [("reason", order.reason)] if order.reason else []
    return "".join(f"{line}\n" for line in (HEAD, *(f"{name}: {value}" for name, value in pairs)))
