"""The tables. One set for SQLite and PostgreSQL; `migrations/` builds exactly these.

Text compares by code point on both (collation "C" on PostgreSQL), times are UTC and always aware.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

SCHEMA: Final = "0003"
"""The newest revision in `migrations/versions`; revisions are numbered, so that newer is a comparison."""


class UtcTime(sa.types.TypeDecorator[datetime]):
    """An aware time; stored as UTC, given back as UTC, on SQLite too (which keeps no time zone)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a time zone cannot be recorded")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
BLOB = sa.LargeBinary()
INT = sa.BigInteger()
COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""For generated ids and positions: in SQLite an INTEGER key is the row's own place, without a second index."""
JSON = sa.JSON(none_as_null=True)
BOOL = sa.Boolean()
TIME = UtcTime()

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _column(name: str, kind: sa.types.TypeEngine[Any], *rest: Any, **options: Any) -> sa.Column[Any]:
    """Not null unless it says so."""
    return sa.Column(name, kind, *rest, **{"nullable": False, **options})


def _key(name: str, kind: sa.types.TypeEngine[Any] = TEXT, *rest: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *rest, primary_key=True, autoincrement=False, nullable=False)


def _generated(name: str) -> sa.Column[Any]:
    return sa.Column(name, COUNTER, primary_key=True, autoincrement=True, nullable=False)


# --- the journal: written by `journal.py` only ---------------------------------------------------------------------

journal = sa.Table(
    "journal",
    metadata,
    _key("position", COUNTER),
    _column("stream", TEXT),
    _column("version", INT),
    _column("tag", TEXT),
    _column("at", TIME),
    _column("actor", TEXT),
    _column("command", TEXT),
    _column("data", BLOB),
    _column("leaf", BLOB),
    sa.UniqueConstraint("stream", "version"),
    sa.Index(None, "command"),
)
head = sa.Table(
    "head", metadata, _key("id", INT), _column("size", INT), _column("frontier", BLOB), _column("root", BLOB)
)
merkle = sa.Table(
    "merkle", metadata, _key("level", INT), _key("idx", INT), _column("hash", BLOB), sqlite_with_rowid=False
)
command = sa.Table("command", metadata, _key("id"), _column("first_position", INT), _column("count", INT))
checkpoint = sa.Table("checkpoint", metadata, _key("size", INT), _column("note", TEXT))
snapshot = sa.Table(
    "snapshot",
    metadata,
    _key("stream"),
    _column("kind", TEXT),
    _column("version", INT),
    _column("phase", TEXT),
    _column("state", BLOB),
    _column("changed", TIME),
    sa.Index(None, "kind", "phase", "changed"),
    sa.Index(None, "kind", "changed"),
)
link = sa.Table(
    "link",
    metadata,
    _key("stream"),
    _column("kind", TEXT),
    _key("relation"),
    _key("target"),
    sa.Index(None, "kind", "relation", "target"),
)
JOURNAL_TABLES: Final = (journal, head, merkle, command, checkpoint, snapshot, link)

# --- people --------------------------------------------------------------------------------------------------------

account = sa.Table(
    "account",
    metadata,
    _key("id"),
    _column("name", TEXT, unique=True),
    _column("display", TEXT),
    _column("email", TEXT),
    _column("roles", JSON),
    _column("password", TEXT),
    _column("totp_secret", TEXT, nullable=True),
    _column("totp_last", INT, nullable=True),
    _column("created", TIME),
    _column("erased", TIME, nullable=True),
    _column("organisation", TEXT, default=""),
    _column("home_country", TEXT, default=""),
)
account_key = sa.Table(
    "account_key",
    metadata,
    _key("id"),
    _column("account", TEXT, sa.ForeignKey("account.id"), index=True),
    _column("label", TEXT),
    _column("public", BLOB),
    _column("fingerprint", TEXT),
    _column("added", TIME),
    _column("ended", TIME, nullable=True),
)
key_challenge = sa.Table(
    "key_challenge",
    metadata,
    _key("id"),
    _column("account", TEXT),
    _column("label", TEXT),
    _column("public", BLOB),
    _column("answer_hash", BLOB),
    _column("expires", TIME),
)
session = sa.Table(
    "session",
    metadata,
    _key("hash", BLOB),
    _column("account", TEXT, sa.ForeignKey("account.id"), index=True),
    _column("kind", TEXT),
    _column("label", TEXT, default=""),
    _column("created", TIME),
    _column("seen", TIME),
    _column("expires", TIME),
    _column("second_factor_at", TIME, nullable=True),
)
login_attempt = sa.Table(
    "login_attempt",
    metadata,
    _generated("id"),
    _column("name_hash", TEXT),
    _column("at", TIME),
    _column("ok", BOOL),
    sa.Index(None, "name_hash", "at"),
    sqlite_autoincrement=True,
)
text = sa.Table(
    "text",
    metadata,
    _key("id"),
    _column("owner_stream", TEXT, index=True),
    _column("kind", TEXT),
    _column("body", TEXT, nullable=True),
    _column("salt", BLOB),
    _column("digest", BLOB),
    _column("created", TIME),
    _column("erased", TIME, nullable=True),
)

