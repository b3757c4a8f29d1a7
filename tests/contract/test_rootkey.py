"""Both keyring backends against their contract, and what only a token can show. The token is SoftHSM's, really run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.peers.softhsm import MODULE, PIN, SoftHsm
from valv import config as configuration
from valv.assemble import keyd
from valv.assemble.backend import backend
from valv.config import Keys
from valv.errors import ConfigFault, FormatFault, KeyFault, MissingFault, StorageFault, UnreachableFault
from valv.keys import pkcs11 as tokens
from valv.keys.file import Cost, FileKeyring
from valv.keys.pkcs11 import Pkcs11Keyring
from valv.keys.store import Store
from valv.ports.contract.keys import CONTEXT, RootKeyContract

CHEAP = Cost(passes=1, lanes=1, memory=64)


class TestFile(RootKeyContract):
    @pytest.fixture
    def keyring(self) -> FileKeyring:
        return FileKeyring(Keys(), CHEAP)

    @pytest.fixture
    def other(self) -> FileKeyring:
        return FileKeyring(Keys(), CHEAP)


class TestSoftHsm(RootKeyContract):
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
            "import sys; from pathlib import Path; from valv.config import Keys; "
            "from valv.keys.pkcs11 import Pkcs11Keyring; "
            "settings = Keys(module=sys.argv[1], token=sys.argv[2], key=sys.argv[3]); "
            "root = Pkcs11Keyring(settings).open(Path(sys.argv[4]), sys.stdin.buffer.read()); "
            "assert root.unwrap(bytes.fromhex(sys.argv[5]), bytes.fromhex(sys.argv[6])) == b'secret'"
        )
        words = [settings.module, settings.token, settings.key, str(folder), wrapped.hex(), CONTEXT.hex()]
        subprocess.run([sys.executable, "-c", script, *words], input=PIN.encode(), check=True, timeout=60)

    def test_the_key_cannot_leave(self, softhsm: SoftHsm, folder: Path) -> None:
        import pkcs11

        root = Pkcs11Keyring(softhsm.settings()).create(folder, PIN.encode())
        with pytest.raises(pkcs11.AttributeSensitive):
            root.key[pkcs11.Attribute.VALUE]
        for name in ("EXTRACTABLE", "WRAP", "UNWRAP", "MODIFIABLE"):
            assert root.key[pkcs11.Attribute[name]] is False
        wrapping = root.session.generate_key(pkcs11.KeyType.AES, 256, store=False)
        with pytest.raises(pkcs11.PKCS11Error):
            wrapping.wrap_key(root.key, mechanism=pkcs11.Mechanism.AES_KEY_WRAP)

    def test_a_key_that_could_leave_is_refused(self, softhsm: SoftHsm, folder: Path) -> None:
        import pkcs11

        settings = softhsm.settings()
        keyring = Pkcs11Keyring(settings)
        keyring.create(folder, PIN.encode()).wipe()
        with pkcs11.lib(settings.module).get_token(token_label="one").open(rw=True, user_pin=PIN) as session:
            session.get_key(label=settings.key).destroy()
            template = {pkcs11.Attribute.EXTRACTABLE: True, pkcs11.Attribute.SENSITIVE: False}
            session.generate_key(pkcs11.KeyType.AES, 256, label=settings.key, store=True, template=template)
        with pytest.raises(KeyFault, match="can leave its token"):
            keyring.open(folder, PIN.encode())

    def test_another_key_under_the_same_label_is_found(
        self, softhsm: SoftHsm, folder: Path, other_folder: Path
    ) -> None:
        settings = softhsm.settings()
        keyring = Pkcs11Keyring(settings)
        keyring.create(folder, PIN.encode()).wipe()
        keyring.discard(folder, PIN.encode())
        with pytest.raises(MissingFault, match="holds no key"):
            keyring.open(folder, PIN.encode())
        keyring.create(other_folder, PIN.encode()).wipe()
        with pytest.raises(KeyFault, match="is not the one that"):
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
        config = node(tmp_path, softhsm.settings())

        def full(*_: object) -> None:
            raise StorageFault("the disk is full")

        with monkeypatch.context() as broken:
            broken.setattr(Store, "create", full)
            with pytest.raises(StorageFault):
                keyd.create(config, PIN.encode())
        assert not list(tmp_path.glob("*keys*"))
        keyd.create(config, PIN.encode())
        assert (tmp_path / "keys" / "root.json").exists()


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
