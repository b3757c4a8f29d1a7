"""The demonstration: makes a node, walks the whole loop once with what each step proves, then serves the portal."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.table import Table

from valv import config as configuration
from valv.assemble import create, demo_data
from valv.assemble.demo_client import Person
from valv.config import Config
from valv.errors import Fault, UnreachableFault
from valv.formats import crypt4gh

COMMITTEE = "demo-dac"
ACCOUNTS = (
    create.Account(name="carin", display="Carin Custodian", email="carin@demo.invalid", roles=("custodian",)),
    create.Account(name="rikard", display="Rikard Researcher", email="rikard@demo.invalid", roles=("researcher",)),
    create.Account(
        name="dagny",
        display="Dagny of the Committee",
        email="dagny@demo.invalid",
        roles=("committee",),
        committees=(COMMITTEE,),
    ),
    create.Account(name="kerttu", display="Kerttu Checker", email="kerttu@demo.invalid", roles=("checker",)),
    create.Account(name="audun", display="Audun Auditor", email="audun@demo.invalid", roles=("auditor",)),
    create.Account(name="olof", display="Olof Operator", email="olof@demo.invalid", roles=("operator",)),
)
READY = 60.0


def prepare(directory: Path, port: int = 8600, database: str = "", password_file: str = "") -> Config:
    """The demonstration's node: made where there is none, with accounts whose passwords lie in `demo/accounts.json`.
    `database`: a PostgreSQL URL in place of the embedded database."""
    if not (directory / "valv.toml").exists():
        create.create_node(
            directory,
            name="demo.valv",
            country="SE",
            unit="Demonstration",
            title="Valv demonstration",
            port=port,
            demo=True,
            database=database,
            database_password_file=password_file,
        )
    elif configuration.load(directory).serve.port != port:
        toml = directory / "valv.toml"
        toml.write_text(re.sub(r"(?m)^port = \d+$", f"port = {port}", toml.read_text("utf-8")), "utf-8")
    if not accounts_file(directory).exists():
        wanted = [_with_password(account) for account in ACCOUNTS]
        found = create.create_accounts(directory, wanted)
        kept = {a.name: {"password": a.password, "totp": found[a.name], "display": a.display} for a in wanted}
        (directory / "demo").mkdir(mode=0o700, exist_ok=True)
        create.write(accounts_file(directory), json.dumps(kept, indent=1).encode(), 0o600)
    return configuration.load(directory, secrets=True)


def accounts_file(directory: Path) -> Path:
    return directory / "demo" / "accounts.json"


def _with_password(account: create.Account) -> create.Account:
    return msgspec.structs.replace(account, password=secrets.token_urlsafe(9), totp=True)


@contextlib.contextmanager
def running(directory: Path, config: Config) -> Iterator[str]:
    """The node's processes, from here until the block ends. Yields the node's address."""
    (directory / "log").mkdir(exist_ok=True)
    with (directory / "log" / "up.log").open("ab") as log:
        command = [sys.executable, "-m", "valv.assemble.up", "--node", str(directory)]
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _until_ready(config, process, directory)
        yield config.public_url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _until_ready(config: Config, process: subprocess.Popen[bytes], directory: Path) -> None:
    log = directory / "log" / "up.log"
    end = time.monotonic() + READY
    while time.monotonic() < end:
        if process.poll() is not None:
            raise UnreachableFault(f"the node did not start: {_last_line(log)}", f"see {log}")
        with contextlib.suppress(httpx.HTTPError, ValueError):
            if httpx.get(f"{config.public_url}/health", timeout=2).json()["status"] == "ok":
                return
        time.sleep(0.2)
    raise UnreachableFault(f"the node was not ready in {READY:.0f} s", f"see {directory / 'log'}")


def _last_line(path: Path) -> str:
    lines = path.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""


class Walk:
    """The loop, step by step. Each step returns what it proved, or raises."""

    def __init__(self, url: str, directory: Path, folder: Path) -> None:
        self.directory = directory
        self.folder = folder
        self.marker = "CANARY-" + secrets.token_hex(16)
        self._url = url
        self.permit = self.run = self.release = ""
        self.manifest: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def steps(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("Log in", self.log_in),
            ("Deposit", self.deposit),
            ("Scan and assess", self.assess),
            ("Find", self.find),
            ("Apply", self.apply),
            ("Review", self.review),
            ("Compute", self.compute),
            ("Release", self.check),
            ("Download", self.download),
            ("Revoke", self.revoke),
            ("Ledger", self.ledger),
        ]

    def log_in(self) -> str:
        kept = json.loads(accounts_file(self.directory).read_text("utf-8"))
        names = ("carin", "rikard", "dagny", "kerttu", "audun")
        people = [Person(self._url, name, kept[name]["password"], kept[name]["totp"]) for name in names]
        self.carin, self.rikard, self.dagny, self.kerttu, self.audun = people
        return "five people, each with password and second factor"

    def deposit(self) -> str:
        variants, registry = self.folder / "variants", self.folder / "registry"
        demo_data.variants(variants)
        self.counts = demo_data.registry(registry)
        (registry / "canary.txt").write_text(self.marker, "utf-8")
        self.carin.deposit(
            variants,
            dataset="demo-variants",
            **{"class": "anonymised"},
            consent=["GRU", "NPU"],
            committee=COMMITTEE,
            title="Made-up cohort, chromosome 22",
            description="Phased genotypes of 80 people who do not exist.",
            data_types=["genomic variants"],
        )
        self.carin.deposit(
            registry,
            dataset="demo-registry",
            **{"class": "identifiable"},
            consent=["HMB", "GS=SE"],
            committee=COMMITTEE,
            title="Made-up registry of rare diseases",
            description="Phenopackets of 120 patients who do not exist.",
            diseases=[ident for ident, _ in demo_data.DISEASES],
            data_types=["phenotypes"],
        )
        found = _search(self.directory, self.marker.encode())
        _hold(not found, f"plain data lie on disk in {found}")
        return "2 datasets published; a marker sent with the data is nowhere on the node's disk"

    def assess(self) -> str:
        version = self._version("demo-variants")
        page = self.carin.wait("/datasets/demo-variants", lambda found: _scanned(found, version), ("scanned",))
        body = {"version": version, "confirm": True, "reason": "No direct identifier; genotypes are made up."}
        code = self.carin.refused("POST", "/datasets/demo-variants/assessment", body)
        _hold(code in ("own_claim", "not_allowed"), f"the custodian assessed her own claim ({code})")
        self.kerttu.post("/datasets/demo-variants/assessment", body)
        page = self.kerttu.get("/datasets/demo-variants")
        _hold(page["row"]["class"] == "anonymised", "the class did not change")
        return "anonymised only after the scan and a second person; the custodian herself was refused"

    def find(self) -> str:
        found = self.rikard.get("/datasets", query="rare diseases")
        _hold(any(row["name"] == "demo-registry" for row in found["rows"]), "the registry is not found")
        _hold(self.marker not in json.dumps(found), "the catalogue shows data")
        return f"{found['total']} dataset found by words; no data in the catalogue"

    def apply(self) -> str:
        form = {
            "title": "How frequent are the diseases?",
            "summary": "Counts of diseases in the registry.",
            "datasets": ["demo-registry"],
            "purpose": ["HMB", "IRB"],
            "country": "SE",
            "institution": "Demonstration University",
            "days": 30,
            "for_profit": False,
            "commercial": False,
            "licence": True,
        }
        wrong = self.rikard.post("/applications", form | {"mode": "download"})["access_id"]
        code = self.rikard.refused("POST", f"/applications/{wrong}/submission")
        _hold(code == "download_identifiable", f"an application for download was taken ({code})")
        self.rikard.post(f"/applications/{wrong}/withdrawal")
        self.access = self.rikard.post("/applications", form | {"mode": "compute"})["access_id"]
        self.rikard.post(f"/applications/{self.access}/submission")
        return "submitted for computing; downloading identifiable data was refused"

    def review(self) -> str:
        page = self.dagny.get(f"/applications/{self.access}")
        verdict = page["datasets"][0]["match"]["verdict"]
        code = self.rikard.refused("POST", f"/applications/{self.access}/approval", {"reason": "mine"})
        _hold(code in ("own_application", "not_allowed"), f"the applicant approved ({code})")
        body = {"reason": "The purpose fits the consent."}
        self.permit = self.dagny.post(f"/applications/{self.access}/approval", body)["permit_id"]
        return f"consent match: {verdict}; permit {self.permit[:8]}…; the applicant could not approve"

    def compute(self) -> str:
        command = ["python3", "-c", demo_data.COUNT_DISEASES]
        self.run = self._queue(self.permit, command)
        lonely = self._queue(
            self.permit, ["python3", "-c", "import socket; socket.create_connection(('1.1.1.1', 53), 3)"]
        )
        done = self._ended(self.run)
        _hold(done["state"]["success"], "the run failed")
        _hold(not self._ended(lonely)["state"]["success"], "a run reached the network")
        return "a table of diseases was counted in the sandbox; a run that sought the network failed"

    def check(self) -> str:
        release = self.rikard.get(f"/runs/{self.run}")["release_id"]
        self.rikard.post(f"/releases/{release}/request", {"context": "Counts of patients by disease, all of them."})
        page = self.kerttu.get(f"/releases/{release}")
        table = next(file for file in page["files"] if file["path"] == "diseases.csv")
        early = self.rikard.refused("GET", f"/releases/{release}/files/{table['file_id']}")
        _hold(early != "", "outputs could be fetched before the check")
        seen = self.kerttu.content(f"/releases/{release}/files/{table['file_id']}/inspection").decode()
        for file in page["files"]:
            approve = file["path"] == "diseases.csv"
            body = {
                "approve": approve,
                "reason": "Counts only." if approve else "Not needed.",
                "manifest": page["state"]["manifest"],
            }
            self.kerttu.post(f"/releases/{release}/files/{file['file_id']}/decision", body)
        got = self.rikard.content(f"/releases/{release}/files/{table['file_id']}").decode()
        rows = {row["disease"]: int(row["patients"]) for row in csv.DictReader(io.StringIO(got))}
        _hold(rows == self.counts and got == seen, "the released numbers are not those of the data")
        return "nothing before the check; then the approved file alone, its numbers equal to a direct count"

    def download(self) -> str:
        form = {
            "title": "Method comparison",
            "datasets": ["demo-variants"],
            "purpose": ["GRU"],
            "country": "SE",
            "mode": "download",
            "days": 30,
            "for_profit": False,
            "commercial": False,
            "licence": True,
        }
        access = self.rikard.post("/applications", form)["access_id"]
        self.rikard.post(f"/applications/{access}/submission")
        permit = self.dagny.post(f"/applications/{access}/approval", {"reason": "Fits."})["permit_id"]
        pair = crypt4gh.generate_keypair()
        key = self.rikard.add_key(pair, "demonstration")
        listed = next(f for f in self.rikard.get(f"/permits/{permit}/files") if f["path"] == "cohort.vcf")
        sealed = self.rikard.content(f"/permits/{permit}/files/{listed['file_id']}", key=key)
        plain = _decrypt(sealed, pair)
        _hold(hashlib.sha256(plain).hexdigest() == listed["sha256"], "the download is not the file")
        _hold(plain == (self.folder / "variants" / "cohort.vcf").read_bytes(), "the download is not the deposit")
        code = self.rikard.refused("GET", f"/permits/{self.permit}/files")
        _hold(code != "", "identifiable files were listed for download")
        return "re-sealed to the researcher's key, decrypted to the same SHA-256; identifiable refused"

    def revoke(self) -> str:
        run = self._queue(self.permit, ["python3", "-c", demo_data.READ_FOR_EVER])
        self.rikard.wait(f"/runs/{run}", lambda found: found["state"]["phase"], ("running",))
        time.sleep(1.0)
        began = time.monotonic()
        self.dagny.post(f"/permits/{self.permit}/revocation", {"reason": "Demonstration of a revocation."})
        done = self._ended(run)
        took = time.monotonic() - began
        _hold(done["state"]["end"] == "revoked", f"the run ended as {done['state']['end']}")
        code = self.rikard.refused("POST", "/runs", {"permit": self.permit, "command": ["true"]})
        _hold(code == "permit_ended", f"a new run was taken ({code})")
        return f"a reading run was cut and its end on record {took:.1f} s after the revocation; new runs refused"

    def ledger(self) -> str:
        from valv.formats import ledger

        end = time.monotonic() + 20
        proof = self.audun.get("/ledger/proof")
        while proof["checkpoint_size"] < proof["size"] and time.monotonic() < end:
            time.sleep(0.3)
            proof = self.audun.get("/ledger/proof")
        lines = self.audun.content("/ledger/export", size=proof["checkpoint_size"]).splitlines()
        report = ledger.verify_export(lines, proof["checkpoint"], proof["log_key"])
        _hold(report.ok, f"the ledger does not hold: {report.fault}")
        history = self.audun.get("/datasets/demo-registry/history")
        people = sorted({entry["actor"] for entry in history})
        return f"{len(lines)} events under a signed Merkle root; the registry was touched by {', '.join(people)}"

    def _version(self, name: str) -> int:
        number: int = self.carin.get(f"/datasets/{name}")["row"]["version"]
        return number

    def _queue(self, permit: str, command: list[str]) -> str:
        ident: str = self.rikard.post("/runs", {"permit": permit, "command": command})["run_id"]
        return ident

    def _ended(self, run: str) -> Any:
        ended = ("collected", "cancelled")
        return self.rikard.wait(f"/runs/{run}", lambda found: found["state"]["phase"], ended)


def _scanned(page: Any, version: int) -> str:
    found = next(v for v in page["state"]["versions"] if v["number"] == version)
    return "waiting" if found["findings"] is None else "scanned"


def _hold(holds: bool, fault: str) -> None:
    if not holds:
        raise UnreachableFault(fault, "this is a fault of the software: please report it")


def _search(directory: Path, marker: bytes) -> str:
    """The first file below a folder that holds these bytes, '' for none."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                if marker in path.read_bytes():
                    return str(path)
    return ""


