"""The local store against the storage contract, and what only a folder can show."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from valv.errors import StorageFault
from valv.ports.contract.storage import FullStorageContract, StorageContract, put, read_all
from valv.ports.storage import Place
from valv.storage.local import LocalStorage

PLACE = Place("SE", "test")


class TestLocal(StorageContract, FullStorageContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStorage:
        return LocalStorage(tmp_path / "store", PLACE)

    @pytest.fixture
    def small_store(self, tmp_path: Path) -> Iterator[LocalStorage]:
        disk = tmp_path / "disk"
        disk.mkdir()
        if os.geteuid() != 0:
            pytest.skip("mounting a small tmpfs needs root")
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"a small tmpfs cannot be mounted: {made.stderr.strip()}")
        try:
            yield LocalStorage(disk / "store", PLACE)
        finally:
            subprocess.run(["umount", "--lazy", disk], check=True)

    def test_a_killed_writer_is_swept_and_a_living_one_is_not(self, tmp_path: Path, store: LocalStorage) -> None:
        script = (
            "import sys; from pathlib import Path; from valv.ports.storage import Place; "
            "from valv.storage.local import LocalStorage; "
            "w = LocalStorage(Path(sys.argv[1]), Place('SE', 'test')).writer('killed'); w.write(b'x' * 1000000); "
            "print('written', flush=True); sys.stdin.read()"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "store")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        living = store.writer("living")
        living.write(b"alive")
        assert store.sweep() == 0
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert list(store.names()) == []
        assert store.sweep() == 1
        assert store.sweep() == 0
        living.commit()
        assert read_all(store, "living") == b"alive"
        put(store, "killed", b"again")

    def test_a_link_is_not_followed(self, tmp_path: Path, store: LocalStorage) -> None:
        put(store, "body", b"data")
        (path,) = (tmp_path / "store" / "bodies").glob("*/body")
        path.unlink()
        path.symlink_to("/etc/passwd")
        with pytest.raises(StorageFault):
            store.open("body")

    def test_a_body_outlives_the_process(self, tmp_path: Path) -> None:
        data = secrets.token_bytes(1000)
        put(LocalStorage(tmp_path / "store", PLACE), "body", data)
        assert read_all(LocalStorage(tmp_path / "store", PLACE), "body") == data

    def test_a_folder_that_cannot_be_made_is_a_storage_fault(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageFault):
            LocalStorage(tmp_path / "file" / "store", PLACE)
