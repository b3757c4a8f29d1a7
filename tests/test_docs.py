"""The pages about commands say what the commands are."""

from __future__ import annotations

from pathlib import Path

from valv.assemble import cli_reference

ROOT = Path(__file__).parent.parent


def test_the_page_of_the_command_line_is_fresh() -> None:
    stored = (ROOT / cli_reference.FILE).read_text("utf-8")
    assert stored == cli_reference.page(), "python -m valv.assemble.cli_reference --write"


def test_every_command_and_option_is_on_the_page() -> None:
    stored = (ROOT / cli_reference.FILE).read_text("utf-8")
    for words, command in cli_reference.commands():
        _, _, entry = stored.partition(f"### valv {words}\n")
        entry = entry.partition("\n### ")[0]
        assert entry, f"valv {words} is not in docs/cli.md"
        for parameter in command.params:
            if parameter.param_type_name == "option" and parameter.name not in cli_reference.SHARED:
                for name in (*parameter.opts, *parameter.secondary_opts):
                    assert f"`{name}" in entry, f"valv {words} {name} is not in docs/cli.md"
