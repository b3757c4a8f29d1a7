"""`valv node`: what node this is, its public key, and making a new one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from valv.cli.command import Door, Local, command, group
from valv.errors import InputFault

node = group("What node this is, and its public key.")


@command(node, "show", action="node.see", example="valv node show")
def show(door: Door) -> None:
    """The node's name, country, department and keys."""
    answer = door.get("node")
    if door.answer(answer):
        return
    shown = ("name", "title", "country", "unit", "version", "log_key")
    door.facts([(key.replace("_", " "), answer.get(key, "")) for key in shown])
    if answer.get("demo"):
        door.note("This is a demonstration node: it must hold no real data.")


@command(node, "key", action="node.see", example="valv node key > node.pub")
def key(door: Door) -> None:
    """The node's public key. A depositor encrypts files for it: valv crypt encrypt FILE --for node.pub."""
    answer = door.get("node")
    if not answer.get("node_key"):
        raise InputFault("the node's keys are locked", "an operator opens them with 'valv keys unseal'")
    if not door.answer({"node_key": answer["node_key"]}):
        door.say(answer["node_key"].rstrip("\n"))


@command(
    node,
    "create",
    action="node.operate",
    example="valv node create /srv/valv --name valv.example.org --country SE --unit genetics",
)
def create(
    screen: Local,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new node's folder.", show_default=False)],
    name: Annotated[str, typer.Option(help="A DNS-like name; it signs the ledger.", show_default=False)],
    country: Annotated[str, typer.Option(help="ISO 3166, for example SE.", show_default=False)],
    unit: Annotated[str, typer.Option(help="The department that answers for the data.", show_default=False)],
    title: Annotated[str, typer.Option(help="What pages call the node.")] = "Valv",
    port: Annotated[int, typer.Option(help="Where the node listens on this machine.")] = 8600,
    ask_passphrase: Annotated[
        bool, typer.Option("--ask-passphrase", help="Ask for a passphrase that is kept nowhere.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read that passphrase from a file.", show_default=False)
    ] = None,
    pkcs11_module: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the root key in a token, through this library.", show_default=False),
    ] = None,
    pkcs11_token: Annotated[str, typer.Option(metavar="LABEL", help="The token.", show_default=False)] = "",
    pkcs11_key: Annotated[str, typer.Option(metavar="LABEL", help="The root key's name there.")] = "valv",
    pkcs11_bind: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="What that library needs. Again for more.", show_default=False),
    ] = None,
    barbican_cloud: Annotated[
        str, typer.Option(metavar="NAME", help="Keep the root key in this cloud's Barbican.", show_default=False)
    ] = "",
    barbican_clouds_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="clouds.yaml with an application credential.", show_default=False),
    ] = None,
    barbican_key: Annotated[str, typer.Option(metavar="NAME", help="The root key's name there.")] = "valv",
    backup: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="A place of the key backup. Again for more.", show_default=False),
    ] = None,
) -> None:
    """Make a new node: its configuration, keys and empty database (an operator, on the machine itself).

    With a passphrase of yours the node starts locked and `valv keys unseal` opens it. Without one a random passphrase
    is kept in the node's folder, so that the node starts by itself. With a token the passphrase is its user's PIN.
    """
    keys: dict[str, object] = {}
    if pkcs11_module is not None:
        if not pkcs11_token or not (ask_passphrase or passphrase_file):
            raise InputFault("a root key in a token needs its label and PIN", "add --pkcs11-token and --ask-passphrase")
        keys = {"backend": "pkcs11", "module": str(pkcs11_module), "token": pkcs11_token, "key": pkcs11_key}
        keys["binds"] = pkcs11_bind or []
    if barbican_cloud:
        if keys or barbican_clouds_file is None:
            raise InputFault("the root key in Barbican needs its cloud's file", "add --barbican-clouds-file")
        clouds = str(barbican_clouds_file.resolve())
        keys = {"backend": "barbican", "cloud": barbican_cloud, "clouds_file": clouds, "key": barbican_key}
    if backup:
        keys["backup"] = [str(place.resolve()) for place in backup]
    passphrase = b""
    if ask_passphrase or passphrase_file:
        passphrase = screen.hidden("Passphrase", passphrase_file, "--passphrase-file", twice=True).encode()
    screen.operator.create_node(
        directory,
        name=name,
        country=country.upper(),
        unit=unit,
        title=title,
        port=port,
        passphrase=passphrase,
        keys=keys,
    )
    if not screen.answer({"directory": str(directory), "name": name}):
        screen.note(f"The node {name} is in {directory}. Start it: valv up {directory}")
