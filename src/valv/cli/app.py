"""The tree of commands. A module is imported when one of its commands is run, so that `valv --help` starts at once."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from valv import __version__
from valv.cli.operator import Operator

SUMMARY = "Valv: secure storage and computation on sensitive bio-medical data."


@dataclass(frozen=True)
class Entry:
    """A word after `valv`: where it is, and what the overview says of it. `group`: the name of the Typer that stands
    behind a noun; '' for a command of the module's `app`."""

    section: str
    module: str
    summary: str
    group: str = ""


TREE: dict[str, Entry] = {
    "login": Entry("Session", "session", "Log in to a node."),
    "logout": Entry("Session", "session", "Log out."),
    "whoami": Entry("Session", "session", "Who is logged in, and where."),
    "second-factor": Entry("Session", "session", "Confirm the second factor in this session."),
    "account": Entry("Session", "account", "Your account and the keys that downloads are sealed to.", "account"),
    "node": Entry("Session", "node", "What node this is, and its public key.", "node"),
    "datasets": Entry("Find and apply", "dataset", "Search the catalogue."),
    "dataset": Entry("Find and apply", "dataset", "A dataset: its page, its history, its assessment.", "dataset"),
    "apply": Entry("Find and apply", "access", "Apply for access to datasets."),
    "applications": Entry("Find and apply", "access", "Applications, yours and those that you decide on."),
    "application": Entry("Find and apply", "access", "Change, decide or withdraw an application.", "application"),
    "permits": Entry("Work", "permit", "Permits: what you may use, and until when."),
    "permit": Entry("Work", "permit", "Revoke a permit, resume it or give it back.", "permit"),
    "run": Entry("Work", "run", "Run a command on the data of a permit."),
    "runs": Entry("Work", "run", "Look at runs, or stop one.", "runs"),
    "releases": Entry("Work", "release", "Outputs and where their check stands."),
    "release": Entry("Work", "release", "Ask for outputs, check them, fetch them.", "release"),
    "download": Entry("Work", "download", "Download files, sealed to your key."),
    "deposit": Entry("Deposit", "deposit", "Send a folder as a new version of a dataset."),
    "deposits": Entry("Deposit", "deposit", "Look at deposits, or cancel one.", "deposits"),
    "withdrawal": Entry("Deposit", "withdrawal", "Take participants out who withdrew.", "withdrawal"),
    "consent": Entry("Deposit", "withdrawal", "Narrow what participants consent to.", "consent"),
    "crypt": Entry("Here, without a node", "crypt", "Crypt4GH keys and files on this computer.", "crypt"),
    "ledger": Entry("Evidence", "ledger", "The ledger: read it, prove it, keep a copy.", "ledger"),
    "up": Entry("Operate a node", "operate", "Start a node and keep it going."),
    "demo": Entry("Operate a node", "operate", "A demonstration node that walks the whole loop."),
    "doctor": Entry("Operate a node", "operate", "Find out what is wrong with a node."),
    "keys": Entry("Operate a node", "operate", "The node's keys and their officers.", "keys"),
    "storage": Entry("Operate a node", "storage", "The stores, and where datasets lie in them.", "storage"),
    "luks": Entry("Operate a node", "luks", "Encrypted disks of a node, under its keys.", "luks"),
    "fixity": Entry("Operate a node", "fixity", "Have copies read again, and damaged ones made anew.", "fixity"),
    "backup": Entry("Operate a node", "backup", "Backups of the node, and the key that opens them.", "backup"),
    "restore": Entry("Operate a node", "restore", "Restore a node, and open it again.", "restore"),
    "drill": Entry("Operate a node", "restore", "Restore a backup for trial.", "drill"),
    "config": Entry("Operate a node", "operate", "Check a configuration.", "config"),
}


def load(name: str) -> TyperCommand | TyperGroup:
    """The command or group behind a word, with its module."""
    entry = TREE[name]
    module = importlib.import_module(f"valv.cli.{entry.module}")
    made: Any = typer.main.get_group(getattr(module, entry.group or "app"))
    if not entry.group:
        made = made.commands[name]
    made.name = name
    return made  # type: ignore[no-any-return]


class Root(TyperGroup):
    """The overview knows every word by its summary; the word itself is loaded when it is used."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=entry.summary) for name, entry in TREE.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in TREE else known, rest

    def format_commands(self, _: Any, formatter: Any) -> None:
        for section in dict.fromkeys(entry.section for entry in TREE.values()):
            with formatter.section(section):
                rows = [(name, entry.summary) for name, entry in TREE.items() if entry.section == section]
                formatter.write_dl(rows, col_max=16)


def build(operator: Operator) -> typer.Typer:
    """The `valv` command. `operator`: what the assembly does for operator commands."""
    app = typer.Typer(cls=Root, no_args_is_help=True, rich_markup_mode=None, add_completion=False)

    @app.callback(help=SUMMARY, epilog="\b\nFirst steps:\n  valv login https://NODE --account NAME\n  valv datasets")
    def valv(
        ctx: typer.Context,
        profile: Annotated[
            Path | None, typer.Option(metavar="FILE", help="The profile with address and token.", show_default=False)
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print answers as JSON.")] = False,
        quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No remarks and no progress.")] = False,
        _: Annotated[
            bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
        ] = False,
    ) -> None:
        from valv.cli.command import Start

        ctx.obj = Start(operator, profile, as_json, quiet)

    return app


def _version(wanted: bool) -> None:
    if wanted:
        print(f"valv {__version__}")
        raise typer.Exit
