"""The node over HTTP: requests with the session's token, repeated safely, and its problems as faults."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from valv.cli.profile import Profile
from valv.errors import CATALOGUE, Fault, InputFault, Row, UnreachableFault

API = "/api/v1"
QUICK: tuple[float, ...] = (0.3, 1.0)
"""Pauses in seconds before a request is repeated."""
PATIENT: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
"""The same for files: a node that is started again meanwhile must not end a long transfer."""
TIMEOUT = httpx.Timeout(connect=10, read=300, write=120, pool=10)


class Problem(Fault):
    """The node's "no" (RFC 9457), shown as it was said; the exit code is that of its `code`."""

    def __init__(self, status: int, answer: Mapping[str, Any]) -> None:
        self.problem = str(answer.get("code") or "")
        known = CATALOGUE.get(self.problem)
        title = str(answer.get("title") or (known.title if known else f"The node answered {status}"))
        reference = str(answer.get("reference") or "")
        detail = str(answer.get("detail") or "")
        if reference and status >= 500:
            detail = f"{detail} (reference {reference})".strip()
        hint = str(answer.get("hint") or (known.hint if known else ""))
        super().__init__(detail, hint)
        self._row = Row(status, known.exit if known else 70, title, hint)

    @property
    def row(self) -> Row:
        return self._row


def path(*parts: str) -> str:
    """An address under the API from its parts, each of them quoted."""
    return "/".join((API, *(quote(part, safe="") for part in parts)))


class Client:
    """A session with a node. `code`: asks the person for a fresh second factor where a request needs one; None where
    nobody can be asked."""

    def __init__(self, profile: Profile, code: Callable[[], str] | None = None) -> None:
        self._url = profile.url
        self._code = code
        headers = {"Accept": "application/json", "User-Agent": "valv"}
        if profile.token:
            headers["Authorization"] = f"Bearer {profile.token}"
        # What the surroundings say of proxies is not heeded: a token goes to the node and nowhere else.
        self._http = httpx.Client(
            base_url=profile.url, headers=headers, timeout=TIMEOUT, trust_env=False, verify=_trust(profile.ca_file)
        )

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        address: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        repeat: bool = True,
    ) -> Any:
        """One request, JSON in and out (None where the answer is empty). `repeat`: it may be sent again after a lost
        connection; the node carries the same `Idempotency-Key` out once. Raises `Problem` and `UnreachableFault`."""
        headers = {"Idempotency-Key": secrets.token_urlsafe(24)} if method != "GET" else {}
        params = {key: value for key, value in (query or {}).items() if value not in ("", None)}

        def once() -> httpx.Response:
            return self._http.request(method, address, json=body, params=params, headers=headers)

        return _read(self._stepped_up(lambda: self._exchange(once, QUICK if repeat else (), safe=repeat)))

    def send(self, address: str, content: Callable[[], Iterator[bytes]], size: int, sha256: str) -> Any:
        """Put one file of `size` bytes with its checksum (hex). `content` begins anew at each try."""
        digest = base64.b64encode(bytes.fromhex(sha256)).decode()
        headers = {
            "Content-Length": str(size),
            "Content-Type": "application/octet-stream",
            "Content-Digest": f"sha-256=:{digest}:",
        }

        def once() -> httpx.Response:
            return self._http.request("PUT", address, content=content(), headers=headers)

        return _read(self._stepped_up(lambda: self._exchange(once, PATIENT, safe=True)))

    def raw(
        self,
        method: str,
        address: str,
        *,
        headers: Mapping[str, str],
        content: bytes | Callable[[], Iterator[bytes]] = b"",
        repeat: bool = True,
    ) -> httpx.Response:
        """One request with bytes. `content`: called again where the request is repeated. Raises `Problem` and
        `UnreachableFault`."""

        def once() -> httpx.Response:
            given = content if isinstance(content, bytes) else content()
            return self._http.request(method, address, content=given, headers=headers)

        return self._stepped_up(lambda: self._exchange(once, PATIENT if repeat else (), safe=repeat))

    @contextmanager
    def stream(
        self, address: str, *, query: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """An answer whose body is read piece by piece. A connection that breaks on the way is `UnreachableFault`."""
        accept = {"Accept": "*/*", **(headers or {})}

        def once() -> httpx.Response:
            request = self._http.build_request("GET", address, params=query, headers=accept)
            return self._http.send(request, stream=True)

        response = self._stepped_up(lambda: self._exchange(once, QUICK, safe=True))
        try:
            yield response
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        finally:
            response.close()

    def step_up(self, code: str) -> Any:
        return self.ask("POST", path("sessions", "current", "second-factor"), {"code": code}, repeat=False)

    def _stepped_up(self, request: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            return request()
        except Problem as problem:
            if problem.problem != "second_factor" or self._code is None:
                raise
        self.step_up(self._code())
        return request()

    def _exchange(self, once: Callable[[], httpx.Response], pauses: Sequence[float], *, safe: bool) -> httpx.Response:
        tries = iter(pauses)
        while True:
            try:
                response = once()
                break
            except httpx.LocalProtocolError as error:
                raise InputFault("the file changed while it was sent", "send it again when it is complete") from error
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed: httpx.TransportError = error
            except httpx.TransportError as error:
                if not safe:
                    raise self._unreachable(error) from None
                failed = error
            pause = next(tries, None)
            if pause is None:
                raise self._unreachable(failed) from None
            time.sleep(pause)
        if response.status_code >= 300:
            raise _problem(response)
        return response

    def _unreachable(self, error: Exception) -> UnreachableFault:
        why = str(error).strip() or type(error).__name__
        return UnreachableFault(f"{self._url}: {why}", "check the address, and that the node runs")


def _trust(ca_file: str) -> Any:
    if not ca_file:
        return True
    import ssl

    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise InputFault(f"{ca_file}: {error.strerror or error}", "it should hold certificates as PEM") from None


def _problem(response: httpx.Response) -> Problem:
    try:
        response.read()
        answer = response.json()
    except (ValueError, httpx.HTTPError):
        answer = None
    finally:
        response.close()
    if not isinstance(answer, dict):
        answer = {"detail": "and gave no reason", "hint": "check the node's address"}
    return Problem(response.status_code, answer)


def _read(response: httpx.Response) -> Any:
    if response.status_code == 204 or not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        raise UnreachableFault("what answers is not a node", "check the address: 'valv login URL'") from None
