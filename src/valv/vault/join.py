"""Pieces of a file, each encrypted by itself, into the one body that the file is kept as. For the confined process
that has the keys; nobody else sees a plain byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain

from valv.errors import Fault, InputFault
from valv.formats.crypt4gh import MAGIC, generate_keypair
from valv.formats.seal import sidecar
from valv.ports.compute import Joined, MountedFile
from valv.ports.storage import BodyWriter, Storage
from valv.vault.encrypt import Encryptor, Sealed
from valv.vault.reader import open_reader
from valv.vault.take import Taken, Taker


def join(
    storage: Storage,
    parts: Sequence[MountedFile],
    reseal: Callable[[MountedFile, bytes], bytes],
    *,
    public_key: bytes,
    body: str,
) -> Joined:
    """Write what `parts` hold, one after another, into the same store under the name `body` and its sidecar.

    `reseal(part, public)` gives a part's header for a public key that was made for this call; all are asked for first.
    What the parts hold together is encrypted for `public_key` (raw), unless it is a Crypt4GH file already: that is
    taken as it is. Durable when this returns; after a fault nothing that this call wrote is left. Raises `KeyFault`,
    `FormatFault`, `IntegrityFault`, `MissingFault` and storage faults.
    """
    if not parts:
        raise InputFault("there is nothing to join")
    keys = generate_keypair()
    headers = [reseal(part, keys.public) for part in parts]
    stream = _plain(storage, parts, headers, keys.private)
    first = _at_least(stream, len(MAGIC))
    sealed = first.startswith(MAGIC)
    writer = storage.writer(body)
    seal_writer: BodyWriter | None = None
    try:
        seal_writer = storage.writer(sidecar(body))
        sink = Taker(writer, seal_writer) if sealed else Encryptor(writer, seal_writer, public_key)
        made, digest = _write(sink, first, stream, sealed)
    except BaseException:
        stream.close()
        for one in (writer, seal_writer):
            if one is not None:
                one.abort()
        for name in (body, sidecar(body)):
            with suppress(Fault):
                storage.delete(name)
        raise
    return Joined(
        header=made.header,
        size=made.size,
        cipher_size=made.cipher_size,
        segments=made.segments,
        seal_root=made.seal_root,
        tree_root=made.tree_root,
        sha256=digest,
        sealed=sealed,
    )


def _write(
    sink: Taker | Encryptor, first: bytes, stream: Iterator[bytes], sealed: bool
) -> tuple[Sealed | Taken, bytes]:
    """What was made, and SHA-256 of what came."""
    whole = hashlib.sha256()
    try:
        for chunk in chain((first,), stream):
            if sealed:
                whole.update(chunk)
            sink.write(chunk)
        made = sink.finish()
    except BaseException:
        sink.abort()
        raise
    return made, made.sha256 if isinstance(made, Sealed) else whole.digest()


def _plain(
    storage: Storage, parts: Sequence[MountedFile], headers: Sequence[bytes], private: bytes
) -> Generator[bytes, None, None]:
    for part, header in zip(parts, headers, strict=True):
        reader = open_reader(
            storage.open,
            part.body,
            header,
            private,
            size=part.size,
            seal_root=part.seal_root,
            tree_root=part.tree_root,
        )
        with closing(reader):
            yield from reader.chunks()


def _at_least(stream: Iterator[bytes], count: int) -> bytes:
    first = b""
    for chunk in stream:
        first += chunk
        if len(first) >= count:
            break
    return first
