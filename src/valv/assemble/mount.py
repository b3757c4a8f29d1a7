"""The mount process of one run: it decrypts the permitted files as they are read, with a key that dies with it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from valv import config as configuration
from valv.assemble.bodies import confined, worker_uid
from valv.assemble.sockets import KEYD, LEASE
from valv.compute import wire
from valv.compute.lease import LeaseClient
from valv.compute.reports import Reporter
from valv.config import Config
from valv.errors import ComputeFault, Fault
from valv.keys.client import KeydClient
from valv.keys.memory import protect_process
from valv.ports.compute import MountedFile
from valv.vault.mount import MountServer

log: Final = logging.getLogger("valv.mount")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the mount until it is unmounted. What goes wrong before is told to the launcher."""
    parser = argparse.ArgumentParser(prog="valv mount", description="Decrypts files for one run.")
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--fuse", type=int, required=True, help="descriptor of the mounted FUSE device")
    parser.add_argument("--files", type=int, required=True, help="descriptor of the list of files")
    parser.add_argument("--reports", type=int, required=True, help="descriptor to the launcher")
    parser.add_argument("--grant", required=True)
    parser.add_argument("--run", required=True)
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    reporter = Reporter(options.reports)
    try:
        protect_process()
        for descriptor in (options.fuse, options.files, options.reports):
            os.set_inheritable(descriptor, False)
        config = configuration.load(options.node)
        serve(config, reporter, fuse=options.fuse, files=options.files, grant_id=options.grant, run_id=options.run)
    except Fault as fault:
        log.error("run %s: %s", options.run, fault)
        reporter.failed(str(fault))
        return fault.row.exit
    except OSError as error:
        log.exception("run %s", options.run)
        reporter.failed(f"the mount broke: {error.strerror}")
        return ComputeFault().row.exit
    return 0


def serve(config: Config, reporter: Reporter, *, fuse: int, files: int, grant_id: str, run_id: str) -> None:
    """Serve the files until the file system is unmounted, then report the last reads."""
    keyd = KeydClient(config.runtime / KEYD)
    lease = LeaseClient(config.runtime / LEASE, grant_id, run_id, worker_uid(config))
    storage = confined(config)

    def open_header(file: MountedFile, public_key: bytes) -> bytes:
        return keyd.reseal(grant_id, file.key_id, file.header, public_key)

    def beat(reads: dict[str, int]) -> bool:
        granted: bool | None = None
        try:
            granted = lease.beat(reads)
            return granted
        finally:
            reporter.reads(reads, granted)

    listed = wire.read_files(files)
    os.close(files)
    server = MountServer(fuse, listed, open_body=storage.open, open_header=open_header, beat=beat)
    reporter.ready()
    server.run()
    last = server.reads()
    reporter.reads(last, None)
    lease.close()


if __name__ == "__main__":
    sys.exit(main())
