"""`valv deposit`: manifests, many small files, large ones that go on after a cut, and files that change meanwhile."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.conftest import working
from tests.world import COMMITTEE, World
from valv.app import inspection
from valv.cli import client as clients
from valv.cli import deposit as deposits
from valv.cli import folder, sending
from valv.cli.folder import read_checksums
from valv.errors import InputFault

pytestmark = pytest.mark.timeout(120)
NEEDED = ("--class", "anonymised", "--consent", "GRU", "--committee", COMMITTEE)
LARGE = 12 << 20


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(deposits, "PAUSE", 0.1)
    monkeypatch.setattr(sending, "PAUSES", (0.05,))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


def sums(data: Path) -> str:
    lines = []
    for path in sorted(data.rglob("*")):
        if path.is_file():
            lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(data)}\n")
    return "".join(lines)


def files(valv: Any, ident: str) -> dict[str, Any]:
    return {file["path"]: file for file in valv.good("deposits", ident, "--json").json["files"]}


def test_files_of_every_size_with_a_manifest(logged_in: Any, node_world: World, data: Path, tmp_path: Path) -> None:
    (data / "many").mkdir()
    for number in range(700):
        (data / "many" / f"{number}.txt").write_bytes(os.urandom(number % 50))
    (data / "middle.bin").write_bytes(os.urandom(1 << 20))
    (data / "large.bin").write_bytes(os.urandom(LARGE))
    (tmp_path / "MANIFEST").write_text(sums(data))
    told = ("--dataset", "cli-every-size", *NEEDED, "--manifest", tmp_path / "MANIFEST", "--wait", "--json")
    with working(node_world):
        ran = logged_in("carin").good("deposit", data, *told)
    assert ran.json["state"]["phase"] == "published" and ran.json["state"]["files"] == 702
    wanted = read_checksums(tmp_path / "MANIFEST")
    assert {file["path"]: file["sha256"] for file in ran.json["files"]} == wanted
    assert {file["state"] for file in ran.json["files"]} <= {"verified", "archived"}
    assert "702 files are those of" in ran.err
    assert inspection.bodies(node_world.node) == (set(), set())
    ident = ran.json["deposit_id"]
    status = logged_in("carin").good("deposits", "status", ident)
    assert "published; 702 " in status.err and "large.bin" in status.out


def test_a_manifest_that_does_not_fit(logged_in: Any, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (data / name).write_text(name)
    (data / "large.bin").write_bytes(os.urandom(LARGE))
    listed = sums(data).splitlines(True)
    zeros = "0" * 64
    manifest = tmp_path / "MANIFEST"
    manifest.write_text(f"{zeros}  a\n{zeros} *large.bin\n" + listed[1])
    carin = logged_in("carin")
    ran = carin.bad(65, "deposit", data, "--dataset", "cli-misfit", *NEEDED, "--manifest", manifest)
    assert "not named  c" in ran.err and "a" in ran.err and "large.bin" in ran.err and "'b'" not in ran.err
    ident = ran.err.split("The deposit ")[1].split()[0]
    found = files(carin, ident)
    assert found["b"]["state"] == "received" and found.get("a") is None
    assert found.get("large.bin", {"state": "refused"})["state"] == "refused"
    manifest.write_text("".join(listed))
    ran = carin.good("deposit", data, "--continue", ident, "--manifest", manifest)
    assert "was there  b" in ran.err and "received   a" in ran.err and "received   large.bin" in ran.err
    assert carin.good("deposits", ident, "--json").json["state"]["phase"] == "submitted"
    manifest.write_text(f"{zeros}  absent\n")
    assert "'absent'" in carin.bad(64, "deposit", data, "--dataset", "cli-misfit", *NEEDED, "--manifest", manifest).err


def test_manifests_as_sha256sum_writes_them(data: Path, tmp_path: Path) -> None:
    import subprocess

    names = ["plain", "with blank", "ä", "line\nend", "back\\slash", "carriage\rreturn"]
    for name in names:
        (data / name).write_text(name)
    for mark in ("--text", "--binary"):
        made = subprocess.run(["sha256sum", mark, "--", *names], cwd=data, capture_output=True, check=True).stdout
        (tmp_path / "sums").write_bytes(b"# made somewhere\n" + made.replace(b"  plain", b"  ./plain"))
        found = read_checksums(tmp_path / "sums")
        assert found == {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    for wrong in ("abc  x", f"{'0' * 63}  x", f"{'0' * 64} x", f"{'0' * 64}", f"{'0' * 64}  a\n{'1' * 64}  a", "\0"):
        (tmp_path / "sums").write_text(wrong)
        with pytest.raises(InputFault):
            read_checksums(tmp_path / "sums")
    (tmp_path / "sums").write_bytes(b"\xff\xfe")
    with pytest.raises(InputFault):
        read_checksums(tmp_path / "sums")


class Cut:
    """The connection breaks after so many bytes of a file, again and again."""

    def __init__(self, client: httpx.Client, after: int, times: int) -> None:
        self._request, self._after, self._times = client.request, after, times
        self.cuts = 0

    def __call__(self, method: str, address: str, **given: Any) -> httpx.Response:
        if method == "PATCH" and self.cuts < self._times:
            self.cuts += 1
            given["content"] = self._some(given["content"])
        return self._request(method, address, **given)

    def _some(self, content: Any) -> Any:
        sent = 0
        for piece in content:
            yield piece
            sent += len(piece)
            if sent >= self._after:
                time.sleep(0.2)
                raise httpx.WriteError("cut")


@pytest.mark.parametrize("times", [3, 99])
def test_a_large_file_goes_on_after_cuts(
    logged_in: Any, node_world: World, data: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Cut for a while, the command takes it up again by itself; cut for good, it says how to go on."""
    (data / "large.bin").write_bytes(os.urandom(LARGE))
    digest = hashlib.sha256((data / "large.bin").read_bytes()).hexdigest()
    made: list[Cut] = []
    begin = clients.Client.__init__

    def broken(self: Any, *given: Any, **more: Any) -> None:
        begin(self, *given, **more)
        made.append(Cut(self._http, 2 << 20, times))
        self._http.request = made[-1]

    carin = logged_in("carin")
    name = f"cli-cut-{times}"
    with monkeypatch.context() as patch, working(node_world):
        patch.setattr(clients.Client, "__init__", broken)
        if times == 99:
            patch.setattr(sending, "TRIES", -1)
            ran = carin.bad(69, "deposit", data, "--dataset", name, *NEEDED)
        else:
            ran = carin.good("deposit", data, "--dataset", name, *NEEDED)
            assert made[0].cuts == times
    if times == 99:
        ident = ran.err.split("The deposit ")[1].split()[0]
        deadline = time.monotonic() + 30
        while not (there := files(carin, ident)["large.bin"])["size"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert there["state"] == "arriving" and there["size"] < LARGE
        with working(node_world):
            ran = carin.good("deposit", data, "--continue", ident, "--wait", "--json")
        assert {file["path"]: file["sha256"] for file in ran.json["files"]} == {"large.bin": digest}
    node_world.work()
    assert "received   large.bin" in ran.err


@pytest.mark.parametrize("size", [1000, 1 << 20, LARGE])
@pytest.mark.parametrize("how", ["grew", "shrank", "was changed"])
def test_a_file_that_changes_meanwhile_is_named(
    logged_in: Any, data: Path, monkeypatch: pytest.MonkeyPatch, size: int, how: str
) -> None:
    changing = data / "changing.bin"
    changing.write_bytes(os.urandom(size))
    (data / "still.bin").write_bytes(b"1")
    walk = folder.walk

    def walked(*given: Any) -> Any:
        found = walk(*given)
        if how == "grew":
            changing.write_bytes(os.urandom(size + 1))
        elif how == "shrank":
            changing.write_bytes(os.urandom(size - 1))
        else:
            changing.write_bytes(os.urandom(size))
            os.utime(changing, ns=(1, 1))
        return found

    carin = logged_in("carin")
    with monkeypatch.context() as patch:
        patch.setattr(folder, "walk", walked)
        ran = carin.bad(64, "deposit", data, "--dataset", "cli-changing", *NEEDED)
    assert "changing.bin" in ran.err and how in ran.err
    ident = ran.err.split("The deposit ")[1].split()[0]
    assert set(files(carin, ident)) == {"still.bin"}
    ran = carin.good("deposit", data, "--continue", ident)
    assert "was there  still.bin" in ran.err and "received   changing.bin" in ran.err


def test_another_file_of_the_same_name(logged_in: Any, data: Path) -> None:
    carin = logged_in("carin")
    (data / "a").write_text("one")
    ident = carin.good("deposit", data, "--dataset", "cli-other", *NEEDED, "--no-submit", "--quiet").line
    (data / "a").write_text("two")
    assert "'a'" in carin.bad(64, "deposit", data, "--continue", ident).err


def test_one_request_at_a_time(logged_in: Any, data: Path) -> None:
    for number in range(4):
        (data / f"{number}.bin").write_bytes(os.urandom(1 << 20))
    carin = logged_in("carin")
    ident = carin.good("deposit", data, "--dataset", "cli-parallel", *NEEDED, "--parallel", "1", "--quiet").line
    assert {file["state"] for file in files(carin, ident).values()} == {"received"}
