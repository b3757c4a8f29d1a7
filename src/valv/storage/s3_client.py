"""Signed requests to an S3 server: AWS Signature Version 4, retries with back-off, and what its answers mean as faults.

Written for what `obstore` does not offer: multipart uploads that are completed only where the name is free, the list
of those that nobody completed, and a digest of each part. Only keys made of letters, digits and `._-/` are asked for.
"""

from __future__ import annotations

import base64
import configparser
import hashlib
import hmac
import re
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import httpx

from valv.errors import ConfigFault, Fault, FullFault, MissingFault, StorageFault, UnreachableFault

BLOCK: Final = 256 << 10
"""Bytes that are handed to the socket at once."""
_FULL: Final = {
    "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
    "InsufficientCapacity",
    "InsufficientStorage",
}
_AGAIN: Final = {"SlowDown", "RequestTimeout", "OperationAborted", "BadDigest", "XAmzContentSHA256Mismatch"}
"""What may go well the next time, though it is no 5xx: among it, bytes that were changed on the way."""
_HINTS: Final = {
    "InvalidAccessKeyId": "the server does not know this access key: put the right one into the credentials file",
    "SignatureDoesNotMatch": "the secret key is wrong: put the right one into the credentials file",
    "RequestTimeTooSkewed": "the clocks differ too much: set this machine's clock",
    "ExpiredToken": "the session token has expired: put new credentials into the credentials file",
    "NoSuchBucket": "make the bucket, or correct the setting 'bucket'",
    "AccessDenied": "give the account the rights on the bucket that the manual lists",
    "AuthorizationHeaderMalformed": "correct the setting 'region'",
    "PermanentRedirect": "correct the settings 'url' and 'region': the bucket lies elsewhere",
}
_RANDOM: Final = secrets.SystemRandom()


@dataclass(frozen=True, slots=True)
class Credentials:
    key: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)

    @classmethod
    def read(cls, path: Path) -> Credentials:
        """The section `default` of a file of AWS' shared credentials. Raises `ConfigFault`, never with its content."""
        hint = "name a credentials file with [default], aws_access_key_id and aws_secret_access_key"
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(path.read_text("utf-8"))
            section = parser["default"]
            found = cls(
                section["aws_access_key_id"].strip(),
                section["aws_secret_access_key"].strip(),
                section.get("aws_session_token", "").strip(),
            )
        except OSError as error:
            raise ConfigFault(f"{path} cannot be read: {error.strerror}", hint) from None
        except (configparser.Error, KeyError, UnicodeDecodeError):
            raise ConfigFault(f"{path} holds no S3 credentials", hint) from None
        if not found.key or not found.secret:
            raise ConfigFault(f"{path} holds no S3 credentials", hint)
        return found


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "").strip('"').lower()

    def xml(self) -> ElementTree.Element:
        """The document, its tags without a namespace. Raises `StorageFault` where there is none."""
        try:
            if b"<!" in self.content:  # no document type, and so no entities
                raise ElementTree.ParseError
            root = ElementTree.fromstring(self.content)  # noqa: S314
        except ElementTree.ParseError:
            raise StorageFault(
                "the S3 server answers with what is no XML", "look whether 'url' is its S3 API"
            ) from None
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        return root


