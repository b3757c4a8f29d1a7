"""Writing and reading one large body through each storage backend, against the backend's own plain client on the same
server, the two taking turns. The local store is measured with its encryption, against the floor that copying and the
cipher set together: 1 / (1 / `cp` + 1 / `openssl speed`)."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bench._measure import OpenSSL, Table
from valv.formats.crypt4gh import generate_keypair
from valv.formats.seal import sidecar
from valv.ports.storage import Place, Storage
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor, Sealed
from valv.vault.reader import open_reader

PIECE = 4 << 20
ROUNDS = 3
PLACE = Place("SE", "bench")


@dataclass
class Plain:
    """A backend's own client. `write` puts a file under a name, `read` fetches it to nowhere."""

    write: Callable[[Path, str], None]
    read: Callable[[str], None]


def stores(table: Table, size: int) -> None:
    """Each backend whose server can be started here; what cannot is said."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        plain = folder / "plain"
        piece = os.urandom(PIECE)
        with plain.open("wb") as out:
            for at in range(0, size, PIECE):
                out.write(piece[: size - at])
        local(table, folder, plain, size)
        for backend in (s3, swift, dcache):
            with backend(folder) as (store, client):
                network(table, backend.__name__, store, client, plain, size)


def local(table: Table, folder: Path, plain: Path, size: int) -> None:
    store, keys, cipher = LocalStorage(folder / "store", PLACE), generate_keypair(), OpenSSL(1)
    copying = writing = reading = float("inf")
    for _ in range(ROUNDS):
        cipher.measure()
        copying = min(copying, timed(lambda: shutil.copyfile(plain, folder / "copy")))
        (folder / "copy").unlink()
        name = secrets.token_hex(8)
        began = time.perf_counter()
        sealed = _encrypt(store, plain, name, keys.public)
        writing = min(writing, time.perf_counter() - began)
        began = time.perf_counter()
        _decrypt(store, name, sealed, keys.private, size)
        reading = min(reading, time.perf_counter() - began)
        store.delete(name)
        store.delete(sidecar(name))
    rate = size / 1e9
    floor = 1 / (copying / rate + 1 / cipher.one)
    for what, took in (("write", writing), ("read", reading)):
        table.row(f"local, {what}", f"{rate / took:.2f} GB/s", rate / took / floor, "of cp + openssl", 0.8)


def _encrypt(store: Storage, plain: Path, name: str, public: bytes) -> Sealed:
    encryptor = Encryptor(store.writer(name), store.writer(sidecar(name)), public)
    with plain.open("rb", buffering=0) as file:
        buffer = bytearray(PIECE)
        while count := file.readinto(buffer):
            encryptor.write(memoryview(buffer)[:count])
    return encryptor.finish()


def _decrypt(store: Storage, name: str, sealed: Sealed, private: bytes, size: int) -> None:
    reader = open_reader(store.open, name, sealed.header, private, size=size, seal_root=sealed.seal_root)
    target = bytearray(PIECE)
    for at in range(0, size, PIECE):
        reader.read_into(target, at)
    reader.close()


def network(table: Table, backend: str, store: Storage, client: Plain, plain: Path, size: int) -> None:
    """Bodies as they are: encrypting is measured elsewhere."""
    best = dict.fromkeys(("write", "read", "plain write", "plain read"), float("inf"))
    for _ in range(ROUNDS):
        ours, theirs = secrets.token_hex(8), secrets.token_hex(8)
        for name, act in (
            ("plain write", lambda theirs=theirs: client.write(plain, theirs)),
            ("write", lambda ours=ours: _write(store, plain, ours)),
            ("plain read", lambda theirs=theirs: client.read(theirs)),
            ("read", lambda ours=ours: _read(store, ours)),
        ):
            best[name] = min(best[name], timed(act))
        store.delete(ours)
        store.delete(theirs)
    for what in ("write", "read"):
        ratio = best[f"plain {what}"] / best[what]
        table.row(f"{backend}, {what}", f"{size / 1e9 / best[what]:.2f} GB/s", ratio, "of the plain client", 0.9)


def _write(store: Storage, plain: Path, name: str) -> None:
    writer = store.writer(name)
    with plain.open("rb", buffering=0) as file:
        buffer = bytearray(PIECE)
        while count := file.readinto(buffer):
            writer.write(memoryview(buffer)[:count])
    writer.commit()


def _read(store: Storage, name: str) -> None:
    body = store.open(name)
    target = bytearray(PIECE)
    for at in range(0, body.size, PIECE):
        body.pread_into(target, at)
    body.close()


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


# --- the servers, as the tests start them ---


@contextmanager
def s3(folder: Path) -> Iterator[tuple[Storage, Plain]]:
    import obstore
    from obstore.store import S3Store

    from tests.peers import ceph
    from valv.storage.s3 import connect

    _needed(ceph.missing())
    with _folder("ceph-") as top:
        cluster = ceph.start(top)
        try:
            bucket = cluster.bucket()
            theirs = S3Store(
                bucket,
                endpoint=cluster.url,
                region="us-east-1",
                access_key_id=cluster.account.key,
                secret_access_key=cluster.account.secret,
                client_options={"allow_http": True, "timeout": "600s"},
            )

            def read(name: str) -> None:
                for _ in obstore.get(theirs, name):
                    pass

            yield (
                connect(cluster.settings(bucket), folder, PLACE),
                Plain(lambda plain, name: obstore.put(theirs, name, plain) and None, read),
            )
        finally:
            ceph.end(cluster)


@contextmanager
def swift(folder: Path) -> Iterator[tuple[Storage, Plain]]:
    import httpx

    from tests.peers import swift as peer
    from valv.storage.swift import connect

    with _folder("swift-") as top:
        _needed(peer.missing(top))
        servers = peer.start(top)
        try:
            container = servers.container()
            login = {"x-auth-user": "node:vault", "x-auth-key": servers.key}
            found = httpx.get(f"{servers.url}/auth/v1.0", headers=login, trust_env=False).raise_for_status().headers
            header = top / "header"
            header.write_text(f"X-Auth-Token: {found['x-auth-token']}\n")
            with _swift_client(header, found["x-storage-url"], container) as client:
                yield connect(servers.settings(container), folder, PLACE), client
        finally:
            peer.end(servers)


@contextmanager
def dcache(folder: Path) -> Iterator[tuple[Storage, Plain]]:
    from tests.peers import xrootd
    from valv.storage.dcache import connect

    _needed(xrootd.missing())
    with _folder("xrootd-") as top:
        pair = xrootd.start(top)
        try:
            server = pair.one
            (server.root / "bench").mkdir()
            server.own(server.root / "bench")
            token = server.macaroon()
            header = top / "header"
            header.write_text(f"Authorization: Bearer {token}\n")
            store = connect(server.settings(folder, "bench", token), folder, PLACE)
            yield store, _curl(f"{server.url}/data/bench", header, ("--cacert", str(server.ca)))
        finally:
            pair.stop()


@contextmanager
def _swift_client(header: Path, url: str, container: str) -> Iterator[Plain]:
    """In a process that lasts, so that its start does not count."""
    peer = Path(__file__).with_name("_swift_peer.py")
    command = [".venv-bench/bin/python", str(peer), str(header), url, container]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    asked, answers = process.stdin, process.stdout

    def ask(*words: str) -> None:
        asked.write(" ".join(words) + "\n")
        asked.flush()
        if answers.readline().strip() != "done":
            raise SystemExit("Swift's own client failed")

    try:
        yield Plain(lambda plain, name: ask("upload", str(plain), name), lambda name: ask("download", name))
    finally:
        asked.close()
        process.wait(30)


def _curl(url: str, header: Path, words: tuple[str, ...]) -> Plain:
    host = urlsplit(url).hostname or ""
    common = ["curl", "-sS", "--fail", "--noproxy", host, "-H", f"@{header}", *words]

    def run(*more: str) -> None:
        subprocess.run([*common, "-o", "/dev/null", *more], check=True)

    return Plain(lambda plain, name: run("-T", str(plain), f"{url}/{name}"), lambda name: run(f"{url}/{name}"))


def _needed(why: str) -> None:
    if why:
        print(f"missed: {why}", file=sys.stderr)
        raise SystemExit(1)


@contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)
