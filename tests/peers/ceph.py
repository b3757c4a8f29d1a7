"""A private S3 server: Ceph of Debian (a monitor, an object store in memory, the RADOS gateway) on loopback.

The daemons run in the foreground as children of this process, with their keys and data in one temporary folder, and
are ended by their ids. Nothing of an installed cluster is read. Fixture: `ceph`, one for the whole session.
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from valv.config import Storage

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = "ceph-mon ceph-osd ceph-common radosgw"
START_SECONDS = 120
PART = 5 << 20
"""The smallest part that S3 takes, but for the last one of a body."""


@dataclass(frozen=True)
class Account:
    """A user of the gateway. `file` holds its keys, in the form of AWS' shared credentials."""

    name: str
    key: str
    secret: str = field(repr=False)
    file: Path


@dataclass
class Ceph:
    """The running cluster. `account` may make buckets."""

    folder: Path
    monitor_port: int
    port: int
    tls_port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    made: list[Account] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def tls_url(self) -> str:
        """The same over TLS, with a certificate of the authority in `ca`."""
        return f"https://127.0.0.1:{self.tls_port}"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def account(self) -> Account:
        return self.made[0]

    def user(self, name: str) -> Account:
        """A new account, with its credentials file."""
        account = Account(name, secrets.token_hex(10), secrets.token_urlsafe(30), self.folder / f"{name}.credentials")
        keys = ["--access-key", account.key, "--secret-key", account.secret]
        self.admin("user", "create", "--uid", name, "--display-name", name, *keys)
        write_credentials(account.file, account.key, account.secret)
        self.made.append(account)
        return account

    def bucket(self, quota: int = 0) -> str:
        """A new, empty bucket of `account`; `quota` bytes may be put there, where it is not 0."""
        from valv.storage.s3_client import Credentials, S3Client

        name = f"bucket-{secrets.token_hex(6)}"
        S3Client(self.url, name, "us-east-1", Credentials.read(self.account.file), ssl.create_default_context()).ask(
            "PUT"
        )
        if quota:
            self.admin("quota", "set", "--quota-scope=bucket", f"--bucket={name}", f"--max-size={quota}B")
            self.admin("quota", "enable", "--quota-scope=bucket", f"--bucket={name}")
        return name

    def settings(self, bucket: str, **more: str) -> Storage:
        """Of a store in `bucket`. `more`: in place of settings."""
        given = {"backend": "s3", "url": self.url, "bucket": bucket, "path": "", "region": "us-east-1"}
        return Storage(**(given | {"credentials": str(self.account.file)} | more))  # type: ignore[arg-type]

    def admin(self, *command: str) -> str:
        """A command of `radosgw-admin`; its answer."""
        return self.run("radosgw-admin", "-n", "client.rgw", *command)

    def run(self, program: str, *arguments: str) -> str:
        command = [program, "-c", str(self.folder / "ceph.conf"), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=START_SECONDS)
        if done.returncode:
            pytest.fail(f"{program} {arguments[0]} failed: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "-f", "-c", str(self.folder / "ceph.conf")],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def last_words(self, name: str) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()[-30:])


def write_credentials(path: Path, key: str, secret: str) -> None:
    """A file of AWS' shared credentials that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")


def missing() -> str:
    """Why it cannot start here, '' where it can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}; apt-get install {PACKAGES}" if absent else ""


