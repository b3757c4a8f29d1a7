"""A ledger that lost its end: only two officers, recovering the keys, make the key holder go on from what is left."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.keys.officers import Holder, People, ordered
from tests.keys.running import Tree
from valv.errors import RefusedFault
from valv.keys import messages, recover
from valv.keys.store import Checkpoint

KEPT, SIGNED = 5, 9
NEW = Tree(12, b"another")


@pytest.fixture
def people() -> People:
    return People("anna", "bo", "eva")


@pytest.fixture
def held(tmp_path: Path, people: People) -> Iterator[Holder]:
    made = Holder(tmp_path)
    made.order(people.ceremony("anna", "bo", "eva"))
    yield made
    made.close()


def _recover(held: Holder, people: People, *, left: Checkpoint | None, fits: bool) -> None:
    known = [one.event for one in held.ask(messages.HeldAfter(0))]
    held.ask(messages.BackUp())
    held.close()
    held.path = held.path.with_name("again")
    recover.recover(
        held.places[0],
        held.path,
        held.keyring,
        people.signed(ordered("recover"), "anna", "eva"),
        [people.opened(recover.sealed_share(held.places[0], name), name) for name in ("anna", "bo")],
        known=known,
        passphrase=b"another passphrase",
        now=datetime.now(UTC),
        fits=lambda _: fits,
        left=left,
    )
    held.restart(b"another passphrase")


def _forked(held: Holder, tree: Tree, size: int, proof: list[bytes]) -> bool:
    try:
        held.ask(messages.Sign(size, tree.root(size), proof))
    except RefusedFault as fault:
        assert fault.refusal.code == "ledger_forked"
        return True
    return False


def test_the_key_holder_goes_on_from_what_is_left(held: Holder, people: People) -> None:
    tree = Tree(SIGNED)
    held.ask(messages.Sign(SIGNED, tree.root(SIGNED), []))
    assert _forked(held, tree, KEPT, [])
    assert _forked(held, NEW, 12, NEW.proof(SIGNED, 12))
    _recover(held, people, left=Checkpoint(KEPT, NEW.root(KEPT)), fits=False)
    assert held.ask(messages.Status()).signed_size == KEPT
    assert _forked(held, tree, SIGNED, tree.proof(KEPT, SIGNED))
    assert not _forked(held, NEW, 12, NEW.proof(KEPT, 12))


@pytest.mark.parametrize(("left", "fits"), [(None, False), (Checkpoint(KEPT, NEW.root(KEPT)), True)])
def test_it_does_not_where_nothing_was_lost_or_nobody_accepted_it(
    held: Holder, people: People, left: Checkpoint | None, fits: bool
) -> None:
    tree = Tree(SIGNED)
    held.ask(messages.Sign(SIGNED, tree.root(SIGNED), []))
    _recover(held, people, left=left, fits=fits)
    assert held.ask(messages.Status()).signed_size == SIGNED
    assert _forked(held, NEW, 12, NEW.proof(KEPT, 12))
