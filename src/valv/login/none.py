"""No log-in at all: what a new node has until its operator configures an identity provider."""

from __future__ import annotations

from datetime import datetime

from valv.errors import ConfigFault


class NoLogin:
    """Nobody gets in. Accounts can be made, so that the node is ready when a log-in is configured."""

    def hash_password(self, password: str) -> str:
        del password
        raise ConfigFault("this node has no log-in with passwords", "make the account without a password")

    def check_password(self, password: str, kept: str) -> bool:
        del password, kept
        return False

    def new_secret(self) -> str:
        raise ConfigFault("this node has no second factor of its own", "make the account without one")

    def check_code(self, secret: str, code: str, last: int | None, at: datetime) -> int | None:
        del secret, code, last, at
        return None
