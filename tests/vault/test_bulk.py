"""Bulk encryption: whatever is read from and written to, however many workers, the bytes are the same."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.errors import FormatFault, IntegrityFault
from valv.formats import edit_list
from valv.formats.crypt4gh import CIPHER_SEGMENT, OVERHEAD, SEGMENT, cipher_size
from valv.vault import bulk
from valv.vault.endpoints import Digesting, FileSink, FileSource, Memory, StreamSink, StreamSource, sink_of, source_of

KEY = bytes(range(32))
BATCH = bulk.BATCH * SEGMENT
SIZES = (0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, BATCH - 1, BATCH, BATCH + 1, 5 * BATCH + 7)


def _bytes(size: int) -> bytes:
    return hashlib.shake_128(b"valv").digest(size)


PLAIN = _bytes(3 * BATCH + 2 * SEGMENT + 11)


def _sealed(plain: bytes, key: bytes = KEY) -> bytes:
    made = bytearray(cipher_size(len(plain)))
    assert bulk.encrypt(Memory(plain), Memory(made), key) == len(plain)
    return bytes(made)


SEALED = _sealed(PLAIN)


def _opened(body: bytes, *keys: bytes) -> bytes:
    made = BytesIO()
    bulk.decrypt(Memory(body), StreamSink(made), keys or (KEY,))
    return made.getvalue()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_memory_to_memory(size: int, workers: int) -> None:
    plain = _bytes(size)
    cipher, back = bytearray(cipher_size(size)), bytearray(size)
    assert bulk.encrypt(Memory(plain), Memory(cipher), KEY, workers=workers) == size
    assert bulk.decrypt(Memory(cipher), Memory(back), [KEY], workers=workers) == size
    assert back == plain
    nonces = {bytes(cipher[at : at + 12]) for at in range(0, len(cipher), CIPHER_SEGMENT)}
    assert len(nonces) == -(-size // SEGMENT)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_file_to_file(size: int, workers: int, tmp_path: Path) -> None:
    plain, seen = _bytes(size), []
    (tmp_path / "plain").write_bytes(plain)
    with (tmp_path / "plain").open("rb") as source, (tmp_path / "cipher").open("wb") as made:
        made.write(b"head")
        bulk.encrypt(source_of(source), sink_of(made), KEY, workers=workers, progress=seen.append)
    assert sum(seen) == size
    with (tmp_path / "cipher").open("rb") as source, (tmp_path / "back").open("wb") as made:
        start = source_of(source)
        assert start.head(4)[:4] == b"head"
        start.drop(4)
        digest = Digesting(sink_of(made))
        assert bulk.decrypt(start, digest, [KEY], workers=workers) == size
    assert (tmp_path / "back").read_bytes() == plain
    assert digest.hexdigest() == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_pipe_to_pipe(size: int, workers: int) -> None:
    """Written in bits and read in bits, through real pipes."""
    plain = _bytes(size)

    def through(data: bytes, decrypt: bool) -> bytes:
        (feed_out, feed_in), (out, result) = os.pipe(), os.pipe()
        taken = bytearray()

        def feed() -> None:
            with os.fdopen(feed_in, "wb", buffering=0) as pipe:
                for at in range(0, len(data), 100_001):
                    pipe.write(data[at : at + 100_001])

        def take() -> None:
            with os.fdopen(out, "rb") as pipe:
                taken.extend(pipe.read())

        threads = [threading.Thread(target=feed), threading.Thread(target=take)]
        for thread in threads:
            thread.start()
        with os.fdopen(feed_out, "rb") as source, os.fdopen(result, "wb") as made:
            assert isinstance(source_of(source), StreamSource) and isinstance(sink_of(made), StreamSink)
            if decrypt:
                assert bulk.decrypt(source_of(source), sink_of(made), [KEY], workers=workers) == size
            else:
                assert bulk.encrypt(source_of(source), sink_of(made), KEY, workers=workers) == size
        for thread in threads:
            thread.join(60)
        return bytes(taken)

    assert through(through(plain, False), True) == plain


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_part_of_what_any_edit_list_shows(data: st.DataObject) -> None:
    length = st.integers(0, SEGMENT * 2) | st.integers(0, len(PLAIN)) | st.just(BATCH) | st.just(SEGMENT)
    lengths = data.draw(st.none() | st.lists(length, max_size=7))
    start, wanted = data.draw(length), data.draw(st.none() | length)
    end = None if wanted is None else start + wanted
    shown, at = b"", 0
    for turn, count in enumerate(lengths or ()):
        shown += PLAIN[at : at + count] if turn % 2 else b""
        at += count
    if lengths is None or len(lengths) % 2:
        shown += PLAIN[at:]
    kept = edit_list.cut(edit_list.spans(lengths), start, end)
    for source in (Memory(SEALED), StreamSource(BytesIO(SEALED))):
        made = BytesIO()
        count = bulk.decrypt(source, StreamSink(made), [KEY], kept=kept, workers=2)
        assert made.getvalue() == shown[start:end]
        assert count == len(shown[start:end])
    # gathered: the same bytes from the segments that hold them and no others
    runs, moved = edit_list.gather(kept, SEGMENT)
    body = b"".join(SEALED[low * CIPHER_SEGMENT : high and high * CIPHER_SEGMENT] for low, high in runs)
    again, made = edit_list.spans(edit_list.lengths(moved)), BytesIO()
    bulk.decrypt(Memory(body), StreamSink(made), [KEY], kept=again)
    assert made.getvalue() == shown[start:end]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, len(PLAIN) + 5), st.none() | st.integers(0, len(PLAIN) + 5))
def test_any_part_is_encrypted(start: int, wanted: int | None) -> None:
    end = None if wanted is None else start + wanted
    for source in (Memory(PLAIN), StreamSource(BytesIO(PLAIN))):
        made = BytesIO()
        bulk.encrypt(source, StreamSink(made), KEY, start=start, end=end, workers=2)
        assert _opened(made.getvalue()) == PLAIN[start:end]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("segment", [0, 1, bulk.BATCH - 1, bulk.BATCH, 3 * bulk.BATCH + 1])
def test_the_first_segment_that_does_not_hold_is_named(segment: int, workers: int) -> None:
    body = bytearray(SEALED)
    body[segment * CIPHER_SEGMENT + 500] ^= 1
    body[-1] ^= 1
    for source in (Memory(body), StreamSource(BytesIO(body))):
        with pytest.raises(IntegrityFault, match=f"segment {segment} does not decrypt"):
            bulk.decrypt(source, StreamSink(BytesIO()), [KEY], workers=workers)


@pytest.mark.parametrize("rest", [1, OVERHEAD - 1, OVERHEAD])
def test_cut_off_within_a_segment(rest: int) -> None:
    body = SEALED[: (bulk.BATCH + 2) * CIPHER_SEGMENT + rest]
    with pytest.raises(FormatFault):
        bulk.decrypt(Memory(body), StreamSink(BytesIO()), [KEY])
    with pytest.raises(FormatFault, match=f"segment {bulk.BATCH + 2} is cut off"):
        bulk.decrypt(StreamSource(BytesIO(body)), StreamSink(BytesIO()), [KEY])
    with pytest.raises(IntegrityFault, match="cut off"):
        _opened(SEALED[:-1])


def test_a_header_that_is_cut_off() -> None:
    for source in (Memory(b"crypt4gh\1\0"), StreamSource(BytesIO(b"")), Memory(b"")):
        with pytest.raises(FormatFault, match="ends within"):
            bulk.read_header(source)


def test_several_data_keys() -> None:
    other = bytes(32)
    body = SEALED[: 3 * CIPHER_SEGMENT] + _sealed(PLAIN[: 2 * SEGMENT], other) + SEALED[:CIPHER_SEGMENT]
    expected = PLAIN[: 3 * SEGMENT] + PLAIN[: 2 * SEGMENT] + PLAIN[:SEGMENT]
    assert _opened(body, KEY, other) == _opened(body, other, KEY) == expected
    with pytest.raises(IntegrityFault, match="segment 3 "):
        _opened(body, KEY)


def test_a_reader_that_goes_away_ends_the_work() -> None:
    """The other worker may still wait for a stream that gives nothing."""
    (quiet, feeder), (out, result) = os.pipe(), os.pipe()
    os.close(out)
    feeding = threading.Thread(target=lambda: os.write(feeder, bytes(BATCH + 10)))
    feeding.start()
    with pytest.raises(BrokenPipeError):
        bulk.encrypt(StreamSource(quiet), StreamSink(result), KEY, workers=2)
    feeding.join(60)
    for descriptor in (feeder, quiet, result):
        os.close(descriptor)


def test_pipes_are_widened() -> None:
    most = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    out, made = os.pipe()
    StreamSource(out), StreamSink(made)
    assert fcntl.fcntl(made, fcntl.F_GETPIPE_SZ) == min(1 << 20, most)
    os.close(out)
    os.close(made)


def test_a_file_opened_to_append_is_written_in_order(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"before")
    with (tmp_path / "made").open("ab") as made:
        assert isinstance(sink_of(made), StreamSink)
        bulk.encrypt(Memory(PLAIN), sink_of(made), KEY, workers=2)
    assert _opened((tmp_path / "made").read_bytes()[6:]) == PLAIN


def test_a_full_disk_is_told() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        bulk.encrypt(Memory(PLAIN), StreamSink(full), KEY, workers=2)
    os.close(full)


PROGRAM = """
import sys
from valv.vault import bulk
from valv.vault.endpoints import source_of, sink_of
with open(sys.argv[1], "rb", buffering=0) as source, open(sys.argv[2], "wb") as made:
    print(bulk.encrypt(source_of(source), sink_of(made), bytes(32), workers=2))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize("piped", [False, True])
def test_memory_does_not_grow_with_the_file(piped: bool, tmp_path: Path) -> None:
    size = 512 << 20
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(size)
    paths = ["/dev/stdin", "/dev/null"] if piped else [str(tmp_path / "sparse"), str(tmp_path / "made")]
    feeder = subprocess.Popen(["cat", tmp_path / "sparse"], stdout=subprocess.PIPE) if piped else None
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *paths],
        stdin=feeder.stdout if feeder else None,
        capture_output=True,
        timeout=240,
        check=True,
    )
    if feeder:
        assert feeder.wait(60) == 0
    done, peak = map(int, ran.stdout.split())
    assert done == size
    assert peak < 200 << 10


def test_regular_files_are_used_at_any_place(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    with (tmp_path / "x").open("rb") as source, (tmp_path / "y").open("wb") as made:
        assert isinstance(source_of(source), FileSource) and isinstance(sink_of(made), FileSink)
    with Path("/proc/self/status").open("rb") as source:
        assert isinstance(source_of(source), StreamSource)
