"""Attacks on the custody of the keys: by one officer, by a compromised worker or server, by the operator alone."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import shamir_mnemonic
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.keys.officers import DATA_KEY, Holder, People, ordered
from valv.errors import (
    ConflictFault,
    Fault,
    FormatFault,
    InputFault,
    IntegrityFault,
    KeyFault,
    RefusedFault,
    SealedFault,
    UnreachableFault,
)
from valv.formats import crypt4gh, merkle, minutes, note, officer, order, shares
from valv.formats.officer import Officer
from valv.keys import folder, messages
from valv.keys.roles import Role


def _load() -> ModuleType:
    name = "valv_tests_keys_running"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "keys" / "running.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


running = _load()
SERVE, WORKER, RUN, STRANGER, PASSPHRASE = (
    running.SERVE,
    running.WORKER,
    running.RUN,
    running.STRANGER,
    running.PASSPHRASE,
)


@pytest.fixture
def people() -> People:
    return People("anna", "bo", "eva", "mallory", "trudy")


@pytest.fixture
def keyd() -> Iterator[Any]:
    if os.geteuid() != 0:
        pytest.skip("processes of several users can only be started by root")
    with running.running(running.KEYD, places=1) as holder:
        yield holder


@pytest.fixture
def holder(tmp_path: Path, people: People) -> Iterator[Holder]:
    """After a first ceremony, with one dataset."""
    made = Holder(tmp_path)
    made.order(people.ceremony("anna", "bo", "eva"))
    made.header("ds-1")
    yield made
    made.close()


def refused(code: str) -> Any:
    return pytest.raises(RefusedFault, check=lambda fault: fault.refusal.code == code)


def destroying(people: People, *by: str, key: str = "ds-1") -> str:
    return people.signed(ordered("destroy", key_ids=(key,)), *by)


# --- over the socket, by each user -----------------------------------------------------------------------------------


def test_who_may_do_what(keyd: Any, people: People) -> None:
    operator, worker = keyd.client(0), keyd.client(WORKER)
    worker.create("ds-1", "identifiable")
    ceremony = people.ceremony("anna", "bo", "eva", persons=2)
    with refused("key_not_yours"):
        worker.order(people.ceremony("mallory", "trudy"), [])
    operator.order(ceremony, [])
    share = people.opened(operator.shares("anna").unsealing, "anna")
    good = destroying(people, "anna", "bo")
    asks: dict[str, Callable[[Any], Any]] = {
        "order": lambda client: client.order(good, []),
        "shares": lambda client: client.shares("anna"),
        "unseal_share": lambda client: client.unseal_share(share),
        "unseal": lambda client: client.unseal(PASSPHRASE),
        "back_up": lambda client: client.back_up(),
        "custody": lambda client: client.custody(),
        "held": lambda client: client.held(0),
        "rotate": lambda client: client.rotate("ds-1", 2),
        "retire": lambda client: client.retire("ds-1", 1),
        "reseal_within": lambda client: client.reseal_within("ds-1", []),
        "reseal_across": lambda client: client.reseal_across("ds-1", [], "ds-1"),
    }
    may_not = {
        SERVE: asks.keys() - {"custody", "held"},
        RUN: asks.keys(),
        STRANGER: asks.keys(),
        WORKER: {"shares", "unseal_share", "unseal"},
    }
    for uid, verbs in may_not.items():
        client = keyd.client(uid)
        for verb in verbs:
            with refused("key_not_yours"):
                asks[verb](client)
        client.close()
    with refused("two_officers"):
        worker.destroy("ds-1")
    mine = people.ceremony("mallory", "trudy", persons=2)
    for signed in (mine, destroying(people, "anna"), destroying(people, "mallory", "trudy")):
        with refused("two_officers"):
            worker.order(signed, [])
    assert worker.status().generation == 2
    keyd.stop()
    keyd.start()
    for uid in (SERVE, WORKER, RUN):
        with refused("key_not_yours"):
            keyd.client(uid).unseal_share(share)
        assert not keyd.client(uid).status().open
    with pytest.raises(SealedFault):
        worker.order(good, [])


def test_a_share_is_forgotten_with_the_process(keyd: Any, people: People) -> None:
    """Killed between the first and the second share: both are asked for again."""
    operator = keyd.client(0)
    operator.order(people.ceremony("anna", "bo", "eva", persons=2), [])
    for how in (running.signal.SIGKILL, running.signal.SIGTERM):
        keyd.stop(how)
        keyd.start()
        operator = keyd.client(0)
        anna, bo = (people.opened(operator.shares(name).unsealing, name) for name in ("anna", "bo"))
        assert operator.unseal_share(anna).present == 1
        keyd.stop(how)
        keyd.start()
        operator = keyd.client(0)
        assert operator.status().present == 0
        status = operator.unseal_share(bo)
        assert (status.open, status.present) == (False, 1)
        assert operator.unseal_share(anna).open
    log = keyd.log.read_text()
    assert anna not in log and not [word for word in anna.split() if f" {word} " in log and len(word) > 6]


def test_a_passphrase_file_opens_nothing_where_two_persons_unseal(keyd: Any, people: People) -> None:
    """Also where somebody removes `unseal.json`, which says so: the passphrase is another one by then."""
    keyd.client(0).order(people.ceremony("anna", "bo", "eva", persons=2), [])
    keyd.stop()
    keyd.start()
    assert not keyd.client(0).status().open
    with refused("two_officers"):
        keyd.client(0).unseal(PASSPHRASE)
    next(keyd.keys.rglob("unseal.json")).unlink()
    with pytest.raises(KeyFault):
        keyd.client(0).unseal(PASSPHRASE)
    keyd.stop()
    with contextlib.suppress(AssertionError):
        keyd.start()
    assert keyd.process.wait(60) == KeyFault().row.exit
    assert "the passphrase is wrong" in keyd.log.read_text()


def test_what_status_tells(keyd: Any, people: People) -> None:
    """To everybody of the node the same, and nothing of who the officers are."""
    keyd.client(0).order(people.ceremony("anna", "bo", "eva", persons=2), [])
    keyd.stop()
    keyd.start()
    operator = keyd.client(0)
    operator.unseal_share(people.opened(operator.shares("anna").unsealing, "anna"))
    told = [keyd.client(uid).status() for uid in (0, SERVE, WORKER, RUN)]
    assert all(one == told[0] for one in told) and (told[0].persons, told[0].present) == (2, 1)
    run = keyd.client(RUN)
    run.status()
    assert b"anna" not in b"".join(run.seen)
    with refused("key_not_yours"):
        keyd.client(STRANGER).status()


# --- orders ----------------------------------------------------------------------------------------------------------


def test_a_compromised_worker_replays_what_it_has_seen(holder: Holder, people: People) -> None:
    """Every order that ever passed through it, in any order: what was done is not done again."""
    first = people.ceremony("anna", "bo", "mallory")
    holder.order(first)
    second = people.ceremony("anna", "bo", "eva")
    holder.order(second)
    drill = people.signed(ordered("drill"), "anna", "bo")
    holder.order(drill, *holder.shares(people, "anna", "eva"))
    state, number = holder.ask(messages.Custody()).state, holder.generation
    for _ in range(2):
        for signed in (first, second, drill, first):
            holder.ask(messages.Order(signed, []), Role.WORKER)
    assert holder.ask(messages.Custody()).state == state and holder.generation == number
    holder.restart()
    holder.ask(messages.Order(first, []), Role.WORKER)
    assert holder.ask(messages.Custody()).state == state and holder.generation == number


def test_signatures_put_together_from_several_orders(holder: Holder, people: People) -> None:
    one, other = ordered("destroy", key_ids=("ds-1",)), ordered("destroy", key_ids=("ds-1",), reason="another")
    anna, bo = people.signed(one, "anna"), people.signed(other, "bo")
    for mixed in (anna + bo.split("\n\n")[1], bo + anna.split("\n\n")[1]):
        with refused("two_officers"):
            holder.order(mixed)
    twice = anna + anna.split("\n\n")[1]
    with refused("two_officers"):
        holder.order(twice)
    renamed = anna + anna.split("\n\n")[1].replace("anna", "bo")
    with refused("two_officers"):
        holder.order(renamed)


def test_somebody_with_an_officer_s_name(holder: Holder, people: People) -> None:
    """Another key under the name, and the key of the node's ledger under it."""
    impostor = People("bo")
    with refused("two_officers"):
        holder.order(impostor.signed(destroying(people, "anna"), "bo"))
    ledger = Ed25519PrivateKey.from_private_bytes(holder.keyd._store.log_private())
    with refused("two_officers"):
        holder.order(note.cosign(ledger, "bo", destroying(people, "anna")))


