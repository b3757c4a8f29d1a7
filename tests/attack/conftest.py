"""The stage of the attacks: a running node with one of everything."""

from __future__ import annotations

import os
from base64 import b64encode
from typing import Any

import pytest

from tests.attack.scene import CANARY, EXTRA, Stage, add_people, form
from tests.e2e import work
from valv import config as configuration
from valv.assemble.demo import COMMITTEE


@pytest.fixture(scope="session")
def stage(running_node: Any, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    add_people(running_node, *EXTRA)
    carin, rikard = running_node.person("carin"), running_node.person("rikard")
    sealed, opened = work.fresh("sealed"), work.fresh("open")
    folder = tmp_path_factory.mktemp("sealed")
    for number in range(3):
        (folder / f"case-{number}.txt").write_text(f"{CANARY} patient {number}\n" * 200)
    work.deposit(carin, folder, sealed, "identifiable", ["HMB", "GS=SE"])
    folder = tmp_path_factory.mktemp("open")
    (folder / "counts.txt").write_text("1 2 3\n" * 1000)
    work.deposit(carin, folder, opened, "anonymised", ["GRU"])
    work.confirm_anonymous(running_node, opened)
    compute, download = work.permit(running_node, sealed, "compute"), work.permit(running_node, opened, "download")
    command = f"cat /data/{sealed}/* | tee /outbox/{CANARY}.txt; echo {CANARY} >&2; echo 3 > /outbox/count"
    done = work.run(running_node, compute, ["sh", "-c", command])
    rikard.post(f"/releases/{done['release_id']}/request", {"context": "The number of cases."})
    page = running_node.person("kerttu").get(f"/releases/{done['release_id']}")
    about = {"dataset": opened, "class": "anonymised", "consent": ["GRU"], "committee": COMMITTEE}
    access = rikard.post("/applications", form(sealed))["access_id"]
    rikard.post(f"/applications/{access}/submission")
    due = {"dataset": opened, "aim": "rotate", "reason": "It is due."}
    (rotation,) = running_node.person("olof").post("/rotations", due)["rotation_ids"]
    scrub = running_node.person("olof").post("/fixity", {"dataset": opened})["scrub_id"]
    deposit = carin.post("/deposits", about)["deposit_id"]
    return Stage(
        node=running_node,
        config=configuration.load(running_node.directory),
        sealed=sealed,
        open=opened,
        access=access,
        compute=compute,
        download=download,
        run=done["state"]["run_id"],
        release=done["release_id"],
        output=next(file["file_id"] for file in page["files"] if file["path"] == "count"),
        file=rikard.get(f"/permits/{download}/files")[0]["file_id"],
        deposit=deposit,
        rotation=rotation,
        scrub=scrub,
        upload=_upload(carin, deposit),
    )


def _upload(who: Any, deposit: str) -> str:
    """The id of an upload that was begun."""
    named = b64encode(b"begun.txt").decode()
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Metadata": f"filename {named}"}
    begun = who._http.post(f"/api/v1/deposits/{deposit}/uploads", headers=headers)
    assert begun.status_code == 201, begun.text
    return str(begun.headers["Location"]).rpartition("/")[2]


@pytest.fixture(scope="session")
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("the node's processes have users of their own only where root starts it")
