"""The contract of `KeyHolder`, held against a real process over its real socket, with a real user for each role."""

from __future__ import annotations

import os
import secrets
import time
from typing import Any

import pytest
from valv_tests_keys_running import OTHER_RUN, PASSPHRASE, RUN, SERVE, STRANGER, WORKER, Running, Tree, running

from tests.peers.softhsm import SoftHsm
from valv.errors import (
    FormatFault,
    InputFault,
    KeyFault,
    MissingFault,
    RefusedFault,
    SealedFault,
)
from valv.formats import crypt4gh, note
from valv.keys.client import KeydClient

DATA_KEY = bytes(range(32))


@pytest.fixture(params=["file", "pkcs11"])
def softhsm_or_file(request: pytest.FixtureRequest) -> SoftHsm | None:
    return None if request.param == "file" else request.getfixturevalue("softhsm")


def packets(header: bytes) -> int:
    """How many packets a Crypt4GH header has: one for each data key (and edit list) and recipient."""
    return int.from_bytes(header[12:16], "little")


def refused(code: str) -> Any:
    return pytest.raises(RefusedFault, check=lambda fault: fault.refusal.code == code)


def test_create_gives_the_public_half_and_repeats(keyd: Running) -> None:
    worker = keyd.client(WORKER)
    public = worker.create("v1", "identifiable")
    assert len(public) == 32
    assert worker.create("v1", "identifiable") == public
    assert keyd.client(SERVE).create("v1", "identifiable") == public
    assert worker.create("v2", "identifiable") != public
    with refused("key_class"):
        worker.create("v3", "result") and worker.create("v3", "anonymised")


def test_status_tells_the_public_halves(keyd: Running) -> None:
    status = keyd.client(WORKER).status()
    assert status.open and len(status.node_key) == 32 and status.signed_size == 0
    assert note.read_verifier_key(status.log_key)[0] == "valv.example"


def test_adopt_takes_our_packets_and_drops_the_others(keyd: Running) -> None:
    worker = keyd.client(WORKER)
    public = worker.create("v1", "identifiable")
    stranger = crypt4gh.generate_keypair()
    header = crypt4gh.build_header(DATA_KEY, [stranger.public, worker.status().node_key], [3, 5])
    assert crypt4gh.open_header(header, [stranger.private]).data_keys == (DATA_KEY,)
    adopted = worker.adopt(header, "v1")
    assert packets(header) == 4 and packets(adopted) == 2
    with pytest.raises(KeyFault):
        crypt4gh.open_header(adopted, [stranger.private])
    worker.grant("g", ["v1"], RUN, 60)
    mine = crypt4gh.generate_keypair()
    opened = crypt4gh.open_header(keyd.client(RUN).reseal("g", "v1", adopted, mine.public), [mine.private])
    assert opened.data_keys == (DATA_KEY,) and opened.edit_list == (3, 5)
    assert public  # the header was made for it
    with pytest.raises(KeyFault, match="not made for any of our keys"):
        worker.adopt(crypt4gh.build_header(DATA_KEY, [stranger.public]), "v1")
    with pytest.raises(FormatFault):
        worker.adopt(b"no header", "v1")
    with pytest.raises(MissingFault):
        worker.adopt(header, "nobody")


def test_reseal_needs_a_live_grant_for_this_user_and_key(keyd: Running) -> None:
    worker, run = keyd.client(WORKER), keyd.client(RUN)
    mine = crypt4gh.generate_keypair()
    headers = {
        name: crypt4gh.build_header(DATA_KEY, [worker.create(name, "identifiable")]) for name in ("granted", "other")
    }

    def reseal(client: KeydClient, grant: str = "g", key: str = "granted") -> bytes:
        return client.reseal(grant, key, headers[key], mine.public)

    with refused("no_grant"):
        reseal(run)
    worker.grant("g", ["granted"], RUN, 60)
    assert crypt4gh.open_header(reseal(run), [mine.private]).data_keys == (DATA_KEY,)
    assert packets(reseal(run)) == 1
    with refused("no_grant"):
        reseal(run, key="other")
    with refused("no_grant"):
        reseal(keyd.client(OTHER_RUN))
    with refused("key_not_yours"):
        reseal(worker)
    with refused("no_grant"):
        worker.grant("g", ["granted", "other"], RUN, 60)
    worker.grant("g", ["granted"], RUN, 60)
    worker.revoke("g")
    worker.revoke("g")
    with refused("no_grant"):
        reseal(run)
    with refused("no_grant"):
        worker.renew("g", 60)


