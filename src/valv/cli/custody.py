"""`valv keys`: the officers of a node's keys and what they order: ceremonies, drills, destruction, recovery.

Officers' private keys are opened here and never leave this process; the key holder gets signed orders and, to unseal
and for a drill, opened shares.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from valv.cli.command import HERE, Local, command, group
from valv.cli.text import size
from valv.errors import InputFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from valv.cli.officer import Signer
    from valv.cli.operator import KeyDesk, StoredVersion
    from valv.formats.order import Order

keys = group("The node's keys and their officers.")
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.", show_default=False)]
OrderFile = Annotated[Path, typer.Argument(metavar="FILE", help="The order.", show_default=False)]
Sign = Annotated[
    list[Path] | None,
    typer.Option(
        "--sign", metavar="NAME.officer", help="An officer who signs here. Again for the next.", show_default=False
    ),
]
Signing = Annotated[
    list[Path], typer.Option("--sign", metavar="NAME.officer", help="An officer who signs. Again for the next.")
]
SignFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--sign-passphrase-file",
        metavar="FILE",
        help="Read that key's passphrase from a file. Again for the next.",
        show_default=False,
    ),
]
ToFile = Annotated[
    Path | None,
    typer.Option("--order", metavar="FILE", help="Write the order for others to sign.", show_default=False),
]
MinutesFile = Annotated[
    Path | None, typer.Option("--minutes", metavar="FILE", help="Write the minutes to a file.", show_default=False)
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Read the passphrase from a file.", show_default=False),
]
PinFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the PIN of the root key's token from a file.",
        show_default=False,
    ),
]
OfficerKey = Annotated[
    Path, typer.Option("--officer-key", metavar="NAME.officer", help="Your key.", show_default=False)
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


# --- officers' keys ---


@command(keys, "officer", action=HERE, example="valv keys officer anna --out /media/stick")
def make_officer(
    screen: Local,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Stands in the ledger for good.", show_default=False)],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the two files go.")] = Path(),
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make your key as an officer: NAME.officer to keep, NAME.officer.pub to give to the operator.

    Do this on a computer of your own. Shares are sealed to this key and orders signed with it, so guard the file and
    its passphrase apart from each other. Nobody can replace it; other officers can hold a ceremony without you.
    """
    from valv.cli import officer

    private, public, made = officer.make(screen, name, out, passphrase_file)
    if not screen.answer({"private": str(private), "public": str(public), "officer": made.written}):
        screen.say(made.written)
        screen.note(
            f"Keep {private} and its passphrase; give {public} to the operator, and read this line out to them."
        )


@command(keys, "sign", action=HERE, example="valv keys sign destroy.order --officer-key anna.officer")
def sign(
    screen: Local, file: OrderFile, officer_key: OfficerKey, passphrase_file: PassphraseFile = None, yes: Yes = False
) -> None:
    """Read an order and sign it. The signature is added to the file; an order counts for one day."""
    from valv.cli import arriving, officer
    from valv.formats import note, order

    text = officer.text_of(file, "take the file that '--order' wrote")
    signed = [one.name for one in note.read(text)[1]] if "\n\n" in text else []
    wanted = order.decode(note.read(text)[0] if signed else text)
    screen.say(wanted.encode().rstrip("\n"))
    screen.note(f"Signed by: {', '.join(signed) or 'nobody yet'}.")
    _ask(screen, "Do you want this, and sign it?", yes)
    signer = officer.read(screen, officer_key, passphrase_file, "--passphrase-file")
    text = officer.sign(text, [signer])
    with arriving.fresh(file, overwrite=True) as kept:
        kept.write(text.encode())
    if not screen.answer({"order": wanted.ident, "signed": [*signed, signer.name]}):
        screen.note(f"{signer.name} has signed. The operator hands it in: valv keys order DIR {file}")


# --- orders ---


