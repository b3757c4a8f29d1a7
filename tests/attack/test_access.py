"""Who may do what: other people's things, one's own cases, repeated orders, and two things at once."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pyotp
import pytest

from tests.attack.scene import Stage, add_people, form
from tests.e2e import work
from valv.api.app import build
from valv.api.document import operations
from valv.app.account import FAILURES
from valv.assemble import create
from valv.assemble.demo import COMMITTEE

OPERATIONS = {route.name: route for route in operations(build()) if "{" in route.path_format}
WHY = {"reason": "Because."}


def _bodies(stage: Stage) -> dict[str, Any]:
    return {
        "describe_dataset": {"title": "Mine"},
        "assess_dataset": {"version": 1, "confirm": True} | WHY,
        "narrow_dataset": {"version": 1} | WHY,
        "submit_deposit": {"expected": []},
        "save_application": form(stage.open, title="Taken over"),
        "return_application": WHY,
        "approve_application": WHY,
        "reject_application": WHY,
        "revoke_permit": WHY,
        "request_release": {"context": "All."},
        "decide_on_output": {"approve": True, "manifest": "0" * 64} | WHY,
        "add_key": {"answer": "0"},
        "move_dataset": {"source": "main", "target": "main"},
        "set_placement_rule": {"rule": "copies = 2"},
        "narrow_consent": {"pseudonyms": ["P-1"], "consent": ["HMB"]} | WHY,
        "start_withdrawal": {"dataset": stage.open, "pseudonyms": ["P-1"]} | WHY,
        "settle_file": {"fate": "drop"},
        "resume_permit": WHY,
    }


TUS = {"Tus-Resumable": "1.0.0"}


def _ask(stage: Stage, name: str, operation: str) -> httpx.Response:
    route = OPERATIONS[operation]
    values = {
        "name": stage.open,
        "deposit_id": stage.deposit,
        "access_id": stage.access,
        "permit_id": stage.download,
        "file_id": stage.file if "/permits/" in route.path_format else stage.output,
        "run_id": stage.run,
        "release_id": stage.release,
        "rotation_id": stage.rotation,
        "path": "mine.txt",
        "upload_id": stage.upload,
        "scrub_id": stage.scrub,
        "withdrawal_id": "none",
        "version": "1",
        "challenge_id": "none",
        "key_id": "none",
    }
    path = route.path_format
    for key, value in values.items():
        path = path.replace(f"{{{key}}}", value)
    more: dict[str, Any] = {"content": b"bytes"} if operation == "receive_file" else {}
    more |= {"params": {"key": "none"}} if operation == "download_file" else {}
    if "upload" in operation:
        about = {"Upload-Length": "5", "Upload-Metadata": f"filename {b64encode(b'mine.txt').decode()}"}
        sent = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        more |= {"headers": TUS | (about if operation == "create_upload" else sent)}
        more |= {"content": b"bytes"} if operation == "append_to_upload" else {}
    return stage.ask(
        name, next(iter(route.methods)), path.removeprefix("/api/v1"), _bodies(stage).get(operation), **more
    )


def _things(stage: Stage) -> Any:
    """What the attacks are after, as its owners see it now."""
    carin, rikard = stage.node.person("carin"), stage.node.person("rikard")
    found = [carin.get(f"/datasets/{stage.open}"), carin.get(f"/deposits/{stage.deposit}")]
    found += [rikard.get(f"/applications/{stage.access}"), rikard.get(f"/permits/{stage.download}")["state"]]
    return [*found, rikard.get(f"/runs/{stage.run}"), rikard.get(f"/releases/{stage.release}")]


ALLOWED = {"show_dataset": {"brita", "bertil", "cai"}, "dataset_report": {"cai"}, "show_report": {"cai"}}
"""What the policies let anybody, or any committee, do: the catalogue's page, and the report of a scan."""


@pytest.mark.parametrize("name", ["brita", "bertil", "cai"])
@pytest.mark.parametrize(
    "operation",
    sorted(set(OPERATIONS) - {"add_key", "end_key", "narrow_dataset", "assess_dataset", "tus_capabilities"}),
)
def test_nothing_of_others_can_be_seen_or_done(stage: Stage, name: str, operation: str) -> None:
    before = _things(stage)
    answered = _ask(stage, name, operation)
    if name in ALLOWED.get(operation, ()):
        assert answered.status_code == 200
    else:
        assert answered.status_code in (403, 404), answered.text
    assert _things(stage) == before


@pytest.mark.parametrize("operation", ["narrow_dataset", "assess_dataset"])
@pytest.mark.parametrize("name", ["brita", "bertil"])
def test_a_claim_is_not_judged_by_outsiders(stage: Stage, name: str, operation: str) -> None:
    before = _things(stage)
    assert _ask(stage, name, operation).status_code == 403
    assert _things(stage) == before


