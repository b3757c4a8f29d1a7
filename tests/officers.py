"""Officers of a node's keys, made at test time: their keys, as values and as files, and what they sign."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.keys import running as keyd
from tests.world import World
from valv.formats import keyfile, officer, shares
from valv.formats.officer import Officer
from valv.formats.order import Order

PASSPHRASE = "five words that nobody guesses"
NAMES = ("anna", "bo", "eva")


class Officers:
    """Some officers. `node`: whose orders they sign."""

    def __init__(self, node: str, names: tuple[str, ...] = NAMES) -> None:
        self.node = node
        self.private = {name: secrets.token_bytes(32) for name in names}

    @property
    def public(self) -> tuple[Officer, ...]:
        return tuple(Officer.of(name, key) for name, key in self.private.items())

    def signed(self, order: Order, *names: str) -> str:
        text = order.encode()
        for name in names:
            text = officer.sign(self.private[name], name, text)
        return text

    def order(self, deed: Any, *names: str, **more: Any) -> str:
        """A fresh order, signed by these."""
        at = datetime.now(UTC).replace(microsecond=0)
        return self.signed(Order(node=self.node, ident=secrets.token_hex(8), at=at, deed=deed, **more), *names)

    def ceremony(self, *names: str, threshold: int = 2, persons: int = 1) -> str:
        signers = names or NAMES[:2]
        return self.order("ceremony", *signers, officers=self.public, threshold=threshold, persons=persons)

    def words(self, keys: Any, *names: str) -> list[str]:
        """Their shares of the recovery key, opened. `keys`: the key holder, for its operator."""
        return [shares.unseal(keys.shares(name).recovery, self.private[name]) for name in names]

    def write(self, folder: Path) -> Path:
        """Their key files, as `valv keys officer` makes them, and a file with the passphrase of all; that file."""
        for made in self.public:
            text = keyfile.write_private(self.private[made.name], PASSPHRASE, comment=made.name)
            (folder / f"{made.name}.officer").write_text(text)
            (folder / f"{made.name}.officer").chmod(0o600)
            (folder / f"{made.name}.officer.pub").write_text(f"{made.written}\n")
        secret = folder / "officers.passphrase"
        secret.write_text(f"{PASSPHRASE}\n")
        secret.chmod(0o600)
        return secret


@contextlib.contextmanager
def world() -> Iterator[tuple[World, Path]]:
    """A node of its own with a real key holder, and its folder in the place of the key backup."""
    with keyd.running(keyd.KEYD if os.geteuid() == 0 else None, places=1) as holder:
        made = World(holder)
        try:
            yield made, holder.places[0]
        finally:
            made.http.close()
            made.server.close()
            made.records.close()
