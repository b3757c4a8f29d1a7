"""Parts of compute by themselves: the wire, the streams, the lease, names of outputs."""

from __future__ import annotations

import os
import socket
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.compute import outbox, scratch, stream, watch, wire
from valv.compute.lease import LeaseClient, LeaseServer
from valv.compute.outbox import Found
from valv.compute.reports import Report, Reporter, Reports
from valv.compute.stream import Ended, Sender
from valv.errors import (
    ComputeFault,
    Fault,
    FormatFault,
    InputFault,
    IntegrityFault,
    Refusal,
    RefusedFault,
    UnreachableFault,
)
from valv.ports.compute import Limits, MountedFile, Skipped
from valv.ports.lease import TERM, Beat

# --- wire ---


@given(
    st.lists(
        st.builds(
            MountedFile, st.text(), st.text(), st.text(), st.binary(), st.text(), st.integers(0, 1 << 50), st.binary()
        )
    )
)
def test_a_list_of_files_comes_back(files: list[MountedFile]) -> None:
    descriptor = wire.files_descriptor(tuple(files))
    try:
        assert wire.read_files(descriptor) == tuple(files)
    finally:
        os.close(descriptor)


def test_a_memory_file_cannot_be_changed() -> None:
    descriptor = wire.memory_file("x", b"data")
    try:
        for change in (lambda: os.pwrite(descriptor, b"D", 0), lambda: os.ftruncate(descriptor, 1)):
            with pytest.raises(PermissionError):
                change()
        assert os.read(descriptor, 10) == b"data"
    finally:
        os.close(descriptor)


@given(st.binary(max_size=200))
def test_a_bad_list_of_files_is_a_fault(data: bytes) -> None:
    descriptor = wire.memory_file("x", data)
    try:
        assert wire.read_files(descriptor) == ()
    except InputFault:
        pass
    finally:
        os.close(descriptor)


@given(st.text(max_size=80))
def test_names_are_only_names(name: str) -> None:
    try:
        wire.check_name(name)
    except InputFault:
        return
    assert 0 < len(name) <= 64
    assert not set(name) & set("/.\0\n ")
    assert Path("/x", name).parent == Path("/x")


def test_faults_cross_the_wire_as_what_they_were() -> None:
    for fault in (ComputeFault("why", "what to do"), IntegrityFault("bad"), UnreachableFault()):
        told = msgspec.msgpack.decode(msgspec.msgpack.encode(wire.Failure.of(fault)), type=wire.Failure).exception()
        assert (type(told), told.detail, told.hint) == (type(fault), fault.detail, fault.hint)
    told = wire.Failure.of(RefusedFault(Refusal("keys.grant", "no"))).exception()
    assert isinstance(told, RefusedFault)
    assert told.refusal == Refusal("keys.grant", "no")


def test_a_start_is_checked() -> None:
    good = wire.Start("r", "g", ("ls",), Limits(), {"A": "b"})
    wire.check_start(good)
    for change in (
        {"command": ()},
        {"command": ("",)},
        {"command": ("a", "b\0")},
        {"environment": {"A": "\0"}},
        {"environment": {"a-b": ""}},
        {"environment": {"": ""}},
        {"grant_id": "../g"},
        {"limits": Limits(memory=0)},
    ):
        with pytest.raises(InputFault):
            wire.check_start(msgspec.structs.replace(good, **change))


# --- streams ---


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        yield one, two


def test_frames_come_back(pair: tuple[socket.socket, socket.socket]) -> None:
    big = os.urandom(stream.PAYLOAD * 2 + 5)

    def send() -> None:
        sender = Sender(pair[0])
        sender.send(b"F", b"name")
        sender.send(b"D", big)
        sender.send(b"D")
        sender.send(b"E", msgspec.msgpack.encode(Ended(b"h", 1, b"s", b"r")))
        sender.send(b"S", msgspec.msgpack.encode(Skipped("p", "why")))
        sender.finish()

    thread = threading.Thread(target=send)
    thread.start()
    got = list(stream.frames(pair[1]))
    thread.join()
    assert got[0] == (b"F", b"name")
    assert b"".join(data for kind, data in got if kind == b"D") == big
    assert msgspec.msgpack.decode(got[-1][1], type=Skipped) == Skipped("p", "why")


def test_a_cut_stream_is_a_fault(pair: tuple[socket.socket, socket.socket]) -> None:
    Sender(pair[0]).send(b"D", b"half")
    pair[0].close()
    frames = stream.frames(pair[1])
    assert next(frames) == (b"D", b"half")
    with pytest.raises(UnreachableFault, match="cut"):
        next(frames)


def test_a_fault_at_the_end_is_raised(pair: tuple[socket.socket, socket.socket]) -> None:
    Sender(pair[0]).finish(wire.Failure.of(IntegrityFault("segment 3")))
    with pytest.raises(IntegrityFault, match="segment 3"):
        list(stream.frames(pair[1]))


@given(st.binary(min_size=1, max_size=60))
def test_rubbish_is_a_fault(data: bytes) -> None:
    one, two = socket.socketpair()
    with one, two:
        one.sendall(data)
        one.close()
        with pytest.raises((Fault, msgspec.DecodeError)):
            list(stream.frames(two))
            raise FormatFault("a whole stream by chance")


