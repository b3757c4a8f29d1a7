"""Accounts of the node's own with a password and TOTP, for a node on loopback made by `valv demo`."""

from __future__ import annotations

import hmac
import secrets
from base64 import b64decode, b64encode
from datetime import datetime

import pyotp
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

_MEMORY = 19 * 1024  # KiB: OWASP's first choice for Argon2id, with two passes
_PASSES = 2


class DemoLogin:
    """Argon2id passwords, kept as `argon2id$<salt>$<hash>`; TOTP with 30-second steps, one step of clock error."""

    def hash_password(self, password: str) -> str:
        salt = secrets.token_bytes(16)
        return f"argon2id${b64encode(salt).decode()}${b64encode(_derive(password, salt)).decode()}"

    def check_password(self, password: str, kept: str) -> bool:
        _, _, rest = kept.partition("$")
        salt, _, digest = rest.partition("$")
        # Without an account the same work is done, so that the time does not tell whether a name exists.
        found = _derive(password, b64decode(salt) if salt else secrets.token_bytes(16))
        return bool(digest) and hmac.compare_digest(found, b64decode(digest))

    def new_secret(self) -> str:
        return pyotp.random_base32()

    def check_code(self, secret: str, code: str, last: int | None, at: datetime) -> int | None:
        totp = pyotp.TOTP(secret)
        shown = code.strip().replace(" ", "").encode()
        now = int(at.timestamp()) // 30
        for step in (now, now - 1, now + 1):
            fresh = last is None or step > last
            if fresh and hmac.compare_digest(totp.at(step * 30).encode(), shown):
                return step
        return None


def _derive(password: str, salt: bytes) -> bytes:
    return Argon2id(salt=salt, length=32, iterations=_PASSES, lanes=1, memory_cost=_MEMORY).derive(password.encode())
