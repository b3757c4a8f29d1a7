"""Who the node is in an iRODS zone: the environment file and the password file of the iRODS client, and TLS."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any, Final

from irods.password_obfuscation import decode

from valv.errors import ConfigFault

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_SECONDS: Final = 120  # for one step of a connection


def read_environment(file: Path, ca: Path | None) -> dict[str, Any]:
    """What the client needs, from an iRODS environment file and the password file beside it (`.irodsA`, or what
    `irods_authentication_file` names), both readable only by their owner. Raises `ConfigFault`."""
    try:
        found = json.loads(_private(file))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigFault(f"{file} is no iRODS environment file")
    for key in ("irods_host", "irods_user_name", "irods_zone_name"):
        if not isinstance(found.get(key), str) or not found[key]:
            raise ConfigFault(f"{file}: {key} is missing")
    secret = file.parent / str(found.get("irods_authentication_file", ".irodsA"))
    account: dict[str, Any] = {
        "irods_host": found["irods_host"],
        "irods_port": int(found.get("irods_port", 1247)),
        "irods_user_name": found["irods_user_name"],
        "irods_zone_name": found["irods_zone_name"],
        "irods_authentication_scheme": found.get("irods_authentication_scheme", "native"),
        "password": decode(_private(secret).rstrip("\n"), uid=secret.stat().st_uid),
        "application_name": "valv",
        "connection_timeout": _SECONDS,
    }
    if found.get("irods_default_resource"):
        account["irods_default_resource"] = found["irods_default_resource"]
    plain = found.get("irods_client_server_policy") == "CS_NEG_REFUSE"
    if plain and found["irods_host"] not in _LOOPBACK:
        raise ConfigFault(f"{file}: irods_client_server_policy must be CS_NEG_REQUIRE: bodies travel over TLS only")
    if not plain:
        account |= _tls(found, ca)
    return account


def _tls(found: dict[str, Any], ca: Path | None) -> dict[str, Any]:
    """TLS with a server that is verified. The client itself verifies nothing where no authority is named."""
    authority = str(ca) if ca else found.get("irods_ssl_ca_certificate_file")
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ssl.SSLError):
        raise ConfigFault(f"an iRODS store: {authority} holds no certificates") from None
    return {
        "irods_client_server_negotiation": "request_server_negotiation",
        "irods_client_server_policy": "CS_NEG_REQUIRE",
        "irods_ssl_verify_server": "hostname",
        "irods_encryption_algorithm": found.get("irods_encryption_algorithm", "AES-256-CBC"),
        "irods_encryption_key_size": int(found.get("irods_encryption_key_size", 32)),
        "irods_encryption_num_hash_rounds": int(found.get("irods_encryption_num_hash_rounds", 16)),
        "irods_encryption_salt_size": int(found.get("irods_encryption_salt_size", 8)),
        "ssl_context": context,
    }


def _private(file: Path) -> str:
    try:
        mode, text = file.stat().st_mode, file.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise ConfigFault(f"{file}: the store's credentials cannot be read") from None
    if mode & 0o077:
        raise ConfigFault(f"{file} can be read by others; chmod 600")
    return text
