"""Many small files in one request: each has its own result, and what breaks the form leaves nothing."""

from __future__ import annotations

import hashlib
import os
import struct

import pytest

from valv.app import inspection
from valv.formats import batch
from valv.formats.batch import Record
from valv.formats.crypt4gh import MAGIC


@pytest.fixture
def ident(w):
    body = {"dataset": "batches", "class": "anonymised", "consent": ["GRU"], "committee": "dac"}
    return w.person("carin").post("/deposits", body)["deposit_id"]


def send(w, ident, data, who="carin"):
    headers = {"Content-Type": batch.MEDIA}
    return w.person(who).ask("POST", f"/deposits/{ident}/batch", headers=headers, content=data)


def results(w, ident, *records):
    answered = send(w, ident, b"".join(map(batch.encode, records)))
    assert answered.status_code == 200, answered.text
    return answered.json()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_many_files(w, ident):
    contents = {f"part/{number}.txt": os.urandom(number) for number in range(300)}
    records = [Record(path, content, sha256(content)) for path, content in contents.items()]
    found = results(w, ident, *records)
    assert [one["path"] for one in found] == list(contents)
    assert {one["state"] for one in found} == {"received"}
    assert all(one["sha256"] == sha256(contents[one["path"]]) for one in found)
    again = results(w, ident, *records)
    assert again == found
    w.person("carin").post(f"/deposits/{ident}/submission", {"expected": list(contents)})
    w.work()
    view = w.person("carin").get(f"/deposits/{ident}")
    assert view["state"]["phase"] == "published" and view["state"]["files"] == 300
    assert inspection.bodies(w.node) == (set(), set())


def test_each_file_has_its_own_result(w, ident):
    results(w, ident, Record("there", b"1"), Record("Ä", b"1"), Record("folder/below", b"1"))
    before = w.bodies()
    found = results(
        w,
        ident,
        Record("good", b"1", sha256(b"1")),
        Record("wrong", b"1", sha256(b"2")),
        Record("../up", b"1"),
        Record("x" * 3000, b"1"),
        Record("there", b"other"),
        Record("ä", b"1"),
        Record("there/below", b"1"),
        Record("twice", b"1"),
        Record("TWICE", b"1"),
        Record("empty", b""),
        Record("looks", MAGIC + b"no"),
        Record("participants.tsv", b"no table"),
    )
    codes = [one["code"] for one in found]
    assert codes == [
        "",
        "checksum",
        "path_wrong",
        "path_wrong",
        "file_known",
        "path_wrong",
        "path_wrong",
        "",
        "path_wrong",
        "",
        "fault.format",
        "participants_wrong" if "participants_wrong" in codes else "fault.format",
    ]
    assert all(one["reason"] for one in found if one["code"])
    assert len(w.bodies() - before) == 6
    assert inspection.bodies(w.node) == (set(), set())


BROKEN = [
    b"\0",
    struct.pack(">I", 5) + b"{}",
    struct.pack(">I", 2) + b"{}",
    struct.pack(">I", 4) + b"null",
    struct.pack(">I", 1 << 31) + b"{",
    batch.encode(Record("a", b"12345"))[:-1],
    batch.encode(Record("a", b"1")) + b"x",
    struct.pack(">I", 24) + b'{"path": "a", "size": -1}'[:24],
    batch.encode(Record("a", b"1", "zz")),
    batch.encode(Record("a", bytes(batch.LARGEST + 1))),
    b"".join(batch.encode(Record(f"{n}", b"")) for n in range(batch.MOST_FILES + 1)),
    bytes(batch.MOST_BYTES + 1),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_a_broken_batch_leaves_nothing(w, ident, number):
    before = w.bodies()
    good = batch.encode(Record("good", b"1"))
    for data in (BROKEN[number], good + BROKEN[number]):
        answered = send(w, ident, data)
        assert (answered.status_code, answered.json()["code"]) == (422, "fault.format")
    assert w.person("carin").get(f"/deposits/{ident}")["files"] == [] and w.bodies() == before


def test_who_may(w, ident):
    data = batch.encode(Record("a", b"1"))
    assert send(w, ident, data, "").status_code == 401
    assert send(w, ident, data, "alma").status_code in (403, 404)
    results(w, ident, Record("a", b"1"))
    w.person("carin").post(f"/deposits/{ident}/submission", {})
    assert send(w, ident, data).status_code == 409


def test_what_was_sent_is_compared_at_the_end(w, ident):
    carin = w.person("carin")
    results(w, ident, Record("a", b"1"), Record("b/c", b"2"))
    sums = {"a": sha256(b"1"), "b/c": sha256(b"other")}
    answered = carin.ask("POST", f"/deposits/{ident}/submission", {"sums": sums})
    assert answered.status_code == 422 and answered.json()["code"] == "checksum" and "b/c" in answered.json()["detail"]
    before = w.bodies()
    carin.good(carin.ask("DELETE", f"/deposits/{ident}/files/b/c"))
    assert len(before - w.bodies()) == 2
    assert carin.refused("DELETE", f"/deposits/{ident}/files/b/c") == (404, "no_file")
    results(w, ident, Record("b/c", b"other"))
    carin.post(f"/deposits/{ident}/submission", {"sums": sums, "expected": list(sums)})
    w.work()
    assert carin.get(f"/deposits/{ident}")["state"]["phase"] == "published"
    assert inspection.bodies(w.node) == (set(), set())
