"""Logging in and out: `valv login`, `logout`, `whoami`, `second-factor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from valv.cli import profile as profiles
from valv.cli.command import Door, command, group
from valv.cli.profile import Profile
from valv.errors import Fault, InputFault, RefusedFault

app = group("Log in and out.")
CodeFile = Annotated[
    Path | None, typer.Option("--code-file", metavar="FILE", help="Read the code from a file.", show_default=False)
]


@command(
    app,
    "login",
    action="session.open",
    example="valv login https://valv.example.org --account ada\nvalv login --second-factor",
)
def login(
    door: Door,
    url: Annotated[str, typer.Argument(metavar="[URL]", help="The node's address.", show_default=False)] = "",
    account: Annotated[str, typer.Option(help="The account's name.", show_default=False)] = "",
    second_factor: Annotated[bool, typer.Option("--second-factor", help="Show the second factor too.")] = False,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the password from a file.", show_default=False)
    ] = None,
    code_file: CodeFile = None,
    ca_file: Annotated[
        str, typer.Option(metavar="FILE", help="Certificates that vouch for the node.", show_default=False)
    ] = "",
) -> None:
    """Log in to a node. The password is asked for without echo; the session's token is kept in the profile.

    Without an address the profile's one is used. With --second-factor alone the session that is open is confirmed.
    """
    known = _known(door)
    if second_factor and not url and not account and not password_file and known.token:
        _confirm(door, code_file)
        return
    target = Profile(
        url=profiles.address(url) if url else known.url,
        account=account or known.account,
        ca_file=str(Path(ca_file).resolve()) if ca_file else "" if url else known.ca_file,
    )
    if not target.url or not target.account:
        raise InputFault("node or account is not named", "valv login https://NODE --account NAME")
    body = {"name": target.account, "password": door.hidden("Password", password_file, "--password-file")}
    if second_factor or code_file:
        body["code"] = door.hidden("Code of your second factor", code_file, "--code-file")
    client = door.connect(target)
    try:
        answer = client.ask("POST", "/api/v1/sessions", body | {"label": "command line"}, repeat=False)
    finally:
        client.close()
    profiles.save(door.profile_file, msgspec.structs.replace(target, token=answer["token"]))
    if not door.answer({"url": target.url, "account": answer["account"]}):
        door.note(f"Logged in to {target.url} as {target.account}.")


def _known(door: Door) -> Profile:
    """The profile as it is, an empty one where there is none that can be used."""
    try:
        return profiles.load(door.profile_file)
    except Fault:
        return Profile(url="")


@command(app, "logout", action="session.close", example="valv logout")
def logout(door: Door) -> None:
    """End the session at the node and forget its token."""
    known = profiles.load(door.profile_file)
    if known.token:
        try:
            door.client.ask("DELETE", "/api/v1/sessions/current")
        except Fault as fault:
            if fault.row.status not in (401, 404):  # it ended by itself
                raise
    profiles.save(door.profile_file, msgspec.structs.replace(known, token=""))
    if not door.answer({"url": known.url}):
        door.note(f"Logged out of {known.url}.")


@command(app, "whoami", action="session.see", example="valv whoami")
def whoami(door: Door) -> None:
    """Who is logged in: the account, its roles, and whether the second factor counts at the moment."""
    answer: dict[str, Any] = door.get("sessions", "current")
    if door.answer(answer):
        return
    known = profiles.load(door.profile_file)
    door.facts([("node", known.url), *((key.replace("_", " "), _shown(value)) for key, value in flat(answer))])


def flat(answer: dict[str, Any]) -> list[tuple[str, Any]]:
    """The pairs of an object, those of objects within it in their place."""
    pairs: list[tuple[str, Any]] = []
    for key, value in answer.items():
        pairs.extend(flat(value) if isinstance(value, dict) else [(key, value)])
    return pairs


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return {True: "yes", False: "no", None: "–", "": "–"}.get(value, str(value))


@command(app, "second-factor", action="session.see", example="valv second-factor")
def second_factor(door: Door, code_file: CodeFile = None) -> None:
    """Confirm the second factor in the session that is open. It counts for some minutes."""
    _confirm(door, code_file)


def _confirm(door: Door, code_file: Path | None) -> None:
    if not profiles.load(door.profile_file).token:
        raise _logged_out()
    code = door.hidden("Code of your second factor", code_file, "--code-file")
    if not door.answer(door.client.step_up(code)):
        door.note("The second factor is confirmed.")


def _logged_out() -> RefusedFault:
    from valv.errors import Refusal

    return RefusedFault(Refusal("login_needed"))
