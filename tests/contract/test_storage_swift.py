"""The Swift store against the storage contract on a real Swift, and what only a server that lies or stops can show."""

from __future__ import annotations

import hashlib
import json
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.peers import lying as lies
from tests.peers.swift import Swift
from valv.errors import ConfigFault, MissingFault, StorageFault, UnreachableFault
from valv.ports.contract.storage import FullStorageContract, StorageContract, put, read_all
from valv.ports.storage import Place
from valv.storage.swift import SwiftStorage, connect

PLACE = Place("SE", "test")
SEGMENT = 1 << 20


def made(swift: Swift, container: str, url: str = "", **more) -> SwiftStorage:
    """`url`: of a proxy before the server."""
    file = swift.written("proxied.toml", url, swift.key) if url else swift.credentials
    path = more.pop("path", "")
    settings = swift.settings(container, credentials=str(file), path=path)
    return SwiftStorage(settings, swift.folder, PLACE, **({"segment": SEGMENT, "pause": 0.01} | more))


@pytest.fixture
def proxy(swift: Swift) -> Iterator[lies.Proxy]:
    with lies.lying("127.0.0.1", swift.ports["proxy"]) as proxy:
        yield proxy


@pytest.fixture
def lied(swift: Swift, proxy: lies.Proxy) -> SwiftStorage:
    """A store behind the proxy, which asks three times at the most."""
    return made(swift, swift.container(), proxy.url, attempts=3)


class TestSwift(StorageContract, FullStorageContract):
    @pytest.fixture
    def store(self, swift: Swift) -> SwiftStorage:
        return made(swift, swift.container(), path="a/store")

    @pytest.fixture
    def small_store(self, swift: Swift) -> SwiftStorage:
        return made(swift, swift.container(quota=2 << 20))


@pytest.mark.parametrize("size", [SEGMENT, SEGMENT + 1, 2 * SEGMENT, 7 * SEGMENT + 12_345])
def test_a_body_of_segments_comes_back_and_goes_with_them(swift: Swift, size: int) -> None:
    store = made(swift, swift.container(), fan=3)  # so that there are manifests of manifests of manifests
    data = secrets.token_bytes(size)
    put(store, "body", data)
    assert read_all(store, "body") == data
    assert store.size("body") == store.usage().used == size
    body, target = store.open("body"), bytearray(100_000)
    assert body.pread_into(target, SEGMENT - 50_000) == min(100_000, size - SEGMENT + 50_000)
    assert bytes(target[: size - SEGMENT + 50_000]) == data[SEGMENT - 50_000 : SEGMENT + 50_000]
    store.delete("body")
    assert list(store._listed("")) == []


