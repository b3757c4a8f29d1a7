"""The contract of `valv.ports.storage.Storage` as tests: a backend's test class inherits `StorageContract`.

    class TestMine(StorageContract):
        @pytest.fixture
        def store(self): return MyStorage(...)      # empty

It needs pytest, which the node itself does not.
"""

from __future__ import annotations

import secrets
import threading

import pytest

from valv.errors import FullFault, InputFault, MissingFault, StorageFault
from valv.ports.storage import Storage


def read_all(store: Storage, name: str) -> bytes:
    body = store.open(name)
    try:
        target = bytearray(body.size)
        assert body.pread_into(target, 0) == body.size
        return bytes(target)
    finally:
        body.close()


def put(store: Storage, name: str, data: bytes) -> None:
    writer = store.writer(name)
    writer.write(data)
    writer.commit()


class StorageContract:
    """Every test gets an empty `store`."""

    def test_a_body_comes_back_as_it_was_written(self, store: Storage) -> None:
        data = secrets.token_bytes(3_000_000)
        writer = store.writer("body")
        for at in range(0, len(data), 700_001):
            writer.write(memoryview(data)[at : at + 700_001])
        writer.commit()
        assert read_all(store, "body") == data
        assert store.size("body") == len(data)
        assert list(store.names()) == ["body"]

    def test_an_empty_body_is_a_body(self, store: Storage) -> None:
        put(store, "empty", b"")
        assert store.size("empty") == 0
        assert read_all(store, "empty") == b""

    def test_nothing_is_visible_before_commit(self, store: Storage) -> None:
        writer = store.writer("body")
        writer.write(b"x" * 100_000)
        assert list(store.names()) == []
        with pytest.raises(MissingFault):
            store.open("body")
        with pytest.raises(MissingFault):
            store.size("body")
        writer.commit()
        assert list(store.names()) == ["body"]

    def test_an_aborted_writer_leaves_nothing(self, store: Storage) -> None:
        writer = store.writer("body")
        writer.write(b"x" * 100_000)
        writer.abort()
        writer.abort()
        assert list(store.names()) == []
        put(store, "body", b"again")
        assert read_all(store, "body") == b"again"

    def test_a_name_is_written_once(self, store: Storage) -> None:
        early = store.writer("body")
        early.write(b"early")
        put(store, "body", b"first")
        with pytest.raises(StorageFault):
            early.commit()
        with pytest.raises(StorageFault):
            put(store, "body", b"second")
        assert read_all(store, "body") == b"first"

    def test_of_many_writers_of_one_name_one_wins(self, store: Storage) -> None:
        outcomes: list[str] = []
        writers = [store.writer("body") for _ in range(8)]
        start = threading.Barrier(len(writers))

        def commit(number: int) -> None:
            writers[number].write(b"%d" % number)
            start.wait()
            try:
                writers[number].commit()
                outcomes.append(str(number))
            except StorageFault:
                pass

        threads = [threading.Thread(target=commit, args=(number,)) for number in range(len(writers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 1
        assert read_all(store, "body").decode() == outcomes[0]

    def test_delete_is_idempotent(self, store: Storage) -> None:
        put(store, "body", b"data")
        store.delete("body")
        store.delete("body")
        store.delete("never-was")
        assert list(store.names()) == []
        with pytest.raises(MissingFault):
            store.open("body")

    def test_reads_at_any_offset_and_short_only_at_the_end(self, store: Storage) -> None:
        data = secrets.token_bytes(300_000)
        put(store, "body", data)
        body = store.open("body")
        for offset, length in ((0, 1), (1, 65_536), (299_999, 10), (300_000, 5), (400_000, 5), (150_000, 150_000)):
            target = bytearray(length)
            count = body.pread_into(target, offset)
            assert count == max(0, min(length, len(data) - offset))
            assert target[:count] == data[offset : offset + count]
        body.close()
        body.close()

    def test_many_threads_read_one_body(self, store: Storage) -> None:
        data = secrets.token_bytes(1_000_000)
        put(store, "body", data)
        body = store.open("body")
        wrong: list[int] = []

        def read(seed: int) -> None:
            target = bytearray(10_000)
            for step in range(50):
                offset = (seed * 7919 + step * 104_729) % 990_000
                if body.pread_into(target, offset) != 10_000 or target != data[offset : offset + 10_000]:
                    wrong.append(offset)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        body.close()
        assert wrong == []

    @pytest.mark.parametrize(
        "name",
        ["", ".", "..", ".hidden", "../out", "a/b", "/etc/passwd", "a\0b", "Upper", "å", "x" * 201, "a\n"],
    )
    def test_names_from_outside_the_rules_are_refused(self, store: Storage, name: str) -> None:
        for use in (store.writer, store.open, store.size, store.delete):
            with pytest.raises(InputFault):
                use(name)
        assert list(store.names()) == []

    @pytest.mark.parametrize("name", ["a", "0", "_-.", "3f.seal", "x" * 200])
    def test_names_within_the_rules_are_taken(self, store: Storage, name: str) -> None:
        put(store, name, b"data")
        assert list(store.names()) == [name]

    def test_a_sweep_touches_neither_bodies_nor_living_writers(self, store: Storage) -> None:
        put(store, "body", b"data")
        writer = store.writer("living")
        writer.write(b"x" * 3_000_000)
        assert store.sweep() == 0
        writer.commit()
        assert store.sweep() == 0
        assert read_all(store, "body") == b"data"
        assert read_all(store, "living") == b"x" * 3_000_000

    def test_a_writer_that_ended_takes_and_makes_nothing(self, store: Storage) -> None:
        aborted = store.writer("body")
        aborted.write(b"early")
        aborted.abort()
        with pytest.raises(StorageFault):
            aborted.write(b"late")
            aborted.commit()
        assert list(store.names()) == []
        done = store.writer("body")
        done.write(b"data")
        done.commit()
        done.abort()
        assert read_all(store, "body") == b"data"

    def test_an_open_body_never_gives_the_bytes_of_another(self, store: Storage) -> None:
        """After its name was deleted and written anew, an open body gives its own bytes still, or a fault."""
        put(store, "body", b"a" * 1000)
        body = store.open("body")
        store.delete("body")
        put(store, "body", b"b" * 1000)
        target = bytearray(1000)
        try:
            count = body.pread_into(target, 0)
        except (StorageFault, MissingFault):
            count = 0
        assert bytes(target[:count]) == b"a" * count
        body.close()
        assert read_all(store, "body") == b"b" * 1000

    def test_usage_and_place(self, store: Storage) -> None:
        assert store.usage().used == 0
        put(store, "one", b"x" * 1000)
        put(store, "two", b"x" * 500)
        usage = store.usage()
        assert usage.used == 1500
        assert usage.free is None or usage.free >= 0
        assert store.place.country
        assert store.place.unit


class FullStorageContract:
    """Every test gets a `small_store` that has room for about 2 MiB."""

    def test_a_full_medium_is_a_full_fault_and_loses_nothing(self, small_store: Storage) -> None:
        put(small_store, "kept", b"k" * 500_000)
        writer = small_store.writer("large")
        with pytest.raises(FullFault):
            for _ in range(64):
                writer.write(b"x" * 262_144)
            writer.commit()
        writer.abort()
        assert list(small_store.names()) == ["kept"]
        assert read_all(small_store, "kept") == b"k" * 500_000
        put(small_store, "after", b"a" * 500_000)
        assert sorted(small_store.names()) == ["after", "kept"]
