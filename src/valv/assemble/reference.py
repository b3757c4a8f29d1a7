"""The generated pages and golden tables: what the code does, written down so that a change of it is seen in review.

`python -m valv.assemble.reference --write` writes them, `--check` fails with a diff where one is stale.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterator
from inspect import cleandoc
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import msgspec

from valv.assemble.explore import SAMPLES, Sample, explore
from valv.assemble.policies import load_policies
from valv.assemble.rights import ACTOR_TEXTS, ACTORS, answer, classes_of, table
from valv.config import SECTIONS
from valv.core import custody
from valv.core.actions import ACTIONS
from valv.core.authorize import Policies
from valv.core.process import command_name, tag
from valv.errors import CATALOGUE

HEAD = "<!-- Made by `python -m valv.assemble.reference --write`; changes made by hand are lost. -->\n"


def processes() -> str:
    """`docs/generated/processes.md`: a state diagram and the permission table of every process."""
    parts = [
        HEAD,
        "# Processes\n",
        "Who may give which command in which phase. `node` is the node itself. The diagrams are found by walking"
        " through the code with every command by every actor.\n",
    ]
    for sample in SAMPLES:
        parts.append(f"## {sample.title}\n\n{_diagram(sample)}\n\n{_permissions(sample)}\n")
    return "\n".join(parts)


def _diagram(sample: Sample) -> str:
    lines = ["```mermaid", "stateDiagram-v2"]
    steps = sorted(explore(sample)[1], key=lambda step: (step.before, step.after, step.command, step.role))
    for (before, after), found in groupby(steps, key=lambda step: (step.before, step.after)):
        commands = dict.fromkeys(step.command for step in found)
        lines.append(f"    {'[*]' if before == 'new' else before} --> {after}: {' / '.join(commands)}")
    lines.extend(f"    {phase} --> [*]" for phase, roles in sample.process.TABLE.items() if not roles)
    return "\n".join((*lines, "```"))


def _permissions(sample: Sample) -> str:
    rows = sample.process.TABLE
    roles = sorted({role for commands in rows.values() for role in commands})
    lines = [f"| phase | {' | '.join(roles)} |", f"|---|{'---|' * len(roles)}"]
    for phase, commands in rows.items():
        cells = (", ".join(sorted(map(command_name, commands.get(role, ())))) or "–" for role in roles)
        lines.append(f"| {phase} | {' | '.join(cells)} |")
    return "\n".join(lines)


def actions() -> str:
    """`docs/generated/actions.md`: every action and who may do it at home, by the base policies."""
    lines = [
        HEAD,
        "# Actions\n",
        "Who may do what, by the base policies; a country's overlay can only forbid more. Everything else is refused."
        " *Identifiable*, *anonymised*: the class of the data behind it. The whole table, with the refusals, is"
        " `tests/golden/authorize.tsv`.\n",
        "| action | what it does | who may |",
        "|---|---|---|",
    ]
    policies = load_policies("")
    for name, action in ACTIONS.items():
        texts = {}
        for data_class in classes_of(name):
            cells = {actor: _yes(policies, actor, name, data_class) for actor in ACTORS}
            texts[data_class] = _who(cells)
        if len(set(texts.values())) == 1:
            who = next(iter(texts.values()))
        else:
            who = "; ".join(f"*{data_class}*: {text}" for data_class, text in texts.items())
        lines.append(f"| `{name}` | {action.summary} | {who} |")
    return "\n".join(lines) + "\n"


def _yes(policies: Policies, actor: str, action: str, data_class: str) -> tuple[bool, bool]:
    """Whether the actor may, with a second factor and without."""
    cells = (answer(policies, actor, action, data_class, "home", factor=factor) for factor in (True, False))
    with_factor, without = (cell == "yes" for cell in cells)
    return with_factor, without


def _who(cells: dict[str, tuple[bool, bool]]) -> str:
    """The plain words; an actor whom a wider one includes is not named again."""
    may = [actor for actor, (with_factor, _) in cells.items() if with_factor]
    if "anonymous" in may:
        return ACTOR_TEXTS["anonymous"]
    if "no_role" in may:
        return ACTOR_TEXTS["no_role"]
    wider = {"custodian": "other_custodian", "committee": "other_committee", "on_permit": "researcher"}
    wider["owner"] = "on_permit" if "on_permit" in may else "researcher"
    named = [actor for actor in ACTOR_TEXTS if actor in may and wider.get(actor) not in may]
    text = ", ".join(ACTOR_TEXTS[actor] for actor in named) or "nobody"
    if "checker" in may and "checker_on_permit" not in may:
        text += ", none of whom is on the permit"
    if "committee" in may and "committee_on_permit" not in may:
        text += ", none of whom is part of it"
    if "custodian_checker" not in may and "checker" in may and "custodian" not in may and "other_committee" in may:
        text += ", but not its custodian"
    return f"{text}; with a second factor" if may and not any(without for _, without in cells.values()) else text


def errors() -> str:
    """`docs/generated/errors.md`: every code with what it means."""
    lines = [
        HEAD,
        "# Errors\n",
        "Every refusal and fault, the same in the API (problem `type`), in the terminal and on a page.\n",
        "| code | HTTP | exit | what happened | what to do |",
        "|---|---|---|---|---|",
    ]
    lines.extend(
        f"| `{code}` | {row.status} | {row.exit} | {_cell(row.title)} | {_cell(row.hint)} |"
        for code, row in CATALOGUE.items()
    )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def events() -> str:
    """`tests/golden/events.tsv`: the wire format, one line per field. A field may be added only with a default."""
    lines = ["tag\tfield\tdefault"]
    for process in (*(sample.process for sample in SAMPLES), custody):
        for kind in get_args(process.Events):
            fields = msgspec.structs.fields(kind)
            lines.extend(f"{tag(kind)}\t{field.encode_name}\t{'no' if field.required else 'yes'}" for field in fields)
            if not fields:
                lines.append(f"{tag(kind)}\t-\t-")
    return "\n".join((*lines, ""))


def rights() -> str:
    """`tests/golden/authorize.tsv`."""
    return "".join("\t".join(row) + "\n" for row in table())


def configuration() -> str:
    """`docs/generated/configuration.md`: every setting with its type and default."""
    lines = [
        HEAD,
        "# Configuration\n",
        "One TOML file, `valv.toml` in the node's folder. `valv config check FILE` names every fault in it. Relative"
        " paths start at the node's folder; secrets are named by file, never by value.",
    ]
    for section, kind in SECTIONS.items():
        lines += [f"\n## [{section}]\n", cleandoc(kind.__doc__ or ""), "\n| key | type | default |", "|---|---|---|"]
        for field in msgspec.structs.fields(kind):
            default = "required" if field.required else f"`{msgspec.json.encode(_default(field)).decode()}`"
            lines.append(f"| `{field.name}` | {getattr(field.type, '__name__', field.type)} | {default} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


PAGES = {
    "docs/generated/processes.md": processes,
    "docs/generated/actions.md": actions,
    "docs/generated/errors.md": errors,
    "docs/generated/configuration.md": configuration,
    "tests/golden/authorize.tsv": rights,
    "tests/golden/events.tsv": events,
}


def stale(root: Path) -> Iterator[str]:
    """A unified diff for each page of the project folder `root` that is not what the code says."""
    for name, make in PAGES.items():
        path = root / name
        found = path.read_text("utf-8") if path.is_file() else ""
        wanted = make()
        if found != wanted:
            lines = difflib.unified_diff(found.splitlines(), wanted.splitlines(), name, f"{name} (new)", lineterm="")
            yield "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m valv.assemble.reference", description="generated pages and tables")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="write them")
    mode.add_argument("--check", action="store_true", help="fail with a diff where one is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's folder")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        for name, make in PAGES.items():
            path = chosen.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make(), "utf-8")
        return 0
    diffs = list(stale(chosen.root))
    if diffs:
        sys.stdout.write("\n".join((*diffs, "", "stale: run 'python -m valv.assemble.reference --write' and review\n")))
    return 1 if diffs else 0


if __name__ == "__main__":
    sys.exit(main())
