"""What the tests of the processes share."""

import ast
from pathlib import Path

import pytest

from valv.errors import Refusal


@pytest.fixture
def codes_of():
    """The refusal codes that a core module can give by itself (those of the phase × role table excepted)."""

    def codes(module):
        tree = ast.parse(Path(module.__file__).read_text("utf-8"))
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        return {
            call.args[0].value
            for call in calls
            if isinstance(call.func, ast.Name) and call.func.id == "Refusal" and isinstance(call.args[0], ast.Constant)
        }

    return codes


@pytest.fixture
def refused():
    """`refused(process, state, command, facts)` → the code of the refusal; fails where events come instead."""

    def code(process, state, command, facts):
        decided = process.decide(state, command, facts)
        assert isinstance(decided, Refusal), f"not refused: {decided}"
        return decided.code

    return code


@pytest.fixture
def follow():
    """`follow(process, state, command, facts)` → the state after the command; fails where it is refused."""

    def after(process, state, command, facts):
        decided = process.decide(state, command, facts)
        assert not isinstance(decided, Refusal), decided
        for event in decided:
            state = process.evolve(state, event)
        return state

    return after
