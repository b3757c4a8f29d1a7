"""What an operator does on the node itself, without HTTP. The assembly gives the functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the overview of commands loads none of it
    from valv.core.custody import Custody
    from valv.formats.officer import Officer
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


@dataclass(frozen=True)
class Disk:
    """What the header of an encrypted disk says. `nodes`: whose key holders open it; `officers`: who hold shares, with
    how many it takes; `others`: key slots that nobody here can account for."""

    device: Path
    uuid: str
    cipher: str
    nodes: tuple[str, ...]
    officers: tuple[tuple[int, tuple[str, ...]], ...]
    others: tuple[int, ...]


class Disks(Protocol):
    """Encrypted disks of a node. What needs the node's keys raises `UnreachableFault` where it does not run."""

    def status(self, device: Path) -> Disk: ...

    def create(self, device: Path, *, erase: bool) -> Disk: ...

    def open(self, device: Path, name: str) -> Path:
        """Where it can be mounted from then on."""
        ...

    def close(self, name: str) -> None: ...

    def rotate(self, device: Path, *, drop_others: bool) -> Disk: ...

    def escrow(self, device: Path, officers: Sequence[Officer], threshold: int) -> Disk: ...

    def recover(self, device: Path, private_keys: Mapping[str, bytes]) -> Disk:
        """Make it this node's disk with the keys of officers who hold shares."""
        ...

    def open_with(self, device: Path, name: str, private_keys: Mapping[str, bytes]) -> Path:
        """As `open`, with the keys of officers in the node's place."""
        ...

    def erase(self, device: Path) -> None: ...

    def scratch(self, device: Path, name: str, *, erase: bool) -> Path: ...


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
class SavedPlace:
    """A place of backups and its newest backup (`generation` 0 for none). `size`: events of the ledger in it; `files`:
    that lie in the place, `held_back`: that do not; `stored`: bytes that came with it; `outside`: events that the place
    knows of, those after the backup included; `late`: it is too old."""

    name: str
    bodies: str
    away: bool
    late: bool
    fault: str
    busy: bool
    generation: int
    at: str
    size: int
    files: int
    held_back: int
    stored: int
    outside: int


@dataclass(frozen=True)
class SavedState:
    """`drilled`: when a backup was last restored for trial, '' for never; `size`: events of the ledger now."""

    places: list[SavedPlace]
    drilled: str
    drill_due: bool
    epoch: int
    size: int


@dataclass(frozen=True)
class Verified:
    """A backup that was restored for trial. `wrong`: what did not hold; `missing`: files that were lost before it."""

    node: str
    generation: int
    at: str
    size: int
    root: str
    log_key: str
    bodies: int
    missing: int
    wrong: list[str]
    seconds: float


@dataclass(frozen=True)
class Restored:
    """A node that was restored and is closed. `backup_size`, `backup_root`: of the ledger in the backup; `size`,
    `root`: with the `taken` events of the outside record; `gap`: why there were no more; `missing`: names of bodies
    that did not come back."""

    node: str
    generation: int
    at: str
    backup_size: int
    backup_root: str
    size: int
    root: str
    taken: int
    gap: str
    log_key: str
    bodies: int
    missing: list[str]
    seconds: float


@dataclass(frozen=True)
class Opened:
    """`lost_events`: that were signed once and are gone; `lost`: dataset versions whose files did not come back;
    `known_by`: who knew the newest checkpoint."""

    open: bool
    size: int
    taken: int
    lost_events: int
    lost: list[str]
    known_by: str


class BackupDesk(Protocol):
    """The backups of a node on this machine."""

    def status(self) -> SavedState: ...

    def make(self, names: list[str], told: Callable[[int, int], None]) -> SavedState:
        """Have the running node make backups in these places (all, where none is named), and wait for them. `told`:
        bytes done and all of them."""
        ...

    def drill(self, name: str, private: bytes, within: Path | None, progress: Callable[[int], None]) -> Verified:
        """Restore the newest one for trial, and put the evidence into the ledger."""
        ...


class VerifyBackup(Protocol):
    def __call__(
        self, place: Path, private: bytes, *, generation: int, log_key: str, progress: Callable[[int], None]
    ) -> Verified: ...


class RestoreNode(Protocol):
    def __call__(
        self,
        place: Path,
        directory: Path,
        private: bytes,
        *,
        database: str,
        password_file: str,
        generation: int,
        log_key: str,
        progress: Callable[[int], None],
    ) -> Restored: ...


class OpenRestored(Protocol):
    def __call__(self, directory: Path, *, places: list[Path], private: bytes | None, accept_loss: bool) -> Opened: ...


@dataclass(frozen=True)
class Operator:
    """`up` serves a node until it is stopped, `doctor` looks at it: both return the exit code. `unseal` opens its keys
    with a passphrase. `keys` reaches the key holder of a node, `disks` the encrypted disks of one (None: of no node),
    `recovery` the key backup in a place."""

    create_node: CreateNode
    create_account: CreateAccount
    up: Callable[[Path], int]
    demo: Demo
    unseal: Callable[[Path, bytes], None]
    doctor: Callable[[Path], int]
    keys: Callable[[Path], KeyDesk]
    disks: Callable[[Path | None], Disks]
    recovery: Callable[[Path, Path], Recovery]
    backups: Callable[[Path], BackupDesk]
    verify_backup: VerifyBackup
    restore: RestoreNode
    open_restored: OpenRestored
