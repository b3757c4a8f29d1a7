"""A private store of SoftHSM, a hardware security module in software: Debian's own library, a temporary folder.

Fixture: `softhsm`, one for the whole session, with two initialised tokens. The library reads where its store is when it
is loaded, and sees the tokens that there were then; so both are made first, and tests take keys of their own in them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from valv.config import Keys

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "correct horse battery staple"
OFFICER = "security officer's PIN"


@dataclass(frozen=True)
class SoftHsm:
    """A store with the tokens `one` and `two`, whose users have the PIN `PIN`."""

    folder: Path

    @property
    def settings_file(self) -> Path:
        return self.folder / "softhsm2.conf"

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    def settings(self, token: str = "one", key: str = "") -> Keys:
        """For a key of its own, where none is named."""
        return Keys(backend="pkcs11", module=str(MODULE), token=token, key=key or f"root {secrets.token_hex(8)}")

    def give(self, uid: int) -> None:
        """To the user who is to open it. Root can go on using it."""
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, uid, uid)


@pytest.fixture(scope="session")
def softhsm() -> Iterator[SoftHsm]:
    program = shutil.which("softhsm2-util")
    if program is None or not MODULE.exists():
        pytest.skip("SoftHSM is not installed: apt-get install softhsm2")
    pytest.importorskip("pkcs11", reason="the Python package python-pkcs11 is not installed")
    folder = Path(tempfile.mkdtemp(prefix="softhsm-"))
    folder.chmod(0o755)
    store = SoftHsm(folder)
    before = os.environ.get("SOFTHSM2_CONF")
    try:
        store.tokens.mkdir(mode=0o700)
        store.settings_file.write_text(
            f"directories.tokendir = {store.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.environ["SOFTHSM2_CONF"] = str(store.settings_file)
        for label in ("one", "two"):
            pins = ["--pin", PIN, "--so-pin", OFFICER]
            subprocess.run(
                [program, "--init-token", "--free", "--label", label, *pins], check=True, capture_output=True
            )
        yield store
    finally:
        os.environ.pop("SOFTHSM2_CONF", None)
        if before is not None:
            os.environ["SOFTHSM2_CONF"] = before
        shutil.rmtree(folder)