def test_keys_of_others_are_not_there(stage: Stage) -> None:
    """A challenge, its answer and a key count for their own account alone."""
    from valv.app.account import answer
    from valv.formats import crypt4gh

    pair, rikard = crypt4gh.generate_keypair(), stage.node.person("rikard")
    asked = rikard.post("/account/keys", {"public": b64encode(pair.public).decode(), "label": "x"})
    right = {"answer": answer(crypt4gh.open_header(b64decode(asked["header"]), [pair.private]).data_keys[0])}
    stolen = stage.ask("brita", "POST", f"/account/keys/{asked['challenge_id']}", right)
    assert (stolen.status_code, stolen.json()["code"]) == (403, "not_proven")
    rikard.post(f"/account/keys/{asked['challenge_id']}", right)
    assert stage.ask("brita", "DELETE", f"/account/keys/{asked['challenge_id']}").json()["code"] == "no_key"
    assert asked["challenge_id"] in [key["id"] for key in rikard.get("/account/keys")]
    assert stage.node.person("brita").get("/account/keys") == []


def test_names_that_are_not_published_are_not_there(stage: Stage) -> None:
    """A dataset that is only registered answers outsiders as one that does not exist."""
    hidden, unknown = work.fresh("hidden"), work.fresh("unknown")
    about = {"dataset": hidden, "class": "anonymised", "consent": ["GRU"], "committee": COMMITTEE}
    stage.node.person("carin").post("/deposits", about)

    def told(method: str, path: str, body: Any = None) -> list[Any]:
        answers = [stage.ask("brita", method, path.format(name), body) for name in (hidden, unknown)]
        return [{**a.json(), "reference": "", "detail": ""} | {"status": a.status_code} for a in answers]

    for method, path, body in (
        ("GET", "/datasets/{}", None),
        ("GET", "/datasets/{}/report", None),
        ("GET", "/datasets/{}/history", None),
        ("PATCH", "/datasets/{}", {"title": "x"}),
        ("POST", "/datasets/{}/narrowing", {"version": 1} | WHY),
        ("POST", "/datasets/{}/assessment", {"version": 1, "confirm": True} | WHY),
    ):
        first, second = told(method, path, body)
        assert first == second, path
    drafts = [stage.ask("brita", "POST", "/applications", form(name)).json()["code"] for name in (hidden, unknown)]
    runs = [
        stage.ask("rikard", "POST", "/runs", {"permit": stage.compute, "datasets": [name], "command": ["true"]}).json()
        for name in (hidden, unknown, stage.open)
    ]
    assert drafts == ["dataset_unknown"] * 2
    assert [(found["code"], found["detail"]) for found in runs] == [(runs[0]["code"], runs[0]["detail"])] * 3
    assert runs[0]["code"] == "no_permit"
    assert stage.node.person("rikard").get("/runs")  # and the list of runs still answers


def test_ids_of_others_differ_from_unknown_ones_in_nothing_but_being_there(stage: Stage) -> None:
    """Ids are 160 random bits, so that to be told 'not yours' helps nobody to find one; what is said is no more."""
    for path in (f"/applications/{stage.access}", f"/permits/{stage.download}", f"/runs/{stage.run}"):
        found, unknown = stage.ask("brita", "GET", path), stage.ask("brita", "GET", path[:-1] + "_")
        assert (found.status_code, unknown.status_code) == (403, 404)
        assert set(found.json()) == set(unknown.json())
        assert not any(word in found.text for word in ("rikard", "Rikard", stage.sealed, stage.open))


# --- one's own cases ---


def test_somebody_with_every_role_decides_nothing_of_their_own(stage: Stage, tmp_path: Path) -> None:
    node = stage.node
    alma, rikard, dagny = (node.person(name) for name in ("alma", "rikard", "dagny"))
    own = stage.apply("alma", form(stage.sealed))
    named = stage.apply("rikard", form(stage.sealed, people=["alma"]))
    for access in (own, named):
        for step in ("approval", "rejection", "return"):
            assert alma.refused("POST", f"/applications/{access}/{step}", WHY) == "own_application"

    (tmp_path / "f.txt").write_text("no identifiers\n")
    claim = work.fresh("claim")
    work.deposit(alma, tmp_path, claim, "anonymised", ["GRU"])
    alma.wait(f"/datasets/{claim}", lambda page: str(page["state"]["versions"][-1]["findings"]), ("0",))
    body = {"version": 1, "confirm": True} | WHY
    assert alma.refused("POST", f"/datasets/{claim}/assessment", body) == "own_claim"

    for person, access in ((alma, own), (rikard, named)):
        permit = dagny.post(f"/applications/{access}/approval", WHY)["permit_id"]
        ident = person.post("/runs", {"permit": permit, "command": ["sh", "-c", "echo 1 > /outbox/one"]})["run_id"]
        done = person.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("collected",))
        release = done["release_id"]
        person.post(f"/releases/{release}/request", {"context": "One."})
        page = alma.get(f"/releases/{release}")
        path = f"/releases/{release}/files/{page['files'][0]['file_id']}"
        assert alma.refused("GET", f"{path}/inspection") == "own_outputs"
        decision = {"approve": True, "manifest": page["state"]["manifest"]} | WHY
        assert alma.refused("POST", f"{path}/decision", decision) == "own_outputs"
        assert all(file["path"].startswith("output ") and not file["size"] for file in page["files"])


