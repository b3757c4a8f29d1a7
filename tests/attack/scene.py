"""What the attacks act on: people who want more than is theirs, and a request or connection in their name."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from valv.assemble import create
from valv.assemble.demo import COMMITTEE
from valv.config import Config

CANARY = "CANARY-" + secrets.token_hex(12)
"""In every file of the identifiable dataset."""
EXTRA = (
    create.Account(name="brita", display="Brita B", email="brita@demo.invalid", roles=("researcher",)),
    create.Account(name="bertil", display="Bertil B", email="bertil@demo.invalid", roles=("custodian",)),
    create.Account(
        name="cai", display="Cai Elsewhere", email="cai@demo.invalid", roles=("committee",), committees=("other-dac",)
    ),
    create.Account(
        name="alma",
        display="Alma Allroles",
        email="alma@demo.invalid",
        roles=("researcher", "custodian", "committee", "checker"),
        committees=(COMMITTEE,),
    ),
)


def add_people(node: Any, *accounts: create.Account) -> None:
    """Accounts with a fresh password and second factor, made as an operator makes them."""
    wanted = [
        create.Account(
            name=one.name,
            display=one.display,
            email=one.email,
            roles=one.roles,
            committees=one.committees,
            password=secrets.token_urlsafe(12),
            totp=True,
        )
        for one in accounts
    ]
    found = create.create_accounts(node.directory, wanted)
    for one in wanted:
        node.accounts[one.name] = {"password": one.password, "totp": found[one.name], "display": one.display}


def form(name: str, mode: str = "compute", **more: Any) -> dict[str, Any]:
    """An application that the consent of the test's datasets allows."""
    return {
        "title": "A study",
        "datasets": [name],
        "purpose": ["HMB", "IRB"],
        "country": "SE",
        "mode": mode,
        "days": 30,
        "for_profit": False,
        "commercial": False,
        "licence": True,
    } | more


@dataclass(frozen=True)
class Stage:
    """`sealed`, `open`: names of an identifiable and of an anonymised dataset, both of Carin. The rest are ids of what
    is Rikard's: an application that waits, permits for both, a run and its outputs in review, a deposit of Carin's; and
    a rotation of the keys of the second, a scrub of it, and an upload to the deposit that was begun."""

    node: Any
    config: Config
    sealed: str
    open: str
    access: str
    compute: str
    download: str
    run: str
    release: str
    output: str
    file: str
    deposit: str
    rotation: str
    scrub: str
    upload: str

    @property
    def database(self) -> str:
        """The file of the node's records, as somebody who has the disk opens it."""
        return self.config.database_url.removeprefix("sqlite:///")

    def ask(self, name: str, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        """One request to the API as this person, '' for a stranger."""
        headers = dict(more.pop("headers", {}))
        if name:
            headers["Authorization"] = self.token(name)
        if body is not None:
            more["json"] = body
        return httpx.request(method, f"{self.node.url}/api/v1{path}", headers=headers, timeout=120, **more)

    def token(self, name: str) -> str:
        return str(self.node.person(name)._http.headers["Authorization"])

    def apply(self, name: str, wanted: dict[str, Any]) -> str:
        """An application of this person that was handed in."""
        person = self.node.person(name)
        access = str(person.post("/applications", wanted)["access_id"])
        person.post(f"/applications/{access}/submission")
        return access


@contextlib.contextmanager
def connected(path: Path, uid: int, groups: tuple[int, ...]) -> Iterator[socket.socket]:
    """A connection that a process of another user made (the kernel notes the user when it connects). Raises
    `PermissionError` where it may not."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            socket.send_fds(theirs, [b"x"], [connection.fileno()])
            os._exit(0)
        except BaseException:
            os._exit(1)
    theirs.close()
    with ours:
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    if not descriptors:
        raise PermissionError(f"user {uid} cannot connect to {path}")
    with socket.socket(fileno=descriptors[0]) as connection:
        connection.settimeout(60)
        yield connection
