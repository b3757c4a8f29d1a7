"""Every command of `valv crypt` against the reference implementation, both ways, as programs with real pipes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import crypt4gh.header
import crypt4gh.keys
import crypt4gh.lib
import pytest

from tests.cli.conftest import Valv
from valv.formats import crypt4gh as ours
from valv.formats.crypt4gh import CIPHER_SEGMENT, SEGMENT

PLAIN = hashlib.shake_128(b"reference").digest(70 * SEGMENT + 33)
RANGES = (
    (0, 1),
    (0, SEGMENT),
    (1, SEGMENT + 1),
    (SEGMENT, 2 * SEGMENT),
    (SEGMENT - 1, SEGMENT + 1),
    (63 * SEGMENT, 65 * SEGMENT + 5),
    (70 * SEGMENT + 30, None),
    (5, None),
)
VALV = [sys.executable, "-c", "import valv.assemble; valv.assemble.main()", "crypt"]


class Person:
    """A key pair in files, and as the reference implementation wants it."""

    def __init__(self, valv: Valv, folder: Path, name: str) -> None:
        valv.good("crypt", "keygen", folder / name, "--no-passphrase")
        self.public, self.secret = folder / f"{name}.pub", folder / f"{name}.sec"
        self.private_key: bytes = crypt4gh.keys.get_private_key(self.secret, lambda: "")
        self.public_key: bytes = crypt4gh.keys.get_public_key(self.public)
        self.reader = [(0, self.private_key, None)]

    def seals(self, plain: bytes, *recipients: Person) -> bytes:
        made = BytesIO()
        crypt4gh.lib.encrypt([(0, self.private_key, to.public_key) for to in recipients], BytesIO(plain), made)
        return made.getvalue()

    def reads(self, sealed: bytes, offset: int = 0, span: int | None = None) -> bytes:
        made = BytesIO()
        crypt4gh.lib.decrypt(self.reader, BytesIO(sealed), made, offset=offset, span=span)
        return made.getvalue()


@pytest.fixture
def ada(valv: Valv, tmp_path: Path) -> Person:
    return Person(valv, tmp_path, "ada")


@pytest.fixture
def bo(valv: Valv, tmp_path: Path) -> Person:
    return Person(valv, tmp_path, "bo")


def _range(start: int, end: int | None) -> str:
    return f"{start}" if end is None else f"{start}-{end}"


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_ranges_both_ways(valv: Valv, ada: Person, start: int, end: int | None) -> None:
    part = PLAIN[start:end]
    sealed = ada.seals(PLAIN, ada)
    secret = ("--secret", ada.secret, "--range", _range(start, end))
    assert valv.good("crypt", "decrypt", "-", *secret, feed=sealed).raw == part
    if start < SEGMENT:  # from the second segment on the reference implementation skips too much
        assert ada.reads(sealed, start, None if end is None else end - start) == part
    made = valv.good("crypt", "encrypt", "-", "--for", ada.public, "--range", _range(start, end), feed=PLAIN).raw
    assert ada.reads(made) == part


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_rearranged_both_ways(valv: Valv, ada: Person, tmp_path: Path, start: int, end: int | None) -> None:
    part, sealed = PLAIN[start:end], ada.seals(PLAIN, ada)
    (tmp_path / "x.c4gh").write_bytes(sealed)
    words = ("--secret", ada.secret, "--range", _range(start, end))
    valv.good("crypt", "rearrange", tmp_path / "x.c4gh", *words, "-o", tmp_path / "y.c4gh")
    made = (tmp_path / "y.c4gh").read_bytes()
    assert ada.reads(made) == part
    first, last = start // SEGMENT, -(-(len(PLAIN) if end is None else end) // SEGMENT)
    assert len(made) <= 1024 + (last - first) * CIPHER_SEGMENT
    streamed = valv.good("crypt", "rearrange", "-", *words, feed=sealed).raw
    assert ada.reads(streamed) == part
    theirs = BytesIO()
    keys = [(0, ada.private_key, ada.public_key)]
    span = None if end is None else end - start
    crypt4gh.lib.rearrange(keys, BytesIO(sealed), theirs, offset=start, span=span)
    assert valv.good("crypt", "decrypt", "-", "--secret", ada.secret, feed=theirs.getvalue()).raw == part
    told = valv.good("crypt", "info", tmp_path / "y.c4gh", "--secret", ada.secret, "--json").json
    assert told["edit_list"] == [start % SEGMENT] + ([] if end is None else [end - start])


def test_rearranged_again(valv: Valv, ada: Person, bo: Person) -> None:
    """Which the reference implementation cannot."""
    sealed = ada.seals(PLAIN, ada)
    secret = ("--secret", ada.secret)
    once = valv.good("crypt", "rearrange", "-", *secret, "--range", "100000-3000000", feed=sealed).raw
    twice = valv.good("crypt", "rearrange", "-", *secret, "--range", "7-200000", "--for", bo.public, feed=once).raw
    assert bo.reads(twice) == PLAIN[100_007:300_000]
    assert valv.good("crypt", "decrypt", "-", "--secret", bo.secret, feed=twice).raw == PLAIN[100_007:300_000]
    late = valv.good("crypt", "decrypt", "-", *secret, "--range", "2899999-5000000", feed=once).raw
    assert late == PLAIN[2_999_999:3_000_000]


def test_reencrypted_both_ways(valv: Valv, ada: Person, bo: Person, tmp_path: Path) -> None:
    eve = Person(valv, tmp_path, "eve")
    sealed = ada.seals(PLAIN, ada, eve)
    (tmp_path / "x.c4gh").write_bytes(sealed)
    words = ("crypt", "reencrypt", tmp_path / "x.c4gh", "--secret", ada.secret, "--for", bo.public)
    valv.good(*words, "-o", tmp_path / "kept.c4gh")
    valv.good(*words, "--trim", "-o", tmp_path / "trimmed.c4gh")
    header = valv.good(*words, "--header-only", "-o", "-").raw
    kept, trimmed = (tmp_path / "kept.c4gh").read_bytes(), (tmp_path / "trimmed.c4gh").read_bytes()
    assert bo.reads(kept) == bo.reads(trimmed) == eve.reads(kept) == PLAIN
    body = sealed[ours.header_length(sealed) :]
    assert kept.endswith(body) and trimmed.endswith(body) and bo.reads(header + body) == PLAIN
    with pytest.raises(ValueError, match="No supported encryption method"):
        eve.reads(trimmed)
    with pytest.raises(ValueError, match="No supported encryption method"):
        ada.reads(kept)
    theirs = BytesIO()
    crypt4gh.lib.reencrypt(ada.reader, [(0, ada.private_key, bo.public_key)], BytesIO(sealed), theirs)
    for reader in (bo, eve):
        ran = valv.good("crypt", "decrypt", "-", "--secret", reader.secret, feed=theirs.getvalue())
        assert ran.raw == PLAIN
    streamed = valv.good("crypt", "reencrypt", "-", "--secret", ada.secret, "--for", bo.public, feed=sealed).raw
    assert bo.reads(streamed) == PLAIN
    valv.bad(64, *words)  # the result has no name


def test_several_recipients(valv: Valv, ada: Person, bo: Person) -> None:
    made = valv.good("crypt", "encrypt", "-", "--for", ada.public, "--for", bo.public, feed=PLAIN).raw
    assert ada.reads(made) == bo.reads(made) == PLAIN
    both = ("--secret", bo.secret, "--secret", ada.secret)
    assert valv.good("crypt", "decrypt", "-", *both, feed=ada.seals(PLAIN, ada)).raw == PLAIN


def test_a_wrong_key_is_told_by_name(valv: Valv, ada: Person, bo: Person, tmp_path: Path) -> None:
    (tmp_path / "x.c4gh").write_bytes(ada.seals(PLAIN, ada))
    for words in (
        ("decrypt", "-o", tmp_path / "y"),
        ("reencrypt", "--for", bo.public, "-o", tmp_path / "y"),
        ("rearrange", "--range", "1-2", "-o", tmp_path / "y"),
        ("info",),
    ):
        told = valv.bad(65, "crypt", words[0], tmp_path / "x.c4gh", *words[1:], "--secret", bo.secret).err
        assert f"{bo.secret} ({ours.fingerprint(bo.public_key)})" in told and "x.c4gh" in told
        assert not (tmp_path / "y").exists()
    writers = valv.good("crypt", "info", tmp_path / "x.c4gh", "--json").json["writers"]
    assert writers == [ours.fingerprint(ada.public_key)]


@pytest.mark.parametrize("text", ["", "-", "5-5", "6-5", "a-b", "-5", "1-2-3"])
def test_ranges_that_are_none(valv: Valv, ada: Person, tmp_path: Path, text: str) -> None:
    (tmp_path / "x.c4gh").write_bytes(ada.seals(PLAIN, ada))
    valv.bad(64, "crypt", "decrypt", tmp_path / "x.c4gh", "--secret", ada.secret, f"--range={text}")


def test_programs_in_a_pipe(valv: Valv, ada: Person, tmp_path: Path) -> None:
    """`valv crypt encrypt - | valv crypt decrypt -` beside a file that something else is written behind."""
    (tmp_path / "x").write_bytes(PLAIN)
    with (tmp_path / "x").open("rb") as source, (tmp_path / "y").open("wb") as made:
        first = subprocess.Popen([*VALV, "encrypt", "-", "--for", ada.public], stdin=source, stdout=subprocess.PIPE)
        second = subprocess.Popen([*VALV, "decrypt", "-", "--secret", ada.secret], stdin=first.stdout, stdout=made)
        assert first.stdout is not None
        first.stdout.close()
        assert second.wait(120) == first.wait(120) == 0
        os.write(made.fileno(), b"behind")
    assert (tmp_path / "y").read_bytes() == PLAIN + b"behind"
    head = subprocess.run(
        f"{sys.executable} -c 'import valv.assemble; valv.assemble.main()' crypt encrypt {tmp_path / 'x'} "
        f"--for {ada.public} -o - | head -c 20000 | wc -c",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert head.stdout.strip() == "20000" and "Traceback" not in head.stderr


def test_the_foreign_files(valv: Valv, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "crypt4gh"
    sealed = folder / "NA12878.bam.c4gh"
    told = valv.good("crypt", "info", sealed, "--json").json
    assert told["packets"] >= 1 and told["header"] + told["body"] == sealed.stat().st_size
    keys = ("--secret", folder / "alice.sec", "--secret", folder / "bob.sec")
    ran = valv.good("crypt", "decrypt", sealed, *keys, "-o", tmp_path / "bam", "--json")
    assert ran.json["size"] == told["plain"]
    readers = [
        (0, crypt4gh.keys.get_private_key(folder / f"{name}.sec", lambda: ""), None) for name in ("alice", "bob")
    ]
    theirs = BytesIO()
    crypt4gh.lib.decrypt(readers, BytesIO(sealed.read_bytes()), theirs)
    assert (tmp_path / "bam").read_bytes() == theirs.getvalue()
