"""`valv keys`: officers make keys, sign orders and unseal, against a key holder that really runs."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import officers
from tests.app.conftest import Stage
from tests.cli.conftest import Calls, Valv
from tests.officers import PASSPHRASE, Officers
from valv import assemble
from valv.app import custody
from valv.assemble.custody import findings
from valv.cli.screen import Screen
from valv.formats import keyfile, minutes, note, order
from valv.formats.officer import Officer


class Real(Calls):
    def operator(self) -> Any:
        return assemble.operator()


class Node:
    """A node without officers, some officers' key files, and `valv` for both."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.officers = Officers("valv.example")
        self.folder = folder
        self.secret = self.officers.write(folder)
        self.directory = stage.world.folder
        self.valv = Valv(folder / "profile.json", Real())

    def keys(self, word: str, *words: object) -> Any:
        return self.valv.good("--json", "keys", word, *words).json

    def named(self, *names: str) -> list[object]:
        return [part for name in names for part in ("--officer", self.folder / f"{name}.officer.pub")]

    def signing(self, *names: str) -> list[object]:
        keys = [part for name in names for part in ("--sign", self.folder / f"{name}.officer")]
        return [*keys, *(part for _ in names for part in ("--sign-passphrase-file", self.secret))]

    def key(self, name: str) -> list[object]:
        return ["--officer-key", self.folder / f"{name}.officer", "--passphrase-file", self.secret]


