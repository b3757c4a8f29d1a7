"""The page of fixity: health, damage, and a scrub that an operator begins."""

from __future__ import annotations

import hashlib

from tests.web.conftest import Portal
from valv.app import fixity
from valv.app.scrubbing import Scrubber


def test_the_page_shows_damage_and_begins_scrubs(portal: Portal) -> None:
    world = portal.world
    world.deposit("shown", {"a.txt": b"content"})
    olle = portal.person("olle")
    shown = olle.see("/fixity")
    assert "Fixity</h1>" in shown and "Begin a scrub" in shown and 'href="/fixity"' in shown
    assert "Begin a scrub" not in portal.person("audun").see("/fixity")
    for name in ("carin", "nemo"):
        assert portal.person(name).http.get("/fixity").status_code == 403
    fields = olle.hidden("/fixity")
    answer = olle.post("/fixity", fields | {"dataset": "no-such", "store": ""})
    assert answer.status_code == 404 and "There is a problem" in answer.text
    answer = olle.post("/fixity", olle.hidden("/fixity") | {"dataset": "shown", "store": "", "every": "yes"})
    assert answer.status_code == 200 and "Goes on" in answer.text
    scrubber = Scrubber(world.worker, lambda _: None)
    scrubber.turn()
    assert "Goes on" not in olle.see("/fixity") and "Olle Operator" in olle.see("/fixity")
    assert "each was read again" in portal.person("carin").see("/datasets/shown")
    assert "copies of its files" not in portal.person("rikard").see("/datasets/shown")

    with world.node.records.reading() as unit:
        [row] = [
            one for one in unit.rows("file", {"path": "a.txt"}) if one["body"] in fixity.kept(unit, [one["body"]])
        ][-1:]
    path = world.folder / "store" / "bodies" / hashlib.sha256(row["body"].encode()).hexdigest()[:2] / row["body"]
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    olle.post("/fixity", olle.hidden("/fixity") | {"dataset": "", "store": "main", "every": "yes"})
    scrubber.turn()
    shown = olle.see("/fixity")
    assert "has no whole copy" in shown and row["body"] in shown and "Damaged copies" in shown
    path.write_bytes(content)
    olle.post("/fixity", olle.hidden("/fixity") | {"dataset": "", "store": "", "every": "yes"})
    scrubber.turn()
    assert "has no whole copy" not in olle.see("/fixity")
