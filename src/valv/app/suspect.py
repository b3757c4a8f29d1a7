"""Suspicion: a read of a copy failed, or what it gave does not hold. It is noted at the copy, and no more than a hint:
the scrub reads the copy itself before anything follows from it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from valv.errors import CATALOGUE, Fault, IntegrityFault, MissingFault, StorageFault
from valv.formats.seal import sidecar
from valv.ports.records import Records

log = logging.getLogger("valv.suspect")

CODES: Final = (IntegrityFault.code, StorageFault.code, MissingFault.code)
"""Faults of a copy. A store that does not answer says nothing of its copies, and a full one neither."""
TOLD: Final = 500
"""Characters of a fault that are kept."""
BURST: Final = 200
RATE: Final = 2.0
"""Suspicions that each source may tell at once, and a second."""
SOURCES: Final = 1024
AGAIN: Final = 60.0
"""Seconds for which the same copy need not be told of again."""
WAITING: Final = 1000
_SIDECAR: Final = sidecar("")


def suspect(records: Records, body: str, store: str, text: str) -> bool:
    """Note it at the copy that was whole so far; whether there was one. Repeating changes nothing."""
    body = body.removesuffix(_SIDECAR)
    where = {"body": body, "store": store, "state": "whole"}
    with records.reading() as unit:  # most are of copies that nobody believes in, or that are known
        if not unit.count("copy", where):
            return False
    with records.writing() as unit:
        changed = unit.update("copy", where, {"state": "suspect", "fault": text[:TOLD]})
    if changed:
        log.warning("the copy of %s in %s is suspect: %s", body, store, text[:TOLD])
    return bool(changed)


@dataclass(slots=True)
class _Allowance:
    left: float
    at: float


class Suspicions:
    """Takes suspicions from any thread without delay, and notes them in a thread of its own, which begins with the
    first. What is too much is left out: the scrub comes by in any case."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._queue: queue.Queue[tuple[str, str, str]] = queue.Queue(WAITING)
        self._mutex = threading.Lock()
        self._allowances: OrderedDict[int, _Allowance] = OrderedDict()
        self._recent: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._thread: threading.Thread | None = None

    def told(self, body: str, store: str, fault: Fault) -> None:
        """By a reader of this process. See `valv.vault.copies.Told`."""
        if fault.code in CODES:
            self._take(body, store, f"{fault.row.title}: {fault.detail}", -1)

    def hinted(self, body: str, store: str, code: str, uid: int) -> None:
        """By a confined process, whose user this is. Nothing that it could have written itself is kept."""
        if code in CODES:
            self._take(body, store, f"{CATALOGUE[code].title} (a confined process met it)", uid)

    def settle(self, seconds: float = 10.0) -> bool:
        """Wait until all that was taken is noted; whether it is."""
        until = time.monotonic() + seconds
        while self._queue.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)
        return not self._queue.unfinished_tasks

    def _take(self, body: str, store: str, text: str, source: int) -> None:
        body = body.removesuffix(_SIDECAR)
        with self._mutex:
            now = time.monotonic()
            if now < self._recent.get((body, store), 0.0) or not self._allowed(source, now):
                return
            self._recent[body, store] = now + AGAIN
            self._recent.move_to_end((body, store))
            while len(self._recent) > WAITING:
                self._recent.popitem(last=False)
            try:
                self._queue.put_nowait((body, store, text))
            except queue.Full:
                del self._recent[body, store]
                return
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="suspicions", daemon=True)
                self._thread.start()

    def _allowed(self, source: int, now: float) -> bool:
        kept = self._allowances.setdefault(source, _Allowance(BURST, now))
        self._allowances.move_to_end(source)
        while len(self._allowances) > SOURCES:
            self._allowances.popitem(last=False)
        kept.left = min(BURST, kept.left + RATE * (now - kept.at))
        kept.at = now
        if kept.left < 1.0:
            return False
        kept.left -= 1.0
        return True

    def _work(self) -> None:
        while True:
            body, store, text = self._queue.get()
            try:
                suspect(self._records, body, store, text)
            except Fault as fault:
                log.warning("a suspicion could not be noted: %s", fault)
            except Exception:
                log.exception("a suspicion could not be noted")
            finally:
                self._queue.task_done()
