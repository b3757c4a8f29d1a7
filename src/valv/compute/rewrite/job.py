"""One job over one file.

Standard input: the length of the job (u32, big-endian), the job as JSON, then the file's plain bytes to the end.
Standard output: frames, each a letter, a length (u32, big-endian) and so many bytes: `D` bytes of the new file; last of
all `E`, a JSON object with `outcome` (`rewritten`, `clean`, `mentions`, `drop` or `custodian`) and `why` (a key of
`valv.ports.compute.WHY`, or ''). Without an `E` whatever came is void.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from . import dicom, packed, packets, table, vcf
from .look import look
from .names import Cannot, Names

BCFTOOLS = "/usr/bin/bcftools"
INDEX = "/tmp/index"  # noqa: S108 - the sandbox's own
TABLES = (".csv", ".tsv", ".tab")
LINES = (".ndjson", ".jsonl")
Send = Callable[[bytes], None]


def main() -> None:
    out = sys.stdout.buffer
    source = sys.stdin.buffer
    job = json.loads(source.read(int.from_bytes(source.read(4), "big")))
    names = Names(job["names"], job["keep"])

    def send(data: bytes) -> None:
        _frame(out, b"D", data)

    why = ""
    try:
        outcome = work(job, names, io.BufferedReader(packed.Peeked(b"", source), 1 << 20), send)
    except Cannot as cannot:
        outcome, why = "custodian", cannot.why
    except MemoryError:
        outcome, why = "custodian", "memory"
    except (ValueError, KeyError, TypeError, EOFError, OSError, RecursionError, zlib.error):
        # OSError: of gzip. What exactly is wrong would tell of the content.
        outcome, why = "custodian", "broken"
    while source.read(1 << 20):
        pass  # whoever writes to us must not break
    _frame(out, b"E", json.dumps({"outcome": outcome, "why": why}).encode())
    out.flush()


def _frame(out: BinaryIO, kind: bytes, data: bytes) -> None:
    out.write(kind + len(data).to_bytes(4, "big") + data)


def work(job: dict[str, Any], names: Names, source: io.BufferedReader, send: Send) -> str:
    """The outcome. Raises `Cannot`, and what a broken file makes the standard library raise."""
    if job["do"] == "look":
        return look(source, names)
    if job["do"] == "index":
        _index(job["kind"], source, send)
        return "rewritten"
    head, source = packed.peek(source, dicom.HEAD if dicom.is_dicom(source.peek(132)[:132]) else 1 << 16)
    if dicom.is_dicom(head):
        if names.are(dicom.patient(head)):
            return "drop"
        raise Cannot("unknown")
    zipped = head.startswith(packed.GZIP)
    path = job["path"].casefold()
    if zipped:
        path = path.removesuffix(".gz").removesuffix(".bgz")
        head, inner = packed.peek(packed.unpacked(source), 1 << 16)
        if head.startswith(b"BCF\2"):
            return "rewritten" if _bcf(inner, names, send) else "drop"
        source = inner
    out: packed.Plain | packed.Blocked = packed.Blocked(send) if zipped else packed.Plain(send)
    left = _rewrite(path, head, source, names, out.write)
    out.close()
    return "rewritten" if left else "drop"


def _rewrite(path: str, head: bytes, source: io.BufferedReader, names: Names, write: Send) -> bool:
    if head.startswith(b"##fileformat=VCF"):
        return vcf.rewrite(packed.rows(source), names, write)
    if path.endswith(LINES):
        return packets.rewrite_lines(packed.rows(source), names, write)
    if path.endswith(".json"):
        return packets.rewrite(source, names, write)
    if path.endswith(TABLES) or (path.endswith(".txt") and b"\t" in head.partition(b"\n")[0]):
        return table.rewrite(packed.rows(source), names, write)
    raise Cannot("unknown")


def _bcf(inner: io.BufferedReader, names: Names, send: Send) -> bool:
    """BCF through VCF: bcftools, our lines, bcftools. It takes unpacked BCF as well."""
    unpacking = _tool([BCFTOOLS, "view", "--no-version", "--output-type", "v", "-"])
    packing = _tool([BCFTOOLS, "view", "--no-version", "--output-type", "b", "-"])
    assert unpacking.stdin and unpacking.stdout and packing.stdin and packing.stdout
    records = Records()
    feeding = threading.Thread(target=_feed, args=(inner, unpacking.stdin, records.pass_), daemon=True)
    taking = threading.Thread(target=_take, args=(packing.stdout, send), daemon=True)
    feeding.start()
    taking.start()
    out = packed.Plain(packing.stdin.write)  # type: ignore[arg-type]
    try:
        lines = packed.rows(io.BufferedReader(packed.Peeked(b"", unpacking.stdout), 1 << 20))  # type: ignore[arg-type]
        left = vcf.rewrite(lines, names, out.write)
        if left:
            out.close()
    finally:
        with contextlib.suppress(OSError):
            packing.stdin.close()
        while unpacking.stdout.read(1 << 20):
            pass
        feeding.join()
        taking.join()
        codes = unpacking.wait(), packing.wait()
    # bcftools takes a file that is cut off within a record for one that ends before it.
    if left and (any(codes) or not records.whole):
        raise Cannot("broken")
    return left


class Records:
    """Follows the lengths in unpacked BCF 2 (VCF 4.3 specification, section 6): `whole` where it ends with a record."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._skip = 0
        self._begun = False

    def pass_(self, data: bytes) -> None:
        self._held += data
        while True:
            skipped = min(self._skip, len(self._held))
            del self._held[:skipped]
            self._skip -= skipped
            need = 8 if self._begun else 9
            if self._skip or len(self._held) < need:
                return
            lengths = self._held[need - 8 : need] if self._begun else self._held[5:9]
            self._skip = sum(int.from_bytes(lengths[at : at + 4], "little") for at in range(0, len(lengths), 4))
            del self._held[:need]
            self._begun = True

    @property
    def whole(self) -> bool:
        return self._begun and not self._skip and not self._held


def _tool(command: list[str]) -> subprocess.Popen[bytes]:
    if not os.access(BCFTOOLS, os.X_OK):
        raise Cannot("no_tool")
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _index(kind: str, source: io.BufferedReader, send: Send) -> None:
    """A new index; small, so that it may lie in the sandbox's memory."""
    tool = _tool([BCFTOOLS, "index", "--force", f"--{kind}", "--output", INDEX, "-"])
    assert tool.stdin and tool.stdout
    _feed(source, tool.stdin)
    if tool.wait():
        raise Cannot("broken")
    with Path(INDEX).open("rb") as made:
        _take(made, send)


def _feed(source: io.BufferedReader, target: Any, seen: Send = lambda _: None) -> None:
    """All of it, also where the tool has had enough."""
    try:
        while data := source.read1(1 << 20):
            seen(data)
            try:
                target.write(data)
            except BrokenPipeError:
                continue
    except (OSError, EOFError, zlib.error):
        pass  # the tool finds out that the file is cut off
    finally:
        with contextlib.suppress(BrokenPipeError):
            target.close()


def _take(source: Any, send: Send) -> None:
    while data := source.read(1 << 18):
        send(data)
