"""Opening a database: engines, pools, transactions that hold what is promised, and faults in the node's own terms."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from psycopg import errors as postgres
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from valv.errors import (
    ConfigFault,
    ConflictFault,
    Fault,
    FullFault,
    InputFault,
    InternalFault,
    StorageFault,
    UnreachableFault,
)

BUSY_SECONDS: Final = 30
"""How long a unit waits for another writer, or for a free connection, before it gives up with a fault."""
_READERS: Final = 8
_WRITERS: Final = 4


def read_url(text: str) -> sa.URL:
    """The database URL with the driver that Valv uses. Raises `ConfigFault` on anything else."""
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigFault(
            "database.url cannot be read", "write sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    match url.get_backend_name():
        case "sqlite":
            if not url.database or url.database == ":memory:":
                raise ConfigFault("database.url: the database must be a file", "write sqlite:///FILE")
            return url.set(drivername="sqlite+pysqlite")
        case "postgresql":
            return url.set(drivername="postgresql+psycopg")
        case other:
            raise ConfigFault(f"database.url: {other} is not supported", "write sqlite:///FILE or postgresql://…")


def read_password(password_file: str) -> str:
    """The first line of the file. Raises `ConfigFault` where it cannot be read."""
    try:
        return Path(password_file).read_text("utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        raise ConfigFault(f"database.password_file: {password_file} cannot be read") from None


def open_engine(url: sa.URL, password: str, *, writes: bool, pooled: bool = True) -> sa.Engine:
    """An engine whose every transaction is a unit: durable and exclusive where it writes, one frozen view where not.

    SQLite writes begin IMMEDIATE, one at a time in this process, so that waiting threads stand in a queue and do not
    poll. PostgreSQL writes are READ COMMITTED, because a statement after the head's row lock must see what the lock's
    former holder committed; reads are REPEATABLE READ.
    """
    options: dict[str, Any] = {"hide_parameters": True}
    if not pooled:
        options["poolclass"] = NullPool
    if url.get_backend_name() == "sqlite":
        if pooled:
            options |= {"pool_size": 1 if writes else _READERS, "max_overflow": 0, "pool_timeout": BUSY_SECONDS}
        engine = sa.create_engine(url, **options)
        _prepare_sqlite(engine, writes=writes)
        return engine
    if pooled:
        size = _WRITERS if writes else _READERS
        options |= {"pool_size": size, "max_overflow": 0, "pool_timeout": BUSY_SECONDS, "pool_pre_ping": True}
    settings = f"-c lock_timeout={BUSY_SECONDS}s -c timezone=UTC -c synchronous_commit=on"
    arguments: dict[str, Any] = {"connect_timeout": 10, "application_name": "valv", "options": settings}
    if password:
        arguments["password"] = password
    engine = sa.create_engine(url, connect_args=arguments, **options)
    if writes:
        return engine.execution_options(isolation_level="READ COMMITTED")
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _prepare_sqlite(engine: sa.Engine, *, writes: bool) -> None:
    def connected(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA secure_delete = ON")  # what is erased is written over
        cursor.execute(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        cursor.close()

    def begun(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    sa.event.listen(engine, "connect", connected)
    sa.event.listen(engine, "begin", begun)


def empty_log(path: Path) -> bool:
    """Write all that stands in the write-ahead log into the database, and empty it. False where others are at it; no
    one is made to wait."""
    try:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    except sqlite3.Error:
        return False
    try:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy
    except sqlite3.Error:
        return False
    finally:
        connection.close()


def fault_of(error: sa.exc.SQLAlchemyError) -> Fault:
    """What a failure of the database means to the node. Never carries values of the statement."""
    if isinstance(error, sa.exc.TimeoutError):
        return ConflictFault("the database is busy", "try again in a moment")
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else None
    if isinstance(original, sqlite3.Error):
        return _sqlite_fault(original)
    if isinstance(original, postgres.Error):
        return _postgres_fault(original)
    return InternalFault(f"the database layer failed: {type(error).__name__}")


def _sqlite_fault(error: sqlite3.Error) -> Fault:
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return ConflictFault("the database is busy with another change", "try again in a moment")
    if name.startswith("SQLITE_FULL"):
        return FullFault("the disk of the database is full")
    if name in ("SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_FOREIGNKEY"):
        return ConflictFault("a record with this key is there already, or one that it points to is not")
    if name.startswith("SQLITE_CONSTRAINT"):
        return InternalFault(f"a record breaks a rule of its table ({name})")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY", "SQLITE_AUTH")):
        return StorageFault("the database file cannot be opened or written", "check its owner and its folder's rights")
    if name.startswith(("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StorageFault(f"the database file is damaged or cannot be read ({name})", "restore it from a backup")
    return InternalFault(f"the database refused a statement ({name or type(error).__name__})")


def _postgres_fault(error: postgres.Error) -> Fault:
    state = error.sqlstate or ""
    if isinstance(error, postgres.UniqueViolation | postgres.ForeignKeyViolation):
        return ConflictFault("a record with this key is there already, or one that it points to is not")
    if state in ("40001", "40P01", "55P03"):  # serialization failure, deadlock, lock timeout
        return ConflictFault("the database is busy with another change", "try again in a moment")
    if state == "53100":
        return FullFault("the disk of the database is full")
    if state.startswith("22"):
        return InputFault("a value cannot be recorded in this form")
    if state.startswith("28") or state == "3D000":  # not let in, or no such database
        return ConfigFault("PostgreSQL does not let this node in", "check database.url and database.password_file")
    if not state or state.startswith(("08", "53", "57")):  # no connection, too many of them, shutting down
        return UnreachableFault("PostgreSQL does not answer", "check that it runs and that database.url is right")
    return InternalFault(f"the database refused a statement ({state})")
