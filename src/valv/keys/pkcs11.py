"""The root key in a PKCS #11 token, such as a hardware security module: the keyring backend `pkcs11`.

The root key is an AES-256 key that the token made and that cannot leave it. Everything that `keyd` keeps is wrapped
there with AES-GCM (CKM_AES_GCM, PKCS #11 v2.40 section 2.12; NIST SP 800-38D), the context as associated data. Nonces
are 96 random bits, which SP 800-38D section 8.3 allows for 2^32 messages under one key; a node wraps a handful for each
key pair that it makes or changes. The passphrase of the node is the PIN of the token's user.

Two things of PKCS #11 shape this module. A login counts for the whole process and not for one session, so roots in one
token share theirs, and it ends with the last of them. And the library may be used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from valv.config import Keys
from valv.errors import (
    ConfigFault,
    ConflictFault,
    FormatFault,
    KeyFault,
    MissingFault,
    SealedFault,
    UnreachableFault,
)
from valv.keys import disk

if TYPE_CHECKING:
    from pkcs11 import Session, Token

FORMAT: Final = "valv pkcs11 root key 1"
FILE: Final = "root.json"
NONCE: Final = 12
TAG: Final = 16
KNOWN: Final = b"valv root key"

_CALLS: Final = threading.RLock()
"""Held during every call into the library."""


class RootFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies in the key folder in place of a root key (JSON, bytes in base64). `check` is a known text, wrapped:
    only the root key that the folder was made with unwraps it."""

    format: str
    check: bytes


@dataclass(slots=True)
class Login:
    """This process's login at one token. The salted hash is there to check a PIN without another login: PKCS #11
    refuses one while logged in, and logging out would close the root key for all."""

    session: Session
    salt: bytes
    hashed: bytes
    roots: int = 0


_LOGINS: Final[dict[tuple[str, bytes], Login]] = {}
"""(module, serial number of the token) → the login there."""


