"""One place where the key backup lies: the newest generation, wrapped by the recovery key, and no other.

It is written beside the key holder's own folder at every change of a key. Where that fails (a place that is away), the
node goes on; the fault stays until the place is written whole again (`write`, which the worker asks for each minute).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from valv.errors import ConflictFault, Fault, KeyFault, StorageFault
from valv.keys import disk, recovery
from valv.keys.recovery import Recovery
from valv.keys.store import Store
from valv.ports.keys import Backup, RootKey

_GENERATION: Final = re.compile(r"generation-(\d{6,})")


def generation_name(number: int) -> str:
    return f"generation-{number:06d}"


def generations(path: Path) -> list[int]:
    """The whole generations that lie in a folder, ascending. Raises `StorageFault`."""
    with disk.storage_faults(path):
        return sorted(int(match[1]) for one in path.iterdir() if (match := _GENERATION.fullmatch(one.name)))


def leftovers(path: Path) -> list[Path]:
    """What a crash left half done."""
    with disk.storage_faults(path):
        return [one for one in path.iterdir() if one.name.startswith(".generation-")]


class Mirror:
    """For one thread at a time. `path`: the folder of this node in that place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fault = "it was not looked at yet"

    def status(self) -> Backup:
        try:
            newest = max(generations(self._path), default=0)
        except Fault as fault:
            return Backup(str(self._path), 0, self._fault or fault.detail)
        return Backup(str(self._path), newest, self._fault)

    def write(self, store: Store, given: Recovery, key: RootKey, number: int) -> None:
        """Write the whole generation `number`, then overwrite and remove all others. Faults are kept, not raised. What
        is newer stays, and is a fault: the node may have been recovered from an older backup by mistake."""
        try:
            if max(generations(self._path), default=0) > number:
                raise ConflictFault(f"{self._path} holds a newer generation than the node's, {number}")
            for path in leftovers(self._path):
                disk.wipe_tree(path)
            name = generation_name(number)
            fresh, place = self._path / f".{name}", self._path / name
            with disk.storage_faults(fresh):
                fresh.mkdir(mode=0o700)
            copied = store.copy_keys(fresh, key)
            disk.write(fresh / recovery.FILE, given.outside())
            old = self._path / f".{name}.old"
            with store.still():  # no change is lost between the copy and its place
                store.copy(fresh, key, copied)
                with disk.storage_faults(place):
                    if place.exists():  # of the same generation: what it holds is in the new one too
                        place.rename(old)
                    fresh.rename(place)
                    disk.sync_folder(self._path)
                self._fault = ""
            disk.wipe_tree(old)
            for other in generations(self._path):
                if other != number:
                    disk.wipe_tree(self._path / generation_name(other))
        except Fault as fault:
            self._fault = fault.detail

    def check(self, store: Store, key: RootKey, number: int) -> None:
        """Raises `StorageFault` where it is behind, `KeyFault` where it does not open or has other keys."""
        if self._fault:
            raise StorageFault(self._fault, "bring this place of the key backup back first: a drill opens it")
        copy = Store(self._path / generation_name(number), key, read_only=True)
        try:
            for key_id in store.key_ids:
                if copy.unlock(key_id)[1] != store.unlock(key_id)[1]:
                    raise KeyFault(
                        f"{self._path} has another key {key_id}", "remove what lies there: it is written anew"
                    )
        finally:
            copy.close()

    def put(self, store: Store, key: RootKey, number: int, key_id: str) -> None:
        """Take over one key that was made or changed."""
        if self._fault:
            return  # it is written whole the next time
        folder = self._path / generation_name(number)
        try:
            if not folder.exists():
                raise StorageFault(f"{folder} is gone")
            disk.write(folder / "keys" / f"{key_id}.json", store.record(key_id, key), wipe_old=True)
            disk.write(folder / "index.json", store.index(key))
        except Fault as fault:
            self._fault = fault.detail

    def put_checkpoint(self, store: Store, key: RootKey, number: int) -> None:
        """Take over the last signed checkpoint and what officers ordered. Not at each signature: a minute's delay does
        no harm, for it only says where the ledger must at least have come to."""
        if self._fault:
            return
        folder = self._path / generation_name(number)
        try:
            disk.write(folder / "checkpoint.json", store.last_checkpoint(key))
            disk.write(folder / "custody.json", store.custody(key))
        except Fault as fault:
            self._fault = fault.detail
