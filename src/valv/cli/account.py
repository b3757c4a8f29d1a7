"""`valv account`: one's own account, and the keys that downloads are sealed to. Operators make accounts with it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Any

import typer

from valv.cli.command import Door, Local, command, group
from valv.cli.session import flat
from valv.cli.text import moment
from valv.errors import InputFault, KeyFault

account = group("Your account and the keys that downloads are sealed to.")
key = group("The keys that downloads are sealed to.")
account.add_typer(key, name="key")
PassphraseFile = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Read the passphrase from a file.", show_default=False),
]


@command(account, "show", action="account.see", example="valv account show")
def show(door: Door) -> None:
    """Show your account: name, roles, committees, keys."""
    answer: dict[str, Any] = door.get("account")
    if door.answer(answer):
        return
    pairs = [(name, value) for name, value in flat(answer) if name != "keys"]
    door.facts(
        [
            (n.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, list) else "–" if v in (None, "") else v)
            for n, v in pairs
        ]
    )


@command(key, "list", action="account.see", example="valv account key list")
def list_keys(door: Door) -> None:
    """List your registered keys."""
    keys = door.get("account", "keys")
    if not door.answer(keys):
        rows = [(k["id"], k["label"], k["fingerprint"], moment(k["added"])) for k in keys]
        door.table(("key", "label", "fingerprint", "added"), rows, "no key is registered")


@command(account, "keys", action="account.see", example="valv account keys")
def keys(door: Door) -> None:
    """The same as 'valv account key list'."""
    list_keys(door)


@command(key, "add", action="account.key_add", example="valv account key add me.pub --secret me.sec --label laptop")
def add(
    door: Door,
    public_file: Annotated[Path, typer.Argument(metavar="FILE.pub", help="The public key.", show_default=False)],
    secret: Annotated[
        Path, typer.Option(metavar="FILE.sec", help="The private key; it stays here.", show_default=False)
    ],
    label: Annotated[str, typer.Option(help="What you call it.", show_default=False)] = "",
    passphrase_file: PassphraseFile = None,
) -> None:
    """Register a public key for downloads. That you hold the private key is shown without sending it.

    Needs a second factor; a notice goes to you by mail.
    """
    from valv.app.account import answer
    from valv.cli.keys import read_private, read_public
    from valv.formats import crypt4gh

    public = read_public(public_file)
    private = read_private(door, secret, passphrase_file)
    if crypt4gh.public_key(private) != public:
        raise KeyFault(f"{secret} is not the private key of {public_file}", "give the two files of one pair")
    body = {"public": base64.b64encode(public).decode(), "label": label or public_file.stem}
    challenge = door.post("account", "keys", body=body)
    opened = crypt4gh.open_header(base64.b64decode(challenge["header"]), [private])
    proof = {"answer": answer(opened.data_keys[0])}
    found = door.post("account", "keys", challenge["challenge_id"], body=proof)
    if not door.answer(found | {"id": challenge["challenge_id"]}):
        door.say(challenge["challenge_id"])
        door.note(f"The key {found['fingerprint']} is registered; this is its id.")


@command(key, "end", action="account.key_end", example="valv account key end ID")
def end(door: Door, ident: Annotated[str, typer.Argument(metavar="ID", help="The key.", show_default=False)]) -> None:
    """End a registered key: nothing is sealed to it any more."""
    from valv.cli.client import path

    if not door.answer(door.client.ask("DELETE", path("account", "keys", ident))):
        door.note(f"The key {ident} is ended.")


@command(
    account,
    "create",
    action="account.manage",
    example="valv account create /srv/valv ada --display 'Ada Lind' --email ada@example.org --role researcher --totp",
)
def create(
    screen: Local,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters and digits.", show_default=False)],
    role: Annotated[
        list[str],
        typer.Option(
            help="researcher, custodian, committee, checker, operator or auditor (repeat).", show_default=False
        ),
    ],
    display: Annotated[str, typer.Option(help="The person's name.", show_default=False)] = "",
    email: Annotated[str, typer.Option(help="Where notices go.", show_default=False)] = "",
    committee: Annotated[list[str] | None, typer.Option(help="A committee to sit on (repeat).")] = None,
    organisation: Annotated[str, typer.Option(help="Where the person works.", show_default=False)] = "",
    country: Annotated[
        str, typer.Option(help="Of the organisation, ISO 3166; else the node's.", show_default=False)
    ] = "",
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the password from a file.", show_default=False)
    ] = None,
    totp: Annotated[bool, typer.Option("--totp", help="With a second factor; its secret is shown once.")] = False,
) -> None:
    """Make an account (an operator, on the node's own machine)."""
    from valv.core.account import ROLES

    unknown = sorted(set(role) - set(ROLES))
    if unknown:
        raise InputFault(f"{unknown[0]!r} is not a role", f"the roles are {', '.join(ROLES)}")
    secret = screen.operator.create_account(
        directory,
        name=name,
        display=display or name,
        email=email,
        roles=role,
        committees=committee or [],
        organisation=organisation,
        country=country.upper(),
        password=screen.hidden("Password", password_file, "--password-file", twice=True),
        totp=totp,
    )
    if screen.answer({"name": name} | ({"totp_secret": secret} if secret else {})):
        return
    screen.note(f"The account {name} is made.")
    if secret:
        screen.say(f"otpauth://totp/valv:{name}?secret={secret}&issuer=valv")
