"""What a run costs beside its command: an empty run through the launcher against a bare `bwrap true`, in one run.

Prints milliseconds (median, 95th percentile) and the ratio of the medians. Start: from the request until the command
has started, with the mount (and its process) in between. Run: until the launcher has noted its end, mount and all
processes gone. Sandbox: the same command line without mount, control group and launcher.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.compute import stand

ROUNDS = 30
LIMIT = 80.0
"""A run may cost so many times a bare `bwrap true`."""


def bare() -> float:
    line = ["bwrap", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"]
    line += ["--symlink", "usr/lib64", "/lib64", "--unshare-all", "--die-with-parent", "--", "true"]
    before = time.perf_counter()
    subprocess.run(line, check=True)
    return time.perf_counter() - before


def main() -> int:
    with stand.running() as node:
        file = node("put", "set/data", os.urandom(1 << 16))

        def empty() -> tuple[float, float]:
            run_id = f"b{os.urandom(6).hex()}"
            before = time.perf_counter()
            wall = time.time()
            node("start", run_id, ("true",), (file,))
            status = node.wait(run_id)
            whole = time.perf_counter() - before
            node("compute.discard", run_id)
            if status.end != "exited" or status.started is None:
                raise AssertionError(status)
            return status.started - wall, whole

        def stopped() -> float:
            run_id = f"b{os.urandom(6).hex()}"
            node("start", run_id, ("sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 60 & done; wait"), (file,))
            node.until(run_id, lambda status: status.state == "running")
            time.sleep(0.05)
            before = time.perf_counter()
            node("compute.stop", run_id)
            taken = time.perf_counter() - before
            node("compute.discard", run_id)
            return taken

        bare()
        empty()
        bares, starts, wholes = [], [], []
        for _ in range(ROUNDS):  # in turns, so that a busy machine slows both
            bares.append(bare())
            start, whole = empty()
            starts.append(start)
            wholes.append(whole)
        stops = _several(stopped, 10)
    for name, times in (("bwrap true", bares), ("run: start", starts), ("run: whole", wholes), ("stop", stops)):
        print(f"{name:12} {_ms(statistics.median(times))} ms   p95 {_ms(sorted(times)[int(0.95 * len(times))])} ms")
    ratio = statistics.median(wholes) / statistics.median(bares)
    print(f"ratio of an empty run to a bare bwrap: {ratio:.1f} (at most {LIMIT:.0f})")
    return 0 if ratio <= LIMIT else 1


def _several(measure: Callable[[], float], count: int) -> list[float]:
    return [measure() for _ in range(count)]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:8.1f}"


if __name__ == "__main__":
    sys.exit(main())
