"""Steps of the main job that several end-to-end tests take."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from pathlib import Path
from typing import Any

from valv.assemble.demo import COMMITTEE


def fresh(name: str) -> str:
    """A dataset name that no other test uses."""
    return f"{name}-{secrets.token_hex(4)}"


def deposit(person: Any, folder: Path, name: str, data_class: str, consent: list[str]) -> str:
    """Deposit a folder and wait until it is published; returns the deposit's id."""
    about = {"dataset": name, "class": data_class, "consent": consent, "committee": COMMITTEE, "title": name}
    return str(person.deposit(folder, **about))


def confirm_anonymous(node: Any, name: str) -> None:
    """Wait for the scan; the checker, a second person, confirms the claim."""

    def scanned(page: Any) -> str:
        return "waiting" if page["state"]["versions"][-1]["findings"] is None else "scanned"

    page = node.person("carin").wait(f"/datasets/{name}", scanned, ("scanned",))
    body = {"version": page["row"]["version"], "confirm": True, "reason": "Open data."}
    node.person("kerttu").post(f"/datasets/{name}/assessment", body)
    end = time.monotonic() + 30
    with contextlib.closing(sqlite3.connect(node.directory / "db" / "valv.sqlite", timeout=30)) as database:
        waiting = "select count(*) from outbox where topic = 'key.confirm' and done is null"
        while database.execute(waiting).fetchone()[0]:  # until then downloads are answered `not_yet`
            assert time.monotonic() < end, "the worker did not tell the key holder"
            time.sleep(0.1)


def permit(node: Any, name: str, mode: str, purpose: tuple[str, ...] = ("HMB", "IRB")) -> str:
    """Apply as the researcher, approve as the committee; returns the permit's id."""
    form = {
        "title": f"Work on {name}",
        "datasets": [name],
        "purpose": list(purpose),
        "country": "SE",
        "mode": mode,
        "days": 30,
        "for_profit": False,
        "commercial": False,
        "licence": True,
    }
    access = node.person("rikard").post("/applications", form)["access_id"]
    node.person("rikard").post(f"/applications/{access}/submission")
    approved = node.person("dagny").post(f"/applications/{access}/approval", {"reason": "Fits the consent."})
    return str(approved["permit_id"])


def run(node: Any, permit_id: str, command: list[str], **more: Any) -> Any:
    """Run a command to its end; returns the run's page."""
    rikard = node.person("rikard")
    ident = rikard.post("/runs", {"permit": permit_id, "command": command, **more})["run_id"]
    return rikard.wait(f"/runs/{ident}", lambda found: found["state"]["phase"], ("collected", "cancelled"))


def release(node: Any, done: Any, wanted: set[str]) -> dict[str, bytes]:
    """Ask for the outputs of a run, approve the wanted ones and fetch them."""
    rikard, kerttu = node.person("rikard"), node.person("kerttu")
    ident = done["release_id"]
    rikard.post(f"/releases/{ident}/request", {"context": "Counts over the whole dataset."})
    page = kerttu.get(f"/releases/{ident}")
    for file in page["files"]:
        kerttu.content(f"/releases/{ident}/files/{file['file_id']}/inspection")
        body = {
            "approve": file["path"] in wanted,
            "reason": "Counts only." if file["path"] in wanted else "Not needed.",
            "manifest": page["state"]["manifest"],
        }
        kerttu.post(f"/releases/{ident}/files/{file['file_id']}/decision", body)
    return {
        file["path"]: rikard.content(f"/releases/{ident}/files/{file['file_id']}")
        for file in page["files"]
        if file["path"] in wanted
    }
