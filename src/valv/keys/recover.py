"""Recovering a node's keys from the key backup, with the shares of its officers. The key holder is not running.

A backup may be older than the node: what the ledger says that officers did since then counts here too. What they
destroyed is not brought back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from valv.core import custody
from valv.core.process import encode
from valv.errors import ConflictFault, FormatFault, KeyFault, Refusal, RefusedFault
from valv.formats import note, order, shares
from valv.formats.officer import Officer
from valv.keys import disk, folder, orders, recovery
from valv.keys.file import SecretRoot
from valv.keys.memory import Secret
from valv.keys.mirror import generation_name
from valv.keys.recovery import Recovery, Unsealing
from valv.keys.store import Act, Checkpoint, Store
from valv.ports.keys import Keyring, OpenRoot


def sealed_share(place: Path, officer: str) -> bytes:
    """An officer's sealed share in a place of the key backup. Raises `RefusedFault` for nobody of that name,
    `MissingFault` and `FormatFault` where there is no backup."""
    found = _given(place)[1].shares.get(officer)
    if found is None:
        raise RefusedFault(Refusal("officer_unknown", officer))
    return found


def log_key(place: Path) -> str:
    """The C2SP verifier key of the ledger that belongs to this key backup. It is authenticated only when the backup is
    opened."""
    node = Store.named(place / generation_name(folder.newest(place)))
    return note.verifier_key(node.name, node.log_public)


def recover(
    place: Path,
    path: Path,
    keyring: Keyring,
    signed: str,
    words: Sequence[str],
    *,
    passphrase: bytes,
    known: Sequence[bytes],
    now: datetime,
    fits: Callable[[Checkpoint], bool] = lambda _: True,
    left: Checkpoint | None = None,
) -> str:
    """Make the key folder `path`, which is not there, from the key backup in `place`; returns the minutes.

    `signed`: the officers' order; `words`: their opened shares; `passphrase`: what the new root key opens with, where
    one person unseals, or the token's PIN; `known`: the custody events of the node's ledger, as JSON. They say who the
    officers are now: verify the ledger against its last checkpoint before. `fits`: whether the ledger continues what
    was signed last; where it does not, and says itself that it lost its end and what was `left` (an operator accepted
    that), the new key holder goes on from there, by the officers' order. Raises `RefusedFault` where the core
    refuses, `KeyFault` where the shares do not open this backup, `ConflictFault` where there are keys at `path`.
    """
    if path.exists():
        raise ConflictFault(f"{path} exists", "keys are never overwritten; put that folder aside first")
    number, _ = _given(place)
    key = SecretRoot(Secret(shares.combine(words)))
    try:
        store = _open(place / generation_name(number), key)
        try:
            later = _later(store, known)
            event = _decide(store, signed, words, max([number, *(one.generation for one in later)]), now)
            minutes = orders.sign_minutes(store.name, store.log_private(), event, signed)
            gone = frozenset(key_id for one in later if isinstance(one, custody.Destroyed) for key_id in one.key_ids)
            acts = [Act("", encode(one)[1], "") for one in later]  # their minutes are in the ledger
            acts.append(Act(order.decode(note.read(signed)[0]).ident, encode(event)[1], minutes))
            signed_last = left if left is not None and not fits(store.checkpoint) else None
            _write(path, keyring, passphrase, store, gone, acts, signed_last)
        finally:
            store.close()
    finally:
        key.wipe()
    return minutes


def _given(place: Path) -> tuple[int, Recovery]:
    number = folder.newest(place)
    given = recovery.read(place / generation_name(number))
    if given is None:
        raise FormatFault(f"{place} is no key backup: it has no shares", "name the folder that keys.backup names")
    return number, given


def _open(path: Path, key: SecretRoot) -> Store:
    try:
        return Store(path, key, read_only=True)
    except KeyFault as fault:
        raise KeyFault(f"the shares do not open this backup, or it was altered: {fault.detail}") from None


def _later(store: Store, known: Sequence[bytes]) -> list[custody.Events]:
    """What the ledger knows and the backup does not. Raises `KeyFault` where they contradict each other."""
    ours, theirs = [act.event for act in store.acts], list(known)
    both = min(len(ours), len(theirs))
    if [*map(orders.decode_event, ours[:both])] != [*map(orders.decode_event, theirs[:both])]:
        raise KeyFault(
            "the key backup and the ledger tell different stories", "take the backup that belongs to this node's ledger"
        )
    return [orders.decode_event(data) for data in theirs[both:]]


def _decide(store: Store, signed: str, words: Sequence[str], generation: int, now: datetime) -> custody.Recovered:
    wanted = order.decode(note.read(signed)[0])
    if wanted.node != store.name:
        raise RefusedFault(Refusal("order_foreign", f"it is for {wanted.node}, the backup is of {store.name}"))
    state = folder.fold(store.acts)
    officers: tuple[Officer, ...] = state.officers if state else ()
    facts = custody.Facts(
        signed=orders.signatures(signed, officers), now=now, generation=generation, shares=frozenset(words)
    )
    decided = custody.decide(state, orders.command(wanted), facts)
    if isinstance(decided, Refusal):
        raise RefusedFault(decided)
    if not isinstance(decided[0], custody.Recovered):
        raise FormatFault("this is not an order to recover", "make one with 'valv keys recover'")
    return decided[0]


def _write(
    path: Path,
    keyring: Keyring,
    passphrase: bytes,
    store: Store,
    gone: frozenset[str],
    acts: Sequence[Act],
    checkpoint: Checkpoint | None,
) -> None:
    """The whole key folder beside its place, then its rename. Shares are dealt to the officers that there are now."""
    state = folder.fold([*store.acts, *acts])
    assert state is not None
    fresh = path.with_name(f".{path.name}.recovering")
    _clear(fresh, keyring, passphrase)  # of an attempt that was killed
    dealing = orders.dealing(keyring, state.officers, state.threshold, state.persons, passphrase)
    living = fresh / generation_name(state.generation)
    with disk.storage_faults(fresh):
        living.mkdir(mode=0o700, parents=True)
        fresh.chmod(0o700)
    root: OpenRoot | None = None
    try:
        root = keyring.create(living, dealing.passphrase or passphrase)
        unsealing = None
        if dealing.persons > 1:
            unsealing = Unsealing.deal(dealing.officers, dealing.persons, dealing.passphrase)
        recovery.write(living, Recovery.deal(dealing.officers, dealing.threshold, root), unsealing)
        without = gone & frozenset(store.key_ids)
        copied = store.copy_keys(living, root, without)
        store.copy(living, root, copied, generation=state.generation, without=without, acts=acts, checkpoint=checkpoint)
        disk.write(fresh / folder.TAG, folder.TAG_CONTENT)
        with disk.storage_faults(path):
            fresh.rename(path)
    except BaseException:
        _clear(fresh, keyring, passphrase)
        raise
    finally:
        if root is not None:
            root.wipe()
    with disk.storage_faults(path):
        disk.sync_folder(path.parent)


def _clear(fresh: Path, keyring: Keyring, passphrase: bytes) -> None:
    for living in fresh.glob("generation-*"):
        keyring.discard(living, passphrase)
    disk.wipe_tree(fresh)
