"""The process that makes one body of the pieces in which a file came, with a key that dies with it and a data key that
nobody knew."""

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

import msgspec

from valv import config as configuration
from valv.assemble.bodies import confined
from valv.assemble.sockets import KEYD
from valv.compute import wire
from valv.compute.stream import Sender
from valv.config import Config
from valv.errors import Fault, UnreachableFault
from valv.formats.seal import sidecar
from valv.keys.client import KeydClient
from valv.keys.memory import protect_process
from valv.ports.compute import MountedFile
from valv.vault.join import join

log: Final = logging.getLogger("valv.join")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="valv join", description="Makes one body of a file's pieces.")
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--file", type=int, required=True, help="descriptor of the pieces' description")
    parser.add_argument("--out", type=int, required=True, help="descriptor that the answer goes to")
    parser.add_argument("--grant", required=True)
    parser.add_argument("--public-key", type=bytes.fromhex, required=True, help="whom to encrypt for, hex")
    parser.add_argument("--body", required=True, help="name of the new body")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    sender = Sender(socket.socket(fileno=options.out))
    try:
        protect_process()
        config = configuration.load(options.node)
        send(config, sender, options.file, options.grant, public_key=options.public_key, body=options.body)
    except Fault as fault:
        log.error("%s", fault)
        with contextlib.suppress(UnreachableFault):  # it may be the receiver who is gone
            sender.finish(wire.Failure.of(fault))
        return fault.row.exit
    return 0


def send(config: Config, sender: Sender, description: int, grant_id: str, *, public_key: bytes, body: str) -> None:
    """Join the pieces that are described under the name `body`; send what its record shall say."""
    parts = wire.read_files(description)
    os.close(description)
    keyd = KeydClient(config.runtime / KEYD)
    storage = confined(config)

    def reseal(part: MountedFile, public: bytes) -> bytes:
        return keyd.reseal(grant_id, part.key_id, part.header, public)

    made = join(storage, parts, reseal, public_key=public_key, body=body)
    try:
        sender.send(b"R", msgspec.msgpack.encode(made))
    except UnreachableFault:
        for name in (body, sidecar(body)):  # nobody knows what it would be good for
            storage.delete(name)
        raise
    sender.finish()


if __name__ == "__main__":
    sys.exit(main())
