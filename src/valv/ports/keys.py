"""Who holds the keys.

`KeyHolder` is what the rest of the node sees of the `keyd` process: verbs that use keys, none that gives one away.
`Keyring` and `RootKey` are what `keyd` needs of a keyring backend; its contract is `valv.ports.contract.keys`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import msgspec

KeyClass = Literal["identifiable", "anonymised", "result", "intake"]
"""What a key pair protects. A header under an `identifiable` key is never sealed to a key from outside the node."""


class KeyStatus(msgspec.Struct, frozen=True):
    """`node_key`: the node's Crypt4GH public key (32 bytes) for deposits; `log_key`: the C2SP verifier key of its
    ledger, `<name>+<hash>+<base64>`; both empty while locked. `signed_size`: the size of the last signed checkpoint,
    from which the next consistency proof must start (a crash can lose the answer of a `sign` that was done)."""

    open: bool
    node_key: bytes = b""
    log_key: str = ""
    signed_size: int = 0


class KeyHolder(Protocol):
    def status(self) -> KeyStatus: ...

    def create(self, key_id: str, key_class: KeyClass) -> bytes:
        """Make a Crypt4GH key pair, keep the private half wrapped, return the public half. Repeating gives the same."""
        ...

    def confirm(self, key_id: str) -> None:
        """The claim `anonymised` has taken effect: from now on headers may be sealed to keys from outside."""
        ...

    def narrow(self, key_id: str) -> None:
        """From now on the key is `identifiable`. There is no way back."""
        ...

    def adopt(self, header: bytes, key_id: str) -> bytes:
        """Re-seal a header that a depositor made for the node's public key to key `key_id`."""
        ...

    def grant(self, grant_id: str, key_ids: list[str], uid: int, seconds: float) -> None:
        """Let a process of user `uid` use `reseal` on these keys for so long. Only the worker and the server may."""
        ...

    def renew(self, grant_id: str, seconds: float) -> None: ...

    def revoke(self, grant_id: str) -> None: ...

    def reseal(self, grant_id: str, key_id: str, header: bytes, public_key: bytes) -> bytes:
        """For a mount or reader process: re-seal one header to its ephemeral key. The caller's user must be the
        grant's."""
        ...

    def reseal_outside(self, key_id: str, header: bytes, public_key: bytes) -> bytes:
        """For a download: re-seal to a researcher's registered key. Refused unless the key is `anonymised` and
        confirmed."""
        ...

    def sign(self, size: int, root: bytes, proof: list[bytes]) -> str:
        """Sign a checkpoint of the ledger as a C2SP signed note. `proof` is the RFC 9162 consistency proof from the
        last signed size; a shrinking or forked tree is refused."""
        ...

    def destroy(self, key_id: str) -> None: ...


class RootKey(Protocol):
    """A keyring backend: wraps and unwraps 32-byte keys. The root key itself stays inside."""

    def wrap(self, secret: bytes, context: bytes) -> bytes: ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Raises `KeyFault` where the wrapped key or its context (bound as associated data) was changed."""
        ...


class OpenRoot(RootKey, Protocol):
    """A root key in use. Safe for several threads."""

    @property
    def locked(self) -> bool:
        """Whether it is kept out of swap."""
        ...

    def wipe(self) -> None:
        """Forget it: from then on `wrap` and `unwrap` raise `SealedFault`. Repeating is no error. Other openings of the
        same root key stay open."""
        ...


class Keyring(Protocol):
    """A keyring backend, an entry point of the group `valv.keys`, called with the settings `valv.config.Keys`. What it
    needs besides lies in the key folder; secrets are in no text of a fault and in no `repr`."""

    def create(self, folder: Path, passphrase: bytes) -> OpenRoot:
        """Make the root key of a new node. Raises `ConflictFault` where there is one: it is never overwritten."""
        ...

    def open(self, folder: Path, passphrase: bytes) -> OpenRoot:
        """Raises `KeyFault` for a wrong passphrase, also where the root key is open already, `FormatFault` and
        `MissingFault` where the folder is not what `create` made."""
        ...

    def discard(self, folder: Path, passphrase: bytes) -> None:
        """Undo `create` for a node that could not be made; what lies in the folder goes with it."""
        ...
