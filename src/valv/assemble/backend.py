"""Finds the backend of a port that the configuration names."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from valv.errors import ConfigFault


def backend(port: str, name: str) -> Any:
    """The backend of this name for a port, found through the entry points `valv.<port>`: Valv's own register there as
    strangers' do. Raises `ConfigFault` naming those that there are."""
    found = {point.name: point for point in metadata.entry_points(group=f"valv.{port}")}
    if name not in found:
        raise ConfigFault(f"{port}.backend: there is no {name!r}", f"choose one of {', '.join(sorted(found))}")
    return found[name].load()
