"""The keyring backend `barbican` against its contract, and what only a key manager can show. Keystone and Barbican are
Debian's, really run."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import logging
import multiprocessing
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.keys.test_confined import supervised
from tests.peers.barbican import CLOUD, OpenStack
from valv import config as configuration
from valv.assemble.backend import backend
from valv.assemble.confine import Users, secrets_seen
from valv.assemble.create import create_node
from valv.assemble.prepare import views
from valv.config import Keys
from valv.errors import (
    ConfigFault,
    ConflictFault,
    Fault,
    FormatFault,
    KeyFault,
    MissingFault,
    StorageFault,
    UnreachableFault,
)
from valv.keys import disk, keymanager
from valv.keys.barbican import BarbicanKeyring, BarbicanRoot
from valv.keys.file import Cost, FileKeyring, RootFile
from valv.keys.keymanager import KeyManager
from valv.keys.store import Store
from valv.ports.contract.keys import CONTEXT, RootKeyContract, told, works

CHEAP = Cost(passes=1, lanes=1, memory=64)
PASSPHRASE = b"correct horse battery"


class TestBarbican(RootKeyContract):
    elsewhere = True

    @pytest.fixture
    def keyring(self, barbican: OpenStack) -> BarbicanKeyring:
        return BarbicanKeyring(barbican.settings(), CHEAP)

    @pytest.fixture
    def other(self, barbican: OpenStack) -> BarbicanKeyring:
        return BarbicanKeyring(barbican.settings(), CHEAP)


class Stage:
    """A root key in Barbican, and what its operator can see and do there."""

    def __init__(self, services: OpenStack, folder: Path) -> None:
        self.services = services
        self.settings = services.settings()
        self.keyring = BarbicanKeyring(self.settings, CHEAP)
        self.operator = services.operator("node")
        self.folder = self.make(folder)
        self.root = self.keyring.create(self.folder, PASSPHRASE)

    def make(self, folder: Path) -> Path:
        folder.mkdir(mode=0o700)
        return folder

    def open(self, folder: Path | None = None, passphrase: bytes = PASSPHRASE) -> BarbicanRoot:
        return self.keyring.open(folder or self.folder, passphrase)

    def secret(self, folder: Path | None = None) -> str:
        return str(self.reference(folder)["secret"])

    def reference(self, folder: Path | None = None) -> dict[str, Any]:
        return dict(json.loads(((folder or self.folder) / "root.json").read_bytes()))

    def refer(self, **fields: object) -> None:
        """Edit the reference by hand."""
        (self.folder / "root.json").write_text(json.dumps(self.reference() | fields))

    def ask(self, method: str, path: str, **named: Any) -> Any:
        return self.operator.key_manager.request(path, method, **named)

    def payload(self, secret: str) -> bytes:
        answer = self.ask("GET", f"/secrets/{secret}/payload", headers={"Accept": "application/octet-stream"})
        assert answer.status_code == 200
        return bytes(answer.content)

    def store(self, payload: bytes) -> str:
        """A secret of the operator's in the same project."""
        body = {
            "name": "put there",
            "secret_type": "opaque",
            "payload": base64.b64encode(payload).decode(),
            "payload_content_type": "application/octet-stream",
            "payload_content_encoding": "base64",
        }
        answer = self.ask("POST", "/secrets", json=body)
        assert answer.status_code == 201
        return str(answer.json()["secret_ref"].rpartition("/")[2])

    def swap(self, one: str, other: str) -> None:
        """As the administrator of Barbican's database can: each payload in the other's place."""
        before = self.payload(one), self.payload(other)
        with contextlib.closing(sqlite3.connect(self.services.folder / "barbican.sqlite")) as database, database:
            rows = dict(
                database.execute(
                    "SELECT id, secret_id FROM encrypted_data WHERE secret_id IN (?, ?)", (one, other)
                ).fetchall()
            )
            assert sorted(rows.values()) == sorted((one, other))
            for row, secret in rows.items():
                new = other if secret == one else one
                database.execute("UPDATE encrypted_data SET secret_id = ? WHERE id = ?", (new, row))
        assert (self.payload(other), self.payload(one)) == before

    def held(self) -> list[str]:
        """The ids of all secrets of its name."""
        found = self.ask("GET", "/secrets", params={"name": self.settings.key}).json()["secrets"]
        return [each["secret_ref"].rpartition("/")[2] for each in found]


