"""Steps with rotations that several tests take."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from valv.app import inspection, intake, reading, rotating, rotation
from valv.app.node import Node, new_id
from valv.app.streams import ROTATION
from valv.errors import RefusedFault
from valv.formats import crypt4gh

FILES = {"a.txt": b"alpha " * 20_000, "b/c.txt": b"", "b/d.txt": b"delta", "participants.tsv": b"id\nperson1\n"}
TURNS = 60


def stored(s: Any) -> str:
    """A published dataset; one file of it came encrypted, so that somebody outside knows its data key."""
    found = s.fresh()
    ident = s.open(found)
    for path, content in FILES.items():
        if path != "participants.tsv":
            s.send(ident, path, content)
    key, nonce = b"k" * 32, b"n" * 12
    sealed = nonce + ChaCha20Poly1305(key).encrypt(nonce, b"known outside", None)
    s.send(ident, "sent.c4gh", crypt4gh.build_header(key, [s.node.keys.status().node_key]) + sealed)
    s.submit(ident)
    intake.process_submitted(s.worker, s.reader)
    assert s.deposit(ident).phase == "published"
    return str(found)


def content(path: str) -> bytes:
    return b"known outside" if path == "sent" else FILES[path]


def order(s: Any, name: str, aim: Any = "rotate", who: str = "olle", **more: Any) -> str:
    more.setdefault("command", new_id())
    (ident,) = rotation.start(s.node, s.who(who), name, aim=aim, reason="It is time.", **more)
    return str(ident)


def turn(s: Any, worker: Node | None = None, reader: Any = None) -> None:
    rotating.seal(worker or s.worker)
    rotating.encrypt(worker or s.worker, reader or s.reader)


def finish(s: Any, ident: str) -> Any:
    for _ in range(TURNS):
        turn(s)
        if s.state(ROTATION, ident).phase not in rotation.GOING:
            break
    return s.state(ROTATION, ident)


def rows_of(s: Any, name: str) -> list[dict[str, Any]]:
    current = s.dataset(name).current
    return sorted(s.rows("file", key_id=current.key_id), key=lambda row: str(row["path"]))


def readable(s: Any, name: str) -> None:
    """Every file gives its bytes, checked against seal and hash tree."""
    rows = rows_of(s, name)
    assert len(rows) == 4
    for row in rows:
        found = b"".join(reading.plain(s.worker, s.reader, reading.mounted({**row, "known_outside": True}, "p")))
        assert found == content(row["path"])
        assert hashlib.sha256(found).digest() == row["sha256"]


def sound(s: Any) -> None:
    assert list(inspection.manifests(s.node)) == []
    assert list(inspection.snapshots(s.node)) == []
    assert inspection.bodies(s.node)[0] == set()


@contextlib.contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(RefusedFault) as caught:
        yield
    assert caught.value.refusal.code == code


def clear(s: Any) -> None:
    s.clock.forward(seconds=rotating.GONE.total_seconds() + 1)
    while rotating.clear(s.worker):
        pass
