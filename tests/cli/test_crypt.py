"""Keys and files on this computer, held against the reference implementation."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import crypt4gh.keys
import crypt4gh.lib
import pytest

from tests.cli.conftest import Valv
from valv.formats.crypt4gh import SEGMENT

SIZES = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 5 * SEGMENT + 7)


@pytest.fixture
def keys(valv: Valv, tmp_path: Path) -> Path:
    valv.good("crypt", "keygen", tmp_path / "me", "--no-passphrase")
    return tmp_path


@pytest.mark.parametrize("size", SIZES)
def test_there_and_back(valv: Valv, keys: Path, size: int) -> None:
    plain = bytes(number % 251 for number in range(size))
    (keys / "x").write_bytes(plain)
    digest = hashlib.sha256(plain).hexdigest()
    valv.good("crypt", "encrypt", keys / "x", "--for", keys / "me.pub")
    ran = valv.good("crypt", "decrypt", keys / "x.c4gh", "--secret", keys / "me.sec", "-o", keys / "y")
    assert (keys / "y").read_bytes() == plain and digest in ran.out
    assert (keys / "y").stat().st_mode & 0o777 == 0o600
    told = valv.good("crypt", "info", keys / "x.c4gh", "--json").json
    assert told["plain"] == size and told["packets"] == 1


@pytest.mark.parametrize("size", SIZES[1:])
def test_the_reference_tool_reads_and_writes_the_same(valv: Valv, keys: Path, size: int) -> None:
    plain = bytes(size)
    (keys / "x").write_bytes(plain)
    private = crypt4gh.keys.get_private_key(keys / "me.sec", lambda: "")
    public = crypt4gh.keys.get_public_key(keys / "me.pub")
    valv.good("crypt", "encrypt", keys / "x", "--for", keys / "me.pub")
    opened = BytesIO()
    crypt4gh.lib.decrypt([(0, private, None)], BytesIO((keys / "x.c4gh").read_bytes()), opened)
    assert opened.getvalue() == plain
    sealed = BytesIO()
    crypt4gh.lib.encrypt([(0, private, public)], BytesIO(plain), sealed)
    ran = valv.good("crypt", "decrypt", "-", "--secret", keys / "me.sec", feed=sealed.getvalue())
    assert ran.raw == plain


def test_a_locked_key(valv: Valv, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("correct horse\n")
    wrong.write_text("battery\n")
    ran = valv.good("crypt", "keygen", tmp_path / "me", "--passphrase-file", right)
    assert ran.out.startswith("SHA256:")
    assert (tmp_path / "me.sec").stat().st_mode & 0o777 == 0o600
    crypt4gh.keys.get_private_key(tmp_path / "me.sec", lambda: "correct horse")
    (tmp_path / "x").write_bytes(b"x")
    valv.good("crypt", "encrypt", tmp_path / "x", "--for", tmp_path / "me.pub")
    told = ("crypt", "decrypt", tmp_path / "x.c4gh", "--secret", tmp_path / "me.sec", "-o", tmp_path / "y")
    assert "passphrase" in valv.bad(65, *told, "--passphrase-file", wrong).err
    assert "nobody can be asked" in valv.bad(64, *told).err
    valv.good(*told, "--passphrase-file", right)
    valv.bad(64, "crypt", "keygen", tmp_path / "me", "--no-passphrase")


def test_what_does_not_open(valv: Valv, keys: Path) -> None:
    secret = ("--secret", keys / "me.sec")
    (keys / "x").write_bytes(b"x" * 200_000)
    valv.good("crypt", "encrypt", keys / "x", "--for", keys / "me.pub")
    sealed = (keys / "x.c4gh").read_bytes()
    for name, content, code in (
        ("plain.c4gh", b"nothing of the kind", 65),
        ("empty.c4gh", b"", 65),
        ("header.c4gh", sealed[:40], 65),
        ("cut.c4gh", sealed[:-1], 65),
        ("flipped.c4gh", sealed[:-1] + bytes([sealed[-1] ^ 1]), 65),
    ):
        (keys / name).write_bytes(content)
        valv.bad(code, "crypt", "decrypt", keys / name, *secret)
        assert not (keys / name).with_suffix("").exists()
    valv.good("crypt", "keygen", keys / "other", "--no-passphrase")
    assert "SHA256:" in valv.bad(65, "crypt", "decrypt", keys / "x.c4gh", "--secret", keys / "other.sec", "-o", "z").err
    valv.bad(64, "crypt", "decrypt", keys / "x.c4gh", *secret)  # x is there: nothing is overwritten
    valv.bad(65, "crypt", "decrypt", keys / "x.c4gh", "--secret", keys / "me.pub")
    valv.bad(66, "crypt", "decrypt", keys / "absent.c4gh", *secret)
    valv.bad(64, "crypt", "encrypt", keys / "x", "--for", keys / "absent.pub")
    assert not [path for path in keys.iterdir() if path.name.endswith(".part")]
