"""A node that misbehaves: it is away, breaks off, lies, or answers what no node would."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Valv
from valv.cli import client
from valv.cli.profile import Profile, save
from valv.formats import crypt4gh

Answer = Callable[["Handler"], None]


@dataclass
class Script:
    """Answers by method and path, one after the other; the last one stays. `seen`: what was asked."""

    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def on(self, method: str, path: str, *answers: Answer) -> None:
        self.answers[method, path] = list(answers)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.script.seen.append((self.command, self.path, dict(self.headers), body))
        waiting = self.script.answers.get((self.command, path), [problem(404, "not_found")])
        (waiting.pop(0) if len(waiting) > 1 else waiting[0])(self)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, body: bytes, media: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": media, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def said(value: Any) -> Answer:
    return lambda handler: handler.reply(200, json.dumps(value).encode())


def problem(status: int, code: str, **more: str) -> Answer:
    told = {"code": code, "status": status, "reference": "ref-1", **more}
    return lambda handler: handler.reply(status, json.dumps(told).encode(), "application/problem+json")


def hung_up(handler: Handler) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def content(body: bytes, cut: int | None = None, etag: str = "") -> Answer:
    """A file, from the byte that was asked for; cut off after `cut` bytes of it. With an `etag` it comes whole where
    the part that is there has another."""

    def answer(handler: Handler) -> None:
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        start = start if handler.headers.get("If-Range", etag) == etag else 0
        rest = body[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(rest)))
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if etag:
            handler.send_header("ETag", etag)
        handler.end_headers()
        handler.wfile.write(rest if cut is None else rest[:cut])
        if cut is not None:
            handler.wfile.flush()
            hung_up(handler)

    return answer


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def node(script: Script, valv: Valv, monkeypatch: pytest.MonkeyPatch) -> Iterator[Valv]:
    """`valv` logged in at the scripted node."""
    monkeypatch.setattr(client, "QUICK", (0.01, 0.01))
    monkeypatch.setattr(client, "PATIENT", (0.01, 0.01, 0.01))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    save(valv.profile, Profile(url=f"http://127.0.0.1:{server.server_port}", token="t0ken"))
    try:
        yield valv
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()


def test_a_problem_is_shown_as_it_was_said(node: Valv, script: Script) -> None:
    script.on("GET", "/api/v1/runs", problem(403, "permit_ended", title="It is over", detail="since noon", hint="Ask."))
    ran = node.bad(77, "runs")
    assert ran.err == "Error: It is over: since noon\n  → Ask.\n" and ran.out == ""


def test_a_fault_of_the_node_names_its_reference(node: Valv, script: Script) -> None:
    script.on("GET", "/api/v1/runs", problem(500, "fault.internal"))
    assert "reference ref-1" in node.bad(70, "runs").err


def test_an_unknown_problem_is_still_one(node: Valv, script: Script) -> None:
    script.on("GET", "/api/v1/runs", problem(418, "of_tomorrow", title="New", hint="Wait."))
    assert node.bad(70, "runs").err.startswith("Error: New")
    script.on("GET", "/api/v1/runs", lambda handler: handler.reply(502, b"<html>", "text/html"))
    node.bad(70, "runs")
    script.on("GET", "/api/v1/runs", lambda handler: handler.reply(200, b"<html>", "text/html"))
    assert "not a node" in node.bad(69, "runs").err


def test_a_redirection_is_not_followed_with_the_token(node: Valv, script: Script) -> None:
    script.on("GET", "/api/v1/runs", lambda handler: handler.reply(302, b"", Location="/elsewhere"))
    node.bad(70, "runs")
    assert len(script.seen) == 1


def test_an_answer_of_another_shape_is_no_traceback(node: Valv, script: Script) -> None:
    script.on("GET", "/api/v1/runs", said({"secret-looking": 1}))
    assert "secret-looking" not in node.bad(70, "runs").err


def test_what_a_node_says_cannot_command_the_terminal(node: Valv, script: Script) -> None:
    script.on("GET", "/api/v1/runs", problem(403, "not_allowed", title="\x1b[2J", detail="\u202eevil\x07"))
    shown = node.bad(77, "runs").err
    assert not {"\x1b", "\u202e", "\x07"} & set(shown)


def test_a_lost_answer_is_asked_again_under_the_same_key(node: Valv, script: Script) -> None:
    script.on("POST", "/api/v1/permits/p/surrender", hung_up, hung_up, said(None))
    node.good("permit", "surrender", "p")
    keys = [headers["Idempotency-Key"] for _, _, headers, _ in script.seen]
    assert len(keys) == 3 and len(set(keys)) == 1
    node.good("permit", "surrender", "p")
    assert script.seen[-1][2]["Idempotency-Key"] != keys[0]


def test_a_login_is_not_sent_twice(node: Valv, script: Script, tmp_path: Path) -> None:
    script.on("POST", "/api/v1/sessions", hung_up)
    secret = tmp_path / "secret"
    secret.write_text("pass\n")
    node.bad(69, "login", "--account", "ada", "--password-file", secret)
    assert len(script.seen) == 1


def test_nobody_is_there(valv: Valv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUICK", (0.01,))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    save(valv.profile, Profile(url=f"http://127.0.0.1:{port}", token="t"))
    assert "check the address" in valv.bad(69, "runs").err


def test_a_file_is_sent_again_when_the_connection_breaks(node: Valv, script: Script, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a b").write_bytes(b"x" * 3_000_000)
    digest = hashlib.sha256(b"x" * 3_000_000).hexdigest()
    view = {"deposit_id": "d", "dataset": "s", "files": [], "state": {"phase": "submitted", "version": None}}
    script.on("GET", "/api/v1/deposits/d", said(view))
    script.on("PUT", "/api/v1/deposits/d/files/a%20b", hung_up, problem(409, "file_known"))
    script.on("POST", "/api/v1/deposits/d/submission", said(view))
    node.good("deposit", data, "--continue", "d")
    sent = [(headers, body) for method, _, headers, body in script.seen if method == "PUT"]
    assert [hashlib.sha256(body).hexdigest() for _, body in sent] == [digest, digest]
    assert all(headers["Content-Digest"].startswith("sha-256=:") for headers, _ in sent)
    assert script.seen[-2][3] == b'{"expected":["a b"]}'
    # Known at the first sending is another file of that name.
    script.on("PUT", "/api/v1/deposits/d/files/a%20b", problem(409, "file_known"))
    node.bad(65, "deposit", data, "--continue", "d")


def _listed(path: str, plain: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(plain).hexdigest()
    return {"file_id": "f", "dataset": "set", "version": 1, "path": path, "size": len(plain), "sha256": digest}


def _sealed(size: int) -> tuple[bytes, crypt4gh.KeyPair]:
    from io import BytesIO

    from valv.cli import cipher
    from valv.vault.endpoints import Memory, StreamSink

    pair, made = crypt4gh.generate_keypair(), BytesIO()
    cipher.encrypt(Memory(b"p" * size), StreamSink(made), [pair.public])
    return made.getvalue(), pair


def test_a_download_goes_on_where_it_broke(node: Valv, script: Script, tmp_path: Path) -> None:
    size = 5_000_000
    sealed, _ = _sealed(size)
    script.on("GET", "/api/v1/permits/p/files", said([_listed("a.vcf", b"p" * size)]))
    breaks = [content(sealed, cut=1_500_000) for _ in range(3)]
    script.on("GET", "/api/v1/permits/p/files/f", hung_up, *breaks, content(sealed))
    node.good("download", "--permit", "p", "--key", "k", "-o", tmp_path / "d")
    assert (tmp_path / "d" / "set" / "a.vcf.c4gh").read_bytes() == sealed
    ranges = [headers.get("Range") for method, path, headers, _ in script.seen if "/f?" in path]
    assert ranges[-1] is not None and int(ranges[-1].removeprefix("bytes=").rstrip("-")) > 1_000_000


def test_a_download_of_a_file_that_was_encrypted_anew_begins_anew(node: Valv, script: Script, tmp_path: Path) -> None:
    """In the middle of a command, and when the command is given again."""
    before, now = (_sealed(5_000_000)[0] for _ in range(2))
    listed = said([_listed("a.vcf", b"p" * 5_000_000)])
    script.on("GET", "/api/v1/permits/p/files", listed)
    old, new = '"' + "a" * 32 + '"', '"' + "b" * 32 + '"'
    script.on(
        "GET", "/api/v1/permits/p/files/f", content(before, 1_500_000, old), content(now, 1_500_000, new), hung_up
    )
    whole = ("download", "--permit", "p", "--key", "k", "-o", tmp_path)
    ran = node.bad(69, *whole)
    assert ran.err.count("begins anew: a.vcf was encrypted anew in the node since the download began") == 1
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"a.vcf.c4gh.part", "a.vcf.c4gh.part.etag"}
    script.on("GET", "/api/v1/permits/p/files/f", content(before, None, old))
    assert "begins anew" in node.good(*whole).err
    assert (tmp_path / "set" / "a.vcf.c4gh").read_bytes() == before
    assert {path.name for path in (tmp_path / "set").iterdir()} == {"a.vcf.c4gh", "SHA256SUMS"}
    asked = [headers.get("If-Range") for _, path, headers, _ in script.seen if "/f?" in path]
    assert asked[:2] == [None, old] and asked[-1] == new


def test_a_download_goes_on_where_the_body_is_the_same(node: Valv, script: Script, tmp_path: Path) -> None:
    sealed, _ = _sealed(5_000_000)
    script.on("GET", "/api/v1/permits/p/files", said([_listed("a.vcf", b"p" * 5_000_000)]))
    tag = '"' + "a" * 32 + '"'
    parts = [content(sealed, 1_500_000, tag) for _ in range(2)]
    script.on("GET", "/api/v1/permits/p/files/f", *parts, content(sealed, None, tag))
    ran = node.good("download", "--permit", "p", "--key", "k", "-o", tmp_path)
    assert "begins anew" not in ran.err
    assert (tmp_path / "set" / "a.vcf.c4gh").read_bytes() == sealed


def test_a_download_that_never_comes_ends(node: Valv, script: Script, tmp_path: Path) -> None:
    script.on("GET", "/api/v1/permits/p/files", said([_listed("a.vcf", b"p")]))
    script.on("GET", "/api/v1/permits/p/files/f", hung_up)
    node.bad(69, "download", "--permit", "p", "--key", "k", "-o", tmp_path)
    script.on("GET", "/api/v1/permits/p/files/f", content(_sealed(2)[0]))
    node.bad(65, "download", "--permit", "p", "--key", "k", "-o", tmp_path)
    assert [path.name for path in (tmp_path / "set").iterdir()] == []


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "a/../../evil", ".ssh/\x00", "link/evil"])
def test_a_node_cannot_write_elsewhere(node: Valv, script: Script, tmp_path: Path, path: str) -> None:
    folder = tmp_path / "d"
    (folder / "set").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (folder / "set" / "link").symlink_to(tmp_path / "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    script.on("GET", "/api/v1/permits/p/files", said([_listed(path, b"p")]))
    script.on("GET", "/api/v1/permits/p/files/f", content(_sealed(1)[0]))
    node.bad(64, "download", "--permit", "p", "--key", "k", "-o", folder)
    file = {"file_id": "f", "path": path, "size": 1, "sha256": "", "verdict": "approved", "reason": ""}
    script.on("GET", "/api/v1/releases/r", said({"files": [file], "state": {"phase": "released"}}))
    script.on("GET", "/api/v1/releases/r/files/f", content(b"e"))
    node.bad(64, "release", "fetch", "r", "-o", folder)
    assert not list((tmp_path / "outside").iterdir()) and not list(tmp_path.glob("**/evil*"))


@pytest.mark.parametrize("body", [b"other bytes", b"the byt"])
def test_a_released_file_is_checked(node: Valv, script: Script, tmp_path: Path, body: bytes) -> None:
    digest = hashlib.sha256(b"the bytes").hexdigest()
    file = {"file_id": "f", "path": "t.tsv", "size": 9, "sha256": digest, "verdict": "approved", "reason": ""}
    script.on("GET", "/api/v1/releases/r", said({"files": [file], "state": {"phase": "released"}}))
    script.on("GET", "/api/v1/releases/r/files/f", content(body))
    node.bad(65, "release", "fetch", "r", "-o", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_that_is_not_what_the_node_says(node: Valv, script: Script) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from valv.formats.merkle import EMPTY_ROOT
    from valv.formats.note import Checkpoint, public_bytes, sign, verifier_key

    private = Ed25519PrivateKey.generate()
    note = sign(private, "n", Checkpoint("n", 0, EMPTY_ROOT).encode())
    told = {"size": 0, "root": "00" * 32, "checkpoint": note, "checkpoint_size": 0}
    told["log_key"] = verifier_key("n", public_bytes(private))
    script.on("GET", "/api/v1/ledger/proof", said(told))
    script.on("GET", "/api/v1/ledger/export", content(b""))
    assert "its export has" in node.bad(65, "ledger", "verify").err
    told["root"] = EMPTY_ROOT.hex()
    script.on("GET", "/api/v1/ledger/proof", said(told))
    node.good("ledger", "verify")
    script.on("GET", "/api/v1/ledger/proof", said(told | {"log_key": verifier_key("n", bytes(32))}))
    assert "not signed by" in node.bad(65, "ledger", "verify").err
