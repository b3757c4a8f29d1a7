"""Files rewritten without some people, through the launcher, the key holder and a real sandbox; hostile files too."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from tests.compute import stand
from tests.compute.stand import Node
from valv.compute.rewrite.names import Names
from valv.errors import FormatFault, RefusedFault
from valv.formats.crypt4gh import generate_keypair
from valv.ports.compute import Job, MountedFile, Rewritten
from valv.vault.reader import open_reader

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GONE = "HG00097"
HEAD = (
    "##fileformat=VCFv4.3\n##contig=<ID=1>\n"
    '##INFO=<ID=AC,Number=A,Type=Integer,Description="x">\n##INFO=<ID=AN,Number=1,Type=Integer,Description="x">\n'
    '##INFO=<ID=AF,Number=A,Type=Float,Description="x">\n##INFO=<ID=RK,Number=R,Type=Integer,Description="x">\n'
    '##INFO=<ID=DP,Number=1,Type=Integer,Description="x">\n##INFO=<ID=DB,Number=0,Type=Flag,Description="x">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n##FORMAT=<ID=AD,Number=R,Type=Integer,Description="x">\n'
    '##FORMAT=<ID=PL,Number=G,Type=Integer,Description="x">\n##SAMPLE=<ID=P-1,Description="x">\n'
    "##source=merged P-1 and P-2\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tP-1\tP-10\tP-2\n"
)
KEY = generate_keypair()


@pytest.fixture(scope="module", name="node")
def _node() -> Iterator[Node]:
    yield from stand.started()


def ask(node: Node, path: str, data: bytes, job: Job) -> tuple[Rewritten, bytes]:
    """The answer, and the plain bytes of the new file; nothing else is left in the store."""
    file: MountedFile = node("put", f"set/{path}", data)
    token, uid = node("reader.reserve")
    grant = f"rewrite-{os.urandom(6).hex()}"
    node("keyd.grant", grant, [file.key_id], uid, 60.0)
    before = set(node("stored"))
    body = f"n{os.urandom(8).hex()}"
    try:
        made: Rewritten = node("reader.rewrite", token, grant, file, job, public_key=KEY.public, body=body)
    except Exception:
        assert set(node("stored")) == before
        raise
    if made.outcome != "rewritten":
        assert set(node("stored")) == before
        return made, b""
    assert set(node("stored")) == before | {body, f"{body}.seal"}
    reader = open_reader(
        stand.LocalStorage(node.home / "store", stand.Place("SE", "test")).open,
        body,
        made.header,
        KEY.private,
        size=made.size,
        seal_root=made.seal_root,
        tree_root=made.tree_root,
    )
    return made, reader.read(0, made.size)


def rewrite(node: Node, path: str, data: bytes, *names: str, keep: tuple[str, ...] = ()) -> tuple[Rewritten, bytes]:
    return ask(node, path, data, Job("rewrite", path, names, keep))


def look(node: Node, path: str, data: bytes, *names: str, keep: tuple[str, ...] = ()) -> Rewritten:
    return ask(node, path, data, Job("look", path, names, keep))[0]


def why(node: Node, path: str, data: bytes, *names: str) -> str:
    made, _ = rewrite(node, path, data, *names)
    assert made.outcome == "custodian"
    return made.why


def bcftools(*words: str, data: bytes) -> str:
    done = subprocess.run(["bcftools", *words], input=data, capture_output=True, check=True)
    return done.stdout.decode()


@pytest.fixture(scope="module")
def cohort() -> bytes:
    """Eleven samples of the 1000 Genomes project, VCF, bgzipped."""
    text = gzip.decompress((DATA / "genomes/1000G.chr22.10.5M-11.0M.hg38.vcf.gz").read_bytes()).decode()
    cut = "\n".join("\t".join(line.split("\t")[:20]) for line in text.splitlines()) + "\n"
    return subprocess.run(
        ["bcftools", "view", "--no-version", "-Oz"], input=cut.encode(), capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("kind", ["v", "z", "b", "u"])
def test_samples_leave_a_vcf_or_bcf_as_bcftools_takes_them_out(node: Node, cohort: bytes, kind: str) -> None:
    data = subprocess.run(
        ["bcftools", "view", "--no-version", f"-O{kind}"], input=cohort, capture_output=True, check=True
    ).stdout
    path = {"v": "a.vcf", "z": "a.vcf.gz", "b": "a.bcf", "u": "a.bcf"}[kind]
    if kind == "u":  # BCF that is not packed is no file that anybody keeps
        assert why(node, path, data, GONE) == "unknown"
        return
    made, new = rewrite(node, path, data, GONE)
    assert made.outcome == "rewritten"
    assert GONE.encode() not in (new if kind == "v" else gzip.decompress(new))
    wanted = "%CHROM\t%POS\t%REF\t%ALT\t%INFO/AC\t%INFO/AN[\t%GT]\n"
    theirs = bcftools("view", "--no-version", "-s", f"^{GONE}", "-Ov", data=data)
    ours = bcftools("query", "-f", wanted, data=new).splitlines()
    # bcftools keeps lines that nobody else has the variant of; ours go. Of all others the counts are the same.
    had = bcftools("query", "-s", GONE, "-f", "%POS-%REF-%ALT[\t%GT]\n", data=data).splitlines()
    carried = {line.split("\t")[0] for line in had if "1" in line.split("\t")[1]}
    left = [
        line
        for line in bcftools("query", "-f", wanted, data=theirs.encode()).splitlines()
        if not (line.split("\t")[4] == "0" and "-".join(line.split("\t")[1:4]) in carried)
    ]
    assert ours == left and len(left) < len(had)
    assert look(node, path, new, GONE).outcome == "clean" and look(node, path, data, GONE).outcome == "mentions"


def test_an_index_is_made_anew(node: Node, cohort: bytes, tmp_path: Path) -> None:
    for kind in ("tbi", "csi"):
        made, index = ask(node, "a.vcf.gz", cohort, Job("index", "a.vcf.gz", (GONE,), kind=kind))
        (tmp_path / "a.vcf.gz").write_bytes(cohort)
        (tmp_path / f"a.vcf.gz.{kind}").write_bytes(index)
        found = subprocess.run(
            ["bcftools", "view", "-H", str(tmp_path / "a.vcf.gz"), "chr22:10516173"], capture_output=True, check=True
        )
        assert made.outcome == "rewritten" and found.stdout.startswith(b"chr22\t10516173")
        (tmp_path / f"a.vcf.gz.{kind}").unlink()


def test_alleles_that_nobody_has_any_more_go_with_their_values(node: Node) -> None:
    lines = (
        "1\t10\t.\tA\tC,G\t.\t.\tAC=1,2;AN=6;AF=0.1,0.3;RK=7,8,9;DP=90;DB\tGT:AD:PL"
        "\t0/1:1,2,3:0,1,2,3,4,5\t0/2:4,5,6:10,11,12,13,14,15\t2|0:7,8,9:.\n"
        "1\t20\t.\tA\tT\t.\t.\tAC=2;AN=6\tGT\t1/1\t0/0\t0/0\n"
        "1\t30\t.\tA\tT\t.\t.\tAC=0;AN=6\tGT\t0/0\t0/0\t./.\n"
        "1\t40\t.\tA\tT\t.\t.\tDB\tAD\t1,2\t3,4\t5,6\n"
    )
    made, new = rewrite(node, "x.vcf", (HEAD + lines).encode(), "P-1", keep=("P-10",))
    assert made.outcome == "rewritten"
    text = new.decode()
    assert "##SAMPLE" not in text and "##source" not in text and "P-10\tP-2\n" in text
    assert [line for line in text.splitlines() if line[0] == "1"] == [
        "1\t10\t.\tA\tG\t.\t.\tAC=2;AN=4;AF=0.5;RK=7,9;DB\tGT:AD:PL\t0/1:4,6:10,13,15\t1|0:7,9:.",
        "1\t30\t.\tA\tT\t.\t.\tAC=0;AN=2\tGT\t0/0\t./.",
        "1\t40\t.\tA\tT\t.\t.\tDB\tAD\t3,4\t5,6",
    ]
    assert bcftools("view", "-H", data=new).count("\n") == 3
    assert rewrite(node, "x.vcf", (HEAD + lines).encode(), "P-1", "P-2", "P-10")[0].outcome == "drop"
    assert why(node, "x.vcf", (HEAD + lines).encode(), "P-3") == "not_found"


def test_rows_and_columns_leave_a_table(node: Node) -> None:
    table = 'pseudonym,age,note\r\nP-1,44,"a, ""b""\nc"\r\nP-10,45,"x\ny"\r\n p-1 ,46,\r\nP-2,47,z\r\n'
    made, new = rewrite(node, "t.csv", table.encode(), "P-1", keep=("P-10",))
    assert made.outcome == "rewritten" and new.decode() == 'pseudonym,age,note\r\nP-10,45,"x\ny"\r\nP-2,47,z\r\n'
    matrix = "gene\tP-1\tP-2\nBRCA1\t1\t2\nTP53\t3\t4\n"
    assert rewrite(node, "m.tsv", matrix.encode(), "P-1")[1] == b"gene\tP-2\nBRCA1\t2\nTP53\t4\n"
    packed = gzip.compress(table.encode())
    assert gzip.decompress(rewrite(node, "t.csv.gz", packed, "P-2")[1]).decode().count("P-2") == 0
    assert list(csv.reader(io.StringIO(rewrite(node, "s.csv", b"Sample ID;x\nS1;1\nS2;2\n", "S1")[1].decode()))) == [
        ["Sample ID;x"],
        ["S2;2"],
    ]
    assert why(node, "t.csv", b"a,b\nP-1,2\n", "P-1") == "no_column"
    assert rewrite(node, "t.csv", b"pseudonym\nP-1\n", "P-1")[0].outcome == "drop"


def test_phenopackets_of_real_cases(node: Node) -> None:
    lines = lzma.decompress((DATA / "phenopackets/cases.ndjson.xz").read_bytes()).splitlines(keepends=True)[:40]
    packets = [json.loads(line) for line in lines]
    gone = packets[7]["id"]
    names = (gone,)
    _, new = rewrite(node, "cases.ndjson", b"".join(lines), *names)
    assert new == b"".join(line for line in lines if json.loads(line)["id"] != gone) != b"".join(lines)
    cohort = {"id": "c", "description": "d", "members": packets, "metaData": {"created": "2024-01-01T00:00:00Z"}}
    _, new = rewrite(node, "cohort.json", json.dumps(cohort).encode(), *names)
    assert json.loads(new)["members"] == [packet for packet in packets if packet["id"] != gone]
    assert rewrite(node, "one.json", json.dumps(packets[7]).encode(), *names)[0].outcome == "drop"
    person = lambda ident: {"id": f"packet-{ident}", "subject": {"id": ident}}  # noqa: E731
    family: dict[str, Any] = {
        "id": "f",
        "proband": person("child"),
        "relatives": [person("mother"), person("father")],
        "pedigree": {"persons": [{"individualId": "child", "maternalId": "mother"}, {"individualId": "mother"}]},
    }
    _, new = rewrite(node, "family.json", json.dumps(family).encode(), "mother")
    assert b"mother" not in new and json.loads(new)["relatives"] == [person("father")]
    assert json.loads(new)["pedigree"]["persons"] == [{"individualId": "child", "maternalId": "0"}]
    assert why(node, "family.json", json.dumps(family).encode(), "child") == "proband"


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_dicom_files_go_by_the_patients_id(node: Node, syntax: Any) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    image = FileDataset("x", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPInstanceUID = pydicom.uid.generate_uid()
    image.PatientName, image.PatientID, image.Modality = "P^1", "P-1", "MR"
    image.PixelData = os.urandom(200_000)
    image["PixelData"].VR = "OW"
    out = io.BytesIO()
    image.save_as(out, implicit_vr=syntax is ImplicitVRLittleEndian, little_endian=True)
    assert look(node, "a.dcm", out.getvalue(), "P-1").outcome == "drop"
    assert rewrite(node, "a.dcm", out.getvalue(), "P-1")[0].outcome == "drop"
    assert look(node, "a.dcm", out.getvalue(), "P-200000").outcome == "clean"
    assert why(node, "a.dcm", out.getvalue(), "P-200000") == "unknown"


def test_what_is_looked_at(node: Node) -> None:
    text = b"x" * 1_048_570 + b" P-1 " + b"y" * 100  # over the edge of a piece
    assert look(node, "a.txt", text, "P-1").outcome == "mentions"
    assert look(node, "a.txt", b"XP-1 P-12 P-1-b", "P-1", keep=("P-1-b",)).outcome == "clean"
    assert look(node, "a.txt", b"see p-1_final.bam", "P-1").outcome == "mentions"
    assert look(node, "a.txt", "P-1 é".encode("utf-16"), "P-1").outcome == "mentions"
    assert look(node, "a.bam", (DATA / "genomes/NA12878.bam").read_bytes(), "NA12878").outcome == "mentions"
    assert look(node, "a.cram", (DATA / "genomes/NA12878.cram").read_bytes(), "NA12878").why == "opaque"
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("t.csv", "P-1")
    assert look(node, "a.xlsx", held.getvalue(), "P-1").why == "opaque"
    assert look(node, "empty", b"", "P-1").outcome == "clean"


# --- hostile files ---


def test_broken_files_are_for_the_custodian(node: Node, cohort: bytes) -> None:
    assert why(node, "a.vcf.gz", cohort[: len(cohort) // 2], GONE) == "broken"
    assert why(node, "a.vcf", HEAD.encode() + b"1\t10\t.\tA\n", "P-1") == "broken"
    assert why(node, "a.vcf", HEAD.encode() + b"1\t10\t.\tA\tC\t.\t.\t.\tGT\t0/9\t0/0\t0/0\n", "P-1") == "broken"
    assert why(node, "a.vcf", HEAD.encode() + b"\xff\xfe\n", "P-1") == "broken"
    assert why(node, "a.json", b"[" * 100_000, "P-1") == "broken"
    assert why(node, "a.csv", b'pseudonym,a\nP-1,"\n', "P-1") == "broken"
    assert why(node, "a.dcm", b"\0" * 128 + b"DICM" + b"\2\0\x10\0UI\xff\xff", "P-1") == "broken"
    assert why(node, "a.bin", os.urandom(100_000), "P-1") == "unknown"
    bcf = subprocess.run(["bcftools", "view", "-Ob"], input=cohort, capture_output=True, check=True).stdout
    assert why(node, "a.bcf", gzip.compress(gzip.decompress(bcf)[:-5]), GONE) == "broken"


def test_memory_stays_bounded(node: Node) -> None:
    """Rows without an end, and a gzip bomb: 1 GB of one letter in 1 MB."""
    member = gzip.compress(b"A" * (64 << 20), 9)
    bomb = member * 16
    assert why(node, "a.vcf.gz", gzip.compress(HEAD.encode()) + bomb, "P-1") == "long_row"
    assert why(node, "a.csv", b'pseudonym,a\nP-1,"' + b"A" * (70 << 20), "P-1") == "long_row"
    assert why(node, "a.json.gz", gzip.compress(b'["') + bomb, "P-1") == "large"
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    assert why(node, "a.json", deep, "P-1") in ("not_found", "broken")


def test_a_bomb_is_searched_to_its_end(node: Node) -> None:
    bomb = gzip.compress(b"A" * (64 << 20), 9) * 3
    assert look(node, "a.txt.gz", bomb + gzip.compress(b" P-1 "), "P-1").outcome == "mentions"


def test_who_has_no_grant_gets_nothing(node: Node) -> None:
    file: MountedFile = node("put", "set/x.csv", b"pseudonym\nP-1\nP-2\n")
    token, _ = node("reader.reserve")
    before = set(node("stored"))
    with pytest.raises(RefusedFault):
        node("reader.rewrite", token, "none", file, Job("look", "x", ("P-1",)), public_key=KEY.public, body="nothing")
    assert set(node("stored")) == before


def test_a_damaged_body_makes_no_file(node: Node) -> None:
    data = b"pseudonym,a\n" + b"P-2,1\n" * 100_000
    file: MountedFile = node("put", "set/x.csv", data)
    stored = next(path for path in (node.home / "store").rglob(file.body) if path.is_file())
    content = bytearray(stored.read_bytes())
    content[-40] ^= 1
    stored.write_bytes(content)
    token, uid = node("reader.reserve")
    node("keyd.grant", "damaged", [file.key_id], uid, 60.0)
    before = set(node("stored"))
    with pytest.raises(Exception, match="segment"):
        node(
            "reader.rewrite",
            token,
            "damaged",
            file,
            Job("rewrite", "x.csv", ("P-1",)),
            public_key=KEY.public,
            body="n1",
        )
    assert set(node("stored")) == before


def test_the_sandbox_has_nothing(node: Node, tmp_path: Path) -> None:
    """The same options of bubblewrap with another program: no network, no file of the node, no other process."""
    from valv.compute import box, seccomp
    from valv.compute.wire import memory_file

    filter_ = memory_file("seccomp", seccomp.program(os.uname().machine))
    program = (
        "import os,socket,json,pathlib\n"
        "def tried(f):\n try:\n  f(); return True\n except OSError:\n  return False\n"
        "print(json.dumps({'root': sorted(os.listdir('/')), 'etc': sorted(os.listdir('/etc')),"
        " 'pids': [p for p in os.listdir('/proc') if p.isdigit()], 'fds': os.listdir('/proc/self/fd'),"
        " 'net': os.listdir('/sys/class/net') if os.path.exists('/sys') else [],"
        " 'out': tried(lambda: socket.create_connection(('127.0.0.1', 22), 1)),"
        " 'write': tried(lambda: open('/usr/x', 'w')), 'env': dict(os.environ)}))"
    )
    user = ["setpriv", "--reuid", "61999", "--regid", "61999", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [
            *user,
            "bwrap",
            *box.alone(str(filter_), 1 << 20),
            "--remount-ro",
            "/",
            "--",
            "/usr/bin/python3",
            "-c",
            program,
        ],
        pass_fds=(filter_,),
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found["root"]) <= {"bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "proc", "dev", "tmp"}
    assert not {"passwd", "shadow", "hosts"} & set(found["etc"])
    assert len(found["pids"]) <= 2 and not found["net"] and not found["out"] and not found["write"]
    assert set(found["env"]) <= {"PATH", "TMPDIR", "LANG", "PWD", "LC_CTYPE"}


def test_names_are_on_no_command_line(node: Node) -> None:
    canary = "CANARY-7c1f"
    data = b"pseudonym,a\n" + b"".join(b"P-%d,1\n" % number for number in range(600_000)) + f"{canary},1\n".encode()
    file: MountedFile = node("put", "set/x.csv", data)
    token, uid = node("reader.reserve")
    node("keyd.grant", "canary", [file.key_id], uid, 60.0)
    seen: list[bytes] = []
    ended = threading.Event()
    watching = threading.Thread(target=_watch, args=(seen, ended))
    watching.start()
    job = Job("rewrite", "x.csv", (canary,))
    made = node("reader.rewrite", token, "canary", file, job, public_key=KEY.public, body=f"n{os.urandom(8).hex()}")
    assert made.outcome == "rewritten" and made.size == len(data) - len(f"{canary},1\n")
    ended.set()
    watching.join()
    assert any(b"valv.assemble.rewrite" in line for line in seen) and any(b"/rewriter" in line for line in seen)
    logs = [path.read_bytes() for path in (node.home / "log").glob("*")]
    assert not any(canary.encode() in line for line in (*seen, *logs))


def _watch(seen: list[bytes], ended: threading.Event) -> None:
    """Command lines and environments of all processes, again and again."""
    while not ended.wait(0.02):
        for path in (*Path("/proc").glob("[0-9]*/cmdline"), *Path("/proc").glob("[0-9]*/environ")):
            with contextlib.suppress(OSError):
                data = path.read_bytes()
                if b"valv" in data or b"rewriter" in data:
                    seen.append(data)


@pytest.mark.parametrize("answer", [b"", b"E\0\0\0\x02{}", b"D\xff\xff\xff\xff", b"X\0\0\0\0", b"E\0\0\0\x10{"])
def test_a_sandbox_that_was_taken_over_is_not_believed(tmp_path: Path, answer: bytes) -> None:
    """Whatever its program answers: a fault of the file, and nothing is left."""
    from valv.compute.rewriting import Work, rewrite
    from valv.ports.storage import Place
    from valv.storage.local import LocalStorage
    from valv.vault.encrypt import Encryptor

    storage = LocalStorage(tmp_path, Place("SE", "test"))
    encryptor = Encryptor(storage.writer("old"), storage.writer("old.seal"), KEY.public)
    encryptor.write(b"x" * 300_000)
    made = encryptor.finish()
    file = MountedFile("f", "x", "old", made.header, "k", made.size, made.seal_root)
    theirs, into, back, ours = *os.pipe(), *os.pipe()
    os.write(ours, answer)
    os.close(ours)
    os.close(theirs)
    with pytest.raises(FormatFault):
        rewrite(
            storage,
            Work(file, Job("rewrite", "x", ("a",))),
            made.header,
            KEY.private,
            public_key=KEY.public,
            body="new",
            into=into,
            back=back,
        )
    assert set(storage.names()) == {"old", "old.seal"}


def test_names_and_frames_in_this_process() -> None:
    """The parts that decide, without a sandbox: the same code."""
    names = Names(("P-1", "A.B"), ("P-1-b",))
    assert names.found(b"..p-1..") and names.found(b"a.b") and not names.found(b"AxB P-1-b P-11 xP-1")
    assert struct.calcsize(">cI") == 5 and msgspec.json.decode(msgspec.json.encode(Job("look", "p", ("n",)))) == {
        "do": "look",
        "path": "p",
        "names": ["n"],
        "keep": [],
        "kind": "",
    }
