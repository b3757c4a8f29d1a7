"""The node's records in one database: opens it, keeps its schema, hands out transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from valv.db.dump import Dumping
from valv.db.engine import empty_log, fault_of, open_engine, read_password, read_url
from valv.db.journal import Journal
from valv.db.placing import Placing
from valv.db.rows import Rows
from valv.db.schema import SCHEMA
from valv.db.verify import verify_journal
from valv.errors import ConfigFault, InternalFault
from valv.formats.ledger import Report


class Transaction(Journal, Rows, Placing, Dumping):
    """One transaction: the `Unit` of `valv.ports.records`."""


class Database:
    """`Records` on SQLite or PostgreSQL. Safe for threads; each process opens its own.

    Nothing is opened before the first use. The first unit checks that the schema is the one that this release knows.
    """

    def __init__(self, url: str, password_file: str = "") -> None:
        """Raises `ConfigFault` where the URL or the password file cannot be used."""
        self._url = read_url(url)
        self._password = read_password(password_file) if password_file else ""
        self._readers = open_engine(self._url, self._password, writes=False)
        self._writers = open_engine(self._url, self._password, writes=True)
        self._checked = False
        self._erased = True  # perhaps by a process that died before it settled

    def __repr__(self) -> str:
        return f"Database({self._url.render_as_string(hide_password=True)!r})"

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """One frozen view of the records; nothing can be written in it."""
        self._check_once()
        with _connection(self._readers) as connection:
            yield Transaction(connection)

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """One transaction: kept, durably, when the block ends; gone without a trace when it raises.

        Where it raises `UnreachableFault` at its end, nobody knows whether it was kept: repeat it under the same
        command id.
        """
        self._check_once()
        with _connection(self._writers) as connection:
            unit = Transaction(connection)
            yield unit
            if unit.lost:
                raise InternalFault("a unit went on after a fault of the database; nothing of it was kept")
            try:
                connection.commit()
            except sa.exc.SQLAlchemyError as error:
                raise fault_of(error) from None
            self._erased |= unit.erased

    def settle(self) -> bool:
        """Take what was erased out of SQLite's write-ahead log, too. False where somebody reads it just then, which is
        not waited for: call it again. (PostgreSQL frees it as its own vacuum comes by.)"""
        if not self._erased:
            return True
        settled = self._url.get_backend_name() != "sqlite" or empty_log(Path(self._url.database or ""))
        self._erased = not settled
        return settled

    def verify(self, note: str | None = None, vkey: str = "") -> Report:
        """Recompute the whole ledger and compare it with what is stored, in one frozen view.

        `note`: a signed checkpoint to hold it against; None takes the newest stored one where `vkey`, the signer's
        verifier key, is given. The report names the first fault. Memory grows with the number of streams only.
        """
        self._check_once()
        with _connection(self._readers) as connection:
            return verify_journal(Transaction(connection), note, vkey)

    # --- the schema ---

    def create(self) -> None:
        """Build the tables in an empty database. Repeating it, or doing it on an older schema, ends the same."""
        self._migrate()

    def upgrade(self) -> None:
        """Bring the schema of an earlier release to this one's. Raises `ConfigFault` where there is none."""
        if self.version() is None:
            raise ConfigFault("the database holds no node yet", "create one with 'valv node create DIR'")
        self._migrate()

    def check(self) -> None:
        """Raises `ConfigFault` unless the schema is exactly the one that this release knows."""
        version = self.version()
        if version is None:
            raise ConfigFault("the database holds no node yet", "create one with 'valv node create DIR'")
        if version > SCHEMA:
            raise ConfigFault(
                f"the database has schema {version}, newer than the {SCHEMA} of this release", "install a newer Valv"
            )
        if version < SCHEMA:
            raise ConfigFault(
                f"the database has schema {version}, older than the {SCHEMA} of this release", "run 'valv node upgrade'"
            )

    def version(self) -> str | None:
        """The schema's revision, None in an empty database."""
        if self._url.get_backend_name() == "sqlite" and not Path(self._url.database or "").is_file():
            return None  # connecting would create the file
        with _connection(self._readers) as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            found: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            return found

    def close(self) -> None:
        self._readers.dispose()
        self._writers.dispose()

    def _check_once(self) -> None:
        if not self._checked:
            self.check()
            self._checked = True

    def _migrate(self) -> None:
        from valv.db.migrate import migrate  # Alembic is only loaded where it is used

        version = self.version()
        if version is not None and version > SCHEMA:
            self.check()
        migrate(self._url, self._password)
        self._checked = False


@contextmanager
def _connection(engine: sa.Engine) -> Iterator[sa.Connection]:
    try:
        connection = engine.connect()
    except sa.exc.SQLAlchemyError as error:
        raise fault_of(error) from None
    with connection:  # rolls back what was not committed
        yield connection
