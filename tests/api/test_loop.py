"""The loop over HTTP: deposit, publish, apply, approve, run, release, download."""

from __future__ import annotations

import hashlib
from base64 import b64encode

from valv.formats.crypt4gh import open_header
from valv.formats.ledger import verify_export

CONTENT = bytes(range(256)) * 1000


def test_deposit_to_permit_to_release(w):
    w.deposit("loop", {"a/data.bin": CONTENT, "b.txt": b"hello"})
    found = w.person("").get("/datasets", query="loop")
    assert [row["name"] for row in found["rows"]] == ["loop"] and found["total"] == 1
    page = w.person("ronja").get("/datasets/loop")
    assert page["row"]["class"] == "identifiable" and page["report"] == ""
    access = w.application("loop")
    dagny = w.person("dagny")
    view = dagny.get(f"/applications/{access}")
    assert view["datasets"][0]["match"]["verdict"] == "permitted" and "approve" in view["may"]
    permit = dagny.post(f"/applications/{access}/approval", {"reason": "It fits."})["permit_id"]
    assert w.person("rikard").get(f"/permits/{permit}")["standing"] is None
    run, release = w.run(permit, {"result.csv": b"n\n42\n", "stdout.txt": b""})
    rikard, kerttu = w.person("rikard"), w.person("kerttu")
    assert rikard.get(f"/runs/{run}")["state"]["success"]
    assert rikard.refused("GET", f"/releases/{release}/files/none") == (404, "no_file")
    rikard.post(f"/releases/{release}/request", {"context": "One number."})
    seen = kerttu.get(f"/releases/{release}")
    table = next(file for file in seen["files"] if file["path"] == "result.csv")
    other = next(file for file in seen["files"] if file["path"] == "stdout.txt")
    looked = kerttu.good(kerttu.ask("GET", f"/releases/{release}/files/{table['file_id']}/inspection"))
    assert looked.content == b"n\n42\n" and "result.csv" in looked.headers["content-disposition"]
    empty = kerttu.good(kerttu.ask("GET", f"/releases/{release}/files/{other['file_id']}/inspection"))
    assert empty.content == b""
    assert rikard.refused("GET", f"/releases/{release}/files/{table['file_id']}")[0] in (403, 409)
    for file, approve in ((table, True), (other, False)):
        body = {"approve": approve, "reason": "Looked at.", "manifest": seen["state"]["manifest"]}
        kerttu.post(f"/releases/{release}/files/{file['file_id']}/decision", body)
    got = rikard.good(rikard.ask("GET", f"/releases/{release}/files/{table['file_id']}"))
    assert got.content == b"n\n42\n" and got.headers["content-length"] == "5"
    assert rikard.refused("GET", f"/releases/{release}/files/{other['file_id']}") == (403, "not_released")
    events = {entry["event"] for entry in w.person("audun").get("/datasets/loop/history")}
    assert {"deposit.published", "access.approved", "run.collected", "release.fetched"} <= events