@pytest.fixture
def stage(barbican: OpenStack, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(barbican, tmp_path / "keys")
    yield made
    made.operator.close()


def keyring_of(barbican: OpenStack, path: Path, credential: dict[str, str], **more: Any) -> BarbicanKeyring:
    file = barbican.clouds(path, credential, **more)
    return BarbicanKeyring(Keys(backend="barbican", cloud=CLOUD, clouds_file=str(file)), CHEAP)


# --- what lies where ---------------------------------------------------------------------------------------------


def test_neither_barbican_nor_the_folder_holds_the_root_key(stage: Stage) -> None:
    with stage.root._opened() as view:
        root = bytes(view)
    payload = stage.payload(stage.secret())
    file = RootFile.decode(payload, "Barbican")
    for place in (payload, file.wrapped, file.salt, (stage.folder / "root.json").read_bytes()):
        for key in (root, PASSPHRASE):
            for form in (key, base64.b64encode(key), key.hex().encode()):
                assert form not in place
    assert file.wrapped not in (stage.folder / "root.json").read_bytes()
    assert [path.name for path in stage.folder.iterdir()] == ["root.json"]
    assert set(stage.reference()) == {"format", "secret", "digest"}


def test_what_barbican_holds_is_what_the_backend_file_would(stage: Stage, tmp_path: Path) -> None:
    wrapped = stage.root.wrap(b"secret", CONTEXT)
    folder = stage.make(tmp_path / "file")
    (folder / "root.json").write_bytes(stage.payload(stage.secret()))
    assert FileKeyring(Keys()).open(folder, PASSPHRASE).unwrap(wrapped, CONTEXT) == b"secret"


def test_a_folder_of_another_backend(stage: Stage, tmp_path: Path) -> None:
    folder = stage.make(tmp_path / "file")
    kept = FileKeyring(Keys(), CHEAP).create(folder, PASSPHRASE)
    wrapped = kept.wrap(b"secret", CONTEXT)
    with pytest.raises(FormatFault, match=r"keys\.backend"):
        stage.open(folder)
    with pytest.raises(FormatFault):
        stage.keyring.discard(folder, PASSPHRASE)
    with pytest.raises(FormatFault):
        stage.root.discard(folder)
    assert FileKeyring(Keys()).open(folder, PASSPHRASE).unwrap(wrapped, CONTEXT) == b"secret"
    with pytest.raises(FormatFault):
        FileKeyring(Keys()).open(stage.folder, PASSPHRASE)


def test_only_an_id_is_asked_for(stage: Stage) -> None:
    for bad in ("../secrets", "", stage.secret().upper(), stage.secret() + "/payload", f"{{{stage.secret()}}}"):
        stage.refer(secret=bad)
        with pytest.raises(FormatFault):
            stage.open()


# --- an administrator of Barbican ----------------------------------------------------------------------------------


def test_a_secret_deleted_behind_our_back(stage: Stage) -> None:
    assert stage.ask("DELETE", f"/secrets/{stage.secret()}").status_code == 204
    assert works(stage.root)
    with pytest.raises(MissingFault, match=rf"{stage.secret()}.*Barbican's backup"):
        stage.open()
    stage.root.discard(stage.folder)
    assert not (stage.folder / "root.json").exists()


def test_payloads_of_two_nodes_put_in_each_others_place(stage: Stage, tmp_path: Path) -> None:
    """Also where both nodes have the same passphrase."""
    for number, passphrase in enumerate((PASSPHRASE, b"another passphrase")):
        folder = stage.make(tmp_path / f"other {number}")
        BarbicanKeyring(stage.services.settings(), CHEAP).create(folder, passphrase)
        stage.swap(stage.secret(), stage.secret(folder))
        for where, key in ((stage.folder, PASSPHRASE), (folder, passphrase)):
            with pytest.raises(KeyFault, match=rf"{stage.secret(where)} is not the root key"):
                stage.open(where, key)
        stage.swap(stage.secret(), stage.secret(folder))
        assert works(stage.open()) and works(stage.open(folder, passphrase))


def test_an_older_root_key_of_this_node_put_back(stage: Stage, tmp_path: Path) -> None:
    """It is under the same passphrase, even the same salt."""
    following = stage.make(tmp_path / "next")
    stage.root.renew(following)
    stage.swap(stage.secret(), stage.secret(following))
    with pytest.raises(KeyFault, match="put in another's place"):
        stage.open(following)


def test_who_alters_the_payload_and_the_reference_opens_nothing(stage: Stage) -> None:
    import hashlib

    whole = stage.payload(stage.secret())
    file = RootFile.decode(whole, "Barbican")
    bent = whole.replace(base64.b64encode(file.wrapped), base64.b64encode(file.wrapped[:-1] + b"\0"))
    stronger = whole.replace(b'"passes":1', b'"passes":2')
    other = base64.b64encode(bytes(16))
    salted = whole.replace(base64.b64encode(file.salt), other)
    for payload in (bent, stronger, salted):
        assert payload != whole
        secret = stage.store(payload)
        stage.refer(secret=secret)
        with pytest.raises(KeyFault, match="is not the root key"):
            stage.open()
        stage.refer(digest=base64.b64encode(hashlib.sha256(payload).digest()).decode())
        with pytest.raises(KeyFault, match="the passphrase is wrong, or the root key file was altered"):
            stage.open()
        stage.refer(digest=base64.b64encode(hashlib.sha256(whole).digest()).decode())


def test_a_payload_that_is_no_root_key(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    payload = b"[" * 10_000
    digest = base64.b64encode(hashlib.sha256(payload).digest()).decode()
    stage.refer(secret=stage.store(payload), digest=digest)
    with pytest.raises(FormatFault):
        stage.open()
    monkeypatch.setattr(keymanager, "LARGEST", 9_999)
    with pytest.raises(FormatFault, match="is no root key of a node"):
        stage.open()


# --- discarding ----------------------------------------------------------------------------------------------------


def test_discarding_deletes_it_in_barbican(stage: Stage, tmp_path: Path) -> None:
    following = stage.make(tmp_path / "next")
    root = stage.root.renew(following)
    old, new = stage.secret(), stage.secret(following)
    assert sorted(stage.held()) == sorted((old, new))
    with pytest.raises(ConflictFault, match="another root key"):
        stage.root.discard(following)
    assert works(stage.root) and works(root)
    stage.root.discard(stage.folder)
    assert stage.held() == [new]
    assert stage.ask("GET", f"/secrets/{old}").status_code == 404
    assert list(stage.folder.iterdir()) == []
    stage.keyring.discard(following, b"")
    assert stage.held() == []
    assert list(following.iterdir()) == []


def test_barbican_itself_forgets_a_deleted_secret_when_it_is_cleaned(stage: Stage) -> None:
    """The page on the key holder warns of it."""
    secret = stage.secret()

    def rows() -> int:
        with contextlib.closing(sqlite3.connect(stage.services.folder / "barbican.sqlite")) as database:
            (found,) = database.execute("SELECT count(*) FROM encrypted_data WHERE secret_id = ?", (secret,)).fetchone()
            return int(found)

    stage.root.discard(stage.folder)
    assert rows() == 1
    stage.services.clean()
    assert rows() == 0


def test_discarding_while_barbican_is_away_can_be_repeated(stage: Stage) -> None:
    with stage.services.without("barbican"):
        for act in (lambda: stage.keyring.discard(stage.folder, PASSPHRASE), lambda: stage.root.discard(stage.folder)):
            with pytest.raises(UnreachableFault):
                act()
            assert (stage.folder / "root.json").exists()
    assert len(stage.held()) == 1
    stage.root.discard(stage.folder)
    assert stage.held() == []


# --- making it fails half-way --------------------------------------------------------------------------------------


def test_where_the_reference_cannot_be_written_nothing_stays(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage.make(tmp_path / "next")

    def full(*_: object) -> None:
        assert len(stage.held()) == 2
        raise StorageFault("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(disk, "write", full)
        with pytest.raises(StorageFault):
            stage.root.renew(folder)
        with pytest.raises(StorageFault):
            stage.keyring.create(folder, PASSPHRASE)
    assert stage.held() == [stage.secret()]
    assert list(folder.iterdir()) == []
    assert works(stage.root.renew(folder))


def test_where_barbican_goes_away_half_way_only_an_empty_secret_stays(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stage.make(tmp_path / "next")
    write = disk.write

    def last(path: Path, data: bytes) -> None:
        write(path, data)
        stage.services.stop("barbican")

    try:
        with monkeypatch.context() as broken:
            broken.setattr(disk, "write", last)
            with pytest.raises(UnreachableFault):
                stage.root.renew(folder)
    finally:
        stage.services.start("barbican")
        stage.services.wait("barbican")
    assert list(folder.iterdir()) == []
    (left,) = set(stage.held()) - {stage.secret()}
    assert stage.ask("GET", f"/secrets/{left}/payload").status_code == 404
    assert works(stage.open())


@pytest.mark.parametrize("written", [False, True])
def test_killed_before_and_after_the_reference_is_written(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """A process that ends there, without any cleaning up."""
    folder = stage.make(tmp_path / "next")
    write = disk.write

    def last(path: Path, data: bytes) -> None:
        if written:
            write(path, data)
        os._exit(9)

    monkeypatch.setattr(disk, "write", last)
    child = multiprocessing.get_context("fork").Process(target=stage.keyring.create, args=(folder, PASSPHRASE))
    child.start()
    child.join(60)
    monkeypatch.undo()
    assert child.exitcode == 9
    with pytest.raises(MissingFault):
        stage.open(folder)
    assert len(stage.held()) == 2
    if written:
        with pytest.raises(ConflictFault):
            stage.root.renew(folder)
        stage.keyring.discard(folder, PASSPHRASE)
        assert stage.held() == [stage.secret()]
    assert works(stage.root.renew(folder))
    assert works(stage.open(folder))


# --- the service away, the credential wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["keystone", "barbican"])
def test_a_stopped_service(stage: Stage, name: str) -> None:
    with stage.services.without(name):
        start = time.monotonic()
        with pytest.raises(UnreachableFault, match="does not answer"):
            stage.open()
        assert time.monotonic() - start < 5
        assert works(stage.root)
    assert works(stage.open())


@pytest.mark.parametrize("name", ["keystone", "barbican"])
def test_a_service_that_never_answers(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Steps of one second here, and of ten in a node."""
    folder = stage.make(tmp_path / "next")
    acts: list[Callable[[], object]] = [stage.open, lambda: stage.root.renew(folder)]
    assert keymanager.SECONDS <= 10
    with stage.services.halted(name), monkeypatch.context() as quick:
        quick.setattr(keymanager, "SECONDS", 1.0)
        for act in acts:
            start = time.monotonic()
            with pytest.raises(UnreachableFault):
                act()
            assert time.monotonic() - start < 8
    assert works(stage.open())
    assert list(folder.iterdir()) == []


def test_wrong_credentials(stage: Stage, tmp_path: Path) -> None:
    services, folder = stage.services, stage.make(tmp_path / "fresh")
    good = services.credential("creator")
    assert works(keyring_of(services, tmp_path / "good", good).open(stage.folder, PASSPHRASE))
    wrong = {
        "unknown": ({"id": "0" * 32, "secret": good["secret"]}, "does not accept the credential"),
        "secret": (good | {"secret": "canary"}, "does not accept the credential"),
        "reader": (services.credential("reader"), r"refuses the request \(403\)"),
        "member": (services.credential("member"), r"refuses the request \(403\)"),
    }
    for name, (credential, match) in wrong.items():
        keyring = keyring_of(services, tmp_path / name, credential)
        acts: list[Callable[[], object]] = [
            lambda keyring=keyring: keyring.open(stage.folder, PASSPHRASE),
            lambda keyring=keyring: keyring.create(folder, PASSPHRASE),
            lambda keyring=keyring: keyring.discard(stage.folder, PASSPHRASE),
        ]
        for act in acts:
            with pytest.raises(ConfigFault, match=rf"keys\.clouds_file.*{match}.*application credential") as caught:
                act()
            assert credential["secret"] not in told(caught.value)
    assert list(folder.iterdir()) == []
    assert works(stage.open())


def test_settings_that_cannot_be_used(stage: Stage, tmp_path: Path) -> None:
    services, credential = stage.services, {"id": "0" * 32, "secret": "canary"}
    numbers = iter(range(100))

    def keyring(**more: Any) -> BarbicanKeyring:
        return keyring_of(services, tmp_path / f"{next(numbers)}.yaml", credential, **more)

    def of_text(text: str) -> BarbicanKeyring:
        path = tmp_path / f"{next(numbers)}.yaml"
        path.write_text(text)
        return BarbicanKeyring(Keys(backend="barbican", cloud=CLOUD, clouds_file=str(path)), CHEAP)

    known = services.settings()
    far = services.auth_url.replace("127.0.0.1", "192.0.2.1")
    for wrong, match in (
        (BarbicanKeyring(Keys(cloud=CLOUD, clouds_file="/nowhere.yaml")), "/nowhere.yaml: No such file"),
        (BarbicanKeyring(Keys(cloud="fog", clouds_file=known.clouds_file)), "has no usable cloud 'fog'"),
        (of_text("canary"), "has no usable cloud"),
        (of_text("clouds: {vault: {auth: {password: 'canary"), "has no usable cloud"),
        (of_text("clouds: [canary]"), "has no usable cloud"),
        (of_text("clouds: {vault: {auth: canary}}"), "has no usable cloud"),
        (of_text("clouds: {vault: {auth: {password: canary}}}"), "has no usable cloud"),
        (keyring(auth_type="canary"), "has no usable cloud"),
        (keyring(verify=False), "'verify' is off"),
        (keyring(verify="False"), "'verify' is off"),
        (keyring(auth_url=far), "auth_url is not an https address"),
        (keyring(auth_url="http://127.0.0.1.example.org/v3"), "auth_url is not an https address"),
        (keyring_of(services, tmp_path / "region", services.credential("creator"), region_name="two"), "catalogue"),
    ):
        with pytest.raises(ConfigFault, match=match) as caught:
            wrong.open(stage.folder, PASSPHRASE)
        assert "canary" not in told(caught.value)


def test_a_key_manager_without_tls_elsewhere_is_not_used(stage: Stage, tmp_path: Path) -> None:
    """The catalogue names it: here Keystone gives another address for another region."""
    services = stage.services
    with services.operator() as admin:
        service = admin.identity.find_service("barbican")
        admin.identity.create_region(id="far")
        admin.identity.create_endpoint(
            service_id=service.id, interface="public", url="http://192.0.2.1:9311", region_id="far"
        )
    keyring = keyring_of(services, tmp_path / "far.yaml", services.credential("creator"), region_name="far")
    start = time.monotonic()
    with pytest.raises(ConfigFault, match="not an https address"):
        keyring.open(stage.folder, PASSPHRASE)
    assert time.monotonic() - start < 5


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "openstack.config.loader", None)
    with pytest.raises(ConfigFault, match=r"openstacksdk.*pip install 'valv\[barbican\]'"):
        BarbicanKeyring(Keys(cloud="c", clouds_file="/f"), CHEAP).create(tmp_path, PASSPHRASE)
    assert list(tmp_path.iterdir()) == []


# --- nothing secret is told ----------------------------------------------------------------------------------------


def test_nothing_secret_in_logs_and_faults(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every logger of every library at level DEBUG, whatever was set before. Tokens are listened for where they are
    made."""
    from keystoneauth1.identity.base import BaseIdentityPlugin

    tokens: set[str] = set()
    given = BaseIdentityPlugin.get_token

    def listening(self: Any, *args: Any, **named: Any) -> Any:
        token = given(self, *args, **named)
        tokens.add(str(token))
        return token

    monkeypatch.setattr(BaseIdentityPlugin, "get_token", listening)
    folder, wrong = stage.make(tmp_path / "next"), stage.services.credential("reader")
    mistyped = base64.b64encode(os.urandom(16))
    reader = keyring_of(stage.services, tmp_path / "reader.yaml", wrong)
    root = stage.open()
    with root._opened() as view:
        key = bytes(view)
    payload = stage.payload(stage.secret())
    file = RootFile.decode(payload, "Barbican")
    caplog.set_level(logging.DEBUG)
    for name in ("session", "session.body", "session.request", "session.response", "identity", "identity.v3.base"):
        caplog.set_level(logging.DEBUG, f"keystoneauth.{name}")
    for name in ("urllib3.connectionpool", "openstack.config", "requests.sessions"):
        caplog.set_level(logging.DEBUG, name)

    faults: list[Fault] = []
    acts: list[Callable[[], object]] = [
        lambda: root.renew(folder),
        lambda: stage.open(passphrase=mistyped),
        lambda: reader.open(stage.folder, PASSPHRASE),
        lambda: stage.keyring.discard(folder, PASSPHRASE),
        lambda: stage.open(folder),
    ]
    for act in acts:
        try:
            act()
        except Fault as fault:
            faults.append(fault)
    with stage.services.without("barbican"), pytest.raises(UnreachableFault) as caught:
        stage.open()
    faults.append(caught.value)
    assert len(faults) == 4 and len(tokens) >= 4
    ours = json.loads(stage.services.clouds_file.read_text())["clouds"][CLOUD]["auth"]["application_credential_secret"]
    secrets = [*tokens, ours, wrong["secret"], PASSPHRASE.decode(), mistyped.decode(), payload.decode()]
    for each in (key, file.wrapped, file.salt):
        secrets += [base64.b64encode(each).decode(), each.hex(), repr(each)]
    lines = [record.getMessage() + str(record.__dict__) for record in caplog.records]
    assert any("urllib3" in line for line in lines)
    texts = [*lines, *map(told, faults), repr(stage.keyring), repr(root), repr(KeyManager(stage.settings))]
    for secret in secrets:
        assert not [text.replace(secret, "SECRET") for text in texts if secret in text]


def test_faults_hold_no_request(stage: Stage) -> None:
    """A token would be in it; whoever has the fault, such as a tool that shows all of a traceback, would have that."""
    with stage.services.without("barbican"), pytest.raises(UnreachableFault) as caught:
        stage.open()
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None


def test_after_a_call_no_credential_stays_in_memory(stage: Stage) -> None:
    from keystoneauth1.identity.base import BaseIdentityPlugin
    from openstack.config.cloud_region import CloudRegion

    def alive() -> set[int]:
        gc.collect()
        return {id(each) for each in gc.get_objects() if isinstance(each, BaseIdentityPlugin | CloudRegion)}

    before = alive()  # connections of the operator's, which others keep
    root = stage.open()
    with pytest.raises(KeyFault):
        stage.open(passphrase=b"not the passphrase")
    assert alive() <= before
    assert works(root)


# --- in a node -----------------------------------------------------------------------------------------------------


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="valv-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def node(services: OpenStack, home: Path, passphrase: bytes = b"", key: str = "") -> configuration.Config:
    keys = services.settings(key)
    config = create_node(
        home / "node",
        name="valv.example",
        country="SE",
        unit="test",
        passphrase=passphrase,
        keys={"backend": "barbican", "cloud": keys.cloud, "clouds_file": keys.clouds_file, "key": keys.key},
    )
    with (home / "node" / "valv.toml").open("a") as toml:
        toml.write("[processes]\nuid_base = 790000\n")
    return config


@pytest.mark.skipif(os.geteuid() != 0, reason="processes of several users can only be started by root")
def test_confined_and_opened_by_a_person(barbican: OpenStack, home: Path) -> None:
    config = reowned(node(barbican, home, PASSPHRASE))
    with supervised(config) as client:
        assert not client.status().open
        with pytest.raises(KeyFault, match="the passphrase is wrong"):
            client.unseal(b"not the passphrase")
        with barbican.without("barbican"), pytest.raises(UnreachableFault, match="does not answer"):
            client.unseal(PASSPHRASE)
        client.unseal(PASSPHRASE)
        assert client.status().open
        public = client.status().node_key
    with supervised(config) as client:
        client.unseal(PASSPHRASE)
        assert client.status().node_key == public
    log = Path(config.home, "log", "keyd.log").read_text()
    ours = json.loads(barbican.clouds_file.read_text())["clouds"][CLOUD]["auth"]["application_credential_secret"]
    for secret in (PASSPHRASE.decode(), "not the passphrase", ours):
        assert secret not in log


@pytest.mark.skipif(os.geteuid() != 0, reason="processes of several users can only be started by root")
def test_confined_and_opened_by_itself(barbican: OpenStack, home: Path) -> None:
    config = reowned(node(barbican, home))
    with supervised(config) as client:
        until = time.monotonic() + 60
        while not client.status().open and time.monotonic() < until:
            time.sleep(0.05)
        assert client.status().open


def reowned(config: configuration.Config) -> configuration.Config:
    """The configuration as it stands now, with the range of user ids of these tests, and the keys given to that."""
    config = configuration.load(config.home)
    keyd = Users.of(config).keyd
    keys = config.path(config.keys.path)
    for path in (keys, *keys.rglob("*")):
        os.chown(path, keyd, keyd)
    return config


def test_only_the_key_holder_sees_the_credential_and_only_here_the_network(barbican: OpenStack, home: Path) -> None:
    config = node(barbican, home)
    assert config.keys.clouds_file in {str(path) for _, path in secrets_seen(config, "keyd")}
    found = views(config, Users.of(config))
    assert found["keyd"].network
    for name, view in found.items():
        seen = {inside for _, inside in (*view.read, *view.write)}
        assert (barbican.clouds_file in seen) == (name == "keyd")
    (home / "other").mkdir()
    (home / "other" / "valv.toml").write_text('[node]\nname = "n"\ncountry = "SE"\nunit = "u"\n')
    other = configuration.load(home / "other")
    assert not views(other, Users.of(other))["keyd"].network


def test_a_node_that_cannot_be_made_leaves_no_secret(stage: Stage, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        assert len(stage.held()) == 2
        raise StorageFault("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "create", full)
        with pytest.raises(StorageFault):
            node(stage.services, home, key=stage.settings.key)
    assert not list((home / "node").glob("*keys*"))
    assert stage.held() == [stage.secret()]
    node(stage.services, home, key=stage.settings.key)
    assert len(stage.held()) == 2


def test_the_backend_is_found_by_its_name() -> None:
    assert backend("keys", "barbican") is BarbicanKeyring


def test_the_configuration_says_what_is_missing(tmp_path: Path) -> None:
    raw = {
        "node": {"name": "n", "country": "SE", "unit": "u"},
        "keys": {"backend": "barbican", "clouds_file": "c.yaml"},
    }
    _, faults = configuration.parse(raw, "/home")
    for key in ("cloud", "clouds_file"):
        assert any(fault.startswith(f"keys.{key}:") for fault in faults)
    clouds = tmp_path / "clouds.yaml"
    (tmp_path / "valv.toml").write_text(
        '[node]\nname = "n"\ncountry = "SE"\nunit = "u"\n[keys]\nbackend = "barbican"\ncloud = "c"\n'
        f'clouds_file = "{clouds}"\n'
    )
    with pytest.raises(ConfigFault, match=rf"keys\.clouds_file: {clouds} is not a file"):
        configuration.load(tmp_path, secrets=True)
    clouds.write_text("clouds: {}")
    clouds.chmod(0o640)
    with pytest.raises(ConfigFault, match=rf"keys\.clouds_file: {clouds} can be read by others; chmod 600"):
        configuration.load(tmp_path, secrets=True)
    clouds.chmod(0o600)
    assert configuration.load(tmp_path, secrets=True).keys.cloud == "c"
