"""Logged-in requests to a Swift server: tokens, retries with back-off, and what its answers mean as faults.

Who logs in is said by the credentials file. A `clouds.yaml` (by its ending) is for Keystone: an application credential
or a password, in the only cloud of the file or in the one called `valv`. Anything else is TOML for Swift's own
`tempauth` and its like (version 1): `auth_url`, `user` and `key`.
"""

from __future__ import annotations

import secrets
import ssl
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from valv.errors import ConfigFault, Fault, FullFault, MissingFault, StorageFault, UnreachableFault

BLOCK: Final = 256 << 10
"""Bytes that are handed to the socket at once."""
CLOUD: Final = "valv"
_HINT: Final = "look at the account in the credentials file, and at its rights on the container"
_RANDOM: Final = secrets.SystemRandom()

Login = Callable[[], tuple[str, str]]
"""Logs in anew: the storage's URL, and a token."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "").strip('"').lower()


class SwiftSession:
    """Requests below the URL of an account. `url`: in place of the one that the login gives; `timeout`: seconds that
    the server may be silent; `attempts`: how often a request is sent, with pauses that double from `pause` seconds.
    Safe for many threads."""

    def __init__(
        self, login: Login, tls: ssl.SSLContext, *, url: str = "", timeout: float, attempts: int, pause: float
    ) -> None:
        self._login = login
        self._url = url.rstrip("/")
        self.attempts = attempts
        self._pause = pause
        self._mutex = threading.Lock()
        self._token = ("", "")
        self._http = httpx.Client(
            verify=tls,
            trust_env=False,
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32),
        )

    def __repr__(self) -> str:
        return f"SwiftSession({self._token[0]})"

    def wait(self, attempt: int) -> None:
        """Before the attempt of this number, counted from 0."""
        if attempt:
            time.sleep(min(5.0, self._pause * 2 ** (attempt - 1)) * _RANDOM.uniform(0.5, 1.0))

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        allowed: tuple[int, ...] = (),
    ) -> Answer:
        """The answer, once it is a 2xx or `allowed`. `path`: container and object.

        Raises `MissingFault` (404), `FullFault`, `StorageFault` (refused), `UnreachableFault` (after all attempts).
        """
        fault: Fault = UnreachableFault("the Swift server does not answer")
        for attempt in range(self.attempts):
            self.wait(attempt)
            try:
                with self.stream(method, path, query=query, headers=headers, body=body) as found:
                    answer = Answer(found.status_code, found.headers, found.read())
            except UnreachableFault as away:
                fault = away
                continue
            if answer.status // 100 == 2 or answer.status in allowed:
                return answer
            fault = refusal(answer)
            if not isinstance(fault, UnreachableFault):
                raise fault
        raise fault

    @contextmanager
    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
    ) -> Iterator[httpx.Response]:
        """One attempt, and another one with a new token where the old one has expired. Whatever the connection does
        meanwhile, also while the answer is read, raises `UnreachableFault`."""
        token = self._logged_in("")
        for last in (False, True):
            sent = {"x-auth-token": token[1], **(headers or {})}
            if method in ("PUT", "POST"):
                sent["content-length"] = str(len(body))
            request = self._http.build_request(
                method,
                f"{token[0]}/{path}",
                params=dict(query or {}),
                headers=sent,
                content=_blocks(body) if len(body) else None,
            )
            try:
                answer = self._http.send(request, stream=True)
                try:
                    if answer.status_code == 401 and not last:
                        token = self._logged_in(token[1])
                        continue
                    yield answer
                    return
                finally:
                    answer.close()
            except httpx.HTTPError as error:
                hint = "name its authority in the setting 'ca'" if "CERTIFICATE_VERIFY" in str(error) else ""
                raise UnreachableFault(f"the Swift server does not answer ({type(error).__name__})", hint) from None

    def _logged_in(self, expired: str) -> tuple[str, str]:
        """URL and token; a new one where there is none yet, or where it is still the `expired` one."""
        with self._mutex:
            if self._token[1] == expired:
                found, token = self._login()
                self._token = ((self._url or found).rstrip("/"), token)
            return self._token


def refusal(answer: Answer) -> Fault:
    """What an answer that is no success means. `UnreachableFault`: it may be asked again."""
    status = answer.status
    if status == 404:
        return MissingFault("not in the Swift store")
    if status == 507 or (status == 413 and b"quota" in answer.content.lower()):
        return FullFault("the Swift server has no room left", "raise the quota, or free room")
    if status in (401, 403):
        return StorageFault(f"the Swift server refuses ({status})", _HINT)
    if status >= 500 or status in (408, 422, 429, 498, 499):  # 422: the bytes were changed on their way
        return UnreachableFault(f"the Swift server fails ({status})")
    return StorageFault(f"the Swift server refuses ({status})")


def login_of(path: Path, region: str, tls: ssl.SSLContext, timeout: float) -> Login:
    """Of a credentials file. Raises `ConfigFault`, never with the file's content."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigFault(
            f"the credentials file {path} cannot be read", "write it, readable to the node alone"
        ) from None
    if path.suffix in (".yaml", ".yml"):
        return _keystone(path, text, region, tls, timeout)
    return _version_1(path, text, tls, timeout)


