"""The house's walls: who imports whom, who reads the environment, who looks at the clock."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "valv"
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint(folder):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(folder / "src")}
    command = [sys.executable, "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_the_contracts_are_kept():
    found = lint(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("core/permit.py", "import os", "valv.core is not allowed to import os"),
        ("formats/duo.py", "import socket", "valv.formats is not allowed to import socket"),
        ("core/run.py", "import valv.ports.compute", "valv.core is not allowed to import valv.ports"),
        ("storage/local.py", "import valv.keys.file", "valv.storage is not allowed to import valv.keys"),
        ("web/visit.py", "import valv.db.engine", "valv.web is not allowed to import valv.db"),
        ("web/visit.py", "import valv.cli", "valv.web is not allowed to import valv.cli"),
        ("errors.py", "import valv.config", "valv.errors is not allowed to import valv.config"),
    ],
)
def test_a_planted_import_is_found(copied, file, line, contract):
    path = copied / "src/valv" / file
    text = path.read_text("utf-8")
    future = "from __future__ import annotations\n"
    path.write_text(text.replace(future, f"{future}{line}\n", 1), "utf-8")
    assert line in path.read_text("utf-8")
    found = lint(copied)
    assert found.returncode == 1 and contract in found.stdout, found.stdout + found.stderr


def test_an_undeclared_folder_is_found(copied):
    folder = copied / "src/valv/helpers"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Undeclared."""\n', "utf-8")
    found = lint(copied)
    assert found.returncode == 1 and "helpers" in found.stdout + found.stderr


def calls_and_names(path):
    """`a.b` and bare names used in a file, with their lines."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}", node.lineno
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def uses(folder, wanted):
    files = sorted(folder.rglob("*.py"))
    return [
        f"{path.relative_to(SOURCE)}:{line}: {name}"
        for path in files
        for name, line in calls_and_names(path)
        if name in wanted
    ]


def test_nothing_but_the_configuration_reads_the_environment():
    found = uses(SOURCE, {"os.environ", "os.environb", "os.getenv", "os.getenvb", "os.putenv"})
    assert [use for use in found if not use.startswith("config.py:")] == []


@pytest.mark.parametrize("folder", ["core", "formats"])
def test_the_pure_floors_look_at_no_clock_and_open_nothing(folder):
    clock = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "open", "print", "input"}
    assert uses(SOURCE / folder, clock) == []


def test_the_core_draws_no_lots():
    assert uses(SOURCE / "core", {"secrets.token_bytes", "random.random", "uuid.uuid4", "os.urandom"}) == []


def test_no_room_without_a_subject():
    names = {"utils", "util", "helpers", "helper", "manager", "common", "base", "misc"}
    found = [str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if path.stem in names]
    assert found == []


def test_no_file_is_two_rooms_in_one():
    counted = {path.relative_to(SOURCE): len(path.read_text("utf-8").splitlines()) for path in SOURCE.rglob("*.py")}
    assert {str(path): lines for path, lines in counted.items() if lines > 600} == {}
