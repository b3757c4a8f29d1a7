"""`valv download`: in parts at a time, some files of a permit, and on from where it stopped."""

from __future__ import annotations

import hashlib
import os
from base64 import b64decode
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.world import World
from valv.app import account
from valv.cli import client as clients
from valv.cli import fetching
from valv.formats.crypt4gh import generate_keypair, open_header

pytestmark = pytest.mark.timeout(120)
LARGE = 9_000_000
FOREVER = 10**6
FILES = {"large.bin": os.urandom(LARGE), "calls/small.txt": b"small", "empty": b"", "other.bin": os.urandom(70_000)}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetching, "PART", 1_000_000)
    monkeypatch.setattr(fetching, "NOTED", 200_000)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="module")
def scene(node_world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A permit for downloads, the registered key's id, and its secret half in a file."""
    from base64 import b64encode

    node_world.anonymised("cli-fetch", FILES)
    pair, rikard = generate_keypair(), node_world.person("rikard")
    asked = rikard.post("/account/keys", {"public": b64encode(pair.public).decode(), "label": "fetching"})
    data_key = open_header(b64decode(asked["header"]), [pair.private]).data_keys[0]
    rikard.post(f"/account/keys/{asked['challenge_id']}", {"answer": account.answer(data_key)})
    return {"permit": node_world.permit("cli-fetch", mode="download"), "key": asked["challenge_id"], "pair": pair}


def plain(path: Path, pair: Any) -> bytes:
    from tests.api.test_resuming import opened

    return opened(path.read_bytes(), pair)


def command(scene: dict[str, Any], to: Path) -> tuple[Any, ...]:
    return ("download", "--permit", scene["permit"], "--key", scene["key"], "--to", to)


def test_all_files(logged_in: Any, scene: dict[str, Any], tmp_path: Path) -> None:
    rikard = logged_in("rikard")
    ran = rikard.good(*command(scene, tmp_path / "to"), "--parallel", "6")
    there = tmp_path / "to" / "cli-fetch"
    for name, content in FILES.items():
        assert plain(there / f"{name}.c4gh", scene["pair"]) == content
    left = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert left == {f"{name}.c4gh" for name in FILES} | {"SHA256SUMS"}
    lines = (there / "SHA256SUMS").read_text().splitlines()
    assert sorted(lines) == sorted(f"{hashlib.sha256(c).hexdigest()}  {n}" for n, c in FILES.items())
    assert ran.err.count("received") == 4
    again = rikard.good(*command(scene, tmp_path / "to"))
    assert again.err.count("was there") == 4


def test_some_files(logged_in: Any, scene: dict[str, Any], tmp_path: Path) -> None:
    rikard = logged_in("rikard")
    rikard.good("download", "empty", "cli-fetch/other.bin", *command(scene, tmp_path / "to")[1:])
    (tmp_path / "list").write_text("calls/small.txt\n\nempty\n")
    rikard.good(*command(scene, tmp_path / "to"), "--list", tmp_path / "list")
    names = {path.name for path in (tmp_path / "to").rglob("*.c4gh")}
    assert names == {"empty.c4gh", "other.bin.c4gh", "small.txt.c4gh"}
    assert "'absent'" in rikard.bad(66, *command(scene, tmp_path / "to"), "absent").err


class Breaking:
    """Connections break in the middle of a body, `left` times; where that is `FOREVER`, soon before its first byte."""

    def __init__(self, left: int) -> None:
        self.left = left

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        breaking, read = self, httpx.Response.iter_raw

        def broken(response: httpx.Response, size: int | None = None) -> Any:
            for number, piece in enumerate(read(response, 100_000)):
                soon = FOREVER - 5 > breaking.left > FOREVER // 2
                if number == (0 if soon else 3) and breaking.left > 0:
                    breaking.left -= 1
                    raise httpx.ReadError("cut")
                yield piece

        patch.setattr(httpx.Response, "iter_raw", broken)


def test_it_goes_on_after_cuts(
    logged_in: Any, scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rikard = logged_in("rikard")
    breaking = Breaking(12)
    with monkeypatch.context() as patch:
        breaking.patch(patch)
        rikard.good(*command(scene, tmp_path / "to"), "large.bin")
    assert breaking.left == 0
    assert plain(tmp_path / "to" / "cli-fetch" / "large.bin.c4gh", scene["pair"]) == FILES["large.bin"]


def test_the_same_command_goes_on(
    logged_in: Any, scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rikard = logged_in("rikard")
    asked: list[str] = []
    with monkeypatch.context() as patch:
        Breaking(FOREVER).patch(patch)
        patch.setattr(fetching, "TRIES", 1)
        rikard.bad(69, *command(scene, tmp_path / "to"), "large.bin")
    part = tmp_path / "to" / "cli-fetch" / "large.bin.c4gh.part"
    assert part.exists()
    stream = clients.Client.stream

    def watched(self: Any, address: str, **given: Any) -> Any:
        asked.append(given["headers"].get("Range", ""))
        return stream(self, address, **given)

    with monkeypatch.context() as patch:
        patch.setattr(clients.Client, "stream", watched)
        rikard.good(*command(scene, tmp_path / "to"), "large.bin")
    assert asked and all(asked), "something came anew"
    assert plain(part.with_suffix(""), scene["pair"]) == FILES["large.bin"]


@pytest.mark.parametrize("how", ["bytes", "state", "etag"])
def test_what_does_not_hold_is_fetched_anew(
    logged_in: Any, scene: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    rikard = logged_in("rikard")
    with monkeypatch.context() as patch:
        Breaking(FOREVER).patch(patch)
        patch.setattr(fetching, "TRIES", 1)
        rikard.bad(69, *command(scene, tmp_path / "to"), "large.bin")
    part = tmp_path / "to" / "cli-fetch" / "large.bin.c4gh.part"
    state = part.with_name(part.name + ".state")
    if how == "bytes":
        with part.open("r+b") as file:
            file.seek(1000)
            file.write(b"altered")
        assert "not what the node keeps" in rikard.bad(65, *command(scene, tmp_path / "to"), "large.bin").err
        assert not part.exists()
    elif how == "state":
        state.write_text("{")
    else:
        state.write_text(state.read_text().replace('"etag":"\\"', '"etag":"\\"0'))
    rikard.good(*command(scene, tmp_path / "to"), "large.bin")
    assert plain(part.with_suffix(""), scene["pair"]) == FILES["large.bin"]
    assert not state.exists()
