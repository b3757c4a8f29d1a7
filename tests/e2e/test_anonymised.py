"""The main job on open genomes: computing on them, and downloading them in encrypted form."""

from __future__ import annotations

import collections
import gzip
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import work
from valv.formats import crypt4gh, keyfile

VCF = "1000G.chr22.10.5M-11.0M.hg38.vcf.gz"
COUNT_ALLELES = """
import collections, glob, gzip, json
counts = collections.Counter()
for path in glob.glob("/data/*/*.vcf.gz"):
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if not line.startswith("#"):
                for call in line.rstrip("\\n").split("\\t")[9:]:
                    for allele in call.split(":")[0].replace("|", "/").split("/"):
                        counts[allele] += 1
json.dump(dict(sorted(counts.items())), open("/outbox/alleles.json", "w"))
"""


def test_the_released_numbers_are_those_of_the_plain_file(running_node: Any, shared_data: Path, tmp_path: Path) -> None:
    if shutil.which("bcftools") is None:
        pytest.skip("bcftools is not installed")
    folder = tmp_path / "in"
    folder.mkdir()
    plain = shared_data / "genomes" / VCF
    shutil.copy(plain, folder / VCF)
    name = work.fresh("genomes")
    work.deposit(running_node.person("carin"), folder, name, "anonymised", ["NRES"])
    work.confirm_anonymous(running_node, name)
    permit = work.permit(running_node, name, "compute", ("GRU",))

    stats = work.run(running_node, permit, ["sh", "-c", f"bcftools stats /data/{name}/{VCF} > /outbox/stats.txt"])
    assert stats["state"]["success"], stats
    released = work.release(running_node, stats, {"stats.txt"})["stats.txt"].decode()
    direct = subprocess.run(["bcftools", "stats", str(plain)], capture_output=True, text=True, check=True).stdout
    assert _numbers(released) == _numbers(direct)
    assert any(line.startswith("SN\t0\tnumber of records:") for line in _numbers(released))

    alleles = work.run(running_node, permit, ["python3", "-c", COUNT_ALLELES])
    assert alleles["state"]["success"], alleles
    counted = json.loads(work.release(running_node, alleles, {"alleles.json"})["alleles.json"])
    assert counted == _alleles(plain)


def _numbers(stats: str) -> list[str]:
    """The figures of a report, without the lines that name the command and the file."""
    return [line for line in stats.splitlines() if not line.startswith(("#", "ID"))]


def _alleles(path: Path) -> dict[str, int]:
    counts: collections.Counter[str] = collections.Counter()
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if not line.startswith("#"):
                for call in line.rstrip("\n").split("\t")[9:]:
                    counts.update(call.split(":")[0].replace("|", "/").split("/"))
    return dict(sorted(counts.items()))


def test_a_download_opens_with_the_independent_tool(running_node: Any, shared_data: Path, tmp_path: Path) -> None:
    """Also: a file that another implementation encrypted is deposited with its body as it is."""
    genomes, foreign = shared_data / "genomes", shared_data / "crypt4gh"
    rikard = running_node.person("rikard")
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(genomes / "NA12878.bam", folder / "plain.bam")
    _for_the_node(rikard, foreign, folder / "foreign.bam.c4gh")
    name = work.fresh("reads")
    work.deposit(running_node.person("carin"), folder, name, "anonymised", ["NRES"])
    work.confirm_anonymous(running_node, name)
    permit = work.permit(running_node, name, "download", ("GRU",))

    pair = crypt4gh.generate_keypair()
    secret = tmp_path / "me.sec"
    secret.write_text(keyfile.write_private(pair.private), "utf-8")
    secret.chmod(0o600)
    key = rikard.add_key(pair, "test")
    expected = hashlib.sha256((genomes / "NA12878.bam").read_bytes()).hexdigest()
    listed = rikard.get(f"/permits/{permit}/files")
    assert sorted(file["path"] for file in listed) == ["foreign.bam", "plain.bam"]
    for file in listed:
        assert file["sha256"] == expected
        sealed = rikard.content(f"/permits/{permit}/files/{file['file_id']}", key=key)
        opened = subprocess.run(
            ["crypt4gh", "decrypt", "--sk", str(secret)], input=sealed, capture_output=True, check=True, env=_tools()
        ).stdout
        assert hashlib.sha256(opened).hexdigest() == expected


def _for_the_node(person: Any, foreign: Path, target: Path) -> None:
    """Bob, for whom the file was encrypted, re-seals its header to the node's key: the body stays as it is."""
    node_key = target.with_name("node.pub")
    node_key.write_text(person.get("/node")["node_key"], "utf-8")
    with (foreign / "NA12878.bam.c4gh").open("rb") as source, target.open("wb") as out:
        command = ["crypt4gh", "reencrypt", "--sk", str(foreign / "bob.sec"), "--recipient_pk", str(node_key)]
        subprocess.run(command, stdin=source, stdout=out, check=True, env=_tools())
    node_key.unlink()


def _tools() -> dict[str, str]:
    """The environment's own programs first."""
    import sys

    return {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "C4GH_PASSPHRASE": "", "HOME": "/nonexistent"}
