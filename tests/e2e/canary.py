"""What a search for the node's keys needs: the keys, all forms in which they may stand, and all places to look at."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import RunningNode
from valv.assemble import up
from valv.config import Config
from valv.formats import crypt4gh
from valv.keys import recovery
from valv.keys.file import FileKeyring
from valv.keys.store import Store

SENT_KEY, BENT_KEY = secrets.token_bytes(32), secrets.token_bytes(32)
"""The data keys of files that are sent encrypted; the second one is not that of its body."""
WRONG_PASSPHRASE = b"mistyped " + secrets.token_hex(16).encode()


def newest(keys: Path) -> Path:
    """Where in the key folder the living keys are: its newest generation, where it has generations."""
    return max(keys.glob("generation-*"), key=lambda path: int(path.name.split("-")[1]), default=keys)


# --- what is searched for --------------------------------------------------------------------------------------------


def forms(secret: bytes) -> list[bytes]:
    """A secret as it may stand somewhere: raw, from behind, hex, base64 at each of the three shifts, repr, numbers."""
    found = [secret, secret[::-1], secret.hex().encode(), secret.hex().upper().encode(), secret.hex(" ").encode()]
    found += [
        repr(secret)[2:-1].encode(),
        str(list(secret))[1:-1].encode(),
        json.dumps(secret.decode("latin1")).encode(),
    ]
    for shift in range(3):
        first, last = -(-8 * shift // 6), 8 * (shift + len(secret)) // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.append(encode(b"\0" * shift + secret)[first:last])
    return list(dict.fromkeys(found))


def hits(secret: bytes, content: bytes) -> bool:
    return any(form in content for form in forms(secret))


def secrets_of(config: Config, folder: Path) -> dict[str, bytes]:
    """Every key of the node, from a copy of its key folder in `folder` and from the headers in its database."""
    passphrase = config.path(config.keys.passphrase_file).read_bytes().strip()
    living = newest(Path(shutil.copytree(config.path(config.keys.path), folder / "keys")))
    root = FileKeyring(config.keys).open(living, passphrase)
    store = Store(living, root)
    found = {"passphrase": passphrase, "mistyped passphrase": WRONG_PASSPHRASE}
    with root._root.view() as view:
        found["root key"] = bytes(view)
    found |= {"intake key": store.intake_private(), "ledger key": store.log_private()}
    given = recovery.read(living)
    assert given is not None, "no ceremony was held"
    with given.key(root)._root.view() as view:
        found["recovery key"] = bytes(view)
    for key_id in (path.stem for path in (living / "keys").glob("*.json")):
        for number, key in enumerate(store.unlock(key_id)[1]):
            found[f"private key {number} of {key_id}"] = key
    store.close()
    root.wipe()
    private = [value for name, value in found.items() if name.startswith(("private", "intake"))]
    with contextlib.closing(sqlite3.connect(config.path("db/valv.sqlite"), timeout=30)) as database:
        for table in ("file", "release_file"):
            for ident, header in database.execute(f"select id, header from {table} where header is not null"):
                for number, key in enumerate(crypt4gh.open_header(header, private).data_keys):
                    found[f"data key {number} of {table} {ident}"] = key
    assert any(name.startswith("data key") for name in found), "the keys of the headers were not really found"
    return found | {"data key of a file as it was sent": SENT_KEY, "data key of a bent file": BENT_KEY}


# --- where it is searched --------------------------------------------------------------------------------------------


@dataclass
class Shown:
    """The newest that was seen of a process. `closed`: not dumpable; `core`: soft and hard limit of its core."""

    name: str
    line: bytes
    environ: bytes
    closed: bool
    core: list[str]


@dataclass
class Job:
    """`shown`: what each process that was seen showed of itself, by process id; `said`: answers of API and key holder;
    `crashes`: name, signal, and the files in the process's root and working folder that may be a core."""

    node: RunningNode
    config: Config
    shown: dict[int, Shown] = field(default_factory=dict)
    said: list[tuple[str, bytes]] = field(default_factory=list)
    crashes: list[tuple[str, int, list[str]]] = field(default_factory=list)
    keys: dict[str, bytes] = field(default_factory=dict)


def below(pid: int) -> Iterator[int]:
    """All processes that a process started, directly or not."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from below(int(child))


def look_at(pid: int) -> Shown:
    folder = Path(f"/proc/{pid}")
    line = (folder / "cmdline").read_bytes()
    words = line.split(b"\0")
    entry = next((word for word in words if word.startswith(b"valv.assemble.")), b"")
    name = entry.decode().rpartition(".")[2] if words[0].rpartition(b"/")[2].startswith(b"python") else ""
    uid = int((folder / "status").read_text().split("Uid:")[1].split()[1])
    owner = (folder / "environ").stat().st_uid  # root's for a process that is not dumpable
    core = (folder / "limits").read_text().split("Max core file size")[1].split()[:2]
    environ = b""
    with contextlib.suppress(PermissionError):
        environ = (folder / "environ").read_bytes()
    return Shown(name, line, environ, owner == 0 and uid != 0, core)


def watch(job: Job, ended: threading.Event) -> None:
    """Look at all processes of the node again and again, until `ended`."""
    supervisor = up.running(job.config)
    assert supervisor is not None
    while not ended.wait(0.03):
        for pid in (supervisor, *below(supervisor)):
            with contextlib.suppress(OSError, IndexError):  # it ended meanwhile
                job.shown[pid] = look_at(pid)


def named(config: Config, name: str) -> list[int]:
    found = []
    for pid in below(up.running(config) or 0):
        with contextlib.suppress(OSError, IndexError):
            if look_at(pid).name == name:
                found.append(pid)
    return found


def places(job: Job) -> Iterator[tuple[str, bytes]]:
    """(where, content) of all that the node keeps on disk and in its runtime folders, says and shows."""
    runtime = job.config.runtime
    for top in (job.node.directory, runtime, runtime.with_name(f"{runtime.name}.runs")):
        for path in sorted(top.rglob("*")):
            yield f"name of {path}", os.fsencode(path)
            with contextlib.suppress(FileNotFoundError):  # a journal of the database that is gone by now
                if path.is_file() and not path.is_symlink():
                    yield str(path), path.read_bytes()
    for pid, shown in list(job.shown.items()):
        yield f"process {pid} {shown.name}", shown.line + b"\0" + shown.environ
    yield from job.said


def allowed(job: Job, secret: str, where: str) -> bool:
    """The file with the passphrase, and the copy that the key holder sees, have the passphrase, and only that."""
    config = job.config
    files = (config.path(config.keys.passphrase_file), config.runtime / "secrets" / "keyd" / "keys.passphrase_file")
    return secret == "passphrase" and where in map(str, files)


# --- memory of a process ---------------------------------------------------------------------------------------------


def mappings(pid: int) -> Iterator[tuple[int, int, str, set[str]]]:
    """(start, end, name, flags) of each part of a process's memory, as proc(5) tells in smaps."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text)[1:]:
        head, flags = part.split("\n", 1)[0].split(maxsplit=5), part.split("VmFlags:")[1].split()
        start, end = (int(word, 16) for word in head[0].split("-"))
        yield start, end, head[5] if len(head) > 5 else "", set(flags)


def readable(pid: int, wanted: Callable[[set[str]], bool]) -> bytes:
    """All that root can read of a process's memory, of the parts whose flags are wanted."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for start, end, _, flags in mappings(pid):
            if "rd" in flags and wanted(flags):
                with contextlib.suppress(OSError, OverflowError):
                    memory.seek(start)
                    found.append(memory.read(end - start))
    return b"\0".join(found)
