"""Both keyring backends against their contract, and what only a token can show. The token is SoftHSM's, really run."""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.softhsm import MODULE, PIN, SoftHsm
from valv import config as configuration
from valv.assemble import keyd
from valv.assemble.backend import backend
from valv.config import Keys
from valv.errors import (
    ConfigFault,
    ConflictFault,
    FormatFault,
    KeyFault,
    MissingFault,
    SealedFault,
    StorageFault,
    UnreachableFault,
)
from valv.keys import disk
from valv.keys import pkcs11 as tokens
from valv.keys.file import Cost, FileKeyring
from valv.keys.pkcs11 import Pkcs11Keyring
from valv.keys.store import Store
from valv.ports.contract.keys import CONTEXT, RootKeyContract, works

CHEAP = Cost(passes=1, lanes=1, memory=64)


@contextlib.contextmanager
def logged_in(settings: Keys) -> Iterator[Any]:
    """A session of somebody with the token's own tool, while no root key of this process is open."""
    import pkcs11

    with pkcs11.lib(settings.module).get_token(token_label=settings.token).open(rw=True, user_pin=PIN) as session:
        yield session


def held(settings: Keys) -> int:
    """How many keys of its label the token holds."""
    with logged_in(settings) as session:
        return len(tokens._found(session, settings.key))


def full(*_: object) -> None:
    raise StorageFault("the disk is full")


def in_a_process(settings: Keys, script: str) -> int:
    """Run `script` in another process, with `keyring`, `pin` and `Path` at hand. Returns its exit code."""
    start = (
        "import os, sys; from pathlib import Path; from valv.config import Keys; from valv.keys import disk; "
        "from valv.keys.pkcs11 import Pkcs11Keyring; pin = sys.stdin.buffer.read(); "
        "keyring = Pkcs11Keyring(Keys(module=sys.argv[1], token=sys.argv[2], key=sys.argv[3])); "
    )
    words = [sys.executable, "-c", start + script, settings.module, settings.token, settings.key]
    return subprocess.run(words, input=PIN.encode(), check=False, timeout=60).returncode


class TestFile(RootKeyContract):
    @pytest.fixture
    def keyring(self) -> FileKeyring:
        return FileKeyring(Keys(), CHEAP)

    @pytest.fixture
    def other(self) -> FileKeyring:
        return FileKeyring(Keys(), CHEAP)


