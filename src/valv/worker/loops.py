"""The worker's loops: each calls use cases again and again; none keeps a state of its own that a restart would lose."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from valv.app import (
    account,
    backup,
    copying,
    custody,
    intake,
    joining,
    ledger,
    outbox,
    outside,
    permit,
    placement,
    rotating,
    running,
    scan,
    upload,
    withdrawing,
)
from valv.app.node import Node, each
from valv.app.operation import performs
from valv.app.scrubbing import Scrubber
from valv.errors import ConflictFault, Fault, RefusedFault
from valv.ports.compute import Compute, Reader
from valv.ports.lease import Beat
from valv.vault.fixity import Rate
from valv.worker import mail

log = logging.getLogger("valv.worker")

RUNS = 0.1
ROTATION = 0.1
COPYING = 0.2
INTAKE = 0.3
CHORES = 1.0
FIXITY = 1.0
STORES = 20.0
BACKUP = 2.0
EVIDENCE = 60.0
"""Seconds between two turns of each loop."""
AGAIN = 2.0
"""Seconds before a file whose encryption anew broke off is begun once more."""


class Ended(Exception):
    """The worker stops: whatever takes long is left as it is."""


class Worker:
    """Runs the loops in threads until `stop`."""

    def __init__(self, node: Node, compute: Compute, reader: Reader) -> None:
        self._node = node
        self._compute = compute
        self._reader = reader
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._reads: dict[str, dict[str, int]] = {}
        self._mounts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._resumed = False
        self._scrubber = Scrubber(node, Rate(node.config.fixity.rate, self._rest))

    def start(self) -> None:
        for name, pause, turn in (
            ("runs", RUNS, self.runs),
            ("outputs", RUNS, self.outputs),
            ("intake", INTAKE, self.intake),
            ("rotation", ROTATION, self.rotation),
            ("rekeying", ROTATION, self.rekeying),
            ("withdrawal", INTAKE, self.withdrawal),
            ("leavings", CHORES, self.leavings),
            ("joining", INTAKE, self.joining),
            ("placement", CHORES, self.placement),
            ("copying", COPYING, self.copying),
            ("stores", STORES, self.stores),
            ("fixity", FIXITY, self.fixity),
            ("backup", BACKUP, self.backup),
            ("chores", CHORES, self.chores),
            ("evidence", EVIDENCE, self.evidence),
        ):
            thread = threading.Thread(target=self._loop, args=(pause, turn), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(10)

    def _rest(self, seconds: float) -> None:
        """Wait so long, in the middle of something. Raises `Ended` where the worker stops."""
        if self._ended.wait(seconds) if seconds else self._ended.is_set():
            raise Ended

    def _loop(self, pause: float, turn: Callable[[], Any]) -> None:
        last = ""
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                if not self._node.closed():  # a restored node does nothing by itself before it is opened
                    turn()
                last = ""
            except ConflictFault:
                pass  # somebody was quicker; the next turn sees their facts
            except Fault as fault:
                # A fault that stays is said once, not ten times a second.
                if str(fault) != last:
                    log.warning("%s: %s", threading.current_thread().name, fault)
                last = str(fault)
            except Exception:
                log.exception("%s broke", threading.current_thread().name)
                self._ended.wait(1.0)
            self._ended.wait(max(0.0, pause - (time.monotonic() - began)))

    @performs("node.operate")
    def runs(self) -> None:
        """End what may not go on, start what waits."""
        if not self._resumed:
            running.resume(self._node, self._compute)
            self._resumed = True
        running.watch(self._node, self._compute)
        running.start_queued(self._node, self._compute)

    @performs("node.operate")
    def outputs(self) -> None:
        """Seal what ended runs left. A loop of its own, so that large outputs delay no revocation."""
        running.finish_ended(self._node, self._compute)

    @performs("node.operate")
    def intake(self) -> None:
        intake.process_submitted(self._node, self._reader)
        scan.step(self._node, self._reader)

    @performs("node.operate")
    def rotation(self) -> None:
        """Seal headers to new key pairs."""
        rotating.seal(self._node)

    @performs("node.operate")
    def rekeying(self) -> None:
        """Encrypt bodies anew. A loop of its own, so that a large file delays no other rotation."""
        try:
            rotating.encrypt(self._node, self._reader)
        except Fault:
            self._ended.wait(AGAIN)
            raise

    @performs("node.operate")
    def joining(self) -> None:
        """Make one body of files that came in pieces. A loop of its own, so that a large file delays no intake."""
        try:
            joining.step(self._node, self._reader)
        except Fault:
            self._ended.wait(AGAIN)
            raise

    @performs("node.operate")
    def withdrawal(self) -> None:
        """Make versions without who withdrew. A loop of its own, so that a large file delays nothing else."""
        try:
            withdrawing.step(self._node, self._reader)
        except Fault:
            self._ended.wait(AGAIN)
            raise

    @performs("node.operate")
    def leavings(self) -> None:
        each((rotating.clear, withdrawing.clear), lambda step: step(self._node))

    @performs("node.operate")
    def fixity(self) -> None:
        """Read copies again, and make damaged ones anew. A loop of its own: it goes on for days."""
        with contextlib.suppress(Ended):
            self._scrubber.turn()

    @performs("node.operate")
    def placement(self) -> None:
        """Learn of new bodies and see moves to their end."""
        each((copying.follow, placement.end_moves), lambda step: step(self._node))

    @performs("node.operate")
    def copying(self) -> None:
        """Make and drop copies. A loop of its own, so that a large file delays nothing else."""
        copying.turn(self._node)

    @performs("node.operate")
    def stores(self) -> None:
        """See how the stores are, and what has become old enough for tapes."""
        each((copying.look, copying.chill), lambda step: step(self._node))

    @performs("node.operate")
    def backup(self) -> None:
        """Make backups that are due or asked for. A loop of its own: one can go on for hours."""
        each(list(self._node.places), lambda name: backup.step(self._node, name, time.monotonic))

    @performs("node.operate")
    def chores(self) -> None:
        """Each of them also where another fails: what officers destroyed is gone even from a ledger that a restore set
        back, which nobody signs any more."""
        steps = (permit.expire_due, custody.follow, ledger.checkpoint, _deliver, _settle)
        each(steps, lambda step: step(self._node))

    @performs("node.operate")
    def evidence(self) -> None:
        """Once a minute: what each run has read so far goes into the ledger; what died is cleared away."""
        with self._lock:
            reads, self._reads = self._reads, {}
        for run_id, totals in reads.items():
            running.record_reads(self._node, run_id, totals)
        # What comes after the backups is outside before the key holder's backup says how far the ledger was signed.
        steps = (intake.clear_dead, upload.clear, account.clear_old, outside.flush, custody.look_after)
        each(steps, lambda step: step(self._node))

    @performs("node.operate")
    def lease(self, beat: Beat, uid: int) -> bool:
        """The answer to a mount's beat. Only the user that the run's mount was given is answered yes."""
        granted = permit.lease(self._node, beat)
        if self._mounts.get(beat.run_id) != uid:
            # Only of a run that goes on, so that a made-up name takes no place from others.
            if not granted or self._compute.reserve(beat.run_id) != uid:
                return False
            self._mounts[beat.run_id] = uid
        with self._lock:
            if beat.reads:
                self._reads.setdefault(beat.run_id, {}).update(beat.reads)
            if not granted:
                self._mounts.pop(beat.run_id, None)
        return granted


def _settle(node: Node) -> None:
    node.records.settle()


def _deliver(node: Node) -> int:
    return outbox.deliver(node, TOPICS)


def _confirm(node: Node, body: dict[str, Any]) -> None:
    try:
        node.keys.confirm(body["key_id"])
    except RefusedFault as fault:
        if fault.refusal.code != "key_class":  # narrowed meanwhile: there is nothing to confirm any more
            raise


def _narrow(node: Node, body: dict[str, Any]) -> None:
    node.keys.narrow(body["key_id"])


TOPICS: dict[str, Callable[[Node, dict[str, Any]], None]] = {
    **mail.TOPICS,
    "key.confirm": _confirm,
    "key.narrow": _narrow,
    "body.delete": custody.delete_bodies,
    "destruction.certify": custody.certify,
}
"""What the outbox delivers, and how."""
