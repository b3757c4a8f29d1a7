"""`valv crypt`: Crypt4GH keys and files on this computer. No node is asked.

What encrypts is imported where it is used: help needs none of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from valv.cli.command import HERE, Local, command, group
from valv.cli.text import read_size, size
from valv.errors import InputFault, KeyFault

if TYPE_CHECKING:
    from valv.vault.endpoints import Sink, Source

crypt = group("Crypt4GH keys and files on this computer.")
STREAM = Path("-")
File = Annotated[Path, typer.Argument(metavar="FILE", help="The file; '-' for standard input.", show_default=False)]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where the result goes; '-' for standard output.", show_default=False
    ),
]
Recipients = Annotated[
    list[Path], typer.Option("--for", metavar="FILE.pub", help="Who can read it (repeat).", show_default=False)
]
Secrets = Annotated[
    list[Path],
    typer.Option("--secret", metavar="FILE.sec", help="A private key to try (repeat).", show_default=False),
]
Range = Annotated[
    str | None,
    typer.Option(
        "--range", metavar="START[-END]", help="Only these bytes, END not included: 1M-2M.", show_default=False
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
    from valv.cli import arriving
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
    recipient: Recipients,
    output: Output = None,
    part: Range = None,
    sha256: Annotated[bool, typer.Option("--sha256", help="Show the SHA-256 of the encrypted file.")] = False,
) -> None:
    """Encrypt a file for public keys. The result is FILE.c4gh unless said otherwise."""
    from valv.cli import cipher
    from valv.cli.keys import read_public

    recipients = [read_public(path) for path in recipient]
    target = output or (STREAM if file == STREAM else file.with_name(f"{file.name}.c4gh"))
    span = _span(part)
    _convert(
        screen,
        file,
        target,
        "encrypting",
        lambda source, sink, told: cipher.encrypt(source, sink, recipients, span=span, progress=told),
        sha256=sha256,
    )


@command(crypt, "decrypt", action=HERE, example="valv crypt decrypt calls.vcf.gz.c4gh --secret me.sec")
def decrypt(
    screen: Local,
    file: File,
    secret: Secrets,
    output: Output = None,
    part: Range = None,
    passphrase_file: PassphraseFile = None,
    sha256: Annotated[
        bool, typer.Option("--sha256/--no-sha256", help="Show the SHA-256 of the result, which costs some speed.")
    ] = True,
) -> None:
    """Decrypt a file. The result has the name without .c4gh unless said otherwise."""
    from valv.cli import cipher

    if output is None and file != STREAM and file.suffix != ".c4gh":
        raise InputFault(f"{file} does not end in .c4gh", "name the result: -o FILE")
    keys = _private(screen, secret, passphrase_file)
    target = output or (STREAM if file == STREAM else file.with_suffix(""))
    span = _span(part)
    with _naming(file, keys):
        _convert(
            screen,
            file,
            target,
            "decrypting",
            lambda source, sink, told: cipher.decrypt(source, sink, list(keys.values()), span=span, progress=told),
            sha256=sha256,
        )


@command(
    crypt,
    "reencrypt",
    action=HERE,
    example="valv crypt reencrypt calls.vcf.gz.c4gh --secret me.sec --for partner.pub -o partner.c4gh",
)
def reencrypt(
    screen: Local,
    file: File,
    secret: Secrets,
    recipient: Recipients,
    output: Output = None,
    trim: Annotated[
        bool, typer.Option("--trim", help="Drop what the header holds for others; else they can read on.")
    ] = False,
    header_only: Annotated[bool, typer.Option("--header-only", help="Write the new header without the body.")] = False,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Give an encrypted file a header for other public keys. The body stays as it is, and so does its data key: whoever
    could read the old file and keeps its key can read the new one."""
    from valv.cli import cipher
    from valv.cli.keys import read_public

    recipients = [read_public(path) for path in recipient]
    keys = _private(screen, secret, passphrase_file)
    with _naming(file, keys):
        _convert(
            screen,
            file,
            _named(file, output),
            "re-sealing",
            lambda source, sink, told: cipher.reencrypt(
                source, sink, list(keys.values()), recipients, trim=trim, header_only=header_only, progress=told
            ),
        )