def test_of_many_large_writers_of_one_name_one_wins(swift: Swift) -> None:
    store = made(swift, swift.container())
    writers = [store.writer("body") for _ in range(4)]
    outcomes: list[int] = []

    def commit(number: int) -> None:
        try:
            writers[number].commit()
            outcomes.append(number)
        except StorageFault:
            pass

    for number, writer in enumerate(writers):
        writer.write(bytes([number]) * (SEGMENT + 1 if number % 2 else 1000))  # of both kinds
    threads = [threading.Thread(target=commit, args=(number,)) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert set(read_all(store, "body")) == {outcomes[0]}
    store.delete("body")
    assert list(store._listed("")) == []


def test_a_listing_of_several_pages(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valv.storage.swift.PAGE", 3)
    store = made(swift, swift.container())
    for number in range(10):
        put(store, f"body-{number}", b"x")
    assert sorted(store.names()) == [f"body-{number}" for number in range(10)]


def test_a_killed_writer_is_swept_and_a_living_one_is_not(swift: Swift) -> None:
    container = swift.container()
    script = (
        "import sys; from pathlib import Path; from valv.config import Storage; from valv.ports.storage import Place; "
        "from valv.storage.swift import SwiftStorage; container, file = sys.argv[1:]; "
        "store = SwiftStorage(Storage(bucket=container, path='', credentials=file), Path('/'), Place('SE', 't'), "
        f"segment={SEGMENT}); w = store.writer('killed'); w.write(b'x' * {2 * SEGMENT + 1}); w._await(1); "
        "print('written', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, container, str(swift.credentials)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    store, impatient = made(swift, container), made(swift, container, stale=-5.0)
    put(impatient, "whole", b"w" * (2 * SEGMENT))
    living = impatient.writer("living")
    living.write(b"l" * (2 * SEGMENT))
    assert list(store.names()) == ["whole"]
    assert store.sweep() == 0  # nobody can tell yet whether it lives
    assert impatient.sweep() == 1
    assert impatient.sweep() == 0
    living.commit()
    assert read_all(store, "living") == b"l" * (2 * SEGMENT)
    assert read_all(store, "whole") == b"w" * (2 * SEGMENT)
    put(store, "killed", b"again")


def test_a_claim_that_was_left_behind_is_swept(swift: Swift, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valv.storage.swift_write.CLAIM_SECONDS", 0.3)
    container = swift.container()
    store = made(swift, container)
    store._session.ask("PUT", f"{container}/claims/body/0")
    with pytest.raises(StorageFault, match="another writer"):
        put(store, "body", b"data")
    assert store.sweep() == 0
    assert made(swift, container, stale=-5.0).sweep() == 1
    put(store, "body", b"data")


def test_a_token_that_has_expired_is_renewed(swift: Swift) -> None:
    store = made(swift, swift.container())
    data = secrets.token_bytes(3 * SEGMENT)
    writer = store.writer("body")
    writer.write(data[: 2 * SEGMENT + 7])
    swift.forget_tokens()
    writer.write(data[2 * SEGMENT + 7 :])
    writer.commit()
    body, target = store.open("body"), bytearray(len(data))
    swift.forget_tokens()
    assert body.pread_into(target, 0) == len(data) and target == data


def test_a_wrong_key_is_refused_with_a_next_step(swift: Swift, tmp_path: Path) -> None:
    file = swift.written("wrong.toml", swift.url, "wrong-wrong-wrong")
    store = connect(swift.settings(swift.container(), credentials=str(file)), tmp_path, PLACE)
    for use in (lambda: store.size("a"), lambda: list(store.names()), lambda: store.writer("a"), lambda: store.sweep()):
        with pytest.raises(StorageFault) as found:
            use()
        assert "credentials file" in str(found.value)
        assert "wrong-wrong" not in str(found.value) + repr(store) + repr(store.__dict__) + repr(vars(store._session))


def test_what_is_missing_is_said(swift: Swift, tmp_path: Path) -> None:
    with pytest.raises(StorageFault, match="container"):
        list(made(swift, "no-such-container").names())
    (tmp_path / "bad.toml").write_text("secret words")
    (tmp_path / "bad.yaml").write_text("clouds: {a: {auth: {auth_url: secret}}, b: {}}")
    for wrong in (
        {"credentials": "bad.toml"},
        {"credentials": "bad.yaml"},
        {"credentials": "absent"},
        {"credentials": ""},
        {"path": "../up"},
        {"url": "ftp://x"},
        {"ca": "absent"},
    ):
        with pytest.raises(ConfigFault) as found:
            connect(swift.settings("container", **wrong), tmp_path, PLACE)
        assert "secret" not in str(found.value)


def test_a_server_that_is_away_is_unreachable(swift: Swift) -> None:
    store = made(swift, "container", "http://127.0.0.1:9", attempts=2)
    for use in (lambda: store.size("a"), lambda: list(store.names()), lambda: store.writer("a"), store.sweep):
        with pytest.raises(UnreachableFault):
            use()


@pytest.mark.parametrize("size", [1000, 2 * SEGMENT + 5])
@pytest.mark.parametrize("where", ["/bodies/body", "/segments/body"])
@pytest.mark.parametrize("lie", [lies.fails(503), lies.drops(), lies.loses(), lies.changes_sent(7)])
def test_what_fails_twice_is_sent_again(
    lied: SwiftStorage, proxy: lies.Proxy, size: int, where: str, lie: lies.Lie
) -> None:
    data = secrets.token_bytes(size)
    writer = lied.writer("body")
    proxy.lie(lie, "PUT", where, times=2)
    writer.write(data)
    try:
        writer.commit()
    except StorageFault:  # a manifest whose bytes were changed is refused for good
        assert size > SEGMENT and where == "/bodies/body" and proxy.told
        assert list(lied._listed("")) == []
        return
    assert proxy.told == (0 if size < SEGMENT and where == "/segments/body" else 2)
    assert read_all(lied, "body") == data


def test_what_keeps_failing_is_a_fault_and_leaves_nothing(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    proxy.lie(lies.fails(500), "PUT", "/segments/body/.*00000001", times=9)
    with pytest.raises(UnreachableFault):
        put(lied, "body", bytes(3 * SEGMENT))
    assert list(lied._listed("")) == []


@pytest.mark.parametrize("size", [0, 1000, SEGMENT + 5])
def test_a_put_that_stored_nothing_is_found(lied: SwiftStorage, proxy: lies.Proxy, size: int) -> None:
    proxy.lie(lies.stores_nothing(201), "PUT", "/bodies/body")
    with pytest.raises(StorageFault, match="has not"):
        put(lied, "body", bytes(size))
    assert list(lied._listed("")) == []


def test_a_segment_that_was_not_stored_is_found_by_swift(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    proxy.lie(lies.stores_nothing(201), "PUT", "/segments/body")
    with pytest.raises(StorageFault):
        put(lied, "body", bytes(2 * SEGMENT))
    assert list(lied._listed("")) == []


def test_a_segment_that_was_swapped_is_found_by_swift(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    writer = lied.writer("body")
    writer.write(secrets.token_bytes(2 * SEGMENT))
    writer._await(1)
    (first,) = [one["name"] for one in lied._listed("segments/")]
    lied._session.ask("PUT", f"{lied._container}/segments/{first}", body=secrets.token_bytes(SEGMENT))
    with pytest.raises(StorageFault):
        writer.commit()
    assert list(lied._listed("")) == []


def test_other_bytes_than_were_sent_are_found(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    proxy.lie(lies.says(etag="0" * 32), "PUT", "/segments/body")
    with pytest.raises(StorageFault, match="other bytes"):
        put(lied, "body", bytes(2 * SEGMENT))
    writer = lied.writer("body")
    writer.write(b"data")
    proxy.lie(lies.says(etag="0" * 32), "HEAD", "/bodies/body", times=3)
    with pytest.raises(StorageFault, match="other bytes"):
        writer.commit()
    assert list(lied._listed("")) == []


def test_after_a_lost_look_no_segment_of_a_body_that_is_there_goes(
    swift: Swift, lied: SwiftStorage, proxy: lies.Proxy
) -> None:
    writer = lied.writer("body")
    writer.write(b"d" * (2 * SEGMENT))

    def after(asked: lies.Asked, forward: lies.Forward) -> lies.Reply:
        proxy.lie(lies.fails(503), "HEAD", "/bodies/body", times=3)
        return forward(asked)

    proxy.lie(after, "PUT", "/bodies/body")
    with pytest.raises(UnreachableFault):
        writer.commit()
    assert read_all(lied, "body") == b"d" * (2 * SEGMENT)
    assert made(swift, lied._container, stale=-5.0).sweep() == 0


@pytest.mark.parametrize("size", [2_000, 3_000_000])
@pytest.mark.parametrize("lie", [lies.cut(1000), lies.fails(503), lies.drops()])
def test_a_read_that_ends_early_is_made_again(lied: SwiftStorage, proxy: lies.Proxy, lie: lies.Lie, size: int) -> None:
    data = secrets.token_bytes(size)
    put(lied, "body", data)
    proxy.lie(lie, "GET", "/bodies/body", times=2)
    assert read_all(lied, "body") == data
    assert proxy.told == 2


def test_a_shorter_answer_is_asked_for_again(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    data = secrets.token_bytes(500_000)
    put(lied, "body", data)
    proxy.lie(lies.shorter(100_000), "GET", "/bodies/body")
    assert read_all(lied, "body") == data


@pytest.mark.parametrize(
    "lie",
    [
        lies.cut(0),
        lies.shorter(500_000),
        lies.longer(5),
        lies.says(etag="other"),
        lies.says(content_range="bytes 1-5/6"),
    ],
)
def test_a_read_that_never_holds_is_a_fault(lied: SwiftStorage, proxy: lies.Proxy, lie: lies.Lie) -> None:
    put(lied, "body", bytes(500_000))
    proxy.lie(lie, "GET", "/bodies/body", times=99)
    with pytest.raises((StorageFault, UnreachableFault)):
        read_all(lied, "body")


def test_a_lost_segment_is_a_fault(swift: Swift) -> None:
    store = made(swift, swift.container(), attempts=2)
    put(store, "body", bytes(3 * SEGMENT))
    names = [one["name"] for one in store._listed("segments/")]
    store._session.ask("DELETE", f"{store._container}/segments/{names[1]}")
    with pytest.raises((StorageFault, UnreachableFault)):
        read_all(store, "body")
    store.delete("body")
    assert list(store._listed("")) == []


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(
    swift: Swift, lied: SwiftStorage, proxy: lies.Proxy
) -> None:
    put(lied, "body", b"data")
    proxy.lie(lies.slow(1.0), "GET", "/bodies/body")
    assert read_all(lied, "body") == b"data"
    hasty = made(swift, lied._container, proxy.url, timeout=0.4, attempts=2)
    proxy.lie(lies.slow(2.0), times=99)
    with pytest.raises(UnreachableFault):
        hasty.size("body")


def test_a_body_put_in_anothers_place_is_found(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    put(lied, "body", secrets.token_bytes(1000))
    read_all(lied, "body")
    (old,) = [reply for asked, reply in proxy.replies.items() if asked.startswith("GET") and "/bodies/body" in asked]
    opened = lied.open("body")
    lied.delete("body")
    put(lied, "body", secrets.token_bytes(1000))
    with pytest.raises(StorageFault, match="another body"):
        opened.pread_into(bytearray(1000), 0)
    proxy.lie(lies.older(old), "GET", "/bodies/body")
    with pytest.raises(StorageFault, match="another body"):
        read_all(lied, "body")
    lied.delete("body")
    with pytest.raises(MissingFault):
        opened.pread_into(bytearray(1000), 0)


def test_a_name_that_a_listing_forgets_is_still_written_once(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    put(lied, "body", b"data")
    proxy.lie(lies.forgets(rb"\{.*\}"), "GET", "prefix=bodies")
    assert list(lied.names()) == []
    with pytest.raises(StorageFault):
        put(lied, "body", b"other")
    assert list(lied.names()) == ["body"]


def test_a_delete_that_did_nothing_is_found(lied: SwiftStorage, proxy: lies.Proxy) -> None:
    put(lied, "body", b"data")
    proxy.lie(lies.stores_nothing(204), "DELETE", "/bodies/body")
    with pytest.raises(StorageFault, match="has not"):
        lied.delete("body")


def test_what_lies_there_is_the_body_itself(swift: Swift) -> None:
    """Another client reads it under its name, with the digest that the server keeps."""
    store = made(swift, swift.container(), path="a")
    put(store, "body", b"data")
    answer = store._session.ask("GET", f"{store._container}/a/bodies/body")
    assert answer.content == b"data"
    assert answer.etag == hashlib.md5(b"data").hexdigest()
    url = store._session._token[0]
    assert httpx.get(f"{url}/{store._container}/a/bodies/body", trust_env=False).status_code == 401
    assert json.loads(store._session.ask("GET", store._container, query={"format": "json"}).content)


def keystoned(swift: Swift, clouds: Path, container: str) -> SwiftStorage:
    store = connect(swift.settings(container, credentials=str(clouds), region="one"), clouds.parent, PLACE)
    store._session.ask("PUT", container)
    return store


def test_an_application_credential_of_keystone_serves(swift: Swift, swift_clouds: Path) -> None:
    store = keystoned(swift, swift_clouds, "of-keystone")
    data = secrets.token_bytes(20 << 20)
    put(store, "body", data)
    assert read_all(store, "body") == data
    url, token = store._session._token
    store._session._token = (url, "expired-" + token[8:])
    assert list(store.names()) == ["body"]
    assert store._session._token[1] != "expired-" + token[8:]
    store.delete("body")


def test_a_wrong_application_credential_is_refused_with_a_next_step(
    swift: Swift, swift_clouds: Path, tmp_path: Path
) -> None:
    cloud = json.loads(swift_clouds.read_text())
    cloud["clouds"]["vault"]["auth"]["application_credential_secret"] = "wrong-wrong-wrong"
    (tmp_path / "clouds.yaml").write_text(json.dumps(cloud))
    store = connect(swift.settings("of-keystone", credentials="clouds.yaml"), tmp_path, PLACE)
    with pytest.raises(StorageFault, match="credentials file") as found:
        store.size("body")
    assert "wrong-wrong" not in str(found.value) + repr(store) + repr(vars(store._session))


def test_a_keystone_that_is_away_is_unreachable(swift: Swift, tmp_path: Path) -> None:
    auth = {"auth_url": "http://127.0.0.1:9/v3", "username": "a", "password": "b", "project_name": "c"}
    (tmp_path / "clouds.yaml").write_text(json.dumps({"clouds": {"valv": {"auth": auth}}}))
    settings = swift.settings("of-keystone", credentials="clouds.yaml")
    store = SwiftStorage(settings, tmp_path, PLACE, attempts=2, pause=0.01)
    with pytest.raises(UnreachableFault):
        store.size("body")
