"""The whole loop, typed by five people against a real node."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Valv, working
from tests.world import COMMITTEE, World
from valv.cli import deposit as deposits
from valv.cli import run as runs

pytestmark = pytest.mark.timeout(120)
LogIn = Callable[[str], Valv]
VCF = b"##fileformat=VCFv4.3\n" + b"1\t100\t.\tA\tG\n" * 20_000
NEEDED = ("--class", "anonymised", "--consent", "GRU", "--committee", COMMITTEE)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deposits, "PAUSE", 0.1)
    monkeypatch.setattr(runs, "PAUSE", 0.1)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory, logged_in: LogIn) -> Path:
    """A folder as custodians have them: nested, with a link out, a socket, and a file that is encrypted already."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "calls").mkdir()
    (folder / "calls" / "chr1.vcf").write_bytes(VCF)
    (folder / "hälsa.txt").write_text("plain\n")
    (folder / "empty").write_bytes(b"")
    (folder / "participants.tsv").write_text("pseudonym\tconsent_group\nP-1\tmain\n")
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "etc").symlink_to("/etc")
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(folder)
        made.bind("sock")
        os.chdir(here)
    custodian = logged_in("carin")
    keys = tmp_path_factory.mktemp("node")
    (keys / "node.pub").write_text(custodian.good("node", "key").out)
    (keys / "sealed.txt").write_text("sealed elsewhere\n")
    sealed = folder / "sealed.txt.c4gh"
    custodian.good("crypt", "encrypt", keys / "sealed.txt", "--for", keys / "node.pub", "-o", sealed)
    return folder


@pytest.fixture(scope="module")
def published(cohort: Path, logged_in: LogIn, node_world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    sums = tmp_path_factory.mktemp("sums") / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(VCF).hexdigest()} *./calls/chr1.vcf\n")
    with working(node_world):
        told = ("--title", "A cohort", "--disease", "MONDO:0005267", "--data-type", "VCF", "--wait")
        ran = logged_in("carin").good("deposit", cohort, "--dataset", "cli-cohort", *NEEDED, "--checksums", sums, *told)
    assert ran.out == "cli-cohort version 1\n"
    assert "passwd: a symbolic link" in ran.err
    assert "etc: a symbolic link" in ran.err
    assert "sock: not a regular file" in ran.err
    assert "received   calls/chr1.vcf" in ran.err
    node_world.scan("cli-cohort")
    return "cli-cohort"


@pytest.fixture(scope="module")
def assessed(published: str, logged_in: LogIn, node_world: World) -> str:
    logged_in("carin").bad(77, "dataset", "assess", published, "--confirm", "--reason", "Mine.")
    logged_in("kerttu").bad(64, "dataset", "assess", published, "--reason", "Well?")
    logged_in("kerttu").good("dataset", "assess", published, "--confirm", "--reason", "Nothing in it.")
    node_world.work()
    return published


def _permit(logged_in: LogIn, dataset: str, mode: str) -> str:
    told = ("--purpose", "HMB", "--country", "SE", "--institution", "Uppsala", "--days", "30", "--mode", mode)
    asked = ("apply", "--title", "A study", "--dataset", dataset, *told, "--accept-licence")
    ident = logged_in("rikard").good(*asked).line
    assert len(ident) == 32
    return logged_in("dagny").good("application", "approve", ident, "--reason", "It fits.").line


def test_who_is_logged_in(logged_in: LogIn, node_world: World) -> None:
    ran = logged_in("audun").good("whoami")
    assert node_world.server.url in ran.out and "auditor" in ran.out
    told = logged_in("audun").good("whoami", "--json").json
    assert told["name"] == "audun" and told["second_factor"] is True
    assert logged_in("audun").profile.stat().st_mode & 0o777 == 0o600
    assert "token" not in ran.out


def test_the_deposit_and_its_files(published: str, logged_in: LogIn, cohort: Path) -> None:
    carin = logged_in("carin")
    row = next(line for line in carin.good("deposits").out.splitlines() if "cli-cohort" in line).split("\t")
    assert row[1:] == ["cli-cohort", "anonymised", "published"]
    view = carin.good("deposits", row[0], "--json").json
    names = {file["path"] for file in view["files"]}
    assert names == {"calls/chr1.vcf", "hälsa.txt", "empty", "participants.tsv", "sealed.txt"}
    sealed = next(file for file in view["files"] if file["path"] == "sealed.txt")
    assert sealed["sha256"] == hashlib.sha256(b"sealed elsewhere\n").hexdigest()
    assert "calls/chr1.vcf" in carin.good("deposits", row[0]).out
    carin.bad(65, "deposits", "cancel", row[0])


