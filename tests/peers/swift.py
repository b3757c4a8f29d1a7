"""A private object store of OpenStack: Swift of Debian (proxy, account, container and object server) on loopback.

One replica in a temporary folder, whose file system must keep extended attributes. Accounts are those of Swift's own
`tempauth`, with a key made at start. Each server is a child of this process and is ended by its id. Fixtures, one for
the whole session each: `swift`; `swift_clouds`, the clouds.yaml of a project in Keystone, by a second proxy.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.peers.barbican import OpenStack
from valv.config import Storage

PYTHON = Path("/usr/bin/python3")
SERVERS = ("account", "container", "object", "proxy")
PACKAGES = "swift-proxy swift-account swift-container swift-object"
START_SECONDS = 60
NOBODY = 65534

# tempauth keeps its tokens in a cache, which is memcached elsewhere. This one is a dictionary in the only process of
# the proxy; it keeps nothing but tokens, so that quotas always count what really lies there.
CACHE = """
import time


class Cache:
    def __init__(self):
        self.kept = {}

    def get(self, key, **_):
        value, until = self.kept.get(key, (None, 0))
        return value if until > time.time() else None

    def set(self, key, value, time=0, **_):
        if "/token/" in key or "/user/" in key:
            self.kept[key] = (value, globals()["time"].time() + time)

    def delete(self, key, **_):
        self.kept.pop(key, None)

    def forget(self):
        self.kept.clear()


def filter_factory(conf, **_):
    cache = Cache()

    def wrapped(app):
        def call(environ, start):
            if environ["PATH_INFO"] == "/forget":
                cache.forget()
                start("204 No Content", [("Content-Length", "0")])
                return [b""]
            environ["swift.cache"] = cache
            return app(environ, start)

        return call

    return wrapped
"""

PIPELINE = "catch_errors gatekeeper cache listing_formats bulk {login} container_quotas slo proxy-server"
KEYSTONE_PORT = "proxy of Keystone"


@dataclass
class Swift:
    """The running servers. `credentials`: the file of the account that owns every container."""

    folder: Path
    ports: dict[str, int]
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['proxy']}"

    @property
    def credentials(self) -> Path:
        return self.written("node.toml", self.url, self.key)

    def written(self, file: str, url: str, key: str) -> Path:
        """A credentials file that only its owner can read."""
        path = self.folder / file
        path.touch(mode=0o600)
        path.write_text(f'auth_url = "{url}/auth/v1.0"\nuser = "node:vault"\nkey = "{key}"\n')
        return path

    def container(self, quota: int = 0) -> str:
        """A new, empty container; `quota` bytes may be put there, where it is not 0."""
        import httpx

        name = f"container-{secrets.token_hex(6)}"
        login = {"x-auth-user": "node:vault", "x-auth-key": self.key}
        with httpx.Client(trust_env=False, timeout=30) as http:
            found = http.get(f"{self.url}/auth/v1.0", headers=login).raise_for_status().headers
            headers = {"x-auth-token": found["x-auth-token"]}
            if quota:
                headers["x-container-meta-quota-bytes"] = str(quota)
            http.put(f"{found['x-storage-url']}/{name}", headers=headers).raise_for_status()
        return name

    def settings(self, container: str, **more: str) -> Storage:
        """Of a store in `container`. `more`: in place of settings."""
        given = {"backend": "swift", "bucket": container, "path": "", "credentials": str(self.credentials)}
        return Storage(**(given | more))  # type: ignore[arg-type]

    def forget_tokens(self) -> None:
        """Every token that was given is worth nothing any more."""
        import httpx

        httpx.get(f"{self.url}/forget", trust_env=False).raise_for_status()

    def start(self, name: str, file: str = "") -> None:
        """`file`: its configuration, where that is not called like the server."""
        file = file or name
        with (self.folder / f"{file}.log").open("ab") as log:
            self.processes[file] = subprocess.Popen(
                [PYTHON, f"/usr/bin/swift-{name}-server", self.folder / f"{file}.conf", "-v"],
                cwd=self.folder,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # its worker is its child, and ends with the group
            )

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def last_words(self, name: str) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()[-30:])


def missing(folder: Path) -> str:
    """Why it cannot start here, '' where it can."""
    absent = [name for name in SERVERS if not Path(f"/usr/bin/swift-{name}-server").exists()]
    if absent or shutil.which("swift-ring-builder") is None:
        return f"not installed: apt-get install {PACKAGES}"
    try:
        os.setxattr(folder, "user.test", b"1")
    except OSError:
        return f"the file system of {folder} keeps no extended attributes"
    return ""


def configure(swift: Swift) -> None:
    folder = swift.folder
    (folder / "disks" / "d1").mkdir(parents=True)
    (folder / "cache").mkdir()
    (folder / "swift.conf").write_text(
        f"[swift-hash]\nswift_hash_path_suffix = {secrets.token_hex(8)}\n"
        "[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    (folder / "dictionary_cache.py").write_text(CACHE)
    for name in SERVERS:
        lines = [*_common(swift, swift.ports[name]), f"[app:{name}-server]\nuse = egg:swift#{name}"]
        if name == "proxy":
            lines += _proxy("tempauth", f"user_node_vault = {swift.key} .admin")
        else:
            lines += [f"recon_cache_path = {folder}/cache", f"[pipeline:main]\npipeline = {name}-server"]
            ring = ["swift-ring-builder", str(folder / f"{name}.builder")]
            device = ["--ip", "127.0.0.1", "--port", str(swift.ports[name]), "--device", "d1", "--weight", "1"]
            for step in (["create", "4", "1", "0"], ["add", "--region", "1", "--zone", "1", *device], ["rebalance"]):
                subprocess.run([*ring, *step], check=True, capture_output=True, cwd=folder)
        (folder / f"{name}.conf").write_text("\n".join([*lines, ""]))
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def _common(swift: Swift, port: int) -> list[str]:
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    return [
        f"[DEFAULT]\nbind_ip = 127.0.0.1\nbind_port = {port}\nuser = {user}\nworkers = 0",
        f"swift_dir = {swift.folder}\ndevices = {swift.folder}/disks\nmount_check = false",
        f"log_address = {swift.folder}/no-log",
    ]


def _proxy(login: str, account: str) -> list[str]:
    """What a proxy has besides, below its own `[app:…]`. `login`: filters; the last of them is Swift's own."""
    pipeline = PIPELINE.format(login=login)
    own = login.split()[-1]
    plain = [part for part in pipeline.split() if part not in ("cache", "authtoken", own, "proxy-server")]
    return [
        "account_autocreate = true",
        f"[pipeline:main]\npipeline = {pipeline}",
        "[filter:cache]\npaste.filter_factory = dictionary_cache:filter_factory",
        f"[filter:{own}]\nuse = egg:swift#{own}\n{account}",
        *(f"[filter:{part}]\nuse = egg:swift#{part}" for part in plain),
    ]


