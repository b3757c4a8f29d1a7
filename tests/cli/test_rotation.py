"""`valv keys rotate` and its kin against a real node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from tests.cli.conftest import Valv, working
from tests.world import World
from valv.cli import rotation

LogIn = Callable[[str], Valv]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "PAUSE", 0.1)


@pytest.fixture(scope="module")
def stored(node_world: World) -> str:
    node_world.deposit("cli-rotated", {"a": b"1", "b": b"22"})
    return "cli-rotated"


def test_rotate_and_rekey_to_the_end(stored: str, logged_in: LogIn, node_world: World) -> None:
    olle = logged_in("olle")
    with working(node_world):
        ran = olle.good("keys", "rotate", stored, "--reason", "The year is over.", "--wait")
        ident = ran.line
        assert "cli-rotated@1 headers: done" in ran.err
        views = olle.good(
            "keys", "rekey", stored, "--version", "1", "--reason", "A key leaked.", "--wait", "--json"
        ).json
    assert [(view["state"]["phase"], view["state"]["bodies"], view["done"]) for view in views] == [("done", 2, 2)]
    listed = olle.good("keys", "rotations").out
    assert f"{ident}\tcli-rotated@1\trotate\t" in listed and "\tdone\t2/2" in listed
    page = logged_in("audun").good("keys", "rotation", "show", ident).out
    assert "reason    The year is over." in page and "key pair  2" in page
    assert len(olle.good("keys", "rotations", "--json").json) == 2


def test_one_is_stopped(stored: str, logged_in: LogIn, node_world: World) -> None:
    olle = logged_in("olle")
    ident = olle.good("keys", "rotate", stored, "--reason", "Once more.").line
    olle.bad(75, "keys", "rekey", stored, "--reason", "And again.")
    logged_in("carin").bad(77, "keys", "rotation", "stop", ident)
    assert f"{ident} is stopped" in olle.good("keys", "rotation", "stop", ident).err
    assert "state     stopped" in olle.good("keys", "rotation", "show", ident).out


def test_one_that_is_stopped_while_it_is_waited_for(stored: str, logged_in: LogIn, node_world: World) -> None:
    olle = logged_in("olle")

    def stop() -> None:
        time.sleep(0.5)
        [view] = [view for view in node_world.person("olle").get("/rotations") if view["state"]["phase"] == "going"]
        node_world.person("olle").post(f"/rotations/{view['state']['rotation_id']}/stop")

    stopping = threading.Thread(target=stop)
    stopping.start()
    ran = olle.run("keys", "rotate", stored, "--reason", "Once more.", "--wait")
    stopping.join()
    assert ran.code == 1 and "headers: stopped" in ran.err


def test_every_version(stored: str, logged_in: LogIn, node_world: World) -> None:
    olle = logged_in("olle")
    node_world.deposit("cli-other", {"a": b"1"})
    begun = olle.good("keys", "rotate", "--all", "--reason", "The year is over.", "--json").json["rotation_ids"]
    assert len(begun) >= 2
    assert "is being rotated already" in olle.good("keys", "rotate", "--all", "--reason", "Again.").err
    with working(node_world):
        for ident in begun:
            while olle.good("keys", "rotation", "show", ident, "--json").json["state"]["phase"] != "done":
                time.sleep(0.1)


def test_wrong_words(stored: str, logged_in: LogIn) -> None:
    olle = logged_in("olle")
    olle.bad(64, "keys", "rotate", "--reason", "x")
    olle.bad(64, "keys", "rotate", stored, "--all", "--reason", "x")
    olle.bad(64, "keys", "rotate", "--all", "--version", "1", "--reason", "x")
    olle.bad(64, "keys", "rotate", stored)
    olle.bad(66, "keys", "rotate", "no-such-set", "--reason", "x")
    olle.bad(66, "keys", "rotate", stored, "--version", "7", "--reason", "x")
    logged_in("rikard").bad(77, "keys", "rotate", stored, "--reason", "x")