@pytest.fixture(scope="module")
def n(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with officers.world() as (made, _):
        yield Node(Stage(made), tmp_path_factory.mktemp("officers"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody sits at the terminal."""
    monkeypatch.setattr(Screen, "interactive", True)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(f"{PASSPHRASE}\n")
    return path


def test_an_officer_makes_a_key(valv: Valv, tmp_path: Path, secret: Path) -> None:
    made = valv.good("keys", "officer", "anna", "--out", tmp_path, "--passphrase-file", secret, "--json").json
    private, public = tmp_path / "anna.officer", tmp_path / "anna.officer.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    found = Officer.read(public.read_text())
    assert found.name == "anna" and made["officer"] == found.written
    assert keyfile.is_locked(private.read_text())
    raw = keyfile.read_private(private.read_text(), lambda: PASSPHRASE)
    assert Officer.of("anna", raw) == found
    before = private.read_bytes()
    valv.bad(64, "keys", "officer", "anna", "--out", tmp_path, "--passphrase-file", secret)
    assert private.read_bytes() == before


def test_a_key_has_a_passphrase_worth_the_name(valv: Valv, tmp_path: Path, asked: None) -> None:
    short = tmp_path / "short"
    short.write_text("too short\n")
    valv.bad(64, "keys", "officer", "anna", "--out", tmp_path, "--passphrase-file", short)
    for name in ("an na", "anna+bo", "", "x" * 65):
        valv.bad(65, "keys", "officer", name, "--out", tmp_path, "--passphrase-file", short)
    assert not list(tmp_path.glob("*.officer*"))
    typed = f"{PASSPHRASE}\n{PASSPHRASE}\n".encode()
    ran = valv.run("keys", "officer", "anna", "--out", tmp_path, feed=typed)
    assert ran.code == 0 and PASSPHRASE not in ran.out + ran.err
    other = f"{PASSPHRASE}\nanother passphrase\n".encode()
    assert valv.run("keys", "officer", "bo", "--out", tmp_path, feed=other).code != 0
    assert not (tmp_path / "bo.officer").exists()


def test_nobody_can_be_asked(valv: Valv, tmp_path: Path) -> None:
    assert "nobody can be asked" in valv.bad(64, "keys", "officer", "anna", "--out", tmp_path).err


def warnings(n: Node, **changes: Any) -> str:
    """What `valv doctor` warns of. `changes`: of the section [keys]."""
    w = n.stage.world
    keys = msgspec.structs.replace(w.config.keys, **changes)
    found = findings(msgspec.structs.replace(w.config, keys=keys), n.stage.node, running=True)
    return "\n".join(f"{one.what} ({one.hint})" for one in found)


def test_before_the_first_ceremony(n: Node) -> None:
    assert "no key ceremony was held" in warnings(n)
    status = n.keys("status", n.directory)
    assert status["keys"] == "open" and status["generation"] == 1 and "officers" not in status
    assert "hold a ceremony" in status["backups"][0]["fault"]
    shown = n.valv.good("keys", "status", n.directory)
    assert "No ceremony was held" in shown.err and "generation" in shown.out
    n.valv.bad(77, "keys", "unseal", n.directory, *n.key("anna"))
    n.valv.bad(77, "keys", "drill", n.directory, *n.signing("anna", "bo"))


def test_a_ceremony_by_an_order_that_officers_sign_elsewhere(n: Node, tmp_path: Path) -> None:
    file, told = tmp_path / "ceremony.order", tmp_path / "minutes.txt"
    given = ("ceremony", n.directory, *n.named("anna", "bo", "eva"), "--threshold", 2, "--persons", 1)
    n.valv.bad(64, "keys", *given)
    written = n.keys(*given, "--order", file)
    assert written["signed"] == [] and order.decode(file.read_text()).threshold == 2
    n.valv.bad(64, "keys", *given, "--order", file)
    n.valv.bad(64, "keys", "order", n.directory, file)
    n.valv.bad(64, "keys", "sign", file, *n.key("anna"))
    assert n.keys("sign", file, *n.key("anna"), "--yes")["signed"] == ["anna"]
    assert "has signed this already" in n.valv.bad(64, "keys", "sign", file, *n.key("anna"), "--yes").err
    assert "Two officers must sign" in n.valv.bad(77, "keys", "order", n.directory, file).err
    shown = n.valv.good("keys", "sign", file, *n.key("eva"), "--yes")
    assert "do: ceremony" in shown.out and "Signed by: anna." in shown.err
    done = n.valv.good("keys", "order", n.directory, file, "--minutes", told)
    assert str(told) in done.err and done.out == ""
    found = minutes.read(told.read_text())
    assert found.order == file.read_text() and found.signers == ("anna", "eva")
    note.verify(told.read_text(), n.stage.node.keys.status().log_key)
    assert n.keys("order", n.directory, file)["minutes"] == told.read_text()
    status = n.keys("status", n.directory)
    assert [one["name"] for one in status["officers"]] == ["anna", "bo", "eva"]
    assert status["recovered_by"] == "2 of 3 officers" and status["unsealed_by"] == "a passphrase"
    assert status["backups"][0] == status["backups"][0] | {"generation": 2, "fault": ""}
    assert "with its passphrase" in n.valv.bad(64, "keys", "unseal", n.directory, *n.key("anna")).err


def test_wrong_keys_and_passphrases(n: Node, tmp_path: Path) -> None:
    file = tmp_path / "x.order"
    n.keys("destroy", n.directory, _dataset(n), "--reason", "x", "--order", file, "--yes")
    wrong = tmp_path / "wrong"
    wrong.write_text("not this passphrase\n")
    key = n.folder / "anna.officer"
    told = n.valv.bad(65, "keys", "sign", file, "--officer-key", key, "--passphrase-file", wrong, "--yes")
    assert str(key) in told.err
    open_key = tmp_path / "open.officer"
    open_key.write_text(keyfile.write_private(n.officers.private["anna"], comment="anna"))
    n.valv.bad(64, "keys", "sign", file, "--officer-key", open_key, "--yes")
    n.valv.bad(64, "keys", "sign", tmp_path / "absent", *n.key("anna"), "--yes")
    n.valv.bad(65, "keys", "sign", key, *n.key("anna"), "--yes")
    edited = file.read_text().replace("reason: x", "reason: y ")
    (tmp_path / "edited").write_text(edited)
    n.valv.bad(65, "keys", "sign", tmp_path / "edited", *n.key("anna"), "--yes")
    one = [*n.signing("anna", "bo"), "--sign-passphrase-file", n.secret]
    n.valv.bad(64, "keys", "drill", n.directory, *one)
    n.valv.bad(65, "keys", "ceremony", n.directory, "--officer", key, "--threshold", 2, "--order", tmp_path / "y")


def _dataset(n: Node) -> str:
    name = n.stage.fresh()
    n.stage.publish(name, {"a.txt": b"content"})
    return name


def test_a_drill(n: Node) -> None:
    told = n.keys("drill", n.directory, *n.signing("bo", "eva"))
    assert minutes.read(told["minutes"]).wanted.deed == "drill"
    assert n.keys("status", n.directory)["last_drill"] is not None
    assert "last drill" in n.valv.good("keys", "status", n.directory).out
    n.valv.bad(65, "keys", "drill", n.directory, *n.signing("bo"))


def test_a_destruction_is_meant(n: Node, tmp_path: Path, asked: None) -> None:
    name, given = _dataset(n), ("--reason", "Withdrawn.", *n.signing("anna", "bo"))
    ran = n.valv.run("keys", "destroy", n.directory, name, *given, feed=b"another\n")
    assert ran.code == 64 and "nothing was done" in ran.err
    n.valv.bad(64, "keys", "destroy", n.directory, name, "--version", 2, "--yes", *given)
    n.valv.bad(66, "keys", "destroy", n.directory, "no-such-dataset", "--yes", *given)
    ran = n.valv.run("keys", "destroy", n.directory, name, *given, feed=f"{name}\n".encode())
    assert ran.code == 0, ran.err
    for part in (name, "7 B", "lost for ever", "reason: Withdrawn."):
        assert part in ran.out + ran.err
    custody.follow(n.stage.worker)
    assert n.stage.dataset(name).current.destroyed
    assert "destroyed already" in n.valv.bad(64, "keys", "destroy", n.directory, name, "--yes", *given).err
    assert n.keys("status", n.directory)["destroyed_keys"] == 1
    file = tmp_path / "sign.order"
    n.keys("destroy", n.directory, _dataset(n), "--reason", "x", "--order", file, "--yes")
    assert n.valv.run("keys", "sign", file, *n.key("anna"), feed=b"n\n").code == 64
    assert n.valv.run("keys", "sign", file, *n.key("anna"), feed=b"y\n").code == 0


def test_what_the_doctor_warns_of(n: Node) -> None:
    assert warnings(n) == ""
    assert "no key backup is configured" in warnings(n, backup=())
    (n.directory / "keys" / "CACHEDIR.TAG").rename(n.directory / "tag")
    assert "no CACHEDIR.TAG" in warnings(n)
    (n.directory / "tag").rename(n.directory / "keys" / "CACHEDIR.TAG")
    n.stage.clock.forward(days=366)
    assert "a key drill was due" in warnings(n)
    n.stage.clock.forward(days=-366)
    place = n.stage.world.holder.places[0]
    place.rename(place.with_name("away"))
    n.stage.worker.keys.create("another", "identifiable")
    assert f"the key backup in {place} is behind" in warnings(n)
    place.with_name("away").rename(place)
    custody.look_after(n.stage.worker)
    assert warnings(n) == ""


def test_two_officers_unseal_after_the_next_ceremony(n: Node) -> None:
    """Two officers of those before sign as well, and there is no way back to one person."""
    given = ("ceremony", n.directory, *n.named("anna", "bo", "eva"), "--threshold", 3)
    done = n.valv.good("keys", *given, *n.signing("anna", "bo"))
    assert "opens nothing any more" in done.err and "persons: 2" in done.out
    n.valv.bad(64, "keys", *given, "--persons", 1, *n.signing("anna", "bo"))
    custody.follow(n.stage.worker)
    assert "opens nothing any more" in warnings(n) and warnings(n, passphrase_file="") == ""
    n.stage.world.holder.stop()
    status = n.keys("status", n.directory)
    assert status["keys"] == "not running" and status["recovered_by"] == "3 of 3 officers" and "backups" not in status
    n.stage.world.holder.start()
    assert n.keys("status", n.directory)["shares_given"] == "0 of 2"
    n.valv.bad(77, "keys", "unseal", n.directory, "--passphrase-file", n.secret)
    taken = n.valv.good("keys", "unseal", n.directory, *n.key("eva"))
    assert "1 more officer must give a share" in taken.err
    assert n.keys("unseal", n.directory, *n.key("bo"))["open"]
    assert n.keys("status", n.directory)["keys"] == "open"
    place = n.stage.world.holder.places[0].parent
    n.valv.bad(75, "keys", "recover", n.directory, "--backup", place, *n.signing("anna", "bo", "eva"))
    n.valv.bad(66, "keys", "recover", n.directory, "--backup", place / "absent", *n.signing("anna", "bo", "eva"))
