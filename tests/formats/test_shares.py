"""Shares of a secret: fewer than the threshold tell nothing, and each opens for one person only."""

from __future__ import annotations

import io
import secrets
from itertools import combinations

import crypt4gh.lib as crypt4gh_package
import pytest
import shamir_mnemonic
from hypothesis import given, settings
from hypothesis import strategies as st
from shamir_mnemonic import shamir

from valv.errors import FormatFault, InputFault, KeyFault
from valv.formats import crypt4gh, shares

SECRET = bytes(range(32))
SIZES = st.integers(2, 6).flatmap(lambda count: st.tuples(st.integers(2, count), st.just(count)))


@settings(max_examples=12, deadline=None)
@given(sizes=SIZES, secret=st.binary(min_size=32, max_size=32), data=st.data())
def test_as_many_as_the_threshold_give_it_back(sizes: tuple[int, int], secret: bytes, data: st.DataObject) -> None:
    threshold, count = sizes
    words = shares.split(secret, threshold, count)
    assert len(set(words)) == count
    chosen = data.draw(st.permutations(words))
    for number in range(threshold, count + 1):
        assert shares.combine(chosen[:number]) == secret
    for number in range(threshold):
        with pytest.raises(KeyFault):
            shares.combine(chosen[:number])


def test_too_few_shares_tell_nothing() -> None:
    """With one share less than the threshold, every value of the last one gives another secret: all are as likely.

    The digest share of SLIP-39 stands for the last one here; with it anybody's guess would be as good."""
    words = shares.split(SECRET, 3, 5)
    known = [shamir_mnemonic.Share.from_mnemonic(one) for one in words[:2]]
    others = set()
    for _ in range(50):
        made = shamir.RawShare(14, secrets.token_bytes(32))
        points = [shamir.RawShare(one.index, one.value) for one in known]
        others.add(shamir._interpolate([*points, made], shamir.SECRET_INDEX))
    assert len(others) == 50
    for one in words:
        assert SECRET.hex() not in one and shamir_mnemonic.Share.from_mnemonic(one).value != SECRET


@pytest.mark.parametrize("threshold", [2, 3])
def test_a_wrong_share_is_found_wherever_it_stands(threshold: int) -> None:
    words, others = shares.split(SECRET, threshold, 4), shares.split(SECRET, threshold, 4)
    for place in range(threshold + 1):
        mixed = words[: threshold + 1]
        mixed[place] = others[place]
        with pytest.raises(KeyFault):
            shares.combine(mixed)
    forged = shamir_mnemonic.Share.from_mnemonic(words[0])
    forged = shamir_mnemonic.Share(*[*forged.__dict__.values()][:-1], value=bytes(32))
    for place in range(threshold):
        mixed = words[1 : threshold + 1]
        mixed.insert(place, forged.mnemonic())
        with pytest.raises(KeyFault, match="do not fit together"):
            shares.combine(mixed)


def test_one_share_in_two_spellings_is_one() -> None:
    words = shares.split(SECRET, 2, 3)
    for other in (words[0], words[0].upper(), f"  {words[0]} ", words[0].replace(" ", "\t")):
        with pytest.raises(KeyFault):
            shares.combine([words[0], other])
    assert shares.combine([words[0].upper(), words[2]]) == SECRET


@pytest.mark.parametrize("words", ["", "academic", "é" * 20, "academic " * 33, "\0", "academic acid " * 2000])
def test_what_is_no_share(words: str) -> None:
    for use in (lambda: shares.check(words), lambda: shares.combine([words])):
        with pytest.raises(KeyFault, match="not a share"):
            use()


def test_a_word_typed_wrong() -> None:
    words = shares.split(SECRET, 2, 2)
    shares.check(words[0])
    typed = words[0].split()
    for place in range(len(typed)):
        bent = [*typed[:place], "zero" if typed[place] != "zero" else "acid", *typed[place + 1 :]]
        with pytest.raises(KeyFault, match="not a share"):
            shares.check(" ".join(bent))
        with pytest.raises(KeyFault):
            shares.check(" ".join([*typed[:place], *typed[place + 1 :]]))
    with pytest.raises(KeyFault):
        shares.combine([])


def test_shares_of_other_kinds_are_refused_at_once() -> None:
    """One that claims the highest exponent would be stretched for minutes; a short secret is no key."""
    [costly] = shamir_mnemonic.generate_mnemonics(1, [(1, 1)], SECRET, iteration_exponent=0)
    share = shamir_mnemonic.Share.from_mnemonic(costly[0])
    fields = {**share.__dict__, "iteration_exponent": 15}
    [short] = shamir_mnemonic.generate_mnemonics(1, [(2, 3)], bytes(16), iteration_exponent=0)
    groups = shamir_mnemonic.generate_mnemonics(2, [(2, 2), (2, 2)], SECRET, iteration_exponent=0)
    for words in ([shamir_mnemonic.Share(**fields).mnemonic()], short[:2], [*groups[0], *groups[1]]):
        with pytest.raises(KeyFault, match="something else"):
            shares.combine(words)


def test_only_secrets_of_32_bytes_are_split() -> None:
    for secret in (b"", bytes(16), bytes(33)):
        with pytest.raises(ValueError):
            shares.split(secret, 2, 3)


# --- sealed ---


def test_a_sealed_share_opens_for_its_holder_only() -> None:
    pairs = [crypt4gh.generate_keypair() for _ in range(3)]
    sealed = [shares.seal(words, pair.public) for words, pair in zip(shares.split(SECRET, 2, 3), pairs, strict=True)]
    for (number, one), (place, pair) in [(a, b) for a in enumerate(sealed) for b in enumerate(pairs)]:
        if number == place:
            continue
        with pytest.raises(KeyFault):
            shares.unseal(one, pair.private)
    opened = [shares.unseal(one, pair.private) for one, pair in zip(sealed, pairs, strict=True)]
    for two in combinations(opened, 2):
        assert shares.combine(two) == SECRET
    assert not any(word.encode() in one for one in sealed for word in opened[0].split()[:4])
    assert shares.seal(opened[0], pairs[0].public) != sealed[0]


def test_an_altered_sealed_share() -> None:
    pair = crypt4gh.generate_keypair()
    sealed = shares.seal(shares.split(SECRET, 2, 2)[0], pair.public)
    for place in range(0, len(sealed), 3):
        bent = bytearray(sealed)
        bent[place] ^= 1
        with pytest.raises((KeyFault, FormatFault)):
            shares.unseal(bytes(bent), pair.private)
    for length in range(len(sealed)):
        with pytest.raises((KeyFault, FormatFault)):
            shares.unseal(sealed[:length], pair.private)
    with pytest.raises(FormatFault):
        shares.unseal(sealed + b"\0", pair.private)


@pytest.mark.parametrize("public", [bytes(32), b"\1" + bytes(31)])
def test_a_public_key_that_gives_no_secret(public: bytes) -> None:
    with pytest.raises(InputFault):
        shares.seal("words", public)


def test_the_field_s_own_tool_opens_a_sealed_share() -> None:
    pair = crypt4gh.generate_keypair()
    words = shares.split(SECRET, 2, 2)[0]
    plain = io.BytesIO()
    crypt4gh_package.decrypt([(0, pair.private, None)], io.BytesIO(shares.seal(words, pair.public)), plain)
    assert plain.getvalue().decode() == words