def test_a_deposit_goes_on(logged_in: LogIn, tmp_path: Path) -> None:
    carin = logged_in("carin")
    (tmp_path / "a").write_text("one")
    first = carin.good("deposit", tmp_path, "--dataset", "cli-more", *NEEDED, "--no-submit", "--quiet")
    (tmp_path / "b").write_text("two")
    ran = carin.good("deposit", tmp_path, "--continue", first.line)
    assert "was there  a" in ran.err and "received   b" in ran.err
    assert carin.good("deposits", first.line, "--json").json["state"]["phase"] == "submitted"


def test_bad_deposits(logged_in: LogIn, tmp_path: Path) -> None:
    carin = logged_in("carin")
    data = tmp_path / "data"
    data.mkdir()
    named = ("--dataset", "cli-bad", *NEEDED)
    assert "no file" in carin.bad(65, "deposit", data, *named).err
    (data / "x").write_text("x")
    assert "--class" in carin.bad(64, "deposit", data, "--dataset", "cli-bad").err
    carin.bad(64, "deposit", data, "--dataset", "../etc", *NEEDED)
    carin.bad(65, "deposit", data, "--dataset", "cli-bad", *NEEDED[:-3], "DUO:9999999", *NEEDED[-2:])
    carin.bad(64, "deposit", tmp_path / "absent", *named)
    sums = tmp_path / "sums"
    sums.write_text(f"{'0' * 64}  x\n")
    ran = carin.bad(65, "deposit", data, *named, "--checksums", sums)
    assert "checksum" in ran.err and "--continue" in ran.err
    sums.write_text(f"{'0' * 64}  y\n")
    assert "'y'" in carin.bad(64, "deposit", data, *named, "--checksums", sums).err
    (data / "X").write_text("x")
    assert "letter case" in carin.bad(64, "deposit", data, *named).err


def test_find(assessed: str, logged_in: LogIn) -> None:
    ronja = logged_in("ronja")
    found = ronja.good("datasets", "--disease", "MONDO:0005267").out
    assert found.splitlines()[0].split("\t")[0] == "name"
    assert "cli-cohort\tA cohort\tanonymised" in found
    assert "nothing fits" in ronja.good("datasets", "no-such-word").err
    assert "general research use" in ronja.good("dataset", "show", assessed).out
    assert ronja.bad(66, "dataset", "show", "no-such-dataset").err.count("\n") == 2
    carin = logged_in("carin")
    carin.good("dataset", "describe", assessed, "--keyword", "heart")
    row = carin.good("dataset", "show", assessed, "--json").json["row"]
    assert row["keywords"] == ["heart"] and row["title"] == "A cohort"
    assert "dataset.assessed" in logged_in("audun").good("dataset", "history", assessed).out


def test_apply_and_decide(assessed: str, logged_in: LogIn) -> None:
    rikard, dagny = logged_in("rikard"), logged_in("dagny")
    asked = ("apply", "--title", "T", "--dataset", assessed, "--purpose", "HMB", "--country", "SE")
    first = rikard.good(*asked, "--draft").line
    ran = rikard.bad(64, "application", "submit", first)
    assert "terms of use" in ran.err
    assert rikard.good(*asked, "--accept-licence", "--change", first).line == first
    assert "permitted" in dagny.good("applications", first).out
    assert first in dagny.good("applications").out
    rikard.bad(77, "application", "approve", first, "--reason", "Mine.")
    dagny.good("application", "return", first, "--reason", "Name the people.")
    assert "Name the people." in rikard.good("applications", first).out
    rikard.good("application", "submit", first)
    dagny.good("application", "reject", first, "--reason", "No.")
    rikard.bad(65, "application", "withdraw", first)
    second = rikard.good(*asked, "--accept-licence").line
    rikard.good("application", "withdraw", second)


