"""What every database must do (`valv.ports.records`), each test on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from valv.db.database import Database, Transaction
from valv.errors import ConflictFault, Fault, FormatFault, InputFault, InternalFault
from valv.formats.ledger import decode_leaf
from valv.formats.merkle import EMPTY_ROOT, leaf_hash, verify_consistency, verify_inclusion
from valv.ports.records import Change, Recorded, RepeatedCommand

NOW = datetime(2031, 2, 3, 4, 5, 6, 789012, UTC)


def change(stream: str, expected: int, *tags: str, phase: str = "open", **links: tuple[str, ...]) -> Change:
    kind = stream.partition("/")[0]
    events = tuple((tag, json.dumps({"tag": tag, "n": expected}).encode()) for tag in tags)
    return Change(stream, kind, expected, events, phase, b'{"n":%d}' % (expected + len(tags)), links)


def append(unit: Transaction, *changes: Change, command: str, at: datetime = NOW, **more: Any) -> list[Recorded]:
    return unit.append(changes, actor="account/1", at=at, command=command, **more)


def fill(database: Database, count: int, streams: int = 3) -> None:
    with database.writing() as unit:
        for number in range(count):
            stream, version = f"box/{number % streams}", number // streams
            append(unit, change(stream, version, "box.filled"), command=f"fill-{number}")


def an_account(**values: Any) -> dict[str, Any]:
    row = {
        "id": "a1",
        "name": "anna",
        "display": "Anna Ö",
        "email": "anna@example.org",
        "roles": ["researcher"],
        "password": "hash",
        "created": NOW,
    }
    return {**row, **values}


# --- the journal -----------------------------------------------------------------------------------------------------


def test_an_append_is_read_back(database: Database) -> None:
    with database.writing() as unit:
        recorded = append(unit, change("box/1", 0, "box.made", "box.filled", owner=("p", "q")), command="c1")
    assert [(one.position, one.version, one.tag) for one in recorded] == [(0, 1, "box.made"), (1, 2, "box.filled")]
    with database.reading() as unit:
        assert unit.events("box/1") == unit.follow(-1) == recorded
        assert unit.follow(0) == recorded[1:]
        assert unit.events("box/2") == []
        state = unit.load("box/1")
        assert state is not None
        assert (state.kind, state.version, state.phase, state.state) == ("box", 2, "open", b'{"n":2}')
        assert state.changed == NOW
        assert unit.load("box/2") is None
        assert unit.head().size == 2


def test_the_leaf_says_what_the_row_says(database: Database) -> None:
    late = datetime(2031, 2, 3, 6, 5, 6, 7, timezone(timedelta(hours=2)))
    odd = Change("box/1", "box", 0, (("box.made", b' {"z": [1, 2.5], "a": "\\u00e5"} '),), "open", b"{}")
    with database.writing() as unit:
        (event,) = append(unit, odd, command="c", at=late)
    assert event.leaf.decode() == (
        '{"actor":"account/1","at":"2031-02-03T04:05:06.000007Z","command":"c","data":{"a":"å","z":[1,2.5]},'
        '"position":0,"stream":"box/1","tag":"box.made","version":1}'
    )
    assert event.data == '{"a":"å","z":[1,2.5]}'.encode()
    assert decode_leaf(event.leaf).position == 0
    with database.reading() as unit:
        assert unit.follow(-1) == [event]


def test_another_version_is_a_conflict_and_changes_nothing(database: Database) -> None:
    fill(database, 3)
    with database.reading() as unit:
        before = unit.head(), unit.load("box/0")
    for wrong in (0, 2):
        with pytest.raises(ConflictFault, match="box/0 is at version 1"), database.writing() as unit:
            append(unit, change("box/9", 0, "box.made"), change("box/0", wrong, "box.filled"), command=f"w{wrong}")
    with database.reading() as unit:
        assert (unit.head(), unit.load("box/0")) == before
        assert unit.load("box/9") is None


def test_asserted_versions_must_hold(database: Database) -> None:
    fill(database, 3)
    with database.writing() as unit:
        append(unit, change("case/1", 0, "case.opened"), command="ok", asserts={"box/0": 1, "box/77": 0})
    for asserts in ({"box/0": 2}, {"box/77": 1}, {"case/1": 0}):
        with pytest.raises(ConflictFault), database.writing() as unit:
            append(unit, change("case/2", 0, "case.opened"), command="no", asserts=asserts)


def test_a_repeated_command_gives_its_first_answer(database: Database) -> None:
    with database.writing() as unit:
        first = append(unit, change("box/1", 0, "box.made", "box.filled"), command="once")
    with pytest.raises(RepeatedCommand) as again, database.writing() as unit:
        append(unit, change("box/1", 2, "box.made"), command="once")
    assert again.value.recorded == first
    with database.writing() as unit:
        with pytest.raises(RepeatedCommand):
            append(unit, change("box/1", 2, "box.made"), command="once")
        append(unit, change("box/1", 2, "box.emptied"), command="twice")  # the unit is still good
    with database.reading() as unit:
        assert unit.head().size == 3


def test_a_command_is_known_once_it_is_kept(database: Database) -> None:
    with pytest.raises(ConflictFault), database.writing() as unit:
        append(unit, change("box/1", 3, "box.made"), command="c")
    with database.writing() as unit:
        assert not unit.repeated("c")
        append(unit, change("box/1", 0, "box.made"), command="c")
        assert unit.repeated("c")
    with database.reading() as unit:
        assert unit.repeated("c")
        assert not unit.repeated("d")


def test_a_change_without_events_refolds(database: Database) -> None:
    fill(database, 3)
    with database.writing() as unit:
        assert append(unit, Change("box/0", "box", 1, (), "shut", b"{}", {"owner": ("x",)}), command="refold") == []
    with pytest.raises(RepeatedCommand) as again, database.writing() as unit:
        append(unit, command="refold")
    assert again.value.recorded == []
    with database.reading() as unit:
        assert [one.phase for one in unit.find("box", link=("owner", "x"))] == ["shut"]
    assert database.verify().ok


def test_one_stream_twice_in_an_append(database: Database) -> None:
    with database.writing() as unit:
        append(
            unit,
            change("box/1", 0, "box.made", owner=("p",)),
            change("box/1", 1, "box.filled", phase="full", owner=("q",)),
            command="c",
        )
    with database.reading() as unit:
        state = unit.load("box/1")
        assert state is not None
        assert (state.version, state.phase) == (2, "full")
        assert unit.find("box", link=("owner", "p")) == []
        assert len(unit.find("box", link=("owner", "q"))) == 1


def test_find_by_phase_and_link_in_order(database: Database) -> None:
    with database.writing() as unit:
        for number in range(6):
            append(
                unit,
                change(
                    f"box/{number}", 0, "box.made", phase="odd" if number % 2 else "even", owner=(f"p{number % 3}",)
                ),
                change(f"bag/{number}", 0, "bag.made", owner=("p0",)),
                command=f"c{number}",
                at=NOW + timedelta(seconds=number // 2),
            )
    with database.reading() as unit:

        def found(**how: Any) -> list[str]:
            return [one.stream for one in unit.find("box", **how)]

        assert found() == ["box/5", "box/4", "box/3", "box/2", "box/1", "box/0"]
        assert found(newest_first=False) == ["box/0", "box/1", "box/2", "box/3", "box/4", "box/5"]
        assert found(phases=["odd"]) == ["box/5", "box/3", "box/1"]
        assert found(phases=["odd", "even"], limit=2, offset=1) == ["box/4", "box/3"]
        assert found(link=("owner", "p0")) == ["box/3", "box/0"]
        assert found(link=("owner", "p0"), phases=["even"]) == ["box/0"]
        assert found(link=("other", "p0")) == found(phases=["none"]) == []


def test_links_are_the_whole_set_each_time(database: Database) -> None:
    with database.writing() as unit:
        append(unit, change("box/1", 0, "box.made", owner=("p", "q"), room=("r",)), command="c1")
    with database.writing() as unit:
        append(unit, change("box/1", 1, "box.moved", owner=("q", "s")), command="c2")
    with database.reading() as unit:
        there = [
            pair
            for pair in (("owner", "p"), ("owner", "q"), ("owner", "s"), ("room", "r"))
            if unit.find("box", link=pair)
        ]
    assert there == [("owner", "q"), ("owner", "s")]


def test_what_raises_leaves_no_trace(database: Database) -> None:
    fill(database, 2)
    with database.reading() as unit:
        before = unit.head(), unit.count("account")
    with pytest.raises(RuntimeError, match="changed my mind"), database.writing() as unit:
        unit.insert("account", [an_account()])
        append(unit, change("box/7", 0, "box.made", owner=("p",)), command="gone")
        raise RuntimeError("changed my mind")
    with database.reading() as unit:
        assert (unit.head(), unit.count("account")) == before
        assert unit.load("box/7") is None
        assert unit.find("box", link=("owner", "p")) == []
    with database.writing() as unit:
        append(unit, change("box/7", 0, "box.made"), command="gone")  # the command id is free again
    assert database.verify().ok


def test_a_unit_that_goes_on_after_a_fault_is_not_kept(database: Database) -> None:
    with database.writing() as unit:
        unit.insert("account", [an_account()])
    with pytest.raises(InternalFault, match="went on"), database.writing() as unit:
        unit.insert("setting", [{"name": "x", "value": 1}])
        with pytest.raises(ConflictFault):
            unit.insert("account", [an_account(id="a2")])
    with database.reading() as unit:
        assert unit.count("setting") == 0


def test_events_must_be_json_objects(database: Database) -> None:
    for data in (b"", b"[1]", b"{", b"\xff", b'{"a":NaN}'):
        with pytest.raises(FormatFault), database.writing() as unit:
            append(unit, Change("box/1", "box", 0, (("box.made", data),), "open", b"{}"), command="c")
    with pytest.raises(ValueError, match="command"), database.writing() as unit:
        append(unit, change("box/1", 0, "box.made"), command="")
    with pytest.raises(FormatFault, match="time zone"), database.writing() as unit:
        append(unit, change("box/1", 0, "box.made"), command="c", at=NOW.replace(tzinfo=None))


def test_a_reading_unit_is_one_frozen_view_and_cannot_write(database: Database) -> None:
    fill(database, 3)
    with database.reading() as unit:
        assert unit.head().size == 3
        with database.writing() as writer:
            append(writer, change("box/9", 0, "box.made"), command="meanwhile")
        assert unit.head().size == 3
        assert len(unit.follow(-1)) == 3
    with pytest.raises(Fault), database.reading() as unit:
        unit.insert("setting", [{"name": "x", "value": 1}])
    with database.reading() as unit:
        assert unit.head().size == 4
        assert unit.count("setting") == 0


# --- the tree --------------------------------------------------------------------------------------------------------


def test_proofs_of_the_journal_hold(database: Database) -> None:
    roots = [EMPTY_ROOT]
    for number in range(21):
        with database.writing() as unit:
            append(unit, change(f"box/{number}", 0, "box.made"), command=f"c{number}")
            roots.append(unit.head().root)
    with database.reading() as unit:
        events = unit.follow(-1)
        for size in (1, 2, 13, 21):
            for position in range(size):
                proof = unit.inclusion(position, size)
                verify_inclusion(leaf_hash(events[position].leaf), position, size, proof, roots[size])
            for old in range(size + 1):
                verify_consistency(old, roots[old], size, roots[size], unit.consistency(old, size))
        with pytest.raises(InputFault, match="21 events, not 22"):
            unit.inclusion(0, 22)
        with pytest.raises(InputFault, match="no leaf 5"):
            unit.inclusion(5, 5)


def test_the_newest_checkpoint_counts(database: Database) -> None:
    fill(database, 5)
    with database.reading() as unit:
        assert unit.head().size == 5
        assert unit.checkpoint() is None
    with database.writing() as unit:
        unit.put_checkpoint(5, "five")
        unit.put_checkpoint(3, "three")
        unit.put_checkpoint(5, "five, cosigned")
        with pytest.raises(InputFault, match="5 events, not 6"):
            unit.put_checkpoint(6, "six")
    with database.reading() as unit:
        assert unit.checkpoint() == (5, "five, cosigned")


# --- many at once ----------------------------------------------------------------------------------------------------


def test_three_deciders_on_each_of_twenty_streams(database: Database) -> None:
    barrier = threading.Barrier(6)
    outcomes: dict[str, list[str]] = {f"box/{number}": [] for number in range(20)}

    def decide(who: int) -> None:
        barrier.wait()
        for number in range(20):
            stream = f"box/{number}"
            if who >= 3:  # three more only read, to be in the way
                with database.reading() as unit:
                    unit.load(stream)
                continue
            try:
                with database.writing() as unit:
                    append(unit, change(stream, 0, "box.made"), command=f"{stream}-{who}")
            except ConflictFault:
                outcomes[stream].append("refused")
            else:
                outcomes[stream].append("won")

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(decide, who) for who in range(6)]:
            done.result()
    assert all(sorted(outcome) == ["refused", "refused", "won"] for outcome in outcomes.values())
    with database.reading() as unit:
        assert unit.head().size == 20
    assert database.verify().ok


def test_followers_never_skip(database: Database) -> None:
    """Writers of different speed, some of which roll back; each follower sees each position once, in order."""
    writing = threading.Event()
    writing.set()
    seen: list[list[int]] = [[], []]

    def write(who: int) -> None:
        for number in range(40):
            try:
                with database.writing() as unit:
                    append(unit, change(f"box/{who}-{number}", 0, "a", "b"), command=f"{who}-{number}")
                    if number % 5 == who:
                        raise RuntimeError("rolled back")
            except RuntimeError:
                continue

    def follow(positions: list[int]) -> None:
        while True:
            last_round = not writing.is_set()
            with database.reading() as unit:
                events = unit.follow(positions[-1] if positions else -1, limit=7)
            positions.extend(event.position for event in events)
            if last_round and not events:
                return

    with ThreadPoolExecutor(6) as pool:
        followers = [pool.submit(follow, positions) for positions in seen]
        for done in [pool.submit(write, who) for who in range(4)]:
            done.result()
        writing.clear()
        for done in followers:
            done.result()
    assert seen[0] == seen[1] == list(range(4 * 32 * 2))
    assert database.verify().ok


def test_more_threads_than_connections(database: Database) -> None:
    def work(number: int) -> None:
        with database.writing() as unit:
            append(unit, change(f"box/{number}", 0, "box.made"), command=f"c{number}")
        with database.reading() as unit:
            assert unit.load(f"box/{number}") is not None

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(work, range(120)))
    with database.reading() as unit:
        assert unit.head().size == 120


# --- plain rows ------------------------------------------------------------------------------------------------------


def test_rows_come_back_as_they_went_in(database: Database) -> None:
    at = datetime(2031, 7, 1, 12, 0, 0, 5, timezone(timedelta(hours=3)))
    with database.writing() as unit:
        unit.insert("account", [an_account(created=at), an_account(id="a2", name="bo", roles=[], totp_last=9)])
        unit.insert("login_attempt", [{"name_hash": "h", "at": at, "ok": ok} for ok in (True, False)])
        unit.insert("setting", [{"name": "x", "value": {"deep": [1, None, "å"]}}, {"name": "y", "value": None}])
    with database.reading() as unit:
        anna, bo = unit.rows("account", order="name")
        assert anna["created"] == at
        assert anna["created"].tzinfo is UTC
        assert (anna["roles"], bo["roles"], bo["totp_last"], bo["erased"]) == (["researcher"], [], 9, None)
        assert (anna["organisation"], anna["display"]) == ("", "Anna Ö")
        assert [row["ok"] for row in unit.rows("login_attempt", order="id")] == [True, False]
        assert [row["value"] for row in unit.rows("setting", order="name")] == [{"deep": [1, None, "å"]}, None]


def test_where_order_and_pages(database: Database) -> None:
    with database.writing() as unit:
        unit.insert("read_tally", [{"run": f"r{n % 2}", "file": f"f{n:02}", "bytes": n} for n in range(20)])
    with database.reading() as unit:
        assert unit.count("read_tally") == 20
        assert unit.count("read_tally", {"run": "r1", "file": ["f01", "f02", "f03"]}) == 2
        assert unit.count("read_tally", {"file": []}) == 0
        ordered = unit.rows("read_tally", {"run": "r0"}, order="-bytes", offset=2, limit=3)
        assert [row["bytes"] for row in ordered] == [14, 12, 10]
        assert [row["file"] for row in unit.rows("read_tally", offset=18)] == ["f17", "f19"]
        assert unit.rows("read_tally", limit=0) == []


def test_null_is_a_value_to_ask_for(database: Database) -> None:
    with database.writing() as unit:
        for number in range(3):
            row = {"topic": "mail", "key": f"k{number}", "body": {}, "created": NOW, "due": NOW}
            unit.insert("outbox", [row])
        assert unit.update("outbox", {"key": "k1"}, {"done": NOW}) == 1
        assert [row["key"] for row in unit.rows("outbox", {"done": None}, order="id")] == ["k0", "k2"]
        assert unit.delete("outbox", {"done": None}) == 2
        assert unit.count("outbox") == 1
        assert unit.update("outbox", {"key": "none"}, {"tries": 4}) == 0


def test_upsert_by_primary_and_by_unique_key(database: Database) -> None:
    with database.writing() as unit:
        row = {"topic": "mail", "key": "k", "body": {"n": 1}, "created": NOW, "due": NOW}
        unit.upsert("outbox", row)
        unit.update("outbox", {"key": "k"}, {"tries": 3})
        unit.upsert("outbox", {**row, "body": {"n": 2}})
        (kept,) = unit.rows("outbox")
        assert (kept["body"], kept["tries"]) == ({"n": 2}, 3)
        unit.upsert("setting", {"name": "x", "value": 1})
        unit.upsert("setting", {"name": "x", "value": 2})
        assert unit.rows("setting") == [{"name": "x", "value": 2}]
        for _ in range(2):
            unit.upsert("dataset_member", {"dataset": "d", "account": "a", "role": "dac"})
        assert unit.count("dataset_member") == 1


def test_many_updates_in_one_go(database: Database) -> None:
    rows = [{"rotation": "r", "file": f"f{number}", "body": "old"} for number in range(5000)]
    with database.writing() as unit:
        unit.insert("rotation_file", rows)
        unit.update("rotation_file", {"file": "f7"}, {"body": "other"})
        unit.update_each("rotation_file", [])
        changes = [
            ({"file": row["file"], "body": "old"}, {"body": f"new-{row['file']}", "fault": "x"}) for row in rows[:4000]
        ]
        unit.update_each("rotation_file", iter(changes))
    with database.reading() as unit:
        found = {row["file"]: (row["body"], row["fault"]) for row in unit.rows("rotation_file")}
    assert found["f7"] == ("other", ""), "where the condition does not hold nothing is changed"
    assert found["f8"] == ("new-f8", "x") and found["f4000"] == ("old", "")
    assert sum(fault == "x" for _, fault in found.values()) == 3999


@pytest.mark.parametrize(
    "changes",
    [
        [({"file": "f"}, {"body": "b"}), ({"file": "g"}, {"fault": "b"})],
        [({"file": None}, {"body": "b"})],
        [({}, {"body": "b"})],
        [({"file": "f"}, {})],
        [({"file": "f"}, {"body": None})],
        [({"file": "f"}, {"no_column": "b"})],
    ],
)
def test_updates_that_are_programming_errors(database: Database, changes: Any) -> None:
    with pytest.raises(ValueError), database.writing() as unit:
        unit.update_each("rotation_file", changes)
    with pytest.raises(ValueError), database.writing() as unit:
        unit.update_each("dataset", [({"id": "d"}, {"title": "t"})])


def test_generated_ids_are_never_used_again(database: Database) -> None:
    row = {"topic": "mail", "body": {}, "created": NOW, "due": NOW}
    with database.writing() as unit:
        unit.insert("outbox", [{**row, "key": "a"}, {**row, "key": "b"}])
        last = max(one["id"] for one in unit.rows("outbox"))
        unit.delete("outbox", {})
        unit.insert("outbox", [{**row, "key": "c"}])
        assert unit.rows("outbox")[0]["id"] > last


def test_broken_rules_are_conflicts(database: Database) -> None:
    with database.writing() as unit:
        unit.insert("account", [an_account()])
    key = {"id": "k", "account": "nobody", "label": "", "public": b"p", "fingerprint": "f", "added": NOW}
    with pytest.raises(ConflictFault) as raised, database.writing() as unit:
        unit.insert("account_key", [key])
    assert "nobody" not in str(raised.value)
    with pytest.raises(ConflictFault) as raised, database.writing() as unit:
        unit.insert("account", [an_account(id="other")])
    assert "anna" not in str(raised.value)
    assert raised.value.__suppress_context__


def test_wrong_names_are_programming_errors(database: Database) -> None:
    with database.writing() as unit:
        for table in ("accounts", "journal", "head", "merkle", "command", "checkpoint", "snapshot", "link", ""):
            with pytest.raises(ValueError, match="there is no table"):
                unit.rows(table)
        with pytest.raises(ValueError, match="no column 'nmae'; it has id, name"):
            unit.rows("account", {"nmae": "anna"})
        with pytest.raises(ValueError, match="no column"):
            unit.rows("account", order="-nmae")
        with pytest.raises(ValueError, match="no column"):
            unit.update("account", {}, {"nmae": "anna"})
        with pytest.raises(ValueError, match="no column 'search'"):
            unit.update("dataset", {}, {"search": "x"})
        with pytest.raises(ValueError, match="needs 'display'"):
            unit.insert("account", [{"id": "a", "name": "b"}])
        with pytest.raises(ValueError, match=r"account\.name must not be None"):
            unit.insert("account", [an_account(name=None)])
        with pytest.raises(ValueError, match="time zone"):
            unit.insert("account", [an_account(created=NOW.replace(tzinfo=None))])
        with pytest.raises(ValueError, match="JSON"):
            unit.rows("account", {"roles": ["dac"]})
        with pytest.raises(ValueError, match="key"):
            unit.upsert("outbox", {"topic": "mail", "body": {}, "created": NOW, "due": NOW})
        for value in ("nul\0", "half\ud800"):
            with pytest.raises(InputFault):
                unit.insert("account", [an_account(name=value)])
        with pytest.raises(InputFault):
            unit.insert("account", [an_account(totp_last=1 << 63)])
        assert unit.count("account") == 0