class Pkcs11Keyring:
    """Implements `valv.ports.keys.Keyring` for the token and key that `settings` name."""

    def __init__(self, settings: Keys) -> None:
        self._settings = settings

    def create(self, folder: Path, passphrase: bytes) -> Pkcs11Root:
        """Make the root key in the token, which was initialised before and whose user PIN is `passphrase`.

        Raises `ConflictFault` where it holds a key of that label, `KeyFault` for a wrong PIN, `ConfigFault` where the
        settings name no usable token, `UnreachableFault` where the token fails.
        """
        pkcs11, name = _library(), self._settings.key
        with _token_faults(self._settings):
            root = self._enter(passphrase, writing=True)
            try:
                if _found(root.session, name):
                    raise ConflictFault(
                        f"the token {self._settings.token!r} holds a key {name!r} already",
                        "keys are never overwritten; choose another keys.key",
                    )
                root.key = _generate(pkcs11, root.session, name)
                try:
                    content = RootFile(FORMAT, root.wrap(KNOWN, _bound(name)))
                    disk.write(folder / FILE, msgspec.json.encode(content))
                except BaseException:
                    root.key.destroy()
                    raise
            except BaseException:
                root.wipe()
                raise
        return root

    def open(self, folder: Path, passphrase: bytes) -> Pkcs11Root:
        """Find the root key. Raises `KeyFault` for a wrong PIN and for a key that the folder was not made with or that
        could leave its token, `MissingFault` where there is none, else as `create`."""
        return self._open(folder, passphrase)

    def discard(self, folder: Path, passphrase: bytes) -> None:
        """Take the root key of a node that could not be made out of the token again."""
        root = self._open(folder, passphrase, writing=True)
        try:
            with _token_faults(self._settings):
                root.key.destroy()
        finally:
            root.wipe()

    def _open(self, folder: Path, passphrase: bytes, *, writing: bool = False) -> Pkcs11Root:
        file, name = _read(folder / FILE), self._settings.key
        with _token_faults(self._settings):
            root = self._enter(passphrase, writing=writing)
            try:
                found = _found(root.session, name)
                if not found:
                    raise MissingFault(
                        f"the token {self._settings.token!r} holds no key {name!r}",
                        "set keys.key, or restore the token from its own backup",
                    )
                if len(found) > 1:
                    raise KeyFault(f"the token holds {len(found)} keys {name!r}", "leave only the node's own")
                root.key = _guarded(_library(), found[0], name)
                try:
                    known = root.unwrap(file.check, _bound(name))
                except KeyFault:
                    known = b""
                if known != KNOWN:
                    raise KeyFault(
                        f"the key {name!r} in the token {self._settings.token!r} is not the one that {folder} was "
                        "made with, or the file there was altered",
                        "check keys.token and keys.key, or restore the key folder from the key backup",
                    )
            except BaseException:
                root.wipe()
                raise
        return root

    def _enter(self, passphrase: bytes, *, writing: bool = False) -> Pkcs11Root:
        """A root that is logged in and has no key yet."""
        settings, token = self._settings, self._token()
        place = settings.module, bytes(token.serial)
        try:
            pin = passphrase.decode()
        except UnicodeDecodeError:
            pin = ""
        if not pin:
            raise KeyFault("a PIN is text, and not empty", "type the PIN of the token's user")
        login = _LOGINS.get(place)
        if login is None:
            login = _LOGINS[place] = self._log_in(token, pin)
        elif not hmac.compare_digest(login.hashed, _hashed(pin, login.salt)):
            raise KeyFault("the PIN is wrong", "type it again; the token was not asked, so it counts no failed attempt")
        login.roots += 1
        try:
            return Pkcs11Root(token.open(rw=writing), place, settings)
        except BaseException:
            _leave(place)
            raise

    def _token(self) -> Token:
        """The one that the settings name. Raises `ConfigFault` where there is none, or it lacks AES-GCM."""
        pkcs11, settings = _library(), self._settings
        try:
            library = pkcs11.lib(settings.module)
        except pkcs11.PKCS11Error as error:
            # Only a module that cannot be loaded gives a text; it holds the loader's reason.
            raise ConfigFault(
                f"keys.module: {settings.module} cannot be used: {error or type(error).__name__}",
                "name the PKCS #11 library that came with the token, and in keys.binds the files that it needs",
            ) from None
        found: list[Token] = list(library.get_tokens(token_label=settings.token))
        if len(found) != 1:
            raise ConfigFault(
                f"keys.token: {len(found)} tokens are labelled {settings.token!r}",
                "initialise one with the token's own tool; its files must be open to the key holder's user and stand "
                "in keys.binds",
            )
        if pkcs11.Mechanism.AES_GCM not in found[0].slot.get_mechanisms():
            raise ConfigFault(f"keys.token: {settings.token!r} does not offer CKM_AES_GCM", "use a token that does")
        return found[0]

    def _log_in(self, token: Token, pin: str) -> Login:
        pkcs11 = _library()
        flags = pkcs11.TokenFlag
        if token.flags & flags.USER_PIN_LOCKED:
            raise KeyFault("the token's PIN is locked", "its security officer unlocks it with the token's own tool")
        if token.flags & flags.USER_PIN_FINAL_TRY:
            raise KeyFault(
                "one more wrong PIN locks the token, so this one was not tried",
                "log in once with the token's own tool, which starts the count anew",
            )
        try:
            session = token.open(user_pin=pin)
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
            raise KeyFault(f"the PIN is wrong{self._attempts()}", "type the PIN of the token's user again") from None
        except pkcs11.PinLocked:
            raise KeyFault(
                "the token's PIN is locked", "its security officer unlocks it with the token's own tool"
            ) from None
        except (pkcs11.UserPinNotInitialized, pkcs11.PinExpired):
            raise KeyFault("the token's user has no valid PIN", "set one with the token's own tool") from None
        salt = secrets.token_bytes(16)
        return Login(session, salt, _hashed(pin, salt))

    def _attempts(self) -> str:
        """What the token tells about attempts that are left."""
        flags, told = _library().TokenFlag, self._token().flags
        if told & flags.USER_PIN_LOCKED:
            return ", and the token has locked it: its security officer must unlock it"
        if told & flags.USER_PIN_FINAL_TRY:
            return "; one more wrong PIN locks the token"
        if told & flags.USER_PIN_COUNT_LOW:
            return "; the token counts failed attempts and locks itself after too many"
        return ""

    def __repr__(self) -> str:
        return "Pkcs11Keyring()"


