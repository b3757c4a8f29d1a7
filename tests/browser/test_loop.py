"""The whole loop in a real browser with JavaScript switched off, against a node whose processes really run.

A screenshot of every page, wide and narrow, is left in the test's temporary folder.
"""

from __future__ import annotations

import csv
import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyotp
import pytest

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
COMMITTEE = "demo-dac"
SECONDS = 180
CALLS = """##fileformat=VCFv4.2
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2
22\t16050075\t.\tA\tG\t.\tPASS\t.\tGT\t0|1\t0|0
22\t16050115\t.\tG\tA\t.\tPASS\t.\tGT\t1|1\t0|1
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()


class People:
    """Everybody in a browser profile of their own, logged in through the page."""

    def __init__(self, browser: Any, node: Any, shots: Path) -> None:
        self._browser, self._node, self._shots = browser, node, shots
        self._pages: dict[str, Any] = {}
        self._count = 0

    def page(self, name: str) -> Any:
        if name not in self._pages:
            context = self._browser.new_context(base_url=self._node.url, java_script_enabled=False, viewport=WIDE)
            context.set_default_timeout(60_000)
            self._pages[name] = context.new_page()
            self._log_in(self._pages[name], name)
        return self._pages[name]

    def _log_in(self, page: Any, name: str) -> None:
        """A code counts once: where another log-in of this account took it, the next one is waited for."""
        account = self._node.accounts[name]
        for _ in range(12):
            page.goto("/login")
            page.fill("#name", name)
            page.fill("#password", account["password"])
            page.fill("#code", pyotp.TOTP(account["totp"]).now())
            page.click("main button")
            if page.locator("text=Log out").count():
                return
            # Fewer than five failures a minute: the sixth would be refused unseen.
            time.sleep(15)
        raise AssertionError(f"{name} cannot log in: {page.inner_text('main')}")

    def shot(self, page: Any, name: str) -> None:
        self._count += 1
        for label, size in (("wide", WIDE), ("narrow", NARROW)):
            page.set_viewport_size(size)
            page.screenshot(path=str(self._shots / f"{self._count:02}-{name}-{label}.png"), full_page=True)
        page.set_viewport_size(WIDE)


@pytest.fixture(scope="module")
def people(chromium: Any, running_node: Any, tmp_path_factory: pytest.TempPathFactory) -> People:
    return People(chromium, running_node, tmp_path_factory.mktemp("shots"))


def until(page: Any, text: str) -> None:
    """Wait for a text on a page that loads itself again, or is loaded again here."""
    end = time.monotonic() + SECONDS
    while text not in page.inner_text("main"):
        assert time.monotonic() < end, f"no {text!r} on {page.url}: {page.inner_text('main')}"
        time.sleep(0.5)
        page.goto(page.url)


def deposit(people: People, name: str, files: list[Path], kind: str, condition: str = "") -> None:
    page = people.page("carin")
    page.goto("/deposits")
    page.click("text=New deposit")
    page.fill("#name", name)
    page.fill("#title", f"Records of {name}")
    page.fill("#description", "Made for a test of the portal.")
    page.fill("#diseases", "MONDO:0005147")
    page.fill("#committee", COMMITTEE)
    page.check(f"#class-{kind}")
    page.check("#permission-HMB")
    if condition:
        page.check(f"#condition-{condition}")
    people.shot(page, "deposit-new")
    page.click("text=Go on to the files")
    page.set_input_files("#files", [str(file) for file in files])
    page.click("main button:has-text('Send')")
    for file in files:
        assert file.name in page.inner_text("table")
    people.shot(page, "deposit-files")
    page.check("#sure")
    page.click("text=Hand in the deposit")
    people.shot(page, "deposit-waits")
    until(page, "Published as version 1")
    people.shot(page, "deposit-published")


def apply(people: People, dataset: str, mode: str) -> str:
    """Found in the catalogue, applied for, approved. Returns the permit's address."""
    page = people.page("rikard")
    page.goto("/catalogue")
    page.fill("#q", dataset)
    page.fill("#disease", "MONDO:0005147")
    page.select_option("#consent", "HMB")
    page.click("main button:has-text('Search')")
    people.shot(page, "catalogue")
    page.click(f"text=Records of {dataset}")
    people.shot(page, "dataset")
    page.click("text=Apply for access")
    page.fill("#title", f"Counting in {dataset}")
    page.fill("#summary", "How often each value occurs.")
    page.click("text=Save and go on")
    assert page.title().startswith("Error: ") and page.locator(".errors[role=alert] a").count() == 1
    people.shot(page, "application-error")
    page.check("#aim-health")
    page.check("#ethics_approval")
    page.fill("#country", "SE")
    page.fill("#days", "30")
    page.check(f"#mode-{mode}")
    page.check("#licence")
    people.shot(page, "application-form")
    page.click("text=Save and go on")
    page.click("text=Hand it in")
    assert "Handed in" in page.inner_text("main")
    people.shot(page, "application-handed-in")

    dagny = people.page("dagny")
    dagny.goto("/applications")
    dagny.click(f"text=Counting in {dataset}")
    main = dagny.inner_text("main")
    assert "The request" in main and "Held against the consent" in main and "Fits" in main
    people.shot(dagny, "application-review")
    dagny.fill("#reason", "Within the consent.")
    dagny.fill("#granted", "20")
    dagny.click("text=Approve and issue the permit")
    dagny.click("text=see the permit")
    people.shot(dagny, "permit")
    return str(dagny.url)


