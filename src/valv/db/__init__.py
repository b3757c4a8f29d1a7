"""The records of the node in SQLite or PostgreSQL: journal, snapshots, plain rows, migrations, verification."""
