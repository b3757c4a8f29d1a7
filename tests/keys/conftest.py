from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.peers.softhsm import SoftHsm


def _load() -> ModuleType:
    name = "valv_tests_keys_running"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("running.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


running = _load()


@pytest.fixture
def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("processes of several users can only be started by root")


@pytest.fixture
def softhsm_or_file() -> SoftHsm | None:
    """Where the root key is: in a file. `test_contract.py` runs with both."""
    return None


@pytest.fixture
def keyd(needs_root: None, softhsm_or_file: SoftHsm | None) -> Iterator[object]:
    """A running, opened key holder under its own user, so that the roles are told apart."""
    with running.running(running.KEYD, softhsm=softhsm_or_file) as holder:
        yield holder


@pytest.fixture
def shared_keyd() -> Iterator[object]:
    """A running, opened key holder of a node whose processes all have one user."""
    with running.running(running.STRANGER if os.geteuid() == 0 else None) as holder:
        yield holder
