"""What a permit allows at a moment: `stands`, the lease of readers and of downloads, and the permit's end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from valv.app import account, dataset, download, permit, run, running, streams
from valv.app.node import Who, new_id
from valv.app.streams import DATASET, PERMIT, RUN, Step
from valv.core import dataset as core
from valv.errors import Refusal, RefusedFault
from valv.formats.crypt4gh import CIPHER_SEGMENT, generate_keypair, open_header
from valv.ports.lease import TERM, Beat
from valv.vault import ciphertext


def stands(s: Any, ident: str, name: str = "rikard", mode: str = "compute") -> str:
    """The code of the refusal, '' where the permit stands."""
    with s.node.records.reading() as unit:
        account_id = s.who(name).account_id
        refusal = permit.stands(
            unit,
            ident,
            account_id=account_id,
            wanted=None,
            mode=mode,  # type: ignore[arg-type]
            at=s.clock(),
        )
    return refusal.code if refusal else ""


def close(s: Any, name: str) -> None:
    """End a dataset, as its core process allows it."""
    carin = s.who("carin")
    with s.node.records.writing() as unit:
        state, version = dataset.named(unit, name)
        events = core.decide(
            state, core.Close(by=carin.account_id, at=s.clock(), reason="over"), core.Facts(custodian=True)
        )
        assert not isinstance(events, Refusal), events
        step = Step(DATASET, state.dataset_id, version, state, events)
        streams.commit(unit, [step], by=carin.account_id, at=s.clock(), command=new_id())


@pytest.fixture
def computing(s: Any) -> tuple[str, str]:
    name = s.fresh()
    s.publish(name, {"a": b"1"})
    return name, s.permit(name)


def test_a_permit_stands_for_its_people_and_mode(s: Any, computing: tuple[str, str]) -> None:
    _, ident = computing
    assert stands(s, ident) == ""
    assert stands(s, ident, "ronja") == "no_permit"
    assert stands(s, ident, mode="download") == "other_mode"
    assert stands(s, "nothing") == "no_permit"


def test_it_ends_by_the_clock_before_anybody_writes_it_down(s: Any, computing: tuple[str, str]) -> None:
    _, ident = computing
    ends = s.state(PERMIT, ident).ends
    s.clock.now = ends - timedelta(microseconds=1)
    assert stands(s, ident) == ""
    s.clock.now = ends
    assert stands(s, ident) == "permit_ended"
    assert s.state(PERMIT, ident).phase == "issued"
    assert permit.expire_due(s.worker) >= 1
    assert s.state(PERMIT, ident).phase == "expired"
    before = s.size()
    assert permit.expire_due(s.worker) == 0
    assert s.size() == before


def test_revoked_once(s: Any, computing: tuple[str, str]) -> None:
    _, ident = computing
    dagny, command = s.who("dagny"), new_id()
    with pytest.raises(RefusedFault, match="reason"):
        permit.revoke(s.node, dagny, ident, reason=" ", command=new_id())
    before = s.size()
    for _ in range(3):
        permit.revoke(s.node, dagny, ident, reason="It is over.", command=command)
    assert s.size() == before + 1
    assert stands(s, ident) == "permit_ended"
    assert len(s.rows("outbox", key=f"permit-revoked:{ident}:{s.who('rikard').account_id}")) == 1


def test_given_back(s: Any, computing: tuple[str, str]) -> None:
    _, ident = computing
    with pytest.raises(RefusedFault):
        permit.give_back(s.node, s.who("ronja"), ident, new_id())
    permit.give_back(s.node, s.who("rikard"), ident, new_id())
    assert stands(s, ident) == "permit_ended"


def test_a_closed_dataset_ends_it(s: Any, computing: tuple[str, str]) -> None:
    name, ident = computing
    close(s, name)
    assert stands(s, ident) == "permit_ended"
    with pytest.raises(RefusedFault):
        queue(s, ident)


# --- runs ---


def queue(s: Any, ident: str, who: Who | None = None, command: str = "") -> str:
    return run.queue(
        s.node,
        who or s.who("rikard"),
        permit_id=ident,
        datasets=(),
        command_line=["true"],
        limits=None,
        command=command or new_id(),
    )


def started(s: Any, ident: str) -> str:
    """A run that goes on."""
    run_id = queue(s, ident)
    going = s.world.compute
    assert running._start(s.worker, going, s.state(RUN, run_id))
    assert s.state(RUN, run_id).phase == "running"
    return run_id


def test_the_lease_of_a_reader(s: Any, computing: tuple[str, str]) -> None:
    _, ident = computing
    waiting = queue(s, ident)
    assert not permit.lease(s.worker, Beat(grant_id="", run_id=waiting))
    assert not permit.lease(s.worker, Beat(grant_id="", run_id="nothing"))
    run_id = started(s, ident)
    beat = Beat(grant_id=f"run-{run_id}", run_id=run_id)
    assert permit.lease(s.worker, beat)
    permit.revoke(s.node, s.who("dagny"), ident, reason="It is over.", command=new_id())
    assert not permit.lease(s.worker, beat)


@pytest.mark.parametrize("end", ["expired", "given back", "closed", "stopped"])
def test_the_lease_ends_with(s: Any, computing: tuple[str, str], end: str) -> None:
    name, ident = computing
    run_id = started(s, ident)
    beat = Beat(grant_id=f"run-{run_id}", run_id=run_id)
    assert permit.lease(s.worker, beat)
    if end == "expired":
        s.clock.now = s.state(PERMIT, ident).ends
    elif end == "given back":
        permit.give_back(s.node, s.who("rikard"), ident, new_id())
    elif end == "closed":
        close(s, name)
    else:
        run.stop(s.node, s.who("rikard"), run_id, new_id())
    assert not permit.lease(s.worker, beat)


def test_a_run_is_queued_once(s: Any, computing: tuple[str, str]) -> None:
    _, ident = computing
    command = new_id()
    first = queue(s, ident, command=command)
    before = s.size()
    assert queue(s, ident, command=command) == first
    assert s.size() == before
    with pytest.raises(RefusedFault):
        queue(s, ident, s.who("ronja"), command)


# --- downloads ---


def key(s: Any, name: str) -> str:
    pair = generate_keypair()
    asked = account.challenge_key(s.node, s.who(name), public=pair.public, label="laptop")
    data_key = open_header(asked.header, [pair.private]).data_keys[0]
    account.add_key(s.node, s.who(name), challenge_id=asked.challenge_id, answer=account.answer(data_key))
    return asked.challenge_id


@pytest.fixture
def downloading(s: Any) -> tuple[str, str, download.Opened]:
    """A download that has begun: its first chunks were sent."""
    name = s.fresh()
    s.anonymised(name, {"a": bytes(8 << 20)})
    ident = s.permit(name, mode="download", purpose=("GRU",))
    rikard = s.who("rikard")
    (file,) = download.files(s.node, rikard, ident)
    opened = download.open_file(s.node, rikard, ident, file.file_id, key_id=key(s, "rikard"))
    assert len(next(opened.chunks)) == len(opened.header)
    assert len(next(opened.chunks)) == ciphertext.BATCH * CIPHER_SEGMENT
    return name, ident, opened


@pytest.mark.parametrize("end", ["revoked", "expired", "given back", "narrowed", "closed"])
def test_a_download_ends_with_its_permit(s: Any, downloading: tuple[str, str, Any], end: str) -> None:
    import time

    name, ident, opened = downloading
    if end == "revoked":
        permit.revoke(s.node, s.who("dagny"), ident, reason="Over.", command=new_id())
    elif end == "expired":
        s.clock.now = s.state(PERMIT, ident).ends
    elif end == "given back":
        permit.give_back(s.node, s.who("rikard"), ident, new_id())
    elif end == "narrowed":
        dataset.narrow(s.node, s.who("carin"), name, version=1, reason="A name was found.", command=new_id())
    else:
        close(s, name)
    time.sleep(TERM)
    code = "download_identifiable" if end == "narrowed" else "permit_ended"
    with pytest.raises(RefusedFault) as fault:
        next(opened.chunks)
    assert fault.value.refusal.code == code
    assert list(opened.chunks) == []
    with pytest.raises(RefusedFault):
        download.files(s.node, s.who("rikard"), ident)


def test_a_narrowed_version_opens_for_no_key_outside(s: Any, downloading: tuple[str, str, Any]) -> None:
    name, _, _ = downloading
    (row,) = s.rows("file", dataset=s.dataset(name).dataset_id)
    outside = generate_keypair().public
    assert s.node.keys.reseal_outside(row["key_id"], row["header"], outside)
    dataset.narrow(s.node, s.who("carin"), name, version=1, reason="A name was found.", command=new_id())
    s.worker.keys.narrow(row["key_id"])
    with pytest.raises(RefusedFault):
        s.node.keys.reseal_outside(row["key_id"], row["header"], outside)


@pytest.mark.parametrize("start", [-1, 1 << 40])
def test_a_range_outside_the_file(s: Any, downloading: tuple[str, str, Any], start: int) -> None:
    _, ident, _ = downloading
    rikard = s.who("rikard")
    (file,) = download.files(s.node, rikard, ident)
    with pytest.raises(RefusedFault):
        download.open_file(s.node, rikard, ident, file.file_id, key_id=key(s, "rikard"), start=start)


def test_every_part_is_the_whole(s: Any, downloading: tuple[str, str, Any]) -> None:
    _, ident, _ = downloading
    rikard, key_id = s.who("rikard"), key(s, "rikard")
    (file,) = download.files(s.node, rikard, ident)
    for start in (0, 1, 100, 124, 125, 70_000):
        opened = download.open_file(s.node, rikard, ident, file.file_id, key_id=key_id, start=start)
        assert opened.start == (start if start >= len(opened.header) else 0), "a header comes whole"
        assert len(b"".join(opened.chunks)) == opened.size - opened.start