def configure(ceph: Ceph, cluster: str) -> None:
    folder = ceph.folder
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    shared = {
        "fsid": cluster,
        "mon host": f"v1:127.0.0.1:{ceph.monitor_port}",
        "public addr": "127.0.0.1",
        "cluster addr": "127.0.0.1",
        "osd heartbeat addr": "127.0.0.1",
        "ms bind msgr2": "false",
        "auth cluster required": "none",  # between the daemons; the gateway's accounts have their keys all the same
        "auth service required": "none",
        "auth client required": "none",
        "keyring": folder / "keyring",
        "mon data": folder / "mon",
        "osd data": folder / "osd",
        "run dir": folder,
        "admin socket": folder / "$name.asok",
        "pid file": folder / "$name.pid",
        "log to stderr": "true",
        "log file": "",
        "osd objectstore": "memstore",
        "memstore device bytes": 8 << 30,
        "osd pool default size": 1,
        "osd pool default min size": 1,
        "osd pool default pg num": 4,
        "osd pool default pg autoscale mode": "off",
        "mon allow pool size one": "true",
        "osd crush chooseleaf type": 0,
    }
    gateway = {
        "rgw frontends": f"beast endpoint=127.0.0.1:{ceph.port} ssl_endpoint=127.0.0.1:{ceph.tls_port} "
        f"ssl_certificate={folder}/server.pem ssl_private_key={folder}/server.key",
        "rgw thread pool size": 32,
        "rgw bucket quota ttl": 0,  # a quota counts at once
        "rgw bucket quota cache size": 0,
        "rgw gc obj min wait": 5,  # what was deleted leaves memory soon
        "rgw gc processor period": 5,
    }
    lines = ["[global]", *(f"{key} = {value}" for key, value in shared.items())]
    lines += ["[client.rgw]", *(f"{key} = {value}" for key, value in gateway.items()), ""]
    (folder / "ceph.conf").write_text("\n".join(lines))
    everything = [flag for part in ("mon", "osd", "mgr") for flag in ("--cap", part, "allow *")]
    for name in ("mon.", "client.admin", "client.rgw"):
        made = ["ceph-authtool", str(folder / "keyring"), "--gen-key", "-n", name, *everything]
        subprocess.run([*made, *(["--create-keyring"] if name == "mon." else [])], check=True, capture_output=True)


def certify(ceph: Ceph) -> None:
    """An authority of a day, and the gateway's key and certificate by it."""
    now = datetime.now(UTC)
    subjects = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("authority", "gateway")]
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in subjects]
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    for name, subject, key, authority in zip(("ca", "server"), subjects, keys, (True, False), strict=True):
        made = x509.CertificateBuilder(
            subjects[0], subject, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1)
        )
        made = made.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if not authority:
            made = made.add_extension(address, critical=False)
        pem = made.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (ceph.folder / f"{name}.pem").write_bytes(pem)
    plain = serialization.NoEncryption()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    (ceph.folder / "server.key").write_bytes(keys[1].private_bytes(*form, plain))


def start(folder: Path) -> Ceph:
    """Make a cluster in `folder`, start it and make an account."""
    ceph = Ceph(folder, *_free_ports(3))
    cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
    configure(ceph, cluster)
    certify(ceph)
    address = f"[v1:127.0.0.1:{ceph.monitor_port}]"  # the first protocol, said so, since the port is not its own
    map_ = str(folder / "monmap")
    subprocess.run(
        ["monmaptool", "--create", "--addv", "a", address, "--fsid", cluster, map_], check=True, capture_output=True
    )
    try:
        ceph.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_, "--keyring", str(folder / "keyring"))
        ceph.start("mon", "ceph-mon", "-i", "a")
        ceph.run("ceph", "--connect-timeout", "60", "osd", "new", disk)
        ceph.run("ceph-osd", "-i", "0", "--mkfs", "--mkkey", "--osd-uuid", disk)
        ceph.start("osd", "ceph-osd", "-i", "0")
        ceph.start("gateway", "radosgw", "-n", "client.rgw")
        wait(ceph)
        ceph.user("node")
    except BaseException:
        end(ceph)
        raise
    return ceph


def wait(ceph: Ceph) -> None:
    """Until the gateway answers. An HTTP answer, because the port is open before the gateway is ready."""
    import httpx

    until, again = time.monotonic() + START_SECONDS, 5
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(ceph.url, timeout=5, trust_env=False).status_code < 500:
                return
        for name, process in ceph.processes.items():
            if process.poll() is None:
                continue
            # On a busy machine its first command may come before the monitor's map, and it ends ("wrong fsid").
            if name == "osd" and again:
                again -= 1
                ceph.start("osd", "ceph-osd", "-i", "0")
                break
            pytest.fail(f"Ceph's {name} ended:\n{ceph.last_words(name)}")
        if time.monotonic() > until:
            pytest.fail(f"Ceph did not start:\n{ceph.last_words('gateway')}")
        time.sleep(0.2)


def end(ceph: Ceph) -> None:
    for name in reversed(tuple(ceph.processes)):
        ceph.stop(name)


def _free_ports(count: int) -> list[int]:
    """All bound at once, so that they differ."""
    with contextlib.ExitStack() as probes:
        found = []
        for _ in range(count):
            probe = probes.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
        return found


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    why = missing()
    if why:
        pytest.skip(why)
    pytest.importorskip("obstore", reason="the Python package obstore is not installed")
    folder = Path(tempfile.mkdtemp(prefix="ceph-"))
    try:
        cluster = start(folder)
        try:
            yield cluster
        finally:
            end(cluster)
    finally:
        shutil.rmtree(folder)