def test_compute_on_identifiable_data(people: People, tmp_path: Path) -> None:
    """Steps 1 to 6: deposit, find, apply, review, compute, release."""
    name = f"patients-{time.time_ns() % 10**9}"
    records = tmp_path / "records.csv"
    rows = [["person", "disease"], *([f"P{n:04}", "flu" if n % 3 else "measles"] for n in range(300))]
    with records.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    deposit(people, name, [records], "identifiable")
    permit = apply(people, name, "compute")

    page = people.page("rikard")
    page.goto("/")
    people.shot(page, "home")
    page.goto(permit)
    page.click("text=Start a run")
    steps = f'tail -n +2 /data/{name}/records.csv | cut -d, -f2 | tr -d "\\r" | sort | uniq -c'
    page.fill("#line", f"sh -c '{steps} > /outbox/counts.txt'")
    page.fill("#seconds", "60")
    page.fill("#memory", "256")
    page.fill("#processes", "32")
    page.fill("#scratch", "64")
    people.shot(page, "run-new")
    page.click("text=Start the run")
    run = page.url
    people.shot(page, "run-waits")
    until(page, "Go to the outputs")
    assert "Success" in page.inner_text("main")
    people.shot(page, "run-ended")
    page.click("text=Go to the outputs")
    release = page.url
    assert "counts.txt" not in page.inner_text("main"), "names of outputs are outputs too"
    page.fill("#context", "How many persons have each disease; no count is below 100.")
    page.click("button:has-text('Ask for the release')")
    people.shot(page, "release-asked")

    kerttu = people.page("kerttu")
    kerttu.goto(release)
    people.shot(kerttu, "release-check")
    while kerttu.locator("text=Look and decide").count():
        kerttu.locator("text=Look and decide").first.click()
        assert kerttu.locator("#word-approve").count(), kerttu.inner_text("main")
        if "counts.txt" in kerttu.inner_text("h1"):
            assert "100 measles" in kerttu.inner_text("pre") and "200 flu" in kerttu.inner_text("pre")
            people.shot(kerttu, "output")
        kerttu.check("#word-approve")
        kerttu.fill("#reason", "Counts above the threshold, no persons.")
        kerttu.click("text=Record the decision")
    assert "Released" in kerttu.inner_text("main")
    people.shot(kerttu, "release-done")

    page.goto(release)
    people.shot(page, "release-fetch")
    with page.expect_download() as got:
        page.click("[aria-label='Download counts.txt']")
    assert re.split(r"\s+", Path(got.value.path()).read_text().strip()) == ["200", "flu", "100", "measles"]
    page.goto(run)
    page.goto(f"{permit}/files/none")
    assert "Identifiable data are never downloaded" in page.inner_text("main")
    people.shot(page, "refused")


