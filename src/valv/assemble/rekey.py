"""The process that encrypts stored files anew: between a key that dies with it and keys that nobody knew. It tells of
each file when that is done; who waits for it is watched by the launcher."""

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
from valv.errors import Fault, InputFault, UnreachableFault
from valv.formats.seal import sidecar
from valv.keys.client import KeydClient
from valv.keys.memory import protect_process
from valv.ports.compute import MountedFile
from valv.vault.rekey import rekey_each

log: Final = logging.getLogger("valv.rekey")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="valv rekey", description="Encrypts stored files anew.")
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--file", type=int, required=True, help="descriptor of the files' description")
    parser.add_argument("--out", type=int, required=True, help="descriptor that the answers go to")
    parser.add_argument("--grant", required=True)
    parser.add_argument("--public-key", type=bytes.fromhex, required=True, help="whom to encrypt for, hex")
    parser.add_argument("--body", required=True, help="names of the new bodies, with commas between them")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    sender = Sender(socket.socket(fileno=options.out))
    try:
        protect_process()
        config = configuration.load(options.node)
        bodies = options.body.split(",")
        send(config, sender, options.file, options.grant, public_key=options.public_key, bodies=bodies)
    except Fault as fault:
        log.error("%s", fault)
        with contextlib.suppress(UnreachableFault):  # it may be the receiver who is gone
            sender.finish(wire.Failure.of(fault))
        return fault.row.exit
    return 0


def send(
    config: Config, sender: Sender, description: int, grant_id: str, *, public_key: bytes, bodies: Sequence[str]
) -> None:
    """Encrypt the files that are described anew under the names `bodies`; send for each what its record shall say, or
    why it cannot be done."""
    listed = wire.read_files(description)
    os.close(description)
    if len(listed) != len(bodies):
        raise InputFault(f"{len(listed)} files are described, and {len(bodies)} names given")
    keyd = KeydClient(config.runtime / KEYD)
    storage = confined(config)

    def reseal(file: MountedFile, public: bytes) -> bytes:
        return keyd.reseal(grant_id, file.key_id, file.header, public)

    answers = rekey_each(storage, list(zip(listed, bodies, strict=True)), reseal, public_key=public_key)
    for body, made in zip(bodies, answers, strict=True):
        if isinstance(made, Fault):
            sender.send(b"N", msgspec.msgpack.encode(wire.Failure.of(made)))
            continue
        try:
            sender.send(b"R", msgspec.msgpack.encode(made))
        except UnreachableFault:
            for name in (body, sidecar(body)):  # nobody knows what it would be good for
                storage.delete(name)
            raise
    sender.finish()


if __name__ == "__main__":
    sys.exit(main())
