"""Runs and downloads while keys are rotated and bodies encrypted anew: what they began with they keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.app.rotated import clear, content, finish, order, readable, rows_of, stored, turn
from valv.app import account, download, rotating, run, running
from valv.app.node import new_id
from valv.app.streams import ROTATION, RUN
from valv.formats import crypt4gh


@pytest.fixture
def name(s: Any) -> str:
    return stored(s)


@pytest.fixture
def going(s: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A run that goes on: its id, and its spec as the mount got it."""
    specs: list[Any] = []

    class Noting:
        def start(self, spec: Any) -> None:
            specs.append(spec)

        def __getattr__(self, verb: str) -> Any:
            return getattr(s.world.compute, verb)

    compute: Any = Noting()
    permit_id = s.permit(name)
    run_id = run.queue(
        s.node,
        s.who("rikard"),
        permit_id=permit_id,
        datasets=(),
        command_line=["true"],
        limits=None,
        command=new_id(),
    )
    assert running._start(s.worker, compute, s.state(RUN, run_id))
    yield run_id, specs[0]
    if s.state(RUN, run_id).phase == "running":
        running.finish_ended(s.worker, s.world.compute)


def read_in(s: Any, spec: Any) -> None:
    """What the run's mount does when a file is opened for the first time."""
    s.worker.keys.grant(spec.grant_id, [spec.files[0].key_id], s.world.compute.uid, 60.0)
    for file in spec.files:
        assert b"".join(s.reader.read("token", spec.grant_id, file)) == content(file.path.partition("/")[2])


@pytest.mark.parametrize("aim", ["rotate", "rekey"])
def test_a_run_keeps_what_it_was_given(s: Any, name: str, going: tuple[str, Any], aim: str) -> None:
    run_id, spec = going
    ident = order(s, name, aim)
    waiting = finish(s, ident)
    assert (waiting.phase, waiting.readers) == ("retiring", (run_id,))
    clear(s)
    read_in(s, spec)
    readable(s, name)
    s.worker.keys.revoke(spec.grant_id)  # as after a restart of the key holder, which forgets all grants
    turn(s)
    assert s.state(ROTATION, ident).phase == "retiring"
    read_in(s, spec)
    running.finish_ended(s.worker, s.world.compute)
    assert finish(s, ident).phase == "done"
    clear(s)
    assert not {file.body for file in spec.files} & s.bodies() or aim == "rotate"
    readable(s, name)


def test_a_grant_of_somebody_else_only_delays(s: Any, name: str) -> None:
    key_id = s.dataset(name).current.key_id
    s.worker.keys.grant("somebody", [key_id], s.world.compute.uid, 60.0)
    ident = order(s, name)
    assert finish(s, ident).phase == "retiring"
    s.worker.keys.revoke("somebody")
    assert finish(s, ident).phase == "done"


def test_a_run_that_begins_meanwhile_holds_nothing_up(s: Any, name: str) -> None:
    ident = order(s, name, "rekey")
    permit_id = s.permit(name)
    line = {"datasets": (), "command_line": ["true"], "limits": None}
    turn(s)

    class Starting:
        """The rotation goes on between the start on record and the mount."""

        def start(self, spec: Any) -> None:
            self.spec = spec

        def __getattr__(self, verb: str) -> Any:
            return getattr(s.world.compute, verb)

    compute: Any = Starting()
    run_id = run.queue(s.node, s.who("rikard"), permit_id=permit_id, command=new_id(), **line)  # type: ignore[arg-type]
    assert running._start(s.worker, compute, s.state(RUN, run_id))
    assert finish(s, ident).readers == (run_id,)
    read_in(s, compute.spec)
    running.finish_ended(s.worker, s.world.compute)
    assert finish(s, ident).phase == "done"


def own_key(s: Any) -> tuple[str, crypt4gh.KeyPair]:
    """A key that the researcher has registered, and its pair."""
    pair = crypt4gh.generate_keypair()
    asked = account.challenge_key(s.node, s.who("rikard"), public=pair.public, label="laptop")
    answer = account.answer(crypt4gh.open_header(asked.header, [pair.private]).data_keys[0])
    account.add_key(s.node, s.who("rikard"), challenge_id=asked.challenge_id, answer=answer)
    return asked.challenge_id, pair


def test_a_download_goes_on_and_one_that_is_resumed_begins_anew(s: Any) -> None:
    name = s.fresh()
    plain = bytes(range(256)) * 20_000
    s.anonymised(name, {"a": plain})
    permit_id = s.permit(name, mode="download")
    rikard, (key_id, pair) = s.who("rikard"), own_key(s)
    (listed,) = download.files(s.node, rikard, permit_id)
    (row,) = rows_of(s, name)
    assert not row["known_outside"]

    def fetch(**more: Any) -> download.Opened:
        return download.open_file(s.node, rikard, permit_id, listed.file_id, key_id=key_id, **more)

    def opened(sealed: bytes) -> bytes:
        length = crypt4gh.header_length(sealed)
        assert length
        key, body = crypt4gh.open_header(sealed[:length], [pair.private]).data_keys[0], sealed[length:]
        parts = (body[at : at + crypt4gh.CIPHER_SEGMENT] for at in range(0, len(body), crypt4gh.CIPHER_SEGMENT))
        return b"".join(ChaCha20Poly1305(key).decrypt(part[:12], part[12:], None) for part in parts)

    early = fetch()
    assert rows_of(s, name)[0]["known_outside"], "who downloads a file knows its data key"
    beginning = next(early.chunks)
    assert early.etag == listed.etag
    resumed = fetch(start=3_000_000)
    assert resumed.start == 3_000_000
    assert fetch(start=50).start == 0, "a header is not continued"
    assert finish(s, order(s, name, "rekey")).phase == "done"
    s.clock.forward(seconds=rotating.GRACE.total_seconds() + 1)
    rotating.clear(s.worker)
    assert row["body"] in s.bodies(), "a download has it open"
    assert opened(beginning + b"".join(early.chunks)) == plain
    for seen in ("", early.etag, "0" * 32):
        again = fetch(start=3_000_000, seen=seen)
        assert again.start == 0 and again.etag != early.etag
        assert opened(b"".join(again.chunks)) == plain
    now = fetch(start=3_000_000, seen=again.etag)
    assert now.start == 3_000_000
    assert len(b"".join(now.chunks)) == now.size - 3_000_000
    clear(s)
    assert row["body"] not in s.bodies()
    assert s.rows("open_body") == []


@pytest.mark.parametrize("aim", ["rotate", "rekey"])
def test_a_download_that_began_while_the_pair_was_retired(s: Any, aim: str) -> None:
    """Its row was read before the header was sealed anew, and the old pair is gone when it asks the key holder."""
    name = s.fresh()
    s.anonymised(name, {"a": b"content"})
    permit_id = s.permit(name, mode="download")
    rikard, (key_id, _) = s.who("rikard"), own_key(s)
    (listed,) = download.files(s.node, rikard, permit_id)
    ident = order(s, name, aim)

    class Late:
        def __init__(self) -> None:
            self.asked = 0

        def reseal_outside(self, *given: Any) -> bytes:
            self.asked += 1
            if self.asked == 1:
                assert finish(s, ident).phase == "done"
            return bytes(s.node.keys.reseal_outside(*given))

        def __getattr__(self, verb: str) -> Any:
            return getattr(s.node.keys, verb)

    late: Any = Late()
    found = download.open_file(replace(s.node, keys=late), rikard, permit_id, listed.file_id, key_id=key_id)
    assert late.asked == 2
    assert len(b"".join(found.chunks)) == found.size
