"""The pages of the roles name commands, options and words of the portal that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from valv.assemble import cli_reference

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted((ROOT / "docs" / "pages").glob("*.md"))
ROLES = {"researcher", "custodian", "committee", "checker", "operator", "auditor"}
ALIASES = {"deposits": "deposits show", "runs": "runs show", "restore": "restore node"}
"""Groups that do something without a further word."""


def test_every_role_has_its_page() -> None:
    assert {page.stem for page in PAGES} == ROLES | {"keys"}  # officers have no account


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    known = {
        words: {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        for words, command in cli_reference.commands()
    }
    text = page.read_text("utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    named = [
        line.removeprefix("valv ")
        for line in [*lines, *re.findall(r"`(valv [^`]+)`", text)]
        if line.startswith("valv ")
    ]
    assert named
    for line in named:
        words = next(
            (found for found in sorted(known, key=len, reverse=True) if f"{line} ".startswith(f"{found} ")), None
        )
        words = words or ALIASES.get(line.split()[0])
        if words is None and line.startswith("serve"):
            continue
        assert words, f"{page.name}: valv {line}"
        for option in re.findall(r"(?<= )-{1,2}[a-z][a-z-]*", line.partition(" -- ")[0]):
            assert option in known[words], f"{page.name}: valv {line}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_words_of_the_portal_exist(page: Path) -> None:
    templates = "".join(
        file.read_text("utf-8") for file in (ROOT / "src" / "valv" / "web" / "templates").glob("*.html")
    )
    templates += (ROOT / "src" / "valv" / "web" / "words.py").read_text("utf-8")
    rows = [
        line.split("|")[2]
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("|") and line.count("|") == 4
    ]
    for word in (word for row in rows for word in re.findall(r"\*([^*]+)\*", row)):
        assert word in templates, f"{page.name}: {word}"
