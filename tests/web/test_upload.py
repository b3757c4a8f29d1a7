"""Files through the page: straight to the encryption, never in the clear on a disk, nothing kept of what broke off."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.conftest import Browser, Portal
from tests.world import MAX_UPLOAD

CANARY = b"CANARY-" + secrets.token_hex(16).encode()


@pytest.fixture
def open_deposit(portal: Portal) -> tuple[Browser, str]:
    carin = portal.person("carin")
    carin.see("/deposits/new")
    name = f"up-{secrets.token_hex(4)}"
    carin.send("/deposits", {"name": name, "class": "identifiable", "permission": "GRU", "committee": "dac"})
    return carin, carin.address


def test_no_plain_byte_touches_a_disk(
    portal: Portal, open_deposit: tuple[Browser, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is ever opened in a folder for temporary files, and the content is nowhere in the node's folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made: list[str] = []
    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, lambda *_, **__: made.append("opened"))
    carin, path = open_deposit
    carin.upload(f"{path}/files", [("a.txt", CANARY * 50_000), ("b.txt", CANARY)])
    assert carin.status == 200 and "a.txt" in carin.page and "b.txt" in carin.page
    assert not made and not list(tmp_path.iterdir())
    for folder, _, names in os.walk(portal.world.folder):
        for name in names:
            file = Path(folder, name)
            assert not file.is_file() or CANARY not in file.read_bytes()


def test_contents_arrive_whole(portal: Portal, open_deposit: tuple[Browser, str]) -> None:
    carin, path = open_deposit
    files = [
        ("empty", b""),
        ("small", b"\r\n--"),
        ("lines", b"\r\n" * 70_000),
        ("dashes", b"-" * 200_001),
        ('name with "quotes" and ü.txt', os.urandom(1 << 20)),
    ]
    carin.upload(f"{path}/files", files)
    assert carin.status == 200, carin.page
    import hashlib

    for _, content in files:
        assert hashlib.sha256(content).hexdigest() in carin.page
    assert "name with &#34;quotes&#34; and ü.txt" in carin.page


def test_a_refused_file_does_not_keep_the_others_out(portal: Portal, open_deposit: tuple[Browser, str]) -> None:
    carin, path = open_deposit
    bodies = portal.world.bodies()
    carin.upload(f"{path}/files", [("../x", b"x"), ("large", bytes(MAX_UPLOAD + 1)), ("good.txt", b"good")])
    assert carin.status == 413
    assert "The file is larger than allowed" in carin.page and "This file name cannot be used" in carin.page
    assert "good.txt</th>" in carin.page
    assert len(portal.world.bodies() - bodies) == 2, "the body and seal of the good one"
    carin.upload(f"{path}/files", [("good.txt", b"other")])
    assert carin.status == 409 and "was received already" in carin.page
    carin.upload(f"{path}/files", [])
    assert carin.status == 400 and "Choose at least one file" in carin.page


def test_a_token_after_the_file_comes_too_late(portal: Portal, open_deposit: tuple[Browser, str]) -> None:
    carin, path = open_deposit
    token = carin.hidden(f"{path}/files")["token"]
    answer = carin.http.post(f"{path}/files", files=[("files", ("x.txt", b"x")), ("token", (None, token))])
    assert answer.status_code == 403 and "token_foreign" in answer.text
    assert "x.txt" not in carin.see(path)


def test_nothing_stays_of_an_upload_that_broke_off(portal: Portal, open_deposit: tuple[Browser, str]) -> None:
    carin, path = open_deposit
    fields = carin.hidden(f"{path}/files")
    bodies = portal.world.bodies()
    begin = b"".join(
        b'--xyz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value.encode())
        for name, value in fields.items()
    )
    begin += b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="half.bin"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", portal.server.port)) as connection:
        head = (
            f"POST {path}/files HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n"
            "Content-Type: multipart/form-data; boundary=xyz\r\n"
            f"Cookie: valv_session={carin.http.cookies['valv_session']}\r\n\r\n"
        )
        connection.sendall(head.encode() + begin + bytes(1 << 20))
        _until(lambda: "half.bin" in carin.see(path))
    _until(lambda: "half.bin" not in carin.see(path))
    assert portal.world.bodies() == bodies
    carin.upload(f"{path}/files", [("half.bin", b"whole")])
    assert carin.status == 200


def _until(true) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", b"x"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=" + "x" * 300, b"x"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"garbage"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="token"\r\n\r\nno end'),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: " + b"x" * 100_000 + b"\r\n\r\n"),
    ],
)
def test_broken_forms_are_refused(portal: Portal, open_deposit: tuple[Browser, str], kind: str, body: bytes) -> None:
    carin, path = open_deposit
    answer = carin.http.post(f"{path}/files", content=body, headers={"content-type": kind})
    assert answer.status_code == 400 and "<h1>" in answer.text


def test_several_at_once(portal: Portal, open_deposit: tuple[Browser, str]) -> None:
    carin, path = open_deposit
    fields = carin.hidden(f"{path}/files")
    statuses: list[int] = []

    def send(number: int) -> None:
        files = [
            *((name, (None, value)) for name, value in fields.items()),
            ("files", (f"f{number}", os.urandom(600_000))),
        ]
        statuses.append(carin.http.post(f"{path}/files", files=files, follow_redirects=True).status_code)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert statuses == [200] * 12
    page = carin.see(path)
    assert all(f"f{number}</th>" in page for number in range(12))


def test_a_slow_reader_of_the_store_holds_the_sender_back(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded: while the encryption waits, no more than a few pieces are taken from the connection."""
    from valv.app import deposit

    carin = portal.person("carin")
    carin.see("/deposits/new")
    carin.send("/deposits", {"name": "slow", "class": "identifiable", "permission": "GRU", "committee": "dac"})
    path = carin.address
    go = threading.Event()
    taken: list[int] = []

    def slow(node: object, who: object, deposit_id: str, file: str, chunks: Iterator[bytes], **_: object) -> None:
        taken.append(len(next(chunks)))
        go.wait(60)
        taken.extend(len(chunk) for chunk in chunks)

    monkeypatch.setattr(deposit, "receive", slow)
    fields = carin.hidden(f"{path}/files")
    begin = b"".join(
        b'--xyz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value.encode())
        for name, value in fields.items()
    )
    begin += b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="big"\r\n\r\n'
    size = 256 << 20
    with socket.create_connection(("127.0.0.1", portal.server.port)) as connection:
        head = (
            f"POST {path}/files HTTP/1.1\r\nHost: x\r\nContent-Length: {len(begin) + size + 11}\r\n"
            "Content-Type: multipart/form-data; boundary=xyz\r\n"
            f"Cookie: valv_session={carin.http.cookies['valv_session']}\r\n\r\n"
        )
        connection.sendall(head.encode() + begin)
        connection.settimeout(2)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < size:
                sent += connection.send(bytes(64 << 10))
        assert sent < 32 << 20
        go.set()
        connection.settimeout(60)
        connection.sendall(bytes(size - sent) + b"\r\n--xyz--\r\n")
        assert connection.recv(12) == b"HTTP/1.1 303"
    assert sum(taken) == size