# --- data ----------------------------------------------------------------------------------------------------------

dataset = sa.Table(
    "dataset",
    metadata,
    _key("id"),
    _column("name", TEXT, unique=True),
    _column("title", TEXT),
    _column("description", TEXT, default=""),
    _column("diseases", JSON, default=[]),
    _column("data_types", JSON, default=[]),
    _column("keywords", JSON, default=[]),
    _column("consent", JSON, default=[]),
    _column("class", TEXT),
    _column("claimed", TEXT, default=""),
    _column("custodian", TEXT),
    _column("committee", TEXT, default=""),
    _column("country", TEXT),
    _column("unit", TEXT),
    _column("version", INT, nullable=True),
    _column("visible", BOOL, default=False),
    _column("files", INT, default=0),
    _column("bytes", INT, default=0),
    _column("participants", INT, nullable=True),
    _column("published", TIME, nullable=True),
    _column("changed", TIME),
    # written by `catalogue.py`, never shown: the folded words and the folded filter values of the row; then the rule by
    # which its bodies are placed
    _column("search", TEXT, default=""),
    _column("facets", TEXT, default=""),
    _column("placement", TEXT, default="", server_default=sa.text("''")),
    sa.Index(None, "visible", "changed"),
)
dataset_member = sa.Table(
    "dataset_member", metadata, _key("dataset"), _key("account"), _key("role"), sa.Index(None, "account")
)
file = sa.Table(
    "file",
    metadata,
    _key("id"),
    _column("dataset", TEXT, index=True),
    _column("deposit", TEXT),
    _column("version", INT, nullable=True),
    _column("path", TEXT),
    _column("folded", TEXT),
    _column("body", TEXT),
    _column("header", BLOB, nullable=True),
    _column("key_id", TEXT),
    _column("size", INT, nullable=True),
    _column("cipher_size", INT),
    _column("segments", INT),
    _column("seal_root", BLOB),
    _column("sha256", BLOB, nullable=True),
    _column("sent_sha256", BLOB, nullable=True),
    _column("tree_root", BLOB),
    _column("state", TEXT),
    _column("reason", TEXT, default=""),
    _column("received", TIME),
    # number of the key pair that opens the header; whether somebody outside ever had the data key; since when the body
    # is not the one that was received
    _column("pair", INT, default=1, server_default=sa.text("1")),
    _column("known_outside", BOOL, default=True, server_default=sa.true()),
    _column("rekeyed", TIME, nullable=True),
    sa.UniqueConstraint("deposit", "folded"),
    sa.Index(None, "key_id", "pair", "id"),
)
dataset_version_file = sa.Table(
    "dataset_version_file", metadata, _key("dataset"), _key("version", INT), _key("file"), sa.Index(None, "file")
)
release_file = sa.Table(
    "release_file",
    metadata,
    _key("id"),
    _column("release", TEXT, index=True),
    _column("path", TEXT),
    _column("body", TEXT),
    _column("header", BLOB),
    _column("key_id", TEXT),
    _column("size", INT),
    _column("sha256", BLOB),
    _column("seal_root", BLOB),
    _column("tree_root", BLOB),
    _column("media", TEXT, default=""),
)

# what a rotation has in hand: the body that is being written ('' for none), or why a file cannot be taken along
rotation_file = sa.Table(
    "rotation_file",
    metadata,
    _key("rotation"),
    _key("file"),
    _column("body", TEXT, default=""),
    _column("fault", TEXT, default=""),
)
# bodies that no file has any more, until their last reader has ended
stale_body = sa.Table(
    "stale_body", metadata, _key("body"), _column("dataset", TEXT), _column("file", TEXT), _column("since", TIME)
)
# downloads under way; `seen` is renewed while they go on
open_body = sa.Table("open_body", metadata, _key("id"), _column("body", TEXT, index=True), _column("seen", TIME))

