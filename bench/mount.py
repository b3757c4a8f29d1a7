"""Reading through the decrypting mount, against gocryptfs and crypt4ghfs over the same content, the same bytes plain in
memory, and the reader without a mount. Ends with 1 where a figure is missed.

Needs root and /dev/fuse. Size in MiB by `--size`. Each round mounts anew, so that caches are cold; the file systems
take turns.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import msgspec

from bench._measure import Table
from bench._mount_peers import Crypt4ghfs, Gocryptfs, Mounted, processor
from valv.errors import ComputeFault
from valv.formats.crypt4gh import generate_keypair, reseal
from valv.formats.seal import sidecar
from valv.ports.compute import MountedFile
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor
from valv.vault.fuse_mount import mount, unmount
from valv.vault.mount import MountServer
from valv.vault.reader import open_reader

ROUNDS = 3
PIECE = 1 << 20
PLAIN, OURS = "plain files in memory", "the mount"


class Setting(msgspec.Struct):
    """What the serving process gets."""

    store: str
    files: list[MountedFile]
    private_key: bytes
    threads: int


def serve(setting_path: str, fd: int) -> None:
    setting = msgspec.json.decode(Path(setting_path).read_bytes(), type=Setting)
    store = LocalStorage(Path(setting.store), Place("SE", "bench"))
    MountServer(
        fd,
        setting.files,
        open_body=store.open,
        open_header=lambda file, public: reseal(file.header, [setting.private_key], [public]),
        beat=lambda _: True,
        threads=setting.threads,
    ).run()


@contextmanager
def mounted(folder: Path, setting: Setting) -> Iterator[Mounted]:
    target = folder / "mnt"
    target.mkdir(exist_ok=True)
    (folder / "setting.json").write_bytes(msgspec.json.encode(setting))
    fd = mount(target, owner_uid=os.getuid())
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.mount", "--serve", str(folder / "setting.json"), str(fd)], pass_fds=[fd]
    )
    os.close(fd)
    try:
        yield Mounted([target / file.path for file in setting.files], child.pid)
    finally:
        unmount(target)
        child.wait(20)


def read_through(paths: list[Path]) -> float:
    """Seconds for `dd` to read all of `paths` at the same time."""
    began = time.perf_counter()
    readers = [subprocess.Popen(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]) for path in paths]
    if any(reader.wait() for reader in readers):
        raise SystemExit("dd failed")
    return time.perf_counter() - began


def at_random(path: Path, size: int) -> tuple[float, float]:
    """p50 and p99 in µs of 64 KiB reads at random places, each read once."""
    draw = random.Random(1)
    places = draw.sample(range(size // 65536), min(1500, size // 65536))
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    times = []
    for place in places:
        began = time.perf_counter()
        os.pread(fd, 65536, place * 65536)
        times.append((time.perf_counter() - began) * 1e6)
    os.close(fd)
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


@dataclass
class Figures:
    """Of one file system. GB/s of one and of two readers, p50 and p99 of random reads in µs, processor seconds per GB;
    the best of several rounds each."""

    one: float = 0.0
    two: float = 0.0
    p50: float = float("inf")
    p99: float = float("inf")
    processor: float = float("inf")

    def measure(self, system: Mount, size: int) -> None:
        with system() as mounted:
            mounted.files[0].stat()
            used = processor(mounted.pid)
            self.one = max(self.one, size / 1e9 / read_through(mounted.files[:1]))
            self.processor = min(self.processor, (processor(mounted.pid) - used) / (size / 1e9))
        with system() as mounted:
            mounted.files[0].stat()
            self.two = max(self.two, 2 * size / 1e9 / read_through(mounted.files))
        with system() as mounted:
            p50, p99 = at_random(mounted.files[0], size)
            if p50 < self.p50:
                self.p50, self.p99 = p50, p99


Mount: TypeAlias = Callable[[], AbstractContextManager[Mounted]]


def main() -> int:
    if len(sys.argv) == 4 and sys.argv[1] == "--serve":
        serve(sys.argv[2], int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB of each of two files")
    size = (parser.parse_args().size << 20) + 1000  # crypt4ghfs cuts a file that ends with a whole segment
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        try:
            found, alone = measure(Path(name), size)
        except ComputeFault as fault:
            raise SystemExit(f"no FUSE here: {fault}") from None
    return show(found, alone)


def measure(folder: Path, size: int) -> tuple[dict[str, Figures], float]:
    """The figures of each file system, and GB/s of the reader without a mount."""
    store = LocalStorage(folder / "store", Place("SE", "bench"))
    keys = generate_keypair()
    piece = os.urandom(PIECE)
    files: list[MountedFile] = []
    for made in ("plain", "sealed"):
        (folder / made).mkdir()
    plains = [folder / "plain" / f"body{number}" for number in range(2)]
    sealed = [folder / "sealed" / f"body{number}.c4gh" for number in range(2)]
    for plain, whole in zip(plains, sealed, strict=True):
        body = plain.name
        encryptor = Encryptor(store.writer(body), store.writer(sidecar(body)), keys.public)
        with plain.open("wb") as out:
            for at in range(0, size, PIECE):
                part = piece[: size - at]
                encryptor.write(part)
                out.write(part)
        told = encryptor.finish()
        files.append(MountedFile(body, body, body, told.header, "key", size, told.seal_root))
        with whole.open("wb") as out:
            out.write(told.header)
            held = store.open(body)
            for at in range(0, held.size, PIECE):
                target = bytearray(min(PIECE, held.size - at))
                held.pread_into(target, at)
                out.write(target)
            held.close()

    @contextmanager
    def plain_files() -> Iterator[Mounted]:
        yield Mounted(plains, os.getpid())

    systems: dict[str, Mount] = {
        PLAIN: plain_files,
        "gocryptfs AES": Gocryptfs(folder / "aes", plains).mounted,
        "gocryptfs XChaCha": Gocryptfs(folder / "xchacha", plains, "-xchacha").mounted,
        "crypt4ghfs": Crypt4ghfs(folder / "crypt4ghfs", sealed, keys).mounted,
        OURS: partial(mounted, folder, Setting(str(folder / "store"), files, keys.private, 2)),
    }
    found = {name: Figures() for name in systems}
    alone = 0.0
    for _ in range(ROUNDS):
        for name, system in systems.items():
            found[name].measure(system, size)
        alone = max(alone, read_alone(store, files[0], keys.private, size))
    return found, alone


def read_alone(store: LocalStorage, file: MountedFile, private_key: bytes, size: int) -> float:
    """GB/s of the reader without a mount."""
    reader = open_reader(store.open, file.body, file.header, private_key, size=size, seal_root=file.seal_root)
    target = bytearray(PIECE)
    began = time.perf_counter()
    for at in range(0, size, PIECE):
        reader.read_into(target, at)
    reader.close()
    return size / 1e9 / (time.perf_counter() - began)


def show(found: dict[str, Figures], alone: float) -> int:
    """Print the table and the limits; 1 where one is missed."""
    print(f"\n{'':28}{'1 reader':>10}{'2 readers':>11}{'p50 / p99 µs, 64 KiB':>24}{'processor s/GB':>16}")
    for name, one in found.items():
        latency, used = f"{one.p50:.0f} / {one.p99:.0f}", "-" if name == PLAIN else f"{one.processor:.2f}"
        print(f"{name:28}{one.one:10.2f}{one.two:11.2f}{latency:>24}{used:>16}")
    print(f"{'the reader without a mount':28}{alone:10.2f}")
    print("\nGB/s of plain bytes, cold cache, best of the rounds\n")
    table, ours = Table(), found[OURS]
    aes, xchacha, peer = (found[name] for name in ("gocryptfs AES", "gocryptfs XChaCha", "crypt4ghfs"))
    table.row("mount, sequential", f"{ours.one:.2f} GB/s", ours.one / aes.one, "of gocryptfs AES", 1.0)
    table.row("mount, sequential", f"{ours.one:.2f} GB/s", ours.one / xchacha.one, "of gocryptfs XChaCha", 1.0)
    table.row("mount, sequential", f"{ours.one:.2f} GB/s", ours.one / peer.one, "times crypt4ghfs", 2.0)
    table.row("mount, two readers", f"{ours.two:.2f} GB/s", ours.two / ours.one, "times one reader", 1.4)
    best = min(aes.p50, xchacha.p50)
    table.row("mount, random p50", f"{ours.p50:.0f} µs", ours.p50 / best, "of gocryptfs' p50", 1.0, most=True)
    table.row("mount, random p99", f"{ours.p99:.0f} µs", ours.p99 / 1000, "ms", 1.0, most=True)
    share = ours.processor / aes.processor
    table.row("mount, processor per GB", f"{ours.processor:.2f} s", share, "of gocryptfs AES", 1.0, most=True)
    return 1 if table.missed else 0


if __name__ == "__main__":
    sys.exit(main())