class TestSoftHsm(RootKeyContract):
    elsewhere = True

    @pytest.fixture
    def passphrase(self) -> bytes:
        return PIN.encode()

    @pytest.fixture
    def keyring(self, softhsm: SoftHsm) -> Pkcs11Keyring:
        return Pkcs11Keyring(softhsm.settings())

    @pytest.fixture(params=["one", "two"])
    def other(self, softhsm: SoftHsm, request: pytest.FixtureRequest) -> Pkcs11Keyring:
        """Another key of the same token, and a key of another one."""
        return Pkcs11Keyring(softhsm.settings(request.param))

    @pytest.fixture(autouse=True)
    def nobody_stays_logged_in(self) -> object:
        """Forget roots that a test left open: a login counts for the whole process."""
        yield
        for login in tokens._LOGINS.values():
            login.session.close()
        tokens._LOGINS.clear()

    def test_a_new_process_opens_it(self, softhsm: SoftHsm, folder: Path) -> None:
        settings = softhsm.settings()
        root = Pkcs11Keyring(settings).create(folder, PIN.encode())
        wrapped = root.wrap(b"secret", CONTEXT)
        script = (
            f"root = keyring.open(Path({str(folder)!r}), pin); "
            f"assert root.unwrap(bytes.fromhex({wrapped.hex()!r}), {CONTEXT!r}) == b'secret'"
        )
        assert in_a_process(settings, script) == 0

    def test_the_key_cannot_leave(self, softhsm: SoftHsm, folder: Path, next_folder: Path) -> None:
        import pkcs11

        first = Pkcs11Keyring(softhsm.settings()).create(folder, PIN.encode())
        for root in (first, first.renew(next_folder)):
            with pytest.raises(pkcs11.AttributeSensitive):
                root.key[pkcs11.Attribute.VALUE]
            for name in ("EXTRACTABLE", "WRAP", "UNWRAP", "MODIFIABLE", "SIGN", "VERIFY", "DERIVE"):
                assert root.key[pkcs11.Attribute[name]] is False
            for name in ("PRIVATE", "SENSITIVE", "ENCRYPT", "DECRYPT"):
                assert root.key[pkcs11.Attribute[name]] is True
            wrapping = root.session.generate_key(pkcs11.KeyType.AES, 256, store=False)
            with pytest.raises(pkcs11.PKCS11Error):
                wrapping.wrap_key(root.key, mechanism=pkcs11.Mechanism.AES_KEY_WRAP)

    def test_a_key_that_could_leave_is_refused(self, softhsm: SoftHsm, folder: Path) -> None:
        import pkcs11

        settings = softhsm.settings()
        keyring = Pkcs11Keyring(settings)
        root = keyring.create(folder, PIN.encode())
        root.wipe()
        with logged_in(settings) as session:
            session.get_key(label=settings.key).destroy()
            template = {pkcs11.Attribute.EXTRACTABLE: True, pkcs11.Attribute.SENSITIVE: False}
            session.generate_key(pkcs11.KeyType.AES, 256, id=root.id, label=settings.key, store=True, template=template)
        with pytest.raises(KeyFault, match="can leave its token"):
            keyring.open(folder, PIN.encode())

    def test_another_key_in_its_place_is_found(self, softhsm: SoftHsm, folder: Path) -> None:
        """Of the same label and CKA_ID, made by the token."""
        settings = softhsm.settings()
        keyring = Pkcs11Keyring(settings)
        root = keyring.create(folder, PIN.encode())
        root.wipe()
        with logged_in(settings) as session:
            tokens._generate(session, settings.key, root.id)
        with pytest.raises(KeyFault, match="holds 2 keys"):
            keyring.open(folder, PIN.encode())
        with logged_in(settings) as session:
            for key in tokens._found(session, settings.key):
                key.destroy()
        with pytest.raises(MissingFault, match="holds no key"):
            keyring.open(folder, PIN.encode())
        with logged_in(settings) as session:
            tokens._generate(session, settings.key, root.id)
        with pytest.raises(KeyFault, match="is not the one that"):
            keyring.open(folder, PIN.encode())
        assert held(settings) == 1

    def test_a_root_key_that_followed_opens_in_a_new_process(
        self, softhsm: SoftHsm, folder: Path, next_folder: Path
    ) -> None:
        settings = softhsm.settings()
        root = Pkcs11Keyring(settings).create(folder, PIN.encode())
        following = root.renew(next_folder, PIN.encode())
        root.discard(folder)
        wrapped = following.wrap(b"secret", CONTEXT)
        script = (
            f"opened = keyring.open(Path({str(next_folder)!r}), pin); "
            f"assert opened.unwrap(bytes.fromhex({wrapped.hex()!r}), {CONTEXT!r}) == b'secret'; "
            f"opened.discard(Path({str(next_folder)!r}))"
        )
        assert in_a_process(settings, script) == 0
        with pytest.raises(UnreachableFault):
            following.unwrap(wrapped, CONTEXT)
        following.discard(next_folder)
        assert held(settings) == 0

    def test_two_nodes_of_one_label(
        self, softhsm: SoftHsm, folder: Path, other_folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each finds its own key and destroys its own. That there are more is told."""
        settings = softhsm.settings()
        keyring = Pkcs11Keyring(settings)
        mine, theirs = keyring.create(folder, PIN.encode()), keyring.create(other_folder, PIN.encode())
        wrapped = theirs.wrap(b"secret", CONTEXT)
        mine.wipe()
        theirs.wipe()
        with caplog.at_level(logging.WARNING, "valv.keyd"):
            keyring.open(folder, PIN.encode()).discard(folder)
        assert "'one' holds 1 more under the label" in caplog.text
        assert mine.id.hex() in caplog.text and theirs.id.hex() not in caplog.text
        caplog.clear()
        with caplog.at_level(logging.WARNING, "valv.keyd"):
            assert keyring.open(other_folder, PIN.encode()).unwrap(wrapped, CONTEXT) == b"secret"
        assert caplog.text == ""

    @pytest.mark.parametrize("following", [False, True])
    @pytest.mark.parametrize("lost", [False, True])
    def test_a_crash_while_the_key_is_made(
        self,
        softhsm: SoftHsm,
        folder: Path,
        next_folder: Path,
        following: bool,
        lost: bool,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The folder names the key that it left, so it can be destroyed. `lost`: the folder was removed before."""
        settings = softhsm.settings()
        keyring = Pkcs11Keyring(settings)
        keyring.create(folder, PIN.encode()).wipe()
        killed = "from valv.keys import pkcs11; pkcs11.Pkcs11Root.wrap = lambda *_: os._exit(9); "
        script = f"keyring.open(Path({str(folder)!r}), pin).renew" if following else "keyring.create"
        assert in_a_process(settings, f"{killed}{script}(Path({str(next_folder)!r}), pin)") == 9
        assert held(settings) == 2
        with pytest.raises(MissingFault, match="no key"):
            keyring.open(next_folder, PIN.encode())
        with pytest.raises(KeyFault, match="the PIN is wrong"):
            keyring.discard(next_folder, b"another PIN")
        with pytest.raises(ConflictFault):
            keyring.create(next_folder, PIN.encode())
        if lost:
            (next_folder / "root.json").unlink()
        keyring.discard(next_folder, PIN.encode())
        assert list(next_folder.iterdir()) == []
        assert held(settings) == 1 + lost
        with caplog.at_level(logging.WARNING, "valv.keyd"):
            root = keyring.open(folder, PIN.encode())
        assert ("'one' holds 1 more under the label" in caplog.text) == lost
        assert works(root.renew(next_folder))

    def test_a_root_key_that_cannot_follow_leaves_none(
        self, softhsm: SoftHsm, folder: Path, next_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = softhsm.settings()
        root = Pkcs11Keyring(settings).create(folder, PIN.encode())
        for owner, name in ((disk, "write"), (tokens.Pkcs11Root, "wrap")):
            with monkeypatch.context() as broken:
                broken.setattr(owner, name, full)
                with pytest.raises(StorageFault):
                    root.renew(next_folder)
            assert list(next_folder.iterdir()) == []
        assert works(root)
        root.wipe()
        assert tokens._LOGINS == {}
        assert held(settings) == 1

    def test_a_crash_while_discarding_is_made_good_by_repeating(
        self, softhsm: SoftHsm, folder: Path, next_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The key in the token is gone, the file that names it is not."""
        settings = softhsm.settings()
        keyring = Pkcs11Keyring(settings)
        root = keyring.create(folder, PIN.encode())
        following = root.renew(next_folder)
        with monkeypatch.context() as broken:
            broken.setattr(disk, "wipe", full)
            with pytest.raises(StorageFault):
                root.discard(folder)
        with pytest.raises(MissingFault, match="a discarded root key is gone"):
            keyring.open(folder, PIN.encode())
        root.discard(folder)
        assert list(folder.iterdir()) == []
        following.wipe()
        assert held(settings) == 1

    def test_a_root_key_is_not_discarded_with_the_folder_of_another(
        self, softhsm: SoftHsm, folder: Path, next_folder: Path
    ) -> None:
        keyring = Pkcs11Keyring(softhsm.settings())
        root = keyring.create(folder, PIN.encode())
        following = root.renew(next_folder)
        for each, wrong in ((root, next_folder), (following, folder)):
            with pytest.raises(ConflictFault, match="is of another root key"):
                each.discard(wrong)
        assert works(root) and works(following)
        keyring.open(folder, PIN.encode()).wipe()
        keyring.open(next_folder, PIN.encode()).wipe()

    def test_discarding_what_was_wiped_needs_somebody_logged_in(
        self, softhsm: SoftHsm, folder: Path, next_folder: Path
    ) -> None:
        settings = softhsm.settings()
        root = Pkcs11Keyring(settings).create(folder, PIN.encode())
        following = root.renew(next_folder)
        root.wipe()
        root.discard(folder)
        following.wipe()
        root.discard(folder)
        with pytest.raises(SealedFault):
            following.discard(next_folder)
        assert held(settings) == 1
        Pkcs11Keyring(settings).open(next_folder, PIN.encode()).discard(next_folder)
        assert held(settings) == 0

    @pytest.mark.parametrize(
        ("field", "value"), [("format", "valv pkcs11 root key 1"), ("id", ""), ("id", "AAAA"), ("extra", 1)]
    )
    def test_a_file_of_another_form_is_refused(self, softhsm: SoftHsm, folder: Path, field: str, value: object) -> None:
        keyring = Pkcs11Keyring(softhsm.settings())
        keyring.create(folder, PIN.encode()).wipe()
        file = folder / "root.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
        with pytest.raises(FormatFault):
            keyring.open(folder, PIN.encode())

    def test_the_token_counts_wrong_pins_and_the_error_says_so(self, softhsm: SoftHsm, folder: Path) -> None:
        keyring = Pkcs11Keyring(softhsm.settings())
        keyring.create(folder, PIN.encode()).wipe()
        with pytest.raises(KeyFault, match="locks itself after too many"):
            keyring.open(folder, b"another PIN")
        root = keyring.open(folder, PIN.encode())
        with pytest.raises(KeyFault, match="counts no failed attempt"):
            keyring.open(folder, b"another PIN")
        root.wipe()

    def test_settings_that_name_nothing(self, softhsm: SoftHsm, folder: Path) -> None:
        for settings, match in (
            (Keys(module="/nowhere.so", token="one", key="k"), "keys.module: /nowhere.so cannot be used"),
            (Keys(module="/etc/passwd", token="one", key="k"), "keys.module: /etc/passwd cannot be used"),
            (Keys(module=str(MODULE), token="three", key="k"), "0 tokens are labelled 'three'"),
        ):
            with pytest.raises(ConfigFault, match=match):
                Pkcs11Keyring(settings).create(folder, PIN.encode())

    def test_a_folder_of_the_other_backend(self, softhsm: SoftHsm, folder: Path, other_folder: Path) -> None:
        token, file = Pkcs11Keyring(softhsm.settings()), FileKeyring(Keys(), CHEAP)
        token.create(folder, PIN.encode())
        file.create(other_folder, PIN.encode())
        for keyring, wrong in ((token, other_folder), (file, folder)):
            with pytest.raises(FormatFault):
                keyring.open(wrong, PIN.encode())

    def test_a_token_that_fails_is_told_apart_from_altered_bytes(self, softhsm: SoftHsm, folder: Path) -> None:
        """Somebody destroys the root key in the token while it is in use."""
        settings = softhsm.settings()
        root = Pkcs11Keyring(settings).create(folder, PIN.encode())
        wrapped = root.wrap(b"secret", CONTEXT)
        root.key.destroy()
        with pytest.raises(UnreachableFault, match="the token 'one' failed"):
            root.unwrap(wrapped, CONTEXT)
        with pytest.raises(UnreachableFault, match="the token 'one' failed"):
            root.wrap(b"secret", CONTEXT)

    def test_a_node_that_cannot_be_made_leaves_no_key(
        self, softhsm: SoftHsm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = softhsm.settings()
        config = node(tmp_path, settings)
        with monkeypatch.context() as broken:
            broken.setattr(Store, "create", full)
            with pytest.raises(StorageFault):
                keyd.create(config, PIN.encode())
        assert not list(tmp_path.glob("*keys*"))
        assert held(settings) == 0
        keyd.create(config, PIN.encode())
        assert held(settings) == 1


def node(home: Path, keys: Keys) -> configuration.Config:
    """A configuration whose keys are in a token."""
    (home / "valv.toml").write_text(
        '[node]\nname = "valv.example"\ncountry = "SE"\nunit = "test"\n[keys]\nbackend = "pkcs11"\n'
        f'module = "{keys.module}"\ntoken = "{keys.token}"\nkey = "{keys.key}"\n'
    )
    return configuration.load(home)


@pytest.mark.parametrize(
    ("flag", "told"),
    [("USER_PIN_LOCKED", "is locked"), ("USER_PIN_FINAL_TRY", "one more wrong PIN locks the token")],
)
def test_the_last_attempt_is_never_spent(flag: str, told: str) -> None:
    """SoftHSM never says so; a token that does is described here. Asking it would be an error: it cannot be opened."""
    pkcs11 = pytest.importorskip("pkcs11")

    class Told:
        flags = pkcs11.TokenFlag[flag]

    keyring = Pkcs11Keyring(Keys(module="m", token="t", key="k"))
    with pytest.raises(KeyFault, match=told):
        keyring._log_in(Told(), PIN)  # type: ignore[arg-type]


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(ConfigFault, match=r"python-pkcs11.*pip install 'valv\[pkcs11\]'"):
        Pkcs11Keyring(Keys()).create(tmp_path, b"a PIN that is long")


def test_backends_are_found_by_their_names() -> None:
    assert backend("keys", "file") is FileKeyring
    assert backend("keys", "pkcs11") is Pkcs11Keyring
    with pytest.raises(ConfigFault, match="there is no 'stone'"):
        backend("keys", "stone")


def test_the_configuration_says_what_is_missing() -> None:
    raw = {"node": {"name": "n", "country": "SE", "unit": "u"}, "keys": {"backend": "pkcs11", "binds": ["/a:b"]}}
    _, faults = configuration.parse(raw, "/home")
    for key in ("module", "token", "key"):
        assert any(fault.startswith(f"keys.{key}:") for fault in faults)
    assert any(fault.startswith("keys.binds:") for fault in faults)
