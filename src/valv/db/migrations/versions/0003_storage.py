"""Copies of bodies in several stores, and what intake, backup and withdrawal keep while they go on."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
INT = sa.BigInteger()
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("dataset", sa.Column("placement", TEXT, nullable=False, server_default=sa.text("''")))
    op.create_table(
        "copy",
        sa.Column("body", TEXT, autoincrement=False, nullable=False),
        sa.Column("store", TEXT, autoincrement=False, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("size", INT, nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.Column("checked", TIME, nullable=True),
        sa.Column("fault", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("body", "store", name=op.f("pk_copy")),
    )
    op.create_index(op.f("ix_copy_store_state_checked"), "copy", ["store", "state", "checked"], unique=False)
    op.create_table(
        "placing",
        sa.Column("body", TEXT, autoincrement=False, nullable=False),
        sa.Column("source", TEXT, nullable=False),
        sa.Column("file", TEXT, nullable=False),
        sa.Column("dataset", TEXT, nullable=False),
        sa.Column("due", TIME, nullable=False),
        sa.Column("tries", INT, nullable=False),
        sa.Column("fault", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("body", name=op.f("pk_placing")),
    )
    op.create_index(op.f("ix_placing_dataset"), "placing", ["dataset"], unique=False)
    op.create_index(op.f("ix_placing_due"), "placing", ["due"], unique=False)
    op.create_table(
        "upload",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("deposit", TEXT, nullable=False),
        sa.Column("path", TEXT, nullable=False),
        sa.Column("folded", TEXT, nullable=False),
        sa.Column("length", INT, nullable=False),
        sa.Column("offset", INT, nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=True),
        sa.Column("metadata", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("created", TIME, nullable=False),
        sa.Column("expires", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
        sa.UniqueConstraint("deposit", "folded", name=op.f("uq_upload_deposit_folded")),
    )
    op.create_index(op.f("ix_upload_state_created"), "upload", ["state", "created"], unique=False)
    op.create_table(
        "upload_part",
        sa.Column("body", TEXT, autoincrement=False, nullable=False),
        sa.Column("upload", TEXT, nullable=False),
        sa.Column("number", INT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("size", INT, nullable=False),
        sa.Column("header", sa.LargeBinary(), nullable=False),
        sa.Column("seal_root", sa.LargeBinary(), nullable=False),
        sa.Column("tree_root", sa.LargeBinary(), nullable=False),
        sa.Column("seen", TIME, nullable=False),
        sa.PrimaryKeyConstraint("body", name=op.f("pk_upload_part")),
    )
    op.create_index(op.f("ix_upload_part_upload"), "upload_part", ["upload"], unique=False)
    op.create_index(op.f("ix_upload_part_state"), "upload_part", ["state"], unique=False)
    op.create_table(
        "withdrawal_file",
        sa.Column("withdrawal", TEXT, autoincrement=False, nullable=False),
        sa.Column("file", TEXT, autoincrement=False, nullable=False),
        sa.Column("work", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("made", TEXT, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("base", TEXT, nullable=False),
        sa.Column("why", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("withdrawal", "file", name=op.f("pk_withdrawal_file")),
    )
    op.create_index(
        op.f("ix_withdrawal_file_withdrawal_state"), "withdrawal_file", ["withdrawal", "state"], unique=False
    )
    op.create_table(
        "destroyed_copy",
        sa.Column("body", TEXT, autoincrement=False, nullable=False),
        sa.Column("store", TEXT, autoincrement=False, nullable=False),
        sa.Column("key_id", TEXT, nullable=False),
        sa.Column("file", TEXT, nullable=False),
        sa.Column("size", INT, nullable=False),
        sa.Column("gone", TIME, nullable=True),
        sa.PrimaryKeyConstraint("body", "store", name=op.f("pk_destroyed_copy")),
    )
    op.create_index(op.f("ix_destroyed_copy_key_id"), "destroyed_copy", ["key_id"], unique=False)
