"""The process that opens one stored file for a caller that may see plain bytes, with a key that dies with it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from valv import config as configuration
from valv.assemble.bodies import confined
from valv.assemble.sockets import KEYD
from valv.compute import wire
from valv.compute.stream import Sender
from valv.config import Config
from valv.errors import Fault, InputFault, UnreachableFault
from valv.formats.crypt4gh import generate_keypair
from valv.keys.client import KeydClient
from valv.keys.memory import protect_process
from valv.vault.reader import open_reader

log: Final = logging.getLogger("valv.read")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="valv read", description="Decrypts one stored file.")
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--file", type=int, required=True, help="descriptor of the file's description")
    parser.add_argument("--out", type=int, required=True, help="descriptor that the frames go to")
    parser.add_argument("--grant", required=True)
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    sender = Sender(socket.socket(fileno=options.out))
    try:
        protect_process()
        send(configuration.load(options.node), sender, options.file, options.grant)
    except Fault as fault:
        log.error("%s", fault)
        with contextlib.suppress(UnreachableFault):  # it may be the receiver who is gone
            sender.finish(wire.Failure.of(fault))
        return fault.row.exit
    return 0


def send(config: Config, sender: Sender, description: int, grant_id: str) -> None:
    """Send the plain bytes of the one file that is described, then the end."""
    listed = wire.read_files(description)
    os.close(description)
    if len(listed) != 1:
        raise InputFault(f"{len(listed)} files are described, not one")
    file = listed[0]
    keys = generate_keypair()
    header = KeydClient(config.runtime / KEYD).reseal(grant_id, file.key_id, file.header, keys.public)
    reader = open_reader(
        confined(config).open,
        file.body,
        header,
        keys.private,
        size=file.size,
        seal_root=file.seal_root,
        tree_root=file.tree_root,
    )
    try:
        for chunk in reader.chunks():
            sender.send(b"D", chunk)
    finally:
        reader.close()
    sender.finish()


if __name__ == "__main__":
    sys.exit(main())
