"""The portal of a node in this process, on a port of its own, and people who use it as a browser would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.web import html
from tests.world import PASSWORD, Served, World, world
from valv.web import app as web


class Browser:
    """One person's browser: keeps cookies, follows nothing by itself, and checks every page that it gets."""

    def __init__(self, portal: Portal) -> None:
        self.portal = portal
        self.http = httpx.Client(base_url=portal.server.url, timeout=60)
        self.page = ""
        self.status = 0

    def get(self, path: str) -> httpx.Response:
        """See a page, after all its redirects."""
        return self._kept(self.http.get(path, follow_redirects=True))

    def see(self, path: str) -> str:
        answer = self.get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:4000]}"
        return answer.text

    def hidden(self, action: str) -> dict[str, str]:
        """The hidden fields of the form on this page that goes to `action`, by its own or a button's word."""
        for form in html.read(self.page).all("form"):
            actions = {form.attrs.get("action"), *(button.attrs.get("formaction") for button in form.all("button"))}
            if action in actions:
                fields = [found.attrs for found in form.all("input") if found.attrs.get("type") == "hidden"]
                return {found["name"]: found["value"] for found in fields}
        raise AssertionError(f"no form for {action} on {self.page}")

    def send(self, action: str, fields: Mapping[str, Any], *, follow: bool = True) -> httpx.Response:
        """Fill in and send the form of this page."""
        return self.post(action, {**self.hidden(action), **fields}, follow=follow)

    def post(self, action: str, fields: Mapping[str, Any], *, follow: bool = True, **headers: str) -> httpx.Response:
        origin = {"origin": self.portal.server.url, "sec-fetch-site": "same-origin"}
        sent = self.http.post(action, data=dict(fields), headers=origin | headers, follow_redirects=follow)
        return self._kept(sent)

    def upload(self, action: str, files: list[tuple[str, bytes]], **fields: str) -> httpx.Response:
        parts: list[tuple[str, Any]] = [
            (name, (None, value)) for name, value in {**self.hidden(action), **fields}.items()
        ]
        parts.extend(("files", (name, content)) for name, content in files)
        return self._kept(self.http.post(action, files=parts, follow_redirects=True))

    def log_in(self, name: str, *, code: str = "") -> None:
        self.see("/login")
        answer = self.send("/login", {"name": name, "password": PASSWORD, "code": code})
        assert answer.status_code == 200 and "Log out" in answer.text, answer.text

    @property
    def address(self) -> str:
        return self._address

    def _kept(self, answer: httpx.Response) -> httpx.Response:
        self._address = answer.url.raw_path.decode()
        self.status = answer.status_code
        if answer.headers.get("content-type", "").startswith("text/html"):
            self.page = answer.text
            faults = html.lacks(answer.text)
            assert not faults, f"{answer.url}: {faults}\n{answer.text}"
        return answer


class Portal:
    """`world`: the node behind it."""

    def __init__(self, made: World) -> None:
        self.world = made
        self.app = web.create(made.node, made.reader)
        self.server = Served(self.app)
        self._browsers: dict[str, Browser] = {}

    def person(self, name: str) -> Browser:
        """Logged in with a second factor, once for all tests."""
        if name not in self._browsers:
            browser = self._browsers[name] = Browser(self)
            browser.log_in(name, code=self.world.code(name))
        return self._browsers[name]

    def stranger(self) -> Browser:
        return Browser(self)


@pytest.fixture(scope="session")
def portal() -> Iterator[Portal]:
    with world() as made:
        opened = Portal(made)
        try:
            yield opened
        finally:
            opened.server.close()
