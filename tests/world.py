"""A node in a temporary folder, with accounts, for tests of the doors: real database, store, policies and log-in, and a
key holder in a process and user of its own. Only sandboxes are left out: a run ends at once with outputs that the test
names, and plain bytes are opened in this process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyotp
import uvicorn

import valv.compute
from tests.keys import running as keyd
from valv.api import app as api
from valv.app import account, dataset, intake, joining, outbox, rotating, withdrawing
from valv.app import running as steps
from valv.app.node import Node
from valv.app.streams import DATASET, WITHDRAWAL, find
from valv.assemble.policies import load_policies
from valv.compute.rewriting import Work, rewrite
from valv.core import withdrawal
from valv.core.account import Role
from valv.db.database import Database
from valv.errors import Fault
from valv.formats.crypt4gh import KeyPair, generate_keypair, open_header
from valv.login.demo import DemoLogin
from valv.ports.compute import Job, Joined, MountedFile, Output, Rekeyed, Rewritten, RunSpec, RunStatus, Skipped
from valv.ports.keys import KeyHolder
from valv.ports.storage import Place, Storage
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor
from valv.vault.join import join
from valv.vault.reader import open_reader
from valv.vault.rekey import rekey_each

PASSWORD = "correct horse battery"
COMMITTEE = "dac"
DAY = 24 * 3600
MAX_UPLOAD = 16 << 20
PEOPLE: dict[str, tuple[str, tuple[Role, ...], tuple[str, ...]]] = {
    "carin": ("Carin Custodian", ("custodian",), ()),
    "rikard": ("Rikard Researcher", ("researcher",), ()),
    "ronja": ("Ronja Researcher", ("researcher",), ()),
    "dagny": ("Dagny Committee", ("committee",), (COMMITTEE,)),
    "kerttu": ("Kerttu Checker", ("checker",), ()),
    "audun": ("Audun Auditor", ("auditor",), ()),
    "olle": ("Olle Operator", ("operator",), ()),
    "nemo": ("Nemo Nobody", (), ()),
    "alma": (
        "Alma Allroles",
        ("custodian", "researcher", "committee", "checker", "auditor", "operator"),
        (COMMITTEE,),
    ),
}


class DirectReader:
    """A `Reader` in this process: what a reader process does, asking the key holder as one."""

    def __init__(self, storage: Storage, keys: KeyHolder, uid: int) -> None:
        self._storage, self._keys, self._uid = storage, keys, uid

    def reserve(self) -> tuple[str, int]:
        return "token", self._uid

    def read(self, token: str, grant_id: str, file: MountedFile) -> Iterator[bytes]:
        pair = generate_keypair()
        header = self._keys.reseal(grant_id, file.key_id, file.header, pair.public)
        reader = open_reader(
            self._storage.open,
            file.body,
            header,
            pair.private,
            size=file.size,
            seal_root=file.seal_root,
            tree_root=file.tree_root,
        )
        try:
            yield from reader.chunks()
        finally:
            reader.close()

    def rekey(
        self, token: str, grant_id: str, files: Sequence[tuple[MountedFile, str]], public_key: bytes
    ) -> Generator[Rekeyed | Fault, None, None]:
        def reseal(file: MountedFile, public: bytes) -> bytes:
            return self._keys.reseal(grant_id, file.key_id, file.header, public)

        return rekey_each(self._storage, files, reseal, public_key=public_key)

    def join(self, token: str, grant_id: str, parts: Sequence[MountedFile], body: str, public_key: bytes) -> Joined:
        def reseal(part: MountedFile, public: bytes) -> bytes:
            return self._keys.reseal(grant_id, part.key_id, part.header, public)

        return join(self._storage, parts, reseal, public_key=public_key, body=body)

    def rewrite(
        self, token: str, grant_id: str, file: MountedFile, job: Job, *, public_key: bytes, body: str
    ) -> Rewritten:
        """The rewriter in a process of its own, without its sandbox."""
        pair = generate_keypair()
        header = self._keys.reseal(grant_id, file.key_id, file.header, pair.public)
        (theirs, into), (back, ours) = os.pipe(), os.pipe()
        folder = Path(valv.compute.__file__).parent
        program = f"import sys; sys.path.insert(0, {str(folder)!r}); from rewrite.job import main; main()"
        child = subprocess.Popen([sys.executable, "-I", "-c", program], stdin=theirs, stdout=ours)
        os.close(theirs)
        os.close(ours)
        try:
            return rewrite(
                self._storage,
                Work(file, job),
                header,
                pair.private,
                public_key=public_key,
                body=body,
                into=into,
                back=back,
            )
        finally:
            child.wait(60)

    def probe(self) -> None:
        self._storage.usage()


@dataclass
class Ended:
    """A `Compute` whose runs end at once and leave `outputs`, encrypted as those of a sandbox are."""

    storage: Storage
    uid: int
    outputs: dict[str, bytes] = field(default_factory=dict)

    def reserve(self, run_id: str) -> int:
        return self.uid

    def start(self, spec: RunSpec) -> None:
        pass

    def status(self, run_id: str) -> RunStatus:
        return RunStatus(run_id, "ended", end="exited", exit_code=0)

    def stop(self, run_id: str) -> None:
        pass

    def collect(self, run_id: str, public_key: bytes) -> Iterator[Output | Skipped]:
        for path, content in self.outputs.items():
            name = os.urandom(16).hex()
            encryptor = Encryptor(self.storage.writer(name), self.storage.writer(f"{name}.seal"), public_key)
            encryptor.write(content)
            made = encryptor.finish()
            yield Output(path, name, made.header, made.size, made.sha256, made.seal_root, made.tree_root)
        yield Skipped("dev", "device")

    def discard(self, run_id: str) -> None:
        pass

    def runs(self) -> list[str]:
        return []


class Served:
    """An application on a port of the loopback address, in a thread."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="critical", access_log=False, server_header=False, lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        self.port = int(self._server.servers[0].sockets[0].getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(60)


