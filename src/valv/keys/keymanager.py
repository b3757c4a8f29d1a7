"""A key manager of OpenStack (Barbican), as the keyring backend `barbican` uses it: keep a few bytes, give them back,
forget them.

Each call connects anew and keeps nothing afterwards: neither the credential nor a token stays in memory for longer than
the call. Errors are told as faults that have no text, request or answer of the libraries in them, because those can
hold tokens; and the libraries, which tell much at level DEBUG, are kept from that.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

from valv.config import Keys
from valv.errors import ConfigFault, Fault, FormatFault, MissingFault, UnreachableFault

if TYPE_CHECKING:
    from keystoneauth1.adapter import Adapter
    from openstack.config.cloud_region import CloudRegion
    from requests import Response

SECONDS: Final = 10.0
"""How long each step may take: connecting, and every wait for more of an answer. A call asks Keystone for a token, then
Barbican for one thing, where it stores for three."""
LARGEST: Final = 20_000
"""Bytes of a secret, which is Barbican's own limit where nobody set another."""
KIND: Final = "key-manager"
"""The type of the service in the catalogue."""
_BYTES: Final = "application/octet-stream"
_TALKATIVE: Final = ("dogpile", "keystoneauth", "openstack", "requests", "stevedore", "urllib3")
"""Loggers, each with those below it."""
_CREDENTIAL: Final = "make an application credential with the role 'creator' and put it into keys.clouds_file"

Result = TypeVar("Result")


class KeyManager:
    """The key manager of the cloud that `settings` name. Safe for several threads."""

    def __init__(self, settings: Keys) -> None:
        self._cloud = settings.cloud
        self._file = Path(settings.clouds_file)

    def keep(self, name: str, payload: bytes, note: Callable[[str], None]) -> str:
        """Store `payload` as a new secret and read it back; returns its id. `note` is told the id before the payload
        goes there, so that no payload can lie where nobody knows of it. Where anything fails, the secret is deleted, as
        far as it can be. Raises `ConfigFault`, `UnreachableFault`, and what `note` raises.
        """

        def ask(service: Adapter) -> str:
            made = _checked(_send(service, "POST", "/secrets", json={"name": name, "secret_type": "opaque"}))
            secret = str(UUID(str(made.json()["secret_ref"]).rstrip("/").rpartition("/")[2]))
            try:
                note(secret)
                _checked(_send(service, "PUT", _at(secret), data=payload, headers={"Content-Type": _BYTES}))
                if _payload(service, secret) != payload:
                    raise UnreachableFault("the key manager gives back other bytes than it was given", "try again")
            except BaseException:
                with contextlib.suppress(Exception):
                    _send(service, "DELETE", _at(secret))
                raise
            return secret

        return self._ask(ask)

    def read(self, secret: str) -> bytes:
        """The payload. Raises `MissingFault` where there is none, `ConfigFault`, `UnreachableFault`."""
        return self._ask(lambda service: _payload(service, secret))

    def delete(self, secret: str) -> None:
        """Deleting what is not there is no error. Raises `ConfigFault`, `UnreachableFault`."""

        def ask(service: Adapter) -> None:
            _checked(_send(service, "DELETE", _at(secret)), 404)

        self._ask(ask)

    def _ask(self, ask: Callable[[Adapter], Result]) -> Result:
        """Connect, ask, and forget the connection. Raises faults alone."""
        try:
            with self._service() as service:
                return ask(service)
        except Fault:
            raise
        except Exception as error:
            fault = self._fault(error)
        raise fault  # here, and not above: what it is made from holds requests and answers, and must not hang on to it

    @contextlib.contextmanager
    def _service(self) -> Iterator[Adapter]:
        """The key manager of the cloud. The SDK's own proxy of it is not used: a cache would remember that, and the
        token and the credential with it, for the rest of the process's life."""
        _silence()
        region = self._region()
        from keystoneauth1.adapter import Adapter

        service = Adapter(
            region.get_session(),
            service_type=KIND,
            interface=region.get_interface(KIND),
            region_name=region.get_region_name(KIND),
            endpoint_override=region.get_endpoint(KIND),
        )
        try:
            address = service.get_endpoint(skip_discovery=True)  # as it stands in the catalogue: `/v1` is all there is
            if address is None:
                raise self._absent()
            _guard(address, "the key manager's address in the catalogue")
            service.endpoint_override = address.rstrip("/").removesuffix("/v1") + "/v1"
            yield service
        finally:
            service.session.session.close()

    def _region(self) -> CloudRegion:
        """The settings of the cloud. Raises `ConfigFault`; its text has nothing of the file in it."""
        try:
            from openstack.config.loader import OpenStackConfig
        except ImportError:
            raise ConfigFault(
                "keys.backend: 'barbican' needs the Python package openstacksdk",
                "install it: pip install 'valv[barbican]'",
            ) from None
        try:
            self._file.open("rb").close()
        except OSError as error:
            raise ConfigFault(f"keys.clouds_file: {self._file}: {error.strerror}", _CREDENTIAL) from None
        unusable = ConfigFault(
            f"keys.cloud: {self._file} has no usable cloud {self._cloud!r}", "write it as a clouds.yaml of OpenStack"
        )
        try:
            known = OpenStackConfig([str(self._file)], vendor_files=[], secure_files=[], load_envvars=False)
            region = known.get_one(cloud=self._cloud, api_timeout=SECONDS)
            address, verify = str(region.config["auth"]["auth_url"]), region.config.get("verify", True)
        except Exception:  # of any kind: what is wrong is told with the line of the file, which may be the secret
            region = None
        if region is None:
            raise unusable
        if not verify or str(verify).lower() in ("false", "0", "no"):
            raise ConfigFault("keys.clouds_file: 'verify' is off", "remove it, and name the authority in 'cacert'")
        _guard(address, "keys.clouds_file: auth_url")
        return region

    def _fault(self, error: Exception) -> Fault:
        """What an error of the libraries means. Of its own text nothing is taken over."""
        from keystoneauth1 import exceptions as auth
        from openstack import exceptions as sdk

        kind = type(error).__name__
        if isinstance(error, auth.SSLError):
            return UnreachableFault(
                f"the certificate of the cloud {self._cloud!r} is not accepted",
                "name its authority's file in 'cacert' of keys.clouds_file, and that file in keys.binds",
            )
        if isinstance(error, auth.HTTPClientError):  # of Keystone: the key manager's own are looked at by `_checked`
            return ConfigFault(
                f"keys.clouds_file: the cloud {self._cloud!r} does not accept the credential ({kind})", _CREDENTIAL
            )
        if isinstance(error, auth.CatalogException | sdk.ConfigException):
            return self._absent()
        if isinstance(error, auth.AuthPluginException | auth.MissingAuthMethods):
            return ConfigFault(f"keys.clouds_file: the credential is not complete ({kind})", _CREDENTIAL)
        return UnreachableFault(
            f"the cloud {self._cloud!r} does not answer as it should ({kind})",
            "try again when it does; the key holder must reach its Keystone and Barbican over the network",
        )

    def _absent(self) -> Fault:
        return ConfigFault(
            f"keys.cloud: the cloud {self._cloud!r} has no key manager in its catalogue",
            "set region_name and interface in keys.clouds_file, or ask the cloud's operator for Barbican",
        )

    def __repr__(self) -> str:
        return f"KeyManager({self._cloud!r})"


