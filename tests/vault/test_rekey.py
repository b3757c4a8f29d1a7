"""Encrypting a stored body anew: the same plain bytes, nothing of the old key, and nothing taken over unchecked."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from tests.vault.forging import forge
from valv.errors import Fault, FormatFault, FullFault, InputFault, IntegrityFault, KeyFault, MissingFault, StorageFault
from valv.formats import crypt4gh, hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT, NONCE, SEGMENT, KeyPair, generate_keypair, open_header
from valv.formats.seal import LEAF_PAIRS, sidecar
from valv.ports.compute import MountedFile, Rekeyed
from valv.ports.storage import BodyWriter, Place
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor
from valv.vault.fixity import check_body
from valv.vault.reader import open_reader
from valv.vault.rekey import BATCH, Facts, reencrypt, rekey

BATCH_BYTES = BATCH * SEGMENT
GROUP = LEAF_PAIRS * SEGMENT
SIZES = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, BATCH_BYTES, BATCH_BYTES + 1, GROUP - 1, GROUP, GROUP + 1, 9_000_001)


@dataclass
class Scene:
    """A store with one encrypted file, and who may open it."""

    store: LocalStorage
    plain: bytes
    keys: KeyPair
    file: MountedFile

    def rekey(self, *, tree: bool = True, body: str = "new", public: bytes | None = None) -> tuple[Rekeyed, KeyPair]:
        target = generate_keypair()
        file = self.file if tree else msgspec.structs.replace(self.file, tree_root=b"")
        public = target.public if public is None else public
        return rekey(self.store, file, file.header, self.keys.private, public_key=public, body=body), target

    def raw(self, name: str) -> bytes:
        body = self.store.open(name)
        data = bytearray(body.size)
        body.pread_into(data, 0)
        body.close()
        return bytes(data)

    def overwrite(self, name: str, data: bytes) -> None:
        self.store.delete(name)
        writer = self.store.writer(name)
        writer.write(data)
        writer.commit()

    def opened(self, made: Rekeyed, keys: KeyPair, size: int, body: str = "new") -> bytes:
        reader = open_reader(
            self.store.open,
            body,
            made.header,
            keys.private,
            size=size,
            seal_root=made.seal_root,
            tree_root=made.tree_root,
        )
        try:
            return reader.read(0, size + 1)
        finally:
            reader.close()

    def untouched(self) -> None:
        """Only the old file is there, with nothing half written."""
        assert set(self.store.names()) == {"old", "old.seal"}
        assert not list((self.store._new).iterdir())


@contextmanager
def stored(plain: bytes) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStorage(Path(folder), Place("SE", "test"))
        keys = generate_keypair()
        encryptor = Encryptor(store.writer("old"), store.writer(sidecar("old")), keys.public)
        encryptor.write(plain)
        made = encryptor.finish()
        file = MountedFile("f", "set/f", "old", made.header, "k", made.size, made.seal_root, made.tree_root)
        yield Scene(store, plain, keys, file)


def segments_of(body: bytes) -> list[bytes]:
    return [body[at : at + CIPHER_SEGMENT] for at in range(0, len(body), CIPHER_SEGMENT)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tree", [True, False])
def test_the_plain_bytes_stay_and_nothing_else_does(size: int, tree: bool) -> None:
    plain = random.Random(size).randbytes(size)
    with stored(plain) as place:
        before = place.raw("old"), place.raw("old.seal")
        made, target = place.rekey(tree=tree)
        assert (place.raw("old"), place.raw("old.seal")) == before
        new = place.raw("new")
        assert place.opened(made, target, size) == plain
        assert made.cipher_size == len(new) == crypt4gh.cipher_size(size)
        assert made.segments == crypt4gh.segments(size)
        assert made.seal_root == seal.seal_root(seal.pairs_of(new), size)
        assert made.tree_root == hashtree.tree_root(hashtree.hashes(new), len(new))
        check_body(
            place.store.open("new"), place.store.open("new.seal"), cipher_size=len(new), tree_root=made.tree_root
        )
        nonces = [one[:NONCE] for body in (before[0], new) for one in segments_of(body)]
        assert len(set(nonces)) == len(nonces)
        assert not list(place.store._new.iterdir())


def test_neither_old_keys_open_anything_new() -> None:
    with stored(os.urandom(20 * SEGMENT + 5)) as place:
        made, target = place.rekey()
        (old,), (new,) = (
            open_header(header, [keys.private]).data_keys
            for header, keys in ((place.file.header, place.keys), (made.header, target))
        )
        assert old != new
        for segment in segments_of(place.raw("new")):
            with pytest.raises(InvalidTag):
                ChaCha20Poly1305(old).decrypt(segment[:NONCE], segment[NONCE:], None)
        with pytest.raises(KeyFault):
            open_header(made.header, [place.keys.private])
        again, other = place.rekey(body="again")
        assert open_header(again.header, [other.private]).data_keys != (new,)


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(0, 3 * GROUP),
    workers=st.integers(1, 4),
    tree=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_any_size_and_any_number_of_workers(size: int, workers: int, tree: bool, seed: int) -> None:
    plain = random.Random(seed).randbytes(size)
    key, new_key = os.urandom(32), os.urandom(32)
    body = encrypted(plain, [key])
    pairs, hashes = seal.pairs_of(body), hashtree.hashes(body)
    facts = Facts(size, seal.seal_root(pairs, size), hashtree.tree_root(hashes, len(body)) if tree else b"")
    out, out_seal = Kept(), Kept()
    made = reencrypt(InMemory(body), InMemory(sidecar_of(body)), facts, [key], out, out_seal, new_key, workers=workers)
    new = bytes(out.data)
    assert opened(new, new_key) == plain
    assert bytes(out_seal.data) == sidecar_of(new)
    assert made == Facts(
        size, seal.seal_root(seal.pairs_of(new), size), hashtree.tree_root(hashtree.hashes(new), len(new))
    )
    assert (out.ended, out_seal.ended) == ("", "")


def test_a_file_whose_segments_have_different_keys() -> None:
    """A header may name several data keys (a file that was put together of others)."""
    plain, keys = os.urandom(70 * SEGMENT), [os.urandom(32) for _ in range(3)]
    body = encrypted(plain, keys)
    facts = Facts(len(plain), seal.seal_root(seal.pairs_of(body), len(plain)))
    out, new_key = Kept(), os.urandom(32)
    reencrypt(InMemory(body), InMemory(sidecar_of(body)), facts, keys, out, Kept(), new_key, workers=2)
    assert opened(bytes(out.data), new_key) == plain


# --- what is refused ---


SEGMENTS = 70
"""More than a group of the sidecar."""


@pytest.fixture(scope="module")
def long_file() -> bytes:
    return random.Random(3).randbytes((SEGMENTS - 1) * SEGMENT + 100)


def damaged(body: bytes, how: str, draw: random.Random) -> bytes:
    number = draw.randrange(SEGMENTS - 2)
    at, end = number * CIPHER_SEGMENT, (number + 1) * CIPHER_SEGMENT
    match how:
        case "altered":
            flip = draw.randrange(len(body))
            return body[:flip] + bytes([body[flip] ^ 1]) + body[flip + 1 :]
        case "swapped":
            return body[:at] + body[end : end + CIPHER_SEGMENT] + body[at:end] + body[end + CIPHER_SEGMENT :]
        case "repeated":
            return body[:end] + body[at:end] + body[end + CIPHER_SEGMENT :]
        case "dropped":
            return body[:at] + body[end:]
        case "truncated":
            return body[: draw.randrange(len(body))]
        case "longer":
            return body + b"x"
    raise AssertionError(how)


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("how", ["altered", "swapped", "repeated", "dropped", "truncated", "longer"])
def test_a_damaged_body_is_refused(long_file: bytes, how: str, tree: bool) -> None:
    draw = random.Random(how)
    with stored(long_file) as place:
        good, good_seal = place.raw("old"), place.raw("old.seal")
        for _ in range(5):
            bad = damaged(good, how, draw)
            place.overwrite("old", bad)
            with pytest.raises(IntegrityFault):
                place.rekey(tree=tree)
            place.untouched()
            # Whoever can write to the store also makes the sidecar fit.
            with_sidecar = sidecar_of(bad) if len(bad) % CIPHER_SEGMENT == len(good) % CIPHER_SEGMENT else good_seal
            place.overwrite("old.seal", with_sidecar)
            with pytest.raises(IntegrityFault):
                place.rekey(tree=tree)
            place.untouched()
            place.overwrite("old.seal", good_seal)


def test_an_altered_sidecar_is_refused(long_file: bytes) -> None:
    draw = random.Random(4)
    with stored(long_file) as place:
        good = place.raw("old.seal")
        for at in (0, 30, 64 * 28, 64 * 28 + 31, len(good) - 1, *(draw.randrange(len(good)) for _ in range(20))):
            place.overwrite("old.seal", good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :])
            with pytest.raises(IntegrityFault):
                place.rekey()
            place.untouched()
        for wrong in (b"", good[:-1], good + b"x", good[60:]):
            place.overwrite("old.seal", wrong)
            with pytest.raises(IntegrityFault, match="seal"):
                place.rekey()
            place.untouched()


def test_an_older_version_of_the_file_is_refused(long_file: bytes) -> None:
    """Whole and with its own sidecar, under the same key: only the record tells them apart."""
    with stored(long_file) as place:
        (key,) = open_header(place.file.header, [place.keys.private]).data_keys
        older = encrypted(bytes(len(long_file)), [key])
        place.overwrite("old", older)
        place.overwrite("old.seal", sidecar_of(older))
        for tree in (True, False):
            with pytest.raises(IntegrityFault, match="seal"):
                place.rekey(tree=tree)
            place.untouched()


def test_the_first_bad_segment_is_named(long_file: bytes) -> None:
    with stored(long_file) as place:
        raw = bytearray(place.raw("old"))
        for number in (20, 33, 51):
            raw[number * CIPHER_SEGMENT + 500] ^= 1
        place.overwrite("old", bytes(raw))
        for _ in range(5):
            with pytest.raises(IntegrityFault, match="segment 20 "):
                place.rekey()


def test_a_forged_segment_is_found_by_the_hash_tree() -> None:
    told = b"BRCA1 c.68_69del: FOUND         "
    with stored(b"BRCA1 c.68_69del: not found     " * (20 * SEGMENT // 32)) as place:
        (key,) = open_header(place.file.header, [place.keys.private]).data_keys
        body = place.raw("old")
        at = 18 * CIPHER_SEGMENT
        forged = forge(key, body[at : at + CIPHER_SEGMENT], 4096, told)
        place.overwrite("old", body[:at] + forged + body[at + CIPHER_SEGMENT :])
        made, target = place.rekey(tree=False)  # the seal alone cannot tell: the reason for the tree
        assert told in place.opened(made, target, len(place.plain))
        for name in ("new", "new.seal"):
            place.store.delete(name)
        with pytest.raises(IntegrityFault, match="segment 18 "):
            place.rekey()
        place.untouched()


def test_keys_and_headers_that_do_not_fit() -> None:
    with stored(os.urandom(100_000)) as place:
        stranger = generate_keypair()
        with pytest.raises(KeyFault):
            rekey(place.store, place.file, place.file.header, stranger.private, public_key=stranger.public, body="new")
        (key,) = open_header(place.file.header, [place.keys.private]).data_keys
        edited = crypt4gh.build_header(key, [place.keys.public], [10, 20])
        with pytest.raises(FormatFault, match="edit list"):
            rekey(place.store, place.file, edited, place.keys.private, public_key=stranger.public, body="new")
        other = crypt4gh.build_header(os.urandom(32), [place.keys.public])
        with pytest.raises(IntegrityFault, match="segment 0 "):
            rekey(place.store, place.file, other, place.keys.private, public_key=stranger.public, body="new")
        for bad in (b"", bytes(31), bytes(32)):
            with pytest.raises(InputFault):
                place.rekey(public=bad)
        for name in ("", "../x", "A", "x/y", ".x"):
            with pytest.raises(InputFault):
                place.rekey(body=name)
        place.untouched()
        place.store.delete("old")
        with pytest.raises(MissingFault):
            place.rekey()
        assert set(place.store.names()) == {"old.seal"}


def test_a_name_that_exists_is_refused_and_stays() -> None:
    with stored(os.urandom(100_000)) as place:
        made, target = place.rekey()
        with pytest.raises(StorageFault, match="exists"):
            place.rekey()
        with pytest.raises(StorageFault, match="exists"):
            place.rekey(body="old")
        assert place.opened(made, target, 100_000) == place.plain
        place.store.delete("new")
        with pytest.raises(StorageFault, match="exists"):  # a sidecar that a killed process left
            place.rekey()
        assert set(place.store.names()) == {"old", "old.seal", "new.seal"}
        assert not list(place.store._new.iterdir())


# --- a store that fails ---


class Failing:
    """A store whose writers fail at a moment of the test's choice."""

    def __init__(self, store: LocalStorage, when: str) -> None:
        self._store = store
        self._when = when
        self.place, self.delete, self.names, self.usage = store.place, store.delete, store.names, store.usage
        self.size = store.size

    def open(self, name: str) -> object:
        body = self._store.open(name)
        if name.startswith("new") and self._when == f"read {name}":
            return Forgetful(body)
        return body

    def writer(self, name: str) -> BodyWriter:
        if self._when == f"open {name}":
            raise FullFault("no room")
        return FailingWriter(self._store.writer(name), self._when, name)


