"""The key holder's folder: the generations of its keys, of which one lives.

    CACHEDIR.TAG           tells backup programs to leave this folder out: keys have a backup of their own
    generation-000003/     the living one (`valv.keys.store`)

To make the root key anew (`roll`), a whole new generation is written beside the living one, under the new root key, and
takes its place by one rename. Then the old root key is discarded and the old generation overwritten. A crash leaves
either the old generation, and something that is cleared away at the next opening, or the new one, and likewise.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from valv.core import custody
from valv.core.custody import Custody
from valv.errors import ConflictFault, FormatFault, KeyFault, MissingFault
from valv.formats.officer import Officer
from valv.keys import disk, recovery
from valv.keys.file import SecretRoot
from valv.keys.mirror import Mirror, generation_name, generations, leftovers
from valv.keys.recovery import Recovery, Unsealing
from valv.keys.store import RESTORE, Act, Store, exclusive
from valv.ports.keys import Backup, Keyring, OpenRoot

TAG: Final = "CACHEDIR.TAG"
TAG_CONTENT: Final = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# Wrapped keys. They have a backup of their own (keys.backup), of which only the newest generation lives:\n"
    b"# a copy in an ordinary backup would outlive the destruction of a key. See https://bford.info/cachedir/\n"
)

log: Final = logging.getLogger("valv.keyd")


class Dealing(msgspec.Struct, frozen=True):
    """What a ceremony decided: to whom shares are dealt. `passphrase`: what the keyring opens with from now on, given
    where two persons unseal."""

    officers: tuple[Officer, ...]
    threshold: int
    persons: int
    passphrase: bytes = b""

    def __repr__(self) -> str:
        return "Dealing()"


def create(path: Path, name: str, keyring: Keyring, passphrase: bytes) -> OpenRoot:
    """Fill the empty folder `path` with the first generation of a new node's keys. The root key that was made is still
    open: discard it (`discard`) where the node cannot be made after all, else wipe it."""
    first = path / generation_name(1)
    with disk.storage_faults(first):
        first.mkdir(mode=0o700)
    root = keyring.create(first, passphrase)
    try:
        Store.create(first, name, root)
        disk.write(path / TAG, TAG_CONTENT)
    except BaseException:
        root.discard(first)
        raise
    return root


def discard(path: Path, root: OpenRoot) -> None:
    """Undo `create`."""
    root.discard(path / generation_name(1))
    disk.wipe_tree(path)


def newest(path: Path) -> int:
    """The number of the living generation. Raises `MissingFault` where there is none."""
    found = generations(path)
    if not found:
        if (path / "node.json").exists():
            raise FormatFault(f"{path} is of an older version", "make the node anew with 'valv node create'")
        raise MissingFault(f"{path} holds no keys", "recover them with 'valv keys recover'")
    return found[-1]


def unsealing(path: Path) -> Unsealing | None:
    """How officers unseal the living generation; None where the passphrase alone does."""
    return recovery.read_unsealing(path / generation_name(newest(path)))


def fold(acts: Sequence[Act]) -> Custody | None:
    """The state that these acts lead to."""
    state: Custody | None = None
    for act in acts:
        state = custody.evolve(state, msgspec.json.decode(act.event, type=custody.Events))
    return state


class Folder:
    """The opened folder: the store and the root key of its living generation, and the places of the key backup."""

    def __init__(self, path: Path, keyring: Keyring, passphrase: bytes, places: Sequence[Path] = ()) -> None:
        """Open the living generation and clear away what a crash left. Faults as `Store` and `Keyring.open`."""
        self._path = path
        self._mirrors = [Mirror(place) for place in places]
        self._old: list[tuple[OpenRoot, Path]] = []
        self._key: SecretRoot | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, exclusive(path))  # each generation has a lock of its own, and they change
            self.generation = newest(path)
            self.root = keyring.open(self._living, passphrase)
            undo.callback(self._forget)
            self.store = Store(self._living, self.root)
            undo.callback(lambda: self.store.close())
            self._recovery, self.unsealing = recovery.read(self._living), recovery.read_unsealing(self._living)
            self._check()
            self._key = self._recovery.key(self.root) if self._recovery else None
            self._clear(keyring, passphrase)
            self._opened = undo.pop_all()
        self.back_up()

    def close(self) -> None:
        """Forget the root key. Repeating is no error."""
        self._forget()  # first: then nobody begins anything new
        self._opened.close()

    def _forget(self) -> None:
        self.root.wipe()
        if self._key is not None:
            self._key.wipe()

    def _check(self) -> None:
        """What is not authenticated by itself must agree with what is. Without the shares, for example, the next root
        key would be dealt to nobody."""
        state, living = self.custody, self._living
        if self.store.generation != self.generation:
            raise KeyFault(f"{living} holds generation {self.store.generation}, under another's name", RESTORE)
        if (state is None) != (self._recovery is None):
            raise KeyFault(f"{living / recovery.FILE} does not agree with what officers ordered", RESTORE)
        if (state is not None and state.persons > 1) != (self.unsealing is not None):
            raise KeyFault(f"{living / recovery.UNSEAL} does not agree with what officers ordered", RESTORE)

    @property
    def shares(self) -> dict[str, bytes]:
        """The sealed shares of the recovery key, by officer."""
        return self._recovery.shares if self._recovery else {}

    @property
    def custody(self) -> Custody | None:
        """Who the officers are, folded from what was ordered."""
        return fold(self.store.acts)

    def check_shares(self, words: Sequence[str]) -> None:
        """Raises `KeyFault` unless these shares give the recovery key of this generation and open what lies in every
        place of the key backup, `StorageFault` where a place is away or behind."""
        if self._recovery is None or self._key is None:
            return
        self._recovery.check(words, self.root)
        self.back_up()
        with self.store.still():
            for mirror in self._mirrors:
                mirror.check(self.store, self._key, self.generation)

    def add_act(self, act: Act) -> None:
        """Keep what was ordered and changes no key."""
        self.store.add_act(act)
        self.back_up()

    # --- the key backup ---

    def back_up(self) -> list[Backup]:
        """Destroy older generations; bring every place up to date; how each stands."""
        self._discard_old()
        if self._recovery is not None and self._key is not None:
            for mirror in self._mirrors:
                status = mirror.status()
                if status.fault or status.generation != self.generation:
                    mirror.write(self.store, self._recovery, self._key, self.generation)
                else:
                    with self.store.still():
                        mirror.put_checkpoint(self.store, self._key, self.generation)
        return self.backups

    @property
    def backups(self) -> list[Backup]:
        if self._recovery is None:
            why = "there is nobody yet to recover it: hold a ceremony"
            return [msgspec.structs.replace(mirror.status(), fault=why) for mirror in self._mirrors]
        return [mirror.status() for mirror in self._mirrors]

    def changed(self, key_id: str) -> None:
        """Tell the key backup of one key that was made or changed."""
        with self.store.still():
            if self._key is not None:
                for mirror in self._mirrors:
                    mirror.put(self.store, self._key, self.generation, key_id)

    # --- generations ---

    def roll(self, *, without: frozenset[str] = frozenset(), act: Act | None = None, to: Dealing | None = None) -> None:
        """Make the root key anew and re-wrap everything but the keys `without`, which are thereby destroyed; deal new
        shares, to the officers of `to` or to those there are. Where it fails, nothing has changed. Others go on while
        the keys are copied. One at a time."""
        number = self.generation + 1
        name = generation_name(number)
        fresh = self._path / f".{name}"
        if fresh.exists():
            raise ConflictFault(f"{fresh} was left by an attempt that failed", "restart the key holder: it clears it")
        with disk.storage_faults(fresh):
            fresh.mkdir(mode=0o700)
        passphrase, placed = to.passphrase if to and to.passphrase else None, False
        try:
            root = self.root.renew(fresh, passphrase)
        except BaseException:
            with contextlib.suppress(OSError):  # what lies in it names a key that is still to be destroyed
                fresh.rmdir()
            raise
        try:
            given, unsealing = self._deal(fresh, root, to)
            copied = self.store.copy_keys(fresh, root, without)
            with self.store.still():
                self.store.copy(fresh, root, copied, generation=number, without=without, acts=[act] if act else ())
                self._put_in_place(fresh, self._path / name)
                placed = True
                self._switch(number, root, given, unsealing)
        except BaseException:
            if not placed:
                root.discard(fresh)
                disk.wipe_tree(fresh)
            raise
        self.back_up()

    def _put_in_place(self, fresh: Path, place: Path) -> None:
        """From here on the new generation lives; or, where that cannot be made durable, it is `fresh` again."""
        with disk.storage_faults(fresh):
            fresh.rename(place)
            try:
                disk.sync_folder(self._path)
            except BaseException:
                place.rename(fresh)
                raise

    def _deal(self, fresh: Path, root: OpenRoot, to: Dealing | None) -> tuple[Recovery | None, Unsealing | None]:
        """Write the shares of a new generation."""
        state = self.custody
        if to is not None:
            unsealing = Unsealing.deal(to.officers, to.persons, to.passphrase) if to.persons > 1 else None
            given = Recovery.deal(to.officers, to.threshold, root)
        elif state is not None:
            unsealing = self.unsealing  # the passphrase stays, and so do its shares
            given = Recovery.deal(state.officers, state.threshold, root)
        else:
            return None, None
        recovery.write(fresh, given, unsealing)
        return given, unsealing

    def _switch(self, number: int, root: OpenRoot, given: Recovery | None, unsealing: Unsealing | None) -> None:
        """Go on with the new generation, which is durable. The old one is destroyed next, by `back_up`."""
        old, old_root, old_key = self._living, self.root, self._key
        try:
            self.store.switch(self._path / generation_name(number), root)
            self._key = given.key(root) if given else None
        except BaseException:
            self.close()  # what is changed from now on would be lost with the old generation
            root.wipe()
            raise
        self.generation, self.root, self._recovery, self.unsealing = number, root, given, unsealing
        if old_key is not None:
            old_key.wipe()
        self._old.append((old_root, old))

    def _discard_old(self) -> None:
        """Destroy the generations that this one took the place of. Where the disk fails, it is tried again with the
        next backup and at the next opening."""
        while self._old:
            root, path = self._old[-1]
            root.discard(path)
            disk.wipe_tree(path)
            self._old.pop()

    def _clear(self, keyring: Keyring, passphrase: bytes) -> None:
        """Destroy what a crash left: older generations, and one that was not whole yet."""
        older = [self._path / generation_name(one) for one in generations(self._path) if one != self.generation]
        for path in (*older, *leftovers(self._path)):
            log.warning("%s was left by a crash; it is destroyed", path)
            keyring.discard(path, passphrase)
            disk.wipe_tree(path)

    @property
    def _living(self) -> Path:
        return self._path / generation_name(self.generation)
