"""What an operator does on the node itself, without HTTP. The assembly gives the functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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
class Operator:
    """`up` serves a node until it is stopped, `doctor` looks at it: both return the exit code. `unseal` opens its keys
    with a passphrase."""

    create_node: CreateNode
    create_account: CreateAccount
    up: Callable[[Path], int]
    demo: Demo
    unseal: Callable[[Path, bytes], None]
    doctor: Callable[[Path], int]