def test_one_person_under_two_names(holder: Holder, people: People) -> None:
    """Mallory is appointed twice: by a second name for the same signing key. It is found before shares are dealt."""
    _, _, public = note.read_verifier_key(people["mallory"].sign_key)
    second = Officer("trudy", people["trudy"].share_key, note.verifier_key("trudy", public))
    wanted = ordered("ceremony", officers=(people["mallory"], second), threshold=2, persons=1)
    signed = people.signed(wanted, "anna", "bo", "mallory")
    signed = officer.sign(people.private["mallory"], "trudy", signed)
    with refused("officer_twice"):
        holder.order(signed)


def test_forged_minutes(holder: Holder, people: People) -> None:
    """No verb signs a text of somebody's choice: minutes cannot be had but by an order that is carried out."""
    told = holder.order(destroying(people, "anna", "bo"))
    vkey = holder.ask(messages.Status()).log_key
    for forged in (
        told.replace("ds-1", "ds-2"),
        told.replace("signed: anna bo", "signed: bo eva"),
        note.sign(officer.signer(people.private["anna"]), "valv.example", note.read(told)[0]),
        note.sign(Ed25519PrivateKey.generate(), "valv.example", note.read(told)[0]),
    ):
        with pytest.raises((IntegrityFault, FormatFault)):
            note.verify(forged, vkey)
    leaf = merkle.leaf_hash(note.read(told)[0].encode())
    checkpoint = holder.ask(messages.Sign(1, leaf, []), Role.WORKER)
    with pytest.raises(FormatFault):
        minutes.read(checkpoint)
    assert note.Checkpoint.decode(note.verify(checkpoint, vkey)).size == 1


