"""A participant withdraws from a node that really runs: a VCF of several people, a table and images; the worker is
killed on the way; a run is stopped; the successor is downloaded and opened."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import work
from tests.e2e.test_rotation import decrypted
from valv.formats import crypt4gh

CANARY = "CANARY-w7d2"
GONE = "HG00097"
KILLS = 3
VCF = "1000G.chr22.10.5M-11.0M.hg38.vcf.gz"


def cohort(folder: Path, genomes: Path) -> dict[str, bytes]:
    """The files of a deposit, plain, of which one person's are to go."""
    text = gzip.decompress((genomes / VCF).read_bytes()).decode()
    cut = "\n".join("\t".join(line.split("\t")[:15]) for line in text.splitlines()) + "\n"
    packed = subprocess.run(
        ["bcftools", "view", "--no-version", "-Oz"], input=cut.encode(), capture_output=True, check=True
    ).stdout
    folder.mkdir()
    (folder / "all.vcf.gz").write_bytes(packed)
    subprocess.run(["bcftools", "index", "--tbi", str(folder / "all.vcf.gz")], check=True)
    images = {f"image-{number}.bin": os.urandom(300_000 + number) for number in range(8)}
    files = {
        **images,
        "clinical.csv": f"pseudonym,age\n{CANARY},50\nP-2,60\nP-3,70\n".encode(),
        "participants.tsv": (
            "pseudonym\tconsent_group\tfiles\tsamples\n"
            f"{CANARY}\tmain\timage-0.bin;image-1.bin;all.vcf.gz;clinical.csv\t{GONE}\n"
            f"P-2\tmain\t{';'.join(list(images)[2:])};all.vcf.gz;clinical.csv\tHG00096\n"
            "P-3\tmain\tall.vcf.gz;clinical.csv\tHG00099\n"
        ).encode(),
    }
    for path, content in files.items():
        (folder / path).write_bytes(content)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_worker(node: Any) -> None:
    """The worker of this node, as a power cut would."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"valv.assemble.worker" in words and os.fsencode(node.directory) in words:
                os.kill(int(entry.name), signal.SIGKILL)


def test_a_participant_withdraws(running_node: Any, shared_data: Path, tmp_path: Path, long: bool) -> None:
    node, carin, rikard = running_node, running_node.person("carin"), running_node.person("rikard")
    plain = cohort(tmp_path / "in", shared_data / "genomes")
    name = work.fresh("leaving")
    work.deposit(carin, tmp_path / "in", name, "anonymised", ["NRES"])
    work.confirm_anonymous(node, name)
    downloading = work.permit(node, name, "download", ("GRU",))
    computing = work.permit(node, name, "compute", ("GRU",))
    going = rikard.post("/runs", {"permit": computing, "command": ["sleep", "600"]})["run_id"]
    rikard.wait(f"/runs/{going}", lambda found: found["state"]["phase"], ("running",))

    body = {"dataset": name, "pseudonyms": [CANARY], "reason": "They asked us to."}
    (ident,) = carin.post("/withdrawals", body)["withdrawal_ids"]
    with pytest.raises(Exception, match="closed"):
        rikard.get(f"/permits/{downloading}/files")
    dice = random.Random(5)
    for _ in range(KILLS * (5 if long else 1)):
        time.sleep(dice.uniform(0.2, 1.2))
        kill_worker(node)
    ended = rikard.wait(f"/runs/{going}", lambda found: found["state"]["phase"], ("collected", "cancelled"))
    assert ended["state"]["end"] in ("revoked", "lost")
    view = carin.wait(
        f"/withdrawals/{ident}", lambda found: found["state"]["phase"], ("finished", "failed", "waiting", "nobody")
    )
    assert view["state"]["phase"] == "finished", view
    assert (view["state"]["dropped"], view["state"]["rewritten"], view["state"]["taken"]) == (2, 4, 6)

    page = carin.get(f"/datasets/{name}")["state"]["versions"]
    assert [(one["successor"], one["files"], one["confirmed"]) for one in page] == [(2, 11, True), (0, 9, True)]
    for permit in (downloading, computing):
        moved = rikard.get(f"/permits/{permit}")
        assert [one["version"] for one in moved["datasets"]] == [2] and moved["standing"] is None and moved["moves"]
    pair = crypt4gh.generate_keypair()
    key = rikard.add_key(pair, "leaving")
    listed = rikard.get(f"/permits/{downloading}/files")
    assert {one["path"] for one in listed} == set(plain) - {"participants.tsv", "image-0.bin", "image-1.bin"}
    got = {one["path"]: decrypted(_content(rikard, downloading, one["file_id"], key), pair) for one in listed}
    assert {path: got[path] for path in got if path.startswith("image")} == {
        path: plain[path] for path in got if path.startswith("image")
    }
    assert got["clinical.csv"] == b"pseudonym,age\nP-2,60\nP-3,70\n"
    (tmp_path / "new.vcf.gz").write_bytes(got["all.vcf.gz"])
    (tmp_path / "new.vcf.gz.tbi").write_bytes(got["all.vcf.gz.tbi"])
    samples = _bcftools("query", "-l", str(tmp_path / "new.vcf.gz")).split()
    before = _bcftools("query", "-l", str(tmp_path / "in" / "all.vcf.gz")).split()
    assert samples == [one for one in before if one != GONE] and GONE.encode() not in gzip.decompress(got["all.vcf.gz"])
    query = ("query", "-f", "%POS %REF %ALT[ %GT]\n", "-r", "chr22:10516173-10600000")
    ours = _bcftools(*query, str(tmp_path / "new.vcf.gz")).splitlines()
    theirs = _bcftools(*query, "-s", ",".join(samples), str(tmp_path / "in" / "all.vcf.gz")).splitlines()
    assert ours and set(ours) <= set(theirs)

    done = work.run(node, computing, ["sh", "-c", f"ls /data/{name} > /outbox/names.txt"])
    assert done["state"]["success"], done

    rows = [one for one in carin.get(f"/datasets/{name}/history") if one["event"].startswith("withdrawal.")]
    assert {"withdrawal.asked", "withdrawal.published", "withdrawal.finished"} <= {one["event"] for one in rows}
    _nowhere(node.directory)


def _content(rikard: Any, permit: str, file_id: str, key: str) -> bytes:
    """Until the worker has told the key holder that the successor is anonymised too, downloads wait a moment."""
    end = time.monotonic() + 30
    while True:
        try:
            return bytes(rikard.content(f"/permits/{permit}/files/{file_id}", key=key))
        except Exception as error:
            if "not_yet" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.5)


def _bcftools(*words: str) -> str:
    return subprocess.run(["bcftools", *words], capture_output=True, check=True, text=True).stdout


def _nowhere(folder: Path) -> None:
    """The pseudonym is in no file of the node: not in its records, ledger, logs, mails, store; nor, a moment later when
    no reader keeps it, in the database's write-ahead log."""
    end = time.monotonic() + 60
    while found := [path for path in folder.rglob("*") if _has_canary(path)]:
        assert time.monotonic() < end, found
        time.sleep(1)


def _has_canary(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.is_file() and CANARY.encode() in path.read_bytes()
    return False
