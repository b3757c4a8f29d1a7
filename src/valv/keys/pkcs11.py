"""The root key in a PKCS #11 token, such as a hardware security module: the keyring backend `pkcs11`.

The root key is an AES-256 key that the token made and that cannot leave it. Everything that `keyd` keeps is wrapped
there with AES-GCM (CKM_AES_GCM, PKCS #11 v2.40 section 2.12; NIST SP 800-38D), the context as associated data. Nonces
are 96 random bits, which SP 800-38D section 8.3 allows for 2^32 messages under one key; a node wraps a handful for each
key pair that it makes or changes. The passphrase of the node is the PIN of the token's user.

A token can hold several such keys: of generations while one follows another, and of other nodes. `root.json` names its
own by label (`keys.key`) and a random CKA_ID. It is there before the key is made and until the key was destroyed, so a
crash leaves no key without a file that names it. Where such a file was lost with its folder, the log tells at each
opening that there are more keys of the label.

Two things of PKCS #11 shape this module. A login counts for the whole process and not for one session, so roots in one
token share theirs, and it ends with the last of them. And the library may be used by one thread at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
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
    InputFault,
    KeyFault,
    MissingFault,
    SealedFault,
    UnreachableFault,
)
from valv.keys import disk

if TYPE_CHECKING:
    from pkcs11 import Session, Token

FORMAT: Final = "valv pkcs11 root key 2"
FILE: Final = "root.json"
NONCE: Final = 12
TAG: Final = 16
ID: Final = 16
KNOWN: Final = b"valv root key"

ATTRIBUTES: Final = {"PRIVATE": True, "SENSITIVE": True, "ENCRYPT": True, "DECRYPT": True} | dict.fromkeys(
    ("EXTRACTABLE", "MODIFIABLE", "WRAP", "UNWRAP", "SIGN", "VERIFY", "DERIVE"), False
)
"""Of a root key (PKCS #11 v2.40, sections 4.4 and 4.10): it encrypts and decrypts inside its token, and no more."""

log = logging.getLogger("valv.keyd")

_LOCKED: Final = "the token's PIN is locked", "its security officer unlocks it with the token's own tool"

_CALLS: Final = threading.RLock()
"""Held during every call into the library."""


class RootFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies in the folder in place of a root key (JSON, bytes in base64). `id`: CKA_ID of the key in the token;
    `check`: a known text, wrapped: only the root key that the folder was made with unwraps it. It is empty until the
    key was made."""

    format: str
    id: bytes = b""
    check: bytes = b""


@dataclass(slots=True)
class Login:
    """This process's login at one token. The salted hash is there to check a PIN without another login: PKCS #11
    refuses one while logged in, and logging out would close the root key for all."""

    session: Session
    salt: bytes
    hashed: bytes
    roots: int = 0

    def knows(self, passphrase: bytes) -> bool:
        return hmac.compare_digest(self.hashed, _hashed(passphrase, self.salt))


_LOGINS: Final[dict[tuple[str, bytes], Login]] = {}
"""(module, serial number of the token) → the login there."""


class Pkcs11Keyring:
    """Implements `valv.ports.keys.Keyring` for the token and key that `settings` name."""

    sets_passphrase = False

    def __init__(self, settings: Keys) -> None:
        self._settings = settings

    def create(self, folder: Path, passphrase: bytes) -> Pkcs11Root:
        """Make a root key in the token, which was initialised before and whose user's PIN is `passphrase`.

        Raises `ConflictFault` where `folder` holds one, `KeyFault` for a wrong PIN, `ConfigFault` where the settings
        name no usable token, `UnreachableFault` where the token fails.
        """
        with _token_faults(self._settings):
            _vacant(folder)
            return self._enter(passphrase, writing=True).make(folder)

    def open(self, folder: Path, passphrase: bytes) -> Pkcs11Root:
        """Find the root key. Raises `KeyFault` for a wrong PIN and for a key that the folder was not made with or that
        could leave its token, `MissingFault` where there is none, else as `create`. Other keys of the same label are
        counted in the log and left alone: they may be of another node."""
        file = _read(folder)
        with _token_faults(self._settings):
            return self._enter(passphrase).find(file, folder)

    def discard(self, folder: Path, passphrase: bytes) -> None:
        """Destroy the key that the folder's file names. A file that cannot be read is taken for one that was being
        overwritten, its key destroyed before: it is removed. Faults as `create`."""
        if not (folder / FILE).exists():
            return
        with _token_faults(self._settings):
            root = self._enter(passphrase)
            try:
                with contextlib.suppress(FormatFault):
                    root.id = _read(folder).id
                root.discard(folder)
            finally:
                root.wipe()

    def _enter(self, passphrase: bytes, *, writing: bool = False) -> Pkcs11Root:
        """A root that is logged in and has no key yet."""
        token = self._token()
        place = self._settings.module, bytes(token.serial)
        try:
            pin = passphrase.decode()
        except UnicodeDecodeError:
            pin = ""
        if not pin:
            raise KeyFault("a PIN is text, and not empty", "type the PIN of the token's user")
        login = _LOGINS.get(place)
        if login is None:
            _LOGINS[place] = self._log_in(token, pin)
        elif not login.knows(passphrase):
            raise KeyFault("the PIN is wrong", "type it again; the token was not asked, so it counts no failed attempt")
        return _entered(token, place, self._settings, writing=writing)

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
            raise KeyFault(*_LOCKED)
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
            raise KeyFault(*_LOCKED) from None
        except (pkcs11.UserPinNotInitialized, pkcs11.PinExpired):
            raise KeyFault("the token's user has no valid PIN", "set one with the token's own tool") from None
        salt = secrets.token_bytes(16)
        return Login(session, salt, _hashed(pin.encode(), salt))

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


class Pkcs11Root:
    """A root key in a token, logged in. Implements `valv.ports.keys.OpenRoot`; safe for several threads."""

    key: Any
    """The key's handle."""

    def __init__(self, session: Session, place: tuple[str, bytes], settings: Keys) -> None:
        self.session = session
        self.id = b""
        self._place = place
        self._settings = settings
        self._wiped = self._discarded = False

    def make(self, folder: Path) -> Pkcs11Root:
        """Have the token make the key that the folder's file names: both are made, or neither and the root is wiped."""
        name, self.id = self._settings.key, secrets.token_bytes(ID)
        file = RootFile(FORMAT, self.id)
        with self._wiped_on_error():
            try:
                disk.write(folder / FILE, msgspec.json.encode(file))
                self.key = _guarded(_generate(self.session, name, self.id), name)
                file = msgspec.structs.replace(file, check=self.wrap(KNOWN, _bound(name, self.id)))
                disk.write(folder / FILE, msgspec.json.encode(file))
            except BaseException:
                self.discard(folder)
                raise
        return self

    def find(self, file: RootFile, folder: Path) -> Pkcs11Root:
        """Take the key that the folder's file names; where it is not right, the root is wiped."""
        token, name, self.id = self._settings.token, self._settings.key, file.id
        with self._wiped_on_error():
            found = _found(self.session, name, file.id)
            if not found or not file.check:
                raise MissingFault(
                    f"the token {token!r} holds no key {name!r} with the CKA_ID that {folder} names",
                    "set keys.key, or restore the token from its own backup; a discarded root key is gone for good",
                )
            if len(found) > 1:
                raise KeyFault(f"the token holds {len(found)} keys {name!r} of one CKA_ID", "leave only the node's own")
            self.key = _guarded(found[0], name)
            if not self._checks(file):
                raise KeyFault(
                    f"the key {name!r} in the token {token!r} is not the one that {folder} was made with, or the file "
                    "there was altered",
                    "check keys.token and keys.key, or restore the key folder from the key backup",
                )
            others = len(_found(self.session, name)) - 1
        if others > 0:
            log.warning(
                "the token %r holds %d more under the label %r, besides this root key (CKA_ID %s): of another node, of "
                "a generation that is not discarded yet, or left by a crash",
                *(token, others, name, self.id.hex()),
            )
        return self

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
                return bytes(self.key.decrypt(wrapped[NONCE:], **_gcm(wrapped[:NONCE], context)))
            except pkcs11.PKCS11Error:
                # Tokens do not agree on the error for a wrong tag. Where the key still works, it was that.
                self._seal(secrets.token_bytes(NONCE), KNOWN, b"")
                raise _altered() from None

    def renew(self, folder: Path, passphrase: bytes | None = None) -> Pkcs11Root:
        """Have the same token make another key. Raises `InputFault` for a passphrase that is not the present PIN."""
        with self._working():
            if passphrase is not None and not _LOGINS[self._place].knows(passphrase):
                raise InputFault(
                    "another root key in the same token opens with the same PIN",
                    "change the PIN with the token's own tool",
                )
            _vacant(folder)
            return _entered(self.session.token, self._place, self._settings, writing=True).make(folder)

    def discard(self, folder: Path) -> None:
        """Destroy the key in the token, then the file that names it.

        Raises `ConflictFault` where `folder` is of another root key, `SealedFault` where there is a key to destroy and
        nobody is logged in any more.
        """
        with _token_faults(self._settings):
            with contextlib.suppress(MissingFault, FormatFault):
                if _read(folder).id != self.id:
                    raise ConflictFault(f"{folder} is of another root key", "discard each root key with its own folder")
            if not self._discarded:
                if self._place not in _LOGINS:
                    raise SealedFault
                # A session of its own: that of an opened root is for reading.
                with self.session.token.open(rw=True) as session:
                    for key in _found(session, self._settings.key, self.id) if self.id else ():
                        key.destroy()
                self._discarded = True
            disk.wipe(folder / FILE)
            self.wipe()

    def wipe(self) -> None:
        """Close the session, and log out with the last. Repeating is no error."""
        with _CALLS:
            if not self._wiped:
                self._wiped = True
                with contextlib.suppress(_library().PKCS11Error):
                    self.session.close()
                _leave(self._place)

    def _checks(self, file: RootFile) -> bool:
        try:
            return self.unwrap(file.check, _bound(self._settings.key, self.id)) == KNOWN
        except KeyFault:
            return False

    def _seal(self, nonce: bytes, secret: bytes, context: bytes) -> bytes:
        return bytes(self.key.encrypt(secret, **_gcm(nonce, context)))

    @contextlib.contextmanager
    def _wiped_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.wipe()
            raise

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


def _entered(token: Token, place: tuple[str, bytes], settings: Keys, *, writing: bool) -> Pkcs11Root:
    """Another root that shares the login at `place`, without a key yet."""
    _LOGINS[place].roots += 1
    try:
        return Pkcs11Root(token.open(rw=writing), place, settings)
    except BaseException:
        _leave(place)
        raise


def _generate(session: Session, name: str, key_id: bytes) -> Any:
    pkcs11 = _library()
    template = {pkcs11.Attribute[each]: value for each, value in ATTRIBUTES.items()}
    return session.generate_key(pkcs11.KeyType.AES, 256, id=key_id, label=name, store=True, template=template)


def _guarded(key: Any, name: str) -> Any:
    """The key, checked: 256 bits of AES, made inside, and never able to leave."""
    pkcs11 = _library()
    attribute = pkcs11.Attribute
    inside = (attribute.LOCAL, attribute.SENSITIVE, attribute.ALWAYS_SENSITIVE, attribute.NEVER_EXTRACTABLE)
    if key.key_type != pkcs11.KeyType.AES or key.key_length != 256:
        raise KeyFault(f"the key {name!r} is not an AES key of 256 bits", "let 'valv node create' make the key")
    if key[attribute.EXTRACTABLE] or not all(key[each] for each in inside):
        raise KeyFault(f"the key {name!r} can leave its token or came from outside", "let 'valv node create' make it")
    return key


def _found(session: Session, name: str, key_id: bytes | None = None) -> list[Any]:
    attribute = _library().Attribute
    wanted = {attribute.CLASS: _library().ObjectClass.SECRET_KEY, attribute.LABEL: name}
    if key_id is not None:
        wanted[attribute.ID] = key_id
    return list(session.get_objects(wanted))


def _gcm(nonce: bytes, context: bytes) -> dict[str, object]:
    """AES-GCM, as the key's operations take it."""
    pkcs11 = _library()
    parameters = pkcs11.GCMParams(nonce, aad=context, tag_bits=8 * TAG)
    return {"mechanism": pkcs11.Mechanism.AES_GCM, "mechanism_param": parameters}


def _bound(name: str, key_id: bytes) -> bytes:
    return msgspec.json.encode([FORMAT, name, key_id])


def _read(folder: Path) -> RootFile:
    path = folder / FILE
    try:
        file = msgspec.json.decode(disk.read(path), type=RootFile)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise FormatFault(f"{path} is of no root key in a token", "restore it, or set keys.backend back") from None
    if file.format != FORMAT or len(file.id) != ID:
        raise FormatFault(f"{path} is not of this version", "restore it from the key backup")
    return file


def _vacant(folder: Path) -> None:
    if (folder / FILE).exists():
        raise ConflictFault(f"{folder / FILE} exists; a root key is never overwritten", "choose another folder")


def _hashed(pin: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(pin, salt=salt, n=1 << 15, r=8, p=1, maxmem=64 << 20)


def _altered() -> KeyFault:
    return KeyFault("a wrapped key or what is bound to it was altered", "restore it from the key backup")
