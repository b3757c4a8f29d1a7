"""The journal: appends against the database's own inserts, proofs, verification, the catalogue.

    .venv/bin/python bench/journal.py

Each line ends in a ratio: against the peer that was measured in the same run, or against the limit.
"""

from __future__ import annotations

import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.peers.postgres import find_binaries, start
from valv.db.database import Database
from valv.formats.merkle import Frontier
from valv.ports.records import Change, Recorded

APPENDS = 400
PROOFS = 300
LARGE = 100_000
GROWTH = (12_500, 25_000, 50_000, 100_000)
DATASETS = 5000
PROOF_LIMIT = 0.010
PAGE_LIMIT = 0.050
NOW = datetime(2031, 2, 3, tzinfo=UTC)
DATA = b'{"tag":"access.submitted","purpose":"DUO:0000042","text":"' + b"0" * 64 + b'"}'
Row = tuple[str, tuple[Any, ...]]


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="valv-bench-"))
    try:
        _measure("sqlite", f"sqlite:///{folder / 'valv.sqlite'}", lambda rows: _sqlite_peer(folder, rows))
        binaries = find_binaries()
        if binaries is None:
            print("postgresql: not installed, skipped")
            return
        server_folder = Path(tempfile.mkdtemp(prefix="valv-bench-pg-"))
        server = start(server_folder, binaries)
        try:
            peer, own = server.create(), server.create()
            conninfo = f"host={server.folder} port={server.port} user=valv dbname={peer}"
            _measure("postgresql", server.url(own), lambda rows: _postgres_peer(conninfo, rows))
        finally:
            server.stop()
            shutil.rmtree(server_folder, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(name: str, url: str, peer: Callable[[Sequence[Sequence[Row]]], float]) -> None:
    database = Database(url)
    database.create()
    rounds = []
    for repeat in range(3):
        recorded: list[Recorded] = []
        started = time.perf_counter()
        for number in range(APPENDS):
            recorded.extend(_append(database, f"run/{repeat}-{number}", 1))
        own = APPENDS / (time.perf_counter() - started)
        rounds.append((own, APPENDS / peer(_rows_of(recorded))))
    own, raw = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"{name}: {own:.0f} appends/s, the same rows inserted bare {raw:.0f}/s: ratio {own / raw:.2f}")
    _verification(name, database)
    _proofs(name, database)
    _pages(name, database)
    database.close()


def _append(database: Database, stream: str, count: int) -> list[Recorded]:
    change = Change(stream, "run", 0, (("run.asked", DATA),) * count, "asked", DATA, {"owner": ("account/1",)})
    with database.writing() as unit:
        return unit.append([change], actor="account/1", at=NOW, command=stream)


def _verification(name: str, database: Database) -> None:
    each = []
    for size in GROWTH:
        with database.reading() as unit:
            there = unit.head().size
        while there < size:
            there += len(_append(database, f"fill/{there}", min(2500, size - there)))
        started = time.perf_counter()
        report = database.verify()
        took = time.perf_counter() - started
        if not report.ok:
            raise SystemExit(report.fault)
        each.append(took / size)
        print(f"{name}: {size} events verified in {took:.2f} s, {took / size * 1e6:.1f} µs each")
    print(f"{name}: time for each event, {GROWTH[-1]} against {GROWTH[0]} events: ratio {each[-1] / each[0]:.2f}")


def _proofs(name: str, database: Database) -> None:
    times = []
    with database.reading() as unit:
        size = unit.head().size
        for number in range(PROOFS):
            started = time.perf_counter()
            unit.inclusion(number * 7919 % size, size)
            times.append(time.perf_counter() - started)
    _against(f"{name}: an inclusion proof in {size} events", times, PROOF_LIMIT)


def _pages(name: str, database: Database) -> None:
    with database.writing() as unit:
        unit.insert("dataset", [_dataset(number) for number in range(DATASETS)])
    times = []
    for number in range(50):
        with database.reading() as unit:
            started = time.perf_counter()
            unit.search_catalogue(text=f"cohort {number}", data_type="vcf", offset=number, limit=50)
            times.append(time.perf_counter() - started)
    _against(f"{name}: a page of the catalogue of {DATASETS}", times, PAGE_LIMIT)


