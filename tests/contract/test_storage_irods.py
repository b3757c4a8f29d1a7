"""The iRODS store: the whole contract where there is a server (`VALV_TEST_IRODS` names its environment file), and
always what recorded exchanges with a real server allow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("irods", reason="the Python package python-irodsclient is not installed")

from irods.password_obfuscation import encode

from tests.peers.irods_replay import CONTENT, Replay, replaying
from valv.config import Storage as Settings
from valv.errors import ConfigFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.contract.storage import StorageContract, put
from valv.ports.storage import Place
from valv.storage import irods
from valv.storage.irods import IrodsStorage, connect

PLACE = Place("SE", "test")
ROOT = Path(__file__).parent.parent.parent
CONNECT = "connect+native auth"


@pytest.mark.may_skip
class TestServer(StorageContract):
    """On a real zone. Its folder is removed afterwards."""

    @pytest.fixture
    def store(self) -> Iterator[IrodsStorage]:
        named = os.environ.get("VALV_TEST_IRODS", "")
        if not named:
            pytest.skip("VALV_TEST_IRODS does not name the environment file of an iRODS server")
        settings = Settings(backend="irods", credentials=named, path=f"valv-test-{secrets.token_hex(6)}")
        made = connect(settings, Path("/"), PLACE)
        try:
            yield made
        finally:
            made.ask(lambda session: session.collections.remove(made._base, force=True), "the end of a test")
            made.reset()

    def test_an_upload_that_died_is_swept_and_a_living_one_is_not(self, store: IrodsStorage) -> None:
        store._dead = 0.0
        living = store.writer("living")
        living.write(b"alive")
        dead = store.writer("dead")
        dead.write(b"x" * 100_000)
        dead._file.close()
        store.forget(dead._path)
        assert store.sweep() == 1
        living.commit()
        assert list(store.names()) == ["living"]

    def test_a_body_tells_what_it_is(self, store: IrodsStorage) -> None:
        put(store, "body", b"data")
        found = store.ask(lambda session: session.data_objects.get(store._final("body")), "body")
        described = {one.name: (one.value, one.units) for one in found.metadata.items()}
        assert described["valv.name"] == ("body", None)
        assert described["valv.size"] == ("4", "bytes")
        assert described["valv.sha256"] == (hashlib.sha256(b"data").hexdigest(), "hex")


@pytest.fixture(scope="module")
def recordings() -> dict[str, Any]:
    file = Path(os.environ.get("VALV_TEST_IRODS_WIRE", ROOT.parent / "shared" / "peers" / "irods" / "wire_ops.json"))
    if not file.is_file():
        pytest.skip(f"the recorded exchanges with an iRODS server are absent: {file}")
    return dict(json.loads(file.read_text("utf-8")))


def environment(folder: Path, port: int, **more: Any) -> Path:
    """An environment file and, beside it, a password file, as the iRODS client writes them."""
    file, secret = folder / "irods_environment.json", folder / ".irodsA"
    for path in (file, secret):
        path.touch(mode=0o600)
    settings = {
        "irods_host": "127.0.0.1",
        "irods_port": port,
        "irods_user_name": "rods",
        "irods_zone_name": "tempZone",
        "irods_client_server_policy": "CS_NEG_REFUSE",
    }
    file.write_text(json.dumps(settings | more))
    secret.write_text(encode("correct horse", uid=os.getuid()))
    return file


Start = Callable[..., tuple[IrodsStorage, Replay]]


@pytest.fixture
def start(recordings: dict[str, Any], tmp_path: Path) -> Iterator[Start]:
    """A store whose server replays these operations; connecting is recorded as often as needed."""
    with contextlib.ExitStack() as stack:

        def begin(*operations: str) -> tuple[IrodsStorage, Replay]:
            replay = stack.enter_context(replaying(recordings, *[CONNECT] * 4, *operations))
            file = environment(tmp_path, replay.port)
            store = connect(Settings(backend="irods", credentials=str(file), path="wire"), Path("/"), PLACE)
            stack.callback(store.reset)
            return store, replay

        yield begin


def without_queries(recordings: dict[str, Any], operation: str) -> dict[str, Any]:
    """The recorded operation without its queries, which depend on what the client's own `put` looks at first."""
    kept, skip = [], False
    for message in recordings[operation]["wire"]:
        if message[0] == ">":
            skip = message[2] == "GEN_QUERY_AN"
        if not skip:
            kept.append(message)
    return {operation: {"wire": kept}}


def load_commit(replay: Replay, recordings: dict[str, Any]) -> None:
    replay.load(without_queries(recordings, "put small"), "put small")
    replay.load(without_queries(recordings, "avu atomic"), "avu atomic")
    replay.load(recordings, "coll.create", "chksum", "get object", "coll.create", "move")


def test_size_and_a_body_that_is_missing(start: Start) -> None:
    store, replay = start("get object", "get missing")
    assert store.size("body") == 1000
    with pytest.raises(MissingFault):
        store.size("other")
    assert not replay.strange


