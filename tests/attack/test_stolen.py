"""Somebody has the disk, or writes to it: what they learn, and how what they changed is found."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from tests.attack.scene import CANARY, Stage, form
from tests.conftest import free_port
from tests.e2e import work
from valv.app import inspection
from valv.assemble.doctor import doctor
from valv.assemble.node import build
from valv.config import Keys
from valv.errors import Fault, KeyFault
from valv.formats import crypt4gh
from valv.keys.file import FileKeyring
from valv.keys.store import Store


@pytest.fixture
def stolen(stage: Stage, tmp_path: Path) -> Path:
    """A copy of the node's folder, without its keys and secrets."""
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "db").mkdir(mode=0o770)
    for name in ("store", "mail", "log"):
        shutil.copytree(stage.node.directory / name, copy / name)
    toml = (stage.node.directory / "valv.toml").read_text()
    (copy / "valv.toml").write_text(re.sub(r"port = \d+", f"port = {free_port()}", toml))
    source, target = sqlite3.connect(stage.database), sqlite3.connect(copy / "db" / Path(stage.database).name)
    with contextlib.closing(source), contextlib.closing(target):
        source.backup(target)
    for name in ("db", "store"):
        (copy / name).chmod(0o770)
    return copy


def database(folder: Path) -> Any:
    return contextlib.closing(sqlite3.connect(next((folder / "db").glob("*.sqlite"))))


# --- reading ---


def test_a_stolen_disk_tells_no_data(stage: Stage, stolen: Path) -> None:
    seen = 0
    for path in stolen.rglob("*"):
        if path.is_file():
            seen += 1
            content = path.read_bytes()
            if path.parent.name == "db":
                content = content.replace(CANARY.encode() + b".txt; echo", b"").replace(CANARY.encode() + b" >&2", b"")
                # What is left of the canary in the database: the name of an output, and no line of a record.
                assert b"patient 1" not in content
            else:
                assert CANARY.encode() not in content, path
    assert seen > 10
    with database(stolen) as found:
        headers = [row[0] for row in found.execute("select header from file where header is not null")]
        headers += [row[0] for row in found.execute("select header from release_file")]
    assert headers
    for header in headers:
        with pytest.raises(KeyFault):
            crypt4gh.open_header(header, [secrets.token_bytes(32) for _ in range(3)])


def test_a_stolen_database_opens_no_session(stage: Stage, stolen: Path) -> None:
    token = stage.token("dagny").removeprefix("Bearer ")
    for path in stolen.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert token.encode() not in content
            assert not [one for one in stage.node.accounts.values() if one["password"].encode() in content]
    with database(stolen) as found:
        marks = {bytes(row[0]) for row in found.execute("select hash from session")}
    mark = hashlib.sha256(token.encode()).digest()
    assert mark in marks
    for guess in (mark.hex(), mark.decode("latin-1")[:10]):
        with contextlib.suppress(UnicodeEncodeError):
            assert stage.ask("", "GET", "/account", headers={"Authorization": f"Bearer {guess}"}).status_code == 401


def test_stolen_keys_are_useless_without_the_passphrase(stage: Stage, tmp_path: Path) -> None:
    keys, passphrase = tmp_path / "keys", (stage.node.directory / "secrets" / "passphrase").read_bytes().strip()
    shutil.copytree(stage.node.directory / "keys", keys)
    keyring, living = FileKeyring(Keys()), max(keys.glob("generation-*"))
    for guess in (b"", b"valv", passphrase[:-1], passphrase + b" "):
        with pytest.raises(Fault):
            keyring.open(living, guess)
    for path in keys.rglob("*"):
        assert not path.is_file() or passphrase not in path.read_bytes()
    root = keyring.open(living, passphrase)  # and with it they open: the copy is whole
    Store(living, root).close()
    root.wipe()


# --- writing to the store ---


def test_altered_stores_are_read_errors_and_never_other_bytes(stage: Stage, tmp_path: Path) -> None:
    """One dataset, each of its files altered in another way; one run reads all of them."""
    node, name, ways = stage.node, work.fresh("altered"), _WAYS
    folder = tmp_path / "in"
    folder.mkdir()
    for way in (*ways, "left-alone"):
        (folder / way).write_bytes(secrets.token_bytes(300_000))
    work.deposit(node.person("carin"), folder, name, "anonymised", ["GRU"])
    query = "select file.* from file join dataset on dataset.id = file.dataset where dataset.name = ?"
    with contextlib.closing(sqlite3.connect(stage.database, timeout=30)) as found:
        found.row_factory = sqlite3.Row
        rows = {row["path"]: dict(row) for row in found.execute(query, (name,))}
        bodies = {way: _body(stage, row["body"]) for way, row in rows.items()}
        bodies |= {f"{way}.seal": _body(stage, f"{row['body']}.seal") for way, row in rows.items()}
        for alter in ways.values():
            alter(bodies, rows, found)
        found.commit()
    permit = work.permit(node, name, "compute", ("GRU", "IRB"))
    done = work.run(node, permit, ["python3", "-c", _READ, name])
    assert done["state"]["success"], done
    told = json.loads(work.release(node, done, {"told.json"})["told.json"])
    good = hashlib.sha256((folder / "left-alone").read_bytes()).hexdigest()
    assert told.pop("left-alone") == good
    # A scrub that came by meanwhile has made the seal's pairs anew from the body, which holds.
    healed = hashlib.sha256((folder / "seal").read_bytes()).hexdigest()
    assert told.pop("seal") in ("error 5", healed)
    assert told == dict.fromkeys(told, "error 5") and {*told, "seal"} == set(ways), told