def test_compute_and_release(assessed: str, logged_in: LogIn, node_world: World, tmp_path: Path) -> None:
    rikard, kerttu = logged_in("rikard"), logged_in("kerttu")
    permit = _permit(logged_in, assessed, "compute")
    assert permit in rikard.good("permits").out
    assert "it stands" in rikard.good("permits", permit).out
    rikard.bad(64, "run", "--permit", permit, "--memory", "2 apples", "--", "true")
    outputs = {"tables/counts.tsv": b"AF\t0.5\n\x1b[31m", "plot.png": b"\x89PNG\0"}
    with working(node_world, outputs):
        ran = rikard.good(
            "run", "--permit", permit, "--time", "5m", "--memory", "64M", "--wait", "--json", "--", "count", "--x"
        )
    view = ran.json
    assert view["command"] == ["count", "--x"]
    assert view["state"]["limits"]["seconds"] == 300 and view["state"]["limits"]["memory"] == 64 << 20
    run, release = view["state"]["run_id"], view["release_id"]
    assert run in rikard.good("runs").out
    assert release in rikard.good("runs", run).out
    rikard.bad(65, "runs", "stop", run)
    rikard.bad(77, "release", "fetch", release)
    rikard.good("release", "request", release, "--context", "Allele counts.")
    assert "Allele counts." in kerttu.good("releases", release).out
    assert release in kerttu.good("releases").out
    assert kerttu.good("release", "inspect", release, "plot.png").raw == outputs["plot.png"]
    kerttu.good("release", "inspect", release, "tables/counts.tsv", "-o", tmp_path / "seen.tsv")
    assert (tmp_path / "seen.tsv").read_bytes() == outputs["tables/counts.tsv"]
    rikard.bad(77, "release", "check", release, "plot.png", "--approve", "--reason", "Mine.")
    kerttu.bad(66, "release", "check", release, "other", "--approve")
    kerttu.good("release", "check", release, "tables/counts.tsv", "--approve", "--reason", "Large counts.")
    kerttu.good("release", "check", release, "plot.png", "--reject", "--reason", "Shows people.")
    rows = rikard.good("release", "fetch", release, "-o", tmp_path / "out", "--json").json
    assert [Path(row["file"]).name for row in rows] == ["counts.tsv"]
    fetched = tmp_path / "out" / "tables" / "counts.tsv"
    assert fetched.read_bytes() == outputs["tables/counts.tsv"]
    assert sorted(path.name for path in fetched.parent.iterdir()) == ["counts.tsv"]
    assert "was there" in rikard.good("release", "fetch", release, "-o", tmp_path / "out").err
    fetched.write_text("changed since")
    rikard.bad(64, "release", "fetch", release, "-o", tmp_path / "out")
    rikard.good("release", "fetch", release, "-o", tmp_path / "out", "--overwrite")
    rikard.bad(77, "release", "fetch", release, "plot.png", "-o", tmp_path / "out")


def test_download(assessed: str, logged_in: LogIn, tmp_path: Path) -> None:
    rikard = logged_in("rikard")
    permit = _permit(logged_in, assessed, "download")
    rikard.bad(66, "download", "--permit", permit, "-o", tmp_path)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase\n")
    rikard.good("crypt", "keygen", tmp_path / "me", "--passphrase-file", passphrase)
    rikard.good("crypt", "keygen", tmp_path / "other", "--no-passphrase")
    rikard.bad(65, "account", "key", "add", tmp_path / "me.pub", "--secret", tmp_path / "other.sec")
    secret = ("--secret", tmp_path / "me.sec", "--passphrase-file", passphrase)
    key = rikard.good("account", "key", "add", tmp_path / "me.pub", *secret).line
    assert key in rikard.good("account", "key", "list").out
    assert rikard.good("account", "keys").out == rikard.good("account", "key", "list").out
    rikard.good("download", "--permit", permit, "-o", tmp_path / "data", "--key", key)
    folder = tmp_path / "data" / assessed
    sealed = folder / "calls" / "chr1.vcf.c4gh"
    ran = rikard.good("crypt", "decrypt", sealed, *secret)
    assert (folder / "calls" / "chr1.vcf").read_bytes() == VCF
    assert ran.out.split()[0] in (folder / "SHA256SUMS").read_text()
    # What broke off goes on; half a header is worthless; what is whole is not fetched again.
    whole = sealed.read_bytes()
    for kept in (len(whole) - 70_000, 50):
        sealed.unlink()
        sealed.with_name("chr1.vcf.c4gh.part").write_bytes(whole[:kept])
        rikard.good("download", "--permit", permit, "-o", tmp_path / "data")
        assert rikard.good("crypt", "decrypt", sealed, *secret, "-o", "-").raw == VCF
        assert not sealed.with_name("chr1.vcf.c4gh.part").exists()
    assert rikard.good("download", "--permit", permit, "-o", tmp_path / "data").err.count("was there") == 4
    rikard.good("account", "key", "end", key)
    logged_in("dagny").bad(64, "permit", "revoke", permit)
    logged_in("dagny").good("permit", "revoke", permit, "--reason", "Over.")
    ran = rikard.bad(77, "download", "--permit", permit, "-o", tmp_path / "data", "--key", key)
    assert "permit has ended" in ran.err
    surrendered = _permit(logged_in, assessed, "compute")
    rikard.good("permit", "surrender", surrendered)
    assert "given_back" in rikard.good("permits", surrendered).out


