"""A reader's hold on its permit, by the rules of `valv.ports.lease`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from valv.ports.lease import RENEW, TERM

_log: Final = logging.getLogger(__name__)


class HeldLease:
    """Asks `beat` every `RENEW` seconds, in a thread, and holds while an answer counts.

    An answer counts for `TERM` seconds from when its question was *sent*, so that a slow answer gives no extra time; a
    "no" ends the lease at once; `beat` may raise or hang, which is no answer.
    """

    def __init__(self, beat: Callable[[], bool]) -> None:
        self._beat = beat
        self._until = 0.0
        self._asked = False
        self._ended = False
        self._changed = threading.Condition()

    @property
    def held(self) -> bool:
        return time.monotonic() < self._until

    def start(self) -> None:
        """Begin to ask, and wait for the first answer as long as one may take."""
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        with self._changed:
            self._changed.wait_for(lambda: self._asked, TERM)

    def end(self) -> None:
        """Give the lease up for good."""
        with self._changed:
            self._ended = True
            self._until = 0.0
            self._changed.notify_all()

    def wait_lost(self) -> bool:
        """Return when the lease is not held: True if it may come back, False after `end`."""
        with self._changed:
            while not self._ended and (left := self._until - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._ended

    def _renew(self) -> None:
        while not self._ended:
            self._ask()
            with self._changed:
                self._asked = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._ended, RENEW)

    def _ask(self) -> None:
        sent = time.monotonic()
        try:
            granted = self._beat()
        except Exception as error:  # whatever went wrong, it is no answer, and the lease runs out
            _log.warning("no answer about the permit: %s", type(error).__name__)
            return
        with self._changed:
            self._until = sent + TERM if granted and not self._ended else 0.0
            self._changed.notify_all()
