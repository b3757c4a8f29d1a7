"""Grants: for how long which process may have headers of which keys re-sealed to its own ephemeral key.

They live in memory only. After a restart of the key holder there are none, and the worker grants again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from valv.errors import Refusal, RefusedFault

MOST: Final = 4096
"""Grants at one time."""


@dataclass(frozen=True, slots=True)
class Granted:
    """`maker`: the user id that granted. `until`: on the monotonic clock, which nobody can set back."""

    uid: int
    key_ids: frozenset[str]
    maker: int
    until: float


class Grants:
    """Safe for several threads. Every refusal has the code `no_grant`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._mutex = threading.Lock()
        self._grants: dict[str, Granted] = {}

    def give(self, grant_id: str, uid: int, key_ids: frozenset[str], maker: int, seconds: float) -> None:
        """Repeating it starts the time anew; a live grant is never given a second meaning."""
        with self._mutex:
            now = self._clock()
            self._grants = {one: granted for one, granted in self._grants.items() if granted.until > now}
            old = self._grants.get(grant_id)
            if old is not None and (old.uid, old.key_ids, old.maker) != (uid, key_ids, maker):
                raise _refused(f"grant {grant_id} exists with other contents; revoke it first")
            if old is None and len(self._grants) >= MOST:
                raise _refused(f"{MOST} grants are given already")
            self._grants[grant_id] = Granted(uid, key_ids, maker, now + seconds)

    def renew(self, grant_id: str, seconds: float) -> None:
        with self._mutex:
            old = self._live(grant_id)
            self._grants[grant_id] = Granted(old.uid, old.key_ids, old.maker, self._clock() + seconds)

    def revoke(self, grant_id: str) -> None:
        """Repeating it, and an unknown grant, are no error."""
        with self._mutex:
            self._grants.pop(grant_id, None)

    def maker(self, grant_id: str) -> int:
        """The user id that gave this live grant."""
        with self._mutex:
            return self._live(grant_id).maker

    def names(self, key_id: str) -> bool:
        """Whether a live grant names this key."""
        with self._mutex:
            now = self._clock()
            return any(key_id in granted.key_ids for granted in self._grants.values() if granted.until > now)

    def check(self, grant_id: str, uid: int, key_id: str) -> None:
        """Refuse unless this live grant names this user and this key."""
        with self._mutex:
            granted = self._live(grant_id)
        if granted.uid != uid:
            raise _refused(f"grant {grant_id} is another process's")
        if key_id not in granted.key_ids:
            raise _refused(f"grant {grant_id} does not name key {key_id}")

    def _live(self, grant_id: str) -> Granted:
        granted = self._grants.get(grant_id)
        if granted is None or granted.until <= self._clock():
            raise _refused(f"grant {grant_id} is unknown, expired or revoked")
        return granted


def _refused(detail: str) -> RefusedFault:
    return RefusedFault(Refusal("no_grant", detail))
