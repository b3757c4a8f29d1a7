"""The leaves of the ledger, and the check of a whole ledger without its database (docs/formats/ledger.md).

A leaf is canonical JSON: an object of `actor`, `at`, `command`, `data`, `position`, `stream`, `tag` and `version`, keys
sorted by code point at every depth, no white space, UTF-8. `at` is RFC 3339 in UTC with microseconds and `Z`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from valv.errors import FormatFault, IntegrityFault
from valv.formats.merkle import Frontier, leaf_hash
from valv.formats.note import Checkpoint, verify


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a leaf says. `position` counts from 0 over the ledger, `version` from 1 within the stream; `data` is the
    event's JSON object."""

    position: int
    stream: str
    version: int
    tag: str
    at: str
    actor: str
    command: str
    data: msgspec.Raw


class Report(msgspec.Struct, frozen=True):
    """What a check of the ledger found.

    `fault`: the first thing that is wrong, empty where all is well; `size` and `root`: of the tree as far as it was
    recomputed; `signed_size`: how much of it the checkpoint covers (0 without one); `origin`: who signed it.
    """

    size: int
    root: bytes
    signed_size: int = 0
    origin: str = ""
    fault: str = ""

    @property
    def ok(self) -> bool:
        return not self.fault


def canonical(value: Any) -> bytes:
    """Canonical JSON of a value made of dict, list, str, int, float, bool and None."""
    return msgspec.json.encode(value, order="sorted")


def canonical_data(data: bytes) -> bytes:
    """An event's JSON in canonical form. Raises `FormatFault` unless it is a JSON object."""
    try:
        value = msgspec.json.decode(data)
        plain = canonical(value)
    except _UNREADABLE:
        raise FormatFault("the data of an event is not JSON") from None
    if not isinstance(value, dict):
        raise FormatFault("the data of an event is not a JSON object")
    return plain


def time_text(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds: `2031-02-03T04:05:06.000007Z`. Raises `FormatFault` without a time zone."""
    if at.tzinfo is None:
        raise FormatFault("a time in the ledger needs a time zone")
    return at.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def encode_leaf(
    position: int, stream: str, version: int, tag: str, at: datetime, actor: str, command: str, data: bytes
) -> bytes:
    """The leaf of one event; `data` is already canonical."""
    return canonical(
        {
            "position": position,
            "stream": stream,
            "version": version,
            "tag": tag,
            "at": time_text(at),
            "actor": actor,
            "command": command,
            "data": msgspec.Raw(data),
        }
    )


def decode_leaf(leaf: bytes) -> Entry:
    """Read one leaf. Raises `FormatFault` where it is not a leaf or not in its one canonical spelling."""
    try:
        entry = _ENTRY.decode(leaf)
        spelled = canonical(msgspec.json.decode(leaf))
    except _UNREADABLE:
        raise FormatFault("a line of the ledger is not a leaf") from None
    if spelled != leaf:
        raise FormatFault("a line of the ledger is not canonical JSON")
    return entry


class Chain:
    """Recomputes the ledger leaf by leaf: positions and versions without gaps, the tree, the root at the checkpoint."""

    def __init__(self, note: str | None = None, vkey: str = "") -> None:
        """`note`: a checkpoint to hold the ledger against (None: only the ledger itself), `vkey`: its signer's key.

        Raises `FormatFault` where they cannot be read and `IntegrityFault` where the signature does not hold.
        """
        self._checkpoint = Checkpoint.decode(verify(note, vkey)) if note is not None else None
        self._frontier = Frontier()
        self._versions: dict[str, int] = {}
        self._compare()

    @property
    def size(self) -> int:
        return self._frontier.size

    @property
    def frontier(self) -> Frontier:
        return self._frontier

    @property
    def versions(self) -> dict[str, int]:
        """The newest version of each stream so far."""
        return self._versions

    def add(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Take the next leaf; returns the nodes that it completes. Raises `FormatFault` or `IntegrityFault`."""
        position = self.size
        try:
            entry = decode_leaf(leaf)
        except FormatFault as fault:
            raise FormatFault(f"position {position}: {fault.detail}") from None
        if entry.position != position:
            raise IntegrityFault(f"position {position}: the leaf says that it is position {entry.position}")
        version = self._versions.get(entry.stream, 0) + 1
        if entry.version != version:
            raise IntegrityFault(
                f"position {position}: stream {entry.stream} goes from version {version - 1} to {entry.version}"
            )
        self._versions[entry.stream] = version
        completed = self._frontier.append(leaf_hash(leaf))
        self._compare()
        return completed

    def _compare(self) -> None:
        signed = self._checkpoint
        if signed and signed.size == self.size and signed.root != self._frontier.root():
            raise IntegrityFault(
                f"the first {signed.size} events do not lead to the root that {signed.origin} signed",
                "the ledger was rewritten, or this is the checkpoint of another ledger",
            )

    def finish(self) -> None:
        """After the last leaf. Raises `IntegrityFault` where the checkpoint knows of more events than there are."""
        if self._checkpoint and self._checkpoint.size > self.size:
            raise IntegrityFault(
                f"the checkpoint covers {self._checkpoint.size} events, the ledger has only {self.size}",
                "events at the end are missing",
            )

    def report(self, fault: str = "") -> Report:
        signed = self._checkpoint
        return Report(
            size=self.size,
            root=self._frontier.root(),
            signed_size=signed.size if signed else 0,
            origin=signed.origin if signed else "",
            fault=fault,
        )


def verify_export(lines: Iterable[bytes], note: str, vkey: str) -> Report:
    """Check an exported ledger, one leaf a line, against a signed checkpoint. Needs no database and no node.

    The report names the first fault; nothing is raised for a bad ledger, note or key.
    """
    try:
        chain = Chain(note, vkey)
    except (FormatFault, IntegrityFault) as fault:
        return Chain().report(fault.detail)
    try:
        for line in lines:
            chain.add(line.removesuffix(b"\n"))
        chain.finish()
    except (FormatFault, IntegrityFault) as fault:
        return chain.report(fault.detail)
    return chain.report()


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ENTRY = msgspec.json.Decoder(Entry)
