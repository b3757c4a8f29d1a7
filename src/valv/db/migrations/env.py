"""Alembic's entry: `valv.db.migrate` hands over the connection, in which a transaction is open."""

from alembic import context

from valv.db.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    compare_type=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
