"""The records of the first release."""

import hashlib

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
BLOB = sa.LargeBinary()
INT = sa.BigInteger()
COUNTER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON()
BOOL = sa.Boolean()
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("display", TEXT, nullable=False),
        sa.Column("email", TEXT, nullable=False),
        sa.Column("roles", JSON, nullable=False),
        sa.Column("password", TEXT, nullable=False),
        sa.Column("totp_secret", TEXT, nullable=True),
        sa.Column("totp_last", INT, nullable=True),
        sa.Column("created", TIME, nullable=False),
        sa.Column("erased", TIME, nullable=True),
        sa.Column("organisation", TEXT, nullable=False),
        sa.Column("home_country", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
        sa.UniqueConstraint("name", name=op.f("uq_account_name")),
    )
    op.create_table(
        "checkpoint",
        sa.Column("size", INT, autoincrement=False, nullable=False),
        sa.Column("note", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("size", name=op.f("pk_checkpoint")),
    )
    op.create_table(
        "command",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("first_position", INT, nullable=False),
        sa.Column("count", INT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_command")),
    )
    op.create_table(
        "dataset",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("title", TEXT, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("diseases", JSON, nullable=False),
        sa.Column("data_types", JSON, nullable=False),
        sa.Column("keywords", JSON, nullable=False),
        sa.Column("consent", JSON, nullable=False),
        sa.Column("class", TEXT, nullable=False),
        sa.Column("claimed", TEXT, nullable=False),
        sa.Column("custodian", TEXT, nullable=False),
        sa.Column("committee", TEXT, nullable=False),
        sa.Column("country", TEXT, nullable=False),
        sa.Column("unit", TEXT, nullable=False),
        sa.Column("version", INT, nullable=True),
        sa.Column("visible", BOOL, nullable=False),
        sa.Column("files", INT, nullable=False),
        sa.Column("bytes", INT, nullable=False),
        sa.Column("participants", INT, nullable=True),
        sa.Column("published", TIME, nullable=True),
        sa.Column("changed", TIME, nullable=False),
        sa.Column("search", TEXT, nullable=False),
        sa.Column("facets", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
        sa.UniqueConstraint("name", name=op.f("uq_dataset_name")),
    )
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_dataset_visible_changed"), ["visible", "changed"], unique=False)

    op.create_table(
        "dataset_member",
        sa.Column("dataset", TEXT, autoincrement=False, nullable=False),
        sa.Column("account", TEXT, autoincrement=False, nullable=False),
        sa.Column("role", TEXT, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("dataset", "account", "role", name=op.f("pk_dataset_member")),
    )
    with op.batch_alter_table("dataset_member", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_dataset_member_account"), ["account"], unique=False)

    op.create_table(
        "dataset_version_file",
        sa.Column("dataset", TEXT, autoincrement=False, nullable=False),
        sa.Column("version", INT, autoincrement=False, nullable=False),
        sa.Column("file", TEXT, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("dataset", "version", "file", name=op.f("pk_dataset_version_file")),
    )
    with op.batch_alter_table("dataset_version_file", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_dataset_version_file_file"), ["file"], unique=False)

    op.create_table(
        "file",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("dataset", TEXT, nullable=False),
        sa.Column("deposit", TEXT, nullable=False),
        sa.Column("version", INT, nullable=True),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("folded", TEXT, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("header", BLOB, nullable=True),
        sa.Column("key_id", TEXT, nullable=False),
        sa.Column("size", INT, nullable=True),
        sa.Column("cipher_size", INT, nullable=False),
        sa.Column("segments", INT, nullable=False),
        sa.Column("seal_root", BLOB, nullable=False),
        sa.Column("sha256", BLOB, nullable=True),
        sa.Column("sent_sha256", BLOB, nullable=True),
        sa.Column("tree_root", BLOB, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("received", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file")),
        sa.UniqueConstraint("deposit", "folded", name=op.f("uq_file_deposit_folded")),
    )
    with op.batch_alter_table("file", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_file_dataset"), ["dataset"], unique=False)

    op.create_table(
        "head",
        sa.Column("id", INT, autoincrement=False, nullable=False),
        sa.Column("size", INT, nullable=False),
        sa.Column("frontier", BLOB, nullable=False),
        sa.Column("root", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_head")),
    )
    op.create_table(
        "idempotency",
        sa.Column("key", TEXT, autoincrement=False, nullable=False),
        sa.Column("account", TEXT, nullable=False),
        sa.Column("status", INT, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_idempotency")),
    )
    op.create_table(
        "journal",
        sa.Column("position", COUNTER, autoincrement=False, nullable=False),
        sa.Column("stream", TEXT, nullable=False),
        sa.Column("version", INT, nullable=False),
        sa.Column("tag", TEXT, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", TEXT, nullable=False),
        sa.Column("command", TEXT, nullable=False),
        sa.Column("data", BLOB, nullable=False),
        sa.Column("leaf", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_journal")),
        sa.UniqueConstraint("stream", "version", name=op.f("uq_journal_stream_version")),
    )
    with op.batch_alter_table("journal", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_journal_command"), ["command"], unique=False)

    op.create_table(
        "key_challenge",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("account", TEXT, nullable=False),
        sa.Column("label", TEXT, nullable=False),
        sa.Column("public", BLOB, nullable=False),
        sa.Column("answer_hash", BLOB, nullable=False),
        sa.Column("expires", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_challenge")),
    )
    op.create_table(
        "link",
        sa.Column("stream", TEXT, autoincrement=False, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("relation", TEXT, autoincrement=False, nullable=False),
        sa.Column("target", TEXT, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("stream", "relation", "target", name=op.f("pk_link")),
    )
    with op.batch_alter_table("link", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_link_kind_relation_target"), ["kind", "relation", "target"], unique=False)

    op.create_table(
        "login_attempt",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("name_hash", TEXT, nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("ok", BOOL, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_attempt")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("login_attempt", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_login_attempt_name_hash_at"), ["name_hash", "at"], unique=False)

    op.create_table(
        "merkle",
        sa.Column("level", INT, autoincrement=False, nullable=False),
        sa.Column("idx", INT, autoincrement=False, nullable=False),
        sa.Column("hash", BLOB, nullable=False),
        sa.PrimaryKeyConstraint("level", "idx", name=op.f("pk_merkle")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outbox",
        sa.Column("id", COUNTER, autoincrement=True, nullable=False),
        sa.Column("topic", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("body", JSON, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("due", TIME, nullable=False),
        sa.Column("tries", INT, nullable=False),
        sa.Column("done", TIME, nullable=True),
        sa.Column("error", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("key", name=op.f("uq_outbox_key")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_outbox_done_due"), ["done", "due"], unique=False)

    op.create_table(
        "read_tally",
        sa.Column("run", TEXT, autoincrement=False, nullable=False),
        sa.Column("file", TEXT, autoincrement=False, nullable=False),
        sa.Column("bytes", INT, nullable=False),
        sa.Column("ledgered", INT, nullable=False),
        sa.PrimaryKeyConstraint("run", "file", name=op.f("pk_read_tally")),
    )
    op.create_table(
        "release_file",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("release", TEXT, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("header", BLOB, nullable=False),
        sa.Column("key_id", TEXT, nullable=False),
        sa.Column("size", INT, nullable=False),
        sa.Column("sha256", BLOB, nullable=False),
        sa.Column("seal_root", BLOB, nullable=False),
        sa.Column("tree_root", BLOB, nullable=False),
        sa.Column("media", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release_file")),
    )
    with op.batch_alter_table("release_file", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_release_file_release"), ["release"], unique=False)

    op.create_table(
        "setting",
        sa.Column("name", TEXT, autoincrement=False, nullable=False),
        sa.Column("value", JSON, nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_setting")),
    )
    op.create_table(
        "snapshot",
        sa.Column("stream", TEXT, autoincrement=False, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("version", INT, nullable=False),
        sa.Column("phase", TEXT, nullable=False),
        sa.Column("state", BLOB, nullable=False),
        sa.Column("changed", TIME, nullable=False),
        sa.PrimaryKeyConstraint("stream", name=op.f("pk_snapshot")),
    )
    with op.batch_alter_table("snapshot", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_snapshot_kind_changed"), ["kind", "changed"], unique=False)
        batch_op.create_index(batch_op.f("ix_snapshot_kind_phase_changed"), ["kind", "phase", "changed"], unique=False)

    op.create_table(
        "text",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("owner_stream", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("body", TEXT, nullable=True),
        sa.Column("salt", BLOB, nullable=False),
        sa.Column("digest", BLOB, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("erased", TIME, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_text")),
    )
    with op.batch_alter_table("text", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_text_owner_stream"), ["owner_stream"], unique=False)

    op.create_table(
        "account_key",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("account", TEXT, nullable=False),
        sa.Column("label", TEXT, nullable=False),
        sa.Column("public", BLOB, nullable=False),
        sa.Column("fingerprint", TEXT, nullable=False),
        sa.Column("added", TIME, nullable=False),
        sa.Column("ended", TIME, nullable=True),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_account_key_account")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_key")),
    )
    with op.batch_alter_table("account_key", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_account_key_account"), ["account"], unique=False)

    op.create_table(
        "session",
        sa.Column("hash", BLOB, autoincrement=False, nullable=False),
        sa.Column("account", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("label", TEXT, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("seen", TIME, nullable=False),
        sa.Column("expires", TIME, nullable=False),
        sa.Column("second_factor_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["account"], ["account.id"], name=op.f("fk_session_account")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_session")),
    )
    with op.batch_alter_table("session", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_session_account"), ["account"], unique=False)
    op.bulk_insert(
        sa.table(
            "head", sa.column("id", INT), sa.column("size", INT), sa.column("frontier", BLOB), sa.column("root", BLOB)
        ),
        [{"id": 1, "size": 0, "frontier": b"", "root": hashlib.sha256().digest()}],
    )