@pytest.mark.parametrize(
    "name", ["../../etc/x", "/etc/passwd", "anna\0", "anna\nbo", "a" * 5000, "", ".", "anna/../bo"]
)
def test_officers_with_names_of_paths(holder: Holder, people: People, name: str) -> None:
    with pytest.raises((InputFault, RefusedFault)):
        framed = messages.frame(messages.Shares(name))
        try:
            holder.ask(messages.decode_request(framed[4:]))
        except msgspec.ValidationError:
            raise InputFault("refused by its form") from None
    bad = Officer(name, people["eva"].share_key, people["eva"].sign_key.replace("eva+", f"{name}+"))
    text = ordered("ceremony", officers=people.named("anna", "bo", "eva"), threshold=2, persons=1).encode()
    with pytest.raises(Fault):
        holder.order(people.signed(text.replace(people["eva"].written, bad.written), "anna", "bo"))
    assert holder.generation == 2


def test_a_share_key_that_takes_no_share(holder: Holder, people: People) -> None:
    """A public key of low order: nobody's share is dealt, and the node goes on."""
    weak = msgspec.structs.replace(people["eva"], share_key="00" * 32)
    wanted = ordered("ceremony", officers=(people["anna"], people["bo"], weak), threshold=2, persons=2)
    with pytest.raises(InputFault):
        holder.order(people.signed(wanted, "anna", "bo"))
    assert holder.generation == 2 and [one.name for one in holder.path.iterdir() if one.is_dir()] == [
        "generation-000002"
    ]
    holder.order(destroying(people, "anna", "bo"))


@pytest.mark.parametrize(
    "text",
    [
        "valv order 1\n" + "key: ds-1\n" * 300_000,
        "valv order 1\n" + "a" * 900_000 + "\n",
        "\n" * 190_000,
        "valv order 1\nreason: " + "x" * 190_000 + "\n",
        "valv order 1\n" + "officer: x\n" * 17_000,
    ],
    ids=["lines", "a-line", "empty-lines", "a-reason", "officers"],
)
def test_huge_notes_are_refused_soon(holder: Holder, people: People, text: str) -> None:
    line = people.signed("x\n", "anna").split("\n\n")[1]
    started = time.monotonic()
    for number in (1, 100):
        with pytest.raises((Fault, msgspec.ValidationError)):
            holder.ask(messages.decode_request(messages.frame(messages.Order(f"{text}\n{line * number}"))[4:]))
    assert time.monotonic() - started < 5


