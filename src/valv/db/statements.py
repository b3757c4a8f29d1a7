"""Running statements of one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from valv.db.engine import fault_of

Insert = postgresql.Insert | sqlite.Insert


class Statements:
    """One open transaction. After a fault of the database it is lost as a whole, on both databases alike."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self.lost = False

    def run(
        self, statement: sa.Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> sa.CursorResult[*tuple[Any, ...]]:
        """Execute. Raises the Fault that the database's error means, without the statement's values."""
        try:
            return self._connection.execute(statement, parameters)
        except sa.exc.SQLAlchemyError as error:
            self.lost = True
            raise fault_of(error) from None

    @property
    def dialect(self) -> str:
        """Of the database: `sqlite` or `postgresql`."""
        return self._connection.dialect.name

    def insert_or_update(self, table: sa.Table) -> Insert:
        """An INSERT that can say ON CONFLICT, in the database's own dialect."""
        if self._connection.dialect.name == "sqlite":
            return sqlite.insert(table)
        return postgresql.insert(table)
