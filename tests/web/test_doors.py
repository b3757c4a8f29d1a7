"""Who gets in, and what every answer carries: each route refuses strangers, forged forms, and other sites."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute

from tests.web.conftest import Portal
from tests.world import PASSWORD
from valv.app.operation import action_of
from valv.web import app as web

OPEN = {"node.see", "session.open", "catalogue.find"}
"""What strangers may do."""


def routes() -> Iterator[tuple[str, str, str]]:
    """Method, address (with made-up names) and action of every page."""
    for noun in web.NOUNS:
        for route in noun.router.routes:
            assert isinstance(route, APIRoute)
            for method in route.methods:
                yield method, re.sub(r"\{\w+\}", "x", route.path), action_of(route.endpoint) or ""


ROUTES = sorted(set(routes()))


def test_every_route_names_its_action() -> None:
    assert ROUTES and all(action for _, _, action in ROUTES)


@pytest.mark.parametrize(("method", "path", "action"), [r for r in ROUTES if r[2] not in OPEN])
def test_strangers_are_refused(portal: Portal, method: str, path: str, action: str) -> None:
    stranger = portal.stranger()
    if method == "GET":
        answer = stranger.http.get(path)
        assert answer.status_code == 303
        assert answer.headers["location"] == f"/login?next={path.replace('/', '%2F')}"
        return
    stranger.see("/login")
    answer = stranger.post(path, stranger.hidden("/login"))
    assert answer.status_code == 401 and "You are not logged in" in answer.text


@pytest.mark.parametrize(("method", "path", "action"), [r for r in ROUTES if r[0] == "POST"])
def test_forms_without_the_token_of_this_browser_are_refused(
    portal: Portal, method: str, path: str, action: str
) -> None:
    browser = portal.stranger() if action in OPEN else portal.person("nemo")
    other = portal.person("rikard")
    other.see("/")
    foreign = other.hidden("/logout")["token"]
    before = portal.world.events()
    for fields in ({}, {"token": ""}, {"token": foreign}, {"token": "0" * 64}):
        if path.endswith("/files"):
            answer = browser._kept(browser.http.post(path, files=[("token", (None, fields.get("token", "")))]))
        else:
            answer = browser.post(path, fields)
        assert answer.status_code == 403 and "token_foreign" in answer.text, (fields, answer.text)
    assert portal.world.events() == before


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_forms_sent_by_other_sites_are_refused(portal: Portal, headers: dict[str, str]) -> None:
    nemo = portal.person("nemo")
    nemo.see("/")
    fields = nemo.hidden("/logout")
    answer = nemo._kept(nemo.http.post("/logout", data=fields, headers=headers))
    assert answer.status_code == 403 and "token_foreign" in answer.text
    assert "Log out" in nemo.see("/")


def test_every_answer_carries_the_headers(portal: Portal) -> None:
    nemo = portal.person("nemo")
    for path in (
        "/",
        "/login",
        "/catalogue",
        "/nowhere",
        "/static/valv.css",
        "/static/none",
        "/runs",
        "/datasets/none",
    ):
        for browser in (nemo, portal.stranger()):
            answer = browser.get(path)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin"
            assert answer.headers["cache-control"] == ("public, max-age=86400" if path.endswith("css") else "no-store")


def test_cookies_cannot_be_read_or_sent_by_others(portal: Portal) -> None:
    stranger = portal.stranger()
    first = stranger.http.get("/login")
    assert _flags(first.headers["set-cookie"]) >= {"httponly", "samesite=strict", "path=/"}
    stranger.see("/login")
    name = {"name": "nemo", "password": PASSWORD, "next": "/account"}
    answer = stranger.send("/login", name, follow=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/account"
    assert answer.headers["set-cookie"].startswith("valv_session=")
    assert _flags(answer.headers["set-cookie"]) >= {"httponly", "samesite=strict", "path=/"}
    token = stranger.http.cookies["valv_session"]
    stranger.see("/account")
    stranger.send("/logout", {})
    assert "Log in" in stranger.page
    late = portal.stranger()
    late.http.cookies.set("valv_session", token)
    assert late.http.get("/account").status_code == 303, "a session that was closed opens nothing"


def _flags(cookie: str) -> set[str]:
    return {part.strip().lower() for part in cookie.split(";")}


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "evil",
        "",
        "/\t/evil.example",
        "/ok\r\nx: y",
    ],
)
def test_nobody_is_led_elsewhere_after_the_log_in(portal: Portal, path: str) -> None:
    stranger = portal.stranger()
    stranger.see("/login")
    answer = stranger.send("/login", {"name": "nemo", "password": PASSWORD, "next": path}, follow=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/"


def test_a_wrong_password_and_a_wrong_code_open_nothing(portal: Portal) -> None:
    stranger = portal.stranger()
    stranger.see("/login")
    stranger.send("/login", {"name": "nobody-here", "password": "<script>"})
    assert stranger.status == 401 and "Name or password is wrong" in stranger.page
    assert 'value="nobody-here"' in stranger.page and "&lt;script" not in stranger.page, "the password is not repeated"
    stranger.send("/login", {"name": "olle", "password": PASSWORD, "code": "000000"})
    assert stranger.status == 403 and 'href="#code"' in stranger.page
    assert "valv_session" not in stranger.http.cookies
    for _ in range(5):
        stranger.send("/login", {"name": "attacked", "password": "x"})
    stranger.send("/login", {"name": "attacked", "password": "x"})
    assert stranger.status == 429


def test_the_second_factor_is_asked_for_and_leads_back(portal: Portal) -> None:
    browser = portal.stranger()
    browser.log_in("ronja")
    assert "Not shown lately" in browser.see("/account")
    browser.see("/step-up?next=/account")
    browser.send("/step-up", {"code": "123"})
    assert browser.status == 403 and 'href="#code"' in browser.page
    browser.send("/step-up", {"code": portal.world.code("ronja")})
    assert browser.address == "/account" and "Fresh" in browser.page


def test_a_form_sent_twice_counts_once(portal: Portal) -> None:
    carin = portal.person("carin")
    carin.see("/deposits/new")
    form = carin.hidden("/deposits") | {
        "name": "twice",
        "class": "identifiable",
        "permission": "GRU",
        "committee": "dac",
    }
    first = carin.post("/deposits", form).url
    assert carin.post("/deposits", form).url == first


def test_a_broken_world_is_a_page_with_a_reference(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the inside")

    nemo = portal.person("nemo")
    monkeypatch.setattr("valv.web.permit.permit.mine", fail)
    answer = nemo.get("/permits")
    assert answer.status_code == 500 and "reference" in answer.text
    assert "secret of the inside" not in answer.text and "Traceback" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_large_and_broken_forms(portal: Portal) -> None:
    stranger = portal.stranger()
    assert stranger.post("/login", {"name": "x" * 300_000}).status_code == 400
    broken = stranger.http.post(
        "/login", content=b"\xff\xfe", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert broken.status_code == 400
    many = stranger.post("/login", {f"f{number}": "1" for number in range(600)})
    assert many.status_code == 400
