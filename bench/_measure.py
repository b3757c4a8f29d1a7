"""What the benchmarks of encryption share: rounds in turns, the measured limit of the cipher, and the table."""

from __future__ import annotations

import mmap
import resource
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from valv.formats.crypt4gh import SEGMENT

ROUNDS = 5


@dataclass
class Table:
    """The figures, and which of them are missed."""

    missed: list[str] = field(default_factory=list)
    by_processor: list[str] = field(default_factory=list)

    def row(self, name: str, value: str, ratio: float, limit: str, wanted: float, *, most: bool = False) -> None:
        """`ratio` to be at least `wanted`, or at most where `most`."""
        good = ratio <= wanted if most else ratio >= wanted
        sign = "≤" if most else "≥"
        print(
            f"{name:<48}{value:>12}{ratio:>9.2f} {limit:<26}{sign} {wanted:<7.3g}{'' if good else 'missed'}", flush=True
        )
        if not good:
            self.missed.append(name)

    def processor(self, name: str, ratio: float) -> None:
        self.by_processor.append(f"{name} {ratio:.2f}")


@dataclass(frozen=True)
class Spent:
    """The best of several rounds, in seconds: by the clock, and by processor time of this process and of those that it
    waited for."""

    clock: float
    processor: float


def spent(acts: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, Spent]:
    """The acts take turns."""
    best = {name: Spent(float("inf"), float("inf")) for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            began, used = time.perf_counter(), _processor()
            act()
            took, used = time.perf_counter() - began, _processor() - used
            best[name] = Spent(min(best[name].clock, took), min(best[name].processor, used))
    return best


def once(act: Callable[[], object], rounds: int = ROUNDS) -> Spent:
    return spent({"": act}, rounds)[""]


def _processor() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


class OpenSSL:
    """What `openssl speed` measured so far, in GB/s per core: the best on one core by processor time, the best on one
    core by the clock, and the best on all cores at once by the clock."""

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self.processor = self.one = self.all = 0.0

    def measure(self) -> None:
        self.processor = max(self.processor, self._speed())
        self.one = max(self.one, self._speed("-elapsed"))
        if self._cores > 1:
            self.all = max(self.all, self._speed("-elapsed", "-multi", str(self._cores)) / self._cores)
        else:
            self.all = self.one

    def of(self, workers: int) -> float:
        return self.one if workers == 1 else self.all

    def _speed(self, *how: str) -> float:
        command = ["openssl", "speed", "-evp", "chacha20-poly1305", "-bytes", str(SEGMENT), "-seconds", "1", *how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1].removesuffix("k")) / 1e6


def memory(count: int) -> memoryview:
    """Memory that is there, in large pages where the system has them."""
    made = mmap.mmap(-1, max(1, count))
    made.madvise(mmap.MADV_HUGEPAGE)
    view = memoryview(made)
    for at in range(0, count, mmap.PAGESIZE):
        view[at] = at >> 12 & 255
    return view
