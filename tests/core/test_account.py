"""Accounts: every refusal, once."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from valv.core import account
from valv.core.process import NODE

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ACCOUNT = account.Account(account_id="a", roles=("researcher",), keys=(account.Key("k1", "f1"),))
WITH_FACTOR = replace(ACCOUNT, second_factor=True)
FRESH = account.Facts(proven=True, second_factor=True)


def add(by="a", fingerprint="f2"):
    return account.AddKey(by=by, at=NOW, key_id="k2", fingerprint=fingerprint)


def enrol(by="a"):
    return account.EnrolFactor(by=by, at=NOW, method="totp")


CASES = [
    ("second_factor", ACCOUNT, add(), replace(FRESH, second_factor=False)),
    ("not_proven", ACCOUNT, add(), replace(FRESH, proven=False)),
    ("key_known", ACCOUNT, add(fingerprint="f1"), FRESH),
    ("no_key", ACCOUNT, account.EndKey(by="a", at=NOW, key_id="k9"), FRESH),
    ("second_factor", WITH_FACTOR, enrol(), account.Facts()),
    ("not_yours", ACCOUNT, add(by="b"), FRESH),
    ("not_yours", ACCOUNT, add(by=NODE), FRESH),
    ("not_yours", None, account.Create(by="b", at=NOW, account_id="b", roles=("operator",)), FRESH),
    ("wrong_phase", None, add(), FRESH),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(account, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(account) <= {case[0] for case in CASES}


def test_a_second_factor_is_replaced_with_the_present_one_or_by_the_node(follow):
    assert follow(account, ACCOUNT, enrol(), account.Facts()).second_factor
    assert follow(account, WITH_FACTOR, enrol(), FRESH).second_factor
    assert follow(account, WITH_FACTOR, enrol(by=NODE), account.Facts()).second_factor


def test_keys_come_and_go(follow):
    more = follow(account, ACCOUNT, add(), FRESH)
    assert [key.key_id for key in more.keys] == ["k1", "k2"]
    assert follow(account, more, account.EndKey(by=NODE, at=NOW, key_id="k1"), account.Facts()).keys == more.keys[1:]
