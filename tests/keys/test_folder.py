"""Generations of the keys: ceremonies, destruction, drills, the key backup, and recovery from it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.keys.officers import CHEAP, DATA_KEY, NODE, PASSPHRASE, Holder, People, ordered
from valv.core import custody
from valv.errors import (
    ConflictFault,
    Fault,
    FormatFault,
    FullFault,
    InputFault,
    KeyFault,
    MissingFault,
    RefusedFault,
    SealedFault,
    StorageFault,
)
from valv.formats import crypt4gh, minutes, note, order, shares
from valv.keys import disk, folder, messages, orders, recover, recovery
from valv.keys.file import SecretRoot
from valv.keys.folder import Folder
from valv.keys.memory import Secret
from valv.keys.store import Store


@pytest.fixture
def people() -> People:
    return People("anna", "bo", "eva", "lisa", "nils")


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    made = Holder(tmp_path, places=2)
    yield made
    made.close()


@pytest.fixture
def held(holder: Holder, people: People) -> Holder:
    """After a first ceremony."""
    holder.order(people.ceremony("anna", "bo", "eva"))
    return holder


def refused(code: str) -> Any:
    return pytest.raises(RefusedFault, check=lambda fault: fault.refusal.code == code)


def destroyed(key_id: str) -> Any:
    return pytest.raises(KeyFault, match=f"{key_id} was destroyed")


def tree(path: Path) -> dict[Path, bytes]:
    """Every file under a folder, with its content."""
    return {one.relative_to(path): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def generations(path: Path) -> list[str]:
    return sorted(one.name for one in path.iterdir() if one.name != folder.TAG)


def in_backup(place: Path, words: list[str]) -> Store:
    """A place of the key backup, opened with shares. Close it."""
    [name] = generations(place)
    return Store(place / name, SecretRoot(Secret(shares.combine(words))), read_only=True)


# --- ceremonies ---


def test_a_ceremony(holder: Holder, people: People) -> None:
    header = holder.header("ds-1")
    before = holder.ask(messages.Status())
    assert [place.fault for place in holder.ask(messages.Custody()).backups] == [
        "there is nobody yet to recover it: hold a ceremony"
    ] * 2
    told = holder.order(people.ceremony("anna", "bo", "eva", threshold=3))
    after = holder.ask(messages.Status())
    assert after == msgspec.structs.replace(before, generation=2)
    assert holder.opens("ds-1", header)
    assert generations(holder.path) == ["generation-000002"]
    seen = holder.ask(messages.Custody())
    assert seen.state.officers == people.named("anna", "bo", "eva") and seen.state.threshold == 3
    assert seen.held == 1 and [(one.generation, one.fault) for one in seen.backups] == [(2, "")] * 2
    [act] = holder.ask(messages.HeldAfter(0))
    assert (act.number, act.minutes) == (1, told) and holder.ask(messages.HeldAfter(1)) == []
    assert orders.decode_event(act.event).signers == ("anna", "bo")


def test_minutes_are_verified_apart_from_the_node(held: Holder, people: People) -> None:
    """With the node's ledger key and the officers' verifier keys, and nothing else."""
    held.header("ds-1")
    signed = people.signed(ordered("destroy", key_ids=("ds-1",), reason="withdrawn, å é"), "eva", "anna")
    log_key = held.ask(messages.Status()).log_key
    told = held.order(signed)
    note.verify(told, log_key)
    read = minutes.read(told)
    assert read.order == signed
    assert (read.node, read.generation, read.signers) == (NODE, 3, ("anna", "eva"))
    assert order.decode(note.verify(read.order, people["anna"].sign_key, people["eva"].sign_key)) == read.wanted
    assert read.wanted.key_ids == ("ds-1",)
    for change in (("ds-1", "ds-2"), ("withdrawn", "approved"), ("generation: 3", "generation: 4"), ("anna", "nils")):
        with pytest.raises(Fault):
            note.verify(told.replace(*change), log_key)
    with pytest.raises(Fault):
        note.verify(read.order.replace("ds-1", "ds-2"), people["anna"].sign_key)


def test_the_same_order_is_done_once(held: Holder, people: People) -> None:
    held.header("ds-1")
    first = people.signed(ordered("destroy", key_ids=("ds-1",)), "anna", "bo")
    told = held.order(first)
    before = tree(held.path)
    for again in (first, first, people.signed(first, "eva"), first.split("\n\n")[0] + "\n\n" + first.split("\n\n")[1]):
        assert held.order(again) == told
    assert tree(held.path) == before and held.generation == 3
    held.restart()
    assert held.order(first) == told
    other = order.decode(note.read(first)[0])
    for changed in ({"key_ids": ("ds-2",)}, {"deed": "drill", "key_ids": ()}, {"at": other.at - timedelta(seconds=1)}):
        with pytest.raises(ConflictFault, match="was another's"):
            held.order(people.signed(msgspec.structs.replace(other, **changed), "anna", "bo"))
    assert tree(held.path) == before


def test_orders_that_are_refused(held: Holder, people: People) -> None:
    held.header("ds-1")
    before = tree(held.path)
    impostor = People("bo")
    wanted = ordered("destroy", key_ids=("ds-1",))
    good = people.signed(wanted, "anna", "bo")
    for code, signed in {
        "two_officers": people.signed(wanted, "anna"),
        "two_officers ": people.signed(wanted, "anna", "anna"),
        "two_officers  ": people.signed(wanted, "lisa", "nils"),
        "two_officers   ": people.signed(wanted, "anna", "nils"),
        "two_officers    ": impostor.signed(people.signed(wanted, "anna"), "bo"),
        "two_officers     ": good.replace("ds-1", "ds-9"),
        "two_officers      ": people.signed(wanted, "anna") + people.signed(ordered("drill"), "bo").split("\n\n")[1],
        "order_foreign": people.signed(ordered("destroy", key_ids=("ds-1",), node="other.example"), "anna", "bo"),
        "order_old": people.signed(ordered("destroy", key_ids=("ds-1",), before=86_500), "anna", "bo"),
        "order_old ": people.signed(ordered("destroy", key_ids=("ds-1",), before=-3600), "anna", "bo"),
        "order_old  ": people.signed(ordered("destroy", key_ids=("ds-1",), before=5), "anna", "bo"),
        "key_missing": people.signed(ordered("destroy"), "anna", "bo"),
        "threshold": people.ceremony("anna", "bo", threshold=1),
        "officer_twice": people.ceremony("anna", "bo", "anna"),
    }.items():
        with refused(code.strip()):
            held.order(signed)
    with pytest.raises(MissingFault):
        held.order(people.signed(ordered("destroy", key_ids=("ds-1", "ds-9")), "anna", "bo"))
    for text in ("", "\n", wanted.encode(), good[:-3], good.replace("order: ", "order:  ", 1)):
        with pytest.raises(FormatFault):
            held.order(text)
    assert tree(held.path) == before and held.generation == 2
    held.order(good)


def test_former_officers_have_no_say(held: Holder, people: People) -> None:
    held.header("ds-1")
    old_words = held.shares(people, "anna", "bo")
    with refused("two_officers"):
        held.order(people.ceremony("lisa", "nils", "eva", by="lisa nils eva"))
    held.order(people.ceremony("lisa", "nils", "eva", by="anna bo lisa nils"))
    for by in (("anna", "bo"), ("anna", "eva")):
        with refused("two_officers"):
            held.order(people.signed(ordered("destroy", key_ids=("ds-1",)), *by))
    with refused("officer_unknown"):
        held.ask(messages.Shares("anna"))
    for place in held.places:
        with pytest.raises(KeyFault):
            in_backup(place, old_words)
    held.order(people.signed(ordered("destroy", key_ids=("ds-1",)), "lisa", "eva"))


def test_two_persons_unseal(held: Holder, people: People) -> None:
    header = held.header("ds-1")
    held.order(people.ceremony("anna", "bo", "eva", persons=2))
    assert held.ask(messages.Status()).persons == 2
    held.restart(None)
    with refused("two_officers"):
        held.ask(messages.Unseal(PASSPHRASE))
    assert not held.ask(messages.Status()).open
    held.unseal(people, "eva")
    held.unseal(people, "eva")
    status = held.ask(messages.Status())
    assert (status.open, status.persons, status.present) == (False, 2, 1)
    with pytest.raises(SealedFault):
        held.opens("ds-1", header)
    held.unseal(people, "anna")
    assert held.ask(messages.Status()).open and held.opens("ds-1", header)
    held.ask(messages.Create("out", "result"))
    held.ask(messages.Destroy("out"))
    held.restart(None)
    held.unseal(people, "bo", "anna")  # their shares are the same after the root key was made anew
    assert held.opens("ds-1", header)
    with refused("threshold"):
        held.order(people.ceremony("anna", "bo", "eva", persons=1))
    held.order(people.ceremony("lisa", "nils", persons=2, by="anna bo lisa nils"))
    held.restart(None)
    with refused("officer_unknown"):
        held.ask(messages.Shares("anna"))
    held.unseal(people, "lisa", "nils")
    assert held.opens("ds-1", header)


def test_shares_of_an_older_ceremony_do_not_unseal(held: Holder, people: People) -> None:
    held.order(people.ceremony("anna", "bo", "eva", persons=2))
    old = [people.opened(held.ask(messages.Shares(name)).unsealing, name) for name in ("anna", "bo")]
    held.order(people.ceremony("anna", "bo", "eva", persons=2))
    held.restart(None)
    held.ask(messages.UnsealShare(old[0]))
    with pytest.raises(KeyFault):
        held.ask(messages.UnsealShare(old[1]))
    status = held.ask(messages.Status())
    assert not status.open and status.present == 0, "which share was wrong cannot be told: all are forgotten"
    held.ask(messages.UnsealShare(old[0]))
    with pytest.raises(KeyFault):
        held.unseal(people, "anna")
    held.unseal(people, "anna", "bo")
    assert held.ask(messages.Status()).open


def test_a_first_share_is_not_kept_for_ever(held: Holder, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    held.order(people.ceremony("anna", "bo", "eva", persons=2))
    held.restart(None)
    held.unseal(people, "anna")
    late = held.keyd._given_until + 1
    monkeypatch.setattr("valv.keys.keyd.time.monotonic", lambda: late)
    assert held.ask(messages.Status()).present == 0 and not held.keyd._given
    held.unseal(people, "bo")
    assert held.ask(messages.Status()).present == 1


# --- destroying ---


def test_destroying_rolls_the_root_key(held: Holder, people: People) -> None:
    headers = {key_id: held.header(key_id) for key_id in ("ds-1", "ds-2", "ds-3")}
    old, old_words = tree(held.path), held.shares(people, "anna", "bo")
    old_places = [shutil.copytree(place, place.with_name(f"{place.name}-copy")) for place in held.places]
    held.order(people.signed(ordered("destroy", key_ids=("ds-1", "ds-3")), "bo", "eva"))
    for key_id in ("ds-1", "ds-3"):
        with destroyed(key_id):
            held.opens(key_id, headers[key_id])
        with refused("key_destroyed"):
            held.ask(messages.Create(key_id, "identifiable"))
        with refused("key_destroyed"):
            held.order(people.signed(ordered("destroy", key_ids=("ds-2", key_id)), "bo", "eva"))
    assert held.opens("ds-2", headers["ds-2"])
    now = tree(held.path)
    assert {path.name for path in now} == {path.name for path in old} - {"ds-1.json", "ds-3.json"}
    for path, content in now.items():
        assert content not in old.values() or path.name == folder.TAG, path
    assert held.shares(people, "anna", "bo") != old_words
    for place in held.places:
        assert generations(place) == ["generation-000003"]
        with pytest.raises(KeyFault):
            in_backup(place, old_words)
        store = in_backup(place, held.shares(people, "anna", "eva"))
        assert store.key_ids == ["ds-2"] and store.destroyed == {"ds-1", "ds-3"}
        store.close()
    for place in old_places:  # why no copy of a place may be kept: it opens with the shares of its time
        store = in_backup(place, old_words)
        assert store.key_ids == ["ds-1", "ds-2", "ds-3"]
        store.close()


def test_a_result_is_destroyed_by_the_worker_alone(held: Holder) -> None:
    header = held.header("out", "result")
    held.ask(messages.Destroy("out"))
    held.ask(messages.Destroy("out"))
    assert held.generation == 3
    with destroyed("out"):
        held.opens("out", header)
    assert held.ask(messages.Custody()).state.destroyed == ()
    assert [one.generation for one in held.ask(messages.Custody()).backups] == [3, 3]


@pytest.mark.parametrize("why", ["root key", "records"])
def test_what_was_overwritten_is_gone_from_the_old_files(held: Holder, why: str) -> None:
    held.header("ds-1")
    held.header("out", "result")
    old = held.living
    path = old / "root.json" if why == "root key" else old / "keys" / "ds-1.json"
    with path.open("rb") as file:
        size = len(file.read())
        held.ask(messages.Destroy("out"))
        file.seek(0)
        assert file.read() == bytes(size)
    assert not old.exists()


# --- old copies put back ---


def test_an_older_generation_put_back_does_not_open(held: Holder, people: People) -> None:
    """Beside the living one, under its own number or a newer one, or in its place."""
    header = held.header("ds-1")
    kept = shutil.copytree(held.living, held.path.with_name("kept"))
    held.order(people.signed(ordered("destroy", key_ids=("ds-1",)), "bo", "eva"))
    living = tree(held.path)
    held.close()
    shutil.copytree(kept, held.path / "generation-000002")
    held.restart()
    assert tree(held.path) == living, "it is cleared away"
    held.close()
    for name in ("generation-000009", "generation-000003"):
        with contextlib.suppress(FileNotFoundError):
            (held.path / name).rename(held.path / "aside")
        shutil.copytree(kept, held.path / name)
        with pytest.raises(KeyFault, match="under another's name"):
            held.restart()
        shutil.rmtree(held.path / name)
        if (held.path / "aside").exists():
            (held.path / "aside").rename(held.path / name)
        assert tree(held.path) == living, "nothing was destroyed for it"
    held.restart()
    with destroyed("ds-1"):
        held.opens("ds-1", header)


@pytest.mark.parametrize(
    "name", ["recovery.json", "unseal.json", "custody.json", "index.json", "node.json", "root.json"]
)
def test_files_of_an_older_generation_put_back(held: Holder, people: People, name: str) -> None:
    held.order(people.ceremony("anna", "bo", "eva", persons=2))
    old = tree(held.living)
    held.order(people.ceremony("anna", "bo", "lisa", persons=2, by="anna bo"))
    held.close()
    path = held.living / name
    good, path_bytes = path.read_bytes(), old[Path(name)]
    path.write_bytes(path_bytes)
    held.restart(None)
    with pytest.raises((KeyFault, RefusedFault)):
        held.unseal(people, "anna", "bo")
    assert not held.ask(messages.Status()).open
    path.write_bytes(good)
    held.restart(None)
    held.unseal(people, "anna", "bo")


def test_a_share_file_that_is_gone_is_found(held: Holder, people: People) -> None:
    """Else the next root key would be dealt to nobody, or one person would unseal."""
    (held.living / "recovery.json").rename(held.path / "aside")
    with pytest.raises(KeyFault, match=r"recovery\.json"):
        held.restart()
    (held.path / "aside").rename(held.living / "recovery.json")
    held.restart()
    shutil.copy(held.living / "recovery.json", held.path / "aside")
    unsealing = recovery.Unsealing.deal(people.named("lisa", "nils"), 2, PASSPHRASE)
    (held.living / "unseal.json").write_bytes(msgspec.json.encode(unsealing))
    held.restart(None)
    with pytest.raises(KeyFault, match=r"unseal\.json"):
        held.unseal(people, "lisa", "nils")


# --- drills ---


def test_a_drill(held: Holder, people: People) -> None:
    words = held.shares(people, "anna", "bo", "eva")
    drill = people.signed(ordered("drill"), "anna", "eva")
    with refused("two_officers"):
        held.order(people.signed(ordered("drill"), "anna"), *words)
    with pytest.raises(KeyFault):
        held.order(drill, words[0])
    with pytest.raises(KeyFault):
        held.order(drill)
    with pytest.raises(KeyFault, match="do not fit together"):
        held.order(drill, words[0], shares.split(bytes(32), 2, 3)[1])
    with pytest.raises(KeyFault, match="present keys"):
        held.order(drill, *shares.split(bytes(32), 2, 3)[:2])
    assert held.ask(messages.Custody()).held == 1
    told = held.order(drill, *words)
    assert minutes.read(told).wanted.deed == "drill" and held.generation == 2
    state = held.ask(messages.Custody()).state
    assert state.drill_at > state.ceremony_at
    held.restart()
    assert held.ask(messages.Custody()).state == state


def test_a_drill_opens_the_backup(held: Holder, people: People) -> None:
    """In every place: what was altered there, or is away, is found, and the drill is not held."""
    for number in range(3):
        held.header(f"ds-{number}")
    words = held.shares(people, "anna", "bo")
    drill = people.signed(ordered("drill"), "anna", "eva")
    record = next(held.places[1].rglob("ds-1.json"))
    good = record.read_bytes()
    for bad in (good.replace(b'"ds-1"', b'"ds-2"'), b"", next(held.places[1].rglob("ds-2.json")).read_bytes()):
        record.write_bytes(bad)
        with pytest.raises(KeyFault):
            held.order(drill, *words)
    record.unlink()
    with pytest.raises(MissingFault):
        held.order(drill, *words)
    record.write_bytes(good)
    hidden = held.places[0].rename(held.places[0].with_name("hidden"))
    held.header("ds-9")
    with pytest.raises(StorageFault, match="place-0"):
        held.order(drill, *words)
    assert held.ask(messages.Custody()).held == 1
    hidden.rename(held.places[0])
    held.order(drill, *words)  # it is brought up to date first
    assert held.ask(messages.Custody()).held == 2


# --- the key backup ---


def test_the_backup_follows_every_change(held: Holder, people: People) -> None:
    held.header("ds-1", "anonymised")
    held.ask(messages.Confirm("ds-1"))
    held.ask(messages.Rotate("ds-1", 2))
    held.header("out", "result")
    held.ask(messages.Narrow("out"))
    words = held.shares(people, "anna", "bo")
    for place in held.places:
        store = in_backup(place, words)
        for key_id in ("ds-1", "out"):
            assert store.unlock(key_id)[1] == held.keyd._store.unlock(key_id)[1]
            assert store.unlock(key_id)[0].version == held.keyd._store.unlock(key_id)[0].version
        assert (store.intake_private(), store.log_private()) == (
            held.keyd._store.intake_private(),
            held.keyd._store.log_private(),
        )
        store.close()
        assert not {one.name for one in place.rglob("*")} & {"root.json", "unseal.json"}
        assert json.loads((next(place.iterdir()) / "recovery.json").read_text())["wrapped"] == ""
    held.ask(messages.Retire("ds-1", 2))
    held.ask(messages.Sign(0, held.keyd._store.checkpoint.root, []))
    for place in held.places:
        store = in_backup(place, words)
        assert len(store.unlock("ds-1")[1]) == 1
        store.close()


def test_a_place_that_is_away_and_comes_back(held: Holder, people: People) -> None:
    away, there = held.places
    hidden = away.rename(away.with_name("hidden"))
    held.header("ds-1")
    held.order(people.signed(ordered("destroy", key_ids=("ds-1",)), "bo", "eva"))
    held.header("ds-2")
    found = held.ask(messages.BackUp())
    assert [(one.generation, bool(one.fault)) for one in found] == [(0, True), (3, False)]
    assert str(away) in found[0].fault
    assert generations(hidden) == ["generation-000002"] and generations(there) == ["generation-000003"]
    hidden.rename(away)
    assert held.ask(messages.Custody()).backups[0].fault, "known only once it was written"
    assert [(one.generation, one.fault) for one in held.ask(messages.BackUp())] == [(3, "")] * 2
    assert generations(away) == ["generation-000003"]
    store = in_backup(away, held.shares(people, "anna", "bo"))
    assert store.key_ids == ["ds-2"]
    store.close()


def test_a_place_without_room_or_rights(held: Holder) -> None:
    for place in held.places:
        shutil.rmtree(place)
        place.write_text("a file in its place")
    held.header("ds-1")
    found = held.ask(messages.BackUp())
    assert all(one.fault for one in found)
    for place in held.places:
        place.unlink()
        place.mkdir(mode=0o755)
    found = held.ask(messages.BackUp())
    assert [(one.generation, one.fault) for one in found] == [(2, "")] * 2


def test_a_newer_generation_in_a_place_is_left_alone(held: Holder) -> None:
    """The node was recovered from another place, whose backup was older: a person decides which one counts."""
    newer = held.places[0] / "generation-000008"
    newer.mkdir(mode=0o700)
    (newer / "node.json").write_text("{}")
    held.restart()
    held.header("ds-1")
    found = held.ask(messages.BackUp())
    assert [(one.generation, bool(one.fault)) for one in found] == [(8, True), (2, False)]
    assert "newer generation" in found[0].fault and (newer / "node.json").read_text() == "{}"
    shutil.rmtree(newer)
    assert [one.fault for one in held.ask(messages.BackUp())] == ["", ""]


def test_what_a_crash_left_in_a_place_is_cleared(held: Holder) -> None:
    for place in held.places:
        (place / ".generation-000002.old").mkdir()
        (place / ".generation-000003").mkdir()
        (place / ".generation-000003" / "x.json").write_text("secret")
    held.restart()
    assert [generations(place) for place in held.places] == [["generation-000002"]] * 2


# --- recovery ---


def recovered(held: Holder, signed: str, words: list[str], *, place: int = 0, known: list[bytes], **more: Any) -> str:
    """Recover to a new key folder and open it there."""
    held.close()
    held.path = held.path.with_name(f"again-{len(list(held.path.parent.iterdir()))}")
    return recover.recover(
        held.places[place],
        held.path,
        held.keyring,
        signed,
        words,
        known=known,
        **{"passphrase": b"another passphrase", "now": datetime.now(UTC), **more},
    )


def known(held: Holder) -> list[bytes]:
    """What the ledger has of custody."""
    return [one.event for one in held.ask(messages.HeldAfter(0))]


def words_of(place: Path, people: People, *names: str) -> list[str]:
    return [people.opened(recover.sealed_share(place, name), name) for name in names]


def test_recovering_from_the_backup(held: Holder, people: People) -> None:
    headers = {key_id: held.header(key_id) for key_id in ("ds-1", "ds-2")}
    held.ask(messages.Rotate("ds-2", 2))
    drill = people.signed(ordered("drill"), "anna", "eva")
    drilled = held.order(drill, *held.shares(people, "anna", "bo"))
    held.order(people.signed(ordered("destroy", key_ids=("ds-1",)), "bo", "eva"))
    before, ledger = held.ask(messages.Status()), known(held)
    signed = people.signed(ordered("recover"), "bo", "eva")
    told = recovered(held, signed, words_of(held.places[1], people, "anna", "eva"), place=1, known=ledger)
    note.verify(told, before.log_key)
    held.restart(b"another passphrase")
    after = held.ask(messages.Status())
    assert after == msgspec.structs.replace(before, generation=4)
    assert held.opens("ds-2", headers["ds-2"])
    with destroyed("ds-1"):
        held.opens("ds-1", headers["ds-1"])
    assert known(held)[:-1] == ledger and orders.decode_event(known(held)[-1]).signers == ("bo", "eva")
    assert held.order(signed) == told and held.order(drill) == drilled, "ids of orders are remembered"
    assert [generations(place) for place in held.places] == [["generation-000004"]] * 2
    held.order(people.signed(ordered("drill"), "bo", "eva"), *held.shares(people, "eva", "bo"))
    assert (held.path / folder.TAG).read_bytes() == folder.TAG_CONTENT


def test_an_old_backup_brings_nothing_back(held: Holder, people: People) -> None:
    """A copy of a place from before a destruction, opened with the shares of its time: what the ledger knows counts."""
    headers = {key_id: held.header(key_id) for key_id in ("ds-1", "ds-2")}
    old = shutil.copytree(held.places[0], held.path.with_name("old"))
    held.order(people.signed(ordered("destroy", key_ids=("ds-1",)), "bo", "eva"))
    held.order(people.ceremony("lisa", "nils", persons=2, by="anna bo lisa nils"))
    ledger = known(held)
    for place in held.places:
        shutil.rmtree(place)
        place.mkdir(mode=0o700)
    held.places[0].rmdir()
    old.rename(held.places[0])
    words = words_of(held.places[0], people, "anna", "bo")
    recovered(held, people.signed(ordered("recover"), "anna", "bo"), words, known=ledger)
    held.restart(None)
    with refused("officer_unknown"):
        held.ask(messages.Shares("anna"))
    held.unseal(people, "lisa", "nils")
    assert held.generation == 5 and held.opens("ds-2", headers["ds-2"])
    with destroyed("ds-1"):
        held.opens("ds-1", headers["ds-1"])
    with refused("two_officers"):
        held.order(people.signed(ordered("drill"), "anna", "bo"), *held.shares(people, "lisa", "nils"))
    assert known(held)[:-1] == ledger


def test_an_order_that_the_backup_does_not_know_is_not_done_again(held: Holder, people: People) -> None:
    """The ids of orders since the backup are lost. One that brought in an officer who was dismissed since then, still
    fresh, and signed by two who are officers still, must not bring back that officer."""
    old = shutil.copytree(held.places[0], held.path.with_name("old"))
    first = people.ceremony("anna", "bo", "nils", before=2)
    with refused("order_old"):
        held.order(first)
    first = people.ceremony("anna", "bo", "nils")
    held.order(first)
    _wait_a_second()
    second = people.ceremony("anna", "bo", "eva")
    held.order(second)
    _wait_a_second()
    ledger = known(held)
    shutil.rmtree(held.places[0])
    old.rename(held.places[0])
    words = words_of(held.places[0], people, "anna", "bo")
    recovered(held, people.signed(ordered("recover"), "anna", "bo"), words, known=ledger)
    held.restart(b"another passphrase")
    for replayed in (first, second):
        with refused("order_old"):
            held.order(replayed)
    assert held.ask(messages.Custody()).state.officers == people.named("anna", "bo", "eva")


def _wait_a_second() -> None:
    """Orders and ceremonies are told apart by whole seconds."""
    now = datetime.now(UTC).replace(microsecond=0)
    while datetime.now(UTC).replace(microsecond=0) == now:
        pass


def test_recoveries_that_are_refused(held: Holder, people: People) -> None:
    held.header("ds-1")
    ledger, place = known(held), held.places[0]
    words = words_of(place, people, "anna", "bo", "eva")
    good = people.signed(ordered("recover"), "bo", "eva")
    with refused("officer_unknown"):
        recover.sealed_share(place, "nils")
    for code, signed in {
        "two_officers": people.signed(ordered("recover"), "bo"),
        "two_officers ": people.signed(ordered("recover"), "bo", "lisa"),
        "order_foreign": people.signed(ordered("recover", node="other.example"), "bo", "eva"),
        "order_old": people.signed(ordered("recover", before=90_000), "bo", "eva"),
    }.items():
        with refused(code.strip()):
            recovered(held, signed, words[:2], known=ledger)
        assert not held.path.exists()
    for wrong in ([], words[:1], [words[0], words[0]], shares.split(bytes(32), 2, 2)):
        with pytest.raises(KeyFault):
            recovered(held, good, wrong, known=ledger)
    with pytest.raises(FormatFault, match="not an order to recover"):
        recovered(held, people.signed(ordered("destroy", key_ids=("ds-1",)), "bo", "eva"), words, known=ledger)
    with pytest.raises(InputFault):
        recovered(held, good, words, known=ledger, passphrase=b"short")
    other = orders.decode_event(ledger[0])
    forged = msgspec.json.encode(msgspec.structs.replace(other, officers=people.named("lisa", "nils")))
    with pytest.raises(KeyFault, match="different stories"):
        recovered(held, good, words, known=[forged])
    assert not held.path.exists() and not list(held.path.parent.glob(".*"))
    held.path.mkdir()
    with pytest.raises(ConflictFault, match="exists"):
        recover.recover(
            place, held.path, held.keyring, good, words, passphrase=PASSPHRASE, known=ledger, now=datetime.now(UTC)
        )
    recovered(held, good, words, known=ledger)  # with more shares than needed
    held.restart(b"another passphrase")


def test_nothing_is_recovered_from_what_is_no_backup(held: Holder, people: People, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFault):
        recover.sealed_share(tmp_path / "empty", "anna")
    held.header("ds-1")
    place = held.places[0]
    words = words_of(place, people, "anna", "bo")
    record = next(place.rglob("ds-1.json"))
    record.write_bytes(record.read_bytes().replace(b'"identifiable"', b'"anonymised"'))
    with pytest.raises(KeyFault, match="altered"):
        recovered(held, people.signed(ordered("recover"), "anna", "bo"), words, known=known(held))
    assert not held.path.exists() and not list(held.path.parent.glob(".*"))


# --- what fails half way ---


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a small file system")
    place = tmp_path / "small"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"valv-test", str(place).encode(), b"tmpfs", 0, b"size=1m,mode=0700") != 0:
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    try:
        yield place
    finally:
        assert libc.umount2(str(place).encode(), 2) == 0


def fill(place: Path, left: int) -> None:
    """Leave so many bytes free."""
    (place / "filling").unlink(missing_ok=True)
    free = os.statvfs(place)
    (place / "filling").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - left)))


def test_a_full_disk_while_the_root_key_is_made_anew(small: Path, people: People) -> None:
    """At whichever file it fills up: nothing has changed, and with room again it works."""
    holder = Holder(small, places=0)
    try:
        holder.order(people.ceremony("anna", "bo", "eva"))
        headers = {f"ds-{number}": holder.header(f"ds-{number}") for number in range(12)}
        before = tree(holder.path)
        signed = people.signed(ordered("destroy", key_ids=("ds-1",)), "anna", "bo")
        for pages in (0, 1, 2, 3, 5, 8, 11, 14):
            fill(small, pages * 4096)
            with pytest.raises(FullFault):
                holder.order(signed)
            assert tree(holder.path) == before and holder.generation == 2
        for key_id, header in headers.items():
            assert holder.opens(key_id, header)
        with pytest.raises(FullFault):
            fill(small, 0)
            holder.ask(messages.Create("more", "identifiable"))
        (small / "filling").unlink()
        holder.order(signed)
        with destroyed("ds-1"):
            holder.opens("ds-1", headers["ds-1"])
        assert holder.opens("ds-2", headers["ds-2"]) and generations(holder.path) == ["generation-000003"]
        holder.restart()
    finally:
        holder.close()


def test_a_place_that_is_full(small: Path, people: People, tmp_path: Path) -> None:
    holder = Holder(tmp_path, places=1)
    holder.keyd.close()
    holder.places = [small]
    holder.restart()
    try:
        holder.order(people.ceremony("anna", "bo", "eva"))
        fill(small, 0)
        header = holder.header("ds-1")
        [found] = holder.ask(messages.BackUp())
        assert "No space" in found.fault and holder.opens("ds-1", header)
        (small / "filling").unlink()
        [found] = holder.ask(messages.BackUp())
        assert (found.fault, found.generation) == ("", 2)
        store = in_backup_of(small, holder.shares(people, "anna", "bo"))
        assert store.key_ids == ["ds-1"]
        store.close()
    finally:
        holder.close()


def in_backup_of(place: Path, words: list[str]) -> Store:
    return Store(max(place.glob("generation-*")), SecretRoot(Secret(shares.combine(words))), read_only=True)


def test_files_that_may_not_grow(held: Holder, people: People) -> None:
    """RLIMIT_FSIZE in place of a full disk, where no file system can be mounted."""
    for number in range(40):
        held.ask(messages.Create(f"ds-{number}", "identifiable"))
    before = tree(held.path)
    most = (held.living / "index.json").stat().st_size - 1
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        with pytest.raises(StorageFault):
            held.order(people.signed(ordered("destroy", key_ids=("ds-1",)), "anna", "bo"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert tree(held.path) == before and held.generation == 2


def test_any_step_that_fails_changes_nothing(held: Holder, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the disk while the root key is made anew, up to the rename."""
    header = held.header("ds-1")
    held.header("ds-2")
    before = tree(held.path)
    names = ("write", "write_loose", "sync_all", "sync_folder")
    real = {name: getattr(disk, name) for name in names}
    calls = fails_at = 0

    def failing(name: str) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fails_at:
                raise StorageFault("it fails here")
            return real[name](*args, **more)

        return call

    for name in names:
        monkeypatch.setattr(disk, name, failing(name))
    wanted = ordered("destroy", key_ids=("ds-2",))
    failed = 0
    for number in range(1, 100):
        calls, fails_at = 0, number
        try:
            told = held.order(people.signed(wanted, "anna", "bo"))
        except StorageFault:
            failed += 1
            fails_at = 0
            if held.generation == 3:  # it was done, and only the old generation is still there
                told = held.order(people.signed(wanted, "anna", "bo"))
                break
            assert tree(held.path) == before and held.opens("ds-1", header)
        else:
            break
    assert failed >= 8 and held.generation == 3 and minutes.read(told).generation == 3
    fails_at = 0
    assert [one.fault for one in held.ask(messages.BackUp())] == ["", ""]
    assert generations(held.path) == ["generation-000003"]
    held.restart()
    assert held.opens("ds-1", header)


