"""A stand-in for one part of dCache: its REST interface for tapes, as documented. There is no real one without dCache.

It answers `/.well-known/wlcg-tape-rest-api`, `GET /api/v1/namespace/PATH?locality=true` and `POST /api/v1/tape/stage`
to who has the token, and lists the folders of what it knows, over plain HTTP on a loopback address.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from valv.config import Storage

NAMESPACE = "/api/v1/namespace"
LISTING = '<D:multistatus xmlns:D="DAV:">{}</D:multistatus>'
LISTED = (
    "<D:response><D:href>{}</D:href><D:propstat><D:prop><D:getcontentlength>4</D:getcontentlength></D:prop>"
    "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
)


@dataclass
class TapeServer:
    """`localities`: by path; `staged`: what was asked for; `endpoint`: what the well-known file tells, if anything."""

    port: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    localities: dict[str, str] = field(default_factory=dict)
    staged: list[dict[str, Any]] = field(default_factory=list)
    endpoint: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settings(self, folder: Path) -> Storage:
        file = folder / f"token-{self.port}"
        file.touch(mode=0o600)
        file.write_text(self.token)
        return Storage(backend="dcache", url=self.url, path="data/vault", credentials=str(file), tape=True)

    def arrive(self) -> None:
        """What was staged is on disk now."""
        for file in self.staged:
            self.localities[file["path"]] = "ONLINE_AND_NEARLINE"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "GET" and path == "/.well-known/wlcg-tape-rest-api" and self.endpoint:
            return 200, {"sitename": "test", "endpoints": [{"uri": self.endpoint, "version": "v1"}]}
        if method == "PROPFIND":
            inside = [one for one in self.localities if one.rpartition("/")[0] + "/" == path]
            return (207, LISTING.format("".join(map(LISTED.format, inside)))) if inside else (404, "")
        if method == "GET" and path.startswith(NAMESPACE):
            found = self.localities.get(path.removeprefix(NAMESPACE))
            return (200, {"fileType": "REGULAR", "fileLocality": found}) if found else (404, {"errors": []})
        if method == "POST" and path == "/api/v1/tape/stage":
            wanted = json.loads(body)
            if set(wanted) != {"files"} or not wanted["files"]:
                return 400, {"errors": []}
            self.staged += wanted["files"]
            return 201, {"requestId": secrets.token_hex(8)}
        return 404, {"errors": []}


class _Handler(BaseHTTPRequestHandler):
    tapes: TapeServer

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        if self.headers.get("Authorization") != f"Bearer {self.tapes.token}":
            status, found = 401, {"errors": []}
        elif parts.path.startswith(NAMESPACE) and parts.query != "locality=true":
            status, found = 400, {"errors": []}
        else:
            status, found = self.tapes.answer(self.command, unquote(parts.path), body)
        text = (found if isinstance(found, str) else json.dumps(found)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET
    do_PROPFIND = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Not to the terminal."""


@contextlib.contextmanager
def tape_server() -> Iterator[TapeServer]:
    tapes = TapeServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"tapes": tapes}))
    tapes.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield tapes
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
