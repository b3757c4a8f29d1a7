"""Every operation of every door names the action that it performs, in one place: on the operation itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from valv.core.actions import ACTIONS

Operation = TypeVar("Operation", bound=Callable[..., Any])
_MARK = "__valv_action__"


def performs(action: str) -> Callable[[Operation], Operation]:
    """Mark a route, page or command with its action (a key of `ACTIONS`). A test lists them all and fails on one that
    has none."""
    if action not in ACTIONS:
        raise ValueError(f"unknown action {action!r}")

    def mark(operation: Operation) -> Operation:
        setattr(operation, _MARK, action)
        return operation

    return mark


def action_of(operation: Callable[..., Any]) -> str | None:
    return getattr(operation, _MARK, None)
