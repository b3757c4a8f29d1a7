"""What can go wrong, said once.

Two kinds, kept apart. A *Refusal* is a domain "no": a value that the core returns, with a stable code. A *Fault* is a
broken world: an exception. One table (`CATALOGUE`) gives each code its HTTP status, its exit code and its next step, so
that an API problem (RFC 9457), a line in the terminal and a page all say the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Row:
    """How one code is shown: `status` for HTTP, `exit` for the shell, `title` what happened, `hint` what to do."""

    status: int
    exit: int
    title: str
    hint: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A domain "no". `code` is stable and listed in `CATALOGUE`; `detail` says what exactly, without personal data."""

    code: str
    detail: str = ""

    @property
    def row(self) -> Row:
        return CATALOGUE[self.code]


@dataclass(eq=False)
class Fault(Exception):
    """A broken world: a full disk, a truncated file, a peer that is away. Subclasses fix `code`."""

    detail: str = ""
    hint: str = ""
    context: dict[str, str] = field(default_factory=dict)
    code = "fault.internal"

    def __str__(self) -> str:
        row = self.row
        text = f"{row.title}: {self.detail}" if self.detail else row.title
        hint = self.hint or row.hint
        return f"{text} ({hint})" if hint else text

    @property
    def row(self) -> Row:
        return CATALOGUE[self.code]


class InternalFault(Fault):
    code = "fault.internal"


class ConfigFault(Fault):
    """The configuration cannot be used; `detail` lists every fault with its key."""

    code = "fault.config"


class InputFault(Fault):
    """A value from outside has the wrong form."""

    code = "fault.input"


class FormatFault(Fault):
    """A file or message breaks its format (Crypt4GH, signed note, manifest …)."""

    code = "fault.format"


class KeyFault(Fault):
    """No key at hand opens this; `detail` names the fingerprints that could."""

    code = "fault.key"


class IntegrityFault(Fault):
    """Bytes are not the ones that were sealed: dropped, swapped, altered, truncated or of another version."""

    code = "fault.integrity"


class StorageFault(Fault):
    """The storage backend failed (full, read-only, away)."""

    code = "fault.storage"


class FullFault(StorageFault):
    code = "fault.full"


class MissingFault(Fault):
    """Something that a record points to is not there."""

    code = "fault.missing"


class SealedFault(Fault):
    """The key holder has not been opened yet."""

    code = "fault.sealed"


class ComputeFault(Fault):
    """A run could not be started or ended as asked."""

    code = "fault.compute"


class UnreachableFault(Fault):
    """A process or peer that is needed does not answer."""

    code = "fault.unreachable"


class ConflictFault(Fault):
    """Somebody else changed the same stream at the same time, more often than we retried."""

    code = "fault.conflict"


class RefusedFault(Fault):
    """Carries a `Refusal` through code that can only raise (doors use it to render the refusal)."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal

    @property
    def row(self) -> Row:
        return CATALOGUE[self.refusal.code]


CATALOGUE: Final[dict[str, Row]] = {
    # --- faults -------------------------------------------------------------------------------------------------
    "fault.internal": Row(500, 70, "Something broke inside the node", "tell the operator the reference number"),
    "fault.config": Row(500, 78, "The configuration cannot be used", "run 'valv config check'"),
    "fault.input": Row(400, 64, "The request has the wrong form", ""),
    "fault.format": Row(422, 65, "The file breaks its format", ""),
    "fault.key": Row(
        422, 65, "No key at hand opens this", "encrypt the file for the node's public key: 'valv node key'"
    ),
    "fault.integrity": Row(
        422, 65, "The bytes are not the ones that were sealed", "send the file again from a good copy"
    ),
    "fault.storage": Row(503, 74, "The storage failed", "try again; tell the operator if it stays"),
    "fault.full": Row(507, 74, "The storage is full", "tell the operator; nothing of the failed step was kept"),
    "fault.missing": Row(404, 66, "Not found", ""),
    "fault.sealed": Row(503, 69, "The node's keys are locked", "an operator opens them with 'valv keys unseal'"),
    "fault.compute": Row(503, 71, "The run could not be handled", "look at 'valv doctor'"),
    "fault.unreachable": Row(503, 69, "A part of the node does not answer", "start the node with 'valv up'"),
    "fault.conflict": Row(409, 75, "Somebody changed this at the same moment", "look at it again, then repeat"),
}
