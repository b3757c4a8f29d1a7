"""The colours: what is written can be read, in light and in dark (WCAG 2.2, 1.4.3 and 1.4.11)."""

from __future__ import annotations

import re
from importlib import resources

import httpx
import msgspec
import pytest

from tests.web.conftest import Portal
from tests.world import Served
from valv.app.node import Node
from valv.web import app as web

CSS = resources.files("valv.web").joinpath("static", "valv.css").read_text("utf-8")
SCHEMES = dict(zip(("light", "dark"), re.findall(r":root \{(.*?)\}", CSS, re.S), strict=True))
GROUNDS = ("paper", "card")
TEXTS = [
    (text, ground) for text in ("ink", "soft", "accent", "accent-strong", "good", "bad", "warn") for ground in GROUNDS
]
TEXTS += [("accent-strong", "tint"), ("accent", "tint"), ("ink", "tint"), ("soft", "tint"), ("on-accent", "accent")]
TEXTS += [("on-accent", "accent-strong"), ("good", "good-tint"), ("bad", "bad-tint"), ("warn", "warn-tint")]
TEXTS += [
    ("ink", "good-tint"),
    ("ink", "bad-tint"),
    ("ink", "warn-tint"),
    ("accent", "good-tint"),
    ("accent", "warn-tint"),
]
EDGES = [(edge, ground) for edge in ("edge", "focus") for ground in GROUNDS]


def _light(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_contrast(scheme: str) -> None:
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", SCHEMES[scheme]))
    for pairs, least in ((TEXTS, 4.5), (EDGES, 3.0)):
        for front, back in pairs:
            a, b = sorted((_light(colours[front]), _light(colours[back])))
            assert (b + 0.05) / (a + 0.05) >= least, f"{front} on {back}"


def test_nothing_is_fetched_from_elsewhere() -> None:
    assert "url(" not in CSS and "@import" not in CSS


def test_cookies_travel_over_tls_only_where_the_portal_does(portal: Portal) -> None:
    made = portal.world.node
    serve = msgspec.structs.replace(made.config.serve, public_url="https://valv.example.org")
    config = msgspec.structs.replace(made.config, serve=serve)
    node = Node(config, made.records, made.storage, made.keys, made.policies, made.login, made.clock)
    server = Served(web.create(node, portal.world.reader))
    try:
        assert "secure" in httpx.get(f"{server.url}/login").headers["set-cookie"].lower()
        assert "secure" not in httpx.get(f"{portal.server.url}/login").headers["set-cookie"].lower()
    finally:
        server.close()
