"""A dataset of a really running node with two stores: damage is found, repaired and told at every door; then two
officers destroy it with `valv dataset destroy`, and the certificate is proved without the node."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdf
import pytest

from tests.conftest import node_missing
from tests.e2e import work
from tests.e2e.test_custody import Kept
from valv.cli import profile

CONTENT = {"a.bin": b"first" * 50_000, "b.txt": b"second"}
REASON = "The study is over."


class Two(Kept):
    """A node with two stores in folders."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with (self.directory / "valv.toml").open("a") as toml:
            toml.write('\n[stores.second]\npath = "second"\ndistance = 1\n')

    def cli(self, *words: object, who: str = "olof", code: int = 0) -> Any:
        """`valv …` as somebody who is logged in: its JSON, or what it said where it must fail."""
        file = self.folder / f"{who}.json"
        if not file.exists():
            token = self.person(who)._http.headers["Authorization"].removeprefix("Bearer ")
            profile.save(file, profile.Profile(self.url, token, who))
        line = [sys.executable, "-c", "from valv.assemble import main; main()", "--json", "--profile", str(file)]
        ran = subprocess.run([*line, *map(str, words)], capture_output=True, text=True, timeout=300)
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        assert "Traceback" not in ran.stderr
        return json.loads(ran.stdout) if code == 0 else ran.stderr

    def path(self, store: str, name: str) -> Path:
        folder = self.directory / {"main": "store"}.get(store, store)
        return folder / "bodies" / hashlib.sha256(name.encode()).hexdigest()[:2] / name

    def copies(self, name: str) -> dict[tuple[str, str], str]:
        query = (
            "select c.body, c.store, c.state from copy c join file f on f.body = c.body"
            " join dataset d on d.id = f.dataset where d.name = ?"
        )
        return {(body, store): state for body, store, state in self.rows(query, self.names[name])}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    why = node_missing()
    if why:
        pytest.skip(why)
    node = Two(tmp_path_factory.mktemp("destroy"))
    try:
        node.start()
        node.until(lambda: node.health() == "ok")
        public = [part for name in ("anna", "bo", "eva") for part in ("--officer", node.folder / f"{name}.officer.pub")]
        signing = node.signing("anna", "bo")
        node.valv("ceremony", node.directory, *public, "--threshold", 2, "--persons", 1, *signing)
        yield node
    finally:
        node.stop()


def test_damage_is_found_repaired_and_told(two: Two) -> None:
    folder = two.folder / "in"
    folder.mkdir()
    for path, content in CONTENT.items():
        (folder / path).write_bytes(content)
    two.names["d"] = work.fresh("d")
    work.deposit(two.person("carin"), folder, two.names["d"], "identifiable", ["GRU"])
    two.person("carin").post(f"/storage/datasets/{two.names['d']}/rule", {"rule": "copies = 2"})
    two.until(lambda: list(two.copies("d").values()) == ["whole"] * 4)
    body = next(body for body, _ in two.copies("d"))
    good = two.path("second", body).read_bytes()
    two.path("second", body).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    two.path("main", f"{body}.seal").unlink()
    done = two.cli("fixity", "run", two.names["d"], "--all", "--wait")
    state = done["state"]
    assert (state["damaged"], state["repaired"], state["left"], done["copies"]) == (2, 2, 0, 4)
    assert two.path("second", body).read_bytes() == good and two.path("main", f"{body}.seal").exists()
    status = two.cli("fixity", "status")
    assert [one["name"] for one in status["stores"]] == ["main", "second"] and status["damaged"] == []
    tags = [one["event"] for one in two.person("audun").get("/ledger", newest=True, limit=50)]
    assert "fixity.damaged" in tags and "fixity.repaired" in tags
    assert "Error" in two.cli("fixity", "run", who="carin", code=77)


def test_officers_who_are_there_destroy_at_once(two: Two) -> None:
    folder = two.folder / "now"
    folder.mkdir()
    (folder / "x.txt").write_bytes(b"x")
    name, kept = work.fresh("now"), two.folder / "now.json"
    work.deposit(two.person("carin"), folder, name, "identifiable", ["GRU"])
    here = ("--node", two.directory, *two.signing("bo", "eva"), "--certificate", kept, "--yes")
    two.cli("dataset", "destroy", name, "--reason", REASON, *here)
    found = two.cli("dataset", "certificate", "verify", kept, "--key", two.person("olof").get("/node")["log_key"])
    assert found["dataset"] == name and found["order"]["signers"] == ["bo", "eva"] and len(found["copies"]) == 1
    assert "is destroyed already" in two.cli("dataset", "destroy", name, "--reason", REASON, *here[:2], code=64)


def test_the_whole_destruction(two: Two) -> None:
    name, where = two.names["d"], two.folder
    copies = two.copies("d")
    paths = [two.path(store, file) for body, store in copies for file in (body, f"{body}.seal")]
    assert all(path.exists() for path in paths)
    plan = two.cli("dataset", "destroy", name, "--reason", REASON, code=64)
    assert "--order" in plan
    order = where / "d.order"
    wanted = two.cli("dataset", "destroy", name, "--reason", REASON, "--order", order, "--yes", who="carin")
    for officer in ("anna", "eva"):
        key = ("--officer-key", where / f"{officer}.officer", "--passphrase-file", two.secret, "--yes")
        two.valv("sign", order, *key)
    assert two.valv("order", two.directory, order)["order"] == wanted["order"]
    two.until(lambda: two.page("d")["certificates"])
    assert not any(path.exists() for path in paths) and two.copies("d") == {}

    def fetched(*more: object) -> Path:
        target = where / f"certificate{len(list(where.glob('certificate*')))}"
        two.cli("dataset", "certificate", "fetch", name, "-o", target, *more)
        return target

    vkey = two.person("olof").get("/node")["log_key"]
    two.until(lambda: two.rows("select max(size) from checkpoint")[0][0] == two.rows("select size from head")[0][0])
    kept = fetched("--version", 1)
    paper = fetched("--pdf")
    two.stop()  # what follows needs no node
    found = two.cli("dataset", "certificate", "verify", kept, "--key", vkey)
    assert {(one["body"], one["store"]) for one in found["copies"]} == set(copies)
    assert [(one["name"], one["copies"]) for one in found["stores"]] == [("main", 2), ("second", 2)]
    assert found["order"]["reason"] == REASON and found["order"]["signers"] == ["anna", "eva"]
    (where / "node.key").write_text(f"{vkey}\n")
    assert two.cli("dataset", "certificate", "verify", kept, "--key", where / "node.key") == found
    changed = json.loads(kept.read_text())
    changed["certificate"] = changed["certificate"].replace('"copies":2', '"copies":0', 1)
    (where / "changed").write_text(json.dumps(changed))
    assert "ledger" in two.cli("dataset", "certificate", "verify", where / "changed", "--key", vkey, code=65)
    text = "".join(page.extract_text() for page in pypdf.PdfReader(io.BytesIO(paper.read_bytes())).pages)
    assert all(body in "".join(text.split()) for body, _ in copies)
