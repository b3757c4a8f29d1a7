from __future__ import annotations

import json
import pickle
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from valv_tests_keys_running import CHEAP

from valv.config import Keys
from valv.errors import ConflictFault, Fault, FormatFault, InputFault, KeyFault, MissingFault, SealedFault
from valv.keys.file import Cost, FileKeyring, RootFile, SecretRoot, Stretched
from valv.keys.memory import Secret

PASSPHRASE = b"correct horse"
KEYRING = FileKeyring(Keys(), CHEAP)


def test_what_was_wrapped_unwraps_after_opening_again(tmp_path: Path) -> None:
    wrapped = KEYRING.create(tmp_path, PASSPHRASE).wrap(b"secret" * 5, b"context")
    assert KEYRING.open(tmp_path, PASSPHRASE).unwrap(wrapped, b"context") == b"secret" * 5
    assert [path.name for path in tmp_path.iterdir()] == ["root.json"]
    assert (tmp_path / "root.json").stat().st_mode & 0o777 == 0o600


def test_the_default_cost_opens(tmp_path: Path) -> None:
    keyring = FileKeyring(Keys())
    keyring.create(tmp_path, PASSPHRASE)
    keyring.open(tmp_path, PASSPHRASE)
    assert json.loads((tmp_path / "root.json").read_text())["cost"] == {"passes": 3, "lanes": 4, "memory": 256 << 10}


def test_a_wrong_passphrase_is_named(tmp_path: Path) -> None:
    KEYRING.create(tmp_path, PASSPHRASE)
    for wrong in (b"", b"correct hors", PASSPHRASE + b"\n"):
        with pytest.raises(KeyFault, match="the passphrase is wrong"):
            KEYRING.open(tmp_path, wrong)
    with pytest.raises(MissingFault):
        KEYRING.open(tmp_path / "none", PASSPHRASE)


def test_a_root_key_is_never_overwritten_nor_made_with_a_short_passphrase(tmp_path: Path) -> None:
    with pytest.raises(InputFault, match="shorter"):
        KEYRING.create(tmp_path, b"1234567")
    root = KEYRING.create(tmp_path, PASSPHRASE)
    with pytest.raises(ConflictFault, match="never overwritten"):
        KEYRING.create(tmp_path, PASSPHRASE)
    following = tmp_path / "following"
    following.mkdir()
    with pytest.raises(InputFault, match="shorter"):
        root.renew(following, b"1234567")
    assert list(following.iterdir()) == []


def test_the_next_root_key_is_stretched_alike(tmp_path: Path) -> None:
    """Of the same passphrase: with the same salt, for only its key is at hand. Of another: with a salt of its own, at
    the same cost."""
    folders = [tmp_path / name for name in ("first", "same", "other")]
    for folder in folders:
        folder.mkdir()
    # Opened by a keyring whose own cost is another.
    KEYRING.create(folders[0], PASSPHRASE).wipe()
    root = FileKeyring(Keys()).open(folders[0], PASSPHRASE)
    root.renew(folders[1])
    root.renew(folders[2], PASSPHRASE + b"!")
    first, same, other = (RootFile.decode((folder / "root.json").read_bytes(), folder) for folder in folders)
    assert first.cost == same.cost == other.cost == CHEAP
    assert first.salt == same.salt != other.salt
    assert len({first.wrapped, same.wrapped, other.wrapped}) == 3


def test_the_file_of_a_discarded_root_key_is_overwritten(tmp_path: Path) -> None:
    root = KEYRING.create(tmp_path, PASSPHRASE)
    with (tmp_path / "root.json").open("rb") as held:
        length = len(held.read())
        root.discard(tmp_path)
        held.seek(0)
        assert held.read() == bytes(length)
    assert list(tmp_path.iterdir()) == []


def test_what_a_passphrase_became(tmp_path: Path) -> None:
    """It seals and opens any root key, also after another of it was wiped."""
    stretched = Stretched.fresh(PASSPHRASE, CHEAP)
    again = stretched.again()
    file = stretched.seal(Secret(bytes(range(32))))
    stretched.wipe()
    with again.open(file).view() as root:
        assert root == bytes(range(32))
    with pytest.raises(KeyFault, match="the passphrase is wrong"):
        Stretched(PASSPHRASE + b"!", file.cost, file.salt).open(file)
    assert RootFile.decode(msgspec.json.encode(file), tmp_path) == file


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
    KEYRING.create(tmp_path, PASSPHRASE)
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises((KeyFault, FormatFault)):
        KEYRING.open(path.parent, PASSPHRASE)


@given(st.binary(max_size=300))
def test_any_bytes_are_no_root_key(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("root") / "root.json"
    path.write_bytes(data)
    with pytest.raises(Fault):
        KEYRING.open(path.parent, PASSPHRASE)


ROOT = SecretRoot(Secret(bytes(range(32))))


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


def test_a_root_key_in_memory_does_not_show_and_is_wiped() -> None:
    root = SecretRoot(Secret(b"canary--" * 4))
    assert "canary" not in repr(root) + str(root)
    with pytest.raises(TypeError):
        pickle.dumps(root)
    wrapped = root.wrap(b"secret", b"context")
    root.wipe()
    root.wipe()
    for act in (lambda: root.wrap(b"secret", b"context"), lambda: root.unwrap(wrapped, b"context")):
        with pytest.raises(SealedFault):
            act()
