"""Third-party copy: one server fetches a body from another, shown a macaroon that opens just this body.

The answer of a server says nothing: XRootD gives 201 to a copy that fails. The copy is told in performance markers,
and only their last line, `success:` or `failure:`, is the result.
"""

from __future__ import annotations

import json
from typing import Final

import httpx

from valv.errors import Fault, FullFault, StorageFault, UnreachableFault
from valv.storage.dcache_door import Door, fault
from valv.storage.dcache_line import secure

_SLOWEST: Final = 5_000_000  # bytes a second, for how long the macaroon holds
_LEAST_SECONDS: Final = 600
_MARKER_SECONDS: Final = 180.0  # without any sign of life of the copy; servers send one every few seconds
_FULL_WORDS: Final = ("no space", "space left", "quota", "insufficient storage")
_REFUSES: Final = frozenset({400, 401, 403, 404, 405, 411, 415, 500, 501})


def lend(door: Door, folder: str, size: int) -> str | None:
    """A macaroon that may only read what is in `folder`, for as long as a copy of `size` bytes can take. None where the
    server makes none. The path ends with '/': without, it would open every path that begins the same."""
    seconds = _LEAST_SECONDS + size // _SLOWEST
    wanted = json.dumps({"caveats": ["activity:DOWNLOAD"], "validity": f"PT{seconds}S"})
    answer = door.ask("POST", folder, {"Content-Type": "application/macaroon-request"}, wanted, allow=_REFUSES)
    if answer.status_code >= 300:
        return None
    try:
        found = answer.json()["macaroon"]
    except (ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found.isascii() and found.isprintable() else None


def copy(door: Door, path: str, name: str, source: str, ticket: str) -> bool:
    """Let the server of `door` fetch `source` to `path`. False where it cannot do that at all. Raises `StorageFault`
    where the copy failed. What has come is not looked at here."""
    if not secure(source):
        return False
    headers = door.headers(
        Source=source,
        TransferHeaderAuthorization=f"Bearer {ticket}",
        Credential="none",
        Overwrite="F",
        RequireChecksumVerification="false",  # compared afterwards, whatever the server does
    )
    try:
        with door.client.stream("COPY", door.url(path), headers=headers, timeout=_MARKER_SECONDS) as answer:
            if answer.status_code in (405, 501):
                return False
            if answer.status_code >= 300:
                answer.read()
                raise fault(answer.status_code, name, answer.text)
            last = ""
            for line in answer.iter_lines():
                last = line.strip() or last
    except httpx.HTTPError as error:
        detail = str(error) or type(error).__name__
        raise UnreachableFault(f"{name}: the store broke off while it copied: {detail}") from None
    verdict = _verdict(last, name)
    if verdict is not None:
        raise verdict
    return True


def _verdict(last: str, name: str) -> Fault | None:
    """What the last line says; None for success. Its words may repeat what was sent, and are not shown."""
    said = last.lower()
    if said.startswith("success"):
        return None
    if any(word in said for word in _FULL_WORDS):
        return FullFault(f"{name}: the store is full")
    if not said.startswith("failure"):
        return StorageFault(f"{name}: the copy between the stores ended without a result")
    why = next((f" (status {code})" for code in ("401", "403", "404", "500", "503") if f"code {code}" in said), "")
    return StorageFault(
        f"{name}: the copy between the stores failed{why}",
        "see that the servers reach each other and trust each other's certificates",
    )