@command(
    keys,
    "ceremony",
    action="node.operate",
    example="valv keys ceremony /srv/valv --officer anna.officer.pub --officer bo.officer.pub --officer eva.officer.pub"
    " \\\n    --threshold 2 --sign anna.officer --sign bo.officer --minutes ceremony.txt",
)
def ceremony(
    screen: Local,
    directory: Directory,
    officer: Annotated[
        list[Path],
        typer.Option("--officer", metavar="NAME.officer.pub", help="An officer. Again for each.", show_default=False),
    ],
    threshold: Annotated[int, typer.Option(metavar="M", help="How many of them recover the keys.", show_default=False)],
    persons: Annotated[int, typer.Option(help="How many unseal the node: 2, or 1 by a passphrase.")] = 2,
    sign: Sign = None,
    sign_passphrase_file: SignFiles = None,
    order: ToFile = None,
    minutes: MinutesFile = None,
    passphrase_file: PinFile = None,
) -> None:
    """Appoint officers: the root key is made anew and its recovery dealt to them.

    Two of the new officers sign, and two of those before where there were some. With --persons 2 the node is unsealed
    by two officers from now on ('valv keys unseal --officer-key'): its passphrase is random, and nobody knows it.
    """
    from valv.cli import officer as officers

    desk = screen.operator.keys(directory)
    named = tuple(officers.read_public(path) for path in officer)
    wanted = new_order(desk.name, "ceremony", officers=named, threshold=threshold, persons=persons)
    signers = officers.read_all(screen, sign or [], sign_passphrase_file or [])
    pin = b""
    if persons > 1 and order is None and desk.asks_pin:
        pin = screen.hidden("PIN of the token", passphrase_file, "--passphrase-file").encode()
    if carry_out(screen, desk, wanted, signers, order=order, minutes=minutes, passphrase=pin):
        screen.note(f"{threshold} of {len(named)} officers can recover the keys.")
        if persons > 1:
            screen.note(f"From the next start on {persons} officers unseal: valv keys unseal DIR --officer-key …")
        if persons > 1 and desk.passphrase_file:
            screen.warn(f"{desk.passphrase_file} opens nothing any more: remove it, and keys.passphrase_file.")


@command(
    keys, "drill", action="node.operate", example="valv keys drill /srv/valv --sign anna.officer --sign bo.officer"
)
def drill(
    screen: Local,
    directory: Directory,
    sign: Signing,
    sign_passphrase_file: SignFiles = None,
    minutes: MinutesFile = None,
) -> None:
    """Show, once a year, that the officers' shares still recover the keys. As many sign as recovery takes."""
    from valv.cli import officer as officers
    from valv.formats import shares

    desk = screen.operator.keys(directory)
    signers = officers.read_all(screen, sign, sign_passphrase_file or [])
    words = [shares.unseal(desk.shares(one.name).recovery, one.private) for one in signers]
    wanted = new_order(desk.name, "drill")
    if carry_out(screen, desk, wanted, signers, order=None, minutes=minutes, words=words):
        screen.note("The shares fit: these officers could recover the keys.")


@command(
    keys,
    "destroy",
    action="node.operate",
    example="valv keys destroy /srv/valv heart-cohort --version 2 --reason 'Withdrawn by the donors.'"
    " --order destroy.order",
)
def destroy(
    screen: Local,
    directory: Directory,
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Its name.", show_default=False)],
    reason: Annotated[str, typer.Option(help="One line; it stands in the minutes.", show_default=False)],
    version: Annotated[int | None, typer.Option(help="This version only.", show_default=False)] = None,
    sign: Sign = None,
    sign_passphrase_file: SignFiles = None,
    order: ToFile = None,
    minutes: MinutesFile = None,
    yes: Yes = False,
) -> None:
    """Destroy a dataset for ever, copies in backups included: its key goes, and the root key is made anew.

    Two officers sign, here (--sign) or elsewhere (--order). Nobody can undo it.
    """
    from valv.cli import officer as officers

    desk = screen.operator.keys(directory)
    found = [one for one in desk.versions(dataset) if version in (None, one.number)]
    doomed = [one for one in found if not one.destroyed]
    if not doomed:
        what = "is destroyed already" if found else "is not there"
        raise InputFault(f"{dataset}{f' version {version}' if version else ''} {what}", "see 'valv dataset show'")
    _show_doomed(screen, doomed)
    if not yes:
        typed(screen, dataset)
    wanted = new_order(
        desk.name, "destroy", key_ids=tuple(one.key_id for one in doomed), reason=" ".join(reason.split())
    )
    signers = officers.read_all(screen, sign or [], sign_passphrase_file or [])
    if carry_out(screen, desk, wanted, signers, order=order, minutes=minutes):
        screen.note(
            "The key is destroyed. The node now deletes the files and writes a certificate: see the page 'Keys'."
        )


@command(keys, "order", action="node.operate", example="valv keys order /srv/valv destroy.order --minutes minutes.txt")
def hand_in(
    screen: Local,
    directory: Directory,
    file: OrderFile,
    minutes: MinutesFile = None,
    passphrase_file: PinFile = None,
) -> None:
    """Hand in an order that two officers have signed; the key holder carries it out once."""
    from valv.cli import officer
    from valv.formats import note
    from valv.formats import order as orders

    desk = screen.operator.keys(directory)
    text = officer.text_of(file, "take the file that '--order' wrote and officers signed")
    if "\n\n" not in text:
        raise InputFault(f"nobody has signed {file}", f"two officers do: valv keys sign {file} --officer-key …")
    wanted = orders.decode(note.read(text)[0])
    if wanted.deed in ("drill", "recover"):
        raise InputFault(f"a {wanted.deed} needs the officers' keys as well", f"use 'valv keys {wanted.deed}'")
    pin = b""
    if wanted.persons > 1 and desk.asks_pin:
        pin = screen.hidden("PIN of the token", passphrase_file, "--passphrase-file").encode()
    _told(screen, wanted, desk.order(text, [], pin), minutes)


