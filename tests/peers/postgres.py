"""A private PostgreSQL for the tests: Debian's own binaries, a temporary folder, a Unix socket and a loopback port.

Fixtures: `postgres_server` (one for the whole session), `postgres_url` (an empty database of its own for each test),
`database_url` (each test once on SQLite and once on PostgreSQL) and `database` (that, with the tables built).
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from valv.db.database import Database

OWNER = "valv"
START_SECONDS = 60


@dataclass
class PostgresServer:
    """A running server. Who can enter `folder` is let in over the socket; the loopback port asks for the password."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def password_file(self) -> Path:
        return self.folder / "password"

    def url(self, name: str) -> str:
        """Over the Unix socket, without a password."""
        return f"postgresql://{OWNER}@/{name}?host={self.folder}&port={self.port}"

    def tcp_url(self, name: str) -> str:
        """Over the loopback address, with the password of `password_file`."""
        return f"postgresql://{OWNER}@127.0.0.1:{self.port}/{name}"

    def create(self) -> str:
        """A new, empty database; returns its name."""
        name = f"test_{secrets.token_hex(6)}"
        self._administer(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def drop(self, name: str) -> None:
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with self.connect() as connection:
            connection.execute(statement)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.folder), port=self.port, user=OWNER, dbname="postgres", autocommit=True, connect_timeout=5
        )

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_binaries() -> Path | None:
    """The folder of the newest server that Debian has installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda one: int(one.parts[-3]))
    return found[-1].parent if found else None


def start(folder: Path, binaries: Path) -> PostgresServer:
    """Make a cluster in `folder` and start it. As root it runs as an unprivileged user, for PostgreSQL refuses root."""
    identity = _identity()
    if identity:
        os.chown(folder, identity["user"], identity["group"])
    password = folder / "password"
    password.write_text(secrets.token_urlsafe(24) + "\n")
    password.chmod(0o600)
    if identity:
        os.chown(password, identity["user"], identity["group"])
    data = folder / "data"
    subprocess.run(
        [
            binaries / "initdb",
            f"--pgdata={data}",
            f"--username={OWNER}",
            f"--pwfile={password}",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
        ],
        check=True,
        capture_output=True,
        cwd=folder,
        **identity,
    )
    port = _free_port()
    settings = {
        "fsync": "on",
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": str(folder),
        "shared_buffers": "64MB",
    }
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd=folder, **identity
        )
    server = PostgresServer(folder, port, process)
    _await(server)
    return server


def _identity() -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return {"user": 65534, "group": 65534, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(server: PostgresServer) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            server.connect().close()
            return
        except psycopg.OperationalError:
            if server.process.poll() is not None or time.monotonic() > until:
                server.stop()
                pytest.fail(f"PostgreSQL did not start:\n{(server.folder / 'log').read_text('utf-8', 'replace')}")
            time.sleep(0.05)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (/usr/lib/postgresql/*/bin is missing)")
    folder = Path(tempfile.mkdtemp(prefix="valv-pg-"))
    try:
        server = start(folder, binaries)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    name = postgres_server.create()
    yield postgres_server.url(name)
    postgres_server.drop(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'valv.sqlite'}"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    opened.create()
    yield opened
    opened.close()
