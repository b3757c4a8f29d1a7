"""A process that scrubs two stores until it is killed, or until all is read: words are the node's folder, and a file
with the seconds that it takes for a million bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from valv import config as configuration
from valv.app import fixity as scrubs
from valv.app import streams
from valv.app.node import Node, new_id
from valv.app.scrubbing import Scrubber
from valv.app.streams import FIXITY, Step
from valv.assemble.node import build
from valv.core import fixity
from valv.core.process import NODE


def node(folder: Path) -> Node:
    return build(configuration.load(folder)).node


def begin(made: Node) -> None:
    """A scrub of everything, unless one goes on."""
    with made.records.writing() as unit:
        if not streams.find(unit, FIXITY, phases=("going",)):
            at = made.clock()
            order = fixity.Begin(by=NODE, at=at, scrub_id=new_id(), days=0, expected=1)
            step = Step(FIXITY, order.scrub_id, 0, None, fixity.decide(None, order, fixity.Facts()))
            streams.commit(unit, [step], by=NODE, at=at, command=new_id())


def main(words: list[str], begun: Callable[[], None]) -> None:
    worker, slowness = node(Path(words[0])), float(Path(words[1]).read_text())
    scrubs.enrol(worker)
    begin(worker)
    begun()
    Scrubber(worker, lambda count: time.sleep(slowness * count / 1e6)).turn()
