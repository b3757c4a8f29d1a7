"""The open files of a mount: one reader per file, shared by all who have it open."""

from __future__ import annotations

import threading
from collections.abc import Callable

from valv.errors import FormatFault, UnreachableFault
from valv.formats.crypt4gh import KeyPair, open_header
from valv.ports.compute import MountedFile
from valv.ports.storage import Body
from valv.vault.reader import SealedReader, open_with_keys


class KeysAwayFault(UnreachableFault):
    """The key holder does not answer: whether the file may be read is not known."""


class FileGate:
    """One mounted file. The first `acquire` gets its header re-sealed and opens the body; the last `release` closes it.
    The data keys are kept for the next time: they live as long as the mount's own key pair."""

    def __init__(
        self,
        file: MountedFile,
        keys: KeyPair,
        open_body: Callable[[str], Body],
        reseal: Callable[[MountedFile, bytes], bytes],
    ) -> None:
        self._file = file
        self._keys = keys
        self._open_body = open_body
        self._reseal = reseal
        self._lock = threading.Lock()
        self._users = 0
        self._reader: SealedReader | None = None
        self._data_keys: tuple[bytes, ...] = ()

    def acquire(self) -> SealedReader:
        """The reader, to be given back by `release`. Raises every fault of `open_reader` and of the re-sealing;
        `KeysAwayFault` where it is the key holder that does not answer, `UnreachableFault` where a store does not."""
        with self._lock:
            if self._reader is None:
                self._reader = open_with_keys(
                    self._open_body,
                    self._file.body,
                    self._data_keys or self._fetch_keys(),
                    size=self._file.size,
                    seal_root=self._file.seal_root,
                    tree_root=self._file.tree_root,
                )
            self._users += 1
            return self._reader

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._reader is not None:
                self._reader.close()
                self._reader = None

    def _fetch_keys(self) -> tuple[bytes, ...]:
        try:
            header = self._reseal(self._file, self._keys.public)
        except UnreachableFault as fault:
            raise KeysAwayFault(fault.detail, fault.hint) from None
        opened = open_header(header, [self._keys.private])
        if opened.edit_list is not None:
            raise FormatFault("the Crypt4GH header has an edit list")
        self._data_keys = opened.data_keys
        return opened.data_keys
