"""What is wrong with a form, said at its top and beside the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from valv.errors import Fault, FormatFault, InputFault, RefusedFault


class Problem(msgspec.Struct, frozen=True):
    """`field`: id of the input that it is about, '' for the whole form."""

    field: str
    text: str


FIXABLE: Final = (RefusedFault, FormatFault, InputFault)
"""Faults that the person at the form can do something about."""
_ELSEWHERE: Final = frozenset({"node_closed", "login_needed", "second_factor", "not_found", "token_foreign"})
"""Codes that the form cannot mend: they get a page of their own."""
_HINTS: Final = {
    "command_missing": "write the command that is to run",
    "login_failed": "check both; after five failures wait a minute",
    "no_key": "add a key first: your account page says how",
}
"""What to do in the portal, where the general hint speaks of the terminal."""


def code_of(fault: Fault) -> str:
    return fault.refusal.code if isinstance(fault, RefusedFault) else fault.code


def hint_of(fault: Fault) -> str:
    return _HINTS.get(code_of(fault)) or fault.hint or fault.row.hint


def sentence(fault: Fault) -> str:
    """What happened and what to do, in one line."""
    # The general titles of these two speak of requests and files; their details say it all.
    alone = isinstance(fault, FormatFault | InputFault) and fault.detail
    what = fault.detail if alone else f"{fault.row.title}: {fault.detail}" if fault.detail else fault.row.title
    what = what[0].upper() + what[1:]
    hint = hint_of(fault)
    return f"{what}. {hint[0].upper()}{hint[1:]}." if hint else f"{what}."


def told(fault: Fault, fields: Mapping[str, str]) -> Problem:
    """The fault as a problem of the form. `fields`: code → id of the input. Raises the fault again where no change to
    the form can help."""
    code = code_of(fault)
    if code in _ELSEWHERE:
        raise fault
    return Problem(fields.get(code, ""), sentence(fault))
