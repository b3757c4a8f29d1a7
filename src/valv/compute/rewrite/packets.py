"""Phenopackets (GA4GH, version 2) without some people: a packet out of a list, a cohort or a family; also a file with
one packet a line. A packet of the person alone is no file any more."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from .names import Cannot, Names

LARGEST = 128 << 20
"""Bytes of one JSON text."""
IDS = ("id", "individualId", "individual_id", "subjectId", "subject_id", "sampleId", "sample_id", "pseudonym")


def rewrite(source: io.BufferedReader, names: Names, write: Callable[[bytes], None]) -> bool:
    """Write the file without these people. Returns False where it is of them alone. Raises `Cannot`."""
    text = source.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise Cannot("large")
    tree = Tree(names)
    whole = json.loads(text)
    if tree.theirs(whole):
        return False
    made = tree.without(whole)
    if not tree.removed:
        raise Cannot("not_found")
    if made in ([], {}) or (isinstance(made, dict) and isinstance(whole.get("members"), list) and not made["members"]):
        return False
    write(json.dumps(made, ensure_ascii=False, indent=2 if b"\n " in text else None).encode() + b"\n")
    return True


def rewrite_lines(source: Iterator[bytes], names: Names, write: Callable[[bytes], None]) -> bool:
    """The same for a file with one packet a line."""
    tree, left = Tree(names), 0
    for row in source:
        if not row.strip():
            continue
        whole = json.loads(row)
        if tree.theirs(whole):
            tree.removed += 1
            continue
        before = tree.removed
        made = tree.without(whole)
        left += 1
        write(json.dumps(made, ensure_ascii=False).encode() + b"\n" if tree.removed > before else row)
    if not tree.removed:
        raise Cannot("not_found")
    return left > 0


class Tree:
    """Takes the people out of a JSON value. `removed`: how many entries went."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self.removed = 0

    def theirs(self, value: Any) -> bool:
        """Whether this value is one of the people, or speaks of them alone."""
        if not isinstance(value, dict):
            return False
        subject = value.get("subject")
        if isinstance(subject, dict) and self._is(subject.get("id")):
            return True
        if isinstance(value.get("proband"), dict) and self.theirs(value["proband"]):
            if value.get("relatives"):
                raise Cannot("proband")
            return True
        return any(self._is(value.get(key)) for key in IDS)

    def without(self, value: Any) -> Any:
        if isinstance(value, list):
            kept = [entry for entry in value if not self._goes(entry)]
            self.removed += len(value) - len(kept)
            return [self.without(entry) for entry in kept]
        if isinstance(value, dict):
            made = {}
            for key, entry in value.items():
                if self._names.are(key):  # a map from people to something
                    self.removed += 1
                elif key in ("paternalId", "maternalId") and self._is(entry):
                    self.removed += 1
                    made[key] = "0"  # of a pedigree: not known
                else:
                    made[key] = self.without(entry)
            return made
        return value

    def _goes(self, entry: Any) -> bool:
        return self.theirs(entry) or (isinstance(entry, str) and self._names.are(entry))

    def _is(self, value: Any) -> bool:
        return isinstance(value, str) and self._names.are(value)
