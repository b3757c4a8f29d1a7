"""The keys used last, kept loaded: loading one costs as much as a quarter of re-sealing a header with it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from valv.formats.crypt4gh import Keys
from valv.keys.store import KeyRecord, Store

MOST: Final = 64
"""Keys that are kept."""


class Loaded:
    """What `Store.unlock` gives, ready for use. The record is read and checked each time all the same. Safe for several
    threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._kept: OrderedDict[tuple[bytes, ...], Keys] = OrderedDict()
        self._cleared = 0

    def unlock(self, store: Store, key_id: str, *, oldest_first: bool = False) -> tuple[KeyRecord, Keys]:
        """The record of a key and its private halves, those first that likely fit. Raises as `Store.unlock` does."""
        cleared = self._cleared
        record, privates = store.unlock(key_id)
        publics = [pair.public for pair in reversed(record.pairs)]
        if oldest_first:
            privates, publics = privates[::-1], publics[::-1]
        known = tuple(publics)
        with self._mutex:
            keys = self._kept.pop(known, None) or Keys(privates)
            if cleared == self._cleared:  # else it may be one of those that had to be forgotten
                self._kept[known] = keys
            while len(self._kept) > MOST:
                self._kept.popitem(last=False)
        return record, keys

    def clear(self) -> None:
        """Forget all, after some were destroyed."""
        with self._mutex:
            self._kept.clear()
            self._cleared += 1
