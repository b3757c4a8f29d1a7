"""Crypt4GH: the vectors, the limits, and other implementations' headers, files and keys."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.errors import Fault, FormatFault, InputFault, KeyFault
from valv.formats import crypt4gh, keyfile
from valv.formats.crypt4gh import CIPHER_SEGMENT, MAX_HEADER, MAX_PACKETS, SEGMENT, generate_keypair

VECTORS = Path(__file__).parents[2] / "vectors" / "crypt4gh"
CASES = json.loads((VECTORS / "headers.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_header(case: dict[str, Any]) -> None:
    header, keys = bytes.fromhex(case["header"]), [bytes.fromhex(key) for key in case["private_keys"]]
    expect = case["expect"]
    if "fault" in expect:
        with pytest.raises(Fault) as caught:
            crypt4gh.open_header(header, keys)
        assert caught.value.code == expect["fault"]
        return
    opened = crypt4gh.open_header(header, keys)
    assert [key.hex() for key in opened.data_keys] == expect["data_keys"]
    assert (list(opened.edit_list) if opened.edit_list is not None else None) == expect["edit_list"]
    assert expect["data_keys"][0] not in repr(opened)


def test_a_reader_of_another_implementation_agrees_on_good_headers() -> None:
    foreign = pytest.importorskip("crypt4gh.header")
    for case in CASES:
        if "fault" in case["expect"] or "ignored" in case["name"]:
            continue
        keys = [(0, bytes.fromhex(key), None) for key in case["private_keys"]]
        found, edits = foreign.deconstruct(io.BytesIO(bytes.fromhex(case["header"])), keys)
        assert list(dict.fromkeys(bytes(key).hex() for key in found)) == case["expect"]["data_keys"]
        assert (list(edits) if edits is not None else None) == case["expect"]["edit_list"]


def test_the_fault_names_our_keys_and_what_to_do() -> None:
    ours = generate_keypair()
    header = crypt4gh.build_header(bytes(32), [generate_keypair().public])
    with pytest.raises(KeyFault) as caught:
        crypt4gh.open_header(header, [ours.private])
    assert crypt4gh.fingerprint(ours.public) in str(caught.value)
    assert "encrypt" in str(caught.value)
    assert ours.private.hex() not in repr(ours)


def test_length_is_found_byte_by_byte() -> None:
    header = crypt4gh.build_header(bytes(32), [generate_keypair().public for _ in range(3)], [1, 2])
    for end in range(len(header)):
        assert crypt4gh.header_length(header[:end]) is None
    assert crypt4gh.header_length(header) == len(header)
    assert crypt4gh.header_length(header + b"body") == len(header)


def test_a_foreign_start_is_known_at_its_first_byte() -> None:
    for prefix in (b"B", b"crypt4gx", b"\x1f\x8b", b"crypt4g\0"):
        with pytest.raises(FormatFault):
            crypt4gh.header_length(prefix)


@pytest.mark.parametrize("packets", [0, MAX_PACKETS + 1, 1 << 31, (1 << 32) - 1])
def test_an_impossible_number_of_packets_fails_before_they_come(packets: int) -> None:
    with pytest.raises(FormatFault):
        crypt4gh.header_length(b"crypt4gh" + struct.pack("<II", 1, packets))


@pytest.mark.parametrize("length", [0, 3, 71, MAX_HEADER, (1 << 32) - 1])
def test_an_impossible_packet_fails_before_it_comes(length: int) -> None:
    with pytest.raises(FormatFault):
        crypt4gh.header_length(b"crypt4gh" + struct.pack("<III", 1, 1, length))


def test_a_header_as_large_as_allowed_opens_and_a_larger_one_is_not_built() -> None:
    ours = generate_keypair()
    others = [generate_keypair().public for _ in range(MAX_PACKETS - 1)]
    header = crypt4gh.build_header(b"k" * 32, [*others, ours.public])
    assert crypt4gh.open_header(header, [ours.private]).data_keys == (b"k" * 32,)
    with pytest.raises(InputFault):
        crypt4gh.build_header(b"k" * 32, [*others, ours.public, ours.public])
    with pytest.raises(InputFault):
        crypt4gh.build_header(b"k" * 32, [ours.public], [1] * (MAX_HEADER // 8))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_header_or_a_fault(data: bytes) -> None:
    for attempt in (data, b"crypt4gh\1\0\0\0" + data, b"crypt4gh\1\0\0\0\1\0\0\0" + data):
        with pytest.raises(Fault):
            crypt4gh.open_header(attempt, [bytes(31) + b"\1"])


@given(st.binary(min_size=32, max_size=32), st.none() | st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_resealing_keeps_all_and_shuts_the_others_out(data_key: bytes, edits: list[int] | None) -> None:
    alice, bob = generate_keypair(), generate_keypair()
    header = crypt4gh.build_header(data_key, [alice.public], edits)
    resealed = crypt4gh.reseal(header, [alice.private], [bob.public])
    opened = crypt4gh.open_header(resealed, [bob.private])
    assert opened.data_keys == (data_key,)
    assert opened.edit_list == (None if edits is None else tuple(edits))
    with pytest.raises(KeyFault):
        crypt4gh.open_header(resealed, [alice.private])


def test_wrong_keys_are_input_faults() -> None:
    with pytest.raises(InputFault):
        crypt4gh.build_header(bytes(31), [generate_keypair().public])
    with pytest.raises(InputFault):
        crypt4gh.build_header(bytes(32), [])
    with pytest.raises(InputFault):
        crypt4gh.build_header(bytes(32), [bytes(31)])
    with pytest.raises(InputFault):
        crypt4gh.build_header(bytes(32), [bytes(32)])  # of low order: yields no secret
    with pytest.raises(InputFault):
        crypt4gh.open_header(crypt4gh.build_header(bytes(32), [generate_keypair().public]), [b"short"])


@given(st.integers(0, 1 << 50))
def test_sizes(plain: int) -> None:
    assert crypt4gh.plain_size(crypt4gh.cipher_size(plain)) == plain


@pytest.mark.parametrize("rest", range(1, 29))
def test_impossible_body_sizes(rest: int) -> None:
    for size in (rest, CIPHER_SEGMENT + rest):
        with pytest.raises(FormatFault):
            crypt4gh.plain_size(size)


def test_sizes_at_the_edges() -> None:
    assert crypt4gh.cipher_size(0) == 0
    assert crypt4gh.cipher_size(SEGMENT) == CIPHER_SEGMENT
    assert crypt4gh.cipher_size(SEGMENT + 1) == CIPHER_SEGMENT + 29


# --- key files, both ways with the reference tool ---


@pytest.mark.parametrize("kdf", [b"scrypt", b"bcrypt", b"pbkdf2_hmac_sha256"])
def test_a_private_key_locked_by_the_reference_tool_opens(kdf: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = pytest.importorskip("crypt4gh.keys.c4gh")
    if kdf == b"bcrypt":
        pytest.importorskip("bcrypt")
    salt, nonce, private = b"s" * 16, b"n" * 12, generate_keypair().private
    rounds = foreign.get_kdf(kdf)[1]
    sealed = foreign.ChaCha20Poly1305(foreign.derive_key(kdf, b"pass word", salt, rounds)).encrypt(nonce, private, None)
    parts = (kdf, rounds.to_bytes(4, "big") + salt, b"chacha20_poly1305", nonce + sealed, b"a comment")
    text = keyfile._wrap(foreign.MAGIC_WORD + b"".join(map(foreign.encode_string, parts)), "PRIVATE")
    assert keyfile.is_locked(text)
    assert keyfile.read_private(text, lambda: "pass word") == private
    with pytest.raises(KeyFault):
        keyfile.read_private(text, lambda: "wrong")
    with pytest.raises(KeyFault):
        keyfile.read_private(text)


@pytest.mark.parametrize("passphrase", ["", "pass word å"])
def test_key_files_made_by_the_reference_tool(tmp_path: Path, passphrase: str) -> None:
    foreign = pytest.importorskip("crypt4gh.keys.c4gh")
    foreign.generate(tmp_path / "sec", tmp_path / "pub", passphrase.encode(), b"comment")
    private = keyfile.read_private((tmp_path / "sec").read_text(), lambda: passphrase)
    assert crypt4gh.public_key(private) == keyfile.read_public((tmp_path / "pub").read_text())
    assert keyfile.is_locked((tmp_path / "sec").read_text()) == bool(passphrase)


@pytest.mark.parametrize("passphrase", ["", "pass word å"])
def test_key_files_for_the_reference_tool(tmp_path: Path, passphrase: str) -> None:
    foreign = pytest.importorskip("crypt4gh.keys")
    pair = generate_keypair()
    (tmp_path / "sec").write_text(keyfile.write_private(pair.private, passphrase, "comment"))
    (tmp_path / "pub").write_text(keyfile.write_public(pair.public))
    assert foreign.get_private_key(tmp_path / "sec", lambda: passphrase) == pair.private
    assert foreign.get_public_key(tmp_path / "pub") == pair.public


@given(st.text(max_size=200))
def test_any_text_gives_a_key_or_a_fault(text: str) -> None:
    wrapped = keyfile._wrap(b"c4gh-v1" + text.encode("utf-8", "replace"), "PRIVATE")
    for attempt in (text, wrapped, wrapped[:-40], wrapped.replace("PRIVATE", "PUBLIC")):
        with pytest.raises(Fault):
            keyfile.read_private(attempt, lambda: "x")


def test_key_files_of_the_wrong_kind_are_refused() -> None:
    pair = generate_keypair()
    with pytest.raises(FormatFault):
        keyfile.read_public(keyfile.write_private(pair.private))
    with pytest.raises(FormatFault):
        keyfile.read_private(keyfile.write_public(pair.public))
    with pytest.raises(FormatFault):
        keyfile.read_public(keyfile.write_public(pair.public + b"x"))


def test_the_command_line_tool_reads_what_we_write(tmp_path: Path) -> None:
    pytest.importorskip("crypt4gh")
    pair = generate_keypair()
    (tmp_path / "sec").write_text(keyfile.write_private(pair.private))
    (tmp_path / "pub").write_text(keyfile.write_public(pair.public))
    tool = [sys.executable, "-m", "crypt4gh"]
    plain = bytes(range(256)) * 1000
    sealed = subprocess.run(
        [*tool, "encrypt", "--sk", tmp_path / "sec", "--recipient_pk", tmp_path / "pub"],
        input=plain,
        capture_output=True,
        check=True,
    ).stdout
    length = crypt4gh.header_length(sealed)
    assert length is not None
    other = generate_keypair()
    (tmp_path / "other").write_text(keyfile.write_private(other.private))
    moved = crypt4gh.reseal(sealed[:length], [pair.private], [other.public]) + sealed[length:]
    opened = subprocess.run(
        [*tool, "decrypt", "--sk", tmp_path / "other"], input=moved, capture_output=True, check=True
    )
    assert opened.stdout == plain
