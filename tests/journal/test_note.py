from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.errors import FormatFault, IntegrityFault
from valv.formats import note
from valv.formats.note import Checkpoint

FILE = json.loads((Path(__file__).parents[2] / "vectors/note/checkpoint.json").read_text("utf-8"))
NAME = "node.example/ledger"
KEY = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(FILE["seeds"][NAME]))
WITNESS = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(FILE["seeds"]["witness.example"]))
VKEY = note.verifier_key(NAME, note.public_bytes(KEY))
TEXT = Checkpoint(NAME, 3, bytes(32)).encode()


@pytest.mark.parametrize("case", FILE["cases"], ids=[case["name"] for case in FILE["cases"]])
def test_vector(case: dict[str, Any]) -> None:
    try:
        checkpoint = Checkpoint.decode(note.verify(case["note"], *case["verifier_keys"]))
        outcome = "valid"
        assert checkpoint.size == case["size"]
    except IntegrityFault:
        outcome = "untrusted"
    except FormatFault:
        outcome = "malformed"
    assert outcome == case["outcome"]


def test_the_published_example_verifies() -> None:
    """The note in the documentation of Go's sumdb/note, whose format this is."""
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert note.verify(f"{text}\n\u2014 PeterNeumann {signature}\n", vkey) == text


def test_signing_is_deterministic_and_cosigning_keeps_the_rest() -> None:
    signed = note.sign(KEY, NAME, TEXT)
    assert signed == note.sign(KEY, NAME, TEXT)
    both = note.cosign(WITNESS, "witness.example", signed)
    assert both.startswith(signed)
    witness = note.verifier_key("witness.example", note.public_bytes(WITNESS))
    assert note.verify(both, VKEY) == note.verify(both, VKEY, witness) == TEXT
    assert [one.name for one in note.read(both)[1]] == [NAME, "witness.example"]
    with pytest.raises(IntegrityFault, match=r"not signed by the key witness\.example"):
        note.verify(signed, VKEY, witness)


def test_a_signature_of_an_algorithm_from_later_days_is_ignored() -> None:
    signed = note.sign(KEY, NAME, TEXT)
    assert note.verify(f"{signed}\u2014 other.example {'A' * 96}\n", VKEY) == TEXT


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "a\u00a0b", "a\x7f"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(FormatFault):
        note.sign(KEY, name, TEXT)
    with pytest.raises(FormatFault):
        note.verifier_key(name, bytes(32))


@pytest.mark.parametrize("text", ["", "no line break", "tab\there\n", "nul\0\n", "half\ud800\n"])
def test_bad_texts_are_refused(text: str) -> None:
    with pytest.raises(FormatFault):
        note.sign(KEY, NAME, text)


@pytest.mark.parametrize(
    "checkpoint",
    [
        Checkpoint("", 1, bytes(32)),
        Checkpoint("a\nb", 1, bytes(32)),
        Checkpoint("a", -1, bytes(32)),
        Checkpoint("a", 1 << 63, bytes(32)),
        Checkpoint("a", 1, bytes(31)),
        Checkpoint("a", 1, bytes(32), ("",)),
    ],
)
def test_what_cannot_be_read_back_is_not_written(checkpoint: Checkpoint) -> None:
    with pytest.raises(FormatFault):
        checkpoint.encode()


def test_too_much_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(FormatFault, match="at most"):
        note.verify("x" * (note.MAX_NOTE + 1), VKEY)
    crowd = note.sign(KEY, NAME, TEXT)
    line = crowd.splitlines()[-1] + "\n"
    crowd += line * (note.MAX_SIGNATURES - 1)
    assert note.verify(crowd, VKEY) == TEXT
    with pytest.raises(FormatFault, match="signatures"):
        note.verify(crowd + line, VKEY)
    with pytest.raises(FormatFault, match="signatures"):
        note.cosign(KEY, NAME, crowd)


PRINTABLE = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\n"), min_size=1, max_size=20)


@given(PRINTABLE, st.integers(0, (1 << 63) - 1), st.binary(min_size=32, max_size=32), st.lists(PRINTABLE, max_size=3))
def test_checkpoints_come_back(origin: str, size: int, root: bytes, extensions: list[str]) -> None:
    checkpoint = Checkpoint(origin, size, root, tuple(extensions))
    assert Checkpoint.decode(checkpoint.encode()) == checkpoint
    assert Checkpoint.decode(note.verify(note.sign(KEY, NAME, checkpoint.encode()), VKEY)) == checkpoint


@settings(max_examples=400)
@given(st.data())
def test_an_altered_note_is_refused_or_says_the_same(data: st.DataObject) -> None:
    signed = note.sign(KEY, NAME, TEXT)
    where = data.draw(st.integers(0, len(signed) - 1))
    length = data.draw(st.integers(0, 3))
    altered = signed[:where] + data.draw(st.text(max_size=3)) + signed[where + length :]
    try:
        assert note.verify(altered, VKEY) == TEXT
    except (FormatFault, IntegrityFault):
        return


@settings(max_examples=400)
@given(st.text(st.sampled_from("ab+ \n\u2014=0/9Z\r\t\ud800"), max_size=60), st.text(max_size=60))
def test_any_text_at_all_gives_a_clear_fault(written: str, vkey: str) -> None:
    for attempt in (
        lambda: note.verify(written, VKEY),
        lambda: note.verify(note.sign(KEY, NAME, TEXT), vkey),
        lambda: Checkpoint.decode(written),
    ):
        with pytest.raises((FormatFault, IntegrityFault)):
            attempt()
