"""The two classes of data, and what the difference means."""

from __future__ import annotations

from typing import Literal, TypeAlias

DataClass: TypeAlias = Literal["identifiable", "anonymised"]
Mode: TypeAlias = Literal["compute", "download"]


def strictest(classes: tuple[DataClass, ...]) -> DataClass:
    """What several datasets together are: identifiable as soon as one is."""
    return "identifiable" if not classes or "identifiable" in classes else "anonymised"
