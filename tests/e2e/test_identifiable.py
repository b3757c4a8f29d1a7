"""The main job on patients' records and images: counted in place, never downloaded."""

from __future__ import annotations

import collections
import csv
import io
import json
import lzma
import shutil
from pathlib import Path
from typing import Any

from tests.e2e import work

CASES = 2000
COUNT = """
import collections, csv, json, pathlib
counts, images = collections.Counter(), 0
for path in pathlib.Path("/data").rglob("*"):
    if path.suffix == ".json":
        for disease in json.loads(path.read_text("utf-8")).get("diseases", []):
            counts[disease["term"]["id"]] += 1
    elif path.is_file():
        images += path.read_bytes()[128:132] == b"DICM"
with open("/outbox/diseases.csv", "w", newline="") as out:
    writer = csv.writer(out)
    writer.writerow(["disease", "patients"])
    writer.writerows(sorted(counts.items()))
    writer.writerow(["images", images])
"""


def test_counts_leave_and_records_do_not(running_node: Any, shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    expected = _records(shared_data, folder / "cases")
    expected["images"] = _images(folder / "images")
    name = work.fresh("patients")
    work.deposit(running_node.person("carin"), folder, name, "identifiable", ["HMB", "GS=SE"])
    rikard = running_node.person("rikard")

    form = {
        "title": "x",
        "datasets": [name],
        "purpose": ["HMB", "IRB"],
        "country": "SE",
        "days": 5,
        "for_profit": False,
        "commercial": False,
        "licence": True,
    }
    access = rikard.post("/applications", form | {"mode": "download"})["access_id"]
    assert rikard.refused("POST", f"/applications/{access}/submission") == "download_identifiable"
    abroad = rikard.post("/applications", form | {"mode": "compute", "country": "NO"})["access_id"]
    assert rikard.refused("POST", f"/applications/{abroad}/submission") == "abroad"

    permit = work.permit(running_node, name, "compute")
    assert rikard.refused("GET", f"/permits/{permit}/files") in ("download_identifiable", "other_mode")
    done = work.run(running_node, permit, ["python3", "-c", COUNT])
    assert done["state"]["success"], done
    assert done["state"]["end"] == "exited"
    blind = rikard.get(f"/releases/{done['release_id']}")
    assert all(file["path"].startswith("output ") and not file["sha256"] for file in blind["files"])
    table = work.release(running_node, done, {"diseases.csv"})["diseases.csv"].decode()
    rows = {row["disease"]: int(row["patients"]) for row in csv.DictReader(io.StringIO(table))}
    assert rows == expected

    history = running_node.person("audun").get(f"/datasets/{name}/history")
    assert {"deposit.opened", "permit.issued", "run.read", "release.fetched"} <= {entry["event"] for entry in history}


def _records(shared_data: Path, folder: Path) -> dict[str, int]:
    """Published cases, one file each; returns how many have each disease."""
    folder.mkdir(parents=True)
    counts: collections.Counter[str] = collections.Counter()
    with lzma.open(shared_data / "phenopackets" / "cases.ndjson.xz", "rt") as lines:
        for number, line in enumerate(lines):
            if number == CASES:
                break
            (folder / f"case-{number:04d}.json").write_text(line, "utf-8")
            counts.update(disease["term"]["id"] for disease in json.loads(line).get("diseases", []))
    return dict(counts)


def _images(folder: Path) -> int:
    """The DICOM files that pydicom ships; returns how many there are."""
    import pydicom.data

    folder.mkdir(parents=True)
    found = 0
    for path in sorted(Path(pydicom.data.__file__).parent.rglob("*.dcm")):
        if path.stat().st_size < 1 << 20 and path.read_bytes()[128:132] == b"DICM":
            shutil.copy(path, folder / f"{found:04d}-{path.name}")
            found += 1
    assert found > 10
    return found