def _send(service: Adapter, method: str, path: str, **named: Any) -> Response:
    """One request, as it stands: no redirection (a token goes with it), no repetition, no record."""
    named |= {"redirect": False, "connect_retries": 0, "status_code_retries": 0, "log": False, "raise_exc": False}
    return service.request(path, method, **named)


def _payload(service: Adapter, secret: str) -> bytes:
    with _send(service, "GET", f"{_at(secret)}/payload", headers={"Accept": _BYTES}, stream=True) as answer:
        if answer.status_code == 404:
            raise MissingFault(
                f"the key manager does not hold the root key {secret}",
                "have it restored from Barbican's backup, or name in keys.cloud the cloud and project where it is",
            )
        found = bytearray()
        for part in _checked(answer).iter_content(4096):
            found += part
            if len(found) > LARGEST:
                raise FormatFault(f"what the key manager holds as {secret} is no root key of a node")
        return bytes(found)


def _checked(answer: Response, *also: int) -> Response:
    """The answer, where it is a good one, or its status one of `also`."""
    status = answer.status_code
    if 200 <= status < 300 or status in also:
        return answer
    if status in (401, 403):
        raise ConfigFault(
            f"keys.clouds_file: the key manager refuses the request ({status}); the credential lacks the right to it, "
            "or the project's quota is used up",
            _CREDENTIAL,
        )
    raise UnreachableFault(f"the key manager answered with {status}", "look at Barbican's log, then try again")


def _at(secret: str) -> str:
    return f"/secrets/{secret}"


def _guard(address: str, name: str) -> None:
    """Only under TLS, or not over a wire at all. Raises `ConfigFault`."""
    parts = urlsplit(address)
    try:
        near = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        near = parts.hostname == "localhost"
    if parts.scheme != "https" and not (near and parts.scheme == "http"):
        raise ConfigFault(
            f"{name} is not an https address", "a token and the wrapped root key would be seen on the way"
        )


def _silence() -> None:
    """At level DEBUG these libraries tell requests and answers, whatever the node's own level is."""
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
