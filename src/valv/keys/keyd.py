"""The key holder: each verb of `valv.ports.keys.KeyHolder`, for a caller known by user id.

No verb returns a private key, a data key, the root key or the passphrase. What leaves is public keys, headers sealed to
somebody's public key, and signed checkpoints.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import assert_never

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from valv.errors import ConfigFault, Refusal, RefusedFault, SealedFault
from valv.formats import crypt4gh, note
from valv.keys import messages
from valv.keys.grants import Grants
from valv.keys.messages import AnyRequest
from valv.keys.roles import ALLOWED, Caller, Role, Roles
from valv.keys.store import Store
from valv.ports.keys import Keyring, KeyStatus, OpenRoot


class Keyd:
    """Answers requests; safe for several threads. Locked until `unseal`.

    `path`: the key folder; `name`: what the node is called in its checkpoints; `roles`: who is who.
    """

    def __init__(self, path: Path, name: str, roles: Roles, keyring: Keyring, grants: Grants | None = None) -> None:
        self._path = path
        self._name = name
        self._roles = roles
        self._keyring = keyring
        self._grants = grants or Grants()
        self._unsealing = threading.Lock()
        self._opened: tuple[Store, OpenRoot] | None = None

    def answer(self, caller: Caller, request: AnyRequest) -> KeyStatus | bytes | str | None:
        """Do what is asked. Raises `RefusedFault` where the caller may not, `SealedFault` while locked."""
        verb = messages.verb_of(request)
        if not caller.may(verb):
            allowed = ", ".join(sorted(role.value for role in ALLOWED[verb]))
            raise RefusedFault(Refusal("key_not_yours", f"'{verb}' is for {allowed}"))
        match request:
            case messages.Status():
                return self._status()
            case messages.Unseal():
                self.unseal(request.passphrase)
            case messages.Create():
                return self._store.create_key(request.key_id, request.key_class)
            case messages.Confirm():
                self._store.confirm(request.key_id)
            case messages.Narrow():
                self._store.narrow(request.key_id)
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
                _, private = self._store.unlock(request.key_id)
                return crypt4gh.reseal(request.header, [private], [request.public_key])
            case messages.ResealOutside():
                return self._reseal_outside(request)
            case messages.Sign():
                return self._sign(request)
            case messages.Destroy():
                self._store.destroy(request.key_id)
            case _:
                assert_never(request)
        return None

    def unseal(self, passphrase: bytes) -> None:
        """Open the folder. Where it is open already, only the passphrase is checked."""
        with self._unsealing:
            root = self._keyring.open(self._path, passphrase)
            if self._opened is not None:
                root.wipe()
                return
            try:
                store = Store(self._path, root)
                if store.name != self._name:
                    store.close()
                    raise ConfigFault(
                        f"the keys are those of the node {store.name}, the configuration says {self._name}",
                        "set node.name back, or point keys.path to this node's keys",
                    )
            except BaseException:
                root.wipe()
                raise
            self._opened = store, root

    @property
    def locked_in_memory(self) -> bool:
        """Whether the root key is open and kept out of swap."""
        return self._opened is not None and self._opened[1].locked

    def close(self) -> None:
        """Forget the root key."""
        if self._opened is not None:
            store, root = self._opened
            self._opened = None
            root.wipe()
            store.close()

    @property
    def _store(self) -> Store:
        if self._opened is None:
            raise SealedFault
        return self._opened[0]

    def _status(self) -> KeyStatus:
        if self._opened is None:
            return KeyStatus(open=False)
        store = self._store
        log_key = note.verifier_key(store.name, store.log_public)
        return KeyStatus(True, store.intake_public, log_key, store.checkpoint.size)

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
        record, private = self._store.unlock(request.key_id)
        if not record.may_leave:
            why = "not confirmed" if record.key_class == "anonymised" else record.key_class
            raise RefusedFault(Refusal("key_stays_inside", f"key {request.key_id} is {why}"))
        return crypt4gh.reseal(request.header, [private], [request.public_key])

    def _sign(self, request: messages.Sign) -> str:
        store = self._store
        text = note.Checkpoint(store.name, request.size, request.root).encode()
        store.advance(request.size, request.root, request.proof)
        return note.sign(Ed25519PrivateKey.from_private_bytes(store.log_private()), store.name, text)
