"""Crypt4GH at the machine's limit: encryption and decryption between memory, files and pipes, on one core and on all.

`python -m bench.crypt4gh [SIZE]`, as in `512M` or `8G`; else VALV_BENCH_SIZE, else 1G. Every limit that a figure is
held against is measured in the same run: `openssl speed` for the cipher, `cp` on the same memory file system for the
copying. Best of the rounds, which other load on the machine disturbs least; limits are taken by the clock as well as by
processor time. The exit code is non-zero where a figure is missed by the clock; the profile then gives the same ratios
by processor time, which tell what other processes took, and what the time went into.
"""

from __future__ import annotations

import mmap
import os
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.cli.text import read_size, size
from valv.formats import crypt4gh
from valv.formats.crypt4gh import NONCE, SEGMENT, cipher_size
from valv.vault import bulk
from valv.vault.endpoints import FileSink, FileSource, Memory, StreamSink, StreamSource

ROUNDS = 3
KEY = bytes(range(32))
PEAK = """
import sys
from valv.vault import bulk
from valv.vault.endpoints import sink_of, source_of
with open(sys.argv[1], "rb", buffering=0) as source, open(sys.argv[2], "wb") as made:
    bulk.encrypt(source_of(source), sink_of(made), bytes(32))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
PEER = """
import sys
from crypt4gh import lib
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as made:
    getattr(lib, sys.argv[3])([(0, bytes.fromhex(sys.argv[4]), bytes.fromhex(sys.argv[5]))], source, made)
"""


@dataclass
class Table:
    """The figures, and which of them are missed. `processor_limit`: GB/s of the cipher by processor time."""

    processor_limit: float
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


def seconds(act: Callable[[], object], rounds: int = ROUNDS) -> float:
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        act()
        best = min(best, time.perf_counter() - began)
    return best


def processor_seconds(act: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Of this process and of those that it waited for."""
    best = float("inf")
    for _ in range(rounds):
        began = _processor()
        act()
        best = min(best, _processor() - began)
    return best


def _processor() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def openssl(*, clock: bool) -> float:
    """GB/s of the cipher on one core, as OpenSSL's own measurement has it; by the clock, or by processor time."""
    command = ["openssl", "speed", "-evp", "chacha20-poly1305", "-bytes", str(SEGMENT), "-seconds", "1"]
    command += ["-elapsed"] * clock
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


def between_files(source: Path, target: Path, workers: int, *, decrypt: bool) -> None:
    target.unlink(missing_ok=True)
    with source.open("rb", buffering=0) as read, target.open("wb", buffering=0) as made:
        start, end = FileSource(read.fileno()), FileSink(made.fileno())
        if decrypt:
            bulk.decrypt(start, end, [KEY], workers=workers)
        else:
            bulk.encrypt(start, end, KEY, workers=workers)


def between_pipes(source: Path, workers: int, *, decrypt: bool) -> None:
    with (
        subprocess.Popen(["cat", source], stdout=subprocess.PIPE) as feeder,
        subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as taker,
    ):
        assert feeder.stdout is not None and taker.stdin is not None
        start, end = StreamSource(feeder.stdout.fileno()), StreamSink(taker.stdin.fileno())
        if decrypt:
            bulk.decrypt(start, end, [KEY], workers=workers)
        else:
            bulk.encrypt(start, end, KEY, workers=workers)
        taker.stdin.close()


def copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    subprocess.run(["cp", source, target], check=True)


def in_memory(table: Table, count: int, cores: int, limit: float) -> None:
    plain, cipher = memory(count), memory(cipher_size(count))
    for workers in dict.fromkeys((1, cores)):
        for name, act in (
            ("encrypt", lambda: bulk.encrypt(Memory(plain), Memory(cipher), KEY, workers=workers)),  # noqa: B023
            ("decrypt", lambda: bulk.decrypt(Memory(cipher), Memory(plain), [KEY], workers=workers)),  # noqa: B023
        ):
            rate = count / seconds(act) / 1e9
            title = f"memory to memory, {name}, {workers} core{'s' * (workers > 1)}"
            table.row(title, f"{rate:.2f} GB/s", rate / workers / limit, "of openssl, per core", 0.92)
            if workers == 1:
                table.processor(title, count / processor_seconds(act) / 1e9 / table.processor_limit)


def on_files(table: Table, folder: Path, count: int, cores: int, limit: float) -> None:
    plain, cipher, back = folder / "plain", folder / "cipher", folder / "back"
    piece = secrets.token_bytes(1 << 20)
    with plain.open("wb") as made:
        for _ in range(count >> 20):
            made.write(piece)
    copying = count / seconds(lambda: copy(plain, back)) / 1e9
    floor = 1 / (1 / copying + 1 / limit)
    ideal = processor_seconds(lambda: copy(plain, back)) + count / 1e9 / table.processor_limit
    print(f"cp {copying:.2f} GB/s; the floor that cp and cipher set together {floor:.2f} GB/s")
    fastest: dict[str, float] = {}
    for workers in dict.fromkeys((1, cores)):
        for name, source, target in (("encrypt", plain, cipher), ("decrypt", cipher, back)):
            act = partial(between_files, source, target, workers, decrypt=name == "decrypt")
            best = seconds(act)
            fastest[name] = rate = count / best / 1e9
            title = f"file to file, {name}, {workers} core{'s' * (workers > 1)}"
            table.row(
                title,
                f"{rate:.2f} GB/s",
                rate / workers / floor,
                "of the floor, per core",
                0.90 if workers == 1 else 0.85,
            )
            if workers == 1:
                table.processor(title, ideal / processor_seconds(act))
    for name, source in (("encrypt", plain), ("decrypt", cipher)):
        best = seconds(lambda: between_pipes(source, cores, decrypt=name == "decrypt"))  # noqa: B023
        rate = count / best / 1e9
        table.row(f"pipe to pipe, {name}", f"{rate:.2f} GB/s", rate / fastest[name], "of file to file", 0.7)
    against_the_peer(table, folder, count, fastest)
    ran = subprocess.run([sys.executable, "-c", PEAK, plain, cipher], capture_output=True, text=True, check=True)
    peak = int(ran.stdout) / 1024
    table.row("peak memory, file to file", f"{peak:.0f} MiB", peak, "MiB", 200, most=True)


