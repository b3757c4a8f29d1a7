"""Officers made for a test, what they order, and a key holder in this process that does it."""

from __future__ import annotations

import itertools
import os
import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from valv.config import Keys
from valv.formats import crypt4gh, officer, shares
from valv.formats.officer import Officer
from valv.formats.order import Order
from valv.keys import folder, messages
from valv.keys.file import Cost, FileKeyring
from valv.keys.keyd import Keyd
from valv.keys.messages import AnyRequest
from valv.keys.roles import Caller, Role, Roles

NODE = "valv.example"
PASSPHRASE = b"correct horse battery staple"
CHEAP = Cost(passes=1, lanes=1, memory=64)
DATA_KEY = bytes(range(32))
_NUMBERS = itertools.count(1)


class People:
    """Officers by name, with their private keys."""

    def __init__(self, *names: str) -> None:
        self.private = {name: secrets.token_bytes(32) for name in names}

    def __getitem__(self, name: str) -> Officer:
        return Officer.of(name, self.private[name])

    def named(self, *names: str) -> tuple[Officer, ...]:
        return tuple(self[name] for name in names)

    def signed(self, wanted: Order | str, *names: str) -> str:
        text = wanted.encode() if isinstance(wanted, Order) else wanted
        for name in names:
            text = officer.sign(self.private[name], name, text)
        return text

    def ceremony(self, *names: str, by: str = "", threshold: int = 2, persons: int = 1, **more: Any) -> str:
        """A signed order that names these. `by`: who signs, the first two where it is empty."""
        wanted = ordered("ceremony", officers=self.named(*names), threshold=threshold, persons=persons, **more)
        return self.signed(wanted, *(by.split() or names[:2]))

    def opened(self, sealed: bytes, name: str) -> str:
        return shares.unseal(sealed, self.private[name])


def ordered(deed: str, *, before: float = 0.0, node: str = NODE, **more: Any) -> Order:
    """An order of `before` seconds ago."""
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=before)
    ident = more.pop("ident", f"order-{next(_NUMBERS)}")
    return Order(node=node, ident=ident, at=at, deed=deed, **more)  # type: ignore[arg-type]


class Holder:
    """A key folder with places of a key backup, and the key holder that has it open."""

    def __init__(self, base: Path, places: int = 1, *, cost: Cost = CHEAP) -> None:
        self.path = base / "keys"
        self.places = [base / f"place-{number}" for number in range(places)]
        for path in (self.path, *self.places):
            path.mkdir(mode=0o700)
        self.keyring = FileKeyring(Keys(), cost)
        folder.create(self.path, NODE, self.keyring, PASSPHRASE).wipe()
        self.keyd = self._made()
        self.keyd.unseal(PASSPHRASE)

    def _made(self) -> Keyd:
        return Keyd(self.path, NODE, Roles(own_uid=os.geteuid(), shared=True), self.keyring, backup=self.places)

    def ask(self, request: AnyRequest, *roles: Role) -> Any:
        return self.keyd.answer(Caller(os.geteuid(), frozenset(roles or Role)), request)

    def restart(self, passphrase: bytes | None = PASSPHRASE) -> None:
        """`passphrase`: None to leave it locked."""
        self.keyd.close()
        self.keyd = self._made()
        if passphrase is not None:
            self.keyd.unseal(passphrase)

    def close(self) -> None:
        self.keyd.close()

    def order(self, note: str, *words: str) -> str:
        return str(self.ask(messages.Order(note, list(words))))

    def header(self, key_id: str, key_class: Any = "identifiable") -> bytes:
        """A header sealed to this key, which is made where there is none."""
        return crypt4gh.build_header(DATA_KEY, [self.ask(messages.Create(key_id, key_class))])

    def opens(self, key_id: str, header: bytes) -> bool:
        """Whether the key opens the header. Raises the fault of a key that is destroyed."""
        [again] = self.ask(messages.ResealWithin(key_id, [header]))
        return bool(again)

    def shares(self, people: People, *names: str) -> list[str]:
        """Opened shares of the recovery key."""
        return [people.opened(self.ask(messages.Shares(name)).recovery, name) for name in names]

    def unseal(self, people: People, *names: str) -> None:
        for name in names:
            self.ask(messages.UnsealShare(people.opened(self.ask(messages.Shares(name)).unsealing, name)))

    @property
    def generation(self) -> int:
        return int(self.ask(messages.Status()).generation)

    @property
    def living(self) -> Path:
        return self.path / f"generation-{folder.newest(self.path):06d}"
