"""A request that is repeated under its Idempotency-Key is carried out once."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

keys = (f"key-{number}" for number in itertools.count())


def twice(w, name, method, path, body=None):
    """Ask twice; returns the answer, which was the same both times and appended nothing the second time."""
    person, key = w.person(name), next(keys)
    before = w.events()
    first = person.good(person.ask(method, path, body, key=key))
    between = w.events()
    assert between > before, "nothing happened"
    second = person.good(person.ask(method, path, body, key=key))
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert w.events() == between
    return first.json() if first.content else None


def test_every_order_is_carried_out_once(w):
    new = {"dataset": "repeats", "class": "anonymised", "consent": ["GRU"], "committee": "dac"}
    dropped = twice(w, "carin", "POST", "/deposits", new)["deposit_id"]
    twice(w, "carin", "DELETE", f"/deposits/{dropped}")
    deposit = twice(w, "carin", "POST", "/deposits", new)["deposit_id"]
    assert deposit != dropped
    carin = w.person("carin")
    for _ in range(2):
        answered = carin.ask(
            "PUT",
            f"/deposits/{deposit}/files/f",
            content=b"1",
            headers={"Content-Digest": "sha-256=:a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s=:"},
        )
        assert answered.json()["state"] == "received"
    twice(w, "carin", "POST", f"/deposits/{deposit}/submission", {"expected": ["f"]})
    w.work()
    w.scan("repeats")
    assessment = {"version": 1, "confirm": True, "reason": "Looked."}
    twice(w, "kerttu", "POST", "/datasets/repeats/assessment", assessment)
    access = twice(w, "rikard", "POST", "/applications", w.form("repeats"))["access_id"]
    twice(w, "rikard", "PUT", f"/applications/{access}", w.form("repeats", days=20))
    twice(w, "rikard", "POST", f"/applications/{access}/submission")
    twice(w, "dagny", "POST", f"/applications/{access}/return", {"reason": "More."})
    twice(w, "rikard", "POST", f"/applications/{access}/submission")
    permit = twice(w, "dagny", "POST", f"/applications/{access}/approval", {"reason": "Fits."})["permit_id"]
    other = twice(w, "rikard", "POST", "/applications", w.form("repeats"))["access_id"]
    twice(w, "rikard", "POST", f"/applications/{other}/withdrawal")
    rejected = w.application("repeats")
    twice(w, "dagny", "POST", f"/applications/{rejected}/rejection", {"reason": "No."})
    rotate = {"dataset": "repeats", "aim": "rekey", "reason": "Due."}
    [rotation] = twice(w, "olle", "POST", "/rotations", rotate)["rotation_ids"]
    twice(w, "olle", "POST", f"/rotations/{rotation}/stop")
    run = twice(w, "rikard", "POST", "/runs", {"permit": permit, "command": ["true"]})["run_id"]
    twice(w, "rikard", "POST", f"/runs/{run}/stop")
    _, release = w.run(permit, {"a": b"1"})
    twice(w, "rikard", "POST", f"/releases/{release}/request", {"context": "A digit."})
    page = w.person("kerttu").get(f"/releases/{release}")
    decision = {"approve": True, "reason": "Looked at.", "manifest": page["state"]["manifest"]}
    twice(w, "kerttu", "POST", f"/releases/{release}/files/{page['files'][0]['file_id']}/decision", decision)
    _, release = w.run(permit, {"a": b"1"})
    w.person("rikard").post(f"/releases/{release}/request", {"context": "A digit."})
    twice(w, "rikard", "POST", f"/releases/{release}/withdrawal")
    given = w.permit("repeats")
    twice(w, "rikard", "POST", f"/permits/{given}/surrender")
    twice(w, "dagny", "POST", f"/permits/{permit}/revocation", {"reason": "Enough."})
    twice(w, "carin", "POST", "/datasets/repeats/narrowing", {"version": 1, "reason": "A name."})


def test_one_key_counts_for_one_address(w):
    w.deposit("address", {"f": b"1"})
    rikard, key = w.person("rikard"), next(keys)
    first = rikard.post("/applications", w.form("address"))["access_id"]
    second = rikard.post("/applications", w.form("address"))["access_id"]
    for ident in (first, second):
        rikard.post(f"/applications/{ident}/submission", key=key)
        assert rikard.get(f"/applications/{ident}")["state"]["phase"] == "submitted"


def test_at_the_same_time(w):
    w.deposit("race", {"f": b"1"})
    rikard, key = w.person("rikard"), next(keys)
    with ThreadPoolExecutor(8) as pool:
        form = w.form("race")
        answers = list(pool.map(lambda _: rikard.ask("POST", "/applications", form, key=key), range(8)))
        assert {answered.status_code for answered in answers} == {201}, [answered.text for answered in answers]
        [ident] = {answered.json()["access_id"] for answered in answers}
        path = f"/applications/{ident}/submission"
        before = w.events()
        answers = list(pool.map(lambda _: rikard.ask("POST", path, key=key), range(8)))
        assert {answered.status_code for answered in answers} == {204}, [answered.text for answered in answers]
    assert w.events() == before + 1


@pytest.mark.parametrize("key", ["a b", "x" * 101, "\x7f"])
def test_keys_are_visible_ascii(w, key):
    answered = w.person("rikard").ask("POST", "/applications", w.form("race"), headers={"Idempotency-Key": key})
    assert answered.status_code == 400 and "idempotency-key" in answered.json()["detail"].lower()
