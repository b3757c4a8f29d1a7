"""What the command line does by itself: words, folders, profiles, operator commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Calls, Valv
from valv.assemble.create import create_node
from valv.cli import folder, profile, text
from valv.errors import InputFault

COMMAND = [sys.executable, "-c", "import valv.assemble; valv.assemble.main()"]


@given(st.integers(0, 1 << 58))
def test_sizes_are_short_and_read_back(count: int) -> None:
    shown = text.size(count)
    assert len(shown) <= 14
    again = text.read_size(shown.replace("iB", "").replace(" B", "").replace(" ", ""))
    assert abs(again - count) <= max(1, count // 15)


@pytest.mark.parametrize(
    ("words", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("2D", 172800), (" 1 m ", 60)]
)
def test_durations(words: str, seconds: int) -> None:
    assert text.read_duration(words) == seconds


@pytest.mark.parametrize("words", ["", "m", "ten", "1w", "-1", "1e9", "1 2", "½"])
def test_wrong_sizes_and_durations(words: str) -> None:
    with pytest.raises(InputFault):
        text.read_duration(words)
    with pytest.raises(InputFault):
        text.read_size(words)


@given(st.text())
def test_shown_text_holds_no_control_character(words: str) -> None:
    shown = text.plain(words)
    assert all(letter.isprintable() or letter.isspace() for letter in shown)
    assert "\x1b" not in shown and "\n" not in shown and len(shown) == len(words)


def test_times_name_their_zone() -> None:
    assert text.moment("2026-02-03T04:05:06.000007Z").split()[-1]
    assert text.moment(None) == "–"
    assert text.moment("nonsense") == "nonsense"


def test_checksum_files(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"1")
    (tmp_path / "line\nbreak\\").write_bytes(b"2")
    made = subprocess.run(["sha256sum", "-b", "a b", "./line\nbreak\\"], cwd=tmp_path, capture_output=True, check=True)
    sums = tmp_path / "sums"
    sums.write_bytes(b"# a remark\n\n" + made.stdout)
    assert set(folder.read_checksums(sums)) == {"a b", "line\nbreak\\"}
    for wrong in ("abc  x", f"{'g' * 64}  x", f"{'0' * 64}", f"{'0' * 64}  "):
        sums.write_text(wrong)
        with pytest.raises(InputFault, match="line 1"):
            folder.read_checksums(sums)


def test_a_link_put_in_place_meanwhile_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    item = folder.walk(tmp_path).items[0]
    (tmp_path / "x").unlink()
    (tmp_path / "x").symlink_to("/etc/passwd")
    with pytest.raises(InputFault):
        folder.digest(item, lambda _: None)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("https://valv.example.org/", "https://valv.example.org"),
        ("valv.example.org", "https://valv.example.org"),
        ("http://127.0.0.1:8600", "http://127.0.0.1:8600"),
        ("http://[::1]:8600", "http://[::1]:8600"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert profile.address(given) == address


@pytest.mark.parametrize(
    "given",
    ["http://valv.example.org", "ftp://x", "https://", "https://a:b@x", "https://x/?q", "http://[", "https://x:y"],
)
def test_addresses_that_are_not_used(given: str) -> None:
    with pytest.raises(InputFault):
        profile.address(given)


def test_operator_commands_call_the_assembly(valv: Valv, calls: Calls, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a passphrase\n")
    assert valv.run("up", tmp_path).code == 0
    assert valv.run("demo", tmp_path, "--once").code == 7
    assert valv.run("doctor", tmp_path).code == 0
    valv.good("keys", "unseal", tmp_path, "--passphrase-file", secret)
    named = ("--name", "n", "--country", "se", "--unit", "u")
    valv.good("node", "create", tmp_path, *named, "--passphrase-file", secret)
    valv.good("node", "create", tmp_path, *named)
    token = ("--pkcs11-module", "/lib/token.so", "--pkcs11-token", "t", "--pkcs11-bind", "/a:/b")
    valv.bad(64, "node", "create", tmp_path, *named, *token)
    valv.good("node", "create", tmp_path, *named, *token, "--passphrase-file", secret)
    cloud = ("--barbican-cloud", "c", "--backup", tmp_path / "keys")
    valv.bad(64, "node", "create", tmp_path, *named, *cloud)
    valv.good("node", "create", tmp_path, *named, *cloud, "--barbican-clouds-file", "/c.yaml")
    person = ("account", "create", tmp_path, "ada", "--password-file", secret, "--role")
    assert "otpauth://" in valv.good(*person, "researcher", "--totp").out
    valv.bad(64, *person, "king")
    made = [name for name, _, _ in calls.made]
    assert made == ["up", "demo", "doctor", "unseal", *["create_node"] * 4, "create_account"]
    assert calls.made[3][1] == (tmp_path, b"a passphrase")
    assert calls.made[4][2]["passphrase"] == b"a passphrase" and calls.made[4][2]["country"] == "SE"
    assert calls.made[5][2]["passphrase"] == b"" and calls.made[5][2]["keys"] == {}
    wanted = {"backend": "pkcs11", "module": "/lib/token.so", "token": "t", "key": "valv", "binds": ["/a:/b"]}
    assert calls.made[6][2]["keys"] == wanted
    wanted = {"backend": "barbican", "cloud": "c", "clouds_file": "/c.yaml", "key": "valv"}
    assert calls.made[7][2]["keys"] == wanted | {"backup": [str(tmp_path / "keys")]}
    assert calls.made[1][2] == {"once": True, "port": 8600}


def _valv(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )


def test_a_node_is_checked_and_gets_an_account(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("correct horse battery\n")
    node = tmp_path / "node"
    create_node(node, name="valv.example", country="SE", unit="genetics", demo=True)
    checked = _valv("config", "check", node, "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["unit"] == "genetics"
    account = _valv("account", "create", node, "ada", "--role", "researcher", "--password-file", secret)
    assert account.returncode == 0, account.stderr
    again = _valv("account", "create", node, "ada", "--role", "researcher", "--password-file", secret)
    assert again.returncode == 65 and "taken" in again.stderr
    assert _valv("node", "create", node, "--name", "n", "--country", "SE", "--unit", "g").returncode == 75
    (node / "valv.toml").write_text('[node]\nname = "a b"\ncountry = "XX"\nunit = ""\n[nonsense]\n')
    broken = _valv("config", "check", node)
    assert broken.returncode == 78 and "nonsense" in broken.stderr
    assert _valv("keys", "unseal", tmp_path / "absent", "--passphrase-file", secret).returncode == 78


def test_a_reader_that_goes_away_is_no_fault(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "config", "check", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        assert ran.stdout is not None and ran.stderr is not None
        ran.stdout.close()
        assert b"Traceback" not in ran.stderr.read()


def test_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = ["crypt", "info", str(tmp_path / "pipe")]
    with (
        subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ran,
        (tmp_path / "pipe").open("wb"),  # opens when the command has opened its end
    ):
        ran.send_signal(signal.SIGINT)
        _, shown = ran.communicate(timeout=60)
    assert ran.returncode == 130 and shown == b"\nStopped.\n"