class Pkcs11Root:
    """A root key in a token, logged in. Implements `valv.ports.keys.OpenRoot`; safe for several threads."""

    key: Any
    """The key's handle."""

    def __init__(self, session: Session, place: tuple[str, bytes], settings: Keys) -> None:
        self.session = session
        self._place = place
        self._settings = settings
        self._wiped = False

    @property
    def locked(self) -> bool:
        """A root key in hardware is never in this process's memory. A token in software answers for its own."""
        return True

    def wrap(self, secret: bytes, context: bytes) -> bytes:
        """nonce (12) + ciphertext + tag (16); `context` is bound, not stored."""
        nonce = secrets.token_bytes(NONCE)
        with self._working():
            return nonce + self._seal(nonce, secret, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if len(wrapped) < NONCE + TAG:
            raise _altered()
        pkcs11 = _library()
        with self._working():
            try:
                return bytes(
                    self.key.decrypt(
                        wrapped[NONCE:],
                        mechanism=pkcs11.Mechanism.AES_GCM,
                        mechanism_param=_parameters(wrapped[:NONCE], context),
                    )
                )
            except pkcs11.PKCS11Error:
                # Tokens do not agree on the error for a wrong tag. Where the key still works, it was that.
                self._seal(secrets.token_bytes(NONCE), KNOWN, b"")
                raise _altered() from None

    def wipe(self) -> None:
        """Close the session, and log out with the last. Repeating is no error."""
        with _CALLS:
            if not self._wiped:
                self._wiped = True
                with contextlib.suppress(_library().PKCS11Error):
                    self.session.close()
                _leave(self._place)

    def _seal(self, nonce: bytes, secret: bytes, context: bytes) -> bytes:
        mechanism = _library().Mechanism.AES_GCM
        return bytes(self.key.encrypt(secret, mechanism=mechanism, mechanism_param=_parameters(nonce, context)))

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        with _token_faults(self._settings):
            if self._wiped:
                raise SealedFault
            yield

    def __repr__(self) -> str:
        return "Pkcs11Root()"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a root key is not serialised")


def _library() -> ModuleType:
    """The package `pkcs11`, loaded when it is needed: only nodes with a token have it."""
    try:
        import pkcs11
    except ImportError:
        raise ConfigFault(
            "keys.backend: 'pkcs11' needs the Python package python-pkcs11", "install it: pip install 'valv[pkcs11]'"
        ) from None
    return pkcs11


@contextlib.contextmanager
def _token_faults(settings: Keys) -> Iterator[None]:
    """One call into the library at a time, and its errors as faults."""
    pkcs11 = _library()
    with _CALLS:
        try:
            yield
        except pkcs11.PKCS11Error as error:
            raise UnreachableFault(
                f"the token {settings.token!r} failed: {type(error).__name__}",
                "check the token with its own tool; restart the key holder when it works again",
            ) from None


def _leave(place: tuple[str, bytes]) -> None:
    login = _LOGINS[place]
    login.roots -= 1
    if login.roots == 0:
        del _LOGINS[place]
        with contextlib.suppress(_library().PKCS11Error):  # a token that is gone has logged out
            login.session.close()


def _generate(pkcs11: ModuleType, session: Session, name: str) -> Any:
    attribute = pkcs11.Attribute
    template = {
        attribute.PRIVATE: True,
        attribute.SENSITIVE: True,
        attribute.EXTRACTABLE: False,
        attribute.MODIFIABLE: False,
        attribute.ENCRYPT: True,
        attribute.DECRYPT: True,
        attribute.WRAP: False,
        attribute.UNWRAP: False,
        attribute.SIGN: False,
        attribute.VERIFY: False,
        attribute.DERIVE: False,
    }
    key = session.generate_key(pkcs11.KeyType.AES, 256, label=name, store=True, template=template)
    return _guarded(pkcs11, key, name)


def _guarded(pkcs11: ModuleType, key: Any, name: str) -> Any:
    """The key, checked: 256 bits of AES, made inside, and never able to leave."""
    attribute = pkcs11.Attribute
    inside = (attribute.LOCAL, attribute.SENSITIVE, attribute.ALWAYS_SENSITIVE, attribute.NEVER_EXTRACTABLE)
    if key.key_type != pkcs11.KeyType.AES or key.key_length != 256:
        raise KeyFault(f"the key {name!r} is not an AES key of 256 bits", "let 'valv node create' make the key")
    if key[attribute.EXTRACTABLE] or not all(key[each] for each in inside):
        raise KeyFault(f"the key {name!r} can leave its token or came from outside", "let 'valv node create' make it")
    return key


def _found(session: Session, name: str) -> list[Any]:
    pkcs11 = _library()
    wanted = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.SECRET_KEY, pkcs11.Attribute.LABEL: name}
    return list(session.get_objects(wanted))


def _parameters(nonce: bytes, context: bytes) -> object:
    return _library().GCMParams(nonce, aad=context, tag_bits=8 * TAG)


def _bound(name: str) -> bytes:
    return msgspec.json.encode([FORMAT, name])


def _read(path: Path) -> RootFile:
    try:
        file = msgspec.json.decode(disk.read(path), type=RootFile)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault(f"{path} is of no root key in a token", "restore it, or set keys.backend back") from None
    if file.format != FORMAT:
        raise FormatFault(f"{path} is not of this version", "restore it from the key backup")
    return file


def _hashed(pin: str, salt: bytes) -> bytes:
    return hashlib.scrypt(pin.encode(), salt=salt, n=1 << 15, r=8, p=1, maxmem=64 << 20)


def _altered() -> KeyFault:
    return KeyFault("a wrapped key or what is bound to it was altered", "restore it from the key backup")
