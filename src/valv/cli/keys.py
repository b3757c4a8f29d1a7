"""Crypt4GH key files on this computer."""

from __future__ import annotations

from pathlib import Path

from valv.cli.command import Local
from valv.errors import Fault, InputFault
from valv.formats import keyfile

LARGEST = 1 << 16


def read_public(path: Path) -> bytes:
    """The raw public key in a file. Faults name the file."""
    text = _text(path)
    try:
        return keyfile.read_public(text)
    except Fault as fault:
        fault.detail = f"{path}: {fault.detail}"
        raise


def read_private(screen: Local, path: Path, passphrase_file: Path | None) -> bytes:
    """The raw private key in a file; its passphrase is read from `passphrase_file` or asked for. Faults name the
    file."""
    text = _text(path)
    try:
        return keyfile.read_private(
            text, lambda: screen.hidden(f"Passphrase of {path.name}", passphrase_file, "--passphrase-file")
        )
    except Fault as fault:
        if str(path) not in fault.detail:
            fault.detail = f"{path}: {fault.detail}"
        raise


def _text(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(LARGEST)
    except UnicodeDecodeError:
        raise InputFault(f"{path} is not a key file", "make keys with 'valv crypt keygen'") from None
    except OSError as error:
        raise InputFault(f"{path}: {error.strerror}", "make keys with 'valv crypt keygen'") from None
