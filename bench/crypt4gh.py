"""Encrypting and decrypting a file in memory: Valv's path into and out of a store, against the reference library.

Run as `python -m bench.crypt4gh`; size in MiB by `--size`. GB/s of plain bytes by the clock, and seconds of CPU for a
GB, which other load on the machine disturbs less. Medians of rounds in one run; only ratios compare between machines.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.formats.crypt4gh import SEGMENT, generate_keypair, reseal
from valv.formats.seal import sidecar
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor, Sealed
from valv.vault.reader import open_reader
from valv.vault.take import Taker, check

ROUNDS = 3
PIECE = 4 << 20


def rate(size: int, work: Callable[[], object]) -> tuple[float, float]:
    """GB/s, and CPU seconds of all threads for a GB; medians of the rounds."""
    times, cpus = [], []
    for _ in range(ROUNDS):
        began, cpu = time.perf_counter(), time.process_time()
        work()
        times.append(time.perf_counter() - began)
        cpus.append(time.process_time() - cpu)
    gigabytes = size / 1e9
    return gigabytes / statistics.median(times), statistics.median(cpus) / gigabytes


def cipher_alone(plain: bytes) -> None:
    """The limit: one core that does nothing but encrypt."""
    aead, view, out = ChaCha20Poly1305(bytes(32)), memoryview(plain), bytearray(SEGMENT + 16)
    for at in range(0, len(plain), SEGMENT):
        aead.encrypt_into(bytes(12), view[at : at + SEGMENT], None, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="MiB")
    size = parser.parse_args().size << 20
    plain = bytes(size)
    keys, other = generate_keypair(), generate_keypair()
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        store = LocalStorage(Path(folder), Place("SE", "bench"))
        sealed: list[Sealed] = []

        def encrypt() -> None:
            for name in ("made", "made.seal"):
                store.delete(name)
            encryptor = Encryptor(store.writer("made"), store.writer(sidecar("made")), keys.public)
            for at in range(0, size, PIECE):
                encryptor.write(memoryview(plain)[at : at + PIECE])
            sealed.append(encryptor.finish())

        rows = [("one core of the cipher alone", rate(size, lambda: cipher_alone(plain)))]
        rows.append(("Valv: encrypt, seal, two SHA-256, store", rate(size, encrypt)))
        file = sealed[-1]
        body = bytearray(file.cipher_size)
        store.open("made").pread_into(body, 0)
        stream = file.header + body

        def take() -> None:
            for name in ("taken", "taken.seal"):
                store.delete(name)
            taker = Taker(store.writer("taken"), store.writer(sidecar("taken")))
            for at in range(0, len(stream), PIECE):
                taker.write(memoryview(stream)[at : at + PIECE])
            taker.finish()

        def read() -> None:
            reader = open_reader(
                store.open, "made", file.header, keys.private, size=file.size, seal_root=file.seal_root
            )
            target = bytearray(PIECE)
            for at in range(0, size, PIECE):
                reader.read_into(target, at)
            reader.close()

        def verify() -> None:
            reader = open_reader(
                store.open, "made", file.header, keys.private, size=file.size, seal_root=file.seal_root
            )
            check(reader)
            reader.close()

        rows.append(("Valv: take a Crypt4GH file as it is", rate(size, take)))
        rows.append(("Valv: read, one thread", rate(size, read)))
        rows.append(("Valv: check (read and SHA-256)", rate(size, verify)))
        peer: tuple[float, float] | None = None
        try:
            from crypt4gh import lib  # type: ignore[import-untyped]
        except ImportError:
            print("the reference library 'crypt4gh' is not installed: no peer")
        else:
            scratch = Path(folder, "peer")

            def foreign_encrypt() -> None:
                with scratch.open("wb") as out:
                    lib.encrypt([(0, keys.private, keys.public)], io.BytesIO(plain), out)

            def foreign_decrypt() -> None:
                with scratch.open("rb") as sealed_file, Path(folder, "plain").open("wb") as out:
                    lib.decrypt([(0, keys.private, None)], sealed_file, out)

            peer = rate(size, foreign_encrypt)
            rows.append(("reference library: encrypt", peer))
            rows.append(("reference library: decrypt", rate(size, foreign_decrypt)))
        began = time.perf_counter()
        for _ in range(200):
            reseal(file.header, [keys.private], [other.public])
        resealing = (time.perf_counter() - began) / 200
    print(f"\n{'':44}{'GB/s':>8}{'of one core':>14}{'of the peer':>14}{'CPU s/GB':>11}")
    for name, (value, cpu) in rows:
        against = f"{value / peer[0]:13.2f}x" if peer else f"{'-':>14}"
        print(f"{name:44}{value:8.2f}{value / rows[0][1][0]:13.2f}x{against}{cpu:11.2f}")
    print(f"\nre-sealing a header, whatever the file's size: {resealing * 1e6:.0f} µs")


if __name__ == "__main__":
    main()
