"""The node's encrypted disks: volumes whose passphrase only its key holder opens, and officers together."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from valv.errors import ConflictFault, InputFault, KeyFault
from valv.formats import crypt4gh, shares
from valv.formats.officer import Officer
from valv.keys import luks
from valv.keys.luks import Header, Volume


class Holder(Protocol):
    """What disks need of the key holder: as the operator alone may ask it."""

    @property
    def name(self) -> str: ...

    def create_volume(self, key_id: str) -> bytes: ...

    def reseal_volume(self, key_id: str, header: bytes, public_key: bytes) -> bytes: ...


def create(holder: Holder, device: Path, *, erase: bool = False) -> Header:
    """Make `device` an encrypted volume of this node. Raises `ConflictFault` where something is on it, unless
    `erase`."""
    volume = Volume(device)
    if not erase and not volume.empty():
        raise ConflictFault(f"there is something on {device}", "name an empty disk, or give --erase to lose it")
    ident = luks.new_ident()
    public = holder.create_volume(luks.key_id(ident))  # before anything is lost
    secret = luks.new_secret()
    volume.make(secret, ident)
    volume.attach(luks.node_token(0, holder.name, ident, crypt4gh.build_header(secret, [public])))
    return volume.header()


def secret_of(holder: Holder, volume: Volume) -> bytes:
    """The passphrase, opened by the key holder for this call. Raises `KeyFault` where it is another node's."""
    found = volume.header()
    for _, token, sealed in luks.numbered(found.nodes):
        if token.node != holder.name:
            continue
        once = crypt4gh.generate_keypair()
        header = holder.reseal_volume(token.key_id, sealed, once.public)
        (secret,) = crypt4gh.open_header(header, [once.private]).data_keys
        if volume.check(secret):
            return secret
    nodes = ", ".join(sorted({token.node for token in found.nodes.values()})) or "no node"
    raise KeyFault(f"{volume.device} is a volume of {nodes}, not of {holder.name}", "see 'valv luks recover'")


def rotate(holder: Holder, volume: Volume, *, drop_others: bool = False) -> Header:
    """A new passphrase in the place of the old one. It may be broken off and repeated: the old one goes last.
    `drop_others`: also slots that belong neither to the node nor to officers."""
    give(holder, volume, secret_of(holder, volume))
    if drop_others:
        volume.drop_slots(volume.header().others)
    return volume.header()


def give(holder: Holder, volume: Volume, known: bytes) -> None:
    """Make the volume this node's, and no other node's. `known` opens it."""
    before = volume.header()
    public = holder.create_volume(luks.key_id(before.uuid))
    fresh = luks.new_secret()
    slot = volume.add(known, fresh)
    if not volume.check(fresh, slot):
        raise KeyFault(f"{volume.device} does not open with its new key", "nothing was changed; try again")
    volume.attach(luks.node_token(slot, holder.name, before.uuid, crypt4gh.build_header(fresh, [public])))
    for number, token in before.nodes.items():
        volume.drop_token(number, token)


def escrow(holder: Holder, volume: Volume, officers: Sequence[Officer], threshold: int) -> Header:
    """Let `threshold` of these officers open the volume without the node; those who could before cannot any more."""
    luks.escrow_token(0, bytes(luks.SECRET), officers, threshold)  # raises before anything is changed
    known, fresh = secret_of(holder, volume), luks.new_secret()
    before = volume.header()
    slot = volume.add(known, fresh)
    volume.attach(luks.escrow_token(slot, fresh, officers, threshold))
    for number, token in before.escrows.items():
        volume.drop_token(number, token)
    return volume.header()


def recover(volume: Volume, private_keys: Mapping[str, bytes]) -> bytes:
    """The passphrase that officers hold together. `private_keys`: officer → raw private key."""
    for held in volume.header().escrows.values():
        known = [name for name in private_keys if name in held.shares]
        if len(known) < held.threshold:
            continue
        words = [shares.unseal(base64.b64decode(held.shares[name]), private_keys[name]) for name in known]
        secret = shares.combine(words)
        if volume.check(secret):
            return secret
        raise KeyFault(f"these shares do not open {volume.device}", "its header was altered: restore it")
    needed = [f"{one.threshold} of {', '.join(sorted(one.shares))}" for one in volume.header().escrows.values()]
    if not needed:
        raise InputFault(f"no officers hold {volume.device}", "only its node opens it: 'valv luks open'")
    raise InputFault("these officers are too few", f"it takes {' or '.join(needed)}")


def scratch(device: Path, name: str, *, erase: bool = False) -> Path:
    """Open `device` under a key that is kept nowhere: what is written there is gone when it is closed."""
    volume = Volume(device)
    if not erase and not volume.empty():
        raise ConflictFault(f"there is something on {device}", "name an empty disk, or give --erase to lose it")
    secret = luks.new_secret()
    volume.make(secret, luks.new_ident())
    return volume.open(secret, name)
