"""A person of the demonstration: speaks the node's HTTP API as any client would."""

from __future__ import annotations

import hashlib
import time
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import httpx
import pyotp

from valv.app.account import answer
from valv.errors import CATALOGUE, Refusal, RefusedFault, UnreachableFault
from valv.formats import crypt4gh

WAIT = 120.0


class Person:
    """One account, logged in. Requests that the node refuses raise `RefusedFault` with the node's own code."""

    def __init__(self, url: str, name: str, password: str, totp: str = "") -> None:
        self._http = httpx.Client(base_url=url, timeout=60.0)
        self._name, self._password, self._totp = name, password, totp
        self.log_in()

    def log_in(self) -> None:
        """With a second factor where the account has one. A code counts once, so that soon after another log-in of the
        same account the next one is waited for."""
        for _ in range(40):
            body = {"name": self._name, "password": self._password}
            if self._totp:
                body["code"] = pyotp.TOTP(self._totp).now()
            try:
                token = self.post("/sessions", body)["token"]
            except RefusedFault as fault:
                if fault.refusal.code not in ("code_wrong", "login_limited"):
                    raise
                time.sleep(3)
                continue
            self._http.headers["Authorization"] = f"Bearer {token}"
            return
        raise UnreachableFault(f"{self._name} cannot log in")

    def get(self, path: str, **query: Any) -> Any:
        return self._answer(self._http.get(f"/api/v1{path}", params=query)).json()

    def post(self, path: str, body: Any = None, key: str = "") -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        answered = self._answer(self._http.post(f"/api/v1{path}", json=body or {}, headers=headers))
        return answered.json() if answered.content else None

    def content(self, path: str, **query: Any) -> bytes:
        """The bytes at an address; asked for again while the node says that it is too early."""
        end = time.monotonic() + WAIT
        while True:
            try:
                return self._answer(self._http.get(f"/api/v1{path}", params=query)).content
            except RefusedFault as fault:
                if fault.refusal.code != "not_yet" or time.monotonic() > end:
                    raise
                time.sleep(0.5)

    def deposit(self, folder: Path, **about: Any) -> str:
        """Send every file of a folder, hand the deposit in and wait until it is published. Returns the deposit's id."""
        ident: str = self.post("/deposits", about)["deposit_id"]
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in paths:
            content = path.read_bytes()
            digest = b64encode(hashlib.sha256(content).digest()).decode()
            name = path.relative_to(folder).as_posix()
            url = f"/api/v1/deposits/{ident}/files/{name}"
            self._answer(self._http.put(url, content=content, headers={"Content-Digest": f"sha-256=:{digest}:"}))
        self.post(f"/deposits/{ident}/submission", {"expected": [p.relative_to(folder).as_posix() for p in paths]})
        self.wait(f"/deposits/{ident}", lambda found: found["state"]["phase"], ("published",), ("failed", "cancelled"))
        return ident

    def add_key(self, pair: crypt4gh.KeyPair, label: str) -> str:
        """Register a public key by showing that the private one is at hand. Returns the key's id."""
        challenge = self.post("/account/keys", {"public": b64encode(pair.public).decode(), "label": label})
        opened = crypt4gh.open_header(b64decode(challenge["header"]), [pair.private])
        self.post(f"/account/keys/{challenge['challenge_id']}", {"answer": answer(opened.data_keys[0])})
        ident: str = challenge["challenge_id"]
        return ident

    def wait(self, path: str, phase: Any, good: tuple[str, ...], bad: tuple[str, ...] = ()) -> Any:
        """Ask until the answer's phase is a good one; fail at once where it is a bad one."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            found = self.get(path)
            now = phase(found)
            if now in good:
                return found
            if now in bad:
                raise UnreachableFault(f"{path} came to be {now}: {found.get('state', {}).get('reason', '')}")
            time.sleep(0.2)
        raise UnreachableFault(f"{path} did not become {' or '.join(good)} in {WAIT:.0f} s")

    def refused(self, method: str, path: str, body: Any = None) -> str:
        """Try something that must not work; returns the refusal's code, '' where it worked."""
        try:
            self._answer(self._http.request(method, f"/api/v1{path}", json=body))
        except RefusedFault as fault:
            return fault.refusal.code
        return ""

    def _answer(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        try:
            problem = response.json()
            code, detail = str(problem["code"]), str(problem.get("detail", ""))
        except (ValueError, KeyError, TypeError):
            raise UnreachableFault(f"HTTP status {response.status_code}") from None
        raise RefusedFault(Refusal(code if code in CATALOGUE else "fault.internal", detail))
