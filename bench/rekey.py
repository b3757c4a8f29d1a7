"""Re-encryption of stored bodies against encryption, on a memory file system, everything in one run.

`python -m bench.rekey [SIZE]`, as in `512M` or `8G`; else VALV_BENCH_SIZE, else 1G. The works take turns, and the best
of the rounds counts, which other load on the machine disturbs least; the same ratios by processor time tell what such
load took. Intake: plain bytes from a file into the store,
with their digest, seal and hash tree; 0.7 of its speed is wanted, also where the old body is held against its hash
tree, as that of a file that came encrypted is. Bulk: plain bytes from file to file, without any of these. Growth: time
against that of eight files of an eighth of the size. Small files: 2,000 of 16 KiB, taken in and encrypted anew file by
file, headers re-sealed in the same process; the same through the launcher and the key holder, with the start of the
processes, on the disk.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.compute import stand
from valv.cli.text import read_size, size
from valv.errors import Fault
from valv.formats import crypt4gh
from valv.formats.crypt4gh import KeyPair, generate_keypair
from valv.formats.seal import sidecar
from valv.ports.compute import MOST_REKEYED, MountedFile
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault import bulk
from valv.vault.encrypt import Encryptor
from valv.vault.endpoints import FileSink, FileSource
from valv.vault.rekey import rekey, rekey_each

ROUNDS = 5
SMALL = 16 << 10
SMALLS = 2000
PARTS = 8
PIECE = 4 << 20
WANTED = 0.7
MOST_GROWTH = 1.2
MOST_MEMORY = 64
PEAK = """
import sys
from pathlib import Path
import msgspec
from valv.ports.compute import MountedFile
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.rekey import rekey
file, private, public = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[MountedFile, bytes, bytes])
rekey(LocalStorage(Path(sys.argv[1]), Place("", "")), file, file.header, private, public_key=public, body="new")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@dataclass
class Ground:
    """A store in `folder`, and beside it a file of `count` plain bytes."""

    folder: Path
    count: int
    keys: KeyPair

    @property
    def store(self) -> LocalStorage:
        return LocalStorage(self.folder / "store", Place("SE", "bench"))

    def write(self) -> None:
        piece = secrets.token_bytes(PIECE)
        with (self.folder / "plain").open("wb") as made:
            for _ in range(self.count // PIECE):
                made.write(piece)

    def take_in(self, name: str, count: int | None = None) -> MountedFile:
        """Encrypt the first `count` bytes of the file into the store."""
        encryptor = Encryptor(self.store.writer(name), self.store.writer(sidecar(name)), self.keys.public)
        left = self.count if count is None else count
        buffer = memoryview(bytearray(min(PIECE, left)))
        with (self.folder / "plain").open("rb", buffering=0) as plain:
            while left and (found := plain.readinto(buffer[: min(PIECE, left)])):
                encryptor.write(buffer[:found])
                left -= found
        made = encryptor.finish()
        return MountedFile("f", "set/f", name, made.header, "k", made.size, made.seal_root, made.tree_root)

    def bulk(self) -> None:
        with (self.folder / "plain").open("rb", buffering=0) as plain, (self.folder / "cipher").open("wb") as made:
            bulk.encrypt(FileSource(plain.fileno()), FileSink(made.fileno()), bytes(32))

    def rekey(self, file: MountedFile, times: int = 1) -> None:
        for _ in range(times):
            self.clear()
            rekey(self.store, file, file.header, self.keys.private, public_key=self.keys.public, body="new")

    def take_in_small(self, prefix: str) -> list[MountedFile]:
        return [self.take_in(f"{prefix}-{number}", SMALL) for number in range(SMALLS)]

    def rekey_small(self, files: list[MountedFile]) -> None:
        def reseal(file: MountedFile, public: bytes) -> bytes:
            return crypt4gh.reseal(file.header, [self.keys.private], [public])

        for batch in batches(files):
            named = [(file, f"new-{file.body}") for file in batch]
            answers = rekey_each(self.store, named, reseal, public_key=self.keys.public)
            if any(isinstance(made, Fault) for made in answers):
                raise SystemExit("a file was not encrypted anew")

    def peak(self, file: MountedFile) -> int:
        """MiB of a whole process that rekeys this file."""
        given = msgspec.json.encode((file, self.keys.private, self.keys.public))
        ran = subprocess.run(
            [sys.executable, "-c", PEAK, self.folder / "store"], input=given, capture_output=True, check=True
        )
        self.clear()
        return int(ran.stdout) >> 10

    def clear(self) -> None:
        """Remove what a round made."""
        (self.folder / "cipher").unlink(missing_ok=True)
        for name in list(self.store.names()):
            if name.startswith(("new", "taken")):
                self.store.delete(name)


class Taken:
    """Seconds of one work, by the clock and of processor time: the least of the rounds."""

    def __init__(self) -> None:
        self.clock = self.processor = float("inf")

    def measure(self, work: Callable[[], object]) -> None:
        began = time.perf_counter(), time.process_time()
        work()
        self.clock = min(self.clock, time.perf_counter() - began[0])
        self.processor = min(self.processor, time.process_time() - began[1])


def best(ground: Ground, *works: Callable[[], object]) -> list[Taken]:
    taken = [Taken() for _ in works]
    for _ in range(ROUNDS):
        for one, work in zip(taken, works, strict=True):
            one.measure(work)
            ground.clear()
    return taken


def batches(files: list[MountedFile]) -> list[list[MountedFile]]:
    return [files[at : at + MOST_REKEYED] for at in range(0, len(files), MOST_REKEYED)]


def launched() -> float:
    """Seconds from asking the launcher for the first of the small files until the new bodies of all are there."""
    with stand.running() as node:
        file, public = node("put", "set/x", bytes(SMALL)), generate_keypair().public
        began = time.perf_counter()
        for turn, batch in enumerate(batches([file] * SMALLS)):
            token, uid = node("reader.reserve")
            node("keyd.grant", f"rekey-{turn}", [file.key_id], uid, 60.0)
            named = [(one, f"new-{turn}-{number}") for number, one in enumerate(batch)]
            if any(isinstance(made, Fault) for made in node("rekey_all", token, f"rekey-{turn}", named, public)):
                raise SystemExit("a file was not encrypted anew")
        return time.perf_counter() - began


def main() -> int:
    words = sys.argv[1:]
    wanted = read_size(words[0] if words else os.environ.get("VALV_BENCH_SIZE", "1G"))
    part = max(1, wanted // PARTS // PIECE) * PIECE
    count = PARTS * part
    print(f"{size(count)}, {bulk.cores()} cores, load {os.getloadavg()[0]:.1f}\n")
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        ground = Ground(Path(folder), count, generate_keypair())
        ground.write()
        held, held_part = ground.take_in("old"), ground.take_in("part", part)
        unheld = msgspec.structs.replace(held, tree_root=b"")
        intake, files, sealed, treed, short = best(
            ground,
            lambda: ground.take_in("taken"),
            ground.bulk,
            lambda: ground.rekey(unheld),
            lambda: ground.rekey(held),
            lambda: ground.rekey(held_part, PARTS),
        )
        smalls = ground.take_in_small("small")
        taken_in, anew = best(ground, lambda: ground.take_in_small("taken"), lambda: ground.rekey_small(smalls))
        peaks = [ground.peak(held_part), ground.peak(held)]
    print(f"{'':36}{'GB/s':>6}{'of intake':>12}{'of file to file':>18}{'by processor time':>20}")
    for name, one in (("encryption at intake", intake), ("encryption from file to file", files)):
        print(f"{name:36}{count / one.clock / 1e9:6.2f}")
    for name, one in (("rekey, held against the seal", sealed), ("… and against the hash tree", treed)):
        by_processor = f"{intake.processor / one.processor:.2f} / {files.processor / one.processor:.2f}"
        ratios = f"{intake.clock / one.clock:12.2f}{files.clock / one.clock:18.2f}{by_processor:>20}"
        print(f"{name:36}{count / one.clock / 1e9:6.2f}{ratios}")
    growth = treed.clock / short.clock
    print(f"\ntime for {size(count)} / {PARTS} times {size(part)}: {growth:.2f} (at most {MOST_GROWTH})")
    print(f"peak memory, {size(part)} / {size(count)}: {peaks[0]} / {peaks[1]} MiB (at most {MOST_MEMORY})")
    of_small = taken_in.clock / anew.clock
    print(
        f"{SMALLS} files of {size(SMALL)}, each: intake {taken_in.clock / SMALLS * 1e3:.2f} ms, "
        f"rekey {anew.clock / SMALLS * 1e3:.2f} ms; {of_small:.2f} of intake, "
        f"by processor time {taken_in.processor / anew.processor:.2f}"
    )
    print(f"the same through the launcher and the key holder: {launched() / SMALLS * 1e3:.1f} ms")
    slowest = intake.clock / max(sealed.clock, treed.clock)
    print(f"rekey / encryption at intake: {slowest:.2f} (wanted {WANTED})")
    return 1 if slowest < WANTED or growth > MOST_GROWTH or max(peaks) > MOST_MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
