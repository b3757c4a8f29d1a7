"""Every command names its action, shows an example, and takes --json; help needs nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.cli.conftest import Valv
from valv.app.operation import action_of
from valv.assemble.cli_reference import commands
from valv.cli.app import TREE, load
from valv.core.actions import ACTIONS

LOCAL = {f"crypt {word}" for word in ("keygen", "encrypt", "decrypt", "reencrypt", "rearrange", "info")}
LOCAL |= {"keys officer", "keys sign", "luks status", "dataset certificate verify", "backup key"}
"""What touches nothing of a node, and so performs no action."""
UNNAMED = {"runs show": "runs", "deposits show": "deposits", "restore node": "restore"}
"""Commands that a group is without a further word."""
COMMANDS = dict(commands())


def test_every_command_names_its_action() -> None:
    without = {words for words, command in COMMANDS.items() if action_of(command.callback) not in ACTIONS}
    assert without == LOCAL


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_explains_itself(words: str, valv: Valv) -> None:
    shown = valv.good(*words.split(), "--help").out
    assert f"Usage: valv {words}" in shown
    _, _, example = shown.partition("Example:")
    assert f"valv {UNNAMED.get(words, words)}" in example
    assert "--json" in shown and "--quiet" in shown


def test_the_overview_says_what_the_words_say(valv: Valv) -> None:
    shown = valv.good("--help").out
    for name, entry in TREE.items():
        assert f"  {name}" in shown and entry.summary in shown
        assert load(name).name == name


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        ((), ("sqlalchemy", "fastapi", "cedarpy", "httpx", "rich", "cryptography", "msgspec._core")),
        (("crypt",), ("sqlalchemy", "fastapi", "cedarpy", "httpx", "rich", "cryptography")),
        (("ledger", "verify"), ("sqlalchemy", "fastapi", "httpx", "rich")),
    ],
)
def test_help_loads_little(words: tuple[str, ...], heavy: tuple[str, ...]) -> None:
    program = (
        "import sys, valv.assemble\n"
        f"sys.argv = ['valv', *{words!r}, '--help']\n"
        "try:\n    valv.assemble.main()\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("[]\n"), done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("arguments", [("nonsense",), ("runs", "stop"), ("login", "--password", "x"), ("ledger",)])
def test_a_wrong_command_line_is_exit_code_2(arguments: tuple[Any, ...], valv: Valv) -> None:
    assert valv.run(*arguments).code == 2


def test_the_version(valv: Valv) -> None:
    from valv import __version__

    assert valv.good("--version").out == f"valv {__version__}\n"