def _against(what: str, times: list[float], limit: float) -> None:
    middle = statistics.median(times)
    slowest = sorted(times)[len(times) * 95 // 100]
    print(
        f"{what}: median {middle * 1e3:.2f} ms, 95th of 100 {slowest * 1e3:.2f} ms, "
        f"limit {limit * 1e3:.0f} ms: ratio {middle / limit:.2f}"
    )


def _dataset(number: int) -> dict[str, Any]:
    return {
        "id": f"d{number}",
        "name": f"set-{number:05}",
        "title": f"Cohort {number}",
        "description": "Volunteers from three countries, measured again every second year. " * 8,
        "diseases": [f"MONDO:{number % 70:07}"],
        "data_types": ["vcf" if number % 2 else "bam"],
        "consent": ["DUO:0000042"],
        "class": "anonymised",
        "custodian": "account/1",
        "country": "SE",
        "unit": "genetics",
        "visible": True,
        "changed": NOW,
    }


# --- the peer: the same rows with the bare driver, one durable commit for each append ---------------------------------


def _rows_of(recorded: list[Recorded]) -> list[list[Row]]:
    """For each append the statements that leave the same rows behind."""
    frontier = Frontier()
    found: list[list[Row]] = []
    for event in recorded:
        values = tuple(getattr(event, field) for field in Recorded.__struct_fields__)
        rows: list[Row] = [("INSERT INTO journal VALUES (?,?,?,?,?,?,?,?,?)", (frontier.size, *values[1:]))]
        nodes = frontier.append(bytes(32))
        rows.extend(("INSERT INTO merkle VALUES (?,?,?)", node) for node in nodes)
        rows.append(("INSERT INTO command VALUES (?,?,?)", (event.command, frontier.size, 1)))
        rows.append(
            ("INSERT INTO snapshot VALUES (?,?,?,?,?,?)", (event.stream, "run", 1, "asked", event.data, event.at))
        )
        rows.append(("INSERT INTO link VALUES (?,?,?,?)", (event.stream, "run", "owner", "account/1")))
        rows.append(("UPDATE head SET size = ?, frontier = ?", (frontier.size, frontier.encode())))
        found.append(rows)
    return found


_TABLES = """
CREATE TABLE journal (position BIGINT PRIMARY KEY, stream TEXT, version BIGINT, tag TEXT, at TIMESTAMPTZ, actor TEXT,
    command TEXT, data BYTEA, leaf BYTEA, UNIQUE (stream, version));
CREATE INDEX journal_command ON journal (command);
CREATE TABLE merkle (level BIGINT, idx BIGINT, hash BYTEA, PRIMARY KEY (level, idx));
CREATE TABLE command (id TEXT PRIMARY KEY, first_position BIGINT, count BIGINT);
CREATE TABLE snapshot (stream TEXT PRIMARY KEY, kind TEXT, version BIGINT, phase TEXT, state BYTEA,
    changed TIMESTAMPTZ);
CREATE INDEX snapshot_phase ON snapshot (kind, phase, changed);
CREATE INDEX snapshot_changed ON snapshot (kind, changed);
CREATE TABLE link (stream TEXT, kind TEXT, relation TEXT, target TEXT, PRIMARY KEY (stream, relation, target));
CREATE INDEX link_target ON link (kind, relation, target);
CREATE TABLE head (size BIGINT, frontier BYTEA);
INSERT INTO head VALUES (0, '');
"""


def _sqlite_peer(folder: Path, appends: Sequence[Sequence[Row]]) -> float:
    file = folder / "peer.sqlite"
    for name in ("", "-wal", "-shm"):
        Path(f"{file}{name}").unlink(missing_ok=True)
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.executescript(_TABLES)
    plain = [[(sql, tuple(_as_text(value) for value in row)) for sql, row in rows] for rows in appends]
    started = time.perf_counter()
    for rows in plain:
        connection.execute("BEGIN IMMEDIATE")
        for sql, row in rows:
            connection.execute(sql, row)
        connection.execute("COMMIT")
    took = time.perf_counter() - started
    connection.close()
    return took


def _as_text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _postgres_peer(conninfo: str, appends: Sequence[Sequence[Row]]) -> float:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS journal, merkle, command, snapshot, link, head")
        for statement in _TABLES.split(";")[:-1]:
            connection.execute(statement.encode())
        plain = [[(sql.replace("?", "%s").encode(), row) for sql, row in rows] for rows in appends]
        started = time.perf_counter()
        for rows in plain:
            with connection.transaction():
                for sql, row in rows:
                    connection.execute(sql, row)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
