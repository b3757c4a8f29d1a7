"""Stores and placement through the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.placing import Worker
from tests.world import World

FILES = {"a": b"1" * 100_000, "b": b"22"}


@pytest.fixture(scope="module")
def worker(node_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker.beside(node_world, Path(tmp_path_factory.mktemp("stores"))) as made:
        yield made


@pytest.fixture(scope="module")
def name(worker: Worker, node_world: World) -> str:
    node_world.deposit("placed", FILES)
    worker.settle()
    return "placed"


def post(w: World, who: str, name: str, verb: str, **body: Any) -> Any:
    return w.person(who).post(f"/storage/datasets/{name}/{verb}", body)


def test_the_stores(w: World, worker: Worker, name: str) -> None:
    for who in ("olle", "audun"):
        found = w.person(who).get("/storage")
        stores = {store["name"]: store for store in found["stores"]}
        assert set(stores) == {"main", "second", "abroad"}
        main = stores["main"]
        assert (main["country"], main["unit"], main["fault"], main["backend"]) == ("SE", "test", "", "local")
        assert main["used"] >= sum(map(len, FILES.values())) and main["free"] > 0 and main["seen"]
        assert main["copies"]["whole"] >= 2 and stores["abroad"]["copies"] == {}
    for who in ("carin", "rikard", "kerttu"):
        assert w.person(who).refused("GET", "/storage") == (403, "not_allowed")
    assert w.person("").refused("GET", "/storage") == (401, "login_needed")


def test_a_rule_and_a_move(w: World, worker: Worker, name: str) -> None:
    carin = w.person("carin")
    assert carin.get(f"/storage/datasets/{name}")["rule"] == "copies = 1"
    view = post(w, "carin", name, "rule", rule="Copies=2")
    assert (view["rule"], view["given"], view["copies"], view["waiting"]) == ("copies = 2", True, 1, 2)
    worker.settle()
    view = carin.get(f"/storage/datasets/{name}")
    assert (view["copies"], view["waiting"]) == (2, 0)
    post(w, "carin", name, "rule", rule="")
    worker.settle()
    begun = post(w, "olle", name, "move", source="main", target="second")
    assert begun["moving"]["files"] == 2 and begun["moving"]["by"] == "Olle Operator"
    assert w.person("olle").get("/storage")["moves"][0]["dataset"] == name
    worker.settle()
    view = carin.get(f"/storage/datasets/{name}")
    assert view["moving"] is None and [held["store"] for held in view["stores"]] == ["second"]
    tags = [entry["event"] for entry in w.person("audun").get(f"/datasets/{name}/history")]
    assert [tag for tag in tags if tag.startswith("storage.")] == [
        "storage.rule_set",
        "storage.rule_set",
        "storage.move_begun",
        "storage.move_ended",
    ]


def test_what_is_refused(w: World, worker: Worker, name: str) -> None:
    url = f"/storage/datasets/{name}"
    carin, olle = w.person("carin"), w.person("olle")
    assert carin.refused("POST", f"{url}/rule", {"rule": "many"}) == (400, "rule_wrong")
    assert carin.refused("POST", f"{url}/rule", {"rule": "in abroad"}) == (403, "wrong_place")
    assert carin.refused("POST", f"{url}/rule", {"rule": "in nowhere"}) == (404, "store_unknown")
    assert carin.refused("POST", f"{url}/rule", {"rules": ""}) == (400, "fault.input")
    assert carin.refused("POST", f"{url}/move", {"source": "main", "target": "second"}) == (403, "not_allowed")
    assert olle.refused("POST", f"{url}/move", {"source": "main", "target": "abroad"}) == (403, "wrong_place")
    assert olle.refused("POST", f"{url}/move", {"source": "main", "target": "main"}) == (400, "same_store")
    assert olle.refused("GET", "/storage/datasets/no-such-set") == (404, "not_found")
    for verb, body in (("rule", {"rule": ""}), ("move", {"source": "main", "target": "second"})):
        assert w.person("rikard").refused("POST", f"{url}/{verb}", body) == (403, "not_allowed")
