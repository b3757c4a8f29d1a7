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