def test_a_grant_ends_and_is_renewed(keyd: Running) -> None:
    worker, run = keyd.client(WORKER), keyd.client(RUN)
    mine = crypt4gh.generate_keypair()
    header = crypt4gh.build_header(DATA_KEY, [worker.create("v1", "identifiable")])
    worker.grant("short", ["v1"], RUN, 0.05)
    worker.grant("long", ["v1"], RUN, 0.5)
    worker.renew("long", 300)
    time.sleep(0.6)
    with refused("no_grant"):
        run.reseal("short", "v1", header, mine.public)
    assert run.reseal("long", "v1", header, mine.public)
    for seconds in (0, -1, float("nan"), float("inf"), 1e300):
        with pytest.raises(InputFault):
            worker.renew("long", seconds)


def test_the_server_grants_results_only(keyd: Running) -> None:
    worker, serve, run = keyd.client(WORKER), keyd.client(SERVE), keyd.client(RUN)
    worker.create("data", "identifiable")
    header = crypt4gh.build_header(DATA_KEY, [worker.create("out", "result")])
    for keys in (["data"], ["out", "data"]):
        with refused("no_grant"):
            serve.grant("view", keys, RUN, 60)
    serve.grant("view", ["out"], RUN, 60)
    assert run.reseal("view", "out", header, crypt4gh.generate_keypair().public)
    worker.grant("run", ["data"], RUN, 60)
    for grant in ("view", "run"):
        with refused("key_not_yours"):
            serve.renew(grant, 60)
    serve.revoke("run")
    with refused("no_grant"):
        worker.renew("run", 60)


@pytest.mark.parametrize("uid", [SERVE, WORKER, STRANGER, 0, RUN - 1])
def test_a_grant_names_a_user_of_the_runs(keyd: Running, uid: int) -> None:
    worker = keyd.client(WORKER)
    worker.create("v1", "anonymised")
    with refused("no_grant"):
        worker.grant("g", ["v1"], uid, 60)


def test_outside_only_when_anonymised_and_confirmed(keyd: Running) -> None:
    serve = keyd.client(SERVE)
    researcher = crypt4gh.generate_keypair()
    for name in ("identifiable", "anonymised", "result", "intake"):
        header = crypt4gh.build_header(DATA_KEY, [serve.create(name, name)])  # type: ignore[arg-type]
        with refused("key_stays_inside"):
            serve.reseal_outside(name, header, researcher.public)
        if name != "anonymised":
            with refused("key_class"):
                keyd.client(WORKER).confirm(name)
            continue
        keyd.client(WORKER).confirm(name)
        keyd.client(WORKER).confirm(name)
        sent = serve.reseal_outside(name, header, researcher.public)
        assert crypt4gh.open_header(sent, [researcher.private]).data_keys == (DATA_KEY,)
        assert packets(sent) == 1
        with refused("key_not_yours"):
            keyd.client(WORKER).reseal_outside(name, header, researcher.public)
        serve.narrow(name)
        serve.narrow(name)
        with refused("key_stays_inside"):
            serve.reseal_outside(name, header, researcher.public)
        with refused("key_class"):
            keyd.client(WORKER).confirm(name)
        assert serve.create(name, "anonymised")
        with refused("key_stays_inside"):
            serve.reseal_outside(name, header, researcher.public)


def test_sign_goes_forward_only(keyd: Running) -> None:
    worker, tree, fork = keyd.client(WORKER), Tree(20), Tree(20, b"other")
    vkey = worker.status().log_key
    for old, new in ((0, 0), (0, 3), (3, 4), (4, 4), (4, 17)):
        signed = worker.sign(new, tree.root(new), tree.proof(old, new))
        assert note.Checkpoint.decode(note.verify(signed, vkey)) == note.Checkpoint("valv.example", new, tree.root(new))
        assert worker.status().signed_size == new
    assert worker.sign(17, tree.root(17), [secrets.token_bytes(32)])  # an answer that was lost is asked for again
    for size, root, proof in (
        (16, tree.root(16), []),
        (0, tree.root(0), []),
        (17, fork.root(17), []),
        (19, fork.root(19), fork.proof(17, 19)),
        (19, tree.root(19), []),
        (19, tree.root(19), tree.proof(16, 19)),
    ):
        with refused("ledger_forked"):
            worker.sign(size, root, proof)
    keyd.stop()
    keyd.start()
    with refused("ledger_forked"):
        worker.sign(16, tree.root(16), [])
    assert keyd.client(WORKER).sign(20, tree.root(20), tree.proof(17, 20))
    with refused("key_not_yours"):
        keyd.client(SERVE).sign(20, tree.root(20), [])


