"""Log-in, sessions, second factors and keys, by a clock that the test sets."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pyotp
import pytest

from tests.world import PASSWORD
from valv.app import account
from valv.app.node import NOBODY, new_id
from valv.errors import Fault, InputFault, RefusedFault
from valv.formats.crypt4gh import generate_keypair, open_header


def refused(expected: str, call: Any, /, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(RefusedFault) as fault:
        call(*args, **kwargs)
    assert fault.value.refusal.code == expected, fault.value


@pytest.fixture
def person(s: Any) -> str:
    """A new account with password and second factor."""
    name = f"p-{new_id()[:10]}"
    s.world.ids[name], s.world.secrets[name] = account.create(
        s.node,
        name=name,
        display="A Person",
        email="p@example.org",
        roles=("researcher",),
        country="SE",
        password=PASSWORD,
        totp=True,
    )
    return name


# --- log-in ---


def test_five_failures_then_a_minute(s: Any, person: str) -> None:
    for _ in range(5):
        refused("login_failed", account.log_in, s.node, name=person, password="wrong")
    refused("login_limited", account.log_in, s.node, name=person, password=PASSWORD)
    s.clock.forward(seconds=59)
    refused("login_limited", account.log_in, s.node, name=person, password=PASSWORD)
    s.clock.forward(seconds=2)
    assert account.log_in(s.node, name=person, password=PASSWORD).token


def test_a_name_that_does_not_exist_is_answered_alike(s: Any) -> None:
    name = f"nobody-{new_id()[:8]}"
    for _ in range(5):
        refused("login_failed", account.log_in, s.node, name=name, password=PASSWORD)
    refused("login_limited", account.log_in, s.node, name=name, password=PASSWORD)
    refused("login_failed", account.log_in, s.node, name="", password="")


def test_codes_are_limited_too(s: Any, person: str) -> None:
    for _ in range(5):
        refused("code_wrong", account.log_in, s.node, name=person, password=PASSWORD, code="000000")
    refused("login_limited", account.log_in, s.node, name=person, password=PASSWORD, code=s.code(person))


def test_good_passwords_make_no_room_for_guessing_codes(s: Any, person: str) -> None:
    who = account.log_in(s.node, name=person, password=PASSWORD).who
    for _ in range(5):
        refused("code_wrong", account.step_up, s.node, who, "000000")
        account.log_in(s.node, name=person, password=PASSWORD)
    refused("login_limited", account.step_up, s.node, who, s.code(person))


@pytest.mark.parametrize("code", ["", "12345", "1234567", "٠٠٠٠٠٠", "abcdef", "-00001", " " * 6])
def test_codes_that_are_none(s: Any, person: str, code: str) -> None:
    who = account.log_in(s.node, name=person, password=PASSWORD).who
    refused("code_wrong", account.step_up, s.node, who, code)


def test_a_code_counts_once(s: Any, person: str) -> None:
    code = s.code(person)
    assert account.log_in(s.node, name=person, password=PASSWORD, code=code).who.principal.second_factor
    refused("code_wrong", account.log_in, s.node, name=person, password=PASSWORD, code=code)
    who = account.log_in(s.node, name=person, password=PASSWORD).who
    refused("code_wrong", account.step_up, s.node, who, code)
    earlier = pyotp.TOTP(s.world.secrets[person]).at(s.clock.now.timestamp() - 30)
    refused("code_wrong", account.step_up, s.node, who, earlier)
    assert account.step_up(s.node, who, s.code(person)).principal.second_factor


def test_a_code_counts_once_for_two_at_the_same_moment(s: Any, person: str) -> None:
    code, gate = s.code(person), threading.Barrier(6)
    got: list[str] = []

    def log_in() -> None:
        gate.wait()
        try:
            found = account.log_in(s.node, name=person, password=PASSWORD, code=code)
            got.append("in" if found.who.principal.second_factor else "without")
        except RefusedFault as fault:
            got.append(fault.refusal.code)

    threads = [threading.Thread(target=log_in) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count("in") == 1, got
    assert set(got) <= {"in", "code_wrong", "login_limited"}


def test_a_failed_log_in_opens_no_session_and_leaves_no_event(s: Any, person: str) -> None:
    before, sessions = s.size(), len(s.rows("session"))
    refused("login_failed", account.log_in, s.node, name=person, password="wrong")
    refused("code_wrong", account.log_in, s.node, name=person, password=PASSWORD, code="000000")
    assert s.size() == before
    assert len(s.rows("session")) == sessions


def test_only_digests_are_kept(s: Any, person: str) -> None:
    token = s.log_in(person).token
    for table in ("session", "login_attempt", "account"):
        kept = repr(s.rows(table))
        assert token not in kept
        assert PASSWORD not in kept


# --- sessions ---


def test_a_session_ends_when_idle(s: Any, person: str) -> None:
    node = s.limited(idle=600, absolute=7200)
    token = account.log_in(node, name=person, password=PASSWORD).token
    for _ in range(5):
        s.clock.forward(seconds=590)
        assert account.who_is(node, token).name == person
    s.clock.forward(seconds=601)
    assert account.who_is(node, token) == NOBODY
    s.clock.forward(seconds=-601)
    assert account.who_is(node, token) == NOBODY, "an ended session came back"
    s.clock.forward(seconds=601)


def test_a_session_ends_however_busy(s: Any, person: str) -> None:
    node = s.limited(idle=600, absolute=1800)
    token = account.log_in(node, name=person, password=PASSWORD).token
    for _ in range(3):
        s.clock.forward(seconds=590)
        assert account.who_is(node, token).name == person
    s.clock.forward(seconds=30)
    assert account.who_is(node, token) == NOBODY


def test_a_second_factor_counts_for_a_while(s: Any, person: str) -> None:
    node = s.limited(step_up=300)
    code = s.code(person)
    token = account.log_in(node, name=person, password=PASSWORD, code=code).token
    assert account.who_is(node, token).principal.second_factor
    s.clock.forward(seconds=300)
    assert account.who_is(node, token).principal.second_factor
    s.clock.forward(seconds=1)
    who = account.who_is(node, token)
    assert who.name == person
    assert not who.principal.second_factor
    account.step_up(node, who, s.code(person))
    assert account.who_is(node, token).principal.second_factor


def test_logging_out_ends_one_session(s: Any, person: str) -> None:
    first, second = (account.log_in(s.node, name=person, password=PASSWORD) for _ in range(2))
    account.log_out(s.node, first.who)
    assert account.who_is(s.node, first.token) == NOBODY
    assert account.who_is(s.node, second.token).name == person


@pytest.mark.parametrize("token", ["", "x", "a" * 10_000])
def test_a_token_that_is_none(s: Any, token: str) -> None:
    assert account.who_is(s.node, token) == NOBODY


# --- keys ---

# Points of small order on Curve25519 and its twist, and their unreduced forms: whoever seals to one seals to everybody.
WEAK = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ((1 << 255) - 20).to_bytes(32, "little"),
    ((1 << 255) - 19).to_bytes(32, "little"),
    ((1 << 255) - 18).to_bytes(32, "little"),
]


@pytest.mark.parametrize("public", [*WEAK, b"", b"short", bytes(31), bytes(33), b"x" * 64])
def test_weak_and_wrong_keys(s: Any, public: bytes) -> None:
    with pytest.raises(InputFault) as fault:
        account.challenge_key(s.node, s.who("rikard"), public=public, label="laptop")
    assert "key" in str(fault.value)
    assert "Traceback" not in str(fault.value)
    assert s.rows("key_challenge", public=public) == []


def challenge(s: Any, who: Any) -> tuple[account.Challenge, str]:
    pair = generate_keypair()
    asked = account.challenge_key(s.node, who, public=pair.public, label="laptop")
    return asked, account.answer(open_header(asked.header, [pair.private]).data_keys[0])


def test_a_key_is_added_once_and_its_owner_told(s: Any, person: str) -> None:
    who = s.who(person)
    asked, answer = challenge(s, who)
    before = s.size()
    added = {account.add_key(s.node, who, challenge_id=asked.challenge_id, answer=answer) for _ in range(3)}
    assert len(added) == 1
    assert s.size() == before + 1
    assert [key["id"] for key in account.keys(s.node, who)] == [asked.challenge_id]
    assert len(s.rows("outbox", key=f"key-added:{asked.challenge_id}")) == 1
    account.end_key(s.node, who, asked.challenge_id)
    assert account.keys(s.node, who) == []
    refused("no_key", account.end_key, s.node, who, asked.challenge_id)
    refused("not_proven", account.add_key, s.node, who, challenge_id=asked.challenge_id, answer=answer)


def test_a_wrong_answer(s: Any, person: str) -> None:
    who = s.who(person)
    asked, answer = challenge(s, who)
    for wrong in ("", "x", answer[:-1], answer.upper(), "0" * 64, "ä" * 64):
        refused("not_proven", account.add_key, s.node, who, challenge_id=asked.challenge_id, answer=wrong)
    assert account.keys(s.node, who) == []
    account.add_key(s.node, who, challenge_id=asked.challenge_id, answer=answer)


def test_a_challenge_that_is_too_old(s: Any, person: str) -> None:
    who = s.who(person)
    asked, answer = challenge(s, who)
    s.clock.forward(minutes=10, seconds=1)
    refused("not_proven", account.add_key, s.node, who, challenge_id=asked.challenge_id, answer=answer)
    refused("not_proven", account.add_key, s.node, who, challenge_id="nothing", answer=answer)


def test_somebody_else_s_challenge(s: Any, person: str) -> None:
    asked, answer = challenge(s, s.who(person))
    refused("not_proven", account.add_key, s.node, s.who("ronja"), challenge_id=asked.challenge_id, answer=answer)
    assert account.add_key(s.node, s.who(person), challenge_id=asked.challenge_id, answer=answer)


def test_a_key_needs_a_fresh_second_factor(s: Any, person: str) -> None:
    who = account.log_in(s.node, name=person, password=PASSWORD).who
    with pytest.raises(RefusedFault):
        asked, answer = challenge(s, who)
        account.add_key(s.node, who, challenge_id=asked.challenge_id, answer=answer)
    assert account.keys(s.node, s.who(person)) == []


def test_somebody_else_ends_no_key(s: Any, person: str) -> None:
    who = s.who(person)
    asked, answer = challenge(s, who)
    account.add_key(s.node, who, challenge_id=asked.challenge_id, answer=answer)
    refused("no_key", account.end_key, s.node, s.who("ronja"), asked.challenge_id)
    assert account.keys(s.node, who)


@pytest.mark.parametrize("name", ["", "Anna", "a b", "../x", "a\0", "å" + "\u0301", "'; drop"])
def test_names_that_are_refused(s: Any, name: str) -> None:
    with pytest.raises(Fault):
        account.create(s.node, name=name, display="x", email="x@example.org", roles=())


def test_what_is_of_no_use_is_cleared(s: Any, person: str) -> None:
    """Old attempts and ended sessions go; fresh ones stay."""
    refused("login_failed", account.log_in, s.node, name=person, password="wrong")
    old = account.log_in(s.node, name=person, password=PASSWORD)
    s.clock.forward(seconds=s.node.config.login.absolute + 86_400 + 1)
    fresh = account.log_in(s.node, name=person, password=PASSWORD)
    account.clear_old(s.node)
    sessions = {row["hash"] for row in s.rows("session")}
    assert fresh.who.session in sessions
    assert old.who.session not in sessions
    assert all(row["at"] > s.node.clock() - timedelta(days=1) for row in s.rows("login_attempt"))
