"""Fuzzes one target in this process: `python -m tests.fuzz.child TARGET CORPUS SEED SECONDS`.

Ends with an error at the first finding: an exception that is no fault, an input that takes longer than 20 seconds, or
more memory than the process may have. The input lies then as a file in CORPUS's parent.
"""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path

import atheris

_MEMORY = 2 << 30
_EACH = 20
"""Seconds for one input."""
_LONGEST = 1 << 14
"""Bytes of one input."""


def main(name: str, corpus: str, seed: str, seconds: str) -> None:
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["valv"]):
        from tests.fuzz import targets

        target, seeds = targets.made(name)
    for number, one in enumerate(seeds):
        (Path(corpus) / f"seed-{number}").write_bytes(one)
        target(one)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-timeout={_EACH}",
        f"-rss_limit_mb={_MEMORY >> 20}",
        f"-max_len={_LONGEST}",
        f"-artifact_prefix={Path(corpus).parent}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, corpus], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
