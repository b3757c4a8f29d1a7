"""Free text that people wrote. It can be erased, so the journal holds only its id: a salted digest of it."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b32encode
from datetime import datetime
from typing import Any

from valv.errors import InputFault
from valv.ports.records import Unit

LONGEST = 20_000


def put(unit: Unit, stream: str, kind: str, body: str, at: datetime, *, longest: int = LONGEST) -> str:
    """Keep a text; returns its id, or '' for an empty text. `longest`: in letters."""
    body = body.strip()
    if not body:
        return ""
    if len(body) > longest:
        raise InputFault(f"{kind}: {len(body)} characters", f"at most {longest}")
    salt = secrets.token_bytes(16)
    digest = hashlib.sha256(salt + body.encode()).digest()
    ident = b32encode(digest[:20]).decode().lower()
    unit.insert(
        "text",
        [
            {
                "id": ident,
                "owner_stream": stream,
                "kind": kind,
                "body": body,
                "salt": salt,
                "digest": digest,
                "created": at,
                "erased": None,
            }
        ],
    )
    return ident


def get(unit: Unit, ident: str) -> str:
    """The text, or '' where there is none or it was erased."""
    rows = unit.rows("text", {"id": ident}) if ident else []
    return str(rows[0]["body"] or "") if rows else ""


def holds(row: dict[str, Any]) -> bool:
    """Whether a row of `text` is the one that its id, which stands in the ledger, was made from."""
    digest = hashlib.sha256(row["salt"] + (row["body"] or "").encode()).digest()
    return bool(digest == row["digest"] and b32encode(digest[:20]).decode().lower() == row["id"])
