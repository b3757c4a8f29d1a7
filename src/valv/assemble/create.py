"""Making a node, and the accounts that it starts with. Only this and restoring open the database directly."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from valv import config as configuration
from valv.app import account
from valv.assemble.node import build
from valv.config import Config
from valv.core.account import Role
from valv.errors import ConflictFault, InputFault, StorageFault


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """An account to be made. `committees`: the committees that it sits on."""

    name: str
    display: str
    email: str
    roles: tuple[Role, ...]
    committees: tuple[str, ...] = ()
    organisation: str = ""
    country: str = ""
    password: str = ""
    totp: bool = False


def create_node(
    directory: Path,
    *,
    name: str,
    country: str,
    unit: str,
    title: str = "Valv",
    port: int = 8600,
    passphrase: bytes = b"",
    demo: bool = False,
    database: str = "",
    database_password_file: str = "",
    keys: Mapping[str, object] | None = None,
) -> Config:
    """Make a node in `directory`: configuration, keys, empty database and store.

    Without a `passphrase` a random one is kept in `secrets/passphrase` (mode 600), so that the node can start by
    itself. `database`: a PostgreSQL URL in place of the embedded database, its password in a file. `keys`:
    further settings of the section [keys]. Raises `ConflictFault` where there is a node already.
    """
    from valv.assemble import keyd
    from valv.db.database import Database

    toml, kept = directory / "valv.toml", not passphrase
    if toml.exists():
        raise ConflictFault(f"{directory} holds a node already", "choose another folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for part in ("db", "store", "log", "mail"):
            (directory / part).mkdir(exist_ok=True, mode=0o770)
        (directory / "secrets").mkdir(exist_ok=True, mode=0o700)
        text = _toml(name, country, unit, title, port, demo=demo, kept=kept)
        text += "".join(f"{key} = {_quoted(value)}\n" for key, value in (keys or {}).items())
        if database:
            text += f"\n[database]\nurl = {_quoted(database)}\npassword_file = {_quoted(database_password_file)}\n"
        if kept:
            passphrase = secrets.token_urlsafe(32).encode()
            write(directory / "secrets" / "passphrase", passphrase + b"\n", 0o600)
        write(toml, text.encode(), 0o644)
    except OSError as error:
        raise StorageFault(f"{directory}: {error.strerror}") from error
    try:
        config = configuration.load(directory, secrets=True)
        password = str(config.path(config.database.password_file)) if config.database.password_file else ""
        records = Database(config.database_url, password)
        records.create()
        records.close()
        keyd.create(config, passphrase)  # last: keys are never made twice
    except BaseException:
        # A folder without configuration is no node: the same command can be given again.
        toml.unlink()
        if kept:
            (directory / "secrets" / "passphrase").unlink()
        raise
    return config


def create_accounts(directory: Path, accounts: Sequence[Account]) -> dict[str, str]:
    """Make accounts in a node. Returns TOTP secrets by account name."""
    parts = build(configuration.load(directory))
    found = {}
    for wanted in accounts:
        if wanted.password and len(wanted.password) < 10:
            raise InputFault(f"{wanted.name}: the password is too short", "use at least ten characters")
        _, found[wanted.name] = account.create(
            parts.node,
            name=wanted.name,
            display=wanted.display,
            email=wanted.email,
            roles=wanted.roles,
            committees=wanted.committees,
            organisation=wanted.organisation,
            country=wanted.country or parts.node.config.node.country,
            password=wanted.password,
            totp=wanted.totp,
        )
    return found


def _toml(name: str, country: str, unit: str, title: str, port: int, *, demo: bool, kept: bool) -> str:
    lines = [
        "# The node's configuration. 'valv config check' explains each fault; docs/configuration.md each setting.",
        "[node]",
        f"name = {_quoted(name)}",
        f"country = {_quoted(country)}",
        f"unit = {_quoted(unit)}",
        f"title = {_quoted(title)}",
        f"demo = {'true' if demo else 'false'}",
        "",
        "[serve]",
        f"port = {port}",
        "",
        "[login]",
        f"backend = {_quoted('demo' if demo else 'none')}",
        "",
        "[keys]",
        f"passphrase_file = {_quoted('secrets/passphrase' if kept else '')}",
        "",
    ]
    return "\n".join(lines)


def _quoted(value: object) -> str:
    return msgspec.json.encode(value).decode()  # a JSON string is a TOML basic string, and lists of them are lists


def write(path: Path, content: bytes, mode: int) -> None:
    """Make a file that was not there before, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
