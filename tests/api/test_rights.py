"""Every operation names its action, and refuses strangers and people without rights."""

from __future__ import annotations

from base64 import b64encode

import pytest

from valv.api.app import build
from valv.api.document import operations
from valv.app.operation import action_of
from valv.core.actions import ACTIONS

PUBLIC = {"node.see", "catalogue.find", "session.open"}
OWN = {"session.see", "session.close", "account.see", "account.key_add", "account.key_end", "dataset.see"}
"""What everybody with an account may do, with what is their own."""
LISTS = {"list_deposits", "list_applications", "list_permits", "list_runs", "list_releases", "list_rotations"}
LISTS |= {"list_withdrawals"}
OPERATIONS = {route.name: route for route in operations(build())}
KEPT = [name for name, route in OPERATIONS.items() if action_of(route.endpoint) not in PUBLIC]


TUS = {
    "Tus-Resumable": "1.0.0",
    "Upload-Length": "1",
    "Upload-Offset": "0",
    "Upload-Metadata": "filename Zg==",
    "Content-Type": "application/offset+octet-stream",
}


@pytest.fixture(scope="session")
def scene(node_world):
    """One of everything, none of it Nemo's."""
    w = node_world
    w.anonymised("scene", {"f.txt": b"content"})
    download, compute = w.permit("scene", mode="download"), w.permit("scene")
    rikard, carin = w.person("rikard"), w.person("carin")
    _, release = w.run(compute, {"out.txt": b"1"})
    rikard.post(f"/releases/{release}/request", {"context": "A digit."})
    run = rikard.post("/runs", {"permit": compute, "command": ["true"]})["run_id"]
    w.deposit("leaving", {"f.txt": b"content"})
    leaving = carin.post("/withdrawals", {"dataset": "leaving", "pseudonyms": ["P-1"], "reason": "Asked."})
    new = {"dataset": "scene", "class": "anonymised", "consent": ["GRU"], "committee": "dac"}
    return {
        "name": "scene",
        "deposit_id": carin.post("/deposits", new)["deposit_id"],
        "access_id": w.application("scene"),
        "permit_id": download,
        "file_id": {
            "permits": rikard.get(f"/permits/{download}/files")[0]["file_id"],
            "releases": rikard.get(f"/releases/{release}")["files"][0]["file_id"],
        },
        "run_id": run,
        "release_id": release,
        "rotation_id": w.person("olle").post("/rotations", {"dataset": "scene", "aim": "rotate", "reason": "Due."})[
            "rotation_ids"
        ][0],
        "withdrawal_id": leaving["withdrawal_ids"][0],
        "path": "new.txt",
        "upload_id": "none",
        "challenge_id": "none",
        "scrub_id": "none",
        "version": 1,
        "key_id": "none",
        "compute": compute,
        "manifest": rikard.get(f"/releases/{release}")["state"]["manifest"],
    }


def body_of(name: str, scene, w):
    reason = {"reason": "Because."}
    return {
        "describe_dataset": {"title": "Mine"},
        "assess_dataset": {"version": 1, "confirm": True} | reason,
        "narrow_dataset": {"version": 1} | reason,
        "open_deposit": {"dataset": "scene", "class": "anonymised", "consent": ["GRU"], "committee": "dac"},
        "submit_deposit": {"expected": []},
        "draft_application": w.form("scene"),
        "save_application": w.form("scene"),
        "return_application": reason,
        "approve_application": reason,
        "reject_application": reason,
        "revoke_permit": reason,
        "resume_permit": reason,
        "start_withdrawal": {"dataset": "scene", "pseudonyms": ["P-1"]} | reason,
        "settle_file": {"fate": "drop"},
        "narrow_consent": {"pseudonyms": ["P-1"], "consent": ["HMB"]} | reason,
        "queue_run": {"permit": scene["compute"], "command": ["true"]},
        "start_scrub": {"every": True},
        "start_rotation": {"dataset": "scene", "aim": "rotate"} | reason,
        "request_release": {"context": "All."},
        "set_placement_rule": {"rule": "copies = 2"},
        "move_dataset": {"source": "main", "target": "main"},
        "decide_on_output": {"approve": True, "manifest": scene["manifest"]} | reason,
        "show_second_factor": {"code": "000000"},
        "challenge_key": {"public": b64encode(bytes(range(32))).decode()},
        "add_key": {"answer": "0"},
    }.get(name)


def ask(person, name, scene):
    route = OPERATIONS[name]
    values = scene | {"file_id": scene["file_id"]["permits" if "/permits/" in route.path else "releases"]}
    path = route.path_format
    for key, value in values.items():
        path = path.replace(f"{{{key}}}", str(value))
    assert "{" not in path, path
    method = next(iter(route.methods))
    more = {"content": b"bytes"} if name == "receive_file" else {}
    more |= {"params": {"key": "none"}} if name == "download_file" else {}
    more |= {"headers": TUS} if name.endswith("_upload") else {}
    return person.ask(method, path.removeprefix("/api/v1"), body_of(name, scene, person.world), **more)


def test_every_operation_names_its_action():
    assert len(OPERATIONS) > 50
    assert {name for name, route in OPERATIONS.items() if action_of(route.endpoint) not in ACTIONS} == set()


def is_problem(answered):
    if answered.request.method == "HEAD":
        return True
    assert answered.headers["content-type"] == "application/problem+json"
    found = answered.json()
    assert found["type"] == f"urn:valv:problem:{found['code']}" and found["status"] == answered.status_code
    return found["title"] and found["reference"]


@pytest.mark.parametrize("name", KEPT)
def test_strangers_are_refused(w, scene, name):
    before = w.events()
    answered = ask(w.person(""), name, scene)
    assert answered.status_code == 401 and is_problem(answered)
    forged = w.person("")
    forged.token = "forged" * 7
    assert ask(forged, name, scene).status_code == 401
    assert w.events() == before


@pytest.mark.parametrize("name", [name for name in KEPT if action_of(OPERATIONS[name].endpoint) not in OWN])
def test_people_without_rights_are_refused(w, scene, name):
    nemo = w.person("nemo")
    before, bodies = w.events(), w.bodies()
    answered = ask(nemo, name, scene)
    if name in LISTS:
        assert answered.json() == []
    else:
        assert answered.status_code in (403, 404) and is_problem(answered)
        if answered.request.method != "HEAD":
            assert answered.json()["code"] in ("not_allowed", "download_identifiable", "second_factor"), answered.text
    assert w.events() == before and w.bodies() == bodies


def test_what_a_scan_found_is_for_those_who_may_read_the_report(w, scene):
    w.deposit("scanned", {"f": b"1"})
    w.scan("scanned", findings=3)
    assert w.person("nemo").get("/datasets/scanned")["state"]["versions"][0]["findings"] is None
    assert w.person("kerttu").get("/datasets/scanned")["state"]["versions"][0]["findings"] == 3
    assert w.person("kerttu").get("/datasets/scanned/report") == {"report": "nothing was found"}
