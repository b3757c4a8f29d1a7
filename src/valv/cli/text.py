"""How sizes, times and strangers' words are written in a terminal, and how people write sizes and durations."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime

from valv.errors import InputFault

_BYTES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SECONDS = {"": 1, "S": 1, "M": 60, "H": 3600, "D": 86400}
_SPELLING = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


def plain(text: object, lines: bool = False) -> str:
    """Text from elsewhere without control characters, which could rewrite what a terminal shows. `lines`: keep line
    breaks and tabs."""
    kept = "\n\t" if lines else ""
    return "".join(
        letter
        if letter in kept or unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Co", "Cn")
        else "\N{REPLACEMENT CHARACTER}"
        for letter in str(text)
    )


def size(count: int) -> str:
    """Bytes for people: `512 B`, `1.4 MiB`."""
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"


def moment(at: str | None) -> str:
    """A time of the node (RFC 3339) in this computer's zone, which is named; '–' for none."""
    if not at:
        return "–"
    try:
        local = datetime.fromisoformat(at).astimezone()
    except ValueError:
        return plain(at)
    return f"{local:%Y-%m-%d %H:%M:%S %Z}"


def read_size(text: str) -> int:
    """Bytes of `2G`, `512M`, `1.5GiB` or a plain number; the units are powers of 1024. Raises `InputFault`."""
    unit = (found := _SPELLING.fullmatch(text.strip())) and found[2].upper().removesuffix("B").removesuffix("I")
    if found is None or unit not in _BYTES:
        raise InputFault(f"{text!r} is not a size", "write for example 512M or 2G")
    return int(float(found[1]) * _BYTES[unit])


def read_duration(text: str) -> int:
    """Seconds of `90`, `90s`, `10m`, `2h` or `1d`. Raises `InputFault`."""
    found = _SPELLING.fullmatch(text.strip())
    if found is None or found[2].upper() not in _SECONDS:
        raise InputFault(f"{text!r} is not a duration", "write for example 90s, 10m or 2h")
    return int(float(found[1]) * _SECONDS[found[2].upper()])
