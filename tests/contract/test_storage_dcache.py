"""The dCache store against the storage contract, on real XRootD: HTTPS, macaroons, third-party copy.

XRootD speaks dCache's WebDAV, but has no REST interface for tapes: for that part there is a small server here which
speaks it as dCache documents it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.peers.dcache_rest import tape_server
from tests.peers.lying import (
    Asked,
    Forward,
    Lie,
    Proxy,
    Reply,
    changes_sent,
    cut,
    drops,
    fails,
    loses,
    says,
    stores_nothing,
)
from tests.peers.xrootd import Pair, Server, canonical, keeps_half, small_disk
from valv.errors import ConfigFault, FullFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.contract.storage import FullStorageContract, StorageContract, put, read_all
from valv.ports.storage import Locality, Place, Pulls, Tape
from valv.storage import dcache, dcache_door, dcache_pull
from valv.storage.dcache import DcacheStorage, DcacheTapeStorage, connect
from valv.storage.dcache_body import DcacheBody
from valv.storage.dcache_door import adler_of
from valv.storage.dcache_line import for_origin
from valv.storage.local import LocalStorage

PLACE = Place("SE", "test")


def fresh_path() -> str:
    return f"test-{secrets.token_hex(6)}"


def store_at(server: Server, folder: Path, token: str = "", path: str = "") -> DcacheStorage:
    return connect(server.settings(folder, path or fresh_path(), token), Path("/"), PLACE)


class TestDcache(StorageContract, FullStorageContract):
    @pytest.fixture
    def store(self, xrootd: Pair, tmp_path: Path) -> DcacheStorage:
        return store_at(xrootd.one, tmp_path)

    @pytest.fixture
    def small_store(self, xrootd: Pair, tmp_path: Path) -> Iterator[DcacheStorage]:
        if os.geteuid() != 0:
            pytest.skip("mounting a small tmpfs needs root")
        path = fresh_path()
        try:
            with small_disk(xrootd.one, path):
                yield store_at(xrootd.one, tmp_path, path=path)
        except OSError as error:
            pytest.skip(f"a small tmpfs cannot be mounted: {error}")

    def test_an_upload_that_died_is_swept_and_a_living_one_is_not(
        self, xrootd: Pair, tmp_path: Path, store: DcacheStorage
    ) -> None:
        script = (
            "import sys; from pathlib import Path; from valv.config import Storage; from valv.ports.storage import "
            "Place; from valv.storage.dcache import connect; url, path, token, ca = sys.argv[1:]; "
            "s = connect(Storage(url=url, path=path, credentials=token, ca=ca), Path('/'), Place('SE', 'test')); "
            "w = s.writer('killed'); w.write(b'x' * 3000000); print('written', flush=True); sys.stdin.read()"
        )
        path = fresh_path()
        told = xrootd.one.settings(tmp_path, path)
        child = subprocess.Popen(
            [sys.executable, "-c", script, told.url, told.path, told.credentials, told.ca],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        store = connect(told, Path("/"), PLACE)
        living = store.writer("living")
        living.write(b"x" * 3_000_000)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert store.sweep() == 0  # it could be alive, for all that the server tells
        store._dead = 0.0
        assert store.sweep() == 1
        assert store.sweep() == 0
        living.commit()
        assert list(store.names()) == ["living"]
        put(store, "killed", b"again")

    def test_what_an_interrupted_delete_leaves_is_swept(
        self, store: DcacheStorage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(store, "body", b"data")
        with monkeypatch.context() as patch:
            patch.setattr(store, "_drop", lambda path: False)
            store.delete("body")
        assert list(store.names()) == []
        assert store.sweep() == 1

    def test_a_large_body_is_read_in_pieces_by_one_connection(self, store: DcacheStorage) -> None:
        data = secrets.token_bytes(5_000_000)
        put(store, "body", data)
        body = store.open("body")
        found, block = bytearray(), bytearray(300_000)
        while count := body.pread_into(block, len(found)):
            found += block[:count]
        body.close()
        assert found == data


class TestServer:
    """What was seen of XRootD 5.5.3, as far as a client is concerned."""

    def test_move_overwrites_a_file_whatever_it_is_told_but_not_a_folder(self, xrootd: Pair, tmp_path: Path) -> None:
        store = store_at(xrootd.one, tmp_path)
        door = store._door
        put(store, "first", b"first")
        door.make_folder("raw/")
        for name in ("one", "two"):
            put(store, name, name.encode())
        move = {"Overwrite": "F"}
        answer = door.ask("MOVE", store.path("one"), {**move, "Destination": door.url(store.path("two"))})
        assert answer.status_code == 201
        assert read_all(store, "two") == b"one"  # so a file's name is not safe,
        assert store._move(_folder("two"), _folder("first")) >= 400
        assert read_all(store, "first") == b"first"  # and a folder's is

    def test_lower_case_length_stores_nothing_and_says_yes(self, xrootd: Pair, tmp_path: Path) -> None:
        store = store_at(xrootd.one, tmp_path)
        door = store._door
        door.make_folder("raw/")
        line = door.new_line(door.url("raw/lower"))
        line.start("PUT", door.url("raw/lower"), {**door.headers(), "content-length": "4"})
        line.send_whole(memoryview(b"data"))
        assert line.answer().status == 200
        line.close()
        assert door.stat("raw/lower", "lower").size == 0
        with pytest.raises(StorageFault, match="0 bytes of 4"):
            store._compare("raw/lower", "lower", 4, "0400019b")

    def test_a_path_without_a_slash_opens_what_begins_the_same_and_ours_has_one(
        self, xrootd: Pair, tmp_path: Path
    ) -> None:
        store = store_at(xrootd.one, tmp_path)
        put(store, "body", b"data")
        ticket = dcache_pull.lend(store._door, _folder("body"), 4)
        assert ticket is not None
        shown = base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))
        assert re.search(rb"cid path:/data/[^\n]*/body/\n", shown)
        assert re.search(rb"cid activity:DOWNLOAD\n", shown)
        assert re.search(rb"cid before:", shown)
        narrow = store_at(xrootd.one, tmp_path, ticket, store._door.base.removeprefix("/data/").strip("/"))
        put(store, "bodyx", b"data")
        assert narrow._door.stat(store.path("body"), "body").size == 4
        target = bytearray(4)
        assert DcacheBody(narrow._door, store.path("body"), "body", 4).pread_into(target, 0) == 4
        assert target == b"data"
        with pytest.raises(StorageFault, match="refuses the token"):
            narrow._door.stat(store.path("bodyx"), "bodyx")
        with pytest.raises(StorageFault, match="refuses the token"):
            narrow.delete("body")

    def test_another_digest_than_was_asked_for_is_known_by_its_name(self, xrootd: Pair, tmp_path: Path) -> None:
        store = store_at(xrootd.one, tmp_path)
        put(store, "body", b"data")
        answer = store._door.ask("HEAD", store.path("body"), {"Want-Digest": "crc32c"})
        assert answer.headers["Digest"] == "adler32=0400019b"
        assert adler_of("crc32c=0400019b") == ""
        assert adler_of("md5=abc=,ADLER32=400019B") == "0400019b"


def _folder(name: str) -> str:
    return f"bodies/{hashlib.sha256(name.encode()).hexdigest()[:2]}/{name}/"


class TestPull:
    def test_a_body_goes_from_server_to_server(self, xrootd: Pair, tmp_path: Path) -> None:
        source, target = store_at(xrootd.one, tmp_path), store_at(xrootd.two, tmp_path)
        assert isinstance(target, Pulls)
        data = secrets.token_bytes(3_000_000)
        put(source, "body", data)
        assert target.pull("body", source)
        assert read_all(target, "body") == data
        assert list(target.names()) == ["body"]
        assert target._door.list("new/") == []
        with pytest.raises(StorageFault, match="exists already"):
            target.pull("body", source)
        with pytest.raises(MissingFault):
            target.pull("other", source)

    def test_another_kind_of_store_cannot(self, xrootd: Pair, tmp_path: Path) -> None:
        target = store_at(xrootd.two, tmp_path)
        assert not target.pull("body", LocalStorage(tmp_path / "local", PLACE))

    def test_a_copy_that_fails_is_told_201_and_is_a_failure(
        self, xrootd: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = store_at(xrootd.one, tmp_path), store_at(xrootd.two, tmp_path)
        put(source, "body", b"data")
        monkeypatch.setattr(dcache, "lend", lambda *_: "no-macaroon")
        with pytest.raises(StorageFault, match="copy between the stores failed"):
            target.pull("body", source)
        assert list(target.names()) == []
        assert target._door.list("new/") == []

    def test_other_bytes_than_the_source_has_are_found(
        self, xrootd: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = store_at(xrootd.one, tmp_path), store_at(xrootd.two, tmp_path)
        put(source, "body", b"data")
        put(source, "other", b"atad")
        real = dcache.copy
        monkeypatch.setattr(dcache, "lend", lambda *_: xrootd.one.macaroon())
        monkeypatch.setattr(
            dcache,
            "copy",
            lambda door, path, name, _, ticket: real(door, path, name, source._door.url(source.path("other")), ticket),
        )
        with pytest.raises(StorageFault, match="other bytes"):
            target.pull("body", source)
        assert list(target.names()) == []

    def test_only_the_last_line_counts(self) -> None:
        assert dcache_pull._verdict("success: Created", "x") is None
        for last in ("", "End", "Perf Marker", "failure: Remote side failed with status code 404"):
            assert isinstance(dcache_pull._verdict(last, "x"), StorageFault)
        assert isinstance(dcache_pull._verdict("failure: No space left on device", "x"), FullFault)


@pytest.fixture
def lied(xrootd: Pair, tmp_path: Path) -> Iterator[tuple[DcacheStorage, Proxy]]:
    """A store behind a proxy that can be told to lie. Plain HTTP, which XRootD speaks on the same port."""
    with canonical(xrootd.one.port) as proxy:
        told = replace(xrootd.one.settings(tmp_path, fresh_path()), url=proxy.url)
        yield connect(told, Path("/"), PLACE), proxy


class TestLies:
    def test_an_honest_proxy_is_no_difference(self, lied: tuple[DcacheStorage, Proxy]) -> None:
        store, _ = lied
        data = secrets.token_bytes(2_000_000)
        put(store, "body", data)
        assert read_all(store, "body") == data
        assert list(store.names()) == ["body"]

    @pytest.mark.parametrize("size", [1000, 3_000_000])
    @pytest.mark.parametrize(
        ("lie", "said"),
        [
            (stores_nothing(201), "has nothing of it"),
            (changes_sent(500), "other bytes"),
            (keeps_half(), "bytes of"),
        ],
    )
    def test_what_the_server_says_of_a_body_is_not_believed(
        self, lied: tuple[DcacheStorage, Proxy], lie: Lie, said: str, size: int
    ) -> None:
        store, proxy = lied
        proxy.lie(lie, "PUT")
        with pytest.raises(StorageFault, match=said):
            put(store, "body", secrets.token_bytes(size))
        assert proxy.told == 1
        assert list(store.names()) == []
        assert store._door.list("new/") == []
        put(store, "body", b"again")
        assert read_all(store, "body") == b"again"

    def test_a_server_without_digests_is_read_back(self, lied: tuple[DcacheStorage, Proxy]) -> None:
        store, proxy = lied
        proxy.lie(says(digest="md5=abc="), "HEAD", times=99)
        put(store, "good", b"x" * 1000)
        proxy.lie(changes_sent(500), "PUT")
        with pytest.raises(StorageFault, match="other bytes"):
            put(store, "bad", b"x" * 1000)
        assert list(store.names()) == ["good"]

    def test_a_read_that_breaks_off_goes_on_where_it_was(self, lied: tuple[DcacheStorage, Proxy]) -> None:
        store, proxy = lied
        data = secrets.token_bytes(500_000)
        put(store, "body", data)
        proxy.lie(cut(123_456), "GET")
        proxy.lie(drops(), "GET")
        proxy.lie(fails(503), "GET")
        assert read_all(store, "body") == data
        assert proxy.told == 3

    def test_a_server_that_always_breaks_off_is_unreachable(self, lied: tuple[DcacheStorage, Proxy]) -> None:
        store, proxy = lied
        put(store, "body", b"x" * 1000)
        proxy.lie(drops(), "GET", times=99)
        with pytest.raises(UnreachableFault):
            read_all(store, "body")

    def test_a_range_of_a_body_of_another_size_is_refused(self, lied: tuple[DcacheStorage, Proxy]) -> None:
        store, proxy = lied
        put(store, "body", b"x" * 1000)
        body = store.open("body")
        proxy.lie(says(content_range="bytes 10-19/999"), "GET")
        with pytest.raises(StorageFault, match="another size"):
            body.pread_into(bytearray(10), 10)
        body.close()

    def test_an_upload_that_breaks_off_leaves_nothing(self, lied: tuple[DcacheStorage, Proxy]) -> None:
        store, proxy = lied
        proxy.lie(drops(), "PUT")
        with pytest.raises(UnreachableFault):
            put(store, "large", secrets.token_bytes(3_000_000))
        proxy.lie(drops(), "PUT")
        put(store, "small", b"sent again")
        assert list(store.names()) == ["small"]
        assert store._door.list("new/") == []

    @pytest.mark.parametrize("method", ["MOVE", "MKCOL", "DELETE"])
    def test_an_answer_that_is_lost_is_no_harm(self, lied: tuple[DcacheStorage, Proxy], method: str) -> None:
        store, proxy = lied
        proxy.lie(loses(), method)
        put(store, "body", b"data")
        assert read_all(store, "body") == b"data"
        store.delete("body")
        assert proxy.told == 1
        assert list(store.names()) == []

    def test_a_token_does_not_follow_a_redirection_to_another_server(
        self, lied: tuple[DcacheStorage, Proxy], xrootd: Pair
    ) -> None:
        """As dCache sends a body to a pool: there the address itself opens it."""
        store, proxy = lied
        data = secrets.token_bytes(2_000_000)
        put(store, "first", data)

        def to_pool(asked: Asked, forward: Forward) -> Reply:
            token = asked.headers["authorization"].removeprefix("Bearer ")
            where = f"{xrootd.one.url}{asked.path}?authz=Bearer%20{token}"
            return Reply(307, {"location": where})

        proxy.lie(to_pool, "GET", times=9)
        assert read_all(store, "first") == data
        assert for_origin({"Authorization": "x", "Range": "y"}, proxy.url, xrootd.one.url) == {"Range": "y"}

    def test_a_redirection_out_of_tls_is_not_followed(self, lied: tuple[DcacheStorage, Proxy]) -> None:
        store, proxy = lied
        put(store, "body", b"data")
        proxy.lie(lambda asked, forward: Reply(307, {"location": "http://pool.example.org/x"}), "GET")
        with pytest.raises(StorageFault, match="without TLS"):
            read_all(store, "body")


class TestToken:
    def test_a_wrong_token_is_told_and_never_shown(self, xrootd: Pair, tmp_path: Path) -> None:
        secret = "MDAwTHIS-IS-NO-MACAROON"
        store = store_at(xrootd.one, tmp_path, secret)
        for use in (store.size, store.open, store.writer, store.delete):
            with pytest.raises(StorageFault, match="refuses the token") as raised:
                use("body")
            assert secret not in str(raised.value)
        assert secret not in repr(store._door) + repr(store._door.token) + repr(store)

    def test_a_token_that_expired_or_may_not_write(self, xrootd: Pair, tmp_path: Path) -> None:
        old = store_at(xrootd.one, tmp_path, xrootd.one.macaroon("/data/", "LIST", seconds=1))
        reader = store_at(xrootd.one, tmp_path, xrootd.one.macaroon("/data/", "LIST", "DOWNLOAD"))
        assert list(reader.names()) == []
        with pytest.raises(StorageFault, match="refuses the token"):
            reader.writer("body")
        time.sleep(2)
        with pytest.raises(StorageFault, match="refuses the token"):
            list(old.names())

    def test_a_new_token_is_taken_at_once(self, xrootd: Pair, tmp_path: Path) -> None:
        told = xrootd.one.settings(tmp_path, fresh_path(), "wrong")
        store = connect(told, Path("/"), PLACE)
        with pytest.raises(StorageFault):
            store.size("body")
        Path(told.credentials).write_text(xrootd.one.macaroon())
        put(store, "body", b"data")

    def test_a_file_that_others_can_read_is_refused(self, xrootd: Pair, tmp_path: Path) -> None:
        told = xrootd.one.settings(tmp_path, fresh_path())
        Path(told.credentials).chmod(0o644)
        with pytest.raises(ConfigFault, match="chmod 600"):
            connect(told, Path("/"), PLACE)

    @pytest.mark.parametrize(
        "url", ["http://dcache.example.org:2880", "ftp://x", "", "https://u:p@host", "https://h/?a"]
    )
    def test_only_tls_and_a_plain_address(self, xrootd: Pair, tmp_path: Path, url: str) -> None:
        told = replace(xrootd.one.settings(tmp_path, fresh_path()), url=url)
        with pytest.raises(ConfigFault):
            connect(told, Path("/"), PLACE)

    def test_a_server_of_an_unknown_authority_is_not_spoken_to(
        self, xrootd: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dcache_door, "_BACKOFF", 0.01)
        told = replace(xrootd.one.settings(tmp_path, fresh_path()), ca="")
        with pytest.raises(UnreachableFault, match="certificate"):
            connect(told, Path("/"), PLACE).size("body")


class TestTape:
    """Against a server of our own that speaks the documented REST interface; no XRootD has it."""

    def test_staging_and_how_far_it_is(self, tmp_path: Path) -> None:
        with tape_server() as server:
            store = connect(server.settings(tmp_path), Path("/"), PLACE)
            assert isinstance(store, Tape)
            path = f"/data/vault/{_folder('body')}3f"
            server.localities[path] = "NEARLINE"
            assert store.locality("body") is Locality.NEARLINE
            store.stage(["body"])
            assert server.staged == [{"path": path, "diskLifetime": "P7D"}]
            assert store.locality("body") is Locality.NEARLINE
            server.arrive()
            assert store.locality("body") is Locality.ONLINE

    @pytest.mark.parametrize(
        ("told", "meant"),
        [
            ("ONLINE", Locality.ONLINE),
            ("ONLINE_AND_NEARLINE", Locality.ONLINE),
            ("NEARLINE", Locality.NEARLINE),
            ("UNAVAILABLE", Locality.UNAVAILABLE),
            ("NONE", Locality.UNAVAILABLE),
            ("LOST", Locality.LOST),
        ],
    )
    def test_what_the_server_calls_it(self, tmp_path: Path, told: str, meant: Locality) -> None:
        with tape_server() as server:
            server.localities[f"/data/vault/{_folder('body')}3f"] = told
            store = connect(server.settings(tmp_path), Path("/"), PLACE)
            assert isinstance(store, DcacheTapeStorage)
            assert store.locality("body") is meant
            with pytest.raises(MissingFault):
                store.locality("other")

    def test_the_door_says_where_the_interface_is(self, tmp_path: Path) -> None:
        with tape_server() as door, tape_server() as frontend:
            door.endpoint = f"{frontend.url}/api/v1/tape"
            frontend.token = door.token
            door.localities[f"/data/vault/{_folder('body')}3f"] = "ONLINE"
            frontend.localities[f"/data/vault/{_folder('body')}3f"] = "LOST"
            store = connect(door.settings(tmp_path), Path("/"), PLACE)
            assert isinstance(store, DcacheTapeStorage)
            assert store.locality("body") is Locality.LOST

    def test_a_disk_store_is_none(self, xrootd: Pair, tmp_path: Path) -> None:
        assert not isinstance(store_at(xrootd.one, tmp_path), Tape)