# --- repeated orders ---


def test_a_key_of_a_request_is_no_key_to_the_request_of_another(stage: Stage) -> None:
    node, key = stage.node, "the-very-same-key"
    first = node.person("rikard").post("/applications", form(stage.open), key=key)["access_id"]
    second = node.person("brita").post("/applications", form(stage.open), key=key)["access_id"]
    assert first != second
    assert node.person("brita").get(f"/applications/{second}")["applicant"] == "Brita B"
    node.person("rikard").post(f"/applications/{first}/submission")
    approved = node.person("dagny").post(f"/applications/{first}/approval", WHY, key=key)
    for name in ("brita", "rikard", "cai"):
        answered = stage.ask(name, "POST", f"/applications/{first}/approval", WHY, headers={"Idempotency-Key": key})
        assert answered.status_code == 403 and approved["permit_id"] not in answered.text


# --- two things at once ---


def _together(*steps: Callable[[], Any]) -> list[Any]:
    """All at the same moment, as far as threads go."""
    gate = threading.Barrier(len(steps))

    def step(one: Callable[[], Any]) -> Any:
        gate.wait()
        return one()

    with ThreadPoolExecutor(len(steps)) as pool:
        return list(pool.map(step, steps))


def test_two_approvals_issue_one_permit(stage: Stage) -> None:
    access = stage.apply("rikard", form(stage.open))
    ask = lambda: stage.ask("dagny", "POST", f"/applications/{access}/approval", WHY)  # noqa: E731
    found = _together(*[ask] * 4)
    assert sorted(answered.status_code for answered in found) == [200, 409, 409, 409], [a.text for a in found]
    mine = stage.node.person("rikard").get("/permits")
    assert len([one for one in mine if one["state"]["access_id"] == access]) == 1


def test_a_decision_while_it_is_withdrawn(stage: Stage) -> None:
    for _ in range(4):
        access = stage.apply("rikard", form(stage.open))
        approved, withdrawn = _together(
            lambda access=access: stage.ask("dagny", "POST", f"/applications/{access}/approval", WHY),
            lambda access=access: stage.ask("rikard", "POST", f"/applications/{access}/withdrawal"),
        )
        assert sorted(one.is_success for one in (approved, withdrawn)) == [False, True]
        state = stage.node.person("rikard").get(f"/applications/{access}")["state"]
        assert state["phase"] == ("approved" if approved.is_success else "withdrawn")
        issued = [one for one in stage.node.person("rikard").get("/permits") if one["state"]["access_id"] == access]
        assert len(issued) == approved.is_success


def test_no_run_starts_after_a_revocation_was_acknowledged(stage: Stage) -> None:
    rikard, dagny = stage.node.person("rikard"), stage.node.person("dagny")
    for pause in (0.0, 0.1, 0.3):
        access = stage.apply("rikard", form(stage.open))
        permit = dagny.post(f"/applications/{access}/approval", WHY)["permit_id"]
        runs = [rikard.post("/runs", {"permit": permit, "command": ["sleep", "60"]})["run_id"] for _ in range(3)]
        time.sleep(pause)
        dagny.post(f"/permits/{permit}/revocation", WHY)
        known = datetime.now(UTC)
        assert rikard.refused("POST", "/runs", {"permit": permit, "command": ["true"]}) == "permit_ended"
        for ident in runs:
            state = rikard.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("collected", "cancelled"))[
                "state"
            ]
            assert state["end"] in (None, "revoked"), state
            assert state["started"] is None or datetime.fromisoformat(state["started"]) <= known


