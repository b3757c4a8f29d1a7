"""Key pairs of files, and what a rotation keeps while it goes on."""

import json

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
INT = sa.BigInteger()
BOOL = sa.Boolean()
TIME = sa.DateTime(timezone=True)
BATCH = 500


def upgrade() -> None:
    op.add_column("file", sa.Column("pair", INT, nullable=False, server_default=sa.text("1")))
    op.add_column("file", sa.Column("known_outside", BOOL, nullable=False, server_default=sa.true()))
    op.add_column("file", sa.Column("rekeyed", TIME, nullable=True))
    op.create_index(op.f("ix_file_key_id_pair_id"), "file", ["key_id", "pair", "id"], unique=False)
    _mark_data_keys()
    op.create_table(
        "rotation_file",
        sa.Column("rotation", TEXT, autoincrement=False, nullable=False),
        sa.Column("file", TEXT, autoincrement=False, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("fault", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("rotation", "file", name=op.f("pk_rotation_file")),
    )
    op.create_table(
        "stale_body",
        sa.Column("body", TEXT, autoincrement=False, nullable=False),
        sa.Column("dataset", TEXT, nullable=False),
        sa.Column("file", TEXT, nullable=False),
        sa.Column("since", TIME, nullable=False),
        sa.PrimaryKeyConstraint("body", name=op.f("pk_stale_body")),
    )
    op.create_table(
        "open_body",
        sa.Column("id", TEXT, autoincrement=False, nullable=False),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("seen", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_open_body")),
    )
    op.create_index(op.f("ix_open_body_body"), "open_body", ["body"], unique=False)


def _mark_data_keys() -> None:
    """The data key of a file that came plain is the node's own, unless the file was downloaded since."""
    file = sa.table(
        "file",
        sa.column("id", TEXT),
        sa.column("sha256", sa.LargeBinary()),
        sa.column("sent_sha256", sa.LargeBinary()),
        sa.column("known_outside", BOOL),
    )
    journal = sa.table("journal", sa.column("tag", TEXT), sa.column("data", sa.LargeBinary()))
    database = op.get_bind()
    database.execute(sa.update(file).where(file.c.sha256 == file.c.sent_sha256).values(known_outside=False))
    told = database.execute(sa.select(journal.c.data).where(journal.c.tag == "permit.downloaded")).scalars()
    downloaded = sorted({json.loads(data)["file_id"] for data in told})
    for start in range(0, len(downloaded), BATCH):
        chosen = downloaded[start : start + BATCH]
        database.execute(sa.update(file).where(file.c.id.in_(chosen)).values(known_outside=True))
