"""Building and upgrading the schema: the Alembic tree in `migrations/`, run inside one transaction."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from valv.db.engine import fault_of, open_engine
from valv.errors import InternalFault

MIGRATIONS: Final = Path(__file__).with_name("migrations")
_LOCK: Final = 0x56616C76  # any fixed number: one migration at a time on a PostgreSQL server's database


def migrate(url: sa.URL, password: str) -> None:
    """Bring an empty or older schema to the newest, all of it or nothing. Several processes may do so at once."""
    engine = open_engine(url, password, writes=True, pooled=False)
    try:
        with engine.connect() as connection:
            sqlite = connection.dialect.name == "sqlite"
            if sqlite:
                _release_foreign_keys(connection)
            with connection.begin():
                if not sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
                command.upgrade(_config(connection), "head")
                if sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                    raise InternalFault("the migration left a record that points to nothing; nothing was changed")
    except sa.exc.SQLAlchemyError as error:
        raise fault_of(error) from None
    finally:
        engine.dispose()


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def _release_foreign_keys(connection: sa.Connection) -> None:
    """SQLite alters a table by building it anew and dropping the old one, which foreign keys would forbid.

    It takes this only outside a transaction, so it goes to the driver; they are checked as a whole before the commit.
    """
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()
