"""The scanner as it really runs: the program text alone, in an interpreter that has nothing of Valv."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from valv.app import scan
from valv.app.text import LONGEST

PYTHON = Path("/usr/bin/python3")
MARK = "19951228-9878"  # a Swedish number: 'Luhn' over 9512289878 holds
Scan = Callable[[], dict[str, Any]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "outbox").mkdir()
    return tmp_path / "data"


@pytest.fixture
def run(data: Path) -> Scan:
    if not PYTHON.exists():
        pytest.skip("no Python of the system, which a sandbox has")

    def scanned() -> dict[str, Any]:
        command, *options, program = scan.command_line()
        assert command == "python3"
        folder = data.parent
        program = program.replace('"/data"', repr(str(data))).replace('"/outbox/', f'"{folder}/outbox/')
        done = subprocess.run(
            [str(PYTHON), *options, program], cwd=folder, env={}, capture_output=True, text=True, timeout=120
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        content = (folder / "outbox" / "report.json").read_bytes()
        report = msgspec.json.decode(content, type=scan.Report)  # read as the node reads it
        assert len(content) < scan.LARGEST
        assert MARK not in report.text() or any(MARK in place.file for place in report.findings)
        found: dict[str, Any] = json.loads(content)
        return found

    return scanned


def findings(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(found["file"], found["kind"]) for found in report["findings"]}


def test_the_mark_is_a_real_number() -> None:
    from valv.formats import identifiers

    assert "Swedish identity number" in identifiers.find(MARK)


def test_an_empty_folder(run: Scan) -> None:
    assert run() == {"scanner": 1, "files": 0, "binary": 0, "findings": []}


def test_text(run: Scan, data: Path) -> None:
    (data / "a" / "b").mkdir(parents=True)
    (data / "a" / "b" / "cases.tsv").write_text(f"id\tName\n1\tx\n2\t{MARK}\n3\t{MARK}\n")
    (data / "clean.tsv").write_text("id\tvalue\n1\t2\n")
    (data / "empty").write_bytes(b"")
    report = run()
    assert report["files"] == 3
    assert report["findings"] == [
        {"file": "a/b/cases.tsv", "kind": "Swedish identity number", "count": 2, "line": 3},
        {"file": "a/b/cases.tsv", "kind": "column that announces personal details", "count": 1, "line": 1},
    ]


def test_compressed(run: Scan, data: Path) -> None:
    with gzip.open(data / "cases.csv.gz", "wt") as out:
        out.write("id;value\n" * 1000)
    with gzip.open(data / "cases.csv.gz", "at") as out:  # a second member, as bgzip writes them
        out.write(f"1;{MARK}\n")
    report = run()
    assert report["findings"] == [{"file": "cases.csv.gz", "kind": "Swedish identity number", "count": 1, "line": 1001}]


def test_broken_compression(run: Scan, data: Path) -> None:
    whole = gzip.compress(f"x\n{MARK}\n".encode() + os.urandom(100_000))
    (data / "cut.gz").write_bytes(whole[:-5000])
    (data / "flipped.gz").write_bytes(whole[:50_000] + bytes([whole[50_000] ^ 1]) + whole[50_001:])
    (data / "no.gz").write_bytes(b"\x1f\x8bnothing of the kind")
    assert findings(run()) >= {(name, "data that cannot be read") for name in ("cut.gz", "flipped.gz", "no.gz")}


def test_utf_16_as_spreadsheets_export_it(run: Scan, data: Path) -> None:
    (data / "le.csv").write_bytes(f"id;Namn\n1;{MARK}\n".encode("utf-16"))
    (data / "be.csv").write_bytes(b"\xfe\xff" + f"id\n{MARK}\n".encode("utf-16-be"))
    (data / "bom.csv").write_bytes("\ufeffname;x\n".encode())
    kinds = findings(run())
    assert {("le.csv", "Swedish identity number"), ("be.csv", "Swedish identity number")} <= kinds
    assert ("bom.csv", "column that announces personal details") in kinds


def test_latin_1_is_still_read(run: Scan, data: Path) -> None:
    (data / "old.csv").write_bytes(f"\xc5sa;{MARK};\xf6\n".encode("latin-1"))
    assert ("old.csv", "Swedish identity number") in findings(run())


def test_binary_is_counted_and_left(run: Scan, data: Path) -> None:
    (data / "a.bin").write_bytes(os.urandom(1000) + b"\0" + MARK.encode())
    (data / "b.bin").write_bytes(b"\0\1\2" + MARK.encode())
    (data / "c.txt").write_bytes(b"text\n")
    report = run()
    assert (report["files"], report["binary"], report["findings"]) == (3, 2, [])


def test_nothing_is_cut_in_two(run: Scan, data: Path) -> None:
    """A number that lies across the pieces in which an endless line is read."""
    for shift in range(16):
        line = "x" * ((1 << 16) - shift - 1) + f" {MARK} " + "y" * 200_000
        (data / f"line-{shift:02d}").write_text(line)
    (data / "numbers").write_text("1\n" + "x" * 300_000 + f"\n{MARK}\n")
    report = run()
    assert {name for name, kind in findings(report)} == {f"line-{n:02d}" for n in range(16)} | {"numbers"}
    assert next(found["line"] for found in report["findings"] if found["file"] == "numbers") == 3


def test_a_huge_line_takes_no_long_time(run: Scan, data: Path) -> None:
    (data / "a").write_text("a" * (4 << 20))
    (data / "at").write_text("a@" * (1 << 20))
    (data / "digits").write_text("1234567890" * (1 << 18))
    (data / "phones").write_text("+46 " * (1 << 18))
    began = time.monotonic()
    run()
    assert time.monotonic() - began < 100


def test_names_of_files(run: Scan, data: Path) -> None:
    (data / f"patient_{MARK}.vcf").write_text("clean\n")
    (data / "anna@example.se").mkdir()
    (data / "anna@example.se" / "x").write_text("clean\n")
    (data / "HG00096_chr22.vcf").write_text("clean\n")
    assert findings(run()) == {
        (f"patient_{MARK}.vcf", "Swedish identity number in the file's name"),
        ("anna@example.se/x", "mail address in the file's name"),
    }


def test_links_and_odd_files_are_left(run: Scan, data: Path) -> None:
    outside = data.parent / "outside.txt"
    outside.write_text(MARK)
    (data / "link").symlink_to(outside)
    (data / "folder").symlink_to("/etc")
    (data / "loop").symlink_to("loop")
    os.mkfifo(data / "pipe")
    assert run()["findings"] == []


@pytest.mark.may_skip  # root reads everything
def test_a_file_that_cannot_be_read(run: Scan, data: Path) -> None:
    (data / "locked").write_text("x")
    (data / "locked").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    assert findings(run()) == {("locked", "data that cannot be read")}


def test_too_many_findings_still_make_a_report(run: Scan, data: Path) -> None:
    """Both the report and the text that is kept of it stay within their bounds."""
    folder = data / ("å" * 100) / ("ä" * 100)
    folder.mkdir(parents=True)
    for number in range(3000):
        (folder / f"{number}").write_text(MARK)
    report = run()
    assert (report["files"], len(report["findings"])) == (3000, 2000)
    text = msgspec.convert(report, scan.Report).text()
    assert len(text) < LONGEST
    assert text.endswith(" more.")
    assert "2000 findings" in text


# --- images ---

NAMES = {
    "PatientName": "DICOM patient name",
    "PatientID": "DICOM patient id",
    "PatientBirthDate": "DICOM birth date",
    "PatientAddress": "DICOM address",
    "PatientTelephoneNumbers": "DICOM telephone number",
    "OtherPatientNames": "DICOM other patient names",
    "ReferringPhysicianName": "DICOM referring physician",
}


def test_images(run: Scan, data: Path) -> None:
    """Real images of all transfer syntaxes that pydicom ships; pydicom itself says whom they name."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom import data as shipped

    expected: dict[str, set[str]] = {}
    for path in sorted(Path(shipped.__file__).parent.rglob("*.dcm")):
        if path.stat().st_size > 1 << 20 or path.read_bytes()[128:132] != b"DICM":
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = pydicom.dcmread(path, stop_before_pixels=True)
                deflated = image.file_meta.get("TransferSyntaxUID") == "1.2.840.10008.1.2.1.99"
                named = {kind for key, kind in NAMES.items() if str(image.get(key) or "").strip(" ^=\0")}
            except Exception:  # pydicom ships broken images, too
                continue
        shutil.copy(path, data / path.name)
        expected[path.name] = {"data that cannot be read"} if deflated else named
    assert sum(bool(kinds) for kinds in expected.values()) > 10
    found: dict[str, set[str]] = {name: set() for name in expected}
    for name, kind in findings(run()):
        found[name].add(kind)
    missed = {name: kinds - found[name] for name, kinds in expected.items() if kinds - found[name]}
    assert not missed


def test_an_image_without_names(run: Scan, data: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    image = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    image.remove_private_tags()
    for key in NAMES:
        if key in image:
            setattr(image, key, "")
    for key in ("OtherPatientIDs", "OtherPatientIDsSequence"):
        if key in image:
            delattr(image, key)
    image.save_as(data / "clean.dcm")
    with gzip.open(data / "clean.dcm.gz", "wb") as out:
        out.write((data / "clean.dcm").read_bytes())
    image.PatientName = "Andersson^Anna"
    with gzip.open(data / "named.dcm.gz", "wb") as out:
        image.save_as(data.parent / "named.dcm")
        out.write((data.parent / "named.dcm").read_bytes())
    assert findings(run()) == {("named.dcm.gz", "DICOM patient name")}