_READ = """
import hashlib, json, pathlib, sys
told = {}
for path in sorted(pathlib.Path("/data", sys.argv[1]).iterdir()):
    try:
        told[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        told[path.name] = f"error {error.errno}"
json.dump(told, open("/outbox/told.json", "w"))
"""


def _body(stage: Stage, name: str) -> Path:
    return next(path for path in (stage.node.directory / "store").rglob(name) if path.is_file())


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    _write(path, bytes(content))


def _write(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode
    path.chmod(0o600)
    path.write_bytes(content)
    path.chmod(mode)


def _swap(first: Path, second: Path) -> None:
    one, two = first.read_bytes(), second.read_bytes()
    _write(first, two)
    _write(second, one)


def _set(found: sqlite3.Connection, row: dict[str, Any], column: str, value: Any) -> None:
    found.execute(f"update file set {column} = ? where id = ?", (value, row["id"]))


def _swap_segments(path: Path) -> None:
    content, size = path.read_bytes(), crypt4gh.CIPHER_SEGMENT
    _write(path, content[size : 2 * size] + content[:size] + content[2 * size :])


Alter = Callable[[dict[str, Path], dict[str, dict[str, Any]], sqlite3.Connection], None]
_WAYS: dict[str, Alter] = {
    "first-byte": lambda b, _, __: _flip(b["first-byte"], 0),
    "a-byte": lambda b, _, __: _flip(b["a-byte"], 200_000),
    "last-byte": lambda b, _, __: _flip(b["last-byte"], -1),
    "seal": lambda b, _, __: _flip(b["seal.seal"], 5),
    "cut": lambda b, _, __: _write(b["cut"], b["cut"].read_bytes()[: 2 * crypt4gh.CIPHER_SEGMENT]),
    "longer": lambda b, _, __: _write(b["longer"], b["longer"].read_bytes() + bytes(1000)),
    "segments-swapped": lambda b, _, __: _swap_segments(b["segments-swapped"]),
    "bodies-swapped-1": lambda b, _, __: _swap(b["bodies-swapped-1"], b["bodies-swapped-2"]),
    "bodies-swapped-2": lambda b, _, __: _swap(b["bodies-swapped-1.seal"], b["bodies-swapped-2.seal"]),
    "replaced": lambda b, _, __: (
        _write(b["replaced"], b["left-alone"].read_bytes()),
        _write(b["replaced.seal"], b["left-alone.seal"].read_bytes()),
    )[-1],
    "header": lambda _, r, f: _set(f, r["header"], "header", r["left-alone"]["header"]),
    "header-bytes": lambda _, r, f: _set(f, r["header-bytes"], "header", r["header-bytes"]["header"][:-1] + b"x"),
    "root": lambda _, r, f: _set(f, r["root"], "seal_root", r["left-alone"]["seal_root"]),
}


def test_an_altered_output_is_no_output(stage: Stage) -> None:
    node = stage.node
    permit = work.permit(node, stage.open, "compute", ("GRU",))
    done = work.run(node, permit, ["sh", "-c", "head -c 200000 /dev/urandom > /outbox/out"])
    rikard, release = node.person("rikard"), done["release_id"]
    rikard.post(f"/releases/{release}/request", {"context": "Noise."})
    page = node.person("kerttu").get(f"/releases/{release}")
    file = next(one for one in page["files"] if one["path"] == "out")
    with contextlib.closing(sqlite3.connect(stage.database)) as found:
        (name,) = found.execute("select body from release_file where id = ?", (file["file_id"],)).fetchone()
    _flip(_body(stage, name), 40)
    answered = stage.ask("kerttu", "GET", f"/releases/{release}/files/{file['file_id']}/inspection")
    assert answered.json()["code"] == "fault.integrity" and not answered.is_success


# --- writing to the database ---


def findings(folder: Path) -> tuple[int, str]:
    (folder / "secrets").mkdir(mode=0o700, exist_ok=True)
    (folder / "secrets" / "passphrase").write_text("not the node's")
    (folder / "secrets" / "passphrase").chmod(0o600)
    out = io.StringIO()
    return doctor(folder, Console(file=out, width=200, color_system=None)), out.getvalue()


_WORDS = ("the ledger was changed", "restore a backup", "wrote into the database")
_ROLES = '["committee","checker","committee:demo-dac"]'


def _sql(statement: str, *more: str) -> Callable[[sqlite3.Connection], None]:
    def run(found: sqlite3.Connection) -> None:
        for one in (statement, *more):
            assert found.execute(one).rowcount > 0, one

    return run


def _permit_people(found: sqlite3.Connection) -> None:
    stream, state = found.execute("select stream, state from snapshot where kind = 'permit' limit 1").fetchone()
    raw = state if isinstance(state, bytes) else state.encode()
    changed = json.loads(raw) | {"people": ["somebody-else"]}
    new = json.dumps(changed, separators=(",", ":"))
    found.execute(
        "update snapshot set state = ? where stream = ?", (new.encode() if isinstance(state, bytes) else new, stream)
    )


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(_sql("update journal set actor = 'x' where position = 5"), id="actor-of-an-event"),
        pytest.param(_sql("update journal set data = cast('{}' as blob) where position = 7"), id="data-of-an-event"),
        pytest.param(_sql("delete from journal where position = 9"), id="an-event-gone"),
        pytest.param(
            _sql("delete from journal where position > (select max(position) - 3 from journal)"), id="last-events-gone"
        ),
        pytest.param(_permit_people, id="people-of-a-permit"),
        pytest.param(_sql("update snapshot set phase = 'issued' where kind = 'run'"), id="phase-of-a-state"),
        pytest.param(
            _sql(f"update account set roles = '{_ROLES}' where name = 'rikard'"),
            id="roles-of-an-account",
        ),
        pytest.param(_sql("update text set body = 'cat /data' where kind = 'command'"), id="command-of-a-run"),
        pytest.param(_sql("update file set version = null where version = 1"), id="files-of-a-version"),
        pytest.param(_sql("delete from dataset_version_file where version = 1"), id="files-not-listed"),
    ],
)
def test_doctor_finds_what_was_written_into_the_database(
    stage: Stage, stolen: Path, alter: Callable[[sqlite3.Connection], None]
) -> None:
    with database(stolen) as found:
        alter(found)
        found.commit()
    code, told = findings(stolen)
    assert code == 1 and "✗" in told
    assert any(words in told for words in ("the ledger was changed", "restore a backup", "wrote into the database")), (
        told
    )


