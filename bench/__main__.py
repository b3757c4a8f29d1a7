"""`python -m bench [NAME …]`: run benchmarks, all of them where none is named."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from pathlib import Path


def names() -> list[str]:
    """The benchmarks that there are."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def main(wanted: list[str]) -> int:
    """Each in a process of its own, so that none finds another's caches and threads. The exit code is non-zero where
    one failed or missed its figure."""
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names())}", file=sys.stderr)
        return 64
    print(f"{datetime.date.today()}, {_machine()}")
    failed = []
    for name in wanted or names():
        print(f"\n## {name}\n", flush=True)
        if subprocess.run([sys.executable, "-c", f"import sys, bench.{name} as b; sys.exit(b.main())"]).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (
        f"{len(models)} × {models[0] if models else platform.machine()}, Linux {platform.release().partition('-')[0]}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
