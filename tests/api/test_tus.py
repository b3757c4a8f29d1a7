"""Resumable uploads: an independent tus client, and what the protocol asks for, where clients misbehave."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import threading
import time
from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from tusclient.client import TusClient
from tusclient.exceptions import TusCommunicationError

from tests.world import MAX_UPLOAD
from valv.api import deposits
from valv.app import inspection, upload
from valv.formats import crypt4gh
from valv.formats.crypt4gh import MAGIC

TUS = {"Tus-Resumable": "1.0.0"}
MEDIA = {"Content-Type": "application/offset+octet-stream"}
SIZE = 3_333_333
BEFORE: list[set[str]] = []


@pytest.fixture(scope="module", autouse=True)
def before(node_world):
    """What other tests have moved to stores that are gone with them is not looked for here."""
    BEFORE[:] = inspection.bodies(node_world.node)


@pytest.fixture
def ident(w):
    body = {"dataset": "tus", "class": "anonymised", "consent": ["GRU"], "committee": "dac"}
    return w.person("carin").post("/deposits", body)["deposit_id"]


def base(ident):
    return f"/deposits/{ident}/uploads"


def metadata(**pairs):
    return {"Upload-Metadata": ",".join(f"{name} {b64encode(v.encode()).decode()}" for name, v in pairs.items())}


def create(w, ident, length, filename="f.bin", **more):
    headers = TUS | {"Upload-Length": str(length)} | metadata(filename=filename, **more)
    answered = w.person("carin").ask("POST", base(ident), headers=headers)
    assert answered.status_code == 201, answered.text
    return answered.headers["Location"].removeprefix("/api/v1")


def patch(w, path, offset, content, *, who="carin", **headers):
    return w.person(who).ask(
        "PATCH", path, headers=TUS | MEDIA | {"Upload-Offset": str(offset)} | headers, content=content
    )


def offset(w, path):
    answered = w.person("carin").ask("HEAD", path, headers=TUS)
    assert answered.status_code == 200
    return int(answered.headers["Upload-Offset"])


def files(w, ident):
    return {file["path"]: file for file in w.person("carin").get(f"/deposits/{ident}")["files"]}


def sums(content):
    return hashlib.sha256(content).hexdigest()


def in_order(w):
    """No record without a body, and no body that no record points to."""
    missing, stray = inspection.bodies(w.node)
    assert (missing - BEFORE[0], stray - BEFORE[1]) == (set(), set())
    assert list((w.folder / "store" / "new").iterdir()) == []


def publish(w, ident):
    carin = w.person("carin")
    w.work()
    carin.post(f"/deposits/{ident}/submission", {})
    w.work()
    assert carin.get(f"/deposits/{ident}")["state"]["phase"] == "published"
    in_order(w)


def client(w, ident):
    token = w.person("carin").token
    return TusClient(f"{w.server.url}/api/v1{base(ident)}", headers={"Authorization": f"Bearer {token}"})


# --- an independent client ---


def test_an_independent_client_sends_a_file_in_one_go(w, ident, tmp_path):
    content = os.urandom(SIZE)
    (tmp_path / "whole.bin").write_bytes(content)
    uploader = client(w, ident).uploader(str(tmp_path / "whole.bin"), metadata={"filename": "calls/whole.bin"})
    uploader.upload()
    found = files(w, ident)["calls/whole.bin"]
    assert (found["state"], found["size"], found["sha256"]) == ("received", SIZE, sums(content))
    with w.node.records.reading() as unit:
        assert unit.rows("upload_part") == []  # it is its own body: nothing was copied
    publish(w, ident)


def test_an_independent_client_is_interrupted_and_goes_on(w, ident, tmp_path):
    content = os.urandom(SIZE)
    (tmp_path / "long.bin").write_bytes(content)
    tus = client(w, ident)
    uploader = tus.uploader(str(tmp_path / "long.bin"), chunk_size=700_001, metadata={"filename": "long.bin"})
    for _ in range(3):
        uploader.upload_chunk()
    assert files(w, ident)["long.bin"]["state"] == "arriving"
    assert w.person("carin").get(base(ident))[0]["offset"] == 3 * 700_001
    again = client(w, ident).uploader(str(tmp_path / "long.bin"), chunk_size=900_000, url=uploader.url)
    assert again.get_offset() == 3 * 700_001
    again.upload()
    assert w.person("carin").refused("POST", f"/deposits/{ident}/submission", {}) == (409, "not_yet")
    w.work()
    found = files(w, ident)["long.bin"]
    assert (found["state"], found["size"], found["sha256"]) == ("received", SIZE, sums(content))
    publish(w, ident)


def test_the_client_checks_sums_and_hears_of_wrong_ones(w, ident, tmp_path):
    content = os.urandom(100_000)
    (tmp_path / "sum.bin").write_bytes(content)
    client(w, ident).uploader(
        str(tmp_path / "sum.bin"), chunk_size=30_000, metadata={"filename": "sum.bin"}, upload_checksum=True
    ).upload()
    w.work()
    assert files(w, ident)["sum.bin"]["sha256"] == sums(content)
    with pytest.raises(TusCommunicationError):
        client(w, ident).uploader(str(tmp_path / "sum.bin"), metadata={"filename": "../x"}).upload()


# --- the protocol ---


def test_what_is_spoken(w, ident):
    answered = w.person("").ask("OPTIONS", base(ident))
    assert answered.status_code == 204
    assert answered.headers["Tus-Version"] == answered.headers["Tus-Resumable"] == "1.0.0"
    assert answered.headers["Tus-Extension"] == "creation,termination,checksum,expiration"
    assert answered.headers["Tus-Checksum-Algorithm"] == "sha256,sha1"
    assert int(answered.headers["Tus-Max-Size"]) == MAX_UPLOAD
    path = create(w, ident, 10)
    for method in ("HEAD", "PATCH", "DELETE"):
        answered = w.person("carin").ask(method, path, headers={"Tus-Resumable": "0.2.2"} | MEDIA)
        assert (answered.status_code, answered.headers["Tus-Version"]) == (412, "1.0.0")
    answered = w.person("carin").ask("HEAD", path, headers=TUS)
    assert answered.headers["Cache-Control"] == "no-store" and answered.headers["Upload-Length"] == "10"
    assert answered.headers["Upload-Expires"].endswith("GMT") and "filename " in answered.headers["Upload-Metadata"]


def test_offsets(w, ident):
    content = os.urandom(200_000)
    path = create(w, ident, len(content), sha256=sums(content))
    assert patch(w, path, 0, content[:70_000]).headers["Upload-Offset"] == "70000"
    for wrong in (0, 69_999, 70_001, 200_000, 10**17):
        answered = patch(w, path, wrong, content[70_000:])
        assert (answered.status_code, answered.json()["code"]) == (409, "offset_wrong")
    assert offset(w, path) == 70_000
    for wrong in ("-1", "x", "", "1e3"):
        assert patch(w, path, wrong, b"x").status_code == 400
    answered = w.person("carin").ask("PATCH", path, headers=TUS | {"Upload-Offset": "70000"}, content=b"x")
    assert answered.status_code == 415
    assert patch(w, path, 70_000, content[70_000:] + b"more").status_code == 413
    assert offset(w, path) == 70_000
    assert patch(w, path, 70_000, b"").headers["Upload-Offset"] == "70000"
    assert patch(w, path, 70_000, content[70_000:]).status_code == 204
    assert offset(w, path) == 200_000
    assert patch(w, path, 200_000, b"").status_code == 204
    publish(w, ident)


def test_checksums_of_what_is_sent(w, ident):
    content = os.urandom(100_000)
    path, before = create(w, ident, len(content)), w.bodies()

    def said(algorithm, data):
        return {"Upload-Checksum": f"{algorithm} {b64encode(hashlib.new(algorithm, data).digest()).decode()}"}

    answered = patch(w, path, 0, content[:50_000], **said("sha1", b"other"))
    assert (answered.status_code, answered.json()["code"]) == (460, "checksum")
    assert offset(w, path) == 0 and w.bodies() == before
    for wrong in ("md5 AAAA", "sha256", "sha256 %%%"):
        assert patch(w, path, 0, content, **{"Upload-Checksum": wrong}).status_code in (400, 460)
    assert patch(w, path, 0, content[:50_000], **said("sha256", content[:50_000])).status_code == 204
    assert patch(w, path, 50_000, content[50_000:], **said("sha1", content[50_000:])).status_code == 204
    w.work()
    assert files(w, ident)["f.bin"]["sha256"] == sums(content)


def test_a_file_that_is_not_the_declared_one(w, ident):
    one, two = os.urandom(1000), os.urandom(200_000)
    path = create(w, ident, len(one), "one", sha256=sums(b"other"))
    assert patch(w, path, 0, one).status_code == 204
    path = create(w, ident, len(two), "two", sha256=sums(b"other"))
    patch(w, path, 0, two[:100_000])
    patch(w, path, 100_000, two[100_000:])
    w.work()
    for name in ("one", "two"):
        found = files(w, ident)[name]
        assert found["state"] == "refused" and "checksum" in found["reason"]
    assert {row["state"] for row in w.person("carin").get(base(ident))} == {"refused"}
    in_order_soon(w)
    path = create(w, ident, len(one), "one", sha256=sums(one))
    assert patch(w, path, 0, one).status_code == 204
    assert files(w, ident)["one"]["state"] == "received"


def in_order_soon(w):
    """What a join left behind is deleted a minute later: it is known until then."""
    upload.clear(w.worker)
    missing, stray = inspection.bodies(w.node)
    assert (missing - BEFORE[0], stray - BEFORE[1]) == (set(), set())


def test_termination(w, ident):
    before = w.bodies()
    path = create(w, ident, 100_000)
    patch(w, path, 0, os.urandom(50_000))
    assert w.person("carin").ask("DELETE", path, headers=TUS).status_code == 204
    assert w.person("carin").ask("HEAD", path, headers=TUS).status_code == 404
    assert patch(w, path, 50_000, b"x").status_code == 404
    assert w.bodies() == before and files(w, ident) == {}
    in_order(w)


def test_a_header_may_name_the_method(w, ident):
    path = create(w, ident, 4)
    carin = w.person("carin")
    headers = TUS | MEDIA | {"Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    assert carin.ask("POST", path, headers=headers, content=b"abcd").status_code == 204
    assert carin.ask("POST", f"/deposits/{ident}", headers={"X-HTTP-Method-Override": "DELETE"}).status_code == 405
    assert files(w, ident)["f.bin"]["sha256"] == sums(b"abcd")


def test_an_empty_file_is_there_at_once(w, ident):
    create(w, ident, 0, "empty")
    assert files(w, ident)["empty"]["sha256"] == sums(b"")
    publish(w, ident) if create(w, ident, 0, "other") else None


def test_a_repeated_announcement_is_one_upload(w, ident):
    headers = TUS | {"Upload-Length": "5", "Idempotency-Key": "once"} | metadata(filename="a")
    carin = w.person("carin")
    first, second = (carin.ask("POST", base(ident), headers=headers).headers["Location"] for _ in range(2))
    assert first == second
    other = create(w, ident, 7, "a")
    assert other not in first
    assert carin.ask("HEAD", first.removeprefix("/api/v1"), headers=TUS).status_code == 404


# --- interruptions ---


def raw(w, path, start, length, *headers):
    connection = socket.create_connection(("127.0.0.1", w.server.port), timeout=60)
    lines = [f"PATCH /api/v1{path} HTTP/1.1", "Host: x", f"Authorization: Bearer {w.person('carin').token}"]
    lines += ["Tus-Resumable: 1.0.0", "Content-Type: application/offset+octet-stream", f"Upload-Offset: {start}"]
    connection.sendall(("\r\n".join([*lines, f"Content-Length: {length}", *headers]) + "\r\n\r\n").encode())
    return connection


def test_what_came_before_a_cut_is_kept(w, ident):
    content = os.urandom(SIZE)
    path, done = create(w, ident, SIZE), 0
    for cut in (100, 65_536, 65_537, 700_000, 1_234_567):
        with raw(w, path, done, SIZE - done) as connection:
            connection.sendall(content[done : done + cut])
            time.sleep(0.3)  # what the server has not taken from the connection when it is cut is lost
        done += cut
        assert offset(w, path) == done
    assert patch(w, path, done, content[done:]).status_code == 204
    w.work()
    assert files(w, ident)["f.bin"]["sha256"] == sums(content)
    publish(w, ident)


def test_with_a_checksum_nothing_is_kept_of_a_cut(w, ident):
    path, before = create(w, ident, 1000), w.bodies()
    with raw(w, path, 0, 1000, f"Upload-Checksum: sha1 {b64encode(bytes(20)).decode()}") as connection:
        connection.sendall(b"x" * 500)
    time.sleep(0.3)
    assert offset(w, path) == 0 and w.bodies() == before


def test_who_asks_for_the_offset_takes_over(w, ident):
    """A connection that is dead without our knowing holds nothing up: its bytes count, and the next sender goes on."""
    content = os.urandom(500_000)
    path = create(w, ident, len(content))
    with raw(w, path, 0, len(content)) as connection:
        connection.sendall(content[:300_000])
        time.sleep(0.5)
        assert patch(w, path, 0, b"x").status_code == 423
        began = time.monotonic()
        assert offset(w, path) == 300_000
        assert time.monotonic() - began < 5
        assert connection.recv(1000).startswith(b"HTTP/1.1 400")
    assert patch(w, path, 300_000, content[300_000:]).status_code == 204
    w.work()
    assert files(w, ident)["f.bin"]["sha256"] == sums(content)


def test_a_sender_that_falls_silent_is_cut_off(w, ident, monkeypatch):
    monkeypatch.setattr(deposits, "IDLE", 0.2)
    path = create(w, ident, 1000)
    with raw(w, path, 0, 1000) as connection:
        connection.sendall(b"x" * 400)
        assert b" 400 " in connection.recv(100)
    assert offset(w, path) == 400


def test_senders_at_the_same_time(w, ident):
    for _ in range(5):
        content = os.urandom(2_000_000)
        path = create(w, ident, len(content))
        answers, ready = [], threading.Barrier(4)

        def send(path=path, content=content, answers=answers, ready=ready):
            ready.wait()
            answers.append(patch(w, path, 0, content).status_code)

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers.count(204) == 1 and set(answers) <= {204, 409, 423}, answers
        assert files(w, ident)["f.bin"]["sha256"] == sums(content)
        w.person("carin").good(w.person("carin").ask("DELETE", f"/deposits/{ident}/files/f.bin"))
    in_order(w)


# --- what may not be ---


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a\\b",
        "a//b",
        ".",
        "a\nb",
        "x" * 10_000,
        "e\u0301",
        "\u202etxt.exe",
        "Participants.TSV",
    ],
)
def test_path_tricks(w, ident, name):
    before = w.bodies()
    headers = TUS | {"Upload-Length": "3"} | metadata(filename=name)
    answered = w.person("carin").ask("POST", base(ident), headers=headers)
    assert answered.status_code in (400, 422, 431), answered.text
    assert w.person("carin").get(base(ident)) == [] and w.bodies() == before


def test_bad_announcements(w, ident):
    carin = w.person("carin")
    good = metadata(filename="f")
    for headers in (
        good,
        {"Upload-Length": "3"},
        {"Upload-Length": "-3"} | good,
        {"Upload-Length": "3", "Upload-Metadata": "filename"},
        {"Upload-Length": "3", "Upload-Metadata": "filename %"},
        {"Upload-Length": "3", "Upload-Metadata": "filename /w=="},
        {"Upload-Length": "3"} | metadata(filename="f", sha256="abc"),
        {"Upload-Defer-Length": "1"} | good,
    ):
        assert carin.refused("POST", base(ident), headers=TUS | headers) == (400, "fault.input"), headers
    headers = TUS | {"Upload-Length": str(MAX_UPLOAD + 1)} | good
    assert carin.refused("POST", base(ident), headers=headers) == (413, "file_larger")
    assert carin.get(base(ident)) == []


def test_names_that_meet(w, ident):
    carin = w.person("carin")
    carin.good(carin.ask("PUT", f"/deposits/{ident}/files/Straße.txt", content=b"1"))
    create(w, ident, 9, "Ångström")
    for name in ("strasse.txt", "STRASSE.TXT", "ångström", "Straße.txt/below"):
        headers = TUS | {"Upload-Length": "3"} | metadata(filename=name)
        assert carin.refused("POST", base(ident), headers=headers) == (400, "path_wrong"), name
    headers = TUS | {"Upload-Length": "3"} | metadata(filename="Straße.txt")
    assert carin.refused("POST", base(ident), headers=headers) == (409, "file_known")
    path = create(w, ident, 3, "late")
    carin.good(carin.ask("PUT", f"/deposits/{ident}/files/late", content=b"1"))
    assert patch(w, path, 0, b"abc").status_code == 204
    in_order_soon(w)
    assert files(w, ident)["late"]["state"] in ("received", "refused")
    assert [file["state"] for file in carin.get(f"/deposits/{ident}")["files"] if file["path"] == "late"] == [
        "received",
        "refused",
    ]


def test_an_upload_of_somebody_else(w, ident):
    path = create(w, ident, 100)
    alma = w.person("alma")
    new = {"dataset": "tus-alma", "class": "anonymised", "consent": ["GRU"], "committee": "dac"}
    own = alma.post("/deposits", new)["deposit_id"]
    foreign = path.replace(ident, own)
    for where in (path, foreign):
        assert patch(w, where, 0, b"x", who="alma").status_code in (403, 404)
        assert alma.ask("HEAD", where, headers=TUS).status_code in (403, 404)
        assert alma.ask("DELETE", where, headers=TUS).status_code in (403, 404)
    assert patch(w, foreign, 0, b"x").status_code in (403, 404)
    assert offset(w, path) == 0


def test_a_deposit_that_takes_no_files_any_more(w, ident):
    create(w, ident, 0, "first")
    path = create(w, ident, 1000)
    patch(w, path, 0, bytes(500))
    w.person("carin").post(f"/deposits/{ident}/submission", {})
    assert patch(w, path, 500, bytes(500)).status_code == 409
    w.work()
    assert upload.clear(w.worker) >= 1
    in_order(w)


# --- encrypted already ---


def sealed(w, content):
    """A Crypt4GH file for the node."""
    data_key = os.urandom(32)
    header = crypt4gh.build_header(data_key, [w.node.keys.status().node_key])
    body = b""
    for at in range(0, len(content), crypt4gh.SEGMENT):
        nonce = os.urandom(crypt4gh.NONCE)
        body += nonce + ChaCha20Poly1305(data_key).encrypt(nonce, content[at : at + crypt4gh.SEGMENT], None)
    return header + body


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_file_that_is_encrypted_already(w, ident, pieces):
    content = os.urandom(200_000)
    data = sealed(w, content)
    path, step = create(w, ident, len(data), "enc.bin.c4gh"), -(-len(data) // pieces)
    for start in range(0, len(data), step):
        assert patch(w, path, start, data[start : start + step]).status_code == 204
    w.work()
    assert files(w, ident)["enc.bin"]["size"] == len(content)
    publish(w, ident)
    assert files(w, ident)["enc.bin"]["sha256"] == sums(content)


@pytest.mark.parametrize("pieces", [1, 3])
def test_what_only_looks_encrypted_is_refused(w, ident, pieces):
    data = MAGIC + os.urandom(100_000)
    path, step = create(w, ident, len(data), "looks.c4gh"), -(-len(data) // pieces)
    for start in range(0, len(data), step):
        patch(w, path, start, data[start : start + step])
    w.work()
    found = files(w, ident)["looks.c4gh"]
    assert found["state"] == "refused" and "Crypt4GH" in found["reason"]
    in_order_soon(w)


def test_a_table_of_participants_is_read_before_it_counts(w, ident):
    create(w, ident, 0, "data")
    table = b"pseudonym\tconsent_group\nP-1\tmain\nP-1\tmain\n"
    path = create(w, ident, len(table), "participants.tsv")
    assert patch(w, path, 0, table).status_code == 204
    carin = w.person("carin")
    carin.post(f"/deposits/{ident}/submission", {})
    w.work()
    view = carin.get(f"/deposits/{ident}")
    assert view["state"]["phase"] == "failed"
    assert [file["state"] for file in view["files"] if file["path"] == "participants.tsv"] == ["refused"]


def test_connections_stay_usable_after_refusals(w, ident):
    path = create(w, ident, 4)
    connection = http.client.HTTPConnection("127.0.0.1", w.server.port, timeout=60)
    headers = TUS | MEDIA | {"Authorization": f"Bearer {w.person('carin').token}"}
    for start, status in (("9", 409), ("0", 204)):
        connection.request("PATCH", f"/api/v1{path}", b"abcd", headers | {"Upload-Offset": start})
        answered = connection.getresponse()
        answered.read()
        assert answered.status == status
        if answered.will_close:
            connection.close()
