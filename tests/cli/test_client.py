"""A node that misbehaves: it is away, breaks off, lies, or answers what no node would."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Valv
from valv.cli import client
from valv.cli.profile import Profile, save
from valv.formats import crypt4gh, hashtree

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


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up in the middle of an answer is no fault of the server."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def said(value: Any) -> Answer:
    return lambda handler: handler.reply(200, json.dumps(value).encode())


def problem(status: int, code: str, **more: str) -> Answer:
    told = {"code": code, "status": status, "reference": "ref-1", **more}
    return lambda handler: handler.reply(status, json.dumps(told).encode(), "application/problem+json")


def hung_up(handler: Handler) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def content(body: bytes) -> Answer:
    return lambda handler: handler.reply(200, body, "application/octet-stream")


def sealed_file(sealed: bytes, tag: str, cut: int | None = None, before_cut: Callable[[], object] = bool) -> Answer:
    """A download as the node gives it: with the `ETag` of the body, a part only of that body, and whole where the part
    begins within the header. Cut off after `cut` bytes, when `before_cut` has returned."""
    header = crypt4gh.header_length(sealed)
    assert header is not None

    def answer(handler: Handler) -> None:
        first, _, last = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(sealed)), len(sealed) - 1) + 1
        if start < header or handler.headers.get("If-Range") != f'"{tag}"':
            start, end = 0, len(sealed)
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(end - start))
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("ETag", f'"{tag}"')
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(sealed)}")
        handler.end_headers()
        handler.wfile.write(sealed[start : end if cut is None else min(end, start + cut)])
        if cut is not None:
            before_cut()
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
    server = Server(("127.0.0.1", 0), type("Scripted", (Handler,), {"script": script}))
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
    received = {"path": "a b", "state": "received", "size": 3_000_000, "sha256": digest, "reason": ""}
    script.on("GET", "/api/v1/deposits/d", said(view))
    script.on("GET", "/api/v1/deposits/d/uploads", said([]))
    # The node answers the same file sent again as it did the first time.
    script.on("PUT", "/api/v1/deposits/d/files/a%20b", hung_up, hung_up, said(received))
    script.on("POST", "/api/v1/deposits/d/submission", said(view))
    node.good("deposit", data, "--continue", "d")
    sent = [(headers, body) for method, _, headers, body in script.seen if method == "PUT"]
    assert [hashlib.sha256(body).hexdigest() for _, body in sent] == [digest] * 3
    told = f"sha-256=:{base64.b64encode(bytes.fromhex(digest)).decode()}:"
    assert [headers["Content-Digest"] for headers, _ in sent] == [told] * 3
    submitted = [json.loads(body) for method, path, _, body in script.seen if path.endswith("/submission")]
    assert submitted == [{"expected": ["a b"], "sums": {"a b": digest}}]
    # Another file of that name, also where the first answer was lost, is a failure; nothing is handed in.
    script.on("PUT", "/api/v1/deposits/d/files/a%20b", hung_up, problem(409, "file_known"))
    assert "a b" in node.bad(65, "deposit", data, "--continue", "d").err
    assert sum(path.endswith("/submission") for _, path, _, _ in script.seen) == 1


OLD, NEW = "a" * 32, "b" * 32
"""Tags of two bodies."""


def _listed(path: str, plain: bytes, sealed: bytes, tag: str = OLD, file_id: str = "f") -> dict[str, Any]:
    """A file as the node lists it; `sealed`: header and body of the download."""
    body = sealed[crypt4gh.header_length(sealed) :]
    return {
        "file_id": file_id,
        "dataset": "set",
        "version": 1,
        "path": path,
        "size": len(plain),
        "sha256": hashlib.sha256(plain).hexdigest(),
        "etag": tag,
        "body_root": hashtree.tree_root(hashtree.hashes(body), len(body)).hex(),
    }


def _sealed(size: int) -> tuple[bytes, crypt4gh.KeyPair]:
    from io import BytesIO

    from valv.cli import cipher
    from valv.vault.endpoints import Memory, StreamSink

    pair, made = crypt4gh.generate_keypair(), BytesIO()
    cipher.encrypt(Memory(b"p" * size), StreamSink(made), [pair.public])
    return made.getvalue(), pair


SIZE = 5_000_000
CUT = 1_500_000
DOWNLOAD = ("download", "--permit", "p", "--key", "k", "-o")
FILES = "/api/v1/permits/p/files"


def _asked(script: Script, name: str) -> list[str | None]:
    """What the downloads of the file said in this header, in order."""
    return [headers.get(name) for _, path, headers, _ in script.seen if path.startswith(f"{FILES}/f?")]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_download_goes_on_where_it_broke(node: Valv, script: Script, tmp_path: Path) -> None:
    sealed, _ = _sealed(SIZE)
    script.on("GET", FILES, said([_listed("a.vcf", b"p" * SIZE, sealed)]))
    breaks = [sealed_file(sealed, OLD, CUT) for _ in range(3)]
    script.on("GET", f"{FILES}/f", hung_up, *breaks, sealed_file(sealed, OLD))
    node.good(*DOWNLOAD, tmp_path / "d")
    assert (tmp_path / "d" / "set" / "a.vcf.c4gh").read_bytes() == sealed
    begun = [int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0 for asked in _asked(script, "Range")]
    assert begun[:2] == [0, 0] and len(begun) == 5, "first the connection that gave no answer at all"
    assert begun[1:] == sorted(set(begun)) and begun[-1] > 2 * 1_000_000, "each goes on behind the one before"


def test_a_download_of_a_file_that_was_encrypted_anew_begins_anew(node: Valv, script: Script, tmp_path: Path) -> None:
    """In the middle of a command, and when the command is given again."""
    plain, place = b"p" * SIZE, tmp_path / "set"
    before, now = (_sealed(SIZE)[0] for _ in range(2))
    was, became = [_listed("a.vcf", plain, before)], [_listed("a.vcf", plain, now, NEW)]
    script.on("GET", FILES, said(was), said(became))
    twice = [sealed_file(now, NEW) for _ in range(2)]  # the part that is asked for, and the file from its beginning
    script.on("GET", f"{FILES}/f", sealed_file(before, OLD, CUT), *twice)
    ran = node.good(*DOWNLOAD, tmp_path)
    assert ran.err.count("begins anew: a.vcf was encrypted anew in the node") == 1
    assert (place / "a.vcf.c4gh").read_bytes() == now
    assert _asked(script, "If-Range") == [None, f'"{OLD}"', None]

    (place / "a.vcf.c4gh").unlink()
    script.on("GET", f"{FILES}/f", sealed_file(now, NEW, CUT), hung_up)
    node.bad(69, *DOWNLOAD, tmp_path)
    assert _names(place) == {"a.vcf.c4gh.part", "a.vcf.c4gh.part.state", "SHA256SUMS"}
    script.on("GET", FILES, said(was))
    script.on("GET", f"{FILES}/f", sealed_file(before, OLD))
    assert node.good(*DOWNLOAD, tmp_path).err.count("begins anew: a.vcf") == 1
    assert (place / "a.vcf.c4gh").read_bytes() == before
    assert _names(place) == {"a.vcf.c4gh", "SHA256SUMS"}
    assert _asked(script, "Range")[-1] is None


def test_a_file_that_was_encrypted_anew_since_it_was_listed(node: Valv, script: Script, tmp_path: Path) -> None:
    plain = b"p" * 1000
    before, now = (_sealed(1000)[0] for _ in range(2))
    script.on("GET", FILES, said([_listed("a.vcf", plain, before)]), said([_listed("a.vcf", plain, now, NEW)]))
    script.on("GET", f"{FILES}/f", sealed_file(now, NEW))
    node.good(*DOWNLOAD, tmp_path)
    assert (tmp_path / "set" / "a.vcf.c4gh").read_bytes() == now
    (tmp_path / "set" / "a.vcf.c4gh").unlink()
    script.on("GET", FILES, said([_listed("a.vcf", plain, before)]), said([]))
    assert "not in the permit any more" in node.bad(66, *DOWNLOAD, tmp_path).err


def test_a_download_goes_on_where_the_body_is_the_same(node: Valv, script: Script, tmp_path: Path) -> None:
    """In the middle of a command, and when the command is given again."""
    sealed, _ = _sealed(SIZE)
    script.on("GET", FILES, said([_listed("a.vcf", b"p" * SIZE, sealed)]))
    parts = [sealed_file(sealed, OLD, CUT) for _ in range(2)]
    script.on("GET", f"{FILES}/f", *parts, hung_up)
    node.bad(69, *DOWNLOAD, tmp_path)
    asked = len(_asked(script, "Range"))
    script.on("GET", f"{FILES}/f", sealed_file(sealed, OLD))
    ran = node.good(*DOWNLOAD, tmp_path)
    assert "begins anew" not in ran.err
    assert (tmp_path / "set" / "a.vcf.c4gh").read_bytes() == sealed
    assert set(_asked(script, "If-Range")[1:]) == {f'"{OLD}"'}
    (last,) = _asked(script, "Range")[asked:]
    assert last is not None and int(last.removeprefix("bytes=").partition("-")[0]) > CUT


def test_what_came_stays_where_another_file_fails(node: Valv, script: Script, tmp_path: Path) -> None:
    sealed, _ = _sealed(SIZE)
    begun, failed = threading.Event(), threading.Event()

    def refused(handler: Handler) -> None:
        assert begun.wait(30)
        problem(403, "permit_ended")(handler)
        failed.set()

    def before_cut() -> None:
        begun.set()
        assert failed.wait(30)
        time.sleep(0.5)  # the client has read the refusal by then

    both = [_listed("a.vcf", b"p" * SIZE, sealed), _listed("b.vcf", b"p" * SIZE, sealed, file_id="g")]
    script.on("GET", FILES, said(both))
    script.on("GET", f"{FILES}/f", refused)
    script.on("GET", f"{FILES}/g", sealed_file(sealed, OLD, CUT, before_cut))
    node.bad(77, *DOWNLOAD, tmp_path)
    assert _names(tmp_path / "set") == {"b.vcf.c4gh.part", "b.vcf.c4gh.part.state"}
    script.on("GET", f"{FILES}/f", sealed_file(sealed, OLD))
    script.on("GET", f"{FILES}/g", sealed_file(sealed, OLD))
    node.good(*DOWNLOAD, tmp_path)
    last = [headers for _, path, headers, _ in script.seen if path.startswith(f"{FILES}/g?")][-1]
    assert last["Range"].startswith("bytes=1048576-")
    assert (tmp_path / "set" / "b.vcf.c4gh").read_bytes() == sealed


def test_a_download_that_never_comes_ends(node: Valv, script: Script, tmp_path: Path) -> None:
    sealed, longer = _sealed(1)[0], _sealed(2)[0]
    script.on("GET", FILES, said([_listed("a.vcf", b"p", sealed)]))
    script.on("GET", f"{FILES}/f", hung_up)
    node.bad(69, *DOWNLOAD, tmp_path)
    script.on("GET", f"{FILES}/f", sealed_file(longer, OLD))
    assert "not what the node keeps" in node.bad(65, *DOWNLOAD, tmp_path).err
    assert _names(tmp_path / "set") == set()
    script.on("GET", f"{FILES}/f", sealed_file(sealed, NEW))
    assert "again and again" in node.bad(69, *DOWNLOAD, tmp_path).err
    assert _names(tmp_path / "set") == set()


@pytest.mark.parametrize("field", ["etag", "body_root"])
def test_a_list_that_lacks_a_field_is_named(node: Valv, script: Script, tmp_path: Path, field: str) -> None:
    listed = _listed("a.vcf", b"p", _sealed(1)[0])
    del listed[field]
    script.on("GET", FILES, said([listed]))
    assert f"does not tell {field} of a.vcf" in node.bad(69, *DOWNLOAD, tmp_path).err


@pytest.mark.parametrize("path", ["../../evil", "/etc/evil", "a/../../evil", ".ssh/\x00", "link/evil"])
def test_a_node_cannot_write_elsewhere(node: Valv, script: Script, tmp_path: Path, path: str) -> None:
    folder, sealed = tmp_path / "d", _sealed(1)[0]
    (folder / "set").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (folder / "set" / "link").symlink_to(tmp_path / "outside")
    (folder / "link").symlink_to(tmp_path / "outside")
    script.on("GET", "/api/v1/permits/p/files", said([_listed(path, b"p", sealed)]))
    script.on("GET", "/api/v1/permits/p/files/f", sealed_file(sealed, OLD))
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
