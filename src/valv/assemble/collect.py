"""The process that reads one outbox: with the run's own user, no network, no key but a public one. What it takes leaves
it encrypted."""

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
from typing_extensions import Buffer

from valv.compute import outbox
from valv.compute.outbox import Found
from valv.compute.stream import Ended, Sender
from valv.compute.wire import Failure
from valv.errors import Fault, StorageFault, UnreachableFault
from valv.keys.memory import protect_process
from valv.ports.compute import Skipped
from valv.vault.encrypt import Encryptor

_CHUNK: Final = 4 << 20
STREAMS: Final = ("stdout.txt", "stderr.txt")

log: Final = logging.getLogger("valv.collect")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="valv collect", description="Encrypts what a run left in its outbox.")
    parser.add_argument("--outbox", type=Path, required=True)
    parser.add_argument("--out", type=int, required=True, help="descriptor that the frames go to")
    parser.add_argument("--public-key", type=bytes.fromhex, required=True, help="whom to encrypt for, hex")
    parser.add_argument("--limit", type=int, required=True, help="bytes of all outputs together")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    sender = Sender(socket.socket(fileno=options.out))
    try:
        protect_process()
        send(options.outbox, sender, options.public_key, options.limit)
    except Fault as fault:
        log.error("%s", fault)
        with contextlib.suppress(UnreachableFault):  # it may be the receiver who is gone
            sender.finish(Failure.of(fault))
        return fault.row.exit
    return 0


def send(folder: Path, sender: Sender, public_key: bytes, limit: int) -> None:
    """Send every output, and every entry that is none with its reason, then the end."""
    try:
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFault(f"the outbox cannot be read: {error.strerror}") from None
    left = limit
    try:
        for entry in outbox.walk(root):
            if isinstance(entry, Skipped):
                sender.send(b"S", msgspec.msgpack.encode(entry))
                continue
            try:
                if entry.size == 0 and entry.path in STREAMS:
                    continue  # nothing was said: nothing for a checker to look at
                if entry.size > left:
                    sender.send(b"S", msgspec.msgpack.encode(Skipped(entry.path, "too_large")))
                else:
                    left -= entry.size
                    _send_file(entry, sender, public_key)
            finally:
                os.close(entry.descriptor)
    finally:
        os.close(root)
    sender.finish()


def _send_file(found: Found, sender: Sender, public_key: bytes) -> None:
    """Exactly `found.size` bytes: nobody writes to the outbox any more."""
    sender.send(b"F", found.path.encode())
    encryptor = Encryptor(_Body(sender), _Nothing(), public_key)
    rest = found.size
    while rest:
        try:
            data = os.read(found.descriptor, min(rest, _CHUNK))
        except OSError as error:
            raise StorageFault(f"an output cannot be read: {error.strerror}") from None
        if not data:
            raise StorageFault("an output became shorter while it was read")
        encryptor.write(data)
        rest -= len(data)
    sealed = encryptor.finish()
    ended = Ended(header=sealed.header, size=sealed.size, sha256=sealed.sha256, seal_root=sealed.seal_root)
    sender.send(b"E", msgspec.msgpack.encode(ended))


class _Body:
    """Takes the encrypted body to the receiver."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    def write(self, data: Buffer) -> None:
        self._sender.send(b"D", data)

    def commit(self) -> None:
        """The receiver commits, when the end has arrived."""

    def abort(self) -> None:
        """The receiver aborts, when the stream is cut."""


class _Nothing:
    """The seal's pairs need not travel: the receiver takes them from the body."""

    def write(self, data: Buffer) -> None:
        del data

    def commit(self) -> None:
        return

    def abort(self) -> None:
        return


if __name__ == "__main__":
    sys.exit(main())