def test_a_hundred_signatures_are_looked_at_soon(holder: Holder, people: People) -> None:
    signed = destroying(people, "anna", *["mallory"] * 97)
    started = time.monotonic()
    with refused("two_officers"):
        holder.order(signed)
    with pytest.raises(FormatFault):
        holder.order(signed + signed.split("\n\n")[1])
    assert time.monotonic() - started < 5
    holder.order(people.signed(signed, "bo"))


# --- shares ----------------------------------------------------------------------------------------------------------


def test_a_flood_of_wrong_shares(holder: Holder, people: People) -> None:
    """Memory does not grow, and afterwards the right ones open."""
    holder.order(people.ceremony("anna", "bo", "eva", persons=2))
    holder.restart(None)
    for number in range(60):
        wrong = shares.split(secrets.token_bytes(32), 2, 2)[0]
        with contextlib.suppress(KeyFault):
            holder.ask(messages.UnsealShare(wrong))
        assert len(holder.keyd._given) == holder.ask(messages.Status()).present == (number + 1) % 2
    for words in ("", "academic", "\0" * 4000, "zero " * 33):
        with pytest.raises(KeyFault):
            holder.ask(messages.UnsealShare(words))
    assert not holder.keyd._given
    holder.unseal(people, "anna", "bo")
    assert holder.ask(messages.Status()).open


def test_one_officer_s_share_in_many_spellings(holder: Holder, people: People) -> None:
    holder.order(people.ceremony("anna", "bo", "eva", persons=2))
    words = people.opened(holder.ask(messages.Shares("anna")).unsealing, "anna")
    recovery = holder.shares(people, "anna")[0]
    holder.restart(None)
    for other in (words.upper(), f" {words}", words.replace(" ", "  "), recovery):
        holder.ask(messages.UnsealShare(words))
        with pytest.raises(KeyFault):
            holder.ask(messages.UnsealShare(other))
        assert not holder.ask(messages.Status()).open


def test_a_share_of_the_threshold_one(holder: Holder, people: People) -> None:
    """One who makes a share that says of itself that it is enough."""
    holder.order(people.ceremony("anna", "bo", "eva", persons=2))
    holder.restart(None)
    alone = shamir_mnemonic.generate_mnemonics(1, [(1, 1)], secrets.token_bytes(32), iteration_exponent=0)[0][0]
    assert shares.combine([alone])
    holder.ask(messages.UnsealShare(alone))
    assert not holder.ask(messages.Status()).open
    with pytest.raises(KeyFault):
        holder.unseal(people, "anna")
    assert not holder.ask(messages.Status()).open


def test_shares_that_would_be_stretched_for_minutes(holder: Holder, people: People) -> None:
    """The worker needs no officer for this: shares of a drill are looked at before its signatures count."""
    two = shamir_mnemonic.generate_mnemonics(1, [(2, 2)], bytes(32), iteration_exponent=0)[0]
    costly = [
        shamir_mnemonic.Share(
            **{**shamir_mnemonic.Share.from_mnemonic(one).__dict__, "iteration_exponent": 15}
        ).mnemonic()
        for one in two
    ]
    started = time.monotonic()
    with pytest.raises(KeyFault):
        holder.ask(messages.Order(people.signed(ordered("drill"), "mallory"), costly), Role.WORKER)
    assert time.monotonic() - started < 2


def test_a_share_while_it_is_open_is_not_kept(holder: Holder, people: People) -> None:
    with pytest.raises(InputFault):
        holder.ask(messages.UnsealShare("words"))
    holder.order(people.ceremony("anna", "bo", "eva", persons=2))
    words = people.opened(holder.ask(messages.Shares("anna")).unsealing, "anna")
    for given in (words, "nonsense", words):
        assert holder.ask(messages.UnsealShare(given)).open
    assert not holder.keyd._given
    with refused("two_officers"):
        holder.ask(messages.Unseal(PASSPHRASE))