def test_download_of_anonymised_data(people: People, tmp_path: Path) -> None:
    """Step 7: a claim assessed by a second person, then the file sealed to the researcher's own key."""
    import crypt4gh.lib

    name = f"volunteers-{time.time_ns() % 10**9}"
    calls = tmp_path / "calls.vcf"
    calls.write_text(CALLS)
    deposit(people, name, [calls], "anonymised")

    kerttu = people.page("kerttu")
    kerttu.goto(f"/datasets/{name}")
    assert "Claimed anonymised – not yet assessed" in kerttu.inner_text("main")
    until(kerttu, "The search for identifiers found")
    people.shot(kerttu, "assess")
    kerttu.check("#word-confirm")
    kerttu.fill("#reason", "Pseudonyms of volunteers only.")
    kerttu.click("text=Record the assessment")
    assert kerttu.locator(".badge.open").inner_text() == "Anonymised"

    permit = apply(people, name, "download")
    page = people.page("rikard")
    secret = _key(people)
    page.goto("/account")
    people.shot(page, "account")
    page.goto(permit)
    people.shot(page, "permit-download")
    page.select_option("#key", label=page.locator("#key option", has_text="portal test").last.inner_text())
    with page.expect_download() as got:
        page.click("[aria-label='Download calls.vcf']")
    assert got.value.suggested_filename == "calls.vcf.c4gh"
    plain = io.BytesIO()
    crypt4gh.lib.decrypt([(0, secret, None)], io.BytesIO(Path(got.value.path()).read_bytes()), plain)
    assert plain.getvalue() == calls.read_bytes()

    dagny = people.page("dagny")
    dagny.goto(permit)
    dagny.fill("#reason", "The project ended.")
    dagny.click("text=Revoke the permit")
    assert "Revoked" in dagny.inner_text("main")
    people.shot(dagny, "permit-revoked")
    page.goto(permit)
    assert "The project ended." in page.inner_text("main") and not page.locator("#key").count()


def _key(people: People) -> bytes:
    """A key registered for the researcher, as the command line does it. Returns the private half."""
    import hashlib
    from base64 import b64decode, b64encode

    from valv.app.account import answer
    from valv.formats.crypt4gh import generate_keypair, open_header

    pair = generate_keypair()
    rikard = people._node.person("rikard")
    label = f"portal test {hashlib.sha256(pair.public).hexdigest()[:6]}"
    asked = rikard.post("/account/keys", {"public": b64encode(pair.public).decode(), "label": label})
    data_key = open_header(b64decode(asked["header"]), [pair.private]).data_keys[0]
    rikard.post(f"/account/keys/{asked['challenge_id']}", {"answer": answer(data_key)})
    return pair.private


def test_the_auditor_reads_the_ledger(people: People) -> None:
    page = people.page("audun")
    page.goto("/ledger")
    main = page.inner_text("main")
    assert "account.logged_in" in main and "Verifier key" in main
    page.locator("summary").first.click()
    assert page.locator("td details[open] pre").first.is_visible(), "details open without JavaScript"
    people.shot(page, "ledger")


def test_the_portal_works_with_the_keyboard_alone(chromium: Any, running_node: Any) -> None:
    context = chromium.new_context(base_url=running_node.url, java_script_enabled=False, viewport=NARROW)
    page = context.new_page()
    page.goto("/")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the content"
    assert page.locator(":focus").bounding_box()["y"] >= 0, "the skip link shows itself"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Search the catalogue"
    page.keyboard.press("Enter")
    page.wait_for_url("**/catalogue")
    context.close()


def test_no_page_is_wider_than_a_phone(chromium: Any, running_node: Any) -> None:
    """Measured with a script of the browser's own; the pages bring none and allow none."""
    context = chromium.new_context(base_url=running_node.url, viewport={"width": 320, "height": 700})
    page = context.new_page()
    scripts: list[str] = []
    page.on("request", lambda request: scripts.append(request.url) if request.resource_type == "script" else None)
    for path in ("/", "/login", "/catalogue", "/nowhere"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320, path
    assert not scripts
    context.close()
