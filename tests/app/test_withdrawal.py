"""Withdrawal of participants: closing, the successor's files, permits that move, what waits for the custodian, what is
erased, and steps that are cut off anywhere."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from valv.app import (
    access,
    custody,
    dataset,
    permit,
    reading,
    rotating,
    streams,
    withdrawal,
    withdrawing,
)
from valv.app.node import new_id
from valv.app.streams import DATASET, PERMIT, WITHDRAWAL
from valv.errors import Fault, RefusedFault
from valv.formats import participants

CANARY = "CANARY-5be1"
VCF = (
    "##fileformat=VCFv4.3\n##contig=<ID=1>\n"
    f"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS-{CANARY}\tS2\tS3\n"
    "1\t10\t.\tA\tC\t.\t.\tAC=2;AN=6\tGT\t0/1\t0/1\t0/0\n"
    "1\t20\t.\tG\tT\t.\t.\tAC=1;AN=6\tGT\t0/1\t0/0\t0/0\n"
)
TABLE = (
    "pseudonym\tconsent_group\tfiles\tsamples\n"
    f"{CANARY}\tmain\tone/a.dcm;all.vcf;t.csv\tS-{CANARY}\n"
    "P-2\tmain\ttwo/a.dcm;all.vcf;t.csv\tS2\nP-3\tmain\tall.vcf;t.csv;opaque.zip\tS3\n"
)
FILES = {
    "participants.tsv": TABLE.encode(),
    "one/a.dcm": b"image of one",
    "two/a.dcm": b"image of two",
    "all.vcf": VCF.encode(),
    "t.csv": f"pseudonym,age\n{CANARY},50\nP-2,60\nP-3,70\n".encode(),
    "readme.txt": b"nobody is named here",
}
LEFT = {
    "two/a.dcm": b"image of two",
    "all.vcf": VCF.splitlines(keepends=True)[0].encode()
    + b"##contig=<ID=1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS2\tS3\n"
    + b"1\t10\t.\tA\tC\t.\t.\tAC=1;AN=4\tGT\t0/1\t0/0\n",
    "t.csv": b"pseudonym,age\nP-2,60\nP-3,70\n",
    "readme.txt": b"nobody is named here",
}


def start(s: Any, name: str, *people: str, **more: Any) -> str:
    ids = withdrawal.start(
        s.node, s.who("carin"), name, pseudonyms=people or (CANARY,), reason="They asked.", command=new_id(), **more
    )
    assert len(ids) == 1
    return ids[0]


def work(s: Any, times: int = 100) -> None:
    for _ in range(times):
        if not withdrawing.step(s.worker, s.reader):
            break


def contents(s: Any, name: str, version: int) -> dict[str, bytes]:
    with s.node.records.reading() as unit:
        state, _ = dataset.named(unit, name)
        rows = reading.files(unit, state.dataset_id, version)
    return {row["path"]: b"".join(reading.plain(s.worker, s.reader, reading.mounted(row, row["path"]))) for row in rows}


def phase(s: Any, ident: str) -> str:
    return str(s.state(WITHDRAWAL, ident).phase)


def refused(code: str, call: Any, *arguments: Any, **named: Any) -> None:
    with pytest.raises(RefusedFault) as caught:
        call(*arguments, **named)
    assert caught.value.refusal.code == code


@pytest.fixture
def cohort(s: Any) -> tuple[str, str]:
    name = s.fresh()
    s.publish(name, FILES)
    return name, s.permit(name)


def test_the_whole_way(s: Any, cohort: tuple[str, str]) -> None:
    name, ident = cohort
    before = s.state(PERMIT, ident)
    wid = start(s, name)
    with s.node.records.reading() as unit:
        state, _ = dataset.named(unit, name)
        assert (
            permit.stands(unit, ident, account_id=before.people[0], wanted=None, mode="compute", at=s.clock()).code
            == "version_closed"
        )
    assert permit.show(s.node, s.who("rikard"), ident).standing.code == "version_closed"
    work(s)
    done = s.state(WITHDRAWAL, wid)
    assert (done.phase, done.dropped, done.rewritten, done.taken, done.permits, done.successor) == (
        "finished",
        1,
        3,
        2,
        1,
        2,
    )
    assert contents(s, name, 2) == LEFT
    after = s.state(PERMIT, ident)
    assert after.datasets[0].version == 2 and (after.ends, after.people) == (before.ends, before.people)
    assert [(move.before, move.after) for move in permit.show(s.node, s.who("rikard"), ident).moves] == [(1, 2)]
    with s.node.records.reading() as unit:
        state, _ = dataset.named(unit, name)
        old, new = state.versions
        row = unit.rows("dataset", {"name": name})[0]
        tables = unit.rows("file", {"deposit": wid, "path": "participants.tsv"})
        texts = unit.rows("text", {"owner_stream": WITHDRAWAL.stream(wid), "kind": ["persons", "names"]})
        mails = [one["body"] for one in unit.rows("outbox", {"topic": "mail"})]
        bodies = {
            one["path"]: {r["body"] for r in unit.rows("file", {"dataset": state.dataset_id, "path": one["path"]})}
            for one in reading.files(unit, state.dataset_id, 2)
        }
        assert (
            permit.stands(unit, ident, account_id=before.people[0], wanted=None, mode="compute", at=s.clock()) is None
        )
    assert (old.successor, new.files, new.size) == (2, 4, sum(map(len, LEFT.values())))
    assert (row["version"], row["files"], row["bytes"]) == (2, 4, new.size)
    assert len(bodies["two/a.dcm"]) == len(bodies["readme.txt"]) == 1 and len(bodies["t.csv"]) == 2
    table = b"".join(reading.plain(s.worker, s.reader, reading.mounted(tables[0], "t")))
    assert [one.pseudonym for one in participants.parse(table)] == ["P-2", "P-3"]
    assert len(texts) == 2 and all(one["body"] is None and one["erased"] for one in texts)
    told = [one for one in mails if name in one["body"]]
    assert {one["subject"] for one in told} >= {
        "A dataset version was closed",
        "A permit is for another version now",
        "A withdrawal is finished",
    }
    assert any(old.key_id in one["body"] for one in told)
    view = withdrawal.show(s.node, s.who("carin"), wid)
    assert view.old_key == old.key_id and not view.waiting


def test_the_name_is_nowhere_but_in_encrypted_files(s: Any, cohort: tuple[str, str]) -> None:
    name, _ = cohort
    wid = start(s, name)
    with s.node.records.reading() as unit:
        texts = unit.rows("text", {"owner_stream": WITHDRAWAL.stream(wid), "kind": "persons"})
    assert CANARY in texts[0]["body"]  # the one erasable place
    work(s)
    with s.node.records.reading() as unit:
        assert CANARY not in repr(unit.follow(0, 100_000))
    s.world.records.close()  # so that all of it is in the files
    whole = b"".join(path.read_bytes() for path in s.world.folder.rglob("*") if path.is_file())
    assert CANARY.encode() not in whole


def test_who_asks_what(s: Any, cohort: tuple[str, str]) -> None:
    name, _ = cohort
    carin = s.who("carin")
    refused("person_missing", start, s, name, " ")
    refused("person_wrong", start, s, name, "a\tb")
    refused("no_version", start, s, name, version=3)
    for person in ("rikard", "dagny", "olle", "audun"):
        with pytest.raises(RefusedFault):
            withdrawal.start(s.node, s.who(person), name, pseudonyms=(CANARY,), reason="x", command=new_id())
    with pytest.raises(RefusedFault, match="reason"):
        withdrawal.start(s.node, carin, name, pseudonyms=(CANARY,), reason="", command=new_id())
    command = new_id()
    again = [withdrawal.start(s.node, carin, name, pseudonyms=(CANARY,), reason="x", command=command) for _ in range(2)]
    assert again[0] == again[1]
    refused("withdrawal_going", start, s, name)
    assert [one.state.withdrawal_id for one in withdrawal.mine(s.node, s.who("dagny"), name)] == again[0]
    refused("not_allowed", withdrawal.show, s.node, s.who("rikard"), again[0][0])
    withdrawal.cancel(s.node, carin, again[0][0], command=new_id())
    work(s)
    assert phase(s, again[0][0]) == "cancelled"
    assert permit.show(s.node, s.who("rikard"), cohort[1]).standing.code == "version_closed"
    # Once more: a version that an ended withdrawal left closed may be asked for again.
    wid = start(s, name)
    work(s)
    assert phase(s, wid) == "finished" and contents(s, name, 2) == LEFT
    refused("version_replaced", start, s, name, version=1)


def test_a_typing_error_opens_the_version_again(s: Any, cohort: tuple[str, str]) -> None:
    name, ident = cohort
    wid = start(s, name, "P-999")
    assert permit.show(s.node, s.who("rikard"), ident).standing is not None
    work(s)
    assert phase(s, wid) == "nobody" and permit.show(s.node, s.who("rikard"), ident).standing is None
    failed = start(s, name)
    withdrawal.cancel(s.node, s.who("carin"), failed, command=new_id())
    assert phase(s, start(s, name, "P-999")) == "asked"
    work(s)
    assert permit.show(s.node, s.who("rikard"), ident).standing is not None  # somebody did withdraw


def test_runs_end_unless_they_may_go_on(s: Any, cohort: tuple[str, str]) -> None:
    name, ident = cohort
    account = s.who("rikard").account_id

    def stands(since: Any) -> bool:
        with s.node.records.reading() as unit:
            wanted = streams.need(unit, DATASET, dataset.named(unit, name)[0].dataset_id)[0]
            found = permit.stands(
                unit,
                ident,
                account_id=account,
                wanted=permit.Wanted(wanted.dataset_id, 1),
                mode="compute",
                at=s.clock(),
                since=since,
            )
        return found is None

    began = s.clock()
    s.clock.forward(seconds=5)
    start(s, name, runs_end=False)
    assert stands(began) and not stands(None) and not stands(s.clock())
    s.clock.forward(seconds=5)
    work(s)
    assert stands(began) and not stands(None)  # also when the permit has moved
    other = s.fresh()
    s.publish(other, FILES)
    name, ident = other, s.permit(other)
    began = s.clock()
    s.clock.forward(seconds=5)
    start(s, other)
    assert not stands(began)


def test_files_that_wait_for_the_custodian(s: Any) -> None:
    name = s.fresh()
    table = TABLE.replace("t.csv\tS-", "t.csv;notes.bin\tS-").replace("two/a.dcm;", "two/a.dcm;notes.bin;")
    files = FILES | {"participants.tsv": table.encode(), "notes.bin": b"\0\1of two", "old.zip": b"PK\3\4 of nobody"}
    s.publish(name, files)
    ident = s.permit(name)
    wid = start(s, name)
    work(s, 30)
    assert phase(s, wid) == "waiting"
    view = withdrawal.show(s.node, s.who("carin"), wid)
    assert {one.path for one in view.waiting} == {"notes.bin", "old.zip"} and view.left == 3  # and the table
    assert withdrawal.show(s.node, s.who("dagny"), wid).waiting == []
    by_path = {one.path: one.file_id for one in view.waiting}
    refused("not_allowed", withdrawal.settle, s.node, s.who("dagny"), wid, by_path["old.zip"], fate="keep", command="x")
    withdrawal.settle(s.node, s.who("carin"), wid, by_path["notes.bin"], fate="drop", command=new_id())
    work(s, 5)
    assert phase(s, wid) == "waiting"
    withdrawal.settle(s.node, s.who("carin"), wid, by_path["old.zip"], fate="keep", command=new_id())
    refused("no_file", withdrawal.settle, s.node, s.who("carin"), wid, by_path["old.zip"], fate="drop", command="y")
    work(s)
    assert phase(s, wid) == "finished" and contents(s, name, 2) == LEFT | {"old.zip": files["old.zip"]}
    assert s.state(PERMIT, ident).datasets[0].version == 2


def test_what_ends_without_a_successor(s: Any) -> None:
    name = s.fresh()
    s.publish(name, {"a.txt": b"a"})
    wid = start(s, name)
    work(s)
    assert phase(s, wid) == "failed" and "participants.tsv" in withdrawal.show(s.node, s.who("carin"), wid).why
    name = s.fresh()
    s.publish(name, {"participants.tsv": b"pseudonym\tconsent_group\tfiles\nP-1\tmain\ta\n", "a": b"x"})
    ident = s.permit(name)
    wid = start(s, name, "P-1")
    work(s)
    assert phase(s, wid) == "failed" and "Nothing" in withdrawal.show(s.node, s.who("carin"), wid).why
    assert permit.show(s.node, s.who("rikard"), ident).standing.code == "version_closed"
    assert withdrawing.clear(s.worker) >= 1 and CANARY not in repr(_all(s, "text", WITHDRAWAL.stream(wid)))


def _all(s: Any, table: str, stream: str) -> Any:
    with s.node.records.reading() as unit:
        return unit.rows(table, {"owner_stream": stream})


def test_every_open_version_is_meant(s: Any, cohort: tuple[str, str]) -> None:
    name, first = cohort
    s.publish(name, FILES | {"more.txt": b"more"})
    second = s.permit(name)
    ids = withdrawal.start(s.node, s.who("carin"), name, pseudonyms=(CANARY,), reason="x", command=new_id())
    assert len(ids) == 2
    work(s)
    assert [s.state(WITHDRAWAL, one).phase for one in ids] == ["finished", "finished"]
    versions = {s.state(PERMIT, one).datasets[0].version for one in (first, second)}
    assert versions == {3, 4} and contents(s, name, s.state(PERMIT, second).datasets[0].version)["more.txt"] == b"more"


def test_an_application_on_its_way_is_for_the_successor(s: Any, cohort: tuple[str, str]) -> None:
    name, _ = cohort
    ident = s.apply(name)
    start(s, name)
    work(s)
    made = access.approve(s.node, s.who("dagny"), ident, reason="It fits.", days=None, command=new_id())
    assert s.state(PERMIT, made).datasets[0].version == 2


def test_destroying_the_old_version_spares_what_both_have(s: Any, cohort: tuple[str, str]) -> None:
    name, _ = cohort
    start(s, name)
    work(s)
    with s.node.records.reading() as unit:
        state, _ = dataset.named(unit, name)
        old = reading.files(unit, state.dataset_id, 1)
    with s.worker.records.writing() as unit:
        unit.update("file", {"key_id": state.versions[0].key_id}, {"state": "destroyed"})
    custody.delete_bodies(s.worker, {"key_id": state.versions[0].key_id})
    assert contents(s, name, 2) == LEFT
    names = s.world.bodies()
    gone = {row["path"] for row in old if row["body"] not in names}
    assert gone == {"one/a.dcm", "all.vcf", "t.csv"}


def test_a_rekeying_of_the_successor_spares_the_old_body(s: Any, cohort: tuple[str, str]) -> None:
    """Two versions have the body: what one of them leaves behind stays for the other."""
    name, _ = cohort
    wid = start(s, name)
    work(s)
    with s.worker.records.writing() as unit:
        row = unit.rows("file", {"deposit": wid, "path": "readme.txt"})[0]
        assert unit.count("file", {"body": row["body"]}) == 2
        unit.insert("stale_body", [{"body": row["body"], "dataset": "", "file": row["id"], "since": s.clock()}])
    s.clock.forward(seconds=120)
    rotating.clear(s.worker)
    assert row["body"] in s.world.bodies() and not s.rows("stale_body", body=row["body"])


class Cut(Exception):
    """The step ends here, as if the process had been killed."""


@pytest.mark.parametrize("at", range(1, 26, 3))
def test_a_step_may_be_cut_off_anywhere(s: Any, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each n-th write of the records the process is gone; the next one takes the withdrawal to its end."""
    name = s.fresh()
    s.publish(name, FILES)
    ident = s.permit(name)
    wid = start(s, name)
    records, left = s.worker.records, [at]
    real = type(records).writing

    @contextlib.contextmanager
    def writing(self: Any) -> Any:
        with real(self) as unit:
            yield unit
        left[0] -= 1
        if left[0] <= 0:
            left[0] = at
            raise Cut

    monkeypatch.setattr(type(records), "writing", writing)
    for _ in range(200):
        with contextlib.suppress(Cut, Fault):
            if not withdrawing.step(s.worker, s.reader):
                break
    monkeypatch.undo()
    work(s)
    assert phase(s, wid) == "finished" and contents(s, name, 2) == LEFT
    assert s.state(PERMIT, ident).datasets[0].version == 2
    s.clock.forward(seconds=120)
    withdrawing.clear(s.worker)
    s.clock.forward(seconds=120)
    rotating.clear(s.worker)
    with s.node.records.reading() as unit:
        known = {row["body"] for row in unit.rows("file")} | {row["body"] for row in unit.rows("release_file")}
    assert {one.removesuffix(".seal") for one in s.world.bodies()} <= known
