"""Forms that only our own pages can send: a token bound to the browser's cookie, and the browser's own word."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from valv.app.node import refuse


def make(key: bytes, mark: str) -> str:
    """The token of forms for the browser that holds the cookie `mark`."""
    return hmac.new(key, mark.encode(), hashlib.sha256).hexdigest()


def check(key: bytes, mark: str, sent: str) -> None:
    """Raises the refusal `token_foreign` unless the form came from a page of this browser."""
    if not hmac.compare_digest(make(key, mark).encode(), sent.encode("utf-8", "replace")):
        raise refuse("token_foreign")


def check_origin(headers: Headers, public_url: str) -> None:
    """Raises `token_foreign` where the browser says that another site sent the form."""
    site = headers.get("sec-fetch-site", "same-origin")
    origin = headers.get("origin", "")
    if site not in ("same-origin", "none"):
        raise refuse("token_foreign", "another site sent it")
    if origin and urlsplit(origin).netloc not in (urlsplit(public_url).netloc, headers.get("host", "")):
        raise refuse("token_foreign", "another site sent it")
