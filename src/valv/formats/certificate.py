"""The certificate that a dataset version was destroyed, and the bundle that proves it offline.

Specified in `docs/formats/certificate.md`. The certificate is canonical JSON (as the ledger's leaves). The node does
not sign it by itself: the ledger holds its SHA-256, and the node signs the ledger. A bundle brings along the event, its
inclusion proof, a signed checkpoint and the signed minutes of the officers' order."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from typing import Final

import msgspec

from valv.errors import FormatFault, IntegrityFault
from valv.formats import minutes as minutes_format
from valv.formats import note
from valv.formats.ledger import canonical, decode_leaf
from valv.formats.merkle import leaf_hash, verify_inclusion

FORMAT: Final = "valv-certificate-1"
BUNDLE: Final = "valv-certificate-bundle-1"
EVENT: Final = "dataset.destruction_certified"


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What two officers ordered. `minutes`: number of the act in the node's key custody; `minutes_sha256`: of the
    signed minutes, hex; all but `signers` and `minutes` are '' where the minutes were lost."""

    ident: str
    reason: str
    signers: tuple[str, ...]
    minutes: int
    minutes_sha256: str


class Store(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A store of the node, also one in which nothing was. `backend`: its kind; `bytes`: of its `copies`, seals
    included; `verified`: when it was seen to have none of them any more."""

    name: str
    backend: str
    country: str
    unit: str
    copies: int
    bytes: int
    verified: str


class Copy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A copy of a file that was there when the key was destroyed. `body`: its name in the store, beside which lay its
    seal; `bytes`: both."""

    file: str
    body: str
    store: str
    bytes: int


class KeyBackup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place of the key backup: whole, and of a generation that does not have the key."""

    place: str
    generation: int


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place of ordinary backups. Those up to `generation`, made up to `at`, may hold the files, encrypted: nothing
    opens them any more."""

    place: str
    generation: int
    at: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times are RFC 3339 in UTC, whole seconds. `dataset_id` names the stream of the ledger; `files` and `bytes`: of
    the version, plain, as it was deposited, with the SHA-256 of its `manifest`; `generation`: of the root key that was
    made when `key` was destroyed; `completed`: when nothing was left."""

    format: str = FORMAT
    node: str
    country: str
    unit: str
    dataset: str
    dataset_id: str
    version: int
    files: int
    bytes: int
    manifest: str
    key: str
    generation: int
    destroyed: str
    order: Order
    stores: tuple[Store, ...]
    copies: tuple[Copy, ...]
    key_backups: tuple[KeyBackup, ...]
    backups: tuple[Backup, ...]
    completed: str


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`certificate`: the text; `leaf`: of the event that has its digest; `proof`: base64, of that leaf's inclusion in
    the tree of the signed `checkpoint`; `minutes`: signed, '' where they were lost."""

    format: str = BUNDLE
    certificate: str
    leaf: str
    proof: tuple[str, ...]
    checkpoint: str
    minutes: str


def time_text(at: datetime) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def encode(value: Certificate | Bundle) -> bytes:
    """Its one spelling."""
    return canonical(msgspec.to_builtins(value))


def digest(text: str) -> str:
    """SHA-256 of a certificate, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def decode(text: str) -> Certificate:
    """Read a certificate. Raises `FormatFault` where it is none, or not in its one spelling."""
    try:
        found = msgspec.json.decode(text, type=Certificate)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        raise FormatFault("this is no certificate of destruction") from None
    if found.format != FORMAT or encode(found) != text.encode():
        raise FormatFault("this certificate is of another form, or not in its one spelling")
    return found


def verify(data: bytes, vkey: str) -> Certificate:
    """Read a bundle and prove it against the verifier key of the node's ledger; no node is asked.

    Raises `FormatFault` where a part is of the wrong form, and `IntegrityFault` where they do not belong together or
    were not signed by that key.
    """
    try:
        bundle = msgspec.json.decode(data, type=Bundle)
        proof = [base64.b64decode(one, validate=True) for one in bundle.proof]
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise FormatFault(
            "this is no bundle of a certificate", "fetch it with 'valv dataset certificate fetch'"
        ) from None
    if bundle.format != BUNDLE:
        raise FormatFault("this bundle is of another form")
    found = decode(bundle.certificate)
    leaf = bundle.leaf.encode()
    entry = decode_leaf(leaf)
    if entry.tag != EVENT or entry.stream != f"dataset/{found.dataset_id}":
        raise IntegrityFault("the event in the bundle is not that of this certificate")
    try:
        said = msgspec.json.decode(entry.data, type=_Said)
    except msgspec.DecodeError:
        raise FormatFault("the event in the bundle is not that of a certificate") from None
    if said.version != found.version or said.digest != digest(bundle.certificate):
        raise IntegrityFault("the certificate is not the one whose digest is in the ledger")
    signed = note.Checkpoint.decode(note.verify(bundle.checkpoint, vkey))
    if signed.origin != found.node:
        raise IntegrityFault(f"the certificate is of {found.node}, the ledger of {signed.origin}")
    verify_inclusion(leaf_hash(leaf), entry.position, signed.size, proof, signed.root)
    _check_minutes(bundle.minutes, found, vkey)
    return found


class _Said(msgspec.Struct, frozen=True):
    version: int
    digest: str


def _check_minutes(text: str, found: Certificate, vkey: str) -> None:
    if (digest(text) if text else "") != found.order.minutes_sha256:
        raise IntegrityFault("the minutes in the bundle are not those that the certificate names")
    if not text:
        return
    note.verify(text, vkey)
    told = minutes_format.read(text)
    fits = told.wanted.deed == "destroy" and found.key in told.wanted.key_ids and told.node == found.node
    if not fits or told.signers != found.order.signers:
        raise IntegrityFault("the minutes in the bundle are of another order")


# --- for people ---


def readable(kept: str) -> str:
    """A certificate as text for people; those of earlier releases are that already."""
    try:
        return words(decode(kept))
    except FormatFault:
        return kept


def facts(found: Certificate) -> list[tuple[str, str]]:
    """What it says, apart from its tables: names and values."""
    order = found.order
    return [
        ("Node", f"{found.node} ({found.unit}, {found.country})"),
        ("Dataset", f"{found.dataset}, version {found.version} (id {found.dataset_id})"),
        ("Held", f"{found.bytes} bytes in {_files(found.files)}"),
        ("Key", found.key),
        ("Destroyed", _moment(found.destroyed)),
        ("Order", order.ident or "of a time whose minutes are lost"),
        ("Reason", order.reason or ("none was given" if order.ident else "")),
        ("Signed by", f"{', '.join(order.signers)}, officers of the node's keys"),
        ("Minutes", f"number {order.minutes} of the node's key custody"),
        ("Root key", f"made anew then, generation {found.generation}; the one before was destroyed"),
        ("Stored", f"{_copies(len(found.copies))} in {_stores(found)}, each with its seal, all deleted"),
        ("State", f"complete, {_moment(found.completed)}"),
    ]


def remark(found: Certificate) -> str:
    """What nobody should take the certificate for."""
    kept = (
        "Backups named above that were made before may hold the files, encrypted; nothing opens them. "
        if found.backups
        else ""
    )
    return (
        f"{kept}Of copies of the files or of the key backup that somebody made elsewhere, the node knows nothing; "
        "without the key, nothing opens such files."
    )


def words(found: Certificate) -> str:
    """The certificate as text."""
    lines = ["CERTIFICATE OF DESTRUCTION", ""]
    lines += [f"{name + ':':<13} {value}".rstrip() for name, value in facts(found)]
    lines += ["", "Stores:"]
    lines += [
        f"  {one.name} ({one.backend}; {one.unit}, {one.country}): {_copies(one.copies)}, {one.bytes} bytes; seen to"
        f" have none {_moment(one.verified)}"
        for one in found.stores
    ]
    lines.append("Key backup:")
    kept = [f"  {one.place}: generation {one.generation}, whole" for one in found.key_backups]
    lines += kept or ["  no place is configured"]
    lines.append("Backups:")
    others = [f"  {one.place}: up to generation {one.generation}, {_moment(one.at)}" for one in found.backups]
    lines += others or ["  the node knows of none"]
    lines.append("Copies (file, name in the store, store, bytes):")
    lines += [f"  {one.file} {one.body} {one.store} {one.bytes}" for one in found.copies]
    lines += ["", remark(found)]
    return "\n".join(lines)


def _moment(text: str) -> str:
    return f"{text[:10]} {text[11:19]} UTC"


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _copies(count: int) -> str:
    return "1 copy" if count == 1 else f"{count} copies"


def _stores(found: Certificate) -> str:
    count = sum(one.copies > 0 for one in found.stores)
    return "1 store" if count == 1 else f"{count} stores"
