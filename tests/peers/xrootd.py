"""Two private XRootD servers with HTTPS, macaroons and third-party copy: Debian's own, in a network of their own.

XRootD listens on every address of the machine, so both run where there is only a loopback address (`unshare -n`); a
program there (`xrootd_cell.py`) carries what connects to two loopback ports out here to the same ports in there. The
certificates, the secret of the macaroons and the person who may ask for them are made when it starts.

Fixture: `xrootd`, one pair for the whole session.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import http.client
import ipaddress
import os
import pwd
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.peers.lying import HOP, Asked, Lie, Proxy, Reply, lying
from valv.config import Storage

START_SECONDS = 60
CELL = Path(__file__).with_name("xrootd_cell.py")
NEEDED = ("xrootd", "unshare", "openssl")

SETTINGS = """
all.role server
all.export /data
oss.localroot {folder}/root
all.adminpath {folder}/adm
all.pidpath {folder}/adm
xrd.port {plain_port}
xrd.network nodnr
xrd.tls {folder}/host.pem {folder}/host.key
xrd.tlsca certdir {top}/ca
xrd.protocol http:{port} libXrdHttp.so
http.gridmap {folder}/gridmap
http.listingdeny no
http.header2cgi Authorization authz
http.exthandler xrdmacaroons libXrdMacaroons.so
http.exthandler xrdtpc libXrdHttpTPC.so
macaroons.secretkey {folder}/macaroon-secret
macaroons.sitename {name}
macaroons.maxduration 86400
ofs.authorize 1
ofs.authlib libXrdMacaroons.so
acc.authdb {folder}/authdb
acc.audit deny
xrootd.chksum max 2 adler32 md5 crc32
"""


@dataclass(frozen=True)
class Server:
    """One of the two. `root`: the folder on this machine that it shows as `/data`."""

    name: str
    port: int
    folder: Path
    ca: Path
    person: Path = field(repr=False)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def root(self) -> Path:
        return self.folder / "root" / "data"

    def macaroon(self, path: str = "/data/", *activities: str, seconds: int = 3600) -> str:
        """A fresh one, asked for with the operator's certificate."""
        rights = activities or ("DOWNLOAD", "UPLOAD", "MANAGE", "DELETE", "LIST")
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.person)
        answer = httpx.post(
            self.url + path,
            headers={"Content-Type": "application/macaroon-request"},
            json={"caveats": ["activity:" + ",".join(rights)], "validity": f"PT{seconds}S"},
            verify=context,
            trust_env=False,
        )
        answer.raise_for_status()
        return str(answer.json()["macaroon"])

    def settings(self, folder: Path, path: str, token: str = "") -> Storage:
        """For a store below `/data/<path>`; its token is put into a new file in `folder`."""
        file = folder / f"token-{secrets.token_hex(4)}"
        file.touch(mode=0o600)
        file.write_text((token or self.macaroon()) + "\n")
        return Storage(
            backend="dcache", url=self.url, path=f"data/{path}", credentials=str(file), ca=str(self.ca), country="SE"
        )

    def own(self, path: Path) -> None:
        """Give a folder to the server's user."""
        os.chown(path, *user())


@dataclass
class Pair:
    one: Server
    two: Server
    cell: subprocess.Popen[bytes]

    def stop(self) -> None:
        assert self.cell.stdin is not None
        self.cell.stdin.close()
        try:
            self.cell.wait(20)
        except subprocess.TimeoutExpired:
            self.cell.kill()
            self.cell.wait()


def user() -> tuple[int, int]:
    """As whom the servers run: XRootD refuses root."""
    if os.geteuid() != 0:
        return os.getuid(), os.getgid()
    for name in ("xrootd", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    return 65534, 65534


def missing() -> str:
    """Why it cannot start here, '' where it can."""
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install xrootd-server xrootd-server-plugins)"
    made = subprocess.run(["unshare", *_unshare(), "true"], capture_output=True, text=True)
    return f"no network namespace can be made: {made.stderr.strip()}" if made.returncode else ""


def _unshare() -> list[str]:
    return ["--net"] if os.geteuid() == 0 else ["--net", "--map-current-user"]


class Authority:
    """Signs certificates of one day. The servers look for it by OpenSSL's hash of its name."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("Valv test authority")
        self.file = folder / "ca.pem"
        certificate = self._sign(self._name, self._key.public_key(), authority=True)
        folder.mkdir()
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        subprocess.run(["openssl", "rehash", folder], check=True, capture_output=True)

    def issue(self, common_name: str, *, server: bool) -> tuple[bytes, bytes]:
        """Certificate and key, PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(common_name), key.public_key(), server=server)
        return (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
        )

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, authority: bool = False, server: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        builder = builder.add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=authority, crl_sign=authority, decipher_only=False, **usage
            ),
            critical=True,
        )
        if not authority:
            purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        if server:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Valv"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def configure(folder: Path, top: Path, port: int, plain_port: int, authority: Authority) -> None:
    """Everything that a server reads, owned by its user; keys that only it can read."""
    (folder / "root" / "data").mkdir(parents=True)
    (folder / "adm").mkdir()
    certificate, key = authority.issue("localhost", server=True)
    files = {
        "xrootd.cfg": SETTINGS.format(folder=folder, top=top, port=port, plain_port=plain_port, name=folder.name),
        "host.pem": certificate.decode(),
        "host.key": key.decode(),
        "gridmap": '"/O=Valv/CN=operator" operator\n',
        "authdb": "u operator /data a\n",
        "macaroon-secret": secrets.token_hex(64) + "\n",
    }
    for name, text in files.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *user())


