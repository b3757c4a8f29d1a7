"""Who holds the keys.

`KeyHolder` is what the rest of the node sees of the `keyd` process: verbs that use keys, none that gives one away.
`Keyring` and `RootKey` are what `keyd` needs of a keyring backend; its contract is `valv.ports.contract.keys`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import msgspec

from valv.core.custody import Custody

KeyClass = Literal["identifiable", "anonymised", "result", "intake"]
"""What a key pair protects. A header under an `identifiable` key is never sealed to a key from outside the node."""
HeldClass = KeyClass | Literal["volume"]
"""The same with the keys of the node's encrypted disks, which only the operator makes and uses."""


class KeyStatus(msgspec.Struct, frozen=True):
    """`node_key`: the node's Crypt4GH public key (32 bytes) for deposits; `log_key`: the C2SP verifier key of its
    ledger, `<name>+<hash>+<base64>`; both empty while locked. `signed_size`: the size of the last signed checkpoint,
    from which the next consistency proof must start (a crash can lose the answer of a `sign` that was done).
    `generation`: how often the root key was made, counted from 1. `persons`: how many officers it takes to unseal, 0
    where the passphrase alone does; `present`: how many of them have given their share since it was locked."""

    open: bool
    node_key: bytes = b""
    log_key: str = ""
    signed_size: int = 0
    generation: int = 0
    persons: int = 0
    present: int = 0


class Backup(msgspec.Struct, frozen=True):
    """A place where the key backup lies. `generation`: of what lies there, 0 for nothing; `fault`: why it is behind,
    empty where it is whole."""

    path: str
    generation: int
    fault: str = ""


class Held(msgspec.Struct, frozen=True):
    """What officers ordered and the key holder did. `event`: of `valv.core.custody`, as JSON; `minutes`: a C2SP signed
    note, with the signatures of the officers and of the node's ledger key."""

    number: int
    event: bytes
    minutes: str


class KeyCustody(msgspec.Struct, frozen=True):
    """`state`: None before the first ceremony. `held`: how many acts there are."""

    state: Custody | None
    backups: tuple[Backup, ...]
    held: int


class SealedShares(msgspec.Struct, frozen=True):
    """An officer's shares as small Crypt4GH files. `recovery`: of the recovery key, empty before the first ceremony and
    while locked; `unsealing`: of what unseals the node, empty where the passphrase alone does."""

    recovery: bytes
    unsealing: bytes


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

    def destroy(self, key_id: str) -> None:
        """Forget a `result` key for ever. The root key is made anew, and the key backup with it. A key of data needs an
        order (`order`): this is refused."""
        ...

    def rotate(self, key_id: str, pair: int) -> bytes:
        """Give the key its pair number `pair`, one more than it has (a new key has pair 1), and keep the one before for
        opening. Returns the new public half. Repeating it gives the same."""
        ...

    def reseal_within(self, key_id: str, headers: list[bytes]) -> list[bytes]:
        """Seal headers that any pair of this key opens to its newest pair, in the same order; at most `MOST_HEADERS`
        and together 1 MiB. Raises `KeyFault` where one does not open."""
        ...

    def reseal_across(self, key_id: str, headers: list[bytes], to: str) -> list[bytes]:
        """Seal headers that any pair of this key opens to the newest pair of another key of data, `to`, in the same
        order; bounds as `reseal_within`. Refused with `key_class` where this key is identifiable and the other is not.
        Raises `KeyFault` where one does not open."""
        ...

    def retire(self, key_id: str, pair: int) -> None:
        """Forget all pairs before number `pair`, the newest. Refused with `key_in_use` while a grant names the key: who
        holds it may still have headers of an older pair."""
        ...

    def order(self, note: str, shares: list[str]) -> str:
        """Carry out what officers have signed (`valv.formats.order`); returns the minutes. `shares`: of a drill, the
        recovery shares as words; they must open every place of the key backup. The same order is carried out once;
        repeating it gives the same minutes. Raises `ConflictFault` where its id was another order's. The first ceremony
        is for the operator alone: whoever names the first officers has the keys from then on."""
        ...

    def custody(self) -> KeyCustody: ...

    def held(self, after: int) -> list[Held]:
        """What was done by order, from number `after` + 1 on: at most 100, and as many as one answer holds."""
        ...

    def back_up(self) -> list[Backup]:
        """Bring every place of the key backup up to date. One that holds a newer generation stays as it is, and is a
        fault."""
        ...


MOST_HEADERS = 4096
"""Headers in one `reseal_within`."""


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

    def renew(self, folder: Path, passphrase: bytes | None = None) -> OpenRoot:
        """Make another root key, whose files go to `folder`. `passphrase`: what it will open with; None: the same as
        this one. This one stays as it is. Raises `ConflictFault` where `folder` holds one."""
        ...

    def discard(self, folder: Path) -> None:
        """Destroy this root key, whose files lie in `folder`: from then on nothing opens what it wrapped. It is wiped.
        Repeating is no error."""
        ...


class Keyring(Protocol):
    """A keyring backend, an entry point of the group `valv.keys`, called with the settings `valv.config.Keys`. What it
    needs besides lies in the folder of the key's generation; secrets are in no text of a fault and in no `repr`."""

    @property
    def sets_passphrase(self) -> bool:
        """Whether `renew` can take another passphrase. A token's PIN is changed with the token's own tool: `renew`
        raises `InputFault` there for any but the present one."""
        ...

    def create(self, folder: Path, passphrase: bytes) -> OpenRoot:
        """Make a root key. Raises `ConflictFault` where `folder` holds one: it is never overwritten."""
        ...

    def open(self, folder: Path, passphrase: bytes) -> OpenRoot:
        """Raises `KeyFault` for a wrong passphrase, also where the root key is open already, `FormatFault` and
        `MissingFault` where the folder is not what `create` made."""
        ...

    def discard(self, folder: Path, passphrase: bytes) -> None:
        """Destroy the root key whose files lie in `folder`, if there is one. `passphrase` opens the backend (a token's
        PIN), not this root key: a crash may have left one whose passphrase nobody knows. Repeating is no error."""
        ...