@dataclass
class Person:
    """Somebody logged in at the API."""

    world: World
    name: str
    token: str

    def ask(self, method: str, path: str, body: Any = None, *, key: str = "", **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        headers |= {"Idempotency-Key": key} if key else {}
        headers |= more.pop("headers", {})
        more |= {"json": body} if body is not None else {}
        return self.world.http.request(method, f"/api/v1{path}", headers=headers, **more)

    def get(self, path: str, **query: Any) -> Any:
        return self.good(self.ask("GET", path, params=query)).json()

    def post(self, path: str, body: Any = None, *, key: str = "") -> Any:
        answered = self.good(self.ask("POST", path, body, key=key))
        return answered.json() if answered.content else None

    def refused(self, method: str, path: str, body: Any = None, **more: Any) -> tuple[int, str]:
        """Status and code of a problem."""
        answered = self.ask(method, path, body, **more)
        assert answered.status_code >= 400, answered.text
        return answered.status_code, answered.json()["code"]

    def good(self, answered: httpx.Response) -> httpx.Response:
        assert answered.is_success, f"{self.name}: {answered.status_code} {answered.text}"
        return answered


class World:
    """`http`: a client of the API in this process; `ids` and `secrets`: account ids and TOTP secrets by name."""

    def __init__(self, holder: Any) -> None:
        root = os.geteuid() == 0
        config = holder.config
        self.holder = holder
        self.folder = holder.folder
        self.config = msgspec.structs.replace(
            config,
            serve=msgspec.structs.replace(config.serve, max_upload=MAX_UPLOAD),
            login=msgspec.structs.replace(config.login, idle=DAY, absolute=DAY, step_up=DAY),  # tests share sessions
        )
        (self.folder / "db").mkdir()
        self.records = Database(self.config.database_url)
        self.records.create()
        self.storage = LocalStorage(self.folder / "store", Place("SE", "test"))
        self.node = Node(
            config=self.config,
            records=self.records,
            storage=self.storage,
            keys=holder.client(keyd.SERVE if root else None),
            policies=load_policies(config.node.country),
            login=DemoLogin(),
            clock=lambda: datetime.now(UTC),
        )
        uid = keyd.RUN if root else os.geteuid()
        self.worker = replace(self.node, keys=holder.client(keyd.WORKER if root else None))
        self.reader = DirectReader(self.storage, holder.client(uid if root else None), uid)
        self.compute = Ended(self.storage, uid)
        self.app = api.create(self.node, self.reader)
        self.server = Served(self.app)
        self.http = httpx.Client(base_url=self.server.url, timeout=60)
        self.ids: dict[str, str] = {}
        self.secrets: dict[str, str] = {}
        self._steps: dict[str, int] = {}
        self._people: dict[tuple[str, bool], Person] = {}
        for name, (display, roles, committees) in PEOPLE.items():
            self.ids[name], self.secrets[name] = account.create(
                self.node,
                name=name,
                display=display,
                email=f"{name}@example.org",
                roles=roles,
                committees=committees,
                country="SE",
                password=PASSWORD,
                totp=True,
            )

    # --- people ---

    def code(self, name: str) -> str:
        """A code of the second factor that was not used yet; waits where there is none."""
        while True:
            now = int(time.time()) // 30
            step = max(self._steps.get(name, 0) + 1, now - 1)
            if step <= now + 1:
                self._steps[name] = step
                return pyotp.TOTP(self.secrets[name]).at(step * 30)
            time.sleep(1)

    def person(self, name: str, *, second_factor: bool = True) -> Person:
        """Logged in, once for all tests. The name '' is a stranger."""
        if not name:
            return Person(self, "a stranger", "")
        if (name, second_factor) not in self._people:
            self._people[name, second_factor] = Person(self, name, self.log_in(name, second_factor))
        return self._people[name, second_factor]

    def log_in(self, name: str, second_factor: bool = True) -> str:
        body = {"name": name, "password": PASSWORD} | ({"code": self.code(name)} if second_factor else {})
        answered = self.http.post("/api/v1/sessions", json=body)
        assert answered.status_code == 201, answered.text
        return str(answered.json()["token"])

    # --- the node's own steps, which its worker takes ---

    def work(self, outputs: Mapping[str, bytes] = {}) -> None:
        """Publish what was handed in, run what was queued (leaving `outputs`), go on with rotations, deliver what is
        for the keys."""
        self.compute.outputs = dict(outputs)
        joining.step(self.worker, self.reader)
        intake.process_submitted(self.worker, self.reader)
        steps.start_queued(self.worker, self.compute)
        steps.watch(self.worker, self.compute)
        steps.finish_ended(self.worker, self.compute)
        rotating.seal(self.worker)
        rotating.encrypt(self.worker, self.reader)
        while withdrawing.step(self.worker, self.reader) and not self.waits():
            pass
        withdrawing.clear(self.worker)
        keys = self.worker.keys
        topics: dict[str, Callable[[Node, dict[str, Any]], None]] = {
            "key.confirm": lambda _, body: keys.confirm(body["key_id"]),
            "key.narrow": lambda _, body: keys.narrow(body["key_id"]),
        }
        outbox.deliver(self.worker, topics)

    def waits(self) -> bool:
        """Whether every withdrawal under way waits for its custodian, and has been seen to."""
        with self.node.records.reading() as unit:
            going = find(unit, WITHDRAWAL, phases=withdrawal.GOING)
            asking = [
                unit.count("withdrawal_file", {"withdrawal": one.withdrawal_id, "state": "asking"}) for one in going
            ]
        return all(one.phase == "waiting" and count for one, count in zip(going, asking, strict=True))

    # --- the way to each stage ---

    def deposit(
        self, name: str, files: Mapping[str, bytes], *, claimed: str = "anonymised", consent: tuple[str, ...] = ("GRU",)
    ) -> str:
        """A published dataset. Returns the deposit's id."""
        carin = self.person("carin")
        body = {"dataset": name, "class": claimed, "consent": list(consent), "committee": COMMITTEE, "title": name}
        ident = str(carin.post("/deposits", body)["deposit_id"])
        for path, content in files.items():
            carin.good(carin.ask("PUT", f"/deposits/{ident}/files/{path}", content=content))
        carin.post(f"/deposits/{ident}/submission", {"expected": list(files)})
        self.work()
        assert carin.get(f"/deposits/{ident}")["state"]["phase"] == "published"
        return ident

    def scan(self, name: str, version: int = 1, findings: int = 0) -> None:
        with self.node.records.reading() as unit:
            found = next(state for state in find(unit, DATASET, limit=1000) if state.name == name)
        dataset.record_scan(self.worker, found.dataset_id, version, findings, "nothing was found")

    def anonymised(self, name: str, files: Mapping[str, bytes]) -> None:
        """A published dataset whose claim was scanned and confirmed."""
        self.deposit(name, files)
        self.scan(name)
        body = {"version": 1, "confirm": True, "reason": "No identifiers are in it."}
        self.person("kerttu").post(f"/datasets/{name}/assessment", body)
        self.work()

    def form(self, name: str, **more: Any) -> dict[str, Any]:
        given = {"title": "A study", "summary": "Why.", "datasets": [name], "purpose": ["HMB", "IRB"], "country": "SE"}
        return given | {"for_profit": False, "commercial": False, "days": 30, "licence": True} | more

    def application(self, name: str, **more: Any) -> str:
        """An application that was handed in."""
        rikard = self.person("rikard")
        ident = str(rikard.post("/applications", self.form(name, **more))["access_id"])
        rikard.post(f"/applications/{ident}/submission")
        return ident

    def permit(self, name: str, **more: Any) -> str:
        ident = self.application(name, **more)
        return str(self.person("dagny").post(f"/applications/{ident}/approval", {"reason": "It fits."})["permit_id"])

    def run(self, permit: str, outputs: Mapping[str, bytes]) -> tuple[str, str]:
        """A run that ended, and the id of the release where its outputs wait."""
        rikard = self.person("rikard")
        ident = str(rikard.post("/runs", {"permit": permit, "command": ["true"]})["run_id"])
        self.work(outputs)
        return ident, str(rikard.get(f"/runs/{ident}")["release_id"])

    def key(self, name: str) -> tuple[str, KeyPair]:
        """A key registered for downloads: its id and the pair."""
        from base64 import b64decode, b64encode

        pair, person = generate_keypair(), self.person(name)
        asked = person.post("/account/keys", {"public": b64encode(pair.public).decode(), "label": "laptop"})
        data_key = open_header(b64decode(asked["header"]), [pair.private]).data_keys[0]
        person.post(f"/account/keys/{asked['challenge_id']}", {"answer": account.answer(data_key)})
        return str(asked["challenge_id"]), pair

    def events(self) -> int:
        with self.node.records.reading() as unit:
            return unit.head().size

    def bodies(self) -> set[str]:
        return set(self.storage.names())


@contextlib.contextmanager
def world() -> Iterator[World]:
    with keyd.running(keyd.KEYD if os.geteuid() == 0 else None) as holder:
        made = World(holder)
        try:
            yield made
        finally:
            made.http.close()
            made.server.close()
            made.records.close()