# --- one holder, whole answers ---


def test_one_process_at_a_time(held: Holder) -> None:
    with pytest.raises(ConflictFault, match="another key holder"):
        Folder(held.path, held.keyring, PASSPHRASE)
    held.keyd.close()
    held.keyd.close()
    opened = Folder(held.path, held.keyring, PASSPHRASE)
    opened.close()
    opened.close()
    held.restart()


def test_an_opening_that_fails_lets_go_of_everything(held: Holder) -> None:
    held.close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(KeyFault):
            Folder(held.path, held.keyring, b"not the passphrase")
    assert len(os.listdir("/proc/self/fd")) == before
    held.restart()
    for number in range(3):
        held.header(f"out-{number}", "result")
        held.ask(messages.Destroy(f"out-{number}"))
    held.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_acts_are_told_in_answers_that_fit(held: Holder, people: People) -> None:
    """Orders as large as can be: each comes whole, and no answer is larger than a frame."""
    for number in range(6):
        reason = chr(0x1F600) * (order.LONGEST - 300)
        held.header(f"ds-{number}")
        held.order(people.signed(ordered("destroy", key_ids=(f"ds-{number}",), reason=reason), "anna", "bo"))
    after, told = 0, []
    while found := held.ask(messages.HeldAfter(after)):
        messages.frame(messages.Done(msgspec.Raw(msgspec.msgpack.encode(found))))
        told += found
        after = found[-1].number
    assert [one.number for one in told] == list(range(1, 8))
    for one in told:
        note.verify(one.minutes, held.ask(messages.Status()).log_key)
        assert isinstance(orders.decode_event(one.event), custody.Destroyed | custody.CeremonyHeld)


