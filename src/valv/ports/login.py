"""Who somebody is: checks a name's password and second factor. Later backends redirect to an identity provider."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Login(Protocol):
    def hash_password(self, password: str) -> str: ...

    def check_password(self, password: str, kept: str) -> bool:
        """Takes as long for a wrong password as for a right one; `kept` may be empty (no such account)."""
        ...

    def new_secret(self) -> str:
        """A fresh TOTP secret, base32."""
        ...

    def check_code(self, secret: str, code: str, last: int | None, at: datetime) -> int | None:
        """The time step of the code, or None where it is wrong or not newer than `last` (RFC 6238 §5.2)."""
        ...
