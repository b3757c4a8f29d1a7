"""Scrubs and certificates at the API: orders, views, and files with the right names."""

from __future__ import annotations

from typing import Any

from tests.world import World
from valv.app.scrubbing import Scrubber


def test_a_scrub_is_ordered_seen_and_repeated(w: World) -> None:
    w.deposit("scrubbed", {"a.txt": b"content"})
    olle = w.person("olle")
    ident = olle.post("/fixity", {"dataset": "scrubbed", "every": True}, key="one")["scrub_id"]
    assert olle.post("/fixity", {"dataset": "scrubbed", "every": True}, key="one")["scrub_id"] == ident
    assert olle.refused("POST", "/fixity", {"dataset": "scrubbed"}) == (409, "scrub_going")
    assert olle.refused("POST", "/fixity", {"store": "nowhere"}) == (404, "store_unknown")
    assert olle.refused("POST", "/fixity", {"dataset": "none-such"}) == (404, "dataset_unknown")
    going = olle.get(f"/fixity/{ident}")
    assert (going["state"]["phase"], going["dataset"], going["by"]) == ("going", "scrubbed", "Olle Operator")
    Scrubber(w.worker, lambda _: None).turn()
    done = olle.get(f"/fixity/{ident}")
    assert (done["state"]["phase"], done["copies"], done["state"]["left"]) == ("done", 1, 0)
    health: dict[str, Any] = w.person("audun").get("/fixity")
    assert [one["name"] for one in health["stores"]] == ["main"]
    assert ident in {one["state"]["scrub_id"] for one in health["scrubs"]}
    assert olle.refused("GET", "/fixity/none") == (404, "not_found")


def test_before_a_destruction_there_is_a_plan_and_no_certificate(w: World) -> None:
    w.deposit("doomed", {"a.txt": b"content"})
    carin = w.person("carin")
    plan = carin.get("/datasets/doomed/destruction")
    [version] = plan["versions"]
    assert (plan["dataset"], version["version"], version["files"], version["destroyed"]) == ("doomed", 1, 1, False)
    assert [copy[:2] for copy in version["copies"]] == [["main", 1]]
    assert carin.refused("GET", "/datasets/doomed/certificates/1") == (404, "no_certificate")
    assert carin.refused("GET", "/datasets/doomed/certificates/2/pdf") == (404, "no_version")
    assert carin.ask("GET", "/datasets/doomed/certificates/x").status_code == 400
