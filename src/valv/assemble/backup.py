"""What an operator does with a node's backups on its own machine, and what `valv doctor` says of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from valv.app import backup
from valv.app.backup import Standing, Status
from valv.app.inspection import Finding
from valv.app.node import Node
from valv.assemble import node as nodes
from valv.assemble import restore, up
from valv.cli.operator import SavedPlace, SavedState, Verified
from valv.config import Config
from valv.errors import ConfigFault, ConflictFault, Fault, StorageFault

POLL: Final = 0.5
"""Seconds between two looks at what the worker does."""


class Desk:
    """`valv.cli.operator.BackupDesk`."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._node = nodes.build(config).node

    def status(self) -> SavedState:
        found = backup.status(self._node)
        return SavedState(
            places=[self._place(one) for one in found.places],
            drilled=found.drilled.isoformat() if found.drilled else "",
            drill_due=found.drill_due,
            epoch=found.epoch,
            size=found.size,
        )

    def _place(self, one: Standing) -> SavedPlace:
        made = one.made
        return SavedPlace(
            name=one.name,
            bodies=one.bodies,
            away=one.name not in self._node.places,
            late=one.late,
            fault=one.fault,
            busy=one.busy,
            generation=made.generation if made else 0,
            at=made.at.isoformat() if made else "",
            size=made.size if made else 0,
            files=made.bodies if made else 0,
            held_back=made.held_back if made else 0,
            stored=made.stored if made else 0,
            outside=max(one.outside, made.size if made else 0),
        )

    def make(self, names: list[str], told: Callable[[int, int], None]) -> SavedState:
        """Have the worker make backups, and wait for them. Raises `ConflictFault` where the node does not run."""
        if up.running(self._config) is None:
            raise ConflictFault("the node does not run", "start it: its ledger must be signed for a backup to count")
        names = names or list(self._config.backup.places)
        if not names:
            raise ConfigFault("no place for backups is configured", "see [backup] in the configuration")
        for name in names:
            backup.place_of(self._node, name)
        wanted = {name: backup.ask(self._node, name) for name in names}
        while wanted:
            time.sleep(POLL)
            if up.running(self._config) is None:
                raise ConflictFault("the node was stopped meanwhile", "start it: the backup begins anew")
            for name, word in list(wanted.items()):
                known = backup.recall(self._node, name)
                told(known.get("done", 0), known.get("all", 0))
                if known.get("answered") == word:
                    del wanted[name]
                    if known.get("fault"):
                        raise StorageFault(f"{name}: {known['fault']}", "see the worker's log")
        return self.status()

    def drill(self, name: str, private: bytes, within: Path | None, progress: Callable[[int], None]) -> Verified:
        """Restore the newest backup of a place for trial; the evidence goes into the ledger."""
        place, _ = backup.place_of(self._node, name)
        log_key = ""
        with contextlib.suppress(Fault):  # a node that is down has none to compare with
            log_key = self._node.keys.status().log_key
        done, made = restore.verify(place, private, log_key=log_key, node=self._node, progress=progress, within=within)
        wrong = len(done.wrong) + done.missing
        backup.record_drill(self._node, made, bodies=done.bodies, wrong=wrong, milliseconds=int(done.seconds * 1000))
        return done


def findings(node: Node) -> Iterator[Finding]:
    """What an operator should know of the backups: warnings, not faults of the node."""
    with contextlib.suppress(Fault):  # a database that does not answer is told elsewhere
        if node.closed():
            yield Finding("this node was restored and is not open yet", "valv restore open --help")
        yield from _findings(node, backup.status(node))


def _findings(node: Node, found: Status) -> Iterator[Finding]:
    if not found.places:
        yield Finding("no backup is configured: a lost disk loses the node", "valv backup --help")
    for one in found.places:
        if one.name not in node.places:
            yield Finding(f"the place of backups {one.name} is away", "bring it back, then start the node again")
        elif one.fault:
            yield Finding(f"the last backup in {one.name} failed: {one.fault}", "see the worker's log")
        if one.made is None:
            yield Finding(f"there is no backup in {one.name} yet", "have one made: 'valv backup make'")
        elif one.late:
            yield Finding(f"the newest backup in {one.name} is of {one.made.at:%Y-%m-%d %H:%M} UTC", "see why")
    if found.drill_due:
        yield Finding("no backup was restored for trial within a year", "hold a drill: 'valv drill restore'")
