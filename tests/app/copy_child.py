"""A process that takes a worker's steps with copies until it is killed: words are the node's folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from valv import config as configuration
from valv.app import copying, placement
from valv.app.node import Node
from valv.assemble.node import build
from valv.core import placement as core

NAMES = ("main", "second", "third")
SETTLE = core.SETTLE / 50


def node(folder: Path) -> Node:
    return build(configuration.load(folder)).node


def hasten() -> None:
    """Little patience, so that many kills fit into a test."""
    core.SETTLE = SETTLE  # type: ignore[misc]
    copying.FIRST_PAUSE = SETTLE  # type: ignore[misc]


def main(words: list[str], begun: Callable[[], None]) -> None:
    hasten()
    worker = node(Path(words[0]))
    copying.look(worker)
    begun()
    while True:
        copying.follow(worker)
        if not copying.turn(worker):
            placement.end_moves(worker)
            time.sleep(0.01)
