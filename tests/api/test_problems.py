"""What goes wrong is told as RFC 9457 problems, without values, tracebacks or names of the inside."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import httpx
import pytest

from tests.world import DirectReader, Served
from valv.api import app as api
from valv.keys.client import KeydClient


def test_headers_are_on_every_answer(w):
    for path in ("/health", "/api/v1/node", "/api/v1/account", "/nowhere", "/api/v1/openapi.json"):
        headers = w.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers


def test_unknown_addresses_and_methods(w):
    for path in ("/api/v1/nowhere", "/api/v2/node", "/api/v1/node/", "/docs", "/openapi.json"):
        answered = w.http.get(path)
        assert answered.status_code == 404 and answered.json()["code"] == "fault.missing"
    answered = w.http.put("/api/v1/datasets/x", json={})
    assert answered.status_code == 405 and answered.headers["allow"] == "GET, PATCH"
    assert answered.json()["type"] == "urn:valv:problem:fault.input"


@pytest.mark.parametrize(
    ("content", "media"),
    [
        (b"{", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"name": ' + b"9" * 5000 + b', "password": ""}', "application/json"),
        (b'{"name": "x", "password": "\\ud800"}', "application/json"),
        (b'{"name": "x", "password": "y", "name\\u0000": 1}', "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"name=x", "application/x-www-form-urlencoded"),
        (b"null", "application/json"),
        (b"", "application/json"),
    ],
)
def test_bodies_that_cannot_be_read(w, content, media):
    answered = w.http.post("/api/v1/sessions", content=content, headers={"Content-Type": media})
    assert answered.status_code == 400 and answered.json()["code"] == "fault.input", answered.text


def test_values_are_not_repeated(w):
    secret = "hunter2-" * 200
    answered = w.http.post("/api/v1/sessions", json={"name": "x", "password": secret, "extra": secret})
    found = answered.json()
    assert answered.status_code == 400 and "body.password" in found["detail"] and "body.extra" in found["detail"]
    assert "hunter2" not in answered.text


def test_large_bodies_are_refused(w):
    body = b'{"name": "' + b"x" * (1 << 20) + b'"}'
    answered = w.http.post("/api/v1/sessions", content=body, headers={"Content-Type": "application/json"})
    assert answered.status_code == 413 and answered.json()["code"] == "fault.input"
    pieces = (body[start : start + 65536] for start in range(0, len(body), 65536))
    answered = w.http.post("/api/v1/sessions", content=pieces, headers={"Content-Type": "application/json"})
    assert answered.status_code == 413


def test_headers_that_come_twice(w):
    token = w.person("rikard").token
    headers = [("Authorization", "Bearer x"), ("Authorization", f"Bearer {token}")]
    answered = w.http.get("/api/v1/account", headers=headers)
    assert answered.status_code == 400 and "authorization" in answered.json()["detail"]


def test_what_breaks_inside_stays_inside(w, caplog):
    def broken():
        raise RuntimeError("a secret of the inside")

    served = Served(api.create(replace(w.node, clock=broken), w.reader))
    try:
        with caplog.at_level(logging.INFO, "valv.api"):
            answered = httpx.post(f"{served.url}/api/v1/sessions", json={"name": "x", "password": "y"}, timeout=60)
    finally:
        served.close()
    found = answered.json()
    assert answered.status_code == 500 and found["code"] == "fault.internal" and found["detail"] == ""
    assert "inside" not in json.dumps(found | {"title": ""}) and "Traceback" not in answered.text
    [record] = [record for record in caplog.records if found["reference"] in record.getMessage()]
    assert "a secret of the inside" in logging.Formatter().format(record)


def test_health_tells_what_is_missing(w, tmp_path):
    keys = KeydClient(tmp_path / "none.sock")
    served = Served(api.create(replace(w.node, keys=keys), DirectReader(w.storage, keys, 0)))
    try:
        answered = httpx.get(f"{served.url}/health", timeout=60)
        about = httpx.get(f"{served.url}/api/v1/node", timeout=60)
    finally:
        served.close()
    assert answered.status_code == 503
    assert answered.json() == {
        "status": "degraded",
        "parts": {"database": "ok", "keys": "fault.unreachable", "compute": "ok"},
    }
    assert about.status_code == 503 and str(tmp_path) not in about.text