def test_sealed_shares_tell_the_operator_nothing(holder: Holder, people: People) -> None:
    """What the operator can have: every sealed share, the folder, the key backup, and one officer's key."""
    holder.order(people.ceremony("anna", "bo", "eva", persons=2))
    sealed = [holder.ask(messages.Shares(name)) for name in ("anna", "bo", "eva")]
    opened = [shares.unseal(sealed[0].unsealing, people.private["anna"])]
    for one in sealed[1:]:
        for part in (one.recovery, one.unsealing):
            with pytest.raises(KeyFault):
                shares.unseal(part, people.private["anna"])
    with pytest.raises(KeyFault):
        shares.combine(opened)
    holder.restart(None)
    shutil.copytree(holder.path, holder.path.with_name("mine"))
    for passphrase in (PASSPHRASE, opened[0].encode(), b""):
        with pytest.raises(KeyFault):
            folder.Folder(holder.path.with_name("mine"), holder.keyring, passphrase)
    with refused("officer_unknown"):
        holder.ask(messages.Shares("mallory"))


def test_an_officer_s_key_from_another_share(holder: Holder, people: People) -> None:
    """Somebody with write access puts shares of their own beside the keys: they give nothing."""
    holder.order(people.ceremony("anna", "bo", "eva", persons=2))
    holder.close()
    path = holder.living / "unseal.json"
    real = msgspec.json.decode(path.read_bytes())
    mine = shares.split(bytes(32), 2, 2)
    forged = {
        name: shares.seal(one, bytes.fromhex(people[name].share_key))
        for name, one in zip(("mallory", "trudy"), mine, strict=True)
    }
    path.write_bytes(msgspec.json.encode({**real, "shares": forged, "persons": 1}))
    holder.restart(None)
    for name in ("mallory", "trudy"):
        with pytest.raises(KeyFault):
            holder.unseal(people, name)
    assert not holder.ask(messages.Status()).open


# --- several at once -------------------------------------------------------------------------------------------------


def test_nothing_is_lost_while_root_keys_roll(holder: Holder, people: People) -> None:
    """Everybody works while results are destroyed, ceremonies held and data destroyed: no update is lost, nobody sees
    the node locked, and nothing fails that does not fail alone."""
    tree = running.Tree(4096)
    mine = crypt4gh.generate_keypair()
    header = holder.header("shared", "anonymised")
    holder.ask(messages.Confirm("shared"))
    holder.ask(messages.Grant("g", ["shared"], os.geteuid(), 600.0))
    ended = threading.Event()
    made: dict[str, bytes] = {}
    pairs: dict[str, int] = {}
    signed = [0]
    wrong: list[str] = []

    def creating(name: str) -> None:
        key = f"{name}-{len(made)}"
        made[key] = holder.header(key)
        holder.ask(messages.Rotate(key, 2))
        [made[key]] = holder.ask(messages.ResealWithin(key, [made[key]]))
        pairs[key] = 2
        if len(made) % 3 == 0:
            holder.ask(messages.Retire(key, 2))

    def resealing(_: str) -> None:
        for again in (
            holder.ask(messages.Reseal("g", "shared", header, mine.public)),
            holder.ask(messages.ResealOutside("shared", header, mine.public)),
            holder.ask(messages.Adopt(crypt4gh.build_header(DATA_KEY, [node_key]), "shared")),
        ):
            assert again
        assert crypt4gh.open_header(
            holder.ask(messages.Reseal("g", "shared", header, mine.public)), [mine.private]
        ).data_keys == (DATA_KEY,)

    def signing(_: str) -> None:
        old = signed[0]
        signed[0] = min(old + 1, 4096)
        text = holder.ask(messages.Sign(signed[0], tree.root(signed[0]), tree.proof(old, signed[0])))
        note.verify(text, log_key)

    def looking(_: str) -> None:
        status = holder.ask(messages.Status())
        assert status.open and status.node_key == node_key and status.persons in (0, 2)
        assert holder.ask(messages.Custody()).state is not None and holder.ask(messages.HeldAfter(0))
        assert holder.ask(messages.Shares("anna")).recovery
        assert not [one.fault for one in holder.ask(messages.BackUp()) if one.fault]

    def hammer(act: Callable[[str], None], name: str) -> None:
        while not ended.is_set():
            try:
                act(name)
            except Exception as error:
                wrong.append(f"{act.__name__}: {error!r}")
                return
            time.sleep(0.02)  # else the disk has no time for anything but the keys that are made

    before = holder.ask(messages.Status())
    node_key, log_key = before.node_key, before.log_key
    threads = [
        threading.Thread(target=hammer, args=(act, f"t{number}"))
        for number, act in enumerate((creating, creating, resealing, signing, looking, looking))
    ]
    for thread in threads:
        thread.start()
    try:
        destroyed = []
        for number in range(8):
            holder.header(f"out-{number}", "result")
            holder.ask(messages.Destroy(f"out-{number}"))
            holder.header(f"gone-{number}")
            holder.order(destroying(people, "anna", "bo", key=f"gone-{number}"))
            destroyed += [f"out-{number}", f"gone-{number}"]
            holder.order(people.ceremony("anna", "bo", "eva", persons=2 if number > 3 else 1))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:3]
    assert holder.generation == 2 + 24 and len(made) > 5 and signed[0] > 5
    assert holder.ask(messages.Status()).signed_size == signed[0]
    assert sorted(holder.keyd._store.destroyed) == sorted(destroyed)
    assert set(made) <= set(holder.keyd._store.key_ids)
    for key, one in made.items():
        assert holder.opens(key, one)
        assert holder.ask(messages.Rotate(key, pairs[key]))
    assert not [one for one in holder.ask(messages.BackUp()) if one.fault or one.generation != 26]
    holder.restart(None)
    holder.unseal(people, "eva", "bo")
    for key, one in made.items():
        assert holder.opens(key, one)


