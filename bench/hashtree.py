"""The hash tree over stored bodies: which hash, which leaf, and what it costs when a file is taken in.

First BLAKE3 against SHA-256 (with the processor's instructions where it has them) over leaves of 1, 4 and 16 segments,
one core, in GB/s of stored bytes. Then an intake (SHA-256 of the plain bytes, encryption, seal, hash tree; without a
disk) against the slowest of its parts alone: at least 0.8 of it where there are two cores. Medians of rounds in one
run.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Callable

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from typing_extensions import Buffer

from valv.formats import crypt4gh, hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT, SEGMENT
from valv.vault.encrypt import Encryptor

SIZE = 256 << 20
PIECE = 4 << 20
ROUNDS = 7
WANTED = 0.8
MOST_FOR_SEAL = 0.03


class Nowhere:
    """A store that keeps nothing."""

    def write(self, data: Buffer) -> None:
        pass

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


def rates(*works: Callable[[], object]) -> list[float]:
    """GB/s of each; the works take turns, so that a busy moment of the machine hits all of them."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, taken in zip(works, times, strict=True):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
    return [SIZE / 1e9 / statistics.median(taken) for taken in times]


def leaves(body: memoryview, segments: int, digest: Callable[[memoryview], object]) -> Callable[[], object]:
    """One pass over the body in leaves of so many segments."""
    step = segments * CIPHER_SEGMENT
    return lambda: [digest(body[at : at + step]) for at in range(0, len(body), step)]


def encrypt(plain: memoryview) -> None:
    aead, out = ChaCha20Poly1305(bytes(32)), bytearray(SEGMENT + 16)
    for at in range(0, len(plain), SEGMENT):
        aead.encrypt_into(bytes(12), plain[at : at + SEGMENT], None, out)


def intake(plain: memoryview) -> None:
    encryptor = Encryptor(Nowhere(), Nowhere(), crypt4gh.generate_keypair().public)
    for at in range(0, len(plain), PIECE):
        encryptor.write(plain[at : at + PIECE])
    encryptor.finish()


def main() -> int:
    plain = memoryview(os.urandom(PIECE) * (SIZE // PIECE))
    body = memoryview(os.urandom(64 * CIPHER_SEGMENT) * (SIZE // PIECE))
    print(f"{'leaf, segments':16}{'BLAKE3':>8}{'SHA-256':>9}  GB/s")
    for segments in (1, 4, 16):
        blake, sha = rates(
            leaves(body, segments, lambda leaf: blake3(leaf).digest()),
            leaves(body, segments, lambda leaf: hashlib.sha256(leaf).digest()),
        )
        print(f"{segments:<16}{blake:8.2f}{sha:9.2f}")
    parts = ("digest of the plain bytes", "encryption", "hash tree", "seal")
    measured = rates(
        lambda: hashlib.sha256(plain).digest(),
        lambda: encrypt(plain),
        lambda: hashtree.tree_root(hashtree.hashes(body), len(body)),
        lambda: seal.seal_root(seal.pairs_of(body), SIZE),
        lambda: intake(plain),
    )
    print()
    for name, rate in zip((*parts, "intake as a whole"), measured, strict=True):
        print(f"{name:28}{rate:8.2f} GB/s")
    ratio, share = measured[-1] / min(measured[:-1]), measured[1] / measured[3]
    cores = len(os.sched_getaffinity(0))
    print(f"\nintake / slowest part: {ratio:.2f} on {cores} cores (wanted {WANTED})")
    print(f"the seal, of the time of encryption: {share:.2%} (at most {MOST_FOR_SEAL:.0%})")
    return 1 if (cores > 1 and ratio < WANTED) or share > MOST_FOR_SEAL else 0