def test_a_receiver_that_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(UnreachableFault):
        Sender(pair[0]).send(b"D", b"x" * 1_000_000)


# --- reports ---


def test_reports_tell_what_grew(pair: tuple[socket.socket, socket.socket]) -> None:
    reporter, reports = Reporter(pair[0].detach()), Reports(pair[1])
    assert reports.take() == []
    reporter.ready()
    reporter.reads({"a": 1, "b": 2}, True)
    reporter.reads({"a": 1, "b": 3}, None)
    reporter.failed("why")
    assert reports.take() == [
        Report(ready=True),
        Report(reads={"a": 1, "b": 2}, granted=True),
        Report(reads={"b": 3}),
        Report(failed="why"),
    ]
    assert not reports.over
    del reporter
    assert reports.take() == []
    assert reports.over


def test_a_report_that_is_none_ends_it(pair: tuple[socket.socket, socket.socket]) -> None:
    reports = Reports(pair[1])
    pair[0].sendall(b"rubbish\n")
    assert reports.take() == []
    assert reports.over


# --- lease ---


def test_a_lease_is_asked_and_answered(tmp_path: Path) -> None:
    beats: list[tuple[Beat, int]] = []

    def decide(beat: Beat, uid: int) -> bool:
        beats.append((beat, uid))
        if beat.run_id == "broken":
            raise ValueError("a secret detail")
        return beat.grant_id == "good"

    path = tmp_path / "lease.sock"
    with LeaseServer(path, decide):
        good = LeaseClient(path, "good", "run")
        assert good.beat({})
        assert good.beat({"a": 5})
        assert good.beat({"a": 5, "b": 1})
        assert not LeaseClient(path, "bad", "run").beat({})
        assert not LeaseClient(path, "good", "broken").beat({})
        assert [beat.reads for beat, _ in beats[:3]] == [{}, {"a": 5}, {"b": 1}]
        assert {uid for _, uid in beats} == {os.geteuid()}
    with pytest.raises(UnreachableFault):
        good.beat({"a": 6})
    with LeaseServer(path, decide):
        assert good.beat({"a": 7})  # a new server is told all again
        assert beats[-1][0].reads == {"a": 7}


def test_no_answer_within_the_term_is_none(tmp_path: Path) -> None:
    path = tmp_path / "lease.sock"
    with LeaseServer(path, lambda *_: time.sleep(3 * TERM) is None), pytest.raises(UnreachableFault):
        LeaseClient(path, "g", "r").beat({})


def test_the_answers_of_a_stranger_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lease.sock"
    with LeaseServer(path, lambda *_: True):
        with pytest.raises(UnreachableFault):
            LeaseClient(path, "g", "r", os.geteuid() + 1).beat({})
        assert LeaseClient(path, "g", "r", os.geteuid()).beat({})


# --- outbox, scratch, watch ---


@given(st.text(min_size=1, max_size=40))
def test_a_clean_name_shows_as_what_it_is(name: str) -> None:
    if outbox.clean(name):
        assert name == name.strip()
        assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") for c in name)
        assert not set(name) & set("\u202e\u2066\\")
    else:
        assert outbox.shown(name).isascii()
        assert outbox.shown(name).isprintable()


def test_walking_goes_folder_by_folder(tmp_path: Path) -> None:
    for path in ("b", "a/2", "a/1", "a/deep/x", "c"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    root = os.open(tmp_path, os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    found: dict[str, str] = {}
    for entry in outbox.walk(root):
        assert isinstance(entry, Found)
        found[entry.path] = os.read(entry.descriptor, 100).decode()
        os.close(entry.descriptor)
    assert found == {path: path for path in ("b", "a/2", "a/1", "a/deep/x", "c")}
    assert len(os.listdir("/proc/self/fd")) == before
    walking = outbox.walk(root)
    first = next(walking)
    assert isinstance(first, Found)
    os.close(first.descriptor)
    walking.close()  # a reader that leaves early leaves no descriptor open
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(root)


def test_walking_ends_after_so_many_entries(tmp_path: Path) -> None:
    for number in range(outbox.ENTRIES + 5):
        os.mkfifo(tmp_path / f"{number:05}")
    root = os.open(tmp_path, os.O_RDONLY)
    found = list(outbox.walk(root))
    os.close(root)
    assert len(found) == outbox.ENTRIES + 1
    assert [entry.reason for entry in found[-2:] if isinstance(entry, Skipped)] == ["fifo", "too_many"]


def test_wiping_takes_all_and_follows_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    gone = tmp_path / "gone"
    (gone / "a/b/c").mkdir(parents=True)
    (gone / "link").symlink_to(kept)
    (gone / "a/b").chmod(0)
    scratch.wipe(gone)
    scratch.wipe(gone)
    assert not gone.exists()
    assert (kept / "file").read_text() == "x"


def test_the_size_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/f").write_bytes(bytes(100_000))
    (tmp_path / "loop").symlink_to(tmp_path)
    assert 100_000 <= watch.size(tmp_path, 1 << 30) < 200_000
    assert watch.size(tmp_path, 1000) > 1000


def test_the_tree_of_processes() -> None:
    found = watch.tree(os.getpid())
    assert found[0][0] == os.getpid()
    assert found[0][3] > 1 << 20
    assert watch.Watch(1).look(os.getpid())
    assert not watch.Watch(1 << 50).look(os.getpid())
