"""The `worker` process: the loops that have no caller, and the leases of open mounts."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from valv import config as configuration
from valv.assemble.bodies import served
from valv.assemble.node import build
from valv.assemble.sockets import BODIES, LEASE
from valv.compute.bodies_server import BodiesServer
from valv.compute.lease import LeaseServer
from valv.errors import Fault
from valv.keys.memory import protect_process
from valv.worker.loops import Worker

log = logging.getLogger("valv.worker")


def main(argv: Sequence[str] | None = None) -> int:
    """Work until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="valv worker", description="The loops of a node.")
    parser.add_argument("--node", type=Path, required=True, help="the node's folder")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # each address that it asks holds the name of a body
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    try:
        protect_process()  # plain bytes and sessions' secrets pass through it
        config = configuration.load(options.node)
        parts = build(config)
        worker = Worker(parts.node, parts.compute, parts.reader)
        asked = served(config, parts.node.stores)
        with (
            BodiesServer(config.runtime / BODIES, asked, parts.suspicions.hinted),
            LeaseServer(config.runtime / LEASE, worker.lease),
        ):
            worker.start()
            log.info("worker ready")
            ended.wait()
            worker.stop()
    except Fault as fault:
        log.error("%s", fault)
        return fault.row.exit
    return 0


if __name__ == "__main__":
    sys.exit(main())
