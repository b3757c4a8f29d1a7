"""Text of strangers stays text: in titles, descriptions, reasons, file names, and in outputs that a checker opens."""

from __future__ import annotations

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.web import html
from tests.web.conftest import Portal
from tests.web.test_loop import apply
from valv.web import output, words

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>{{ 7*7 }}{% raw %}"


def test_descriptions_and_file_names_are_escaped(portal: Portal) -> None:
    name = '<img src=x onerror=alert(1)>&".txt'
    texts = {"title": EVIL, "description": EVIL, "keywords": EVIL, "data_types": EVIL, "diseases": EVIL}
    path = deposit_with(portal, "hostile", name, texts)
    rikard, dagny = portal.person("rikard"), portal.person("dagny")
    for browser, place in (
        (portal.person("carin"), path),
        (portal.stranger(), "/catalogue?q=hostile"),
        (rikard, "/datasets/hostile"),
        (portal.person("carin"), "/datasets/hostile/describe"),
    ):
        assert_harmless(browser.see(place))
    request = apply(portal, "hostile", title=EVIL, summary=EVIL, institution=EVIL, project=EVIL)
    for browser in (rikard, dagny):
        assert_harmless(browser.see(request))
        assert_harmless(browser.see("/applications"))
    dagny.see(request)
    dagny.send(f"{request}/return", {"reason": EVIL})
    assert_harmless(rikard.see(request))
    assert_harmless(rikard.see(f"{request}/edit"))
    assert_harmless(
        portal.stranger()
        .get(
            "/catalogue",
        )
        .text
    )


def deposit_with(portal: Portal, name: str, file: str, texts: dict[str, str]) -> str:
    carin = portal.person("carin")
    carin.see("/deposits/new")
    form = {"name": name, "class": "identifiable", "permission": "HMB", "committee": "dac"}
    carin.send("/deposits", form | texts)
    path = carin.address
    carin.upload(f"{path}/files", [(file, b"content")])
    carin.send(f"{path}/submit", {"sure": "yes"})
    portal.world.work()
    return path


def assert_harmless(page: str) -> None:
    assert not html.lacks(page)
    tree = html.read(page)
    assert not tree.all("script")
    assert all(image.attrs["src"].startswith("/") for image in tree.all("img"))
    assert "49" not in re.sub(r"\w{10,}", "", tree.all("main")[0].text).split()


def test_queries_are_escaped(portal: Portal) -> None:
    stranger = portal.stranger()
    for field in ("q", "disease", "data_type", "consent"):
        answer = stranger.http.get("/catalogue", params={field: EVIL})
        assert_harmless(answer.text)
    assert_harmless(stranger.http.get("/login", params={"next": EVIL}).text)
    assert_harmless(stranger.http.get(f"/{EVIL}").text)
    assert_harmless(portal.person("nemo").http.get(f"/datasets/{EVIL}").text)


def test_odd_numbers_in_addresses(portal: Portal) -> None:
    audun = portal.person("audun")
    for before in ("0", "1", "-1", "x", "9" * 15, "9" * 40, "²"):
        audun.see(f"/ledger?before={before}")
    for page in ("0", "-3", "x", "999999", "9" * 30, "²"):
        audun.see(f"/catalogue?page={page}")


def test_names_with_a_way_out_are_refused(portal: Portal) -> None:
    carin = portal.person("carin")
    carin.see("/deposits/new")
    carin.send("/deposits", {"name": "../etc", "class": "identifiable", "permission": "GRU", "committee": "dac"})
    assert carin.status == 400 and 'href="#name"' in carin.page
    carin.send("/deposits", {"name": "ways", "class": "identifiable", "permission": "GRU", "committee": "dac"})
    path = carin.address
    for name in ("../../etc/passwd", "a/../b", "a\\b"):
        carin.upload(f"{path}/files", [(name, b"x")])
        assert carin.status == 400 and "This file name cannot be used" in carin.page
    carin.upload(f"{path}/files", [("x", b"x")], folder="../up")
    assert carin.status == 400
    carin.upload(f"{path}/files", [("x", b"x")], folder="/sub/dir/")
    assert "sub/dir/x" in carin.page and carin.status == 200
    carin.send(f"{path}/cancel", {})
    assert "was cancelled" in carin.page


def test_invisible_characters_are_written_out() -> None:
    assert words.visible("a\u202eb\u200bc\x1b[0m\nd\te") == "a\\u202eb\\u200bc\\u001b[0m\nd\te"
    assert words.visible("Åsa Ó Þór") == "Åsa Ó Þór"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=300), st.lists(st.integers(1, 40), max_size=20), st.integers(4, 30))
def test_a_text_in_parts_loses_no_letter(text: str, cuts: list[int], part: int) -> None:
    """Every letter is on some part, whole, and the parts come in order."""
    content = text.replace("\0", "").encode()
    before, output.PART = output.PART, part
    try:
        count = max(1, -(-len(content) // part))
        shown = b""
        for number in range(1, count + 1):
            seen = output.look("a.txt", len(content), _pieces(content, cuts), number)
            assert seen.kind == "text" and seen.parts == count
            piece = seen.text.encode()
            overlap = next(n for n in range(min(6, len(piece), len(shown)), -1, -1) if shown.endswith(piece[:n]))
            begins = [n for n in range(len(shown) + 1) if content.startswith(shown[:n] + piece)]
            assert begins and overlap >= 0
            shown = shown[: max(begins)] + piece if max(begins) + len(piece) > len(shown) else shown
        assert shown == content
    finally:
        output.PART = before


def _pieces(content: bytes, cuts: list[int]):  # type: ignore[no-untyped-def]
    for cut in cuts:
        if content[:cut]:
            yield content[:cut]
            content = content[cut:]
    if content:
        yield content


def test_what_is_not_text_is_not_shown() -> None:
    for content in (b"\0", b"\xff\xfe", b"a" * 70_000 + b"\xff", b"GIF89a\0", b"\xc3" * 10):
        parts = [
            output.look("a.txt", len(content), iter([content]), n + 1).kind
            for n in range(-(-len(content) // output.PART))
        ]
        assert "binary" in parts
    assert output.look("a.csv", 0, iter([]), 1).kind == "text"
    assert output.look("a.csv", 5, iter([b"a,b\nc"]), 1).rows == [["a", "b"], ["c"]]
    assert output.look("a.tsv", 5, iter([b"a\tb\n"]), 1).rows == [["a", "b"]]
    assert output.look("a.html", 9, iter([b"<b>x</b>"]), 1).kind == "text"
    assert output.look("a.svg", 9, iter([b"<svg/>"]), 1).kind == "text"
