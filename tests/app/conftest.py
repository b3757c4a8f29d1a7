"""Use cases called directly, on a real database, store and key holder, by a clock that the test sets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pyotp
import pytest

from tests.world import COMMITTEE, PASSWORD, World, world
from valv.app import access, account, dataset, deposit, intake, streams
from valv.app.node import Node, Who, new_id


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


class Stage:
    """`node` is the server's, `worker` the worker's; both go by `clock`. Everybody logs in with a second factor."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.clock = Clock()
        self.node = replace(made.node, clock=self.clock)
        self.worker = replace(made.worker, clock=self.clock)
        self.reader = made.reader
        self._people: dict[str, Who] = {}

    def code(self, name: str) -> str:
        """A code that was not used yet."""
        self.clock.forward(seconds=31)
        return pyotp.TOTP(self.world.secrets[name]).at(self.clock.now)

    def log_in(self, name: str, *, second_factor: bool = True) -> account.LoggedIn:
        code = self.code(name) if second_factor else ""
        return account.log_in(self.node, name=name, password=PASSWORD, code=code)

    def who(self, name: str) -> Who:
        if name not in self._people:
            self._people[name] = self.log_in(name).who
        return self._people[name]

    def fresh(self) -> str:
        return f"d-{new_id()[:12]}"

    def limited(self, **login: int) -> Node:
        """The node with other limits of sessions."""
        config = self.node.config
        return replace(
            self.node, config=msgspec.structs.replace(config, login=msgspec.structs.replace(config.login, **login))
        )

    # --- the way to each stage ---

    def open(self, name: str, *, claimed: str = "identifiable", consent: tuple[str, ...] = ("GRU",)) -> str:
        return deposit.open_deposit(
            self.node,
            self.who("carin"),
            name=name,
            claimed=claimed,  # type: ignore[arg-type]
            consent=consent,
            committee=COMMITTEE,
            about=dataset.Description(title=name),
            command=new_id(),
        )

    def send(self, ident: str, path: str, content: bytes, **more: Any) -> deposit.Received:
        node = more.pop("node", self.node)
        return deposit.receive(node, self.who("carin"), ident, path, [content], **more)

    def submit(self, ident: str, expected: tuple[str, ...] = ()) -> deposit.View:
        return deposit.submit(self.node, self.who("carin"), ident, expected=expected, command=new_id())

    def publish(self, name: str, files: Mapping[str, bytes], **more: Any) -> str:
        """A published version. Returns the deposit's id."""
        ident = self.open(name, **more)
        for path, content in files.items():
            self.send(ident, path, content)
        self.submit(ident)
        intake.process_submitted(self.worker, self.reader)
        assert self.deposit(ident).phase == "published"
        return ident

    def anonymised(self, name: str, files: Mapping[str, bytes]) -> None:
        self.publish(name, files, claimed="anonymised")
        dataset.record_scan(self.worker, self.dataset(name).dataset_id, 1, 0, "nothing was found")
        dataset.assess(
            self.node, self.who("kerttu"), name, version=1, confirm=True, reason="No names.", command=new_id()
        )
        version = self.dataset(name).current
        assert version is not None
        self.worker.keys.confirm(version.key_id)

    def form(self, name: str, **more: Any) -> access.Form:
        given: dict[str, Any] = {
            "title": "A study",
            "datasets": (name,),
            "purpose": ("HMB", "IRB"),
            "country": "SE",
            "for_profit": False,
            "commercial": False,
            "days": 30,
            "licence": True,
        }
        return access.Form(**(given | more))

    def apply(self, name: str, **more: Any) -> str:
        rikard = self.who("rikard")
        ident = access.draft(self.node, rikard, self.form(name, **more), command=new_id())
        access.submit(self.node, rikard, ident, command=new_id())
        return ident

    def permit(self, name: str, **more: Any) -> str:
        ident = self.apply(name, **more)
        return access.approve(self.node, self.who("dagny"), ident, reason="It fits.", days=None, command=new_id())

    # --- looking ---

    def deposit(self, ident: str) -> Any:
        with self.node.records.reading() as unit:
            return streams.need(unit, streams.DEPOSIT, ident)[0]

    def dataset(self, name: str) -> Any:
        with self.node.records.reading() as unit:
            return dataset.named(unit, name)[0]

    def state(self, process: streams.Process[Any], ident: str) -> Any:
        with self.node.records.reading() as unit:
            return streams.need(unit, process, ident)[0]

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        with self.node.records.reading() as unit:
            return unit.rows(table, where)

    def size(self) -> int:
        with self.node.records.reading() as unit:
            return unit.head().size

    def bodies(self) -> set[str]:
        """Everything in the store, begun bodies included."""
        return {path.name for path in (self.world.folder / "store").rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def made() -> Iterator[Stage]:
    before = os.umask(0o022)  # a node that was built in this process before has narrowed it
    try:
        with world() as found:
            yield Stage(found)
    finally:
        os.umask(before)


@pytest.fixture
def s(made: Stage) -> Stage:
    return made
