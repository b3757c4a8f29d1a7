from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.world import World, world


@pytest.fixture(scope="session")
def node_world() -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture
def w(node_world: World) -> World:
    return node_world
