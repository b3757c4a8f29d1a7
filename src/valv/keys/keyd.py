"""The key holder: each verb of `valv.ports.keys.KeyHolder`, for a caller known by user id.

No verb returns a private key, a data key, the root key or the passphrase. What leaves is public keys, headers sealed to
somebody's public key, and signed checkpoints.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from valv.errors import ConfigFault, InputFault, Refusal, RefusedFault, SealedFault
from valv.formats import crypt4gh, note, shares
from valv.keys import folder, messages, orders
from valv.keys.folder import Folder
from valv.keys.grants import Grants
from valv.keys.loaded import Loaded
from valv.keys.memory import Secret
from valv.keys.messages import AnyRequest
from valv.keys.mirror import generation_name
from valv.keys.recovery import Unsealing
from valv.keys.roles import ALLOWED, Caller, Role, Roles
from valv.keys.store import Store
from valv.ports.keys import KeyCustody, Keyring, KeyStatus, SealedShares

GATHERING: Final = 900.0
"""Seconds that the first officer's share is kept for the second officer to come."""


class Keyd:
    """Answers requests; safe for several threads. Locked until `unseal`.

    `path`: the key folder; `name`: what the node is called in its checkpoints; `roles`: who is who; `backup`: this
    node's folders in the places of the key backup.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        roles: Roles,
        keyring: Keyring,
        grants: Grants | None = None,
        backup: Sequence[Path] = (),
    ) -> None:
        self._path = path
        self._backup = tuple(backup)
        self._name = name
        self._roles = roles
        self._keyring = keyring
        self._grants = grants or Grants()
        self._loaded = Loaded()
        self._ordering = threading.Lock()
        self._given: list[Secret] = []
        self._given_until = 0.0
        self._opened: Folder | None = None

    def answer(self, caller: Caller, request: AnyRequest) -> Any:
        """Do what is asked. Raises `RefusedFault` where the caller may not, `SealedFault` while locked."""
        verb = messages.verb_of(request)
        if not caller.may(verb):
            allowed = ", ".join(sorted(role.value for role in ALLOWED[verb]))
            raise RefusedFault(Refusal("key_not_yours", f"'{verb}' is for {allowed}"))
        self._only_data(request)
        match request:
            case messages.Status():
                return self._status()
            case messages.Unseal():
                self.unseal(request.passphrase)
            case messages.UnsealShare():
                return self._unseal_share(request.words)
            case messages.Shares():
                return self._shares(request.officer)
            case messages.Create():
                known = self._store.holds(request.key_id)
                public = self._store.create_key(request.key_id, request.key_class)
                if not known:
                    self._folder.changed(request.key_id)
                return public
            case messages.CreateVolume():
                known = self._store.holds(request.key_id)
                public = self._store.create_key(request.key_id, "volume")
                if not known:
                    self._folder.changed(request.key_id)
                return public
            case messages.ResealVolume():
                record, keys = self._loaded.unlock(self._store, request.key_id)
                if record.key_class != "volume":
                    raise RefusedFault(Refusal("key_class", f"key {request.key_id} is {record.key_class}"))
                return keys.reseal(request.header, [request.public_key])
            case messages.Confirm():
                self._store.confirm(request.key_id)
                self._folder.changed(request.key_id)
            case messages.Narrow():
                self._store.narrow(request.key_id)
                self._folder.changed(request.key_id)
            case messages.Rotate():
                public = self._store.rotate(request.key_id, request.pair)
                self._folder.changed(request.key_id)
                return public
            case messages.ResealWithin():
                record, keys = self._loaded.unlock(self._store, request.key_id, oldest_first=True)
                return [keys.reseal(header, [record.public]) for header in request.headers]
            case messages.ResealAcross():
                return self._reseal_across(request)
            case messages.Retire():
                self._retire(request)
            case messages.Adopt():
                record, _ = self._store.unlock(request.key_id)
                return crypt4gh.reseal(request.header, [self._store.intake_private()], [record.public])
            case messages.Grant():
                self._grant(caller, request)
            case messages.Renew():
                self._renew(caller, request)
            case messages.Revoke():
                self._grants.revoke(request.grant_id)
            case messages.Reseal():
                self._grants.check(request.grant_id, caller.uid, request.key_id)
                _, keys = self._loaded.unlock(self._store, request.key_id)
                return keys.reseal(request.header, [request.public_key])
            case messages.ResealOutside():
                return self._reseal_outside(request)
            case messages.Sign():
                return self._sign(request)
            case messages.Destroy():
                self._destroy(request.key_id)
            case messages.Order():
                return self._order(caller, request)
            case messages.Custody():
                opened = self._folder
                return KeyCustody(opened.custody, tuple(opened.backups), len(opened.store.acts))
            case messages.HeldAfter():
                return self._store.held(request.after)
            case messages.BackUp():
                with self._ordering:
                    return self._folder.back_up()
            case _:
                assert_never(request)
        return None

    def _only_data(self, request: AnyRequest) -> None:
        """The keys of the node's disks are no business of those who work with data."""
        match request:
            case messages.Narrow() | messages.Rotate() | messages.Retire() | messages.Adopt() | messages.ResealWithin():
                named = [request.key_id]
            case messages.Grant():
                named = list(request.key_ids)
            case _:
                return
        for key_id in named:
            if self._store.holds(key_id) and self._store.unlock(key_id)[0].key_class == "volume":
                raise RefusedFault(Refusal("key_class", f"key {key_id} is volume"))

    def unseal(self, passphrase: bytes) -> None:
        """Open the folder. Where it is open already, only the passphrase is checked. Refused where it takes the shares
        of two officers."""
        with self._ordering:
            if self._sealing() is not None:
                raise RefusedFault(Refusal("two_officers", "each gives a share with 'valv keys unseal --officer-key'"))
            if self._opened is not None:
                self._keyring.open(self._path / generation_name(self._opened.generation), passphrase).wipe()
            else:
                self._open(passphrase)

    def _open(self, passphrase: bytes) -> None:
        opened = Folder(self._path, self._keyring, passphrase, self._backup)
        if opened.store.name != self._name:
            opened.close()
            raise ConfigFault(
                f"the keys are those of the node {opened.store.name}, the configuration says {self._name}",
                "set node.name back, or point keys.path to this node's keys",
            )
        self._opened = opened

    def _sealing(self) -> Unsealing | None:
        """How officers unseal the node. While it is open, the folder may be changing at this moment."""
        opened = self._opened
        return opened.unsealing if opened else folder.unsealing(self._path)

    def _unseal_share(self, words: str) -> KeyStatus:
        """Keep one share, or open with the last one that is needed. Where they do not fit, all are forgotten: which one
        is wrong cannot be told. What is no share is not kept, and nothing is where the node is open."""
        with self._ordering:
            unsealing = self._sealing()
            if unsealing is None:
                raise InputFault("this node is unsealed with its passphrase", "run 'valv keys unseal' without a key")
            if self._opened is None:
                shares.check(words)
                self._forget_old_shares()
                if not any(hmac.compare_digest(words.encode(), one) for one in self._words()):
                    self._given.append(Secret(words.encode()))
                    self._given_until = time.monotonic() + GATHERING
                if len(self._given) >= unsealing.persons:
                    try:
                        self._open(unsealing.passphrase([one.decode() for one in self._words()]))
                    finally:
                        self._forget_shares()
        return self._status()

    def _words(self) -> list[bytes]:
        found = []
        for secret in self._given:
            with secret.view() as view:
                found.append(bytes(view))
        return found

    def _forget_shares(self) -> None:
        for secret in self._given:
            secret.wipe()
        self._given = []

    def _forget_old_shares(self) -> None:
        if time.monotonic() > self._given_until:
            self._forget_shares()

    def _shares(self, officer: str) -> SealedShares:
        unsealing = self._sealing()
        recovery = self._opened.shares.get(officer, b"") if self._opened else b""
        unsealed = unsealing.shares.get(officer, b"") if unsealing else b""
        if not recovery and not unsealed:
            raise RefusedFault(Refusal("officer_unknown", officer))
        return SealedShares(recovery, unsealed)

    @property
    def locked_in_memory(self) -> bool:
        """Whether the root key is open and kept out of swap."""
        return self._opened is not None and self._opened.root.locked

    def close(self) -> None:
        """Forget the root key."""
        self._forget_shares()
        self._loaded.clear()
        if self._opened is not None:
            opened, self._opened = self._opened, None
            opened.close()

    @property
    def _folder(self) -> Folder:
        if self._opened is None:
            raise SealedFault
        return self._opened

    @property
    def _store(self) -> Store:
        return self._folder.store

    def _status(self) -> KeyStatus:
        opened, unsealing = self._opened, self._sealing()
        persons = unsealing.persons if unsealing else 0
        if opened is None:
            return KeyStatus(open=False, persons=persons, present=self._present())
        store = opened.store
        log_key = note.verifier_key(store.name, store.log_public)
        size = store.checkpoint.size
        return KeyStatus(True, store.intake_public, log_key, size, generation=opened.generation, persons=persons)

    def _present(self) -> int:
        """Who asks does not wait while the last share is opening the node."""
        if self._ordering.acquire(blocking=False):
            try:
                self._forget_old_shares()
            finally:
                self._ordering.release()
        return len(self._given)

    def _order(self, caller: Caller, request: messages.Order) -> str:
        with self._ordering:
            if self._folder.custody is None and Role.OPERATOR not in caller.roles:
                # Whoever is the first to name officers has the keys from then on.
                raise RefusedFault(Refusal("key_not_yours", "the first ceremony is for operator"))
            try:
                return orders.carry_out(
                    self._folder, self._keyring, request.note, request.shares, request.passphrase, datetime.now(UTC)
                )
            finally:
                self._loaded.clear()

    def _retire(self, request: messages.Retire) -> None:
        if self._grants.names(request.key_id):
            raise RefusedFault(Refusal("key_in_use", f"key {request.key_id}"))
        self._store.retire(request.key_id, request.pair)
        self._loaded.clear()
        self._folder.changed(request.key_id)

    def _destroy(self, key_id: str) -> None:
        """Of results only: a key of data needs an order of two officers. Repeating, and an unknown id, are no error."""
        with self._ordering:
            if not self._store.holds(key_id):
                return
            record, _ = self._store.unlock(key_id)
            if record.key_class != "result":
                raise RefusedFault(Refusal("two_officers", f"key {key_id} protects data"))
            self._folder.roll(without=frozenset({key_id}))
            self._loaded.clear()

    def _grant(self, caller: Caller, request: messages.Grant) -> None:
        if not self._roles.may_run(request.uid):
            raise RefusedFault(Refusal("no_grant", f"user {request.uid} is not one of the runs' users"))
        for key_id in request.key_ids:
            record, _ = self._store.unlock(key_id)
            if Role.WORKER not in caller.roles and record.key_class != "result":
                raise RefusedFault(Refusal("no_grant", f"the server grants result keys only, not {key_id}"))
        self._grants.give(request.grant_id, request.uid, frozenset(request.key_ids), caller.uid, request.seconds)

    def _renew(self, caller: Caller, request: messages.Renew) -> None:
        if Role.WORKER not in caller.roles and self._grants.maker(request.grant_id) != caller.uid:
            raise RefusedFault(Refusal("no_grant", f"grant {request.grant_id} was given by the worker"))
        self._grants.renew(request.grant_id, request.seconds)

    def _reseal_outside(self, request: messages.ResealOutside) -> bytes:
        record, keys = self._loaded.unlock(self._store, request.key_id)
        if not record.may_leave:
            why = "not confirmed" if record.key_class == "anonymised" else record.key_class
            raise RefusedFault(Refusal("key_stays_inside", f"key {request.key_id} is {why}"))
        return keys.reseal(request.header, [request.public_key])

    def _reseal_across(self, request: messages.ResealAcross) -> list[bytes]:
        """From a version's key to its successor's. What must stay inside does not get a key that lets it leave."""
        record, keys = self._loaded.unlock(self._store, request.key_id)
        target, _ = self._store.unlock(request.to)
        classes = (record.key_class, target.key_class)
        if not set(classes) <= {"identifiable", "anonymised"} or classes == ("identifiable", "anonymised"):
            raise RefusedFault(Refusal("key_class", f"from {record.key_class} to {target.key_class}"))
        return [keys.reseal(header, [target.public]) for header in request.headers]

    def _sign(self, request: messages.Sign) -> str:
        store = self._store
        text = note.Checkpoint(store.name, request.size, request.root).encode()
        store.advance(request.size, request.root, request.proof)
        return note.sign(Ed25519PrivateKey.from_private_bytes(store.log_private()), store.name, text)