def test_destroyed_is_destroyed(keyd: Running) -> None:
    """Results by the worker alone; what protects data by an order only."""
    worker, run = keyd.client(WORKER), keyd.client(RUN)
    header = crypt4gh.build_header(DATA_KEY, [worker.create("out", "result")])
    other = crypt4gh.build_header(DATA_KEY, [worker.create("other", "result")])
    worker.grant("g", ["out", "other"], RUN, 60)
    root = (keyd.keys / "generation-000001" / "root.json").read_bytes()
    worker.destroy("out")
    worker.destroy("out")
    worker.destroy("never-was")
    assert worker.status().generation == 2, "the root key is made anew, once"
    assert [path.name for path in keyd.keys.glob("generation-*")] == ["generation-000002"]
    assert (keyd.keys / "generation-000002" / "root.json").read_bytes() != root
    assert not list(keyd.keys.rglob("out.json"))
    mine = crypt4gh.generate_keypair()
    with pytest.raises(KeyFault, match="destroyed"):
        run.reseal("g", "out", header, mine.public)
    opened = crypt4gh.open_header(run.reseal("g", "other", other, mine.public), [mine.private])
    assert opened.data_keys == (DATA_KEY,)
    with refused("key_destroyed"):
        worker.create("out", "result")
    for kind in ("identifiable", "anonymised", "intake"):
        worker.create(kind, kind)
        with refused("two_officers"):
            worker.destroy(kind)
    worker.create("narrowed", "result")
    worker.narrow("narrowed")
    with refused("two_officers"):
        worker.destroy("narrowed")
    assert worker.status().generation == 2
    assert worker.create("never-was", "result")
    keyd.stop()
    keyd.start()
    with refused("key_destroyed"):
        worker.create("out", "result")


def test_rotation(keyd: Running) -> None:
    """New headers go to the newest pair, old ones open until they are re-sealed and the pair is retired."""
    worker, serve, run = keyd.client(WORKER), keyd.client(SERVE), keyd.client(RUN)
    first = worker.create("v1", "anonymised")
    worker.confirm("v1")
    old = [crypt4gh.build_header(bytes([number]) * 32, [first], [number, 5]) for number in range(20)]
    second = worker.rotate("v1", 2)
    assert second == worker.rotate("v1", 2) == worker.create("v1", "anonymised") != first
    with pytest.raises(InputFault):
        worker.rotate("v1", 4)
    mine = crypt4gh.generate_keypair()
    worker.grant("g", ["v1"], RUN, 60)

    def opens(header: bytes) -> bytes:
        inside = crypt4gh.open_header(run.reseal("g", "v1", header, mine.public), [mine.private])
        outside = crypt4gh.open_header(serve.reseal_outside("v1", header, mine.public), [mine.private])
        assert inside == outside
        return inside.data_keys[0]

    again = worker.reseal_within("v1", old)
    twice = worker.reseal_within("v1", again)
    for number in range(20):
        assert opens(old[number]) == opens(again[number]) == opens(twice[number]) == bytes([number]) * 32
        assert packets(again[number]) == packets(old[number])
    with refused("key_in_use"):
        worker.retire("v1", 2)
    worker.revoke("g")
    with pytest.raises(InputFault):
        worker.retire("v1", 1)
    for _ in range(2):
        worker.retire("v1", 2)
        assert worker.rotate("v1", 2) == second
    worker.grant("g", ["v1"], RUN, 60)
    assert opens(again[3]) == opens(twice[3]) == bytes([3]) * 32
    for ask in (
        lambda: run.reseal("g", "v1", old[3], mine.public),
        lambda: serve.reseal_outside("v1", old[3], mine.public),
        lambda: worker.reseal_within("v1", [again[0], old[3]]),
    ):
        with pytest.raises(KeyFault):
            ask()
    worker.create("v2", "anonymised")
    with pytest.raises(KeyFault):
        worker.reseal_within("v2", [again[3]])
    assert worker.reseal_within("v1", []) == []
    with pytest.raises(InputFault):
        worker.reseal_within("v1", [b""] * 4097)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\n", "é", ".hidden", "a" * 129, "a\0"])
def test_names_that_are_no_key_ids(keyd: Running, name: str) -> None:
    worker = keyd.client(WORKER)
    with pytest.raises(InputFault):
        worker.create(name, "result")
    with pytest.raises(InputFault):
        worker.destroy(name)


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_that_gives_no_secret_is_refused(keyd: Running, public: bytes) -> None:
    serve = keyd.client(SERVE)
    header = crypt4gh.build_header(DATA_KEY, [serve.create("v1", "anonymised")])
    keyd.client(WORKER).confirm("v1")
    with pytest.raises(InputFault):
        serve.reseal_outside("v1", header, public)


