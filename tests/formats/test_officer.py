"""Officers: one private key each, from which both public keys follow, and one line that tells them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.errors import FormatFault, IntegrityFault
from valv.formats import crypt4gh, note, officer
from valv.formats.officer import Officer

ANNA = b"anna".ljust(32, b".")
LINE = (
    "anna d97c65c91a55f4230bd7ed306d7d4f7e7aedbb2613c9541c3400953d9a809c26"
    " anna+5ad2f769+AXXaRGEEz1XvykxNJWfr4e6v1GKAHAk2j0Oy8546RvZh"
)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
PRIVATE = st.binary(min_size=32, max_size=32)
TEXT = "valv order 1\nnode: valv.example\n"


def test_the_line_of_a_known_key() -> None:
    """Other tools for officers derive the same: HKDF-SHA256 of the private key, `valv officer 1 orders`."""
    made = Officer.of("anna", ANNA)
    assert made.written == LINE
    assert Officer.read(LINE) == Officer.read(LINE + "\n") == made
    assert made.sign_public == note.public_bytes(officer.signer(ANNA))


@given(name=NAMES, private=PRIVATE)
def test_round_trip(name: str, private: bytes) -> None:
    made = Officer.of(name, private)
    assert Officer.read(made.written) == made
    assert bytes.fromhex(made.share_key) == crypt4gh.public_key(private)
    signed = officer.sign(private, name, TEXT)
    assert note.verify(signed, made.sign_key) == TEXT
    assert private.hex() not in made.written


@given(name=NAMES, place=st.integers(0, 500), letter=st.characters())
def test_one_letter_changed(name: str, place: int, letter: str) -> None:
    """It is refused, or it is another share key: only the verifier key has a check of its own."""
    line = Officer.of(name, ANNA).written
    place %= len(line)
    bent = line[:place] + letter + line[place + 1 :]
    if bent == line:
        return
    try:
        read = Officer.read(bent)
    except FormatFault:
        return
    assert read.written == bent.removesuffix("\n") and len(name) < place <= len(name) + 64


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "a+b", "a/b", "../a", ".a", "-a", "å", "a\n", "a\tb", "a\0", "a" * 65, "a\u202eb", "a\x1b[2Jb"],
)
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(FormatFault):
        Officer.of(name, ANNA)
    line = LINE.replace("anna", name)
    with pytest.raises(FormatFault):
        Officer.read(line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "anna",
        LINE.rsplit(" ", 1)[0],
        f"{LINE} more",
        f" {LINE}",
        f"{LINE}\n\n",
        f"{LINE}\n{LINE}",
        LINE.replace(" ", "  "),
        LINE.replace(" ", "\t"),
        LINE.replace("anna ", "bo "),
        LINE.replace("anna+", "bo+"),
    ],
)
def test_lines_that_are_no_officer(line: str) -> None:
    with pytest.raises(FormatFault):
        Officer.read(line)


def test_hex_has_one_spelling() -> None:
    name, share, sign = LINE.split(" ")
    with pytest.raises(FormatFault):
        Officer.read(f"{name} {share.upper()} {sign}")


def test_several_sign_one_text() -> None:
    bo = b"bo".ljust(32, b".")
    signed = officer.sign(bo, "bo", officer.sign(ANNA, "anna", TEXT))
    keys = [Officer.of("anna", ANNA).sign_key, Officer.of("bo", bo).sign_key]
    assert note.verify(signed, *keys) == TEXT
    for other in (Officer.of("bo", ANNA), Officer.of("anna", bo), Officer.of("eva", bo)):
        with pytest.raises(IntegrityFault):
            note.verify(signed, other.sign_key)
    changed = signed.replace("valv.example", "valv.elsewhere")
    with pytest.raises(IntegrityFault):
        note.verify(changed, keys[0])
