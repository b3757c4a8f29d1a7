"""The identifier scan of a version that is claimed to be anonymised: a run of the node's own, and its report."""

from __future__ import annotations

from importlib import resources
from typing import Any

import msgspec

from valv.app import dataset as datasets
from valv.app import reading, running, streams
from valv.app import text as texts
from valv.app.node import Node, derived_id, each
from valv.app.streams import DATASET, RELEASE, RUN
from valv.core import dataset
from valv.core.process import NODE
from valv.errors import Fault
from valv.ports.compute import Limits, Reader

TRIES = 3
LARGEST = 8 << 20
"""Bytes of a report."""


class Place(msgspec.Struct, frozen=True):
    file: str
    kind: str
    count: int
    line: int


class Report(msgspec.Struct, frozen=True):
    """What the scanner wrote. It ran over hostile content, so that it is read strictly and believed only as a hint: a
    person assesses. `binary`: files that it could not look into."""

    scanner: int
    files: int
    binary: int
    findings: list[Place]

    def text(self) -> str:
        """For the assessor: as many places as a kept text has room for."""
        lines = [f"{self.files} files were scanned, {self.binary} of them binary and not looked into."]
        lines.append(f"{len(self.findings)} findings.")
        room = texts.LONGEST - 200
        for number, place in enumerate(self.findings):
            line = f"{place.file}: {place.kind}, {place.count} times, first in line {place.line}"
            room -= len(line) + 1
            if room < 0:
                lines.append(f"… and {len(self.findings) - number} more.")
                break
            lines.append(line)
        return "\n".join(lines)


def command_line() -> tuple[str, ...]:
    """The scanner as one Python program text, for a sandbox that has nothing of Valv."""
    patterns = resources.files("valv.formats").joinpath("identifiers.py").read_text("utf-8")
    walker = resources.files("valv.app").joinpath("scanner.py").read_text("utf-8")
    return ("python3", "-I", "-c", f"{patterns}\n\n{walker}\n\nmain(find, columns)\n")


def step(node: Node, reader: Reader) -> int:
    """Bring every pending scan one step further. Returns how many are pending."""
    with node.records.reading() as unit:
        rows = unit.rows("dataset", {"claimed": "anonymised", "class": "identifiable", "visible": True})
        pending = []
        for row in rows:
            state, _ = streams.need(unit, DATASET, row["id"])
            version = state.current
            if version and version.claimed == "anonymised" and version.findings is None and not version.closed:
                pending.append((state, version))
    each(pending, lambda one: _advance(node, reader, *one))
    return len(pending)


def _advance(node: Node, reader: Reader, state: dataset.Dataset, version: dataset.Version) -> None:
    for attempt in range(TRIES):
        ident = derived_id(NODE, "scan", f"{state.dataset_id}:{version.number}:{attempt}")
        with node.records.reading() as unit:
            going = streams.load(unit, RUN, ident).state
        if going is None:
            _queue(node, ident, state, version)
            return
        if going.phase not in ("collected", "cancelled"):
            return
        report = _report(node, reader, ident) if going.success else None
        if report is not None:
            datasets.record_scan(node, state.dataset_id, version.number, len(report.findings), report.text())
            return
    text = "The scan did not come to an end, so that nothing is known of identifiers. A person must look at the files."
    datasets.record_scan(node, state.dataset_id, version.number, 1, text)


def _queue(node: Node, ident: str, state: dataset.Dataset, version: dataset.Version) -> None:
    most = node.config.compute
    limits = Limits(
        seconds=min(most.seconds, 4 * 3600),
        memory=min(most.memory, 1 << 30),
        processes=min(most.processes, 16),
        scratch=min(most.scratch, 64 << 20),
    )
    running.queue_scan(node, ident, state.dataset_id, version.number, command_line(), limits)


def _report(node: Node, reader: Reader, run_id: str) -> Report | None:
    """The report in the run's outputs; None where it is missing or has not its form."""
    with node.records.reading() as unit:
        found = streams.find(unit, RELEASE, link=("run", run_id), limit=1)
        rows: list[dict[str, Any]] = []
        if found:
            rows = unit.rows("release_file", {"release": found[0].release_id, "path": "report.json"})
    if not rows or rows[0]["size"] > LARGEST:
        return None
    try:
        content = b"".join(reading.plain(node, reader, reading.mounted(rows[0], "report.json")))
        return msgspec.json.decode(content, type=Report)
    except (Fault, msgspec.DecodeError, UnicodeDecodeError):
        return None
