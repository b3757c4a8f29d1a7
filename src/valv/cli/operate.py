"""Operator commands, given on the node's own machine: `valv up`, `demo`, `doctor`, `keys unseal`, `config check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from valv.cli import rotation
from valv.cli.command import Local, command, group
from valv.cli.unsealing import keys as keys

app = group("Operate a node.")
config = group("Check a configuration.")
keys.add_typer(rotation.app)
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.", show_default=False)]


@command(app, "up", action="node.operate", example="valv up /srv/valv")
def up(screen: Local, directory: Directory) -> None:
    """Start all processes of a node and keep them going until Ctrl-C or SIGTERM."""
    raise typer.Exit(screen.operator.up(directory))


@command(app, "demo", action="node.operate", example="valv demo ./demo-node\nvalv demo ./demo-node --once")
def demo(
    screen: Local,
    directory: Directory,
    once: Annotated[bool, typer.Option("--once", help="End after the loop: 0 where every step worked.")] = False,
    port: Annotated[int, typer.Option(help="Where the portal listens on this machine.")] = 8600,
) -> None:
    """Make a demonstration node, walk the whole loop once, then serve the portal until Ctrl-C."""
    raise typer.Exit(screen.operator.demo(directory, once=once, port=port))


@command(app, "doctor", action="node.operate", example="valv doctor /srv/valv")
def doctor(screen: Local, directory: Directory) -> None:
    """Look at a node, its machine and its processes; each fault with what to do about it."""
    raise typer.Exit(screen.operator.doctor(directory))


@command(config, "check", action="node.operate", example="valv config check /srv/valv/valv.toml")
def check(
    screen: Local,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The configuration or the node's folder.", show_default=False)
    ],
) -> None:
    """Check a configuration and explain every fault in it."""
    from valv.config import load

    found = load(file, secrets=True)
    node = found.node
    if not screen.answer({"name": node.name, "country": node.country, "unit": node.unit, "address": found.public_url}):
        screen.facts(
            [("node", node.name), ("country", node.country), ("unit", node.unit), ("address", found.public_url)]
        )
        screen.note("The configuration has no fault.")
