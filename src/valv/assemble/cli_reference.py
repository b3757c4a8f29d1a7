"""`docs/cli.md`: every command with its options, from the commands themselves.

`python -m valv.assemble.cli_reference --write` writes it, `--check` fails with a diff where it is stale.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from valv.app.operation import action_of
from valv.cli import app as tree
from valv.cli.app import TREE, load
from valv.errors import CATALOGUE

FILE = Path("docs/cli.md")
SHARED = ("as_json", "quiet", "profile")
HEAD = """<!-- Made by `python -m valv.assemble.cli_reference --write`; changes made by hand are lost. -->
# The `valv` command

User commands talk to a node over HTTPS with the token of a session (`valv login`). It lies in a *profile*,
`~/.config/valv/profile.json` unless `--profile FILE` names another, readable by its owner alone. Operator commands work
on the node's own machine and use no HTTP.

Every command takes these, before or after its name:

| option | what it does |
|---|---|
| `--json` | print the answer as JSON, and nothing else on standard output |
| `--quiet`, `-q` | no remarks and no progress |
| `--profile FILE` | the profile with address and token (commands that talk to a node) |
| `--help` | the command's own page |

Results go to standard output; remarks, progress and errors to standard error. Where standard output is no terminal,
tables are tab-separated lines. Passwords, codes and passphrases are asked for without echo, or read from a file; they
are never options. Times are shown in this computer's zone, sizes in powers of 1024.

A request whose answer was lost is sent again under the same key, so that the node carries it out once. A download that
broke off goes on where it stopped; so does a deposit with `--continue`.

"""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, its words joined by blanks, in the order of the overview."""
    for name in TREE:
        yield from _below(name, load(name))


def _below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield words, command
        return
    for name, below in inner.items():
        yield from _below(f"{words} {name}", below)


def page() -> str:
    """The whole page."""
    parts = [HEAD, _exit_codes()]
    section = ""
    for words, command in commands():
        now = tree.TREE[words.split()[0]].section
        if now != section:
            parts.append(f"\n## {now}\n")
            section = now
        parts.append(_entry(words, command))
    return "\n".join(parts).rstrip() + "\n"


def _exit_codes() -> str:
    meanings = {
        0: "it worked",
        1: "`valv run --wait`: the command itself failed",
        2: "the command line is wrong",
        64: "the request has a wrong form",
        65: "the data or the state of things do not allow it",
        66: "not found",
        69: "a part of the node does not answer, or its keys are locked",
        70: "a fault of the program",
        71: "a run could not be handled",
        74: "storage failed or is full",
        75: "not now; try again",
        77: "you may not",
        78: "the configuration is wrong",
        130: "stopped by Ctrl-C",
    }
    used = {row.exit for row in CATALOGUE.values()}
    missing = used - set(meanings)
    if missing:
        raise AssertionError(f"exit codes without a meaning: {sorted(missing)}")
    lines = ["## Exit codes\n", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {text} |" for code, text in meanings.items()]
    return "\n".join((*lines, "", "`docs/generated/errors.md` lists the exit code of every error."))


def _entry(words: str, command: Any) -> str:
    own = [parameter for parameter in command.params if parameter.name not in SHARED]
    arguments = [parameter for parameter in own if parameter.param_type_name == "argument"]
    options = [parameter for parameter in own if parameter.param_type_name == "option"]
    usage = " ".join((f"valv {words}", *(_placeholder(one) for one in arguments), *(("[OPTIONS]",) if options else ())))
    lines = [f"### valv {words}\n", f"    {usage}\n", _joined(command.help or "")]
    if own:
        lines += ["\n| | |", "|---|---|"]
        lines += [f"| `{_placeholder(one)}` | {_cell(one)} |" for one in arguments]
        lines += [f"| {_names(one)} | {_cell(one)} |" for one in options]
    example = (command.epilog or "").removeprefix("\b\nExample:\n")
    lines += ["", "```sh", *(line.removeprefix("  ") for line in example.splitlines()), "```"]
    action = action_of(command.callback)
    lines.append(f"\nAction: `{action}`.\n" if action else "\nTouches nothing of a node.\n")
    return "\n".join(lines)


def _placeholder(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"{name} …" if parameter.nargs == -1 and "…" not in name else str(name)


def _names(parameter: Any) -> str:
    """The option's spellings, with the placeholder of its value."""
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.name.upper()}"
    spellings = [f"`{name}{value}`" for name in sorted(parameter.opts, key=len, reverse=True)]
    return ", ".join((*spellings, *(f"`{name}`" for name in parameter.secondary_opts)))


def _cell(parameter: Any) -> str:
    text = (parameter.help or "").replace("|", "\\|")
    if parameter.required and parameter.param_type_name == "option":
        text += " Needed."
    elif parameter.default not in (None, "", False, 0, ()) and parameter.show_default:
        text += f" Default: `{parameter.default}`."
    return text


def _joined(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m valv.assemble.cli_reference", description=__doc__)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--write", action="store_true", help="write docs/cli.md")
    choice.add_argument("--check", action="store_true", help="fail where docs/cli.md is stale")
    wanted = page()
    if parser.parse_args().write:
        FILE.write_text(wanted, "utf-8")
        return 0
    found = FILE.read_text("utf-8") if FILE.exists() else ""
    names = (str(FILE), f"{FILE}, as it should be")
    sys.stdout.writelines(difflib.unified_diff(found.splitlines(True), wanted.splitlines(True), *names))
    return int(found != wanted)


if __name__ == "__main__":
    sys.exit(main())
