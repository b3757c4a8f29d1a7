"""`valv storage` against a real node with several stores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Valv
from tests.placing import Worker
from tests.world import World
from valv.cli import storage

LogIn = Callable[[str], Valv]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSE", 0.1)


@pytest.fixture(scope="module")
def worker(node_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker.beside(node_world, Path(tmp_path_factory.mktemp("stores"))) as made:
        yield made


@pytest.fixture(scope="module")
def stored(worker: Worker, node_world: World) -> str:
    node_world.deposit("cli-placed", {"a": b"1", "b": b"22"})
    worker.settle()
    return "cli-placed"


def test_the_stores(stored: str, logged_in: LogIn) -> None:
    lines = logged_in("olle").good("storage", "status").out.splitlines()
    assert lines[0].split("\t") == ["store", "place", "kind", "used", "quota", "free", "copies", "health"]
    main = next(line.split("\t") for line in lines if line.startswith("main\t"))
    assert main[1:3] == ["SE test", "disk"] and "whole" in main[6] and main[7] == "answers"
    assert any(line.startswith("abroad\tNO test\tdisk\t0 B\t-\t") for line in lines)
    found = logged_in("audun").good("storage", "status", "--json").json
    assert {store["name"] for store in found["stores"]} == {"main", "second", "abroad"}
    logged_in("carin").bad(77, "storage", "status")


def test_a_rule(stored: str, logged_in: LogIn, worker: Worker) -> None:
    carin = logged_in("carin")
    assert carin.good("storage", "rule", stored).line == "copies = 1"
    ran = carin.good("storage", "rule", stored, "copies=2, only in SE")
    assert ran.line == "copies = 2, only in SE" and "2 files are looked at" in ran.err
    worker.settle()
    page = carin.good("storage", "status", stored).out
    assert "copies   2 whole of 2 wanted, 2 files" in page
    assert "second\tSE test\tdisk\t2\t0\t" in page
    carin.good("storage", "rule", stored, "copies = 3")
    worker.settle()
    assert "2: 3 copies are wanted, and only 2 stores may hold it" in carin.good("storage", "status", stored).out
    carin.good("storage", "rule", stored, "")
    worker.settle()
    ran = carin.bad(64, "storage", "rule", stored, "copies = lots")
    assert "copies = 2, tape after 90 d, only in NO" in ran.err
    logged_in("rikard").bad(77, "storage", "rule", stored, "copies = 2")


def test_a_move_that_is_waited_for(stored: str, logged_in: LogIn, worker: Worker) -> None:
    olle = logged_in("olle")
    with worker.working():
        ran = olle.good("storage", "move", stored, "--from", "main", "--to", "second", "--wait")
    assert "all 2 files are in second" in ran.err
    begun = olle.good("storage", "move", stored, "--from", "second", "--to", "main")
    assert "It goes on in the node" in begun.err
    assert f"moving {stored} from second to main: 0 of 2 files" in olle.good("storage", "status").out
    assert "moving   from second to main: 0 of 2 files" in olle.good("storage", "status", stored).out
    worker.settle()
    with worker.working():
        view = olle.good("storage", "move", stored, "--from", "main", "--to", "second", "--wait", "--json").out
    assert [held["store"] for held in json.loads(view)["stores"]] == ["second"]


def test_a_move_that_is_given_up(
    stored: str, logged_in: LogIn, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    olle, carin = logged_in("olle"), logged_in("carin")
    look = storage._look

    def meddled(door: object, dataset: str) -> object:
        carin.good("storage", "rule", stored, "in second")
        return look(door, dataset)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "_look", meddled)
    ran = olle.run("storage", "move", stored, "--from", "second", "--to", "main", "--wait")
    assert ran.code == 1 and "another rule was set meanwhile: copies = 1, in second" in ran.err
    worker.settle()


def test_wrong_words(stored: str, logged_in: LogIn) -> None:
    olle = logged_in("olle")
    olle.bad(64, "storage", "move", stored)
    olle.bad(64, "storage", "move", stored, "--from", "main", "--to", "main")
    olle.bad(66, "storage", "move", stored, "--from", "main", "--to", "nowhere")
    olle.bad(77, "storage", "move", stored, "--from", "second", "--to", "abroad")
    olle.bad(66, "storage", "status", "no-such-set")
    logged_in("carin").bad(77, "storage", "move", stored, "--from", "main", "--to", "second")
