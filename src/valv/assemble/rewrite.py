"""The process that stands between one stored file and the sandbox that takes people out of it: it decrypts with a key
that dies with it, and encrypts what comes back. No plain byte of it touches a disk."""

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
from valv.compute.rewriting import Work, rewrite
from valv.compute.stream import Sender
from valv.config import Config
from valv.errors import Fault, InputFault, UnreachableFault
from valv.formats.crypt4gh import generate_keypair
from valv.formats.seal import sidecar
from valv.keys.client import KeydClient
from valv.keys.memory import protect_process
from valv.ports.compute import DAMAGE

log: Final = logging.getLogger("valv.rewrite")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="valv rewrite", description="Stands between a stored file and its rewriter.")
    parser.add_argument("--node", type=Path, required=True)
    parser.add_argument("--file", type=int, required=True, help="descriptor of the work's description")
    parser.add_argument("--out", type=int, required=True, help="descriptor that the answer goes to")
    parser.add_argument("--into", type=int, required=True, help="descriptor of the pipe to the sandbox")
    parser.add_argument("--back", type=int, required=True, help="descriptor of the pipe from the sandbox")
    parser.add_argument("--grant", required=True)
    parser.add_argument("--public-key", type=bytes.fromhex, required=True, help="whom to encrypt for, hex")
    parser.add_argument("--body", required=True, help="name of the new body")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    sender = Sender(socket.socket(fileno=options.out))
    try:
        protect_process()
        send(configuration.load(options.node), sender, options)
    except Fault as fault:
        log.error("%s", fault)
        with contextlib.suppress(UnreachableFault):  # it may be the receiver who is gone
            sender.finish(wire.Failure.of(fault))
        return fault.row.exit
    return 0


def send(config: Config, sender: Sender, options: argparse.Namespace) -> None:
    """Do the work that is described; send what the record of the new body shall say, or why there is none."""
    work = read_work(options.file)
    os.close(options.file)
    store = confined(config)
    try:
        keys = generate_keypair()
        keyd = KeydClient(config.runtime / KEYD)
        header = keyd.reseal(options.grant, work.file.key_id, work.file.header, keys.public)
        made = rewrite(
            store,
            work,
            header,
            keys.private,
            public_key=options.public_key,
            body=options.body,
            into=options.into,
            back=options.back,
        )
    except DAMAGE as fault:
        sender.send(b"N", msgspec.msgpack.encode(wire.Failure.of(fault)))
        sender.finish()
        return
    try:
        sender.send(b"R", msgspec.msgpack.encode(made))
    except UnreachableFault:
        for name in (options.body, sidecar(options.body)):  # nobody knows what it would be good for
            store.delete(name)
        raise
    sender.finish()


def read_work(descriptor: int) -> Work:
    """What is to be done. Raises `InputFault` where it cannot be read."""
    size = os.fstat(descriptor).st_size
    try:
        return msgspec.json.decode(os.pread(descriptor, size, 0), type=Work)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise InputFault("the work cannot be read") from None


if __name__ == "__main__":
    sys.exit(main())