class FailingWriter:
    def __init__(self, writer: BodyWriter, when: str, name: str) -> None:
        self._writer, self._when, self._name, self._written = writer, when, name, 0
        self.abort = writer.abort

    def write(self, data: Buffer) -> None:
        self._written += 1
        if self._when == f"write {self._name}" and self._written == 2:
            raise FullFault("no room")
        self._writer.write(data)

    def commit(self) -> None:
        if self._when == f"commit {self._name}":
            raise StorageFault("the disk is gone")
        self._writer.commit()


class Forgetful:
    """A body that does not come back as it was written."""

    def __init__(self, body: object) -> None:
        self._body = body
        self.size, self.close = body.size, body.close  # type: ignore[attr-defined]

    def pread_into(self, target: Buffer, offset: int) -> int:
        count: int = self._body.pread_into(target, offset)  # type: ignore[attr-defined]
        memoryview(target).cast("B")[count // 2] ^= 1
        return count


@pytest.mark.parametrize("what", ["open", "write", "commit", "read"])
@pytest.mark.parametrize("name", ["new", "new.seal"])
def test_whatever_fails_nothing_is_left(long_file: bytes, what: str, name: str) -> None:
    with stored(long_file) as place:
        store = Failing(place.store, f"{what} {name}")
        kind = IntegrityFault if what == "read" else StorageFault
        with pytest.raises(kind):
            rekey(
                store,  # type: ignore[arg-type]
                place.file,
                place.file.header,
                place.keys.private,
                public_key=generate_keypair().public,
                body="new",
            )
        place.untouched()


def test_readers_are_undisturbed(long_file: bytes) -> None:
    with stored(long_file) as place:
        reader = open_reader(
            place.store.open,
            "old",
            place.file.header,
            place.keys.private,
            size=place.file.size,
            seal_root=place.file.seal_root,
            tree_root=place.file.tree_root,
        )
        ended, faults, reads = threading.Event(), [], 0

        def read() -> None:
            nonlocal reads
            draw = random.Random(5)
            while not ended.is_set() or not reads:
                offset, size = draw.randrange(len(long_file)), draw.randrange(300_000)
                try:
                    assert reader.read(offset, size) == long_file[offset : offset + size]
                except (Fault, AssertionError) as fault:
                    faults.append(fault)
                reads += 1

        thread = threading.Thread(target=read)
        thread.start()
        for turn in range(5):
            place.rekey(body=f"new{turn}")
        ended.set()
        thread.join(60)
        assert reads and not faults
        reader.close()


# --- memory ---


FLAT = """
import sys
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from valv.formats import hashtree, seal
from valv.formats.crypt4gh import CIPHER_SEGMENT, SEGMENT, cipher_size
from valv.formats.hashtree import TreeBuilder
from valv.formats.seal import SealBuilder
from valv.vault.rekey import Facts, reencrypt

groups, key = int(sys.argv[1]), bytes(32)
size = groups * 64 * SEGMENT
nonces = [bytes([n]) * 12 for n in range(64)]
one = b"".join(nonce + ChaCha20Poly1305(key).encrypt(nonce, bytes(SEGMENT), None) for nonce in nonces)
pairs, hashes = seal.pairs_of(one), hashtree.hashes(one)

class Again:
    def __init__(self, data):
        self._data, self.size = memoryview(data), len(data) * groups
    def pread_into(self, target, offset):
        low = offset % len(self._data)
        memoryview(target)[:] = self._data[low : low + len(target)]
        return len(target)

class Nowhere:
    def write(self, data): pass

sealed, tree = SealBuilder(), TreeBuilder()
for _ in range(groups):
    sealed.add(pairs)
    tree.add(hashes)
facts = Facts(size, sealed.finish(size), tree.finish(cipher_size(size)))
made = reencrypt(Again(one), Again(pairs + hashes), facts, [key], Nowhere(), Nowhere(), bytes(range(32)), workers=8)
assert made.size == size
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_stays_flat() -> None:
    """Eight workers, 8 MiB and 512 MiB: the peak of the whole process, interpreter and libraries included."""

    def peak(groups: int) -> int:
        ran = subprocess.run([sys.executable, "-c", FLAT, str(groups)], capture_output=True, text=True, check=True)
        return int(ran.stdout) << 10

    small, large = peak(2), peak(128)
    assert large < 64 << 20
    assert large - small < 20 << 20


# --- bodies in memory ---


class InMemory:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def pread_into(self, target: Buffer, offset: int) -> int:
        view = memoryview(target).cast("B")
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


class Kept:
    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = ""

    def write(self, data: Buffer) -> None:
        self.data += memoryview(data).cast("B")

    def commit(self) -> None:
        self.ended = "commit"

    def abort(self) -> None:
        self.ended = "abort"


def encrypted(plain: bytes, keys: list[bytes]) -> bytes:
    """A body whose segments take turns with the keys."""
    pieces = []
    for number, at in enumerate(range(0, len(plain), SEGMENT)):
        nonce = os.urandom(NONCE)
        cipher = ChaCha20Poly1305(keys[number % len(keys)])
        pieces.append(nonce + cipher.encrypt(nonce, plain[at : at + SEGMENT], None))
    return b"".join(pieces)


def opened(body: bytes, key: bytes) -> bytes:
    cipher = ChaCha20Poly1305(key)
    return b"".join(cipher.decrypt(one[:NONCE], one[NONCE:], None) for one in segments_of(body))


def sidecar_of(body: bytes) -> bytes:
    step = LEAF_PAIRS * CIPHER_SEGMENT
    groups = [body[at : at + step] for at in range(0, len(body), step)]
    return b"".join(seal.pairs_of(group) + hashtree.hashes(group) for group in groups)