def test_doctor_finds_a_key_that_was_put_into_an_account(stage: Stage, stolen: Path) -> None:
    stage.node.person("rikard").add_key(crypt4gh.generate_keypair(), "mine")
    pair = crypt4gh.generate_keypair()
    with database(stolen) as found:
        (account,) = found.execute("select id from account where name = 'rikard'").fetchone()
        found.execute(
            "insert into account_key (id, account, label, public, fingerprint, added) values (?, ?, '', ?, ?, ?)",
            ("planted", account, pair.public, crypt4gh.fingerprint(pair.public), "2024-01-01 00:00:00.000000"),
        )
        found.commit()
    code, told = findings(stolen)
    assert code == 1 and "is not the one that was registered" in told


def test_an_untouched_copy_is_in_order(stage: Stage, stolen: Path) -> None:
    """Else the findings above would prove nothing."""
    _, told = findings(stolen)
    # What the tests before damaged in the living node's store is known there, and so in its copy.
    wrong = [line.strip() for line in told.splitlines() if line.strip().startswith("✗")]
    assert wrong in ([], ["✗ no copy is suspect or damaged"]), told


def test_a_ledger_that_was_set_back_is_found(stage: Stage, stolen: Path) -> None:
    """A whole older database, consistent in itself: the key holder remembers what it signed."""
    if os.geteuid() != 0:
        pytest.skip("asking the node's key holder for a copy of its records needs root")
    for _ in range(3):
        stage.apply("rikard", form(stage.open))
    audun, end = stage.node.person("audun"), time.monotonic() + 60
    while (proof := audun.get("/ledger/proof"))["checkpoint_size"] < proof["size"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    now = build(stage.config).node
    assert list(inspection.signed(now)) == []
    config = msgspec.structs.replace(
        stage.config,
        database=msgspec.structs.replace(
            stage.config.database, url=f"sqlite:///{next((stolen / 'db').glob('*.sqlite'))}"
        ),
    )
    told = [finding.what for finding in inspection.signed(build(config).node)]
    assert told and "its end was cut off" in told[0]
    with database(stolen) as found:
        found.execute("delete from checkpoint")
        found.commit()
    assert list(inspection.signed(build(config).node))
