"""`valv crypt`: Crypt4GH keys and files on this computer. No node is asked.

What encrypts is imported where it is used: help needs none of it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from valv.cli import arriving
from valv.cli.command import HERE, Local, command, group
from valv.cli.text import size
from valv.errors import InputFault

crypt = group("Crypt4GH keys and files on this computer.")
STREAM = Path("-")
File = Annotated[Path, typer.Argument(metavar="FILE", help="The file; '-' for standard input.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where the result goes; '-' for standard output.", show_default=False
    ),
]
PassphraseFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read the passphrase from a file.", show_default=False)
]


@command(crypt, "keygen", action=HERE, example="valv crypt keygen me")
def keygen(
    screen: Local,
    name: Annotated[
        Path, typer.Argument(metavar="NAME", help="NAME.pub and NAME.sec are written.", show_default=False)
    ],
    passphrase_file: PassphraseFile = None,
    no_passphrase: Annotated[
        bool, typer.Option("--no-passphrase", help="Leave the private key unlocked in its file.")
    ] = False,
) -> None:
    """Make a key pair: NAME.pub to give away, NAME.sec to keep. The private key is locked by a passphrase."""
    from valv.formats import crypt4gh, keyfile

    public, private = name.with_name(f"{name.name}.pub"), name.with_name(f"{name.name}.sec")
    for file in (public, private):
        if file.exists():
            raise InputFault(f"{file} is there already", "keys are never overwritten; choose another name")
    passphrase = "" if no_passphrase else screen.hidden("Passphrase", passphrase_file, "--passphrase-file", twice=True)
    pair = crypt4gh.generate_keypair()
    for file, text in (
        (private, keyfile.write_private(pair.private, passphrase)),
        (public, keyfile.write_public(pair.public)),
    ):
        with arriving.fresh(file) as kept:
            kept.write(text.encode())
    public.chmod(0o644)
    shown = crypt4gh.fingerprint(pair.public)
    if not screen.answer({"public": str(public), "private": str(private), "fingerprint": shown}):
        screen.say(shown)
        screen.note(f"{public} can be given away; keep {private}: without it nothing sealed to it can be read.")


@command(crypt, "encrypt", action=HERE, example="valv crypt encrypt calls.vcf.gz --for node.pub")
def encrypt(
    screen: Local,
    file: File,
    recipient: Annotated[
        list[Path], typer.Option("--for", metavar="FILE.pub", help="Who can read it (repeat).", show_default=False)
    ],
    output: Output = None,
) -> None:
    """Encrypt a file for public keys. The result is FILE.c4gh unless said otherwise."""
    from valv.cli import cipher
    from valv.cli.keys import read_public

    recipients = [read_public(path) for path in recipient]
    target = output or (STREAM if file == STREAM else file.with_name(f"{file.name}.c4gh"))
    _convert(screen, file, target, lambda source: cipher.encrypt(source, recipients), "encrypting")


@command(crypt, "decrypt", action=HERE, example="valv crypt decrypt calls.vcf.gz.c4gh --secret me.sec")
def decrypt(
    screen: Local,
    file: File,
    secret: Annotated[
        list[Path], typer.Option(metavar="FILE.sec", help="A private key to try (repeat).", show_default=False)
    ],
    output: Output = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Decrypt a file. The result has the name without .c4gh unless said otherwise; its SHA-256 is shown."""
    from valv.cli import cipher
    from valv.cli.keys import read_private

    if output is None and file != STREAM and file.suffix != ".c4gh":
        raise InputFault(f"{file} does not end in .c4gh", "name the result: -o FILE")
    privates = [read_private(screen, path, passphrase_file) for path in secret]
    target = output or (STREAM if file == STREAM else file.with_suffix(""))
    _convert(screen, file, target, lambda source: cipher.decrypt(source, privates), "decrypting")


@command(crypt, "info", action=HERE, example="valv crypt info calls.vcf.gz.c4gh")
def info(screen: Local, file: File) -> None:
    """Show what can be seen of an encrypted file without a key."""
    from valv.cli import cipher
    from valv.formats import crypt4gh

    with _source(file) as source:
        header, rest = cipher.read_header(source)
        body = len(rest)
        while piece := source.read(arriving.PIECE):
            body += len(piece)
    found = {"packets": int.from_bytes(header[12:16], "little"), "header": len(header), "body": body}
    found |= {"plain": crypt4gh.plain_size(body)}
    if not screen.answer(found):
        pairs = [("packets", found["packets"]), ("header", size(len(header))), ("body", size(body))]
        screen.facts([*pairs, ("decrypted", size(found["plain"]))])


def _convert(
    screen: Local, file: Path, target: Path, change: Callable[[BinaryIO], Iterator[bytes]], title: str
) -> None:
    """Write what `change` makes of a file, with its checksum as the result that is shown."""
    whole, count = hashlib.sha256(), 0
    total = file.stat().st_size if file != STREAM else 0
    with _source(file) as source, _target(target) as result, screen.progress(title, total) as advance:
        for piece in change(source):
            whole.update(piece)
            count += len(piece)
            result.write(piece)
            advance(len(piece))
    if target == STREAM:
        screen.note(f"{size(count)}, SHA-256 {whole.hexdigest()}")
    elif not screen.answer({"file": str(target), "size": count, "sha256": whole.hexdigest()}):
        screen.say(f"{whole.hexdigest()}  {target}")


@contextmanager
def _source(file: Path) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield sys.stdin.buffer
        return
    with file.open("rb") as source:
        yield source


@contextmanager
def _target(file: Path) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with arriving.fresh(file) as target:
        yield target