def test_a_file_that_arrives_after_the_deposit_was_handed_in_is_no_part_of_it(stage: Stage) -> None:
    """Else it would be in a published version without ever having been scanned."""
    carin, name = stage.node.person("carin"), work.fresh("late")
    about = {"dataset": name, "class": "anonymised", "consent": ["GRU"], "committee": COMMITTEE}
    ident = carin.post("/deposits", about)["deposit_id"]
    assert stage.ask("carin", "PUT", f"/deposits/{ident}/files/a.txt", content=b"counted").is_success
    go = threading.Event()

    def slow() -> Iterator[bytes]:
        yield b"first bytes of many" * 20_000
        go.wait(60)
        yield b"and the rest"

    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(stage.ask, "carin", "PUT", f"/deposits/{ident}/files/late.txt", None, content=slow())
        carin.wait(f"/deposits/{ident}", lambda page: str(len(page["files"])), ("2",))
        carin.post(f"/deposits/{ident}/submission", {"expected": ["a.txt"]})
        carin.wait(f"/deposits/{ident}", lambda page: page["state"]["phase"], ("published",))
        go.set()
        answered = late.result(60)
    assert (answered.status_code, answered.json()["code"]) == (409, "wrong_phase")
    page = carin.get(f"/deposits/{ident}")
    assert [file["path"] for file in page["files"]] == ["a.txt"] and page["state"]["files"] == 1
    assert carin.get(f"/datasets/{name}")["row"]["files"] == 1
    work.confirm_anonymous(stage.node, name)
    listed = stage.node.person("rikard").get(f"/permits/{work.permit(stage.node, name, 'download')}/files")
    assert [file["path"] for file in listed] == ["a.txt"]


def test_a_sender_who_may_not_is_told_before_the_first_byte(stage: Stage) -> None:
    """Else anybody with an account could hold all places for uploads with bodies that never come."""
    import socket
    from urllib.parse import urlsplit

    at = urlsplit(stage.node.url)
    with socket.create_connection((at.hostname, at.port), 30) as connection:
        head = f"PUT /api/v1/deposits/{stage.deposit}/files/x HTTP/1.1\r\nHost: {at.netloc}\r\n"
        head += f"Authorization: {stage.token('brita')}\r\nContent-Length: 1000000\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 403")


# --- the second factor ---


def _newcomer(stage: Stage) -> dict[str, str]:
    name = "t" + secrets.token_hex(5)
    add_people(stage.node, create.Account(name=name, display=name, email="t@demo.invalid", roles=("researcher",)))
    return {"name": name} | stage.node.accounts[name]


def _log_in(stage: Stage, who: dict[str, str], code: str = "") -> httpx.Response:
    return stage.ask("", "POST", "/sessions", {"name": who["name"], "password": who["password"], "code": code})


def test_one_code_opens_one_session(stage: Stage) -> None:
    who = _newcomer(stage)
    code = pyotp.TOTP(who["totp"]).now()
    found = _together(*[lambda: _log_in(stage, who, code)] * 6)
    assert [answered.status_code for answered in found].count(201) == 1, [answered.text for answered in found]


def test_one_code_steps_up_one_session(stage: Stage) -> None:
    who = _newcomer(stage)
    tokens = [_log_in(stage, who).json()["token"] for _ in range(4)]
    code = {"code": pyotp.TOTP(who["totp"]).now()}

    def step(token: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"}
        return stage.ask("", "POST", "/sessions/current/second-factor", code, headers=headers)

    found = _together(*[lambda token=token: step(token) for token in tokens])
    assert [answered.status_code for answered in found].count(200) == 1, [answered.text for answered in found]


def test_the_second_factor_cannot_be_guessed_between_good_passwords(stage: Stage) -> None:
    """Who has the password logs in without a code as often as they like; that must make no room for guesses."""
    who = _newcomer(stage)
    wrong = "000000" if pyotp.TOTP(who["totp"]).now() != "000000" else "000001"
    codes = []
    for _ in range(FAILURES + 3):
        codes.append(_log_in(stage, who, wrong).json()["code"])
        assert _log_in(stage, who).status_code in (201, 429)
    assert codes.count("code_wrong") <= FAILURES and codes[-1] == "login_limited"
    other = _newcomer(stage)
    token = _log_in(stage, other).json()["token"]
    told = [
        stage.ask(
            "",
            "POST",
            "/sessions/current/second-factor",
            {"code": wrong},
            headers={"Authorization": f"Bearer {token}"},
        ).json()["code"]
        for _ in range(FAILURES)
    ]
    assert told == ["code_wrong"] * FAILURES
    assert _log_in(stage, other, wrong).json()["code"] == "login_limited"  # one count for both ways


def test_a_session_without_second_factor_does_nothing_that_needs_one(stage: Stage) -> None:
    for name, method, path, body in (
        ("rikard", "POST", "/runs", {"permit": stage.compute, "command": ["true"]}),
        ("rikard", "GET", f"/runs/{stage.run}", None),
        ("dagny", "POST", f"/applications/{stage.access}/approval", WHY),
        ("kerttu", "GET", f"/releases/{stage.release}/files/{stage.output}/inspection", None),
        ("rikard", "POST", "/account/keys", {"public": b64encode(hashlib.sha256(b"k").digest()).decode()}),
    ):
        account = {"name": name} | stage.node.accounts[name]
        headers = {"Authorization": f"Bearer {_log_in(stage, account).json()['token']}"}
        assert stage.ask("", method, path, body, headers=headers).json()["code"] == "second_factor"
