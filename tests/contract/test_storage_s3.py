"""The S3 store against the storage contract on a real Ceph, and what only a server that lies or stops can show."""

from __future__ import annotations

import hashlib
import resource
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.peers import lying as lies
from tests.peers.ceph import PART, Ceph, write_credentials
from valv.errors import ConfigFault, Fault, MissingFault, StorageFault, UnreachableFault
from valv.ports.contract.storage import FullStorageContract, StorageContract, put, read_all
from valv.ports.storage import Place

PLACE = Place("SE", "test")
Made = Callable[..., object]


@pytest.fixture
def s3(ceph: Ceph) -> Callable[..., object]:
    """Makes the store; `more` goes to it, `settings` in place of settings."""
    from valv.storage.s3 import S3Storage

    def make(bucket: str, url: str = "", path: str = "", **more: object) -> S3Storage:
        settings = ceph.settings(bucket, url=url or ceph.url, path=path)
        return S3Storage(settings, ceph.folder, PLACE, **({"part": PART, "pause": 0.01} | more))

    return make


@pytest.fixture
def proxy(ceph: Ceph) -> Iterator[lies.Proxy]:
    with lies.lying("127.0.0.1", ceph.port) as proxy:
        yield proxy


@pytest.fixture
def lied(ceph: Ceph, s3, proxy: lies.Proxy):
    """A store behind the proxy, which asks three times at the most. The server's abilities are known already."""
    store = s3(ceph.bucket(), proxy.url, attempts=3)
    put(store, "first", b"first")
    store.delete("first")
    return store


class TestS3(StorageContract, FullStorageContract):
    @pytest.fixture
    def store(self, ceph: Ceph, s3):
        return s3(ceph.bucket(), path="a/store")

    @pytest.fixture
    def small_store(self, ceph: Ceph, s3):
        return s3(ceph.bucket(quota=2 << 20))


def test_a_body_of_several_parts_comes_back(ceph: Ceph, s3) -> None:
    store = s3(ceph.bucket())
    data = secrets.token_bytes(3 * PART + 12_345)
    put(store, "body", data)
    assert read_all(store, "body") == data
    assert store.usage().used == len(data)


def test_a_body_of_exactly_two_parts_comes_back(ceph: Ceph, s3) -> None:
    store = s3(ceph.bucket())
    data = secrets.token_bytes(2 * PART)
    put(store, "body", data)
    assert read_all(store, "body") == data


def test_over_tls_with_an_authority_of_its_own(ceph: Ceph, s3, tmp_path: Path) -> None:
    from valv.storage.s3 import S3Storage

    settings = ceph.settings(ceph.bucket(), url=ceph.tls_url, ca=str(ceph.ca))
    store = S3Storage(settings, tmp_path, PLACE, part=PART)
    data = secrets.token_bytes(PART + 5)
    put(store, "body", data)
    put(store, "small", b"small")
    assert read_all(store, "body") == data
    assert sorted(store.names()) == ["body", "small"]
    stranger = s3(settings.bucket, ceph.tls_url, attempts=1)  # trusts the system's authorities alone
    for use in (lambda: stranger.size("body"), lambda: list(stranger.names())):
        with pytest.raises(UnreachableFault):
            use()
    with pytest.raises(UnreachableFault, match="'ca'"):
        stranger.size("body")


