"""The type checker names a command or event that `decide` or `evolve` forgot."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "case"), [("access", "case Withdraw():"), ("permit", "case GiveBack():"), ("run", "case Read():")]
)
def test_a_forgotten_case_does_not_type_check(tmp_path, module, case):
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    path = tmp_path / f"src/valv/core/{module}.py"
    text = path.read_text("utf-8")
    without = re.sub(rf"^ +{re.escape(case)}\n(?: {{12,}}.*\n)+", "", text, count=1, flags=re.MULTILINE)
    assert without != text
    path.write_text(without, "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", str(path.relative_to(tmp_path))]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "assert_never" in found.stdout or "exhaustive" in found.stdout