class S3Client:
    """Requests for the keys of one bucket. `timeout`: seconds that the server may be silent; `attempts`: how often a
    request is sent, with pauses that double from `pause` seconds. Safe for many threads."""

    def __init__(
        self,
        url: str,
        bucket: str,
        region: str,
        credentials: Credentials,
        tls: ssl.SSLContext,
        *,
        timeout: float = 60.0,
        attempts: int = 6,
        pause: float = 0.2,
    ) -> None:
        parts = urlsplit(url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.netloc
        self._base = f"{parts.path.rstrip('/')}/{bucket}"
        self._secure = parts.scheme == "https"
        self._region = region
        self._credentials = credentials
        self._attempts = attempts
        self._pause = pause
        self._http = httpx.Client(
            verify=tls,
            trust_env=False,
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=32),
        )

    def __repr__(self) -> str:
        return f"S3Client({self._origin}{self._base})"

    def ask(
        self,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        md5: bytes = b"",
        allowed: tuple[int, ...] = (),
    ) -> Answer:
        """The answer, once it is a 2xx or `allowed`. `md5` of the body, which the server compares.

        Raises `MissingFault` (404), `FullFault`, `StorageFault` (refused), `UnreachableFault` (after all attempts).
        """
        fault: Fault = UnreachableFault("the S3 server does not answer")
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(min(5.0, self._pause * 2 ** (attempt - 1)) * _RANDOM.uniform(0.5, 1.0))
            try:
                answer = self._send(method, key, query or {}, dict(headers or {}), body, md5)
            except httpx.HTTPError as error:
                hint = "name its authority in the setting 'ca'" if "CERTIFICATE_VERIFY" in str(error) else ""
                fault = UnreachableFault(f"the S3 server {self._host} does not answer ({type(error).__name__})", hint)
                continue
            if answer.status // 100 == 2 or answer.status in allowed:
                return answer
            code = _code(answer)
            if answer.status == 507 or code in _FULL:
                raise FullFault("the S3 server has no room left", "raise the quota, or free room")
            if answer.status < 500 and answer.status != 429 and code not in _AGAIN:
                raise self._refusal(answer.status, code)
            fault = UnreachableFault(f"the S3 server {self._host} fails ({answer.status} {code})".replace(" )", ")"))
        raise fault

    def _refusal(self, status: int, code: str) -> Fault:
        if status == 404 and code in ("", "NoSuchKey", "NoSuchUpload", "NotFound"):
            return MissingFault("not in the S3 store")
        hint = _HINTS.get(code, "")
        if not hint and status in (401, 403):
            hint = "look at the keys in the credentials file, and at the account's rights on the bucket"
        return StorageFault(f"the S3 server {self._host} refuses ({f'{status} {code}'.strip()})", hint)

    def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: dict[str, str],
        body: bytes | memoryview,
        md5: bytes,
    ) -> Answer:
        path = f"{self._base}/{key}" if key else self._base
        given = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in sorted(query.items()))
        if md5:
            headers["content-md5"] = base64.b64encode(md5).decode()
        # Over TLS the digest in Content-MD5 is enough; without it, the signature covers the bytes themselves.
        unsigned = self._secure and md5
        headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD" if unsigned else hashlib.sha256(body).hexdigest()
        self._sign(method, quote(path, safe="/-_.~"), given, headers)
        if method in ("PUT", "POST"):
            headers["content-length"] = str(len(body))
        found = self._http.request(
            method,
            f"{self._origin}{quote(path, safe='/-_.~')}{'?' if given else ''}{given}",
            headers=headers,
            content=_blocks(body) if len(body) else None,
        )
        return Answer(found.status_code, found.headers, found.content)

    def _sign(self, method: str, path: str, query: str, headers: dict[str, str]) -> None:
        """AWS Signature Version 4, over every header given."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers |= {"host": self._host, "x-amz-date": moment}
        if self._credentials.token:
            headers["x-amz-security-token"] = self._credentials.token
        names = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        asked = "\n".join([method, path, query, lines, names, headers["x-amz-content-sha256"]])
        scope = [moment[:8], self._region, "s3", "aws4_request"]
        text = "\n".join(["AWS4-HMAC-SHA256", moment, "/".join(scope), hashlib.sha256(asked.encode()).hexdigest()])
        key = f"AWS4{self._credentials.secret}".encode()
        for part in scope:
            key = hmac.digest(key, part.encode(), "sha256")
        headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._credentials.key}/{'/'.join(scope)}, SignedHeaders={names}, "
            f"Signature={hmac.new(key, text.encode(), 'sha256').hexdigest()}"
        )


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")


def _blocks(body: bytes | memoryview) -> Iterator[bytes]:
    """Piece by piece: the socket layer copies what is left of a piece whenever a part of it was sent."""
    view = memoryview(body)
    for at in range(0, len(view), BLOCK):
        yield bytes(view[at : at + BLOCK])


def _code(answer: Answer) -> str:
    """The error code in an answer, '' where it has none."""
    found = re.search(rb"<Code>([A-Za-z0-9]{1,64})</Code>", answer.content)
    return found[1].decode() if found else ""
