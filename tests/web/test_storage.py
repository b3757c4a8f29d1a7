"""The pages of the stores and of where a dataset is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.placing import Worker
from tests.web.conftest import Portal
from valv.errors import UnreachableFault


@pytest.fixture(scope="module")
def worker(portal: Portal, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    door = portal.app.state.door
    with Worker.beside(portal.world, Path(tmp_path_factory.mktemp("stores"))) as made:
        object.__setattr__(door, "node", portal.world.node)
        portal.world.deposit("web-placed", {"a": b"1" * 100_000, "b": b"22"})
        made.settle()
        yield made
    object.__setattr__(door, "node", portal.world.node)


def test_operators_and_auditors_see_the_stores(portal: Portal, worker: Worker) -> None:
    for name in ("olle", "audun"):
        shown = portal.person(name).see("/storage")
        for part in ("second", "test, SE", "test, NO", "Answers", "Nothing is being moved", "whole"):
            assert part in shown, part
        assert 'href="/storage"' in portal.person(name).see("/")
    for name in ("carin", "rikard"):
        assert portal.person(name).get("/storage").status_code == 403
        assert 'href="/storage"' not in portal.person(name).see("/")


def test_a_custodian_changes_the_rule(portal: Portal, worker: Worker) -> None:
    carin = portal.person("carin")
    assert "1 of 1 whole" in carin.see("/datasets/web-placed")
    shown = carin.see("/datasets/web-placed/storage")
    assert "(the default)" in shown and "May rest in</dt><dd>main, second</dd>" in shown and "Move it" not in shown
    action = "/datasets/web-placed/rule"
    answer = carin.send(action, {"rule": "copies = several"})
    assert answer.status_code == 400 and 'value="copies = several"' in answer.text
    assert "copies = several&#39; is not understood" in answer.text
    answer = carin.send(action, {"rule": "in abroad"})
    assert answer.status_code == 403 and "may not rest there" in answer.text
    answer = carin.send(action, {"rule": "copies = 2"})
    assert answer.status_code == 200 and "1 of 2 whole" in answer.text and "Being made" in answer.text
    worker.settle()
    assert "2 of 2 whole" in carin.see("/datasets/web-placed/storage")
    assert "2 of 2 whole" in carin.see("/datasets/web-placed")
    carin.see("/datasets/web-placed/storage")
    assert "1 of 3 whole" not in carin.send(action, {"rule": "copies = 3"}).text
    worker.settle()
    shown = carin.see("/datasets/web-placed/storage")
    assert "Too few" in shown and "3 copies are wanted, and only 2 stores may hold it" in shown
    carin.send(action, {"rule": ""})
    worker.settle()


def test_an_operator_moves_it(portal: Portal, worker: Worker) -> None:
    olle = portal.person("olle")
    olle.see("/datasets/web-placed/storage")
    action = "/datasets/web-placed/move"
    answer = olle.send(action, {"source": "main", "target": "main"})
    assert answer.status_code == 400 and "Both stores are the same" in answer.text
    answer = olle.send(action, {"source": "main", "target": "second"})
    assert "being moved from main to second" in answer.text and "0 of 2 files" in answer.text
    assert "0 of 2" in olle.see("/storage")
    worker.settle()
    shown = olle.see("/datasets/web-placed/storage")
    assert "being moved" not in shown and "copies = 1, in second, not in main" in shown


def test_others_see_nothing_of_it(portal: Portal, worker: Worker) -> None:
    rikard, carin = portal.person("rikard"), portal.person("carin")
    assert rikard.get("/datasets/web-placed/storage").status_code == 403
    assert "Where its files are kept" not in rikard.see("/datasets/web-placed")
    carin.see("/datasets/web-placed/storage")
    hidden = carin.hidden("/datasets/web-placed/rule")
    answer = carin.post("/datasets/web-placed/move", hidden | {"source": "second", "target": "main"})
    assert answer.status_code == 403


def test_a_store_that_is_away_is_said_loudly(portal: Portal, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(name: str) -> int:
        raise UnreachableFault("no route to the store")

    monkeypatch.setattr(worker.stores["second"], "size", away)
    worker.step()
    shown = portal.person("olle").see("/storage")
    assert "The store second does not answer" in shown and "No route to the store" in shown and "Away" in shown
    monkeypatch.undo()
    worker.step()
    assert "does not answer" not in portal.person("olle").see("/storage")
