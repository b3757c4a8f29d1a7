"""Officers' keys on this computer: making them, reading them, signing orders with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from valv.cli import arriving
from valv.cli.command import Local
from valv.errors import Fault, FormatFault, InputFault
from valv.formats import crypt4gh, keyfile, note, officer
from valv.formats.officer import Officer

HINT = "an officer's key is made with 'valv keys officer'"
SHORTEST = 12
"""Letters of a passphrase: whoever has the file can try as many as they like."""


def text_of(path: Path, hint: str) -> str:
    """A key file or an order. Raises `InputFault` with this hint where it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(note.MAX_NOTE)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "this is no text"
        raise InputFault(f"{path}: {why}", hint) from None


@dataclass(frozen=True)
class Signer:
    """An officer whose private key is open. `private`: raw X25519 key."""

    name: str
    private: bytes = field(repr=False)


def make(screen: Local, name: str, folder: Path, passphrase_file: Path | None) -> tuple[Path, Path, Officer]:
    """Make an officer's key; the private file, the public one and what stands in it. Never overwrites."""
    private, public = folder / f"{name}.officer", folder / f"{name}.officer.pub"
    for file in (private, public):
        if file.exists():
            raise InputFault(f"{file} is there already", "keys are never overwritten; choose another name or folder")
    pair = crypt4gh.generate_keypair()
    made = Officer.of(name, pair.private)  # a name that cannot be is refused before anything is asked
    passphrase = screen.hidden("Passphrase", passphrase_file, "--passphrase-file", twice=True)
    if len(passphrase) < SHORTEST:
        raise InputFault("the passphrase is too short", f"use at least {SHORTEST} letters, for example five words")
    for file, text in (
        (private, keyfile.write_private(pair.private, passphrase, comment=name)),
        (public, f"{made.written}\n"),
    ):
        with arriving.fresh(file) as kept:
            kept.write(text.encode())
    public.chmod(0o644)
    return private, public, made


def read_public(path: Path) -> Officer:
    """What an officer gave. Faults name the file."""
    try:
        return Officer.read(text_of(path, HINT))
    except FormatFault as fault:
        fault.detail = f"{path}: {fault.detail}"
        raise


def read(screen: Local, path: Path, passphrase_file: Path | None, option: str) -> Signer:
    """Open an officer's private key; its passphrase is read from a file or asked for. Faults name the file."""
    text = text_of(path, HINT)
    try:
        name = keyfile.read_comment(text) or path.name.removesuffix(".officer")
        if not keyfile.is_locked(text):
            raise InputFault("this key has no passphrase", "make an officer's key with 'valv keys officer'")
        private = keyfile.read_private(
            text, lambda: screen.hidden(f"Passphrase of {name} ({path.name})", passphrase_file, option)
        )
        Officer.of(name, private)  # raises where the name is none that an officer can have
        return Signer(name, private)
    except Fault as fault:
        if str(path) not in fault.detail:
            fault.detail = f"{path}: {fault.detail}"
        raise


def read_all(screen: Local, paths: Sequence[Path], passphrase_files: Sequence[Path]) -> list[Signer]:
    """The keys of several officers, one after the other. `passphrase_files`: none, or one for each."""
    if passphrase_files and len(passphrase_files) != len(paths):
        raise InputFault(
            f"{len(passphrase_files)} passphrase files for {len(paths)} keys", "give one for each, in the same order"
        )
    files: Sequence[Path | None] = passphrase_files or [None] * len(paths)
    return [read(screen, path, file, "--sign-passphrase-file") for path, file in zip(paths, files, strict=True)]


def sign(text: str, signers: Sequence[Signer]) -> str:
    """An order, or a note of one, with the signatures of these officers. Raises `InputFault` for one who signed it."""
    for signer in signers:
        if "\n\n" in text and any(one.name == signer.name for one in note.read(text)[1]):
            raise InputFault(f"{signer.name} has signed this already", "let another officer sign it")
        text = officer.sign(signer.private, signer.name, text)
    return text
