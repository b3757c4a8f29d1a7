"""The way of the data through the portal, as the four roles walk it; each page is checked as it comes."""

from __future__ import annotations

import csv
import io
import re

import crypt4gh.lib
import pytest

from tests.web.conftest import Portal

LOGO = b"\x89PNG\r\n\x1a\n" + b"\0" * 100


def apply(portal: Portal, name: str, **more: str) -> str:
    """An application that was handed in. Returns its path."""
    rikard = portal.person("rikard")
    rikard.see(f"/applications/new?dataset={name}")
    form = {"title": "Counting alleles", "summary": "Why.", "datasets": name, "aim": "health", "ethics_approval": "yes"}
    form |= {"country": "SE", "days": "30", "mode": "compute", "licence": "yes", **more}
    answer = rikard.send("/applications", form)
    assert answer.status_code == 200, answer.text
    path = rikard.address
    rikard.send(f"{path}/submit", {})
    assert "Handed in" in rikard.page
    return path


def approve(portal: Portal, path: str) -> str:
    """Returns the permit's path."""
    dagny = portal.person("dagny")
    assert "Held against the consent" in dagny.see(path)
    dagny.send(f"{path}/approve", {"reason": "It fits.", "granted": "20"})
    found = re.search(r"/permits/\w+", dagny.page)
    assert found, dagny.page
    return found.group()


def deposit(portal: Portal, name: str, files: list[tuple[str, bytes]], kind: str, **more: str) -> str:
    carin = portal.person("carin")
    carin.see("/deposits/new")
    form = {"name": name, "title": f"The dataset {name}", "class": kind, "permission": "HMB", "committee": "dac"}
    carin.send("/deposits", form | more)
    path = carin.address
    assert re.fullmatch(r"/deposits/\w+", path), carin.page
    carin.upload(f"{path}/files", files)
    for file, _ in files:
        assert file in carin.page
    carin.send(f"{path}/submit", {})
    assert "confirm first" in carin.page
    carin.send(f"{path}/submit", {"sure": "yes"})
    assert 'http-equiv="refresh"' in carin.page
    assert 'http-equiv="refresh"' not in carin.see(f"{path}?still=1")
    portal.world.work()
    assert "Published as version 1" in carin.see(path)
    return path


def test_compute_on_identifiable_data(portal: Portal) -> None:
    deposit(portal, "patients", [("a.json", b"{}" * 100), ("b.json", b"x" * 300_000)], "identifiable")
    rikard, kerttu = portal.person("rikard"), portal.person("kerttu")
    assert "The dataset patients" in rikard.see("/catalogue?q=patients&consent=HMB")
    permit = approve(portal, apply(portal, "patients"))

    assert "Start a run" in rikard.see(permit)
    rikard.see(f"/runs/new?permit={permit.rpartition('/')[2]}")
    limits = {"seconds": "60", "memory": "256", "processes": "16", "scratch": "64"}
    rikard.send("/runs", {"line": "sh -c 'unclosed", "datasets": "patients@1", **limits})
    assert rikard.status == 400 and "cannot be read" in rikard.page and "unclosed" in rikard.page
    rikard.send("/runs", {"line": "sh -c 'wc -l /data/patients/*'", "datasets": "patients@1", **limits})
    run = rikard.address
    assert 'http-equiv="refresh"' in rikard.page and "wc -l" in rikard.page
    table = io.StringIO()
    csv.writer(table).writerows([["disease", "count"], ["flu", 12], ["<script>alert(1)</script>", 9]])
    outputs = {
        "counts.csv": table.getvalue().encode(),
        "plot.png": LOGO,
        "stdout.txt": b"done \x1b[31m\n",
        "raw.bin": b"\0\xff",
    }
    portal.world.work(outputs)
    assert "Outputs sealed" in rikard.see(run)
    found = re.search(r"/releases/\w+", rikard.page)
    assert found
    release = found.group()
    assert "counts.csv" not in rikard.see(release), "names of outputs are outputs too"
    rikard.send(f"{release}/request", {"context": ""})
    assert "needs to know what this is" in rikard.page
    rikard.send(f"{release}/request", {"context": "Counts of diseases."})
    assert "In review" in rikard.page

    files = _files(kerttu.see(release), release)
    assert len(files) == 4
    decided = {}
    for path in files:
        page = kerttu.see(path)
        name = re.search(r"<h1>(.*)</h1>", page)
        assert name
        decided[name.group(1)] = path
        match name.group(1):
            case "counts.csv":
                assert '<th scope="col">disease</th>' in page and "&lt;script&gt;alert(1)" in page
            case "plot.png":
                image = kerttu.get(f"{path}/image")
                assert image.content == LOGO and image.headers["content-type"] == "image/png"
                assert image.headers["x-content-type-options"] == "nosniff"
            case "stdout.txt":
                assert "\\u001b[31m" in page
                assert kerttu.get(f"{path}/image").status_code == 422
            case "raw.bin":
                assert "cannot be shown" in page
    kerttu.see(decided["raw.bin"])
    kerttu.send(decided["raw.bin"], {"word": "reject", "reason": ""})
    assert "A reason is needed" in kerttu.page
    kerttu.send(decided.pop("raw.bin"), {"word": "reject", "reason": "It cannot be looked at."})
    for path in decided.values():
        kerttu.see(path)
        kerttu.send(path, {"word": "approve", "reason": "Large counts only."})
    assert "Released" in kerttu.page
    page = rikard.see(release)
    assert "counts.csv" in page and "raw.bin" not in page
    fetched = rikard.get(f"{decided['counts.csv']}/fetch")
    assert fetched.content == outputs["counts.csv"]
    assert fetched.headers["content-disposition"].startswith("attachment")
    assert fetched.headers["cache-control"] == "no-store"


