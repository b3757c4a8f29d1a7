"""Reading through the decrypting mount, against the same bytes plain in memory and against the reader without a mount.

Needs root (or `fusermount3`) and /dev/fuse. Size in MiB by `--size`. Each round mounts anew, so that caches are cold.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

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
def mounted(folder: Path, setting: Setting) -> Iterator[Path]:
    target = folder / "mnt"
    target.mkdir(exist_ok=True)
    (folder / "setting.json").write_bytes(msgspec.json.encode(setting))
    fd = mount(target, owner_uid=os.getuid())
    child = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(folder / "setting.json"), str(fd)], pass_fds=[fd]
    )
    os.close(fd)
    try:
        yield target
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


def median(work: Callable[[], float]) -> float:
    return statistics.median(work() for _ in range(ROUNDS))


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--serve":
        serve(sys.argv[2], int(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB of each of two files")
    size = parser.parse_args().size << 20
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as name:
        folder = Path(name)
        store = LocalStorage(folder / "store", Place("SE", "bench"))
        keys = generate_keypair()
        piece = os.urandom(PIECE)
        files: list[MountedFile] = []
        for number in range(2):
            body, plain = f"body{number}", folder / f"plain{number}"
            encryptor = Encryptor(store.writer(body), store.writer(sidecar(body)), keys.public)
            with plain.open("wb") as out:
                for _ in range(size // PIECE):
                    encryptor.write(piece)
                    out.write(piece)
            sealed = encryptor.finish()
            files.append(MountedFile(body, body, body, sealed.header, "key", size, sealed.seal_root))

        def alone() -> float:
            file = files[0]
            reader = open_reader(store.open, file.body, file.header, keys.private, size=size, seal_root=file.seal_root)
            target = bytearray(PIECE)
            began = time.perf_counter()
            for at in range(0, size, PIECE):
                reader.read_into(target, at)
            reader.close()
            return time.perf_counter() - began

        plains = [folder / "plain0", folder / "plain1"]
        rows = [
            ("plain files in memory", median(lambda: read_through(plains[:1])), median(lambda: read_through(plains)))
        ]
        random_rows = [("plain files in memory", *at_random(plains[0], size))]
        rows.append(("the reader without a mount", median(alone), 0.0))
        for threads in (1, 2):
            setting = Setting(str(folder / "store"), files, keys.private, threads)
            label = f"the mount, {threads} thread{'s' if threads > 1 else ''}"

            def through(count: int, setting: Setting = setting) -> float:
                with mounted(folder, setting) as target:
                    paths = [target / file.path for file in files[:count]]
                    paths[0].stat()
                    return read_through(paths)

            try:
                rows.append((label, median(lambda: through(1)), median(lambda: through(2))))
                with mounted(folder, setting) as target:
                    random_rows.append((label, *at_random(target / files[0].path, size)))
            except ComputeFault as fault:
                raise SystemExit(f"no FUSE here: {fault}") from None
    print(f"\n{'':32}{'1 reader':>10}{'2 readers':>11}{'of plain':>10}{'of reader':>11}{'p50 / p99 µs, 64 KiB':>24}")
    alone_rate = size / 1e9 / rows[1][1]
    latency = {name: f"{p50:.0f} / {p99:.0f}" for name, p50, p99 in random_rows}
    for name, one, two in rows:
        speed = size / 1e9 / one
        both = f"{2 * size / 1e9 / two:11.2f}" if two else f"{'-':>11}"
        ratios = f"{rows[0][1] / one:9.2f}x{speed / alone_rate:10.2f}x"
        print(f"{name:32}{speed:10.2f}{both}{ratios}{latency.get(name, '-'):>24}")
    print("\nGB/s of plain bytes, cold cache, medians")


if __name__ == "__main__":
    main()
