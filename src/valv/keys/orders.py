"""Carrying out what officers ordered: check the signatures, ask the core, act, write the minutes.

The minutes (`valv.formats.minutes`) are a C2SP signed note by the node's ledger key. They hold the whole order with the
signatures of the officers, so that both can be verified apart from the node.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from valv.core import custody
from valv.core.process import encode
from valv.errors import ConflictFault, Fault, InputFault, MissingFault, Refusal, RefusedFault
from valv.formats import minutes, note, order
from valv.formats.officer import Officer
from valv.formats.order import Order
from valv.keys.folder import Dealing, Folder
from valv.keys.store import Act
from valv.ports.keys import Keyring

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_PASSPHRASE: Final = 32
"""Random bytes of the passphrase that only shares give, where two persons unseal."""


def carry_out(
    folder: Folder, keyring: Keyring, signed: str, words: Sequence[str], passphrase: bytes, now: datetime
) -> str:
    """Do what the note `signed` orders; the minutes. `words`: shares, for a drill; `passphrase`: that of the keyring
    backend, for a ceremony of a backend whose passphrase cannot be set.

    Raises `RefusedFault` where the core refuses, `FormatFault` for no order, `MissingFault` for a key that is not
    there, `ConflictFault` for another order's id. The same order is done once.
    """
    text, _ = note.read(signed)
    wanted = order.decode(text)
    if wanted.node != folder.store.name:
        raise RefusedFault(Refusal("order_foreign", f"it is for {wanted.node}, this is {folder.store.name}"))
    for act in folder.store.acts:
        if act.order == wanted.ident:
            if note.read(minutes.read(act.minutes).order)[0] == text:
                return act.minutes
            raise ConflictFault(f"the id of the order {wanted.ident} was another's", "make the order anew")
    state = folder.custody
    present = (*wanted.officers, *(state.officers if state else ()))
    shown = _shown(folder, words) if wanted.deed == "drill" and state is not None else frozenset[str]()
    facts = custody.Facts(signed=signatures(signed, present), now=now, generation=folder.generation, shares=shown)
    decided = custody.decide(state, command(wanted), facts)
    if isinstance(decided, Refusal):
        raise RefusedFault(decided)
    event = decided[0]
    told = sign_minutes(folder.store.name, folder.store.log_private(), event, signed)
    act = Act(wanted.ident, encode(event)[1], told)
    match event:
        case custody.CeremonyHeld():
            to = dealing(keyring, event.officers, event.threshold, event.persons, passphrase)
            folder.roll(act=act, to=to)
        case custody.Destroyed():
            _check_keys(folder, event.key_ids)
            folder.roll(act=act, without=frozenset(event.key_ids))
        case _:
            folder.add_act(act)
    return act.minutes


def command(wanted: Order) -> custody.Commands:
    """What the core is asked."""
    by, at = "officers", wanted.at
    match wanted.deed:
        case "ceremony":
            return custody.HoldCeremony(
                by=by, at=at, officers=wanted.officers, threshold=wanted.threshold, persons=wanted.persons
            )
        case "destroy":
            return custody.Destroy(by=by, at=at, key_ids=wanted.key_ids)
        case "drill":
            return custody.HoldDrill(by=by, at=at)
        case "recover":
            return custody.Recover(by=by, at=at)


def sign_minutes(name: str, log_private: bytes, event: custody.Events, signed: str) -> str:
    """The minutes of one act. `log_private`: raw Ed25519 key of the ledger."""
    lines = [
        minutes.HEAD,
        f"node: {name}",
        f"done: {event.at.strftime(_TIME)}",
        f"generation: {event.generation}",
        f"signed: {' '.join(event.signers)}",
        "order:",
        *(f"  {line}" if line else "" for line in signed.removesuffix("\n").split("\n")),
    ]
    text = "".join(f"{line}\n" for line in lines)
    return note.sign(Ed25519PrivateKey.from_private_bytes(log_private), name, text)


def signatures(signed: str, officers: Sequence[Officer]) -> frozenset[str]:
    """The verifier keys, of these officers', whose signature on the note is right."""
    found = set()
    for officer in officers:
        try:
            note.verify(signed, officer.sign_key)
        except Fault:
            continue
        found.add(officer.sign_key)
    return frozenset(found)


def _shown(folder: Folder, words: Sequence[str]) -> frozenset[str]:
    """These shares, once they are known to fit together."""
    folder.check_shares(words)
    return frozenset(words)


def dealing(
    keyring: Keyring, officers: tuple[Officer, ...], threshold: int, persons: int, passphrase: bytes
) -> Dealing:
    """To whom shares are dealt. Where two persons unseal, with a random passphrase that only shares give; where the
    backend's cannot be set, with the present one."""
    if persons == 1:
        return Dealing(officers, threshold, persons)
    if keyring.sets_passphrase:
        passphrase = secrets.token_urlsafe(_PASSPHRASE).encode()
    elif not passphrase:
        raise InputFault("the token's PIN is needed, to be dealt to the officers", "give it with '--passphrase-file'")
    return Dealing(officers, threshold, persons, passphrase)


def _check_keys(folder: Folder, key_ids: Sequence[str]) -> None:
    destroyed, present = folder.store.destroyed, frozenset(folder.store.key_ids)
    for key_id in key_ids:
        if key_id in destroyed:
            raise RefusedFault(Refusal("key_destroyed", f"key {key_id}"))
        if key_id not in present:
            raise MissingFault(f"there is no key {key_id}", "see 'valv keys status'")


def decode_event(data: bytes) -> custody.Events:
    """An event as `Act` and `Held` have it."""
    event: custody.Events = msgspec.json.decode(data, type=custody.Events)
    return event