@command(
    crypt,
    "rearrange",
    action=HERE,
    example="valv crypt rearrange calls.bcf.c4gh --secret me.sec --range 1M-2M -o part.c4gh",
)
def rearrange(
    screen: Local,
    file: File,
    secret: Secrets,
    part: Annotated[
        str, typer.Option("--range", metavar="START[-END]", help="Bytes to show, END not included.", show_default=False)
    ],
    recipient: Annotated[
        list[Path] | None,
        typer.Option(
            "--for", metavar="FILE.pub", help="Who can read it (repeat); else the private keys.", show_default=False
        ),
    ] = None,
    output: Output = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Cut a part out of an encrypted file without decrypting it: only the segments that hold the part are kept, with an
    edit list that shows no more than the part. Readers that ignore edit lists see whole segments of 64 KiB."""
    from valv.cli import cipher
    from valv.cli.keys import read_public
    from valv.formats.crypt4gh import public_key

    keys = _private(screen, secret, passphrase_file)
    recipients = [read_public(path) for path in recipient or ()] or [public_key(key) for key in keys.values()]
    span = _span(part)
    with _naming(file, keys):
        _convert(
            screen,
            file,
            _named(file, output),
            "rearranging",
            lambda source, sink, told: cipher.rearrange(
                source, sink, list(keys.values()), recipients, span=span, progress=told
            ),
        )


@command(crypt, "info", action=HERE, example="valv crypt info calls.vcf.gz.c4gh")
def info(
    screen: Local,
    file: File,
    secret: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE.sec", help="Also tell whether this private key opens it.", show_default=False),
    ] = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Show what can be seen of an encrypted file without a key, or with one."""
    from valv.cli import cipher
    from valv.formats.crypt4gh import fingerprint
    from valv.vault.endpoints import source_of

    keys = _private(screen, secret or [], passphrase_file)
    with _source(file) as stream, _naming(file, keys):
        found = cipher.look(source_of(stream), list(keys.values()))
    writers = [fingerprint(writer) for writer in found.writers]
    shown = {"packets": found.packets, "header": found.header, "body": found.body, "plain": found.plain}
    edits = None if found.edit_list is None else list(found.edit_list)
    if not screen.answer(shown | {"writers": writers} | ({"edit_list": edits} if keys else {})):
        pairs = [("packets", found.packets), ("header", size(found.header)), ("body", size(found.body))]
        pairs += [("decrypted", size(found.plain)), ("written with", "\n".join(writers))]
        if keys:
            pairs.append(("edit list", "none" if edits is None else " ".join(map(str, edits))))
        screen.facts(pairs)


def _convert(
    screen: Local,
    file: Path,
    target: Path,
    title: str,
    change: Callable[[Source, Sink, Callable[[int], object]], int],
    *,
    sha256: bool = False,
) -> None:
    """Write what `change` makes of a file, and show its size, with its checksum where that is wanted."""
    from valv.vault.endpoints import Digesting, FileSink, sink_of, source_of

    with _source(file) as stream, _target(target) as result:
        source, sink = source_of(stream), sink_of(result)
        digest = Digesting(sink) if sha256 else None
        with screen.progress(title, source.size) as advance:
            count = change(source, digest or sink, advance)
        if target == STREAM and isinstance(sink, FileSink):
            sink.leave_after(count)
    found = digest.hexdigest() if digest else ""
    told = {"file": str(target), "size": count} | ({"sha256": found} if found else {})
    if target == STREAM:
        screen.note(f"{size(count)}, SHA-256 {found}" if found else size(count))
    elif not screen.answer(told):
        screen.say(f"{found}  {target}" if found else f"{target}  ({size(count)})")


def _private(screen: Local, files: Sequence[Path], passphrase_file: Path | None) -> dict[str, bytes]:
    """The raw private keys by the names of their files."""
    from valv.cli.keys import read_private

    return {str(path): read_private(screen, path, passphrase_file) for path in files}


@contextmanager
def _naming(file: Path, keys: Mapping[str, bytes]) -> Iterator[None]:
    """A file that no key opens is told with the key files that were tried. Whose keys would open it a header does not
    say; who wrote it can be seen."""
    try:
        yield
    except KeyFault as fault:
        from valv.formats.crypt4gh import fingerprint, public_key

        tried = ", ".join(f"{name} ({fingerprint(public_key(key))})" for name, key in keys.items())
        subject = "the input" if file == STREAM else str(file)
        fault.detail = f"{subject} is not sealed for {tried}; for whom it is, its header does not name"
        fault.hint = "try another --secret, or send the fingerprint and the .pub file to the sender, who can re-seal it"
        raise


def _span(text: str | None) -> tuple[int, int | None]:
    """`START-END` or `START`, END not included."""
    if text is None:
        return 0, None
    start, dash, last = text.partition("-")
    low, high = read_size(start), read_size(last) if dash else None
    if high is not None and low >= high:
        raise InputFault(f"the range {text!r} is empty", "write START-END with END behind START")
    return low, high


def _named(file: Path, output: Path | None) -> Path:
    """Where a changed copy of an encrypted file goes."""
    if output is None and file != STREAM:
        raise InputFault("the result has no name", "name it: -o FILE, or -o - for standard output")
    return output or STREAM


@contextmanager
def _source(file: Path) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield sys.stdin.buffer
        return
    with file.open("rb", buffering=0) as source:
        yield source


@contextmanager
def _target(file: Path) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    from valv.cli import arriving

    with arriving.fresh(file) as target:
        yield target
