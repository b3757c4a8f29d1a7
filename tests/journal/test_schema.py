from __future__ import annotations

import re
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from valv.db.database import Database
from valv.db.engine import open_engine, read_url
from valv.db.migrate import MIGRATIONS, _config
from valv.db.schema import SCHEMA, UtcTime, metadata
from valv.errors import ConfigFault, Fault, StorageFault, UnreachableFault


def execute(url: str, statement: str) -> None:
    engine = open_engine(read_url(url), "", writes=True, pooled=False)
    with engine.begin() as connection:
        connection.execute(sa.text(statement))
    engine.dispose()


def test_the_migrations_build_exactly_the_tables(database: Database, database_url: str) -> None:
    engine = open_engine(read_url(database_url), "", writes=False, pooled=False)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
    assert database.version() == SCHEMA


def test_the_newest_revision_is_the_one_that_the_code_names() -> None:
    script = ScriptDirectory(str(MIGRATIONS))
    assert script.get_current_head() == SCHEMA
    revisions = sorted(one.revision for one in script.walk_revisions())
    assert all(re.fullmatch(r"\d{4}", revision) for revision in revisions)
    assert revisions == [f"{number:04}" for number in range(1, len(revisions) + 1)]


def test_creating_twice_and_upgrading_change_nothing(database: Database) -> None:
    with database.writing() as unit:
        unit.insert("setting", [{"name": "x", "value": 1}])
    database.create()
    database.upgrade()
    with database.reading() as unit:
        assert unit.count("setting") == 1
        assert unit.head().size == 0


def test_many_may_create_at_once(database_url: str) -> None:
    faults: list[Exception] = []

    def create() -> None:
        opened = Database(database_url)
        try:
            opened.create()
            with opened.reading() as unit:
                assert unit.head().size == 0
        except Exception as error:
            faults.append(error)
        finally:
            opened.close()

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_an_empty_database_is_no_node(database_url: str) -> None:
    opened = Database(database_url)
    for use in (lambda: opened.reading().__enter__(), lambda: opened.writing().__enter__(), opened.upgrade):
        with pytest.raises(ConfigFault, match="holds no node yet"):
            use()
    opened.close()
    if database_url.startswith("sqlite"):
        assert not Path(database_url.removeprefix("sqlite:///")).exists()


def test_a_newer_schema_is_not_touched(database: Database, database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '0999'")
    opened = Database(database_url)
    for use in (lambda: opened.reading().__enter__(), lambda: opened.writing().__enter__(), opened.create):
        with pytest.raises(ConfigFault, match="schema 0999, newer than the"):
            use()
    opened.close()


def test_an_older_schema_asks_for_the_upgrade(database: Database, database_url: str) -> None:
    execute(database_url, "UPDATE alembic_version SET version_num = '0000'")
    opened = Database(database_url)
    with pytest.raises(ConfigFault, match="valv node upgrade"), opened.reading():
        pass
    opened.close()


FILE = """INSERT INTO file (id, dataset, deposit, version, path, folded, body, header, key_id, size, cipher_size,
    segments, seal_root, sha256, sent_sha256, tree_root, state, reason, received) VALUES (:id, 'd', 'x', 1, :id, :id,
    :id, :blob, 'k', 1, 29, 1, :blob, :plain, :sent, :blob, 'verified', '', :at)"""
EVENT = """INSERT INTO journal (position, stream, version, tag, at, actor, command, data, leaf)
    VALUES (:position, 'permit/p', :position, :tag, :at, 'a', 'c', :data, :blob)"""


def test_records_of_the_first_release_are_brought_along(database_url: str) -> None:
    """Files of schema 0001, and what the ledger says of their downloads: whose data key is known outside."""
    engine = open_engine(read_url(database_url), "", writes=True, pooled=False)
    with engine.connect() as connection, connection.begin():
        command.upgrade(_config(connection), "0001")
        rows = {"plain": (b"1", b"1"), "sent": (b"1", b"2"), "early": (None, b"2"), "downloaded": (b"3", b"3")}
        at = datetime(2031, 2, 3, tzinfo=UTC)
        kinds = {"at": UtcTime(), "blob": sa.LargeBinary(), "plain": sa.LargeBinary(), "sent": sa.LargeBinary()}
        file = sa.text(FILE).bindparams(*(sa.bindparam(name, type_=kind) for name, kind in kinds.items()))
        for name, (plain, sent) in rows.items():
            connection.execute(file, {"id": name, "plain": plain, "sent": sent, "blob": b"b", "at": at})
        event = sa.text(EVENT).bindparams(
            sa.bindparam("at", type_=UtcTime()),
            *(sa.bindparam(name, type_=sa.LargeBinary()) for name in ("data", "blob")),
        )
        for position, (tag, data) in enumerate(
            [("permit.downloaded", b'{"file_id":"downloaded"}'), ("permit.issued", b'{"file_id":"plain"}')]
        ):
            connection.execute(event, {"position": position, "tag": tag, "data": data, "at": at, "blob": b"b"})
    engine.dispose()
    database = Database(database_url)
    with pytest.raises(ConfigFault, match="older than the 0003"):
        database.check()
    database.upgrade()
    with database.reading() as unit:
        found = {row["id"]: row for row in unit.rows("file")}
        assert unit.count("stale_body") == unit.count("rotation_file") == unit.count("open_body") == 0
    database.close()
    assert {name: row["known_outside"] for name, row in found.items()} == {
        "plain": False,
        "sent": True,
        "early": True,
        "downloaded": True,
    }
    assert {(row["pair"], row["rekeyed"], row["path"] == name) for name, row in found.items()} == {(1, None, True)}


@pytest.mark.parametrize(
    "url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://u@h/d", "postgresql://u@h:notaport/d"]
)
def test_urls_that_cannot_be_used(url: str) -> None:
    with pytest.raises(ConfigFault):
        Database(url)