def test_the_parts_of_a_very_large_body_grow(ceph: Ceph, s3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valv.storage.s3_write.SMALL_PARTS", 2)
    monkeypatch.setattr("valv.storage.s3_write.LARGE", 2)
    store = s3(ceph.bucket())
    data = secrets.token_bytes(5 * PART + 7)
    put(store, "body", data)
    assert read_all(store, "body") == data
    assert store._client.ask("HEAD", "bodies/body").etag.endswith("-4")  # 1, 1, 2 and the rest
    monkeypatch.setattr("valv.storage.s3_write.PARTS", 3)
    with pytest.raises(StorageFault, match="too large"):
        put(store, "larger", data)
    assert list(store.names()) == ["body"] and _left(store) == []


def test_of_many_large_writers_of_one_name_one_wins(ceph: Ceph, s3) -> None:
    store = s3(ceph.bucket())
    writers = [store.writer("body") for _ in range(4)]
    outcomes: list[int] = []

    def commit(number: int) -> None:
        try:
            writers[number].commit()
            outcomes.append(number)
        except StorageFault:
            pass

    for number, writer in enumerate(writers):
        writer.write(bytes([number]) * (PART + 1 if number % 2 else 1000))  # of both kinds
    threads = [threading.Thread(target=commit, args=(number,)) for number in range(len(writers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert set(read_all(store, "body")) == {outcomes[0]}
    assert _left(store) == []


def test_a_listing_of_several_pages(ceph: Ceph, s3) -> None:
    store = s3(ceph.bucket())
    done = [threading.Thread(target=lambda at=at: [store._client.ask("PUT", f"bodies/{n}") for n in range(at, 1100, 8)])
            for at in range(8)]  # fmt: skip
    for thread in done:
        thread.start()
    for thread in done:
        thread.join()
    assert sorted(store.names()) == sorted(str(number) for number in range(1100))


def test_a_killed_writer_is_swept_and_a_living_one_is_not(ceph: Ceph, s3, tmp_path: Path) -> None:
    bucket = ceph.bucket()
    script = (
        "import sys; from pathlib import Path; from valv.config import Storage; from valv.ports.storage import Place; "
        "from valv.storage.s3 import S3Storage; url, bucket, file = sys.argv[1:]; "
        "store = S3Storage(Storage(url=url, bucket=bucket, path='', credentials=file), Path('/'), Place('SE', 't'), "
        f"part={PART}); w = store.writer('killed'); w.write(b'x' * {2 * PART + 1}); w._await(1); "
        "print('written', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, ceph.url, bucket, str(ceph.account.file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"written\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    store, impatient = s3(bucket), s3(bucket, stale=0.0)
    living = impatient.writer("living")
    living.write(b"l" * (2 * PART))
    assert list(store.names()) == []
    assert store.sweep() == 0  # nobody can tell yet whether it lives
    assert impatient.sweep() == 1
    assert impatient.sweep() == 0
    living.commit()
    assert read_all(store, "living") == b"l" * (2 * PART)
    put(store, "killed", b"again")


def test_memory_stays_flat(ceph: Ceph, s3) -> None:
    store = s3(ceph.bucket(), lanes=2)
    block = secrets.token_bytes(1 << 20)
    put(store, "warm", block * 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    writer = store.writer("body")
    for _ in range(256):
        writer.write(block)
    writer.commit()
    body, target = store.open("body"), bytearray(4 << 20)
    for at in range(0, body.size, len(target)):
        assert body.pread_into(target, at) == len(target)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize("wrong", ["secret", "key"])
def test_wrong_keys_are_refused_with_a_next_step(ceph: Ceph, tmp_path: Path, wrong: str) -> None:
    from valv.storage.s3 import S3Storage

    key = ceph.account.key if wrong == "secret" else "nobody-s-key"
    write_credentials(tmp_path / "wrong", key, "wrong-wrong-wrong-wrong")
    store = S3Storage(ceph.settings(ceph.bucket(), credentials=str(tmp_path / "wrong")), tmp_path, PLACE)
    for use in (lambda: store.size("a"), lambda: list(store.names()), lambda: store.writer("a"), lambda: store.sweep()):
        with pytest.raises(StorageFault) as found:
            use()
        assert "credentials file" in str(found.value)
        assert "wrong-wrong" not in str(found.value) + repr(store) + repr(store.__dict__)


def test_no_bucket_no_right_and_no_file_are_said(ceph: Ceph, s3, tmp_path: Path) -> None:
    from valv.storage.s3 import connect

    with pytest.raises(StorageFault, match="bucket"):
        s3("no-such-bucket").sweep()
    other = ceph.user(f"other-{secrets.token_hex(4)}")
    store = connect(ceph.settings(ceph.bucket(), credentials=str(other.file)), tmp_path, PLACE)
    with pytest.raises(StorageFault, match="rights"):
        put(store, "body", b"data")
    with pytest.raises(ConfigFault, match="credentials"):
        connect(ceph.settings("bucket", credentials="absent"), tmp_path, PLACE)
    (tmp_path / "bad").write_text("secret words")
    with pytest.raises(ConfigFault) as found:
        connect(ceph.settings("bucket", credentials="bad"), tmp_path, PLACE)
    assert "secret words" not in str(found.value)
    for wrong in ({"url": "ftp://x"}, {"path": "../up"}, {"credentials": ""}, {"ca": "absent"}):
        with pytest.raises(ConfigFault):
            connect(ceph.settings("bucket", **wrong), tmp_path, PLACE)
    with pytest.raises(ConfigFault):
        connect(ceph.settings(""), tmp_path, PLACE)


def test_a_server_that_is_away_is_unreachable(ceph: Ceph, s3) -> None:
    store = s3("bucket", "http://127.0.0.1:9", attempts=2)
    for use in (lambda: store.size("a"), lambda: list(store.names()), lambda: store.writer("a"), store.sweep):
        with pytest.raises(UnreachableFault):
            use()


@pytest.mark.parametrize("size", [1000, 2 * PART + 5])
@pytest.mark.parametrize("lie", [lies.fails(503), lies.drops(), lies.loses(), lies.changes_sent(7)])
def test_what_fails_twice_is_sent_again(lied, proxy: lies.Proxy, size: int, lie: lies.Lie) -> None:
    data = secrets.token_bytes(size)
    writer = lied.writer("body")
    proxy.lie(lie, "PUT", "/bodies/body", times=2)
    writer.write(data)
    writer.commit()
    assert proxy.told == 2
    assert read_all(lied, "body") == data


@pytest.mark.parametrize("lie", [lies.fails(503), lies.drops(), lies.loses()])
def test_a_completion_whose_answer_is_lost_counts(lied, proxy: lies.Proxy, lie: lies.Lie) -> None:
    data = secrets.token_bytes(PART + 5)
    proxy.lie(lie, "POST", "/bodies/body.uploadId=")
    put(lied, "body", data)
    assert proxy.told == 1
    assert read_all(lied, "body") == data
    assert _left(lied) == []


def test_what_keeps_failing_is_a_fault_and_leaves_nothing(lied, proxy: lies.Proxy) -> None:
    proxy.lie(lies.fails(500), "PUT", "/bodies/body.partNumber=1", times=9)
    with pytest.raises(UnreachableFault):
        put(lied, "body", bytes(PART + 5))
    proxy.honest()
    assert list(lied.names()) == [] and _left(lied) == []


@pytest.mark.parametrize("size", [1000, 0])
def test_a_put_that_stored_nothing_is_found(lied, proxy: lies.Proxy, size: int) -> None:
    proxy.lie(lies.stores_nothing(), "PUT", "/bodies/body")
    with pytest.raises(StorageFault, match="has not"):
        put(lied, "body", bytes(size))


def test_a_part_that_was_not_stored_is_found(lied, proxy: lies.Proxy) -> None:
    proxy.lie(lies.stores_nothing(), "PUT", "/bodies/body.partNumber=1")
    with pytest.raises(StorageFault):
        put(lied, "body", bytes(PART + 5))
    proxy.honest()
    assert list(lied.names()) == [] and _left(lied) == []


def test_a_completion_that_did_nothing_is_found(lied, proxy: lies.Proxy) -> None:
    answer = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
    proxy.lie(lies.stores_nothing(200, answer), "POST", "/bodies/body.uploadId=")
    with pytest.raises(StorageFault, match="has not"):
        put(lied, "body", bytes(PART + 5))
    assert _left(lied) == []


def test_a_completion_that_says_200_and_means_an_error_is_found(lied, proxy: lies.Proxy) -> None:
    proxy.lie(lies.stores_nothing(200, b"<Error><Code>InternalError</Code></Error>"), "POST", "uploadId=")
    with pytest.raises(StorageFault):
        put(lied, "body", bytes(PART + 5))
    assert list(lied.names()) == [] and _left(lied) == []


def test_other_bytes_than_were_sent_are_found(lied, proxy: lies.Proxy) -> None:
    proxy.lie(lies.says(etag='"' + "0" * 32 + '"'), "PUT", "partNumber=2")
    with pytest.raises(StorageFault, match="other bytes"):
        put(lied, "large", bytes(PART + 5))
    writer = lied.writer("body")
    proxy.lie(lies.says(etag='"' + "0" * 32 + '"'), "HEAD", "/bodies/body", times=2)
    writer.write(b"data")
    with pytest.raises(StorageFault, match="other bytes"):
        writer.commit()
    assert list(lied.names()) == []


@pytest.mark.parametrize("lie", [lies.cut(300_000), lies.fails(503), lies.drops(), lies.shorter(100_000)])
def test_a_read_that_ends_early_is_made_again(lied, proxy: lies.Proxy, lie: lies.Lie) -> None:
    data = secrets.token_bytes(3_000_000)
    put(lied, "body", data)
    proxy.lie(lie, "GET", "/bodies/body", times=2)
    assert read_all(lied, "body") == data
    assert proxy.told == 2


@pytest.mark.parametrize("lie", [lies.cut(0), lies.shorter(3_000_000), lies.longer(5), lies.says(etag='"other"')])
def test_a_read_that_never_holds_is_a_fault(lied, proxy: lies.Proxy, lie: lies.Lie) -> None:
    put(lied, "body", bytes(3_000_000))
    proxy.lie(lie, "GET", "/bodies/body", times=99)
    with pytest.raises((StorageFault, UnreachableFault)):
        read_all(lied, "body")


def test_a_slow_server_is_waited_for_and_a_silent_one_is_not(ceph: Ceph, s3, lied, proxy: lies.Proxy) -> None:
    put(lied, "body", b"data")
    proxy.lie(lies.slow(1.0), "GET", "/bodies/body")
    assert read_all(lied, "body") == b"data"
    hasty = s3(lied._client._base.strip("/"), proxy.url, timeout=0.3, attempts=2)
    proxy.lie(lies.slow(2.0), times=99)
    with pytest.raises(UnreachableFault):
        hasty.size("body")


def test_a_body_put_in_anothers_place_is_found(ceph: Ceph, lied, proxy: lies.Proxy) -> None:
    data = secrets.token_bytes(1000)
    put(lied, "body", data)
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


def test_a_name_that_a_listing_forgets_is_still_written_once(lied, proxy: lies.Proxy) -> None:
    put(lied, "body", b"data")
    proxy.lie(lies.forgets(b"<Contents>.*</Contents>"), "GET", "list-type=2")
    assert list(lied.names()) == []
    with pytest.raises(StorageFault):
        put(lied, "body", b"other")
    assert list(lied.names()) == ["body"]


def test_a_delete_that_did_nothing_is_found(lied, proxy: lies.Proxy) -> None:
    put(lied, "body", b"data")
    proxy.lie(lies.stores_nothing(204), "DELETE", "/bodies/body")
    with pytest.raises(StorageFault, match="has not"):
        lied.delete("body")


def test_a_server_that_lets_a_name_be_written_twice_is_refused(ceph: Ceph, s3, proxy: lies.Proxy) -> None:
    store = s3(ceph.bucket(), proxy.url)
    proxy.lie(lies.stores_nothing(200), "PUT", "/claims/.probe", times=2)
    with pytest.raises(StorageFault, match="twice"):
        put(store, "body", b"data")


def test_a_claim_that_was_left_behind_is_swept(ceph: Ceph, s3) -> None:
    bucket = ceph.bucket()
    store = s3(bucket)
    store._client.ask("PUT", "claims/body", headers={"x-amz-meta-valv-writer": "of a killed one"})
    if not store._making.completes_once():
        with pytest.raises(StorageFault, match="another writer"):
            put(store, "body", b"data")
    assert store.sweep() == 0
    assert s3(bucket, stale=0.0).sweep() == 1
    put(store, "body", b"data")


def test_what_lies_there_is_the_body_itself(ceph: Ceph, s3) -> None:
    """Another client reads it under its name, with the digest that the server keeps."""
    store = s3(ceph.bucket(), path="a")
    put(store, "body", b"data")
    answer = store._client.ask("GET", "a/bodies/body")
    assert answer.content == b"data"
    assert answer.etag == hashlib.md5(b"data").hexdigest()
    assert httpx.get(f"{ceph.url}{store._client._base}/a/bodies/body", trust_env=False).status_code == 403


def _left(store) -> list[object]:
    """Uploads that nobody completed, and claims."""
    try:
        return [*store._uploads(), *store._client.ask("GET", query={"prefix": store._claims}).xml().iter("Contents")]
    except Fault as fault:
        return [fault]
