"""Files on their way in and out: encrypted as they come, and nothing is kept, or taken for whole, that is not whole."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import time
from base64 import b64encode

import httpx
import pytest

from tests.world import MAX_UPLOAD
from valv.api import deposits, incoming

CONTENT = os.urandom(3 * incoming.PIECE)


@pytest.fixture
def open_deposit(w):
    body = {"dataset": "uploads", "class": "anonymised", "consent": ["GRU"], "committee": "dac"}
    return w.person("carin").post("/deposits", body)["deposit_id"]


def files(w, deposit):
    return w.person("carin").get(f"/deposits/{deposit}")["files"]


def begin(w, target, *headers):
    """A request with its headers sent, over a bare connection."""
    connection = socket.create_connection(("127.0.0.1", w.server.port), timeout=60)
    lines = [f"PUT {target} HTTP/1.1", "Host: x", f"Authorization: Bearer {w.person('carin').token}", *headers]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    return connection


def until(good):
    deadline = time.monotonic() + 60
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_that_is_cut_leaves_nothing(w, open_deposit, chunked):
    before = w.bodies()
    header = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(CONTENT)}"
    with begin(w, f"/api/v1/deposits/{open_deposit}/files/cut.bin", header) as connection:
        half = CONTENT[: 2 * incoming.PIECE]
        connection.sendall(b"%x\r\n%s\r\n" % (len(half), half) if chunked else half)
        # It is taken in as it comes, while other requests are answered.
        until(lambda: [file["state"] for file in files(w, open_deposit)] == ["arriving"])
    until(lambda: files(w, open_deposit) == [])
    assert w.bodies() == before
    assert list((w.folder / "store" / "new").iterdir()) == []
    carin = w.person("carin")
    assert carin.ask("PUT", f"/deposits/{open_deposit}/files/cut.bin", content=CONTENT).status_code == 200


def test_a_sender_that_falls_silent_counts_as_gone(w, open_deposit, monkeypatch):
    monkeypatch.setattr(deposits, "IDLE", 0.2)
    before = w.bodies()
    with begin(w, f"/api/v1/deposits/{open_deposit}/files/slow", "Content-Length: 1000") as connection:
        connection.sendall(b"x" * 500)
        assert b" 400 " in connection.recv(100)
    assert files(w, open_deposit) == [] and w.bodies() == before


def test_the_plain_bytes_touch_no_disk(w, open_deposit):
    marker = b"CANARY" + os.urandom(16).hex().encode()
    carin = w.person("carin")
    carin.good(carin.ask("PUT", f"/deposits/{open_deposit}/files/marked", content=marker * 10_000))
    for path in w.folder.rglob("*"):
        if path.is_file():
            assert marker not in path.read_bytes(), path


def digest(content):
    return {"Content-Digest": f"sha-512=:AAAA:, sha-256=:{b64encode(hashlib.sha256(content).digest()).decode()}:"}


def test_the_declared_checksum_counts(w, open_deposit):
    carin, url = w.person("carin"), f"/deposits/{open_deposit}/files/sum.bin"
    before = w.bodies()
    assert carin.refused("PUT", url, content=CONTENT, headers=digest(b"other")) == (422, "checksum")
    assert files(w, open_deposit) == [] and w.bodies() == before
    for wrong in ("md5=:AAAA:", "sha-256=:AAAA:", "sha-256=abc", "", "sha-256=:A:"):
        headers = {"Content-Digest": wrong}
        assert carin.refused("PUT", url, content=CONTENT, headers=headers) == (400, "fault.input"), wrong
    answered = carin.good(carin.ask("PUT", url, content=CONTENT, headers=digest(CONTENT)))
    assert answered.json()["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    again = carin.good(carin.ask("PUT", url, content=CONTENT, headers=digest(CONTENT)))
    assert again.json() == answered.json()
    assert carin.refused("PUT", url, content=b"else", headers=digest(b"else")) == (409, "file_known")


TRICKS = [
    "../x",
    "a/../../x",
    "%2e%2e/x",
    "..%2f..%2fetc%2fpasswd",
    "%2Fetc%2Fpasswd",
    "a%5Cb",
    "a%00b",
    "a//b",
    "a/",
    "",
    ".",
    "a%0Ab",
    "a%0A",
    "%ff%fe",
    "e%CC%81",
    "%E2%80%AEtxt.exe",
    "x" * 256,
]


@pytest.mark.parametrize("path", TRICKS)
def test_path_tricks(w, open_deposit, path):
    before = w.bodies()
    connection = http.client.HTTPConnection("127.0.0.1", w.server.port, timeout=60)
    headers = {"Authorization": f"Bearer {w.person('carin').token}"}
    connection.request("PUT", f"/api/v1/deposits/{open_deposit}/files/{path}", b"content", headers)
    answered = connection.getresponse()
    assert answered.status == 400 and json.loads(answered.read())["code"] in ("path_wrong", "fault.input")
    connection.close()
    assert files(w, open_deposit) == [] and w.bodies() == before


def test_files_that_differ_by_letter_case_or_size(w, open_deposit):
    carin = w.person("carin")
    carin.good(carin.ask("PUT", f"/deposits/{open_deposit}/files/Ä.txt", content=b"1"))
    assert carin.refused("PUT", f"/deposits/{open_deposit}/files/ä.txt", content=b"1") == (400, "path_wrong")
    before = w.bodies()
    large = bytes(MAX_UPLOAD + 1)
    assert carin.refused("PUT", f"/deposits/{open_deposit}/files/large", content=large) == (413, "file_larger")
    assert w.bodies() == before
    carin.good(carin.ask("PUT", f"/deposits/{open_deposit}/files/empty", content=b""))
    assert {file["path"]: file["size"] for file in files(w, open_deposit)} == {"Ä.txt": 1, "empty": 0}


def test_a_revoked_download_is_cut(w):
    w.anonymised("cut", {"large.bin": os.urandom(MAX_UPLOAD)})
    rikard, permit, (key, _) = w.person("rikard"), w.permit("cut", mode="download"), w.key("rikard")
    [file] = rikard.get(f"/permits/{permit}/files")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", w.server.port))
        target = f"/api/v1/permits/{permit}/files/{file['file_id']}?key={key}"
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rikard.token}\r\n\r\n".encode())
        connection.recv(1000)
        w.person("dagny").post(f"/permits/{permit}/revocation", {"reason": "Enough."})
        time.sleep(0.6)
        received = 0
        while more := connection.recv(1 << 16):
            received += len(more)
    assert received < MAX_UPLOAD


def test_an_altered_output_is_cut(w):
    """The alteration lies behind the first piece, so that the status is out when it is found."""
    w.deposit("altered", {"f": b"1"})
    permit, known = w.permit("altered"), w.bodies()
    _, release = w.run(permit, {"big": os.urandom(9 << 20)})
    rikard, kerttu = w.person("rikard"), w.person("kerttu")
    rikard.post(f"/releases/{release}/request", {"context": "Big."})
    [file] = kerttu.get(f"/releases/{release}")["files"]
    path = f"/releases/{release}/files/{file['file_id']}/inspection"
    assert len(kerttu.good(kerttu.ask("GET", path)).content) == 9 << 20
    [body] = [name for name in w.bodies() - known if not name.endswith(".seal")]
    [place] = (w.folder / "store" / "bodies").rglob(body)
    place.chmod(0o600)

    def flip(offset):
        with place.open("r+b") as changed:
            changed.seek(offset)
            byte = changed.read(1)[0]
            changed.seek(offset)
            changed.write(bytes([byte ^ 1]))

    flip(8 << 20)
    with pytest.raises(httpx.RemoteProtocolError):
        kerttu.ask("GET", path)
    flip(1000)
    assert kerttu.refused("GET", path) == (422, "fault.integrity")
