"""What an operator does on the node itself, without HTTP. The assembly gives the functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the overview of commands loads none of it
    from valv.core.custody import Custody
    from valv.ports.keys import KeyCustody, KeyStatus, SealedShares


class CreateNode(Protocol):
    def __call__(
        self,
        directory: Path,
        *,
        name: str,
        country: str,
        unit: str,
        title: str,
        port: int,
        passphrase: bytes,
        keys: Mapping[str, object],
    ) -> None:
        """Make a node. An empty passphrase: a random one is kept in the node's folder. `keys`: further settings of the
        section [keys]."""


class CreateAccount(Protocol):
    def __call__(
        self,
        directory: Path,
        *,
        name: str,
        display: str,
        email: str,
        roles: Sequence[str],
        committees: Sequence[str],
        organisation: str,
        country: str,
        password: str,
        totp: bool,
    ) -> str:
        """Make an account; returns the secret of its second factor, '' without one."""


class Demo(Protocol):
    def __call__(self, directory: Path, *, once: bool, port: int) -> int:
        """Make a demo node, walk the loop, serve. Returns the exit code."""


@dataclass(frozen=True)
class StoredVersion:
    """A dataset version with the key of its files. `size`: plain bytes; `destroyed`: its key is gone."""

    dataset: str
    number: int
    key_id: str
    files: int
    size: int
    destroyed: bool


class KeyDesk(Protocol):
    """The key holder of a node on this machine, as its operator reaches it; and what the node's records say of keys.
    Verbs that need it raise `UnreachableFault` where it does not run, `SealedFault` where it is locked."""

    @property
    def name(self) -> str:
        """The node's."""
        ...

    @property
    def asks_pin(self) -> bool:
        """Whether the root key is in a token, whose PIN cannot be set here."""
        ...

    @property
    def passphrase_file(self) -> Path | None:
        """From which the key holder reads its passphrase at start."""
        ...

    def status(self) -> KeyStatus: ...

    def custody(self) -> KeyCustody: ...

    def shares(self, officer: str) -> SealedShares: ...

    def unseal_share(self, words: str) -> KeyStatus: ...

    def order(self, note: str, shares: list[str], passphrase: bytes) -> str:
        """Carry out an order; the minutes."""
        ...

    def recorded(self) -> Custody | None:
        """Who the officers are by the node's ledger; None before the first ceremony."""
        ...

    def versions(self, dataset: str) -> list[StoredVersion]:
        """Of the dataset of this name, as the ledger has them."""
        ...


class Recovery(Protocol):
    """The key backup of a node whose key folder is lost. `needs_passphrase`: what the new root key opens with, or the
    token's PIN, must be given: officers do not unseal it, and no file has it."""

    name: str
    needs_passphrase: bool

    def share(self, officer: str) -> bytes:
        """An officer's sealed share."""
        ...

    def recover(self, note: str, shares: list[str], passphrase: bytes) -> str:
        """Make the key folder anew; the minutes."""
        ...


@dataclass(frozen=True)
class Operator:
    """`up` serves a node until it is stopped, `doctor` looks at it: both return the exit code. `unseal` opens its keys
    with a passphrase. `keys` reaches the key holder of a node, `recovery` the key backup in a place."""

    create_node: CreateNode
    create_account: CreateAccount
    up: Callable[[Path], int]
    demo: Demo
    unseal: Callable[[Path, bytes], None]
    doctor: Callable[[Path], int]
    keys: Callable[[Path], KeyDesk]
    recovery: Callable[[Path, Path], Recovery]
