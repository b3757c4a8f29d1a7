"""Crypt4GH at the machine's limit: encryption and decryption between memory, files and pipes, on one core and on all.

`python -m bench.crypt4gh [SIZE]`, as in `512M` or `8G`; else VALV_BENCH_SIZE, else 1G. Needs twice the size in memory.

Every limit that a figure is held against is measured in the same run, in turns with the figure, so that a busy moment
of the machine hits both: `openssl speed` for the cipher, `cp` on the same memory file system for the copying. On all
cores the peers are as many of them at once, each `cp` with a file of its own: what several cores of a machine share
(memory, the processor's clock) they share too. Best of the rounds. Memory was touched before it is timed: handing out
fresh pages is the kernel's work. `openssl speed` goes over one buffer of 64 KiB again and again, which never leaves the
cache; the profile shows what that makes of the difference.

The exit code is non-zero where a figure is missed by the clock; the profile then gives the same ratios by processor
time, which tell what other processes took, and what the time went into.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from bench._measure import ROUNDS, OpenSSL, Table, memory, once, spent
from valv.cli.text import read_size, size
from valv.formats import crypt4gh
from valv.formats.crypt4gh import CIPHER_SEGMENT, NONCE, SEGMENT, cipher_size
from valv.vault import bulk
from valv.vault.endpoints import FileSink, FileSource, Memory, StreamSink, StreamSource

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


def copy_at_once(parts: list[Path]) -> None:
    """As many `cp` as there are parts."""
    for part in parts:
        part.with_suffix(".copy").unlink(missing_ok=True)
    for running in [subprocess.Popen(["cp", part, part.with_suffix(".copy")]) for part in parts]:
        if running.wait():
            raise SystemExit("cp failed")


def chain(source: Path) -> None:
    """The same bytes through the same pipes with `cat` in our place."""
    with (
        subprocess.Popen(["cat", source], stdout=subprocess.PIPE) as feeder,
        subprocess.Popen(["cat"], stdin=feeder.stdout, stdout=subprocess.PIPE) as between,
        subprocess.Popen(["cat"], stdin=between.stdout, stdout=subprocess.DEVNULL) as taker,
    ):
        for one in (feeder, between):
            assert one.stdout is not None
            one.stdout.close()
        taker.wait()


def in_memory(table: Table, count: int, counts: list[int], openssl: OpenSSL) -> None:
    plain, cipher = memory(count), memory(cipher_size(count))
    acts: dict[str, Callable[[], object]] = {"": openssl.measure}
    for workers in counts:
        acts[f"encrypt, {workers}"] = partial(_encrypt, plain, cipher, workers)
        acts[f"decrypt, {workers}"] = partial(_decrypt, cipher, plain, workers)
    acts["library, 1"] = partial(_library, plain, cipher)
    best = spent(acts, rounds(count))
    for workers in counts:
        for name in ("encrypt", "decrypt"):
            found = best[f"{name}, {workers}"]
            title = f"memory to memory, {name}, {cores_of(workers)}"
            rate = count / found.clock / 1e9
            table.row(title, f"{rate:.2f} GB/s", rate / workers / openssl.of(workers), "of openssl, per core", 0.92)
            if workers == 1:
                table.processor(title, count / found.processor / 1e9 / openssl.processor)
    table.processor(
        "the library's encrypt_into alone over the same memory",
        count / best["library, 1"].processor / 1e9 / openssl.processor,
    )


def _encrypt(plain: memoryview, cipher: memoryview, workers: int) -> None:
    bulk.encrypt(Memory(plain), Memory(cipher), KEY, workers=workers)


def _decrypt(cipher: memoryview, plain: memoryview, workers: int) -> None:
    bulk.decrypt(Memory(cipher), Memory(plain), [KEY], workers=workers)


def _library(plain: memoryview, cipher: memoryview) -> None:
    """The least that has to be done in Python: one call for each segment, and nothing besides."""
    seal, nonce, at = ChaCha20Poly1305(KEY).encrypt_into, bytes(NONCE), NONCE
    for low in range(0, len(plain), SEGMENT):
        piece = plain[low : low + SEGMENT]
        seal(nonce, piece, None, cipher[at : at + len(piece) + 16])
        at += CIPHER_SEGMENT


def cores_of(workers: int) -> str:
    return f"{workers} core{'s' * (workers > 1)}"


def rounds(count: int) -> int:
    return ROUNDS if count <= 2 << 30 else 3


def on_files(table: Table, folder: Path, count: int, counts: list[int], openssl: OpenSSL) -> None:
    plain, cipher = folder / "plain", folder / "cipher"
    cores = counts[-1]
    copying = {cores: _copying(folder, count, cores)} if cores > 1 else {}
    fill(plain, count)
    fastest = _between_files(table, folder, count, counts, openssl, copying)
    acts = {
        "chain": partial(chain, plain),
        "encrypt": partial(between_pipes, plain, cores, decrypt=False),
        "decrypt": partial(between_pipes, cipher, cores, decrypt=True),
    }
    best = spent(acts, rounds(count))
    print(f"cat | cat | cat {count / best['chain'].clock / 1e9:.2f} GB/s")
    for name in ("encrypt", "decrypt"):
        rate = count / best[name].clock / 1e9
        table.row(f"pipe to pipe, {name}", f"{rate:.2f} GB/s", rate / fastest[name], "of file to file", 0.7)
    cipher.unlink()
    ran = subprocess.run([sys.executable, "-c", PEAK, plain, cipher], capture_output=True, text=True, check=True)
    peak = int(ran.stdout) / 1024
    table.row("peak memory, file to file", f"{peak:.0f} MiB", peak, "MiB", 200, most=True)
    cipher.unlink()
    against_the_peer(table, folder, count, fastest)


def fill(path: Path, count: int) -> None:
    piece = secrets.token_bytes(1 << 20)
    with path.open("wb") as made:
        for _ in range(count >> 20):
            made.write(piece)


def _copying(folder: Path, count: int, cores: int) -> float:
    """GB/s of each of as many `cp` as there are cores, at once."""
    parts = [folder / f"part{number}" for number in range(cores)]
    for part in parts:
        fill(part, count // cores)
    took = once(lambda: copy_at_once(parts), rounds(count)).clock
    for part in parts:
        part.unlink()
        part.with_suffix(".copy").unlink()
    return count / took / 1e9 / cores


def _between_files(
    table: Table, folder: Path, count: int, counts: list[int], openssl: OpenSSL, copying: dict[int, float]
) -> dict[str, float]:
    """Also `cp` and `openssl speed` in turns with the figures; returns the best rates on all cores."""
    plain, cipher, back = folder / "plain", folder / "cipher", folder / "plain"
    acts: dict[str, Callable[[], object]] = {"": openssl.measure, "cp": partial(copy, plain, cipher)}
    for workers in counts:
        acts[f"encrypt, {workers}"] = partial(between_files, plain, cipher, workers, decrypt=False)
        acts[f"decrypt, {workers}"] = partial(between_files, cipher, back, workers, decrypt=True)
    best = spent(acts, rounds(count))
    copying[1] = count / best["cp"].clock / 1e9
    ideal = best["cp"].processor + count / 1e9 / openssl.processor
    fastest: dict[str, float] = {}
    for workers in counts:
        floor = 1 / (1 / copying[workers] + 1 / openssl.of(workers))
        limits = f"cp {copying[workers]:.2f}, openssl speed {openssl.of(workers):.2f}, floor {floor:.2f} GB/s each"
        print(f"{cores_of(workers)}: {limits}")
        for name in ("encrypt", "decrypt"):
            found = best[f"{name}, {workers}"]
            fastest[name] = rate = count / found.clock / 1e9
            title = f"file to file, {name}, {cores_of(workers)}"
            wanted = 0.90 if workers == 1 else 0.85
            table.row(title, f"{rate:.2f} GB/s", rate / workers / floor, "of the floor, per core", wanted)
            table.processor(title, ideal / found.processor)
    return fastest


def against_the_peer(table: Table, folder: Path, count: int, fastest: dict[str, float]) -> None:
    pair = crypt4gh.generate_keypair()
    plain, sealed = folder / "plain", folder / "peer"
    for name, source, target in (("encrypt", plain, sealed), ("decrypt", sealed, plain)):
        keys = (pair.private.hex(), pair.public.hex())
        command = [sys.executable, "-c", PEER, str(source), str(target), name, *keys]
        rate = count / once(partial(subprocess.run, command, check=True), 1).clock / 1e9
        ratio = fastest[name] / rate
        table.row(f"PyPI crypt4gh, {name} {rate:.2f} GB/s", f"{fastest[name]:.2f} GB/s", ratio, "times as fast", 3)
    plain.unlink()
    sealed.unlink()


def headers(table: Table) -> None:
    ours, partner = crypt4gh.generate_keypair(), crypt4gh.generate_keypair()
    header = crypt4gh.build_header(KEY, [ours.public])

    keys = crypt4gh.Keys([ours.private])

    def share(count: int) -> None:
        for _ in range(count):
            keys.reseal(header, [partner.public])

    def load_and_share(count: int) -> None:
        for _ in range(count):
            crypt4gh.reseal(header, [ours.private], [partner.public])

    found = once(lambda: share(200), 9)
    one = found.clock / 200 * 1e6
    loading = once(lambda: load_and_share(200), 9).clock / 200 * 1e6
    table.row(
        f"re-sealing one header ({loading:.0f} µs with loading its key)", f"{one:.0f} µs", one, "µs", 150, most=True
    )
    table.by_processor.append(f"re-sealing {found.processor / 200 * 1e6:.0f} µs")
    many = once(lambda: share(10_000), 1).clock
    table.row("10,000 headers for a new recipient", f"{many:.2f} s", many, "s", 3, most=True)


def start_up(table: Table) -> None:
    """With the modules compiled, as they are from the second start on."""
    valv = Path(sys.executable).with_name("valv")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        surroundings = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        surroundings["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")

        def start(*words: str) -> None:
            (folder / "made").unlink(missing_ok=True)
            command = [str(valv), "crypt", *words]
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True, cwd=folder, env=surroundings)

        (folder / "plain").write_bytes(b"ACGT")
        start("keygen", "me", "--no-passphrase", "--quiet")
        acts: dict[str, Callable[[], object]] = {
            "--help": partial(start, "--help"),
            "encrypt": partial(start, "encrypt", "plain", "--for", "me.pub", "-o", "made"),
            "": partial(subprocess.run, [sys.executable, "-c", ""], check=True),
        }
        best = spent(acts, 9)
    bare = best.pop("").clock * 1e3
    for words, found in best.items():
        took = found.clock * 1e3
        table.row(f"valv crypt {words} (Python alone {bare:.0f} ms)", f"{took:.0f} ms", took, "ms", 150, most=True)
        table.by_processor.append(f"valv crypt {words} {found.processor * 1e3:.0f} ms")


def write(path: Path, count: int, threads: int) -> None:
    """What `between_files` does less reading and cipher: so many threads share one new file."""
    path.unlink(missing_ok=True)
    piece = memoryview(bytes(bulk.BATCH * CIPHER_SEGMENT))

    def work(descriptor: int, first: int) -> None:
        for at in range(first * len(piece), count, threads * len(piece)):
            os.pwritev(descriptor, [piece], at)

    with path.open("wb", buffering=0) as made:
        running = [threading.Thread(target=work, args=(made.fileno(), number)) for number in range(threads)]
        for one in running:
            one.start()
        for one in running:
            one.join()


def profile_of_files(folder: Path, count: int, cores: int) -> None:
    """What stands beside the cipher between files. `count`: bytes."""
    plain, made = folder / "plain", folder / "made"
    fill(plain, count)
    dd = ["dd", f"if={plain}", f"of={made}", "bs=1M", "status=none"]
    acts: dict[str, Callable[[], object]] = {
        "cp, which copies once, inside the kernel": partial(copy, plain, made),
        "dd, which like us copies twice, to look at the bytes": partial(subprocess.run, dd, check=True),
        "writing alone, 1 core": partial(write, made, count, 1),
        f"writing alone, {cores_of(cores)}, whose turns the kernel's lock on the file gives": partial(
            write, made, count, cores
        ),
    }
    best = spent(acts)
    print("\nprofile, µs for a segment of 64 KiB between files, by the clock / by processor time:")
    for name, found in best.items():
        each = 1e6 * SEGMENT / count
        print(f"  {found.clock * each:6.1f} /{found.processor * each:6.1f}  {name}")
    plain.unlink()
    made.unlink()


def profile(limit: float) -> None:
    """What a segment's time goes into: the call, the cipher, and the memory that no cache holds."""
    seal = ChaCha20Poly1305(KEY).encrypt_into
    times = []
    for count in (16, SEGMENT):
        plain, room = memoryview(bytearray(count)), memoryview(bytearray(count + 16))

        def work(plain: memoryview = plain, room: memoryview = room, nonce: bytes = bytes(NONCE)) -> None:
            for _ in range(5000):
                seal(nonce, plain, None, room)

        times.append(once(work, 9).processor / 5000 * 1e6)
    call, hot = times
    plain, room = memory(256 << 20), memory(cipher_size(256 << 20))
    cold = once(partial(_library, plain, room)).processor / (len(plain) / SEGMENT) * 1e6
    ideal = SEGMENT / limit / 1e3
    print("\nprofile, µs for a segment of 64 KiB by processor time:")
    print(f"  {ideal:6.1f}  openssl speed, one buffer that stays in the cache")
    print(
        f"  {hot:6.1f}  encrypt_into, the same: {ideal / hot:.2f} of openssl; {call:.1f} of it sets up the cipher anew"
    )
    print(f"  {cold:6.1f}  encrypt_into, from and to memory that no cache holds: {ideal / cold:.2f} of openssl")
    print(f"other processes take their share of what is timed by the clock: load {os.getloadavg()[0]:.1f}")


def fits(count: int) -> bool:
    """Whether there is memory for the plain and the encrypted bytes at the same time."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    return free > 2 * count + (1 << 30)


def main() -> int:
    words = sys.argv[1:]
    count = read_size(words[0] if words else os.environ.get("VALV_BENCH_SIZE", "1G")) >> 20 << 20
    if not fits(count):
        print(f"{size(count)} need twice that in free memory", file=sys.stderr)
        return 1
    cores, table = bulk.cores(), Table()
    counts = list(dict.fromkeys((1, cores)))
    openssl = OpenSSL(cores)
    openssl.measure()
    print(f"{size(count)}, {cores} cores, openssl speed {openssl.one:.2f} GB/s on one, load {os.getloadavg()[0]:.1f}")
    in_memory(table, count, counts, openssl)
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        on_files(table, Path(folder), count, counts, openssl)
        headers(table)
        start_up(table)
        if table.missed:
            print("\nby processor time: " + "; ".join(table.by_processor))
            profile(openssl.processor)
            profile_of_files(Path(folder), min(count, 1 << 29), cores)
    if table.missed:
        print("\nmissed: " + "; ".join(table.missed))
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