def test_each_role_has_its_verbs_and_no_more(keyd: Running) -> None:
    from valv.keys.roles import ALLOWED, Role

    clients = {
        Role.OPERATOR: keyd.client(0),
        Role.SERVE: keyd.client(SERVE),
        Role.WORKER: keyd.client(WORKER),
        Role.RUN: keyd.client(RUN),
    }
    calls: dict[str, tuple[Any, ...]] = {
        "status": (),
        "unseal": (PASSPHRASE,),
        "create": ("k", "anonymised"),
        "create_volume": ("disk",),
        "confirm": ("k",),
        "narrow": ("k",),
        "adopt": (b"", "k"),
        "grant": ("g", ["k"], RUN, 60.0),
        "renew": ("g", 60.0),
        "revoke": ("g",),
        "reseal": ("g", "k", b"", bytes(32)),
        "reseal_outside": ("k", b"", bytes(32)),
        "reseal_volume": ("disk", b"", bytes(32)),
        "sign": (0, Tree(0).root(0), []),
        "destroy": ("k",),
        "rotate": ("k", 2),
        "reseal_within": ("k", []),
        "reseal_across": ("k", [], "k"),
        "retire": ("k", 2),
        "unseal_share": ("words",),
        "shares": ("anna",),
        "order": ("no order", []),
        "custody": (),
        "held": (0,),
        "back_up": (),
    }
    assert set(calls) == set(ALLOWED)
    for verb, arguments in calls.items():
        for role, client in clients.items():
            allowed = True
            try:
                getattr(client, verb)(*arguments)
            except RefusedFault as fault:  # the first ceremony is for the operator, whoever may order others
                allowed = fault.refusal.code != "key_not_yours" or "the first ceremony" in fault.refusal.detail
            except (KeyFault, FormatFault, MissingFault, InputFault):
                pass
            assert allowed == (role in ALLOWED[verb]), (verb, role)
    with refused("key_not_yours"):
        keyd.client(STRANGER).status()


def test_locked_until_the_operator_opens_it(needs_root: None, softhsm_or_file: SoftHsm | None) -> None:
    wrong = pytest.raises(KeyFault, match="the passphrase is wrong" if softhsm_or_file is None else "the PIN is wrong")
    with running(SERVE - 1, unsealed=False, softhsm=softhsm_or_file) as holder:
        worker, operator = holder.client(WORKER), holder.client(0)
        assert not worker.status().open
        for ask in (
            lambda: worker.create("v1", "result"),
            lambda: worker.sign(0, bytes(32), []),
            lambda: worker.destroy("v1"),
            lambda: worker.grant("g", ["v1"], RUN, 60),
        ):
            with pytest.raises(SealedFault):
                ask()
        with wrong:
            operator.unseal(b"not the passphrase")
        with refused("key_not_yours"):
            worker.unseal(PASSPHRASE)
        assert not worker.status().open
        operator.unseal(PASSPHRASE)
        operator.unseal(PASSPHRASE)
        with wrong:
            operator.unseal(b"not the passphrase")
        assert worker.status().open and worker.create("v1", "result")


def test_one_shared_user_has_every_role_and_nobody_else_any(shared_keyd: Running) -> None:
    uid = shared_keyd.uid
    mine = shared_keyd.client(uid)
    header = crypt4gh.build_header(DATA_KEY, [mine.create("v1", "anonymised")])
    pair = crypt4gh.generate_keypair()
    with refused("no_grant"):
        mine.reseal("g", "v1", header, pair.public)
    with refused("no_grant"):
        mine.grant("g", ["v1"], RUN, 60)
    mine.grant("g", ["v1"], os.geteuid() if uid is None else uid, 60)
    assert mine.reseal("g", "v1", header, pair.public)
    if uid is not None:
        with refused("key_not_yours"):
            shared_keyd.client(0).status()
    with refused("key_stays_inside"):
        mine.reseal_outside("v1", header, pair.public)
    mine.confirm("v1")
    assert mine.reseal_outside("v1", header, pair.public)


def test_grants_end_with_the_process(keyd: Running) -> None:
    worker = keyd.client(WORKER)
    worker.create("v1", "result")
    worker.grant("g", ["v1"], RUN, 60)
    assert keyd.stop() == 0
    keyd.start()
    with refused("no_grant"):
        worker.renew("g", 60)