def test_broken_sqlite_files(tmp_path: Path) -> None:
    with pytest.raises(StorageFault):
        Database(f"sqlite:///{tmp_path / 'missing' / 'valv.sqlite'}").create()
    (tmp_path / "text").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(StorageFault, match="damaged"):
        Database(f"sqlite:///{tmp_path / 'text'}").check()


def test_sqlite_keeps_its_promises(tmp_path: Path) -> None:
    opened = Database(f"sqlite:///{tmp_path / 'valv.sqlite'}")
    opened.create()
    with opened.writing() as unit:
        found = {
            name: unit.run(sa.text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    opened.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_files_beside_the_sqlite_file_have_its_mode(tmp_path: Path) -> None:
    """A group-readable database stays one: the caller sets the mode once, on the file."""
    file = tmp_path / "valv.sqlite"
    file.touch()
    file.chmod(0o660)
    opened = Database(f"sqlite:///{file}")
    opened.create()
    with opened.writing() as unit:
        unit.insert("setting", [{"name": "x", "value": 1}])
        modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
    opened.close()
    assert modes == {"valv.sqlite": 0o660, "valv.sqlite-wal": 0o660, "valv.sqlite-shm": 0o660}


def test_postgresql_with_a_password(postgres_server, postgres_url: str, tmp_path: Path) -> None:
    url = postgres_server.tcp_url(sa.make_url(postgres_url).database)
    opened = Database(url, str(postgres_server.password_file))
    opened.create()
    with opened.reading() as unit:
        assert unit.head().size == 0
    opened.close()
    password = postgres_server.password_file.read_text().strip()
    assert password not in repr(opened)
    wrong = tmp_path / "wrong"
    wrong.write_text("not the password\n")
    for file in ("", str(wrong)):
        refused = Database(url, file)
        with pytest.raises(Fault) as raised:
            refused.check()
        assert "not the password" not in str(raised.value)
    with pytest.raises(ConfigFault, match="cannot be read"):
        Database(url, str(tmp_path / "missing"))


def test_no_postgresql_there(tmp_path: Path) -> None:
    with pytest.raises(UnreachableFault):
        Database(f"postgresql://nobody@/nothing?host={tmp_path}").check()


def test_a_lost_connection_is_replaced(postgres_server, postgres_url: str) -> None:
    """PostgreSQL is restarted, or cuts connections; the next unit opens new ones."""
    database = Database(postgres_url)
    database.create()
    with database.reading() as unit:
        assert unit.head().size == 0
    with pytest.raises(UnreachableFault), database.writing() as unit:
        unit.insert("setting", [{"name": "x", "value": 1}])
        with postgres_server.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s",
                [sa.make_url(postgres_url).database],
            )
    with database.writing() as unit:
        assert unit.count("setting") == 0
        unit.insert("setting", [{"name": "x", "value": 1}])
    with database.reading() as unit:
        assert unit.count("setting") == 1
    database.close()


def test_starting_a_process_does_not_load_alembic() -> None:
    code = "import sys, valv.db.database; sys.exit('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
