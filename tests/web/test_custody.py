"""The page of the node's keys, before and after a ceremony, and the page of a dataset that was destroyed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from tests import officers
from tests.officers import Officers
from tests.web.conftest import Browser, Portal
from tests.world import Served
from valv.app import custody, ledger, outbox
from valv.core.custody import DRILL_AFTER
from valv.formats import certificate
from valv.web import app as web
from valv.worker.loops import TOPICS


@pytest.fixture(scope="module")
def own() -> Iterator[Portal]:
    with officers.world() as (made, _):
        opened = Portal(made)
        try:
            yield opened
        finally:
            opened.server.close()


@pytest.fixture(scope="module")
def orders() -> Officers:
    return Officers("valv.example")


def hand_in(portal: Portal, note: str) -> None:
    portal.world.holder.client().order(note, [])
    custody.follow(portal.world.worker)
    outbox.deliver(portal.world.worker, TOPICS)


def test_before_the_first_ceremony(own: Portal) -> None:
    shown = own.person("olle").see("/keys")
    assert "No ceremony was held" in shown and "Officers</h2>" not in shown
    assert 'href="/keys"' in own.person("audun").see("/")


def test_others_are_refused(own: Portal) -> None:
    for name in ("carin", "nemo"):
        assert own.person(name).get("/keys").status_code == 403
        assert 'href="/keys"' not in own.person(name).see("/")


def test_after_a_ceremony(own: Portal, orders: Officers) -> None:
    hand_in(own, orders.ceremony())
    shown = own.person("audun").see("/keys")
    for part in ("2 of 3 officers", "generation 2", "Ceremony", "signed by anna, bo", "valv minutes 1", "Whole"):
        assert part in shown, part
    assert orders.public[0].sign_key in shown.replace("&#43;", "+")
    assert "is behind" not in shown and "Overdue" not in shown


def test_a_drill_that_is_due_is_said_loudly(own: Portal) -> None:
    now = own.world.node.clock() + DRILL_AFTER
    server = Served(web.create(replace(own.world.node, clock=lambda: now), own.world.reader))
    try:
        olle = Browser(cast(Portal, SimpleNamespace(server=server)))
        olle.log_in("olle")
        shown = olle.see("/keys")
        assert "A drill was due on" in shown and "Overdue" in shown
    finally:
        server.close()


def test_a_destroyed_dataset(own: Portal, orders: Officers) -> None:
    own.world.anonymised("taken-back", {"a.txt": b"content"})
    rikard, carin = own.person("rikard"), own.person("carin")
    assert "Apply for access" in rikard.see("/datasets/taken-back")
    with own.world.node.records.reading() as unit:
        (row,) = unit.rows("file", {"path": "a.txt"})
    reason = "Withdrawn by the donors."
    hand_in(own, orders.order("destroy", "anna", "eva", key_ids=(row["key_id"],), reason=reason))
    shown = own.person("audun").see("/keys")
    for part in ("Destruction", reason, "taken-back, version 1: 1 file", "CERTIFICATE OF DESTRUCTION", "Complete"):
        assert part in shown, part
    shown = rikard.see("/datasets/taken-back")
    assert "Destroyed – nothing opens it any more" in shown
    assert "Apply for access" not in shown and "CERTIFICATE" not in shown
    assert "CERTIFICATE OF DESTRUCTION" in carin.see("/datasets/taken-back")
    assert "/datasets/taken-back/certificates/1/json" in carin.see("/datasets/taken-back")
    ledger.checkpoint(own.world.worker)
    bundle = carin.http.get("/datasets/taken-back/certificates/1/json")
    assert bundle.headers["content-disposition"] == 'attachment; filename="taken-back-1.certificate.json"'
    found = certificate.verify(bundle.content, own.world.node.keys.status().log_key)
    assert found.dataset == "taken-back" and found.order.reason == reason
    paper = carin.http.get("/datasets/taken-back/certificates/1/pdf")
    assert paper.headers["content-type"] == "application/pdf" and paper.content.startswith(b"%PDF-1.7")
    assert rikard.http.get("/datasets/taken-back/certificates/1/pdf").status_code == 403
    assert carin.http.get("/datasets/taken-back/certificates/x/pdf").status_code == 404
    assert "taken-back" not in rikard.see("/catalogue?query=taken-back").split("</form>")[-1]