def _version_1(path: Path, text: str, tls: ssl.SSLContext, timeout: float) -> Login:
    try:
        found = tomllib.loads(text)
        url, user, key = (str(found[name]) for name in ("auth_url", "user", "key"))
    except (tomllib.TOMLDecodeError, KeyError):
        raise ConfigFault(
            f"the credentials file {path} is no login to Swift", "write auth_url, user and key, or a clouds.yaml"
        ) from None

    def login() -> tuple[str, str]:
        try:
            headers = {"x-auth-user": user, "x-auth-key": key}
            answer = httpx.get(url, headers=headers, verify=tls, trust_env=False, timeout=timeout)
        except httpx.HTTPError as error:
            raise UnreachableFault(f"the login to Swift does not answer ({type(error).__name__})") from None
        if answer.status_code >= 500:
            raise UnreachableFault(f"the login to Swift fails ({answer.status_code})")
        storage, token = answer.headers.get("x-storage-url"), answer.headers.get("x-auth-token")
        if answer.status_code // 100 != 2 or not storage or not token:
            raise StorageFault(f"the login to Swift is refused ({answer.status_code})", _HINT)
        return str(storage), str(token)

    return login


def _keystone(path: Path, text: str, region: str, tls: ssl.SSLContext, timeout: float) -> Login:
    import requests
    import yaml  # type: ignore[import-untyped]
    from keystoneauth1 import exceptions, loading, session
    from requests.adapters import HTTPAdapter

    class Trusting(HTTPAdapter):
        """Trusts what `tls` trusts."""

        def init_poolmanager(self, *args: Any, **more: Any) -> None:
            super().init_poolmanager(*args, ssl_context=tls, **more)

    hint = f"write one cloud, or one called {CLOUD!r}, with auth_url and an application credential or a password"
    try:
        clouds = yaml.safe_load(text)["clouds"]
        if CLOUD not in clouds and len(clouds) != 1:
            raise KeyError
        cloud: dict[str, Any] = clouds.get(CLOUD) or next(iter(clouds.values()))
        kind = cloud.get("auth_type", "password")
        plugin: Any = loading.get_plugin_loader(kind).load_from_options(**cloud["auth"])
        region = region or str(cloud.get("region_name") or "")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, exceptions.ClientException):
        raise ConfigFault(f"the credentials file {path} holds no login to Keystone", hint) from None
    http = requests.Session()
    http.trust_env = False
    http.mount("https://", Trusting())
    keystone = session.Session(auth=plugin, session=http, timeout=timeout)

    def login() -> tuple[str, str]:
        try:
            keystone.invalidate()
            token = keystone.get_token()
            url = keystone.get_endpoint(service_type="object-store", interface="public", region_name=region or None)
        except exceptions.HttpError as error:
            if error.http_status >= 500:
                raise UnreachableFault(f"Keystone fails ({error.http_status})") from None
            raise StorageFault(f"Keystone refuses the login ({error.http_status})", _HINT) from None
        except exceptions.ConnectionError as error:
            raise UnreachableFault(f"Keystone does not answer ({type(error).__name__})") from None
        except exceptions.ClientException as error:
            raise StorageFault(f"Keystone cannot be used ({type(error).__name__})", _HINT) from None
        if not token or not url:
            raise StorageFault("Keystone names no object store", "correct the setting 'region', or the catalogue")
        return str(url), str(token)

    return login


def _blocks(body: bytes | memoryview) -> Iterator[bytes]:
    """Piece by piece: the socket layer copies what is left of a piece whenever a part of it was sent."""
    view = memoryview(body)
    for at in range(0, len(view), BLOCK):
        yield bytes(view[at : at + BLOCK])
