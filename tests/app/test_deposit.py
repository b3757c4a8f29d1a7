"""Receiving files: what is kept, what is refused, and that a failed step leaves nothing behind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.app.faults import FailingStorage
from valv.app import deposit, intake
from valv.app.node import new_id
from valv.errors import ConflictFault, FormatFault, FullFault, RefusedFault
from valv.formats import crypt4gh

VERBS = [("writer", 1), ("writer", 2), ("write", 1), ("write", 2), ("write", 3), ("commit", 1), ("commit", 2)]


def refused(code: str, call: Any, /, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(RefusedFault) as fault:
        call(*args, **kwargs)
    assert fault.value.refusal.code == code, fault.value
    return fault.value.refusal.detail


def encrypted(s: Any, content: bytes) -> bytes:
    """A Crypt4GH file for the node's own public key, as another program makes it."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    key, nonce = b"k" * 32, b"n" * 12
    header = crypt4gh.build_header(key, [s.node.keys.status().node_key])
    return header + nonce + ChaCha20Poly1305(key).encrypt(nonce, content, None)


def test_a_file_is_kept_encrypted(s: Any) -> None:
    content = b"plain words that must not rest anywhere" * 100
    ident = s.open(s.fresh())
    got = s.send(ident, "a.txt", content, declared=hashlib.sha256(content).hexdigest())
    assert (got.path, got.state, got.size, got.sha256) == (
        "a.txt",
        "received",
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    for path in (s.world.folder / "store").rglob("*"):
        assert not path.is_file() or b"plain words" not in path.read_bytes()


def test_an_empty_file(s: Any) -> None:
    ident = s.publish(s.fresh(), {"empty": b"", "other": b"x"})
    assert {file.path: file.size for file in deposit.show(s.node, s.who("carin"), ident).files} == {
        "empty": 0,
        "other": 1,
    }


def test_the_same_file_again_is_answered_again(s: Any) -> None:
    ident, content = s.open(s.fresh()), b"once"
    digest = hashlib.sha256(content).hexdigest()
    first = s.send(ident, "a", content, declared=digest)
    before = s.bodies()
    assert s.send(ident, "a", content, declared=digest) == first
    assert s.send(ident, "a", b"", declared=digest.upper()) == first
    refused("file_known", s.send, ident, "a", content)
    refused("file_known", s.send, ident, "a", b"other", declared=hashlib.sha256(b"other").hexdigest())
    assert s.bodies() == before


@pytest.mark.parametrize(("one", "other"), [("A.vcf", "a.vcf"), ("Straße", "strasse"), ("ﬁle", "file")])
def test_twins_are_refused(s: Any, one: str, other: str) -> None:
    ident = s.open(s.fresh())
    s.send(ident, one, b"1")
    refused("path_wrong", s.send, ident, other, b"2")
    assert [row["path"] for row in s.rows("file", deposit=ident)] == [one]


def test_a_file_is_no_folder_of_another(s: Any) -> None:
    ident = s.open(s.fresh())
    s.send(ident, "a/b", b"1")
    refused("path_wrong", s.send, ident, "a/b/c", b"2")
    refused("path_wrong", s.send, ident, "A/B/c/d", b"2")
    s.send(ident, "a/c", b"3")
    s.send(ident, "a", b"4")  # seen when it is handed in, all names at hand
    refused("path_wrong", s.submit, ident)
    assert s.deposit(ident).phase == "open"


@pytest.mark.parametrize("path", ["../a", "/a", "a/../b", "a\0", ".", ""])
def test_names_that_are_refused(s: Any, path: str) -> None:
    ident, before = s.open(s.fresh()), s.bodies()
    refused("path_wrong", s.send, ident, path, b"1")
    assert s.rows("file", deposit=ident) == []
    assert s.bodies() == before


@pytest.mark.parametrize("path", ["...c4gh", "a/...c4gh", ".c4gh", "a/.c4gh", "..c4gh", "a/..c4gh"])
def test_what_is_left_of_an_encrypted_file_s_name_is_looked_at_again(s: Any, path: str) -> None:
    """'...c4gh' without its ending is '..'."""
    ident = s.open(s.fresh())
    refused("path_wrong", s.send, ident, path, encrypted(s, b"content"))
    assert s.rows("file", deposit=ident) == []


def test_an_encrypted_file_loses_its_ending(s: Any) -> None:
    ident = s.publish(s.fresh(), {"a.vcf.c4gh": encrypted(s, b"variants")})
    (file,) = deposit.show(s.node, s.who("carin"), ident).files
    assert (file.path, file.state, file.sha256) == ("a.vcf", "verified", hashlib.sha256(b"variants").hexdigest())


def test_a_file_for_another_node_is_kept_by_nobody(s: Any) -> None:
    ident, before = s.open(s.fresh()), s.bodies()
    foreign = crypt4gh.build_header(b"k" * 32, [crypt4gh.generate_keypair().public]) + b"n" * 100
    with pytest.raises(Exception, match="No key at hand"):
        s.send(ident, "a.c4gh", foreign)
    assert s.rows("file", deposit=ident) == []
    assert s.bodies() == before


@pytest.mark.parametrize("taken", [False, True])
def test_a_wrong_checksum_keeps_nothing(s: Any, taken: bool) -> None:
    ident, before = s.open(s.fresh()), s.bodies()
    content = encrypted(s, b"content") if taken else b"content"
    refused("checksum", s.send, ident, "a", content, declared="0" * 64)
    assert s.rows("file", deposit=ident) == []
    assert s.bodies() == before
    s.send(ident, "a", content, declared=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize(("verb", "nth"), VERBS)
def test_a_full_disk_keeps_nothing(s: Any, verb: str, nth: int, taken: bool) -> None:
    ident, before = s.open(s.fresh()), s.bodies()
    content = bytes(9 << 20)
    if taken:
        content = encrypted(s, b"small")
    storage = FailingStorage(s.node.storage, verb, nth)
    node = replace(s.node, storage=storage)
    try:
        s.send(ident, "a", content, node=node)
    except FullFault:
        assert s.rows("file", deposit=ident) == []
        assert s.bodies() == before
    assert storage.failed or (taken and verb == "write" and nth == 3)
    if storage.failed:
        s.send(ident, "a", content)  # the same file can be sent again
    assert [row["state"] for row in s.rows("file", deposit=ident)] == ["received"]


def test_a_sender_that_breaks_off_leaves_nothing(s: Any) -> None:
    ident, before = s.open(s.fresh()), s.bodies()

    def broken() -> Iterator[bytes]:
        yield bytes(9 << 20)
        raise ConnectionError("the line is dead")

    with pytest.raises(ConnectionError):
        deposit.receive(s.node, s.who("carin"), ident, "a", broken())
    assert s.rows("file", deposit=ident) == []
    assert s.bodies() == before


def test_the_newest_sender_wins(s: Any) -> None:
    """Two send the same file: the first one, slower, ends with a clear conflict, and what it wrote is gone."""
    ident = s.open(s.fresh())
    carin = s.who("carin")

    def slow() -> Iterator[bytes]:
        yield b"the first sender's words"
        assert s.send(ident, "a", b"the second sender's words").state == "received"
        yield b", more of them"

    before = s.bodies()
    with pytest.raises(ConflictFault):
        deposit.receive(s.node, carin, ident, "a", slow())
    (row,) = s.rows("file", deposit=ident)
    assert row["sha256"] == hashlib.sha256(b"the second sender's words").digest()
    assert s.bodies() - before == {row["body"], f"{row['body']}.seal"}


def test_too_large(s: Any) -> None:
    ident, before = s.open(s.fresh()), s.bodies()
    with pytest.raises(RefusedFault, match="larger"):
        deposit.receive(s.node, s.who("carin"), ident, "a", (bytes(1 << 20) for _ in range(20)))
    assert s.rows("file", deposit=ident) == []
    assert s.bodies() == before


# --- participants ---


def test_a_table_that_cannot_be_read_is_refused_without_repeating_it(s: Any) -> None:
    ident, before = s.open(s.fresh()), s.bodies()
    with pytest.raises(FormatFault) as fault:
        s.send(ident, "participants.tsv", b"pseudonym\tconsent_group\nAnna Andersson\n")
    assert "line 2" in str(fault.value)
    assert "Anna" not in str(fault.value)
    assert s.bodies() == before
    refused("path_wrong", s.send, ident, "Participants.TSV", b"pseudonym\tconsent_group\n")


def test_an_encrypted_table_is_read_at_intake(s: Any) -> None:
    ident = s.open(s.fresh())
    s.send(ident, "a", b"data")
    s.send(ident, "participants.tsv.c4gh", encrypted(s, b"pseudonym\tconsent_group\nAnna Andersson\n"))
    s.submit(ident)
    intake.process_submitted(s.worker, s.reader)
    view = deposit.show(s.node, s.who("carin"), ident)
    assert view.state.phase == "failed"
    assert "participants.tsv" in view.state.reason
    assert "line 2" in view.state.reason
    assert "Anna" not in view.state.reason


# --- handing in ---


def test_handing_in_what_did_not_come(s: Any) -> None:
    ident = s.open(s.fresh())
    refused("deposit_empty", s.submit, ident)
    s.send(ident, "participants.tsv", b"pseudonym\tconsent_group\nP-1\tmain\n")
    refused("deposit_empty", s.submit, ident)
    s.send(ident, "a.vcf", b"1")
    detail = refused("files_missing", s.submit, ident, ("a.vcf", "b.vcf", "c.vcf"))
    assert detail == "b.vcf, c.vcf"
    assert s.submit(ident, ("a.vcf", "participants.tsv")).state.phase == "submitted"
    refused("wrong_phase", s.send, ident, "late", b"2")


def test_an_order_that_is_repeated(s: Any) -> None:
    """The same command of the same person: the same answer, one event. Of another person it is another order."""
    carin, alma, name, command = s.who("carin"), s.who("alma"), s.fresh(), new_id()
    about: dict[str, Any] = {"claimed": "identifiable", "consent": ("GRU",), "committee": "dac", "command": command}
    about |= {"about": deposit.datasets.Description()}
    ident = deposit.open_deposit(s.node, carin, name=name, **about)
    before = s.size()
    assert deposit.open_deposit(s.node, carin, name=name, **about) == ident
    assert s.size() == before
    other = deposit.open_deposit(s.node, alma, name=s.fresh(), **about)
    assert other != ident
    s.send(ident, "a", b"1")
    before = s.size()
    views = [deposit.submit(s.node, carin, ident, expected=(), command=command) for _ in range(3)]
    assert views[0] == views[1] == views[2]
    assert s.size() == before + 1
    deposit.cancel(s.node, carin, ident, command=new_id())
    deposit.cancel(s.node, alma, other, command=command)
    assert s.deposit(other).phase == "cancelled"


def test_a_file_that_comes_while_it_is_handed_in_is_no_part_of_it(s: Any) -> None:
    ident = s.open(s.fresh())
    s.send(ident, "a", b"1")
    before = s.bodies()

    def late() -> Iterator[bytes]:
        yield b"begun before"
        s.submit(ident)
        intake.process_submitted(s.worker, s.reader)
        yield b", ended after"

    with pytest.raises(RefusedFault):
        deposit.receive(s.node, s.who("carin"), ident, "late", late())
    assert s.deposit(ident).phase == "published"
    assert [row["path"] for row in s.rows("file", deposit=ident)] == ["a"]
    assert s.bodies() == before


def test_somebody_else_sends_nothing(s: Any) -> None:
    ident = s.open(s.fresh())
    for name in ("rikard", "dagny", "kerttu", "audun", "olle", "nemo"):
        with pytest.raises(RefusedFault):
            deposit.receive(s.node, s.who(name), ident, "a", [b"1"])
        with pytest.raises(RefusedFault):
            deposit.show(s.node, s.who(name), ident)