def against_the_peer(table: Table, folder: Path, count: int, fastest: dict[str, float]) -> None:
    pair = crypt4gh.generate_keypair()
    plain, sealed, back = folder / "plain", folder / "peer", folder / "back"
    back.unlink(missing_ok=True)
    for name, source, target in (("encrypt", plain, sealed), ("decrypt", sealed, back)):
        keys = (pair.private.hex(), pair.public.hex())
        command = [sys.executable, "-c", PEER, str(source), str(target), name, *keys]
        rate = count / seconds(lambda: subprocess.run(command, check=True), 1) / 1e9  # noqa: B023
        ratio = fastest[name] / rate
        table.row(f"PyPI crypt4gh, {name} {rate:.2f} GB/s", f"{fastest[name]:.2f} GB/s", ratio, "times as fast", 3)
    sealed.unlink()


def headers(table: Table) -> None:
    ours, partner = crypt4gh.generate_keypair(), crypt4gh.generate_keypair()
    header = crypt4gh.build_header(KEY, [ours.public])

    def share(count: int) -> None:
        for _ in range(count):
            crypt4gh.reseal(header, [ours.private], [partner.public])

    one = seconds(lambda: share(200), 5) / 200 * 1e6
    table.row("re-sealing one header", f"{one:.0f} µs", one, "µs", 150, most=True)
    table.by_processor.append(f"re-sealing {processor_seconds(lambda: share(200), 5) / 200 * 1e6:.0f} µs")
    many = seconds(lambda: share(10_000), 1)
    table.row("10,000 headers for a new recipient", f"{many:.2f} s", many, "s", 3, most=True)


def start_up(table: Table) -> None:
    valv = Path(sys.executable).with_name("valv")
    took = seconds(lambda: subprocess.run([valv, "crypt", "--help"], stdout=subprocess.DEVNULL, check=True), 7) * 1e3
    used = processor_seconds(
        lambda: subprocess.run([valv, "crypt", "--help"], stdout=subprocess.DEVNULL, check=True), 7
    )
    table.by_processor.append(f"valv crypt --help {used * 1e3:.0f} ms")
    bare = seconds(lambda: subprocess.run([sys.executable, "-c", ""], check=True), 7) * 1e3
    table.row(f"valv crypt --help (Python alone {bare:.0f} ms)", f"{took:.0f} ms", took, "ms", 150, most=True)


def profile(limit: float) -> None:
    """What a segment's time goes into, cipher and interpreter apart."""
    seal = ChaCha20Poly1305(KEY).encrypt_into
    parts = []
    for count in (16, SEGMENT):
        plain, room = memoryview(bytearray(count)), memoryview(bytearray(count + 16))
        rounds = 5000

        def work(rounds: int = rounds, plain: memoryview = plain, room: memoryview = room) -> None:
            for _ in range(rounds):
                seal(bytes(NONCE), plain, None, room)

        parts.append(processor_seconds(work, 9) / rounds * 1e6)
    call, whole = parts
    ideal = SEGMENT / limit / 1e3
    print(
        f"\nprofile: a segment of 64 KiB takes {ideal:.1f} µs in openssl speed, {whole:.1f} µs by encrypt_into with "
        f"everything in the cache\n({ideal / whole:.2f} of openssl, the most that this library gives), of which a call "
        f"with 16 bytes is {call:.1f} µs: set-up of the cipher,\nnot its work. What a figure misses beyond that is "
        "memory: the bytes come from and go to memory that no cache holds,\nand other processes on these cores take "
        f"their share (load {os.getloadavg()[0]:.1f})."
    )


def main() -> int:
    words = sys.argv[1:]
    count = read_size(words[0] if words else os.environ.get("VALV_BENCH_SIZE", "1G")) >> 20 << 20
    cores, table = bulk.cores(), Table(max(openssl(clock=False) for _ in range(ROUNDS)))
    limit = max(openssl(clock=True) for _ in range(ROUNDS))
    print(f"{size(count)}, {cores} cores, openssl speed {limit:.2f} GB/s per core, load {os.getloadavg()[0]:.1f}")
    in_memory(table, count, cores, limit)
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        on_files(table, Path(folder), count, cores, limit)
    headers(table)
    start_up(table)
    if table.missed:
        print("\nby processor time: " + "; ".join(table.by_processor))
        profile(table.processor_limit)
        print("\nmissed: " + "; ".join(table.missed))
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