@command(
    keys,
    "recover",
    action="node.operate",
    example="valv keys recover /srv/valv --backup /mnt/elsewhere --sign anna.officer --sign bo.officer",
)
def recover(
    screen: Local,
    directory: Directory,
    backup: Annotated[
        Path, typer.Option("--backup", metavar="PLACE", help="A place of the key backup.", show_default=False)
    ],
    sign: Signing,
    sign_passphrase_file: SignFiles = None,
    minutes: MinutesFile = None,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a lost key folder anew from the key backup. The node is down, and its database restored.

    As many officers sign as the ceremony said. What the ledger says is destroyed stays so, also where the backup is an
    older one. New shares are dealt to the officers that there are now.
    """
    from valv.cli import officer as officers
    from valv.formats import shares

    found = screen.operator.recovery(directory, backup)
    signers = officers.read_all(screen, sign, sign_passphrase_file or [])
    words = [shares.unseal(found.share(one.name), one.private) for one in signers]
    passphrase = b""
    if found.needs_passphrase:
        question = "Passphrase of the new root key, or PIN of its token"
        passphrase = screen.hidden(question, passphrase_file, "--passphrase-file", twice=True).encode()
    wanted = new_order(found.name, "recover")
    _told(screen, wanted, found.recover(officers.sign(wanted.encode(), signers), words, passphrase), minutes)
    screen.note(f"The keys are back. Start the node: valv up {directory}")


# --- what the orders share ---


def new_order(node: str, deed: Any, **more: Any) -> Order:
    import secrets

    from valv.formats.order import Order

    at = datetime.now(UTC).replace(microsecond=0)
    return Order(node=node, ident=secrets.token_hex(16), at=at, deed=deed, **more)


def carry_out(
    screen: Local,
    desk: KeyDesk | None,
    wanted: Order,
    signers: Sequence[Signer],
    *,
    order: Path | None,
    minutes: Path | None,
    words: Sequence[str] = (),
    passphrase: bytes = b"",
) -> bool:
    """Have it done at once at the `desk`, or write it down (`order`) for others to sign. Returns whether it was
    done."""
    from valv.cli import arriving, officer

    text = officer.sign(wanted.encode(), signers)
    if order is not None:
        with arriving.fresh(order, mode=0o644) as kept:
            kept.write(text.encode())
        names = [one.name for one in signers]
        if not screen.answer({"order": wanted.ident, "file": str(order), "signed": names}):
            screen.note(f"Officers sign it within a day: valv keys sign {order} --officer-key NAME.officer")
            screen.note(f"Then hand it in: valv keys order DIR {order}")
        return False
    if not signers:
        raise InputFault("nobody signs the order", "let officers sign here (--sign) or elsewhere (--order FILE)")
    assert desk is not None
    _told(screen, wanted, desk.order(text, list(words), passphrase), minutes)
    return True


def _told(screen: Local, wanted: Order, text: str, file: Path | None) -> None:
    """Show or write the minutes."""
    from valv.cli import arriving

    if file is not None:
        with arriving.fresh(file, mode=0o644) as kept:
            kept.write(text.encode())
    if screen.answer({"order": wanted.ident, "deed": wanted.deed, "minutes": text}):
        return
    if file is None:
        screen.say(text.rstrip("\n"))
    else:
        screen.note(f"The minutes are in {file}.")


def _show_doomed(screen: Local, doomed: Sequence[StoredVersion]) -> None:
    rows = [(one.dataset, one.number, one.files, size(one.size), one.key_id) for one in doomed]
    screen.table(["dataset", "version", "files", "size", "key"], rows)
    screen.warn("This will be lost for ever: no backup brings it back.")


def typed(screen: Local, name: str) -> None:
    """The name, typed once more by somebody who means it."""
    if not screen.interactive:
        raise InputFault("nobody can be asked here", "give --yes where you are sure")
    if str(typer.prompt(f"Type {name} to go on", err=True)).strip() != name:
        raise InputFault("that is another name; nothing was done")


def _ask(screen: Local, question: str, yes: bool) -> None:
    if yes:
        return
    if not screen.interactive:
        raise InputFault("nobody can be asked here", "read the order, and give --yes where you want it")
    if not typer.confirm(question, err=True):
        raise InputFault("not signed; nothing was done")