def test_download_and_resume(w):
    w.anonymised("shared", {"genome.vcf": CONTENT})
    rikard = w.person("rikard")
    permit = w.permit("shared", mode="download")
    key, pair = w.key("rikard")
    [listed] = rikard.get(f"/permits/{permit}/files")
    assert listed["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    url = f"/permits/{permit}/files/{listed['file_id']}"
    head = rikard.ask("HEAD", url)
    assert head.status_code == 200 and head.content == b"" and head.headers["accept-ranges"] == "bytes"
    assert "content-length" not in head.headers
    whole = rikard.good(rikard.ask("GET", url, params={"key": key}))
    assert whole.headers["content-length"] == str(len(whole.content))
    assert "genome.vcf.c4gh" in whole.headers["content-disposition"]
    header = len(whole.content) - (len(CONTENT) + 28 * 4)
    assert len(open_header(whole.content[:header], [pair.private]).data_keys) == 1

    def rest(start: int):
        return rikard.ask("GET", url, params={"key": key}, headers={"Range": f"bytes={start}-"})

    middle = rest(100_000)
    assert middle.status_code == 206 and middle.content == whole.content[100_000:]
    size = len(whole.content)
    assert middle.headers["content-range"] == f"bytes 100000-{size - 1}/{size}"
    again = rest(10)
    assert again.status_code == 200 and len(again.content) == size
    assert open_header(again.content[:header], [pair.private]).data_keys
    assert rest(size).status_code == 416 and rest(size).headers["content-range"] == f"bytes */{size}"
    assert rest(size + 5).status_code in (404, 416)
    assert rikard.refused("GET", url, params={"key": "unknown"}) == (404, "no_key")
    assert rikard.refused("GET", url) == (400, "fault.input")
    w.person("carin").post("/datasets/shared/narrowing", {"version": 1, "reason": "A name was found."})
    assert rikard.refused("GET", url, params={"key": key}) == (403, "download_identifiable")


def test_encrypted_for_the_node(w):
    """A file that is Crypt4GH for the node's key is taken as it is, and verified before it is published."""
    import os

    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    from valv.formats.crypt4gh import build_header
    from valv.formats.keyfile import read_public

    public = read_public(w.person("").get("/node")["node_key"])
    data_key, nonce = os.urandom(32), os.urandom(12)
    sealed = build_header(data_key, [public]) + nonce + ChaCha20Poly1305(data_key).encrypt(nonce, b"plain", None)
    ident = w.deposit("sealed", {"x.txt.c4gh": sealed})
    [file] = w.person("carin").get(f"/deposits/{ident}")["files"]
    assert (file["path"], file["sha256"]) == ("x.txt", hashlib.sha256(b"plain").hexdigest())


def test_keys_and_sessions(w):
    ronja = w.person("ronja")
    pair = w.key("ronja")
    assert [key["id"] for key in ronja.get("/account/keys")] == [pair[0]]
    fingerprint = ronja.get("/account/keys")[0]["fingerprint"]
    assert ronja.post(f"/account/keys/{pair[0]}", {"answer": "0"})["fingerprint"] == fingerprint  # a repeated answer
    assert ronja.ask("DELETE", f"/account/keys/{pair[0]}").status_code == 204
    assert ronja.get("/account/keys") == []
    plain = w.person("ronja", second_factor=False)
    body = {"public": b64encode(bytes(range(32))).decode(), "label": ""}
    assert plain.refused("POST", "/account/keys", body) == (403, "second_factor")
    assert plain.refused("POST", "/account/keys", {"public": "!", "label": ""})[1] in ("fault.input", "second_factor")
    assert plain.get("/sessions/current")["second_factor"] is False
    assert plain.refused("POST", "/sessions/current/second-factor", {"code": "000000"}) == (403, "code_wrong")
    assert plain.post("/sessions/current/second-factor", {"code": w.code("ronja")})["second_factor"] is True
    assert plain.get("/account")["roles"] == ["researcher"]
    token = w.log_in("ronja", second_factor=False)
    headers = {"Authorization": f"Bearer {token}"}
    assert w.http.delete("/api/v1/sessions/current", headers=headers).status_code == 204
    ended = w.http.get("/api/v1/account", headers=headers)
    assert ended.status_code == 401 and ended.headers["www-authenticate"] == "Bearer"


def test_log_in_is_limited(w):
    for _ in range(5):
        answered = w.http.post("/api/v1/sessions", json={"name": "ghost", "password": "x"})
        assert (answered.status_code, answered.json()["code"]) == (401, "login_failed")
    answered = w.http.post("/api/v1/sessions", json={"name": "ghost", "password": "x"})
    assert (answered.status_code, answered.json()["code"]) == (429, "login_limited")
    assert answered.headers["retry-after"] == "60"


def test_returned_rejected_withdrawn_surrendered_revoked(w):
    w.deposit("stages", {"f": b"1"})
    rikard, dagny = w.person("rikard"), w.person("dagny")
    access = w.application("stages")
    dagny.post(f"/applications/{access}/return", {"reason": "Say more."})
    assert rikard.get(f"/applications/{access}")["reason"] == "Say more."
    assert rikard.ask("PUT", f"/applications/{access}", w.form("stages", summary="More.")).status_code == 204
    rikard.post(f"/applications/{access}/submission")
    dagny.post(f"/applications/{access}/rejection", {"reason": "No."})
    assert dagny.refused("POST", f"/applications/{access}/approval", {"reason": "Yes."}) == (409, "wrong_phase")
    other = w.application("stages")
    rikard.post(f"/applications/{other}/withdrawal")
    assert {view["state"]["phase"] for view in rikard.get("/applications")} >= {"rejected", "withdrawn"}
    first, second = w.permit("stages"), w.permit("stages")
    rikard.post(f"/permits/{first}/surrender")
    run = rikard.post("/runs", {"permit": second, "command": ["true"]})["run_id"]
    rikard.post(f"/runs/{run}/stop")
    assert rikard.get(f"/runs/{run}")["state"]["phase"] == "cancelled"
    dagny.post(f"/permits/{second}/revocation", {"reason": "The project ended."})
    assert rikard.refused("POST", "/runs", {"permit": second, "command": ["true"]}) == (403, "permit_ended")
    assert {view["state"]["phase"] for view in rikard.get("/permits")} >= {"given_back", "revoked"}
    carin = w.person("carin")
    assert carin.ask("PATCH", "/datasets/stages", {"title": "Stages", "keywords": ["k"]}).status_code == 204
    assert carin.get("/datasets/stages")["row"]["title"] == "Stages"
    _, release = w.run(w.permit("stages"), {"a": b"1"})
    rikard.post(f"/releases/{release}/request", {"context": "A digit."})
    rikard.post(f"/releases/{release}/withdrawal")
    assert rikard.get(f"/releases/{release}")["state"]["phase"] == "withdrawn"


def test_ledger_is_proven_elsewhere(w):
    from valv.app import ledger

    audun = w.person("audun")
    ledger.checkpoint(w.worker)
    proof = audun.get("/ledger/proof")
    exported = audun.good(audun.ask("GET", "/ledger/export", params={"size": proof["checkpoint_size"]}))
    assert exported.headers["content-type"] == "application/jsonl"
    report = verify_export(exported.content.splitlines(), proof["checkpoint"], proof["log_key"])
    assert report.fault == "", report
    newest = audun.get("/ledger", limit=3, newest=True)
    assert newest[-1]["position"] == audun.get("/ledger/proof")["size"] - 1
    assert len(audun.get("/ledger", after=0, limit=2)) == 2
    assert w.person("olle").refused("GET", "/ledger") == (403, "not_allowed")
    refused = w.person("rikard").ask("GET", "/ledger/export")
    assert refused.status_code == 403 and refused.json()["code"] == "not_allowed"


def test_node_and_health(w):
    about = w.person("").get("/node")
    assert about["country"] == "SE" and about["log_key"].startswith("valv.example+")
    answered = w.http.get("/health")
    assert answered.json() == {"status": "ok", "parts": {"database": "ok", "keys": "ok", "compute": "ok"}}