# where the bodies of files rest, each with its seal beside it. `state`: see `valv.app.placement`; `checked`: when it
# was last read from end to end; `fault`: what was wrong with it then
copy = sa.Table(
    "copy",
    metadata,
    _key("body"),
    _key("store"),
    _column("state", TEXT),
    _column("size", INT),
    _column("since", TIME),
    _column("checked", TIME, nullable=True),
    _column("fault", TEXT, default=""),
    sa.Index(None, "store", "state", "checked"),
)
# bodies whose copies are to be looked at, and changed where they are not as the rule of their dataset wants them.
# `source`: the table that `file` is in; `due`: not before then; `fault`: why the rule is not satisfied yet
placing = sa.Table(
    "placing",
    metadata,
    _key("body"),
    _column("source", TEXT),
    _column("file", TEXT),
    _column("dataset", TEXT, default="", index=True),
    _column("due", TIME, index=True),
    _column("tries", INT, default=0),
    _column("fault", TEXT, default=""),
)

# files that come in pieces. `state`: open (bytes are missing), whole (to be joined), done (it is a file now), refused
# (`reason` says why); `body`: name that its pieces are just being joined under; `metadata`: as the sender wrote it
upload = sa.Table(
    "upload",
    metadata,
    _key("id"),
    _column("deposit", TEXT),
    _column("path", TEXT),
    _column("folded", TEXT),
    _column("length", INT),
    _column("offset", INT),
    _column("sha256", BLOB, nullable=True),
    _column("metadata", TEXT),
    _column("state", TEXT),
    _column("reason", TEXT, default=""),
    _column("body", TEXT, default=""),
    _column("created", TIME),
    _column("expires", TIME),
    sa.UniqueConstraint("deposit", "folded"),
    sa.Index(None, "state", "created"),
)
# its pieces, each encrypted by itself. `state`: coming (being written), whole, going (being deleted); `seen`: when its
# sender last lived
upload_part = sa.Table(
    "upload_part",
    metadata,
    _key("body"),
    _column("upload", TEXT, index=True),
    _column("number", INT),
    _column("state", TEXT),
    _column("size", INT, default=0),
    _column("header", BLOB, default=b""),
    _column("seal_root", BLOB, default=b""),
    _column("tree_root", BLOB, default=b""),
    _column("seen", TIME),
    sa.Index(None, "state"),
)

# what a withdrawal does with each file of the old version. `work`: take, look, rewrite, index, drop; `state`: todo,
# asking (the custodian), done; `made`: id of the row of the successor's file, '' for none; `body`: the new body that is
# being written; `base`: of an index, the file that it is of; `why`: code of why the custodian is asked
withdrawal_file = sa.Table(
    "withdrawal_file",
    metadata,
    _key("withdrawal"),
    _key("file"),
    _column("work", TEXT),
    _column("state", TEXT),
    _column("made", TEXT, default=""),
    _column("body", TEXT, default=""),
    _column("base", TEXT, default=""),
    _column("why", TEXT, default=""),
    sa.Index(None, "withdrawal", "state"),
)

# the copies of files whose key was destroyed, as they were then, until the certificate lists them. `size`: stored bytes
# of the body; `gone`: when the store was seen to have it no more
destroyed_copy = sa.Table(
    "destroyed_copy",
    metadata,
    _key("body"),
    _key("store"),
    _column("key_id", TEXT, index=True),
    _column("file", TEXT),
    _column("size", INT),
    _column("gone", TIME, nullable=True),
)

# --- work ----------------------------------------------------------------------------------------------------------

outbox = sa.Table(
    "outbox",
    metadata,
    _generated("id"),
    _column("topic", TEXT),
    _column("key", TEXT, unique=True),
    _column("body", JSON),
    _column("created", TIME),
    _column("due", TIME),
    _column("tries", INT, default=0),
    _column("done", TIME, nullable=True),
    _column("error", TEXT, default=""),
    sa.Index(None, "done", "due"),
    sqlite_autoincrement=True,
)
idempotency = sa.Table(
    "idempotency",
    metadata,
    _key("key"),
    _column("account", TEXT),
    _column("status", INT),
    _column("body", TEXT),
    _column("created", TIME),
)
setting = sa.Table("setting", metadata, _key("name"), _column("value", JSON, nullable=True))
read_tally = sa.Table(
    "read_tally",
    metadata,
    _key("run"),
    _key("file"),
    _column("bytes", INT, default=0),
    _column("ledgered", INT, default=0),
)

ROW_TABLES: Final = {table.name: table for table in metadata.sorted_tables if table not in JOURNAL_TABLES}
"""The tables that the row verbs may touch: never the journal."""
