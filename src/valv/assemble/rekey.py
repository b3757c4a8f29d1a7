"""The process that encrypts one stored file anew: between a key that dies with it and one that nobody knew. It says
nothing until it is done; who waits for it is watched by the launcher."""

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
from valv.assemble.sockets import KEYD
from valv.compute import wire
from valv.compute.stream import Sender
from valv.config import Config
from valv.errors import Fault, InputFault, UnreachableFault
from valv.formats.crypt4gh import generate_keypair
from valv.formats.seal import sidecar
from valv.keys.client import KeydClient
from valv.keys.memory import protect_process
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.rekey import rekey

log: Final = logging.getLogger("valv.rekey")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="valv rekey", description="Encrypts one stored file anew.")
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--file", type=int, required=True, help="descriptor of the file's description")
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
    """Encrypt the one file that is described anew under the name `body`, and send what its record shall say."""
    listed = wire.read_files(description)
    os.close(description)
    if len(listed) != 1:
        raise InputFault(f"{len(listed)} files are described, not one")
    file = listed[0]
    keys = generate_keypair()
    header = KeydClient(config.runtime / KEYD).reseal(grant_id, file.key_id, file.header, keys.public)
    storage = LocalStorage(config.path(config.storage.path), Place(config.node.country, config.node.unit))
    made = rekey(storage, file, header, keys.private, public_key=public_key, body=body)
    try:
        sender.send(b"R", msgspec.msgpack.encode(made))
        sender.finish()
    except UnreachableFault:
        for name in (body, sidecar(body)):  # nobody knows what it would be good for
            storage.delete(name)
        raise


if __name__ == "__main__":
    sys.exit(main())
