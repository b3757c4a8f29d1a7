from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from valv_tests_keys_running import CHEAP

from valv.errors import ConflictFault, Fault, FormatFault, InputFault, KeyFault, MissingFault
from valv.keys.file import Cost, FileRoot
from valv.keys.memory import Secret

PASSPHRASE = b"correct horse"


def test_what_was_wrapped_unwraps_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    wrapped = FileRoot.create(path, PASSPHRASE, CHEAP).wrap(b"secret" * 5, b"context")
    assert FileRoot.open(path, PASSPHRASE).unwrap(wrapped, b"context") == b"secret" * 5
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_default_cost_opens(tmp_path: Path) -> None:
    FileRoot.create(tmp_path / "root.json", PASSPHRASE)
    FileRoot.open(tmp_path / "root.json", PASSPHRASE)


def test_a_wrong_passphrase_is_named(tmp_path: Path) -> None:
    path = tmp_path / "root.json"
    FileRoot.create(path, PASSPHRASE, CHEAP)
    for wrong in (b"", b"correct hors", PASSPHRASE + b"\n"):
        with pytest.raises(KeyFault, match="the passphrase is wrong"):
            FileRoot.open(path, wrong)
    with pytest.raises(MissingFault):
        FileRoot.open(tmp_path / "none", PASSPHRASE)


def test_a_root_key_is_never_overwritten_nor_made_with_a_short_passphrase(tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="shorter"):
        FileRoot.create(tmp_path / "root.json", b"1234567", CHEAP)
    FileRoot.create(tmp_path / "root.json", PASSPHRASE, CHEAP)
    with pytest.raises(ConflictFault, match="never overwritten"):
        FileRoot.create(tmp_path / "root.json", PASSPHRASE, CHEAP)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("salt", "AAAAAAAAAAAAAAAAAAAAAA=="),
        ("salt", ""),
        ("wrapped", ""),
        ("format", "valv root key 2"),
        ("cost", {"passes": 2, "lanes": 1, "memory": 64}),
        ("cost", {"passes": 0, "lanes": 1, "memory": 64}),
        ("cost", {"passes": 1, "lanes": 1, "memory": 1 << 40}),
        ("extra", 1),
    ],
)
def test_an_altered_file_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "root.json"
    FileRoot.create(path, PASSPHRASE, CHEAP)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises((KeyFault, FormatFault)):
        FileRoot.open(path, PASSPHRASE)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_root_key(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("root") / "root.json"
    path.write_bytes(data)
    with pytest.raises(Fault):
        FileRoot.open(path, PASSPHRASE)


ROOT = FileRoot(Secret(bytes(range(32))))


@given(st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=64), st.integers(0, 2000))
def test_nothing_altered_unwraps(secret: bytes, context: bytes, other: bytes, where: int) -> None:
    wrapped = ROOT.wrap(secret, context)
    assert ROOT.unwrap(wrapped, context) == secret
    assert ROOT.wrap(secret, context) != wrapped
    bit = where % (8 * len(wrapped))
    bent = bytearray(wrapped)
    bent[bit // 8] ^= 1 << bit % 8
    for bad, bound in ((bytes(bent), context), (wrapped[:-1], context), (wrapped + b"\0", context), (b"", context)):
        with pytest.raises(KeyFault):
            ROOT.unwrap(bad, bound)
    if other != context:
        with pytest.raises(KeyFault):
            ROOT.unwrap(wrapped, other)


def test_cost_limits() -> None:
    assert Cost().sane and CHEAP.sane
    assert not Cost(memory=8, lanes=4).sane and not Cost(memory=(4 << 20) + 1).sane


def test_a_secret_does_not_show_and_is_wiped() -> None:
    secret = Secret(b"top secret")
    with secret.view() as view:
        assert bytes(view) == b"top secret"
        with pytest.raises(TypeError):
            view[0] = 0
    assert "top" not in repr(secret) + str(secret) + repr(ROOT)
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    secret.wipe()
    secret.wipe()
    with pytest.raises(ValueError):
        secret.view()