def test_the_same_order_from_several_at_once(holder: Holder, people: People) -> None:
    signed, told = destroying(people, "anna", "bo"), []
    threads = [threading.Thread(target=lambda: told.append(holder.order(signed))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 6 and len(set(told)) == 1
    assert holder.generation == 3 and holder.ask(messages.Custody()).held == 2


def test_shares_from_several_at_once(holder: Holder, people: People) -> None:
    holder.order(people.ceremony("anna", "bo", "eva", persons=2))
    holder.restart(None)
    sealed = {name: people.opened(holder.ask(messages.Shares(name)).unsealing, name) for name in ("anna", "bo", "eva")}
    wrong: list[Exception] = []

    def give(words: str) -> None:
        try:
            holder.ask(messages.UnsealShare(words))
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=give, args=(words,)) for words in [*sealed.values()] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and holder.ask(messages.Status()).open and not holder.keyd._given


def test_stopped_in_the_middle_of_a_roll(keyd: Any, people: People) -> None:
    """SIGTERM while orders are carried out: an orderly end, and all that was acknowledged."""
    operator, worker = keyd.client(0), keyd.client(WORKER)
    for number in range(60):
        worker.create(f"ds-{number}", "identifiable")
    operator.order(people.ceremony("anna", "bo", "eva"), [])
    done: list[str] = []

    def order_all() -> None:
        with contextlib.suppress(UnreachableFault, SealedFault):
            for number in range(60):
                operator.order(destroying(people, "anna", "bo", key=f"ds-{number}"), [])
                done.append(f"ds-{number}")

    thread = threading.Thread(target=order_all)
    thread.start()
    while len(done) < 2:
        time.sleep(0.01)
    assert keyd.stop() == 0
    thread.join()
    assert "Traceback" not in keyd.log.read_text() and "failed verb" not in keyd.log.read_text()
    keyd.start()
    state = keyd.client(0).custody().state
    assert set(done) <= set(state.destroyed) and len(state.destroyed) <= len(done) + 1
    for number in range(len(state.destroyed), 60):
        assert keyd.client(WORKER).create(f"ds-{number}", "identifiable")


def test_an_id_of_an_order_that_is_used_again(holder: Holder, people: People) -> None:
    """Else a worker that swaps the order could answer with the minutes of another."""
    holder.header("ds-2")
    wanted = ordered("destroy", key_ids=("ds-1",))
    holder.order(people.signed(wanted, "anna", "bo"))
    other = msgspec.structs.replace(wanted, key_ids=("ds-2",))
    with pytest.raises(ConflictFault):
        holder.order(people.signed(other, "anna", "bo"))
    with pytest.raises(ConflictFault):
        holder.order(people.signed(other, "mallory"))
    assert order.decode(note.read(minutes.read(holder.ask(messages.HeldAfter(1))[0].minutes).order)[0]) == wanted
