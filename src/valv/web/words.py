"""How values are said on a page: sizes, times, phases, classes; and text of strangers made harmless to the eye."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from valv.core.dataset import Version
from valv.formats import duo

PHASES: Final = {
    "draft": "Draft",
    "submitted": "Handed in",
    "returned": "Returned for changes",
    "approved": "Approved",
    "rejected": "Rejected",
    "withdrawn": "Withdrawn",
    "open": "Open for files",
    "published": "Published",
    "failed": "Failed",
    "cancelled": "Cancelled",
    "issued": "Valid",
    "revoked": "Revoked",
    "expired": "Expired",
    "given_back": "Given back",
    "queued": "Waiting for a place",
    "running": "Running",
    "stopping": "Stopping",
    "ended": "Ended, outputs are being sealed",
    "collected": "Ended, outputs sealed",
    "sealed": "Sealed",
    "in_review": "In review",
    "released": "Released",
    "registered": "Registered",
    "live": "In the catalogue",
    "closed": "Closed",
    "arriving": "Arriving",
    "received": "Received",
    "verified": "Verified",
    "archived": "Archived",
    "refused": "Refused",
    "destroyed": "Destroyed",
    "suspended": "Suspended",
    "asked": "Asked for",
    "rewriting": "A version without them is being made",
    "waiting": "Waits for you",
    "carrying": "Permits are moving",
    "finished": "Finished",
    "nobody": "Nobody was found",
}
TONES: Final = {
    "approved": "good",
    "published": "good",
    "issued": "good",
    "released": "good",
    "archived": "good",
    "verified": "good",
    "received": "good",
    "permitted": "good",
    "rejected": "bad",
    "failed": "bad",
    "revoked": "bad",
    "refused": "bad",
    "returned": "warn",
    "submitted": "busy",
    "in_review": "busy",
    "queued": "busy",
    "running": "busy",
    "stopping": "busy",
    "ended": "busy",
    "arriving": "busy",
    "human": "warn",
    "destroyed": "bad",
    "suspended": "warn",
    "asked": "busy",
    "rewriting": "busy",
    "waiting": "warn",
    "carrying": "busy",
    "finished": "good",
    "nobody": "warn",
}
VERDICTS: Final = {"permitted": "Fits", "refused": "Does not fit", "human": "The committee decides"}
MODES: Final = {"compute": "Compute inside the node", "download": "Encrypted download"}
AIMS: Final = {
    "general": "Research in general",
    "health": "Health, medical or biomedical research",
    "disease": "Research on named diseases",
    "ancestry": "Population origins or ancestry",
    "methods": "Development of methods",
}
ACTS: Final = {
    "custody.ceremony_held": "Ceremony",
    "custody.destroyed": "Destruction",
    "custody.drill_held": "Drill",
    "custody.recovered": "Recovery",
}
ENDS: Final = {
    "exited": "The command ended by itself",
    "time": "Stopped: the time limit was reached",
    "memory": "Stopped: the memory limit was reached",
    "stopped": "Stopped by its owner",
    "revoked": "Stopped: the permit ended",
    "lost": "Lost: the node was interrupted",
    "not_started": "The command could not be started",
}


def size(count: int) -> str:
    """`1536` → `1.5 KiB`."""
    if count < 1024:
        return f"{count} bytes" if count != 1 else "1 byte"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.1f}".removesuffix(".0") + f" {unit}"
    return f"{value / 1024:.1f} PiB"


def moment(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC" if at else ""


def day(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d}" if at else ""


def phase(name: str) -> str:
    return PHASES.get(name, name)


def tone(name: str) -> str:
    """Colour of a status; the word beside it says the same."""
    return TONES.get(name, "calm")


def begin(text: str) -> str:
    """With a capital at its beginning."""
    return text[:1].upper() + text[1:]


def visible(text: str) -> str:
    """The text with control and invisible characters written out, so that what is shown is what is there."""
    if text.isprintable():
        return text
    return "".join(letter if _plain(letter) else f"\\u{ord(letter):04x}" for letter in text)


def _plain(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def consent(term: str) -> str:
    """A DUO term of the catalogue as a sentence."""
    return duo.parse(term).sentence


def standing(version: Version) -> str:
    """What class a version has, and why."""
    if version.destroyed:
        return "destroyed – nothing opens it any more"
    if version.effective == "anonymised":
        return "anonymised"
    if version.claimed == "anonymised":
        if version.confirmed is None:
            return "claimed anonymised – not yet assessed"
        return "claim of anonymity denied – identifiable"
    return "identifiable"


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "size": size,
    "moment": moment,
    "day": day,
    "phase": phase,
    "tone": tone,
    "visible": visible,
    "begin": begin,
    "consent": consent,
    "standing": standing,
    "verdict": lambda name: VERDICTS[name],
    "mode": lambda name: MODES[name],
    "aim": lambda name: AIMS[name],
    "end": lambda name: ENDS[name],
    "act": lambda name: ACTS[name],
}
