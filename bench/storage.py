"""Everything that the storage promises: the backends, the mount, downloads, many files. Ends with 1 where a figure is
missed. `VALV_BENCH_SIZE` (1G, 4G) is the size of one large body; `VALV_BENCH_PART` (stores, mount) chooses one part."""

from __future__ import annotations

import os
import sys

from bench import mount
from bench._measure import Table
from bench._stores import stores

UNITS = {"M": 1 << 20, "G": 1 << 30}


def main() -> int:
    size = os.environ.get("VALV_BENCH_SIZE", "1G")
    part = os.environ.get("VALV_BENCH_PART", "")
    table, missed = Table(), 0
    if part in ("", "stores"):
        stores(table, int(size[:-1]) * UNITS[size[-1]])
    if part in ("", "mount"):
        missed = mount.main()
    return 1 if table.missed or missed else 0


if __name__ == "__main__":
    sys.exit(main())
