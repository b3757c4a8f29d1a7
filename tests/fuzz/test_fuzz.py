"""Fuzzing of every parser that reads bytes from outside: only faults come out, in bounded time and memory.

A minute over all targets, ten with `--long`. `VALV_FUZZ_SEED` repeats a run's seed. What is found is printed in hex and
kept in `found/`, where each later run tries it first.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import targets

SEED = int(os.environ.get("VALV_FUZZ_SEED", "20260701"))
SHORT, LONG = 60, 600
"""Seconds of fuzzing over all targets; each needs one or two more to start."""
FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_was_found_stays_mended(name: str) -> None:
    target, seeds = targets.made(name)
    for seed in seeds:
        target(seed)
    for case, data in targets.found(name):
        try:
            target(data)
        except Exception as error:
            raise AssertionError(f"found/{case}.hex: {error!r}") from error


@pytest.mark.timeout(LONG)
@pytest.mark.parametrize("name", targets.TARGETS)
def test_only_faults_come_out(name: str, long: bool, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("the package atheris is not installed")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    seconds = max(1, (LONG if long else SHORT) // len(targets.TARGETS))
    print(f"seed {SEED}, {seconds} s")
    command = [sys.executable, "-m", "tests.fuzz.child", name, str(corpus), str(SEED), str(seconds)]
    done = subprocess.run(
        command, cwd=targets.ROOT, capture_output=True, text=True, errors="replace", check=False, timeout=seconds + 200
    )
    kept = [keep(name, path) for path in sorted(tmp_path.iterdir()) if path != corpus]
    if done.returncode or kept:
        pytest.fail("\n".join([f"seed {SEED}", *kept, done.stdout[-2000:], done.stderr[-6000:]]), pytrace=False)
    runs = [line.split()[-1] for line in done.stderr.splitlines() if "stat::number_of_executed_units" in line]
    print(f"{name}: {runs[0] if runs else '?'} inputs")
    assert runs and int(runs[0]) > 0, done.stderr[-2000:]


def keep(name: str, path: Path) -> str:
    """Save a finding for later runs; its name and its input in hex."""
    data = path.read_bytes()
    case = f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
    (FOUND / f"{case}.hex").write_text(data.hex() + "\n")
    return f"{path.name.partition('-')[0]} found/{case}.hex {data.hex()}"