def start_with_keystone(swift: Swift, keystone: OpenStack) -> Path:
    """A second proxy before the same servers, whose accounts are the projects of `keystone`; the clouds.yaml of one."""
    swift.ports[KEYSTONE_PORT] = port = _free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    lines = [*_common(swift, port), "[app:proxy-server]\nuse = egg:swift#proxy"]
    lines += _proxy("authtoken keystoneauth", "operator_roles = member")
    lines += [
        "[filter:authtoken]\npaste.filter_factory = keystonemiddleware.auth_token:filter_factory",
        f"auth_type = password\nauth_url = {keystone.auth_url}\nwww_authenticate_uri = {keystone.auth_url}",
        f"username = admin\npassword = {keystone.password}\nproject_name = admin",
        "user_domain_id = default\nproject_domain_id = default\ndelay_auth_decision = true",
    ]
    (swift.folder / "keystone-proxy.conf").write_text("\n".join([*lines, ""]))
    with keystone.operator() as admin:
        service = admin.identity.create_service(name="swift", type="object-store")
        where = f"{url}/v1/AUTH_%(project_id)s"
        admin.identity.create_endpoint(service_id=service.id, interface="public", url=where, region_id="one")
    swift.start("proxy", "keystone-proxy")
    until = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            break
        if swift.processes["keystone-proxy"].poll() is not None or time.monotonic() > until:
            pytest.fail(f"Swift's second proxy did not start:\n{swift.last_words('keystone-proxy')}")
        time.sleep(0.2)
    return keystone.clouds(swift.folder / "clouds.yaml", keystone.credential("member"))


def start(folder: Path) -> Swift:
    """Make the rings in `folder` and start the servers."""
    swift = Swift(folder, dict(zip(SERVERS, _free_ports(len(SERVERS)), strict=True)))
    configure(swift)
    try:
        for name in SERVERS:
            swift.start(name)
        wait(swift)
    except BaseException:
        end(swift)
        raise
    return swift


def wait(swift: Swift) -> None:
    """Until an account can log in and be read: then all servers are there."""
    import httpx

    until = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(httpx.HTTPError):
            swift.container()
            return
        for name, process in swift.processes.items():
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"Swift's {name} server did not start:\n{swift.last_words(name)}")
        time.sleep(0.2)


def end(swift: Swift) -> None:
    for name in reversed(tuple(swift.processes)):
        swift.stop(name)


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
def swift() -> Iterator[Swift]:
    folder = Path(tempfile.mkdtemp(prefix="swift-"))
    try:
        why = missing(folder)
        if why:
            pytest.skip(why)
        servers = start(folder)
        try:
            yield servers
        finally:
            end(servers)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def swift_clouds(swift: Swift, barbican: OpenStack) -> Path:
    if not Path("/usr/lib/python3/dist-packages/keystonemiddleware").is_dir():
        pytest.skip("not installed: apt-get install python3-keystonemiddleware")
    return start_with_keystone(swift, barbican)
