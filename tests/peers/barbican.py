"""A private key manager of OpenStack: Keystone and Barbican of Debian, each a process of its own on loopback, SQLite.

Only Debian's libraries `python3-keystone` and `python3-barbican` are needed: they start nothing and make no users.
Everything lies in one temporary folder, and all keys and passwords are made when it starts. Fixture: `barbican`, one
for the whole session.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from valv.config import Keys

PYTHON = Path("/usr/bin/python3")
PACKAGES = Path("/usr/lib/python3/dist-packages")
CLOUD = "vault"
START_SECONDS = 120
NOBODY = 65534
KEYSTONE_KEYS = ("fernet_tokens", "fernet_receipts", "credential")

KEYSTONE = """
import sys
from waitress import serve
from keystone.server.wsgi import initialize_public_application
port = int(sys.argv.pop())
serve(initialize_public_application(), host="127.0.0.1", port=port, threads=1)
"""

BARBICAN = """
import sys
from paste import deploy
from waitress import serve
serve(deploy.loadapp("config:" + sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), threads=1)
"""

MANAGE = "import sys; from keystone.cmd.manage import main; sys.argv[0] = 'keystone-manage'; sys.exit(main())"

CLEAN = "import sys; from barbican.cmd.barbican_manage import main; sys.argv[0] = 'barbican-manage'; sys.exit(main())"

# Debian ships Barbican's pipeline without Keystone; this one has it.
PIPELINE = """
[composite:main]
use = egg:Paste#urlmap
/: versions
/v1: secrets
[pipeline:versions]
pipeline = microversion versionapp
[pipeline:secrets]
pipeline = authtoken context microversion apiapp
[app:apiapp]
paste.app_factory = barbican.api.app:create_main_app
[app:versionapp]
paste.app_factory = barbican.api.app:create_version_app
[filter:context]
paste.filter_factory = barbican.api.middleware.context:ContextMiddleware.factory
[filter:microversion]
paste.filter_factory = barbican.api.middleware.microversion:MicroversionMiddleware.factory
[filter:authtoken]
paste.filter_factory = keystonemiddleware.auth_token:filter_factory
"""


@dataclass
class OpenStack:
    """Both services. The project `node` has a user whose application credential is in `clouds_file`."""

    folder: Path
    keystone_port: int
    barbican_port: int
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def auth_url(self) -> str:
        return f"http://127.0.0.1:{self.keystone_port}/v3"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.barbican_port}"

    @property
    def clouds_file(self) -> Path:
        return self.folder / "clouds.yaml"

    def settings(self, key: str = "") -> Keys:
        """For root keys of a name of their own, where none is given."""
        key = key or f"root {secrets.token_hex(8)}"
        return Keys(backend="barbican", cloud=CLOUD, clouds_file=str(self.clouds_file), key=key)

    def operator(self, project: str = "admin") -> Any:
        """A connection of the cloud's administrator, in the project `admin` or `node`."""
        import openstack

        auth = {
            "auth_url": self.auth_url,
            "username": "admin",
            "password": self.password,
            "project_name": project,
            "user_domain_id": "default",
            "project_domain_id": "default",
        }
        return openstack.connect(load_yaml_config=False, load_envvars=False, region_name="one", auth=auth)

    def credential(self, *roles: str) -> dict[str, str]:
        """A new application credential in the project `node`, of a new user with these roles."""
        name, password = f"user-{secrets.token_hex(4)}", secrets.token_urlsafe(24)
        with self.operator() as admin:
            user = admin.identity.create_user(name=name, password=password, domain_id="default")
            project = admin.identity.find_project("node")
            for role in roles:
                admin.identity.assign_project_role_to_user(project, user, admin.identity.find_role(role))
        import openstack

        auth = {"auth_url": self.auth_url, "user_id": user.id, "password": password, "project_id": project.id}
        with openstack.connect(load_yaml_config=False, load_envvars=False, region_name="one", auth=auth) as person:
            made = person.identity.create_application_credential(user=user.id, name="key holder")
        return {"id": made.id, "secret": made.secret}

    def clouds(self, path: Path, credential: dict[str, str], **more: str) -> Path:
        """Write a clouds.yaml that only its owner can read. `more`: in place of settings of the cloud."""
        cloud = {"region_name": "one", "auth_type": "v3applicationcredential"} | more
        auth = {
            "auth_url": cloud.pop("auth_url", self.auth_url),
            "application_credential_id": credential["id"],
            "application_credential_secret": credential["secret"],
        }
        path.touch(mode=0o600)
        path.write_text(json.dumps({"clouds": {CLOUD: {**cloud, "auth": auth}}}))  # JSON is YAML, too
        return path

    def start(self, name: str) -> None:
        programs = {
            "keystone": (KEYSTONE, str(self.keystone_port)),
            "barbican": (BARBICAN, str(self.folder / "paste.ini"), str(self.barbican_port)),
        }
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [PYTHON, "-I", "-c", *programs[name]], stdout=log, stderr=log, **self.surroundings()
            )

    def stop(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is None:
            return
        process.send_signal(signal.SIGCONT)  # a test may have halted it
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def without(self, name: str) -> Iterator[None]:
        """While this service is away."""
        self.stop(name)
        try:
            yield
        finally:
            self.start(name)
            self.wait(name)

    @contextlib.contextmanager
    def halted(self, name: str) -> Iterator[None]:
        """While this service accepts connections and answers nothing."""
        self.processes[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.processes[name].send_signal(signal.SIGCONT)

    def wait(self, name: str) -> None:
        """Until it answers. An HTTP answer, because the port is open before the service is ready."""
        import httpx

        until = time.monotonic() + START_SECONDS
        url = {"keystone": self.auth_url, "barbican": self.url}[name]
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5, trust_env=False).status_code < 500:
                    return
            if self.processes[name].poll() is not None or time.monotonic() > until:
                pytest.fail(f"{name} did not start:\n{self.last_words(name)}")
            time.sleep(0.1)

    def clean(self) -> None:
        """What Barbican's operator does from time to time: forget what was deleted."""
        if self.run("clean", CLEAN, "db", "clean", "--min-days", "0").wait(START_SECONDS) != 0:
            pytest.fail(f"barbican-manage failed:\n{self.last_words('clean')}")

    def run(self, name: str, script: str, *arguments: str) -> subprocess.Popen[bytes]:
        """A tool of the services, to its end or beside others."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [PYTHON, "-I", "-c", script, *arguments], stdout=log, stderr=log, **self.surroundings()
            )

    def surroundings(self) -> dict[str, Any]:
        """Nothing of the environment, and as root another user."""
        named: dict[str, Any] = {
            "cwd": self.folder,
            "env": {
                "PATH": "/usr/bin:/bin",
                "LANG": "C.UTF-8",
                "HOME": str(self.folder),  # Barbican looks here for .barbican/barbican.conf
                "OS_KEYSTONE_CONFIG_DIR": str(self.folder),
                "OS_BOOTSTRAP_PASSWORD": self.password,
            },
            "stdin": subprocess.DEVNULL,
        }
        if os.geteuid() == 0:
            named |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        return named

    def last_words(self, name: str) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text("utf-8", "replace").splitlines()[-30:])


def missing() -> str:
    """Why it cannot start here, '' where it can."""
    absent = [name for name in ("keystone", "barbican", "waitress") if not (PACKAGES / name).is_dir()]
    if absent:
        return "not installed: apt-get install " + " ".join(f"python3-{name}" for name in absent)
    return ""


def configure(services: OpenStack) -> None:
    folder = services.folder
    (folder / "keystone.conf").write_text(
        f"[DEFAULT]\nuse_stderr = true\n[database]\nconnection = sqlite:///{folder}/keystone.sqlite\n"
        "[identity]\npassword_hash_rounds = 4\n[cache]\nenabled = true\nbackend = dogpile.cache.memory\n"
        + "".join(f"[{part}]\nkey_repository = {folder}/{part}\n" for part in KEYSTONE_KEYS)
    )
    (folder / ".barbican").mkdir()
    (folder / ".barbican" / "barbican.conf").write_text(
        f"[DEFAULT]\nuse_stderr = true\nhost_href = {services.url}\nsql_connection = sqlite:///{folder}/barbican.sqlite\n"
        "db_auto_create = true\n[queue]\nenable = false\n[secretstore]\nenabled_secretstore_plugins = store_crypto\n"
        "[crypto]\nenabled_crypto_plugins = simple_crypto\n"
        f"[simple_crypto_plugin]\nkek = {base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}\n"
        f"[keystone_authtoken]\nauth_type = password\nauth_url = {services.auth_url}\n"
        f"www_authenticate_uri = {services.auth_url}\nusername = admin\npassword = {services.password}\n"
        "project_name = admin\nuser_domain_id = default\nproject_domain_id = default\n"
    )
    (folder / "paste.ini").write_text(PIPELINE)
    for part in KEYSTONE_KEYS:
        (folder / part).mkdir(mode=0o700)
    for name in ("keystone", "barbican"):  # they read while they write, which SQLite's older journal locks out
        with contextlib.closing(sqlite3.connect(folder / f"{name}.sqlite")) as database:
            database.execute("PRAGMA journal_mode = WAL")
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def start(folder: Path) -> OpenStack:
    """Make both services' databases in `folder`, start them, and fill in what a node needs."""
    services = OpenStack(folder, *_free_ports(2))
    configure(services)
    places = [f"--bootstrap-{kind}-url={services.auth_url}" for kind in ("public", "internal", "admin")]
    try:
        services.start("barbican")  # makes its database itself, and asks Keystone nothing before the first request
        for steps in (
            (["db_sync"], ["fernet_setup"], ["credential_setup"]),
            (["bootstrap", "--bootstrap-region-id", "one", *places],),
        ):
            running = [services.run("keystone", MANAGE, *step) for step in steps]
            ended = [process.wait(START_SECONDS) for process in running]
            if any(ended):
                pytest.fail(f"keystone-manage failed:\n{services.last_words('keystone')}")
        services.start("keystone")
        for name in ("keystone", "barbican"):
            services.wait(name)
        populate(services)
    except BaseException:
        end(services)
        raise
    return services


def populate(services: OpenStack) -> None:
    """Barbican in the catalogue, a project for a node, the role that may keep secrets, and a credential with it."""
    with services.operator() as admin:
        identity = admin.identity
        service = identity.create_service(name="barbican", type="key-manager")
        identity.create_endpoint(service_id=service.id, interface="public", url=services.url, region_id="one")
        project = identity.create_project(name="node", domain_id="default")
        identity.create_role(name="creator")
        identity.assign_project_role_to_user(
            project, identity.find_user("admin", domain_id="default"), identity.find_role("admin")
        )
    services.clouds(services.clouds_file, services.credential("creator"))


def end(services: OpenStack) -> None:
    for name in tuple(services.processes):
        services.stop(name)


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
def barbican() -> Iterator[OpenStack]:
    why = missing()
    if why:
        pytest.skip(why)
    pytest.importorskip("openstack", reason="the Python package openstacksdk is not installed")
    folder = Path(tempfile.mkdtemp(prefix="barbican-"))
    try:
        services = start(folder)
        try:
            yield services
        finally:
            end(services)
    finally:
        shutil.rmtree(folder)
