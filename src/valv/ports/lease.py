"""The lease: how an open reader learns, at least every `RENEW` seconds, whether its permit still stands.

The reader (a mount) sends a `Beat` with what it has read; the holder of the permit answers with a `Lease`. Without an
answer `granted=True` within `TERM` seconds no byte is given. On the socket each message is one line of JSON.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

TERM: Final = 0.5
"""Seconds that one answer counts."""
RENEW: Final = 0.15
"""Seconds between two beats."""


class Beat(msgspec.Struct, frozen=True):
    """`reads`: plain bytes read since the mount began, by file id."""

    grant_id: str
    run_id: str
    reads: dict[str, int] = {}


class Lease(msgspec.Struct, frozen=True):
    granted: bool


class LeaseHolder(Protocol):
    def beat(self, beat: Beat) -> Lease: ...
