"""The profile: which node a person talks to, and the token of the session. One JSON file that only its owner reads."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from valv.errors import InputFault, Refusal, RefusedFault

LOCAL = ("localhost", "127.0.0.1", "::1")


class Profile(msgspec.Struct, frozen=True):
    """`url`: the node's address; `token`: of the session, '' when logged out; `account`: the name that logged in;
    `ca_file`: certificates to trust besides the usual ones' place."""

    url: str
    token: str = ""
    account: str = ""
    ca_file: str = ""


def default() -> Path:
    return Path.home() / ".config" / "valv" / "profile.json"


def load(path: Path) -> Profile:
    """Read a profile. Raises the refusal `login_needed` where there is none, `InputFault` where it cannot be used."""
    try:
        if path.stat().st_mode & 0o077:
            raise InputFault(f"{path} can be read by others", f"chmod 600 {path}, then log in again")
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except FileNotFoundError:
        raise RefusedFault(Refusal("login_needed", f"there is no {path}")) from None
    except msgspec.DecodeError as error:
        raise InputFault(f"{path}: {error}", "log in again: 'valv login'") from None
    except OSError as error:
        raise InputFault(f"{path}: {error.strerror}") from error


def save(path: Path, profile: Profile) -> None:
    """Write a profile at once or not at all, with mode 600."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        write_private(fresh, json.dumps(msgspec.to_builtins(profile), indent=2).encode() + b"\n")
        fresh.replace(path)
    except OSError as error:
        raise InputFault(f"{path}: {error.strerror}", "choose another file with --profile") from error


def write_private(path: Path, content: bytes) -> None:
    """A new file with mode 600. Raises `OSError` where it cannot be made or exists."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def address(url: str) -> str:
    """The node's address without a final '/'. Passwords and tokens travel on it, so that other hosts than this one need
    https. Raises `InputFault`."""
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
        raise InputFault(f"{url!r} is not the address of a node", "write for example https://valv.example.org")
    if parts.scheme == "http" and host not in LOCAL:
        raise InputFault(f"{url} is not encrypted on its way", f"use https://{parts.netloc}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def first_line(path: Path, what: str) -> str:
    """A secret from the first line of a file. Raises `InputFault`."""
    try:
        with path.open(encoding="utf-8") as file:
            secret = file.readline(10_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFault(
            f"{path}: {getattr(error, 'strerror', None) or 'not text'}", f"it should hold {what}"
        ) from None
    if not secret:
        raise InputFault(f"{path} is empty", f"its first line should be {what}")
    return secret