def _files(page: str, release: str) -> list[str]:
    return list(dict.fromkeys(re.findall(rf"{release}/files/\w+(?=\")", page)))


def test_download_of_anonymised_data(portal: Portal) -> None:
    content = bytes(range(256)) * 1000
    deposit(portal, "volunteers", [("calls.vcf", content)], "anonymised")
    kerttu, rikard, dagny = portal.person("kerttu"), portal.person("rikard"), portal.person("dagny")
    assert "has not ended yet" in kerttu.see("/datasets/volunteers")
    portal.world.scan("volunteers", findings=2)
    assert "2</strong> suspicious places" in kerttu.see("/datasets/volunteers")
    assert "Claimed anonymised – not yet assessed" in kerttu.page
    kerttu.send("/datasets/volunteers/assess", {"word": "confirm", "reason": "They are dates of the sequencer."})
    portal.world.work()
    assert '<span class="badge open">Anonymised' in kerttu.see("/datasets/volunteers")

    permit = approve(portal, apply(portal, "volunteers", mode="download"))
    assert "You have registered none" in rikard.see(permit)
    _, pair = portal.world.key("rikard")
    assert "laptop" in rikard.see("/account")
    page = rikard.see(permit)
    file = re.search(rf"{permit}/files/\w+", page)
    key = re.search(r'<option value="(\w+)"', page)
    assert file and key
    got = rikard.get(f"{file.group()}?key={key.group(1)}")
    assert int(got.headers["content-length"]) == len(got.content)
    plain = io.BytesIO()
    crypt4gh.lib.decrypt([(0, pair.private, None)], io.BytesIO(got.content), plain)
    assert plain.getvalue() == content
    assert rikard.get(f"{file.group()}?key=other").status_code == 404

    dagny.see(permit)
    dagny.send(f"{permit}/revoke", {"reason": ""})
    assert "A reason is needed" in dagny.page
    dagny.send(f"{permit}/revoke", {"reason": "The project ended."})
    assert "Revoked" in dagny.page and "The project ended." in rikard.see(permit)
    assert rikard.get(f"{file.group()}?key={key.group(1)}").status_code == 403

    carin = portal.person("carin")
    assert "access.approved" in carin.see("/datasets/volunteers/history")
    carin.see("/datasets/volunteers")
    carin.send("/datasets/volunteers/narrow", {"reason": "A name was found."})
    assert "claim of anonymity denied" in carin.page or "Identifiable" in carin.page
    rikard.see("/account")
    rikard.send(f"/account/keys/{key.group(1)}/end", {})
    assert "You have registered none" in rikard.page


def test_an_application_is_returned_changed_and_rejected(portal: Portal) -> None:
    if portal.stranger().get("/catalogue?q=returns").text.count("datasets/returns") == 0:
        deposit(portal, "returns", [("a.txt", b"a")], "identifiable")
    path = apply(portal, "returns", aim="methods", people="ronja")
    rikard, dagny = portal.person("rikard"), portal.person("dagny")
    assert "The committee decides" in dagny.see(path)
    dagny.send(f"{path}/return", {"reason": "Name the <b>disease</b>."})
    assert "Name the &lt;b&gt;disease" in rikard.see(path)
    rikard.see(f"{path}/edit")
    assert 'value="ronja"' in rikard.page and 'value="methods" checked' in rikard.page
    form = {
        "title": "Changed",
        "datasets": "returns",
        "aim": "disease",
        "country": "SE",
        "mode": "compute",
        "days": "30",
    }
    rikard.send(f"{path}/edit", form)
    assert rikard.status == 400 and 'href="#diseases"' in rikard.page
    rikard.send(f"{path}/edit", form | {"diseases": "MONDO:0005147", "ethics_approval": "yes"})
    rikard.send(f"{path}/submit", {})
    assert "terms of use" in rikard.page and rikard.status == 400
    rikard.see(f"{path}/edit")
    rikard.send(f"{path}/edit", form | {"aim": "ancestry", "licence": "yes"})
    rikard.send(f"{path}/submit", {})
    assert "Ethical Review Authority" in rikard.page and rikard.status == 403
    rikard.see(f"{path}/edit")
    rikard.send(f"{path}/edit", form | {"aim": "ancestry", "licence": "yes", "ethics_approval": "yes"})
    rikard.send(f"{path}/submit", {})
    assert "Does not fit" in dagny.see(path)
    dagny.send(f"{path}/approve", {"reason": "Yes.", "granted": "10"})
    assert "did not consent" in dagny.page and dagny.status == 403
    dagny.send(f"{path}/reject", {"reason": "Ancestry is excluded."})
    assert "Rejected" in dagny.page and "Ancestry is excluded." in rikard.see(path)


@pytest.mark.parametrize("name", ["carin", "rikard", "dagny", "kerttu", "audun", "olle", "nemo"])
def test_everybody_sees_their_own_places(portal: Portal, name: str) -> None:
    browser = portal.person(name)
    for path in (
        "/",
        "/catalogue",
        "/account",
        "/deposits",
        "/applications",
        "/permits",
        "/runs",
        "/releases",
        "/runs/new",
    ):
        browser.see(path)
    assert browser.get("/ledger").status_code == (200 if name in ("audun", "olle") else 403)
    assert browser.get("/applications/new").status_code == (200 if name == "rikard" else 403)
    assert browser.get("/deposits/new").status_code == (200 if name == "carin" else 403)
    if name == "audun":
        assert "account.created" in browser.see("/ledger?before=20")
