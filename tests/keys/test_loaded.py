"""Keys kept loaded: the record is read each time all the same, and nothing that had to go is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from valv_tests_keys_running import CHEAP

from valv.config import Keys
from valv.errors import KeyFault
from valv.formats import crypt4gh
from valv.keys.file import FileKeyring
from valv.keys.loaded import MOST, Loaded
from valv.keys.store import Store

PASSPHRASE = b"a passphrase"
KEYRING = FileKeyring(Keys(), CHEAP)
READER = crypt4gh.generate_keypair()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    path = tmp_path / "keys"
    path.mkdir(mode=0o700)
    Store.create(path, "valv.example", KEYRING.create(path, PASSPHRASE))
    made = Store(path, KEYRING.open(path, PASSPHRASE))
    yield made
    made.close()


def test_a_key_is_kept_until_all_are_forgotten(store: Store) -> None:
    public = store.create_key("one", "result")
    loaded = Loaded()
    record, first = loaded.unlock(store, "one")
    assert record.public == public
    assert loaded.unlock(store, "one")[1] is first
    header = first.reseal(crypt4gh.build_header(bytes(32), [public]), [READER.public])
    assert crypt4gh.open_header(header, [READER.private]).data_keys == (bytes(32),)
    loaded.clear()
    assert loaded.unlock(store, "one")[1] is not first


def test_an_altered_record_is_found_although_its_key_is_loaded(store: Store, tmp_path: Path) -> None:
    store.create_key("one", "result")
    loaded = Loaded()
    loaded.unlock(store, "one")
    file = tmp_path / "keys" / "keys" / "one.json"
    file.write_text(file.read_text().replace('"result"', '"anonymised"'))
    with pytest.raises(KeyFault, match="altered"):
        loaded.unlock(store, "one")


def test_after_a_rotation_both_pairs_open(store: Store) -> None:
    old = store.create_key("one", "result")
    loaded = Loaded()
    loaded.unlock(store, "one")
    new = store.rotate("one", 2)
    for oldest_first in (False, True):
        _, keys = loaded.unlock(store, "one", oldest_first=oldest_first)
        for public in (old, new):
            assert keys.open(crypt4gh.build_header(bytes(32), [public])).data_keys == (bytes(32),)


def test_what_was_read_before_all_were_forgotten_is_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_key("one", "result")
    loaded = Loaded()
    unlock = store.unlock

    def forget_meanwhile(key_id: str) -> object:
        found = unlock(key_id)
        loaded.clear()
        return found

    monkeypatch.setattr(store, "unlock", forget_meanwhile)
    loaded.unlock(store, "one")
    monkeypatch.undo()
    _, kept = loaded.unlock(store, "one")
    assert loaded.unlock(store, "one")[1] is kept
    assert len(loaded._kept) == 1


def test_only_so_many_are_kept(store: Store) -> None:
    loaded = Loaded()
    for number in range(MOST + 3):
        store.create_key(f"key-{number}", "result")
        loaded.unlock(store, f"key-{number}")
    assert len(loaded._kept) == MOST
