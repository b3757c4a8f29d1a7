"""`valv crypt` starts at once: what it imports is measured, which other load on the machine does not change.

150 ms are about 400 modules here. Each heavy one alone would take a good part of that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"sqlalchemy", "alembic", "fastapi", "pydantic", "cedarpy", "httpx", "rich", "jinja2", "email", "asyncio"}
HELP = HEAVY | {"cryptography", "msgspec", "blake3", "secrets", "hashlib"}
PROGRAM = """
import json, sys
before = set(sys.modules)
from valv.assemble import main
sys.argv = ["valv", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code or 0
print(json.dumps([code, sorted(set(sys.modules) - before)]), file=sys.stderr)
"""


def imported(*words: object, folder: Path) -> set[str]:
    """The modules that a command imports, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder, check=True)
    code, modules = json.loads(ran.stderr.splitlines()[-1])
    assert code == 0, ran.stderr
    return set(modules)


def _hold(modules: set[str], heavy: set[str], most: int) -> None:
    assert {module.partition(".")[0] for module in modules} & heavy == set()
    assert len(modules) <= most


@pytest.mark.parametrize("words", [(), ("encrypt",), ("decrypt",), ("keygen",), ("info",)])
def test_help_imports_little(words: tuple[str, ...], tmp_path: Path) -> None:
    _hold(imported("crypt", *words, "--help", folder=tmp_path), HELP, 150)


def test_work_imports_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"ACGT")
    for words in (
        ("keygen", "me", "--no-passphrase"),
        ("encrypt", "plain", "--for", "me.pub"),
        ("info", "plain.c4gh"),
        ("decrypt", "plain.c4gh", "--secret", "me.sec", "-o", "back"),
        ("reencrypt", "plain.c4gh", "--secret", "me.sec", "--for", "me.pub", "-o", "again.c4gh"),
        ("rearrange", "plain.c4gh", "--secret", "me.sec", "--range", "1-3", "-o", "part.c4gh"),
    ):
        _hold(imported("crypt", *words, folder=tmp_path), HEAVY, 260)
    assert (tmp_path / "back").read_bytes() == b"ACGT"