def test_the_ledger(assessed: str, logged_in: LogIn, node_world: World, tmp_path: Path) -> None:
    from valv.app import ledger

    audun = logged_in("audun")
    ledger.checkpoint(node_world.worker)
    shown = audun.good("ledger", "show", "--after", "-1", "--limit", "3").out.splitlines()
    assert shown[0].split("\t")[0] == "position" and shown[1].startswith("0\t")
    ran = audun.good("ledger", "verify")
    assert "The ledger holds." in ran.err and "valv.example" in ran.out
    copy = tmp_path / "ledger.jsonl"
    audun.good("ledger", "export", "-o", copy)
    key = tmp_path / "ledger.jsonl.key"
    told = audun.good("ledger", "verify", "--file", copy, "--log-key", key, "--json").json
    assert told["size"] == told["signed_size"] == len(copy.read_bytes().splitlines())
    audun.bad(64, "ledger", "export", "-o", copy)
    # An earlier checkpoint still holds when the ledger has grown.
    logged_in("kerttu").good("whoami")
    node_world.log_in("nemo", second_factor=False)
    ledger.checkpoint(node_world.worker)
    told = audun.good("ledger", "verify", "--checkpoint", tmp_path / "ledger.jsonl.checkpoint", "--json").json
    assert told["size"] > told["signed_size"]
    lines = copy.read_bytes().splitlines(True)
    entry = json.loads(lines[1])
    entry["actor"] = "somebody-else"
    forged = json.dumps(entry, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode() + b"\n"
    for wrong in ([lines[0], forged, *lines[2:]], lines[:-1], lines[1:], [*lines[:-1], lines[-1][:-9]]):
        copy.write_bytes(b"".join(wrong))
        assert "auditor" in audun.bad(65, "ledger", "verify", "--file", copy).err
    logged_in("rikard").bad(77, "ledger", "show")


def test_the_session(node_world: World, tmp_path: Path, logged_in: LogIn, valv: Valv) -> None:
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    wrong.write_text("not the password\n")
    secret.write_text("correct horse battery\n")
    url = node_world.server.url
    assert "valv login" in valv.bad(77, "whoami").err
    assert "nobody can be asked" in valv.bad(64, "login", url, "--account", "olle").err
    valv.bad(77, "login", url, "--account", "olle", "--password-file", wrong)
    assert not valv.profile.exists()
    valv.good("login", url, "--account", "olle", "--password-file", secret)
    assert valv.good("whoami", "--json").json["second_factor"] is False
    code = tmp_path / "code"
    code.write_text(node_world.code("olle"))
    valv.good("login", "--second-factor", "--code-file", code)
    assert valv.good("whoami", "--json").json["second_factor"] is True
    valv.bad(77, "second-factor", "--code-file", code)
    assert "Olle Operator" in valv.good("account", "show").out
    valv.good("logout")
    valv.bad(77, "whoami")
    assert json.loads(valv.profile.read_text())["token"] == ""
    assert valv.good("node", "show").out.startswith("name")
    valv.profile.chmod(0o644)
    assert "read by others" in valv.bad(64, "whoami").err


@pytest.fixture(scope="module", autouse=True)
def _quiet_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the real home is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield
