"""Files whose data key somebody outside knows: what they put in a body's place is found, though tag and seal agree."""

from __future__ import annotations

from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.vault.forging import forge
from valv.app import intake, reading
from valv.formats import crypt4gh

KEY, NONCE = b"k" * 32, b"n" * 12
PLAIN = b"not found       " * 100


def row_of(s: Any, ident: str, path: str) -> dict[str, Any]:
    return next(row for row in s.rows("file", deposit=ident) if row["path"] == path)


def test_which_files_are_held_against_their_hash_tree(s: Any) -> None:
    ident = s.open(s.fresh())
    sealed = NONCE + ChaCha20Poly1305(KEY).encrypt(NONCE, PLAIN, None)
    s.send(ident, "sent.c4gh", crypt4gh.build_header(KEY, [s.node.keys.status().node_key]) + sealed)
    s.send(ident, "plain", PLAIN)
    s.submit(ident)
    assert reading.mounted(row_of(s, ident, "sent"), "p").tree_root
    intake.process_submitted(s.worker, s.reader)
    sent, plain = row_of(s, ident, "sent"), row_of(s, ident, "plain")
    assert s.deposit(ident).phase == "published"
    assert reading.mounted(sent, "p").tree_root == sent["tree_root"]
    assert len(sent["tree_root"]) == len(plain["tree_root"]) == 32
    assert reading.mounted(plain, "p").tree_root == b""
    del plain["known_outside"]  # as a result's row, which has no such column
    assert reading.mounted(plain, "p").tree_root


def test_a_forged_segment_is_found(s: Any) -> None:
    ident = s.open(s.fresh())
    sealed = NONCE + ChaCha20Poly1305(KEY).encrypt(NONCE, PLAIN, None)
    s.send(ident, "sent.c4gh", crypt4gh.build_header(KEY, [s.node.keys.status().node_key]) + sealed)
    s.submit(ident)
    forged = forge(KEY, sealed, 160, b"FOUND           ")
    assert ChaCha20Poly1305(KEY).decrypt(NONCE, forged[12:], None) != PLAIN
    path = next((s.world.folder / "store").rglob(row_of(s, ident, "sent")["body"]))
    path.chmod(0o600)
    path.write_bytes(forged)
    intake.process_submitted(s.worker, s.reader)
    assert s.deposit(ident).phase == "failed"