def test_rotation_opens_each_header_with_exactly_one_pair(held: Holder, people: People) -> None:
    """Before, during and after, over rolls of the root key and restarts."""
    headers = [held.header("ds-1")]
    for pair in range(2, 5):
        held.ask(messages.Rotate("ds-1", pair))
        headers.append(held.header("ds-1"))
        held.restart()
        held.header(f"out-{pair}", "result")
        held.ask(messages.Destroy(f"out-{pair}"))
        privates = held.keyd._store.unlock("ds-1")[1]
        for number, header in enumerate(headers):
            opening = [private for private in privates if _opens(header, private)]
            assert opening == [privates[len(privates) - 1 - number]]
        again = held.ask(messages.ResealWithin("ds-1", headers))
        assert all(_opens(header, privates[0]) for header in again)
    held.ask(messages.Retire("ds-1", 4))
    assert held.opens("ds-1", again[0]) and held.opens("ds-1", headers[-1])
    for header in headers[:-1]:
        with pytest.raises(KeyFault):
            held.opens("ds-1", header)


def _opens(header: bytes, private: bytes) -> bool:
    try:
        return crypt4gh.open_header(header, [private]).data_keys == (DATA_KEY,)
    except KeyFault:
        return False


def test_the_cost_of_the_passphrase_stays(held: Holder, people: People) -> None:
    held.order(people.ceremony("anna", "bo", persons=2))
    assert json.loads((held.living / "root.json").read_text())["cost"] == msgspec.to_builtins(CHEAP)