def test_a_range_is_read_by_seeking_in_the_good_replica(start: Start, recordings: dict[str, Any]) -> None:
    store, replay = start("get object", "open/seek/read/close")
    body = store.open("body")
    assert body.size == 1000
    target = bytearray(10)
    assert body.pread_into(target, 500) == 10
    assert target == CONTENT[500:510]
    assert body.pread_into(bytearray(10), 1000) == 0
    body.close()
    (opened,) = [text for kind, text in replay.asked if kind == "DATA_OBJ_OPEN_AN"]
    assert "<keyWord>replNum</keyWord>" in opened
    assert not replay.strange


def test_a_body_is_checked_described_and_renamed(start: Start, recordings: dict[str, Any]) -> None:
    store, replay = start("get missing")
    load_commit(replay, recordings)
    put(store, "body", CONTENT)
    assert replay.written == CONTENT
    order = [kind for kind, _ in replay.asked if kind not in ("GEN_QUERY_AN", "COLL_CREATE_AN", "DATA_OBJ_LSEEK_AN")]
    assert order[-6:] == [
        "DATA_OBJ_OPEN_AN",
        "DATA_OBJ_WRITE_AN",
        "DATA_OBJ_CLOSE_AN",
        "DATA_OBJ_CHKSUM_AN",
        "ATOMIC_APPLY_METADATA_OPERATIONS_APN",
        "DATA_OBJ_RENAME_AN",
    ]
    renamed = replay.asked[-1][1]
    assert "/tempZone/home/rods/wire/new/" in renamed
    assert f"/bodies/{hashlib.sha256(b'body').hexdigest()[:2]}/body<" in renamed
    assert not replay.strange


def test_other_bytes_on_the_server_are_found_and_removed(start: Start, recordings: dict[str, Any]) -> None:
    store, replay = start("get missing")
    load_commit(replay, recordings)
    replay.load(recordings, "unlink")
    writer = store.writer("body")
    writer.write(b"x" * 1000)  # the recorded server then tells the checksum of what it got in its day
    with pytest.raises(StorageFault, match="other bytes"):
        writer.commit()
    assert replay.count("DATA_OBJ_RENAME_AN") == 0
    assert replay.count("DATA_OBJ_UNLINK_AN") == 1


@pytest.mark.parametrize("status", ["0", "2"])
def test_a_stale_replica_and_one_being_written_are_not_read(
    start: Start, recordings: dict[str, Any], status: str
) -> None:
    altered = json.loads(json.dumps(recordings["get object"]))
    reply = altered["wire"][3]
    good = "<attriInx>413</attriInx>\n<reslen>57</reslen>\n<value>1</value>"
    assert good in reply[5]
    reply[5] = reply[5].replace(good, good.replace("<value>1<", f"<value>{status}<"))
    store, replay = start()
    replay.load({"get object": altered}, "get object")
    with pytest.raises(StorageFault, match="no replica is good"):
        store.open("body")
    assert replay.count("DATA_OBJ_OPEN_AN") == 0


def test_delete(start: Start) -> None:
    store, replay = start("unlink")
    store.delete("body")
    assert "forceFlag" in replay.asked[-1][1]
    assert not replay.strange


def test_a_server_that_hangs_up_is_unreachable(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(irods, "_BACKOFF", 0.01)
    store, replay = start()
    with pytest.raises(UnreachableFault):
        store.size("body")
    assert replay.count("GEN_QUERY_AN") == 4


def test_bodies_travel_over_tls_only(tmp_path: Path) -> None:
    file = environment(tmp_path, 1247, irods_host="irods.example.org")
    with pytest.raises(ConfigFault, match="TLS"):
        connect(Settings(backend="irods", credentials=str(file)), Path("/"), PLACE)


def test_a_server_without_a_named_authority_is_verified(tmp_path: Path) -> None:
    file = environment(
        tmp_path,
        1247,
        irods_host="irods.example.org",
        irods_client_server_policy="CS_NEG_REQUIRE",
        irods_ssl_verify_server="none",
    )
    account = irods.read_environment(file, None)
    assert account["ssl_context"].check_hostname
    assert account["ssl_context"].verify_mode.name == "CERT_REQUIRED"
    assert account["irods_client_server_policy"] == "CS_NEG_REQUIRE"


@pytest.mark.parametrize("name", ["irods_environment.json", ".irodsA"])
def test_credentials_that_others_can_read_are_refused(tmp_path: Path, name: str) -> None:
    file = environment(tmp_path, 1247)
    (tmp_path / name).chmod(0o640)
    with pytest.raises(ConfigFault, match="chmod 600"):
        connect(Settings(backend="irods", credentials=str(file)), Path("/"), PLACE)


def test_no_secret_is_shown(start: Start) -> None:
    store, _ = start()
    assert "correct horse" not in repr(store)
    with pytest.raises(UnreachableFault) as raised:
        store.size("body")
    assert "correct horse" not in str(raised.value)
