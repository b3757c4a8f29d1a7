"""The worker's loops: each calls use cases again and again; none keeps a state of its own that a restart would lose."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from valv.app import account, custody, intake, ledger, outbox, permit, rotating, running, scan
from valv.app.node import Node, each
from valv.app.operation import performs
from valv.errors import ConflictFault, Fault, RefusedFault
from valv.ports.compute import Compute, Reader
from valv.ports.lease import Beat
from valv.worker import mail

log = logging.getLogger("valv.worker")

RUNS = 0.1
ROTATION = 0.1
INTAKE = 0.3
CHORES = 1.0
EVIDENCE = 60.0
"""Seconds between two turns of each loop."""
AGAIN = 2.0
"""Seconds before a file whose encryption anew broke off is begun once more."""


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

    def start(self) -> None:
        for name, pause, turn in (
            ("runs", RUNS, self.runs),
            ("outputs", RUNS, self.outputs),
            ("intake", INTAKE, self.intake),
            ("rotation", ROTATION, self.rotation),
            ("rekeying", ROTATION, self.rekeying),
            ("leavings", CHORES, self.leavings),
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

    def _loop(self, pause: float, turn: Callable[[], Any]) -> None:
        last = ""
        while not self._ended.is_set():
            began = time.monotonic()
            try:
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
    def leavings(self) -> None:
        rotating.clear(self._node)

    @performs("node.operate")
    def chores(self) -> None:
        """Each of them also where another fails: what officers destroyed is gone even from a ledger that a restore set
        back, which nobody signs any more."""
        steps = (permit.expire_due, custody.follow, ledger.checkpoint, _deliver)
        each(steps, lambda step: step(self._node))

    @performs("node.operate")
    def evidence(self) -> None:
        """Once a minute: what each run has read so far goes into the ledger; what died is cleared away."""
        with self._lock:
            reads, self._reads = self._reads, {}
        for run_id, totals in reads.items():
            running.record_reads(self._node, run_id, totals)
        each((intake.clear_dead, account.clear_old, custody.look_after), lambda step: step(self._node))

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