def start(top: Path) -> Pair:
    top.chmod(0o755)
    authority = Authority(top / "ca")
    certificate, key = authority.issue("operator", server=False)
    person = top / "operator.pem"
    person.touch(mode=0o600)
    person.write_bytes(certificate + key)
    with contextlib.ExitStack() as stack:
        outside = [stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64)) for _ in range(2)]
        ports = [int(one.getsockname()[1]) for one in outside]
        servers = []
        for name, port in zip(("one", "two"), ports, strict=True):
            folder = top / name
            folder.mkdir()
            configure(folder, top, port, 1024 + len(servers), authority)
            servers.append(Server(name, port, folder, authority.file, person))
        pairs = ",".join(f"{port}:{one.fileno()}" for port, one in zip(ports, outside, strict=True))
        folders = ",".join(str(server.folder) for server in servers)
        with (top / "cell.log").open("wb") as log:
            cell = subprocess.Popen(
                ["unshare", *_unshare(), sys.executable, CELL, pairs, *map(str, user()), folders],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[one.fileno() for one in outside],
            )
    pair = Pair(*servers, cell)
    try:
        for server in servers:
            _await(server, cell)
    except BaseException:
        pair.stop()
        raise
    return pair


def _await(server: Server, cell: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    context = ssl.create_default_context(cafile=str(server.ca))
    while True:
        with contextlib.suppress(httpx.HTTPError):
            httpx.get(server.url + "/", verify=context, timeout=5, trust_env=False)
            return
        if cell.poll() is not None or time.monotonic() > until:
            words = [(server.folder.parent / "cell.log").read_text(), (server.folder / "log").read_text()]
            pytest.fail("XRootD did not start:\n" + "\n".join(words)[-4000:])
        time.sleep(0.1)


@pytest.fixture(scope="session")
def xrootd() -> Iterator[Pair]:
    why = missing()
    if why:
        pytest.skip(why)
    top = Path(tempfile.mkdtemp(prefix="xrootd-"))
    try:
        pair = start(top)
        try:
            yield pair
        finally:
            pair.stop()
    finally:
        shutil.rmtree(top, ignore_errors=True)


def small_disk(server: Server, name: str, size: str = "3m") -> Any:
    """A context in which `/data/<name>` of the server has only that much room. Raises OSError where it cannot."""

    @contextlib.contextmanager
    def mounted() -> Iterator[None]:
        disk = server.root / name
        disk.mkdir()
        try:
            made = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size},uid={user()[0]},gid={user()[1]},mode=0770", "tmpfs", disk],
                capture_output=True,
                text=True,
            )
            if made.returncode:
                raise OSError(made.stderr.strip())
            try:
                yield
            finally:
                subprocess.run(["umount", "--lazy", disk], check=True)
        finally:
            disk.rmdir()

    return mounted()


CANONICAL = {"transferheaderauthorization": "TransferHeaderAuthorization"}


def ask_canonically(port: int, asked: Asked) -> Reply:
    """With the names of headers as the standards write them: XRootD knows no others."""
    with contextlib.closing(http.client.HTTPConnection("localhost", port, timeout=60)) as connection:
        connection.putrequest(asked.method, asked.path, skip_host=True, skip_accept_encoding=True)
        for name, value in asked.headers.items():
            if name not in HOP:
                connection.putheader(CANONICAL.get(name, name.title()), value)
        if asked.body or asked.method in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(asked.body)))
        connection.endheaders(asked.body or None)
        found = connection.getresponse()
        headers = {name.lower(): value for name, value in found.getheaders()}
        if asked.method != "HEAD":
            headers = {name: value for name, value in headers.items() if name not in HOP}
        return Reply(found.status, headers, found.read())


@contextlib.contextmanager
def canonical(port: int) -> Iterator[Proxy]:
    """Plain HTTP on a loopback address, to the XRootD of this port; honest until told otherwise."""
    with lying("localhost", port) as proxy:
        proxy.forward = functools.partial(ask_canonically, port)
        yield proxy


def keeps_half() -> Lie:
    """The server gets, and stores, the first half of a body."""
    return lambda asked, forward: forward(dataclasses.replace(asked, body=asked.body[: len(asked.body) // 2]))