def _decrypt(sealed: bytes, pair: crypt4gh.KeyPair) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    length = crypt4gh.header_length(sealed) or 0
    cipher = ChaCha20Poly1305(crypt4gh.open_header(sealed[:length], [pair.private]).data_keys[0])
    body = sealed[length:]
    pieces = (body[at : at + crypt4gh.CIPHER_SEGMENT] for at in range(0, len(body), crypt4gh.CIPHER_SEGMENT))
    return b"".join(cipher.decrypt(piece[:12], piece[12:], None) for piece in pieces)


def demo(directory: Path, *, once: bool = False, port: int = 8600, console: Console | None = None) -> int:
    """Walk the loop, then serve the portal until Ctrl-C (`once`: end after the loop). Returns the exit code."""
    console = console or Console()
    try:
        config = prepare(directory, port)
        console.print(f"[bold]Valv demonstration[/] in {directory} at {config.public_url}\n")
        with running(directory, config) as url, tempfile.TemporaryDirectory(dir=_memory()) as folder:
            code = _walk(console, Walk(url, directory, Path(folder)))
            if code or once:
                return code
            _invite(console, directory, url)
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
            return 0
    except Fault as fault:
        console.print(f"[red]Error:[/] {fault}")
        return fault.row.exit


def _memory() -> str | None:
    """A folder in memory for the made-up data, so that not even they touch a disk in plain."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


def _walk(console: Console, walk: Walk) -> int:
    table = Table(title="The loop", title_justify="left", show_lines=False)
    for column in ("step", "what was proven", "seconds"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for number, (name, step) in enumerate(walk.steps(), 1):
        began = time.monotonic()
        console.print(f"{number:2}. {name} …", end=" ")
        try:
            proven = step()
        except (Fault, httpx.HTTPError, KeyError, StopIteration) as fault:
            console.print(f"[red]failed[/]\n    {fault!s}")
            return getattr(getattr(fault, "row", None), "exit", 70)
        took = time.monotonic() - began
        console.print(f"[green]done[/] ({took:.1f} s)\n    {proven}")
        table.add_row(name, proven, f"{took:.1f}")
    console.print()
    console.print(table)
    return 0


def _invite(console: Console, directory: Path, url: str) -> None:
    import pyotp

    kept = json.loads(accounts_file(directory).read_text("utf-8"))
    table = Table(title="Demonstration accounts", title_justify="left")
    for column in ("name", "who", "password", "secret for an authenticator app"):
        table.add_column(column)
    for name, account in kept.items():
        table.add_row(name, account["display"], account["password"], account["totp"])
    console.print(table)
    console.print(f"The accounts are also in {accounts_file(directory)}. A code now, for dagny: ", end="")
    console.print(pyotp.TOTP(kept["dagny"]["totp"]).now())
    console.print(f"\nThe portal is at [bold]{url}[/]. Ctrl-C ends it.")
