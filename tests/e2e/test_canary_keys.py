"""Keys as canaries: a node of its own does the whole job, is asked wrong things and is made to crash on the way; then
all that it wrote, said and showed is searched for every key that it has. Each place is searched for a planted needle
too, so that a search that finds nothing anywhere fails."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import resource
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tests.conftest import RunningNode, free_port, node_missing
from tests.e2e import canary_job
from tests.e2e.canary import (
    Job,
    allowed,
    below,
    forms,
    hits,
    look_at,
    mappings,
    named,
    places,
    readable,
    secrets_of,
    watch,
)
from tests.e2e.canary_job import connect_as
from valv.assemble import demo, up
from valv.assemble.doctor import doctor
from valv.errors import Fault

HOLDERS = ("keyd", "mount", "read", "serve", "worker", "collect", "rekey")
"""Processes that have a private key or a data key in memory at some time."""


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    if node_missing():
        pytest.skip(node_missing())
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # the node inherits it, as from a careless administrator
    ended = threading.Event()
    with tempfile.TemporaryDirectory(prefix="valv-canary-") as folder, tempfile.TemporaryDirectory() as aside:
        try:
            directory = Path(folder)
            config = demo.prepare(directory, free_port())
            accounts = json.loads(demo.accounts_file(directory).read_text("utf-8"))
            with demo.running(directory, config) as url:
                job = Job(RunningNode(url, directory, accounts), config)
                watcher = threading.Thread(target=watch, args=(job, ended))
                watcher.start()
                try:
                    canary_job.do(job, Path(aside))
                    job.keys |= secrets_of(config, Path(aside))
                    yield job
                finally:
                    ended.set()
                    watcher.join()
        finally:
            resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


# --- the search ------------------------------------------------------------------------------------------------------


def test_no_key_is_anywhere(job: Job) -> None:
    """Logs, database, store, key folder, mails, runtime folders, command lines, environments, answers, error texts."""
    kept = list(places(job))
    for part in ("keyd.log", "worker.log", "serve.log", "valv.sqlite", "/store/", "/keys/", "/mail/", "process "):
        assert any(part in where for where, _ in kept), f"nothing of {part} was looked at"
    assert len(job.keys) >= 15
    for name, secret in job.keys.items():
        words = forms(secret)
        for where, content in kept:
            if any(word in content for word in words):
                assert allowed(job, name, where), f"the {name} is in {where}"


def test_the_search_finds_what_is_planted(job: Job) -> None:
    needle = secrets.token_bytes(32)
    words = forms(needle)
    directory, runtime = job.node.directory, job.config.runtime
    top = [directory / name for name in ("log", "store", "keys", "mail", "db")] + [runtime]
    planted = [folder / f"planted-{number}" for number, folder in enumerate(top)]
    database = sqlite3.connect(directory / "db" / "valv.sqlite", timeout=30)
    mark = ["--node", str(directory)]
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *mark, needle.hex()])
    try:
        for number, path in enumerate(planted):
            path.write_bytes(b"before" + words[number % len(words)] + b"after")
        database.execute("create table planted (content blob)")
        database.execute("insert into planted values (?)", (b"x" + needle,))
        database.commit()
        while needle.hex().encode() not in look_at(process.pid).line:
            time.sleep(0.01)  # the kernel tells a program's arguments a moment after it started
        job.shown[process.pid] = look_at(process.pid)
        with contextlib.suppress(Fault):
            job.node.person("carin").get(f"/datasets/{needle.hex()}")
        with connect_as(job.config, job.config.processes.uid_base + 3 if os.geteuid() == 0 else None) as connection:
            body = msgspec.msgpack.encode({"verb": "confirm", "key_id": needle.hex()})
            connection.sendall(len(body).to_bytes(4, "big") + body)
            job.said.append(("the key holder's answer", connection.recv(65536)))
        found = [where for where, content in places(job) if hits(needle, content)]
    finally:
        process.kill()
        process.wait()
        job.shown.pop(process.pid, None)
        job.said = [(where, content) for where, content in job.said if not hits(needle, content)]
        database.execute("drop table if exists planted")
        database.close()
        for path in planted:
            path.unlink(missing_ok=True)
    for place in (*map(str, planted), "valv.sqlite", f"process {process.pid}", "answer to GET", "holder's answer"):
        assert any(place in where for where in found), f"the search does not see {place}"


@pytest.mark.parametrize("length", [1, 5, 31, 32, 33])
def test_every_form_of_a_secret_is_found_at_every_place(length: int) -> None:
    for _ in range(20):
        secret = secrets.token_bytes(length + 8)
        for before in range(4):
            whole = secrets.token_bytes(before) + secret + secrets.token_bytes(5)
            for content in (whole, whole.hex().encode(), whole.hex().upper().encode(), repr(whole).encode()):
                assert hits(secret, content) or b"'" in secret or b'"' in secret
            assert hits(secret, base64.b64encode(whole)) and hits(secret, base64.urlsafe_b64encode(whole))
        assert not hits(secret, secrets.token_bytes(1000))


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_crashes_leave_no_core(job: Job) -> None:
    """Where cores would go: the kernel's pattern is left as it is, so the folders of the process that died are looked
    through (a pattern without '/'), and no process with a key may be dumped at all (patterns that name a program)."""
    assert {name for name, _, _ in job.crashes} == {"keyd", "mount", "worker", "serve"}
    assert not [left for _, _, left in job.crashes if left]
    logged = (job.node.directory / "log" / "up.log").read_text()
    for name in ("keyd", "worker", "serve"):
        assert f"{name} ended (" in logged
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("/"):
        for path in Path(pattern).parent.glob("*"):
            if path.is_file() and path.stat().st_size < 1 << 30:
                content = path.read_bytes()
                assert not [name for name, secret in job.keys.items() if hits(secret, content)], path


@pytest.mark.parametrize("name", HOLDERS)
def test_a_process_that_has_keys_cannot_be_dumped(job: Job, name: str) -> None:
    """By the kernel when it dies, nor by a debugger of its own user. A process is open while it starts, before it has
    anything: that one of its kind is seen closed will do."""
    seen = [shown for shown in job.shown.values() if shown.name == name]
    assert seen, f"no {name} was seen"
    assert any(shown.closed for shown in seen), f"{name} can be dumped"
    assert any(shown.core == ["0", "0"] for shown in seen), f"{name} may write a core"


def test_nothing_below_the_supervisor_may_write_a_core(job: Job) -> None:
    supervisor = up.running(job.config)
    assert supervisor is not None
    for pid in (supervisor, *below(supervisor)):
        shown = look_at(pid)
        assert shown.core == ["0", "0"], f"process {shown.line!r:.200} may write a core"


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_root_key_is_nowhere_in_memory_that_could_be_dumped_or_swapped(job: Job) -> None:
    """What a core of the key holder would have, were it to be made: all its memory but the parts left out of dumps."""
    if os.geteuid() != 0:
        pytest.skip("only root reads the memory of a process that is not dumpable")
    [keyd] = named(job.config, "keyd")
    secret = [(name, flags) for _, _, name, flags in mappings(keyd) if "secretmem" in name]
    locked = [flags for _, _, _, flags in mappings(keyd) if {"lo", "dd", "dc"} <= flags]
    assert locked
    for _, flags in secret:
        assert {"lo", "dd", "dc"} <= flags
    dumped = readable(keyd, lambda flags: "dd" not in flags)
    assert job.config.node.name.encode() in dumped, "the search finds nothing at all in this memory"
    assert not hits(job.keys["root key"], dumped)
    kept = readable(keyd, lambda flags: "dd" in flags)
    assert (job.keys["root key"] in kept) != bool(secret), "the root key is in its page, which secret memory hides"


@pytest.mark.may_skip
def test_a_debugger_s_dump_of_the_key_holder_has_no_root_key(job: Job, tmp_path: Path) -> None:
    """A real core, by root, who may: the page of the root key is left out of it."""
    if os.geteuid() != 0 or shutil.which("gcore") is None:
        pytest.skip("gcore (gdb) is not installed, or this is not root")
    [keyd] = named(job.config, "keyd")
    command = ["gcore", "-o", str(tmp_path / "dump"), str(keyd)]
    taken = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if taken.returncode != 0:
        pytest.skip(f"gcore cannot attach here: {taken.stderr.strip()[-200:]}")
    [path] = tmp_path.glob("dump*")
    core = path.read_bytes()
    path.unlink()
    assert job.config.node.name.encode() in core, "the search finds nothing at all in this core"
    assert not hits(job.keys["root key"], core)


def test_the_doctor_says_nothing_of_unlocked_memory(job: Job) -> None:
    said = io.StringIO()
    doctor(job.node.directory, Console(file=said, width=200, color_system=None))
    assert "deliveries get through" in said.getvalue()
    assert "not locked" not in said.getvalue()
