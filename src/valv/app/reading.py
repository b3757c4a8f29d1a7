"""Plain bytes for a caller that may see them, through a reader process of its own with an ephemeral key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from valv.app.node import Node, new_id
from valv.errors import RefusedFault
from valv.ports.compute import MountedFile, Reader
from valv.ports.records import Unit

GRANT = 300.0
"""Seconds that a reader's grant lasts at most; it opens its header at the start."""
BATCH = 5000
"""Ids in one query: databases bound how many a statement may have."""


def plain(node: Node, reader: Reader, file: MountedFile) -> Iterator[bytes]:
    """The plain bytes of one stored file. The caller has checked that it may."""
    for last in (False, True):
        token, uid = reader.reserve()
        grant = f"read-{new_id()}"
        node.keys.grant(grant, [file.key_id], uid, GRANT)
        begun = False
        try:
            for piece in reader.read(token, grant, file):
                begun = True
                yield piece
            return
        except RefusedFault as refused:
            # A key holder that began anew meanwhile knows no grants; the right to read stands.
            if last or begun or refused.refusal.code != "no_grant":
                raise
        finally:
            node.keys.revoke(grant)


def files(unit: Unit, dataset_id: str, version: int) -> list[dict[str, Any]]:
    """The rows of the files of a dataset version, by path."""
    members = unit.rows("dataset_version_file", {"dataset": dataset_id, "version": version})
    found: list[dict[str, Any]] = []
    for start in range(0, len(members), BATCH):
        found += unit.rows("file", {"id": [member["file"] for member in members[start : start + BATCH]]})
    return sorted(found, key=lambda row: str(row["path"]))


def shared(unit: Unit, bodies: Sequence[str], but: str = "") -> set[str]:
    """Which of these bodies are of a file that can be read, other than those of the key `but`: a version that took the
    place of another has the bodies of all files that did not change."""
    found: set[str] = set()
    for start in range(0, len(bodies), BATCH):
        rows = unit.rows("file", {"body": list(bodies[start : start + BATCH]), "state": ("received", "verified")})
        found.update(row["body"] for row in rows if row["key_id"] != but)
    return found


def mounted(row: dict[str, Any], path: str) -> MountedFile:
    """A row of `file` or `release_file` as a reader process needs it; `path`: where it is seen.

    The data key of a file that was sent encrypted is known to whoever encrypted it, that of a download or a result to
    whoever it was given to: they are held against their hash trees.
    """
    return MountedFile(
        file_id=row["id"],
        path=path,
        body=row["body"],
        header=row["header"],
        key_id=row["key_id"],
        size=row["size"],
        seal_root=row["seal_root"],
        tree_root=row["tree_root"] if row.get("known_outside", True) else b"",
    )
