"""The node's configuration: one TOML file into frozen, typed structs. Nothing else reads the environment.

Secrets are named by file path, never by value. `load` raises `ConfigFault` that lists every fault, each with its key
and what would be right.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from valv.errors import ConfigFault


class Node(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name` appears in the ledger's checkpoints (a DNS-like name); `country` is ISO 3166; `unit` the department."""

    name: str
    country: str
    unit: str
    title: str = "Valv"
    contact: str = ""
    demo: bool = False


class Serve(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the node listens. `public_url`: how people reach it, where that differs; `max_upload`: bytes of a file."""

    host: str = "127.0.0.1"
    port: int = 8600
    public_url: str = ""
    max_upload: int = 1 << 40


class Database(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`url` as SQLAlchemy spells it; empty for the embedded SQLite file. A password is read from `password_file`."""

    url: str = ""
    password_file: str = ""


class Storage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A store. `[storage]` is the one called `main`, where what arrives is put first; `[stores.NAME]` are more.

    `backend`: an entry point of the group `valv.storage`; `path`: the folder of `local`, else where bodies lie below
    `url`; `bucket`: bucket (`s3`) or container (`swift`); `region`: where the backend needs one; `credentials`: the
    file that the store's secrets are in, in the backend's own form; `ca`: a file of certificates to trust besides the
    system's. `country` and `unit`: where the store stands, if not with the node; `tape`: it is for what is seldom
    read; `distance`: of the copies, the nearest is read (0 the nearest); `quota`: bytes that may be put there, 0 for
    all."""

    backend: str = "local"
    path: str = "store"
    url: str = ""
    bucket: str = ""
    region: str = ""
    credentials: str = ""
    ca: str = ""
    country: str = ""
    unit: str = ""
    tape: bool = False
    distance: int = 0
    quota: int = 0


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`backend`: an entry point of the group `valv.keys`, `file`, `pkcs11` or `barbican`; `passphrase_file`: where keyd
    reads the passphrase (the token's PIN) at start; empty: it stays locked until `valv keys unseal`. For `pkcs11`,
    `module`: the library that came with the token; `token`, `key`: labels. For `barbican`, `cloud`: a cloud of
    `clouds_file`, the absolute path of a `clouds.yaml` with an application credential; `key`: the name of what is
    stored there. `binds`: files, folders and sockets that the backend needs besides, each as `PATH`, or as
    `PATH:INSIDE` where the key holder is to see it at another place. `backup`: folders in which the key backup lies,
    each on another machine or disk than the node."""

    backend: str = "file"
    path: str = "keys"
    passphrase_file: str = ""
    module: str = ""
    token: str = ""
    key: str = ""
    binds: tuple[str, ...] = ()
    backup: tuple[str, ...] = ()
    cloud: str = ""
    clouds_file: str = ""


class Compute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Upper bounds for one run (seconds, bytes, count) and how many runs may go on at once."""

    backend: str = "sandbox"
    slots: int = 2
    seconds: int = 24 * 3600
    memory: int = 4 << 30
    processes: int = 512
    scratch: int = 2 << 30


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`overlays`: country codes whose forbid-only policies apply here, besides the node's own country."""

    overlays: tuple[str, ...] = ()
    permit_days: int = 365


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`backend`: `none` (nobody gets in until an identity provider is configured) or `demo`. Session limits in seconds;
    `step_up` is how long a second factor counts."""

    backend: str = "none"
    idle: int = 1800
    absolute: int = 12 * 3600
    step_up: int = 900


class Mail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`host`: the SMTP server; without one, messages are put as files into `folder`."""

    host: str = ""
    port: int = 25
    starttls: bool = False
    sender: str = "valv@localhost"
    folder: str = "mail"


class Fixity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`days`: every copy of every file is read again, from end to end, once in so many days; `rate`: bytes that are
    read for that in a second, over all stores."""

    days: int = 90
    rate: int = 50_000_000


class BackupPlace(Storage, frozen=True, forbid_unknown_fields=True):
    """A store for backups, of this node alone, settings as of any store. `country`, `unit`: where it stands; `bodies`:
    `value` puts files there, as they are stored, `reference` only their names; `keep`: how many backups stay."""

    bodies: Literal["value", "reference"] = "value"
    keep: int = 7


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`recipient`: the public key that backups are encrypted for, as `valv backup key` prints it; `hours`: how old the
    newest backup may become; `places`: by name, each a section [backup.places.NAME]."""

    recipient: str = ""
    hours: int = 24
    places: dict[str, BackupPlace] = {}


class Processes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`uid_base`: where root starts the node, its processes get the user ids from here on (a range of 1000 that nobody
    else uses). `runtime`: sockets and mounts; empty for a folder in /run (root) or /dev/shm (others)."""

    uid_base: int = 610000
    runtime: str = ""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    node: Node
    serve: Serve = Serve()
    database: Database = Database()
    storage: Storage = Storage()
    keys: Keys = Keys()
    compute: Compute = Compute()
    policy: Policy = Policy()
    login: Login = Login()
    mail: Mail = Mail()
    fixity: Fixity = Fixity()
    backup: Backup = Backup()
    processes: Processes = Processes()
    stores: dict[str, Storage] = msgspec.field(default_factory=dict)
    home: str = ""
    """The node's folder, where the file lies; relative paths start here. Filled in by `load`."""

    def path(self, name: str) -> Path:
        """A path of the configuration, made absolute against the node's folder."""
        return Path(self.home, name)

    def key_place(self, place: str) -> Path:
        """This node's own folder in a place of the key backup."""
        return self.path(place) / f"valv-keys-{self.node.name}"

    def backup_place(self, name: str) -> BackupPlace:
        """A place of backups. Of a local one, this node's own folder in it."""
        place = self.backup.places[name]
        if place.backend != "local":
            return place
        return msgspec.structs.replace(place, path=str(self.path(place.path) / f"valv-backup-{self.node.name}"))

    @property
    def all_stores(self) -> dict[str, Storage]:
        """Every store by its name, `main` first."""
        return {MAIN: self.storage, **self.stores}

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.path('db/valv.sqlite')}"

    @property
    def runtime(self) -> Path:
        """Where sockets and mounts of this node are. Short, because a socket's path may have 107 bytes only."""
        if self.processes.runtime:
            return self.path(self.processes.runtime)
        mark = hashlib.sha256(self.home.encode()).hexdigest()[:10]
        uid, base = os.geteuid(), self.processes.uid_base
        if uid == 0 or base <= uid < base + 1000:  # root, and the users that root gives to the node's processes
            return Path("/run", f"valv-{mark}")
        return Path("/dev/shm", f"valv-{uid}-{mark}")  # noqa: S108

    @property
    def public_url(self) -> str:
        return self.serve.public_url or f"http://{self.serve.host}:{self.serve.port}"

    @property
    def loopback(self) -> bool:
        return _loopback(self.serve.host)


MAIN: Final = "main"
"""The name of the store that `[storage]` describes."""
STORE_NAME: Final = r"[a-z][a-z0-9-]{0,30}"
SECTIONS: dict[str, Any] = {
    "node": Node,
    "serve": Serve,
    "database": Database,
    "storage": Storage,
    "keys": Keys,
    "compute": Compute,
    "policy": Policy,
    "login": Login,
    "mail": Mail,
    "fixity": Fixity,
    "backup": Backup,
    "processes": Processes,
}
COUNTRIES = ("SE", "NO", "DK", "FI", "IS", "EE", "LV", "LT", "DE", "NL")


def load(path: str | os.PathLike[str], *, secrets: bool = False) -> Config:
    """Read and check the configuration. Raises `ConfigFault` naming every fault and its key.

    `secrets`: look at the files that secrets are in, too; most processes of a node cannot see them.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "valv.toml"
    try:
        raw = tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigFault(f"{file} does not exist", "create a node with 'valv node create DIR'") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigFault(f"{file}: {error}") from None
    config, faults = parse(raw, str(file.resolve().parent))
    if config is not None and secrets:
        faults.extend(_secrets(config))
    if config is None or faults:
        raise ConfigFault("\n".join(["", *(f"  {fault}" for fault in faults)]).rstrip(), f"edit {file}")
    return config


def parse(raw: dict[str, Any], home: str) -> tuple[Config | None, list[str]]:
    """The configuration and every fault found in it, as `section.key: what is wrong`."""
    faults: list[str] = []
    parts: dict[str, Any] = {}
    for name, value in raw.items():
        if name == "stores":
            parts[name] = _stores(value, faults)
        elif name not in SECTIONS:
            faults.append(f"[{name}]: no such section; the sections are {', '.join(SECTIONS)}")
        elif not isinstance(value, dict):
            faults.append(f"{name}: must be a section, written [{name}]")
        else:
            parts[name] = _section(name, value, faults)
    if "node" not in raw:
        faults.append("[node]: missing; it names the node: name, country, unit")
    if faults:
        return None, faults
    config = Config(**parts, home=home)
    faults.extend(_meaning(config))
    return config, faults


def _stores(value: Any, faults: list[str]) -> dict[str, Storage]:
    found: dict[str, Storage] = {}
    if not isinstance(value, dict) or not all(isinstance(one, dict) for one in value.values()):
        faults.append("stores: each store is a section, written [stores.NAME]")
        return found
    for name, one in value.items():
        if not re.fullmatch(STORE_NAME, name) or name == MAIN:
            faults.append(f"[stores.{name}]: a name has up to 31 of a-z, 0-9 and '-', and is not {MAIN!r}")
        elif (store := _section("storage", one, faults, f"stores.{name}")) is not None:
            found[name] = store
    return found


def _section(name: str, value: dict[str, Any], faults: list[str], shown: str = "") -> Any:
    kind, shown = SECTIONS[name], shown or name
    known = {field.name: field for field in msgspec.structs.fields(kind)}
    good: dict[str, Any] = {}
    for key, item in value.items():
        if key not in known:
            faults.append(f"{shown}.{key}: no such setting; [{shown}] has {', '.join(known)}")
            continue
        try:
            good[key] = msgspec.convert(item, known[key].type)
        except msgspec.ValidationError as error:
            faults.append(f"{shown}.{key}: {error}")
    missing = [key for key, field in known.items() if field.required and key not in value]
    faults.extend(f"{shown}.{key}: missing" for key in missing)
    if missing or len(good) != len(value):
        return None
    return kind(**good)


def _meaning(config: Config) -> list[str]:
    """Faults that a type cannot show."""
    faults: list[str] = []

    def check(ok: bool, fault: str) -> None:
        if not ok:
            faults.append(fault)

    check(
        config.node.country in COUNTRIES, f"node.country: {config.node.country!r} is not one of {', '.join(COUNTRIES)}"
    )
    name = config.node.name
    check(bool(name) and not any(c.isspace() or c in "+/" for c in name), "node.name: a name without spaces, + and /")
    check(bool(config.node.unit.strip()), "node.unit: must not be empty")
    check(0 < config.serve.port < 65536, "serve.port: must lie between 1 and 65535")
    check(0 < config.mail.port < 65536, "mail.port: must lie between 1 and 65535")
    if config.keys.backend == "pkcs11":
        for key in ("module", "token", "key"):
            check(bool(getattr(config.keys, key)), f"keys.{key}: the backend 'pkcs11' needs it")
    if config.keys.backend == "barbican":
        check(bool(config.keys.cloud), "keys.cloud: the backend 'barbican' needs it")
        check(
            Path(config.keys.clouds_file).is_absolute(), "keys.clouds_file: the backend 'barbican' needs its whole path"
        )
    for bind in config.keys.binds:
        _, colon, inside = bind.partition(":")
        check(not colon or inside.startswith("/"), f"keys.binds: {bind!r} is not PATH, or PATH:INSIDE from the root")
    for name, store in config.all_stores.items():
        shown = "storage" if name == MAIN else f"stores.{name}"
        local = store.backend == "local"
        check(not store.country or store.country in COUNTRIES, f"{shown}.country: {store.country!r} is not known")
        check(bool(store.path) or not local, f"{shown}.path: the backend 'local' needs a folder")
        check(store.distance >= 0 and store.quota >= 0, f"{shown}: distance and quota are not negative")
    folders = [config.path(store.path) for store in config.all_stores.values() if store.backend == "local"]
    check(len(set(folders)) == len(folders), "stores: two stores lie in the same folder")
    check("@" in config.mail.sender, "mail.sender: must be an address")
    for key in ("slots", "seconds", "memory", "processes", "scratch"):
        check(getattr(config.compute, key) > 0, f"compute.{key}: must be positive")
    check(config.compute.slots <= 400, "compute.slots: at most 400")
    for key in ("idle", "absolute", "step_up"):
        check(getattr(config.login, key) > 0, f"login.{key}: must be positive")
    for key in ("days", "rate"):
        check(getattr(config.fixity, key) > 0, f"fixity.{key}: must be positive")
    faults.extend(_backup(config))
    check(config.policy.permit_days > 0, "policy.permit_days: must be positive")
    if "://" in config.database.url:
        user = config.database.url.partition("://")[2].partition("@")[0]
        check(":" not in user or "@" not in config.database.url, "database.url: a password belongs in password_file")
    for country in config.policy.overlays:
        check(country in COUNTRIES, f"policy.overlays: {country!r} is not one of {', '.join(COUNTRIES)}")
    if config.login.backend == "demo" and not (config.node.demo and config.loopback):
        faults.append(
            "login.backend: 'demo' works only in a node made by 'valv demo' that listens on a loopback address"
        )
    return faults


def _backup(config: Config) -> list[str]:
    faults: list[str] = []
    backup = config.backup
    if backup.places and not backup.recipient:
        faults.append("backup.recipient: missing; make a key with 'valv backup key'")
    if backup.recipient and not re.fullmatch(r"[A-Za-z0-9+/]{43}=", backup.recipient):
        faults.append("backup.recipient: 44 letters of base64, as 'valv backup key' prints them")
    if backup.hours <= 0:
        faults.append("backup.hours: must be positive")
    for name, place in backup.places.items():
        shown = f"backup.places.{name}"
        if not re.fullmatch(STORE_NAME, name):
            faults.append(f"[{shown}]: a name has up to 31 of a-z, 0-9 and '-'")
        if place.country not in COUNTRIES or not place.unit:
            faults.append(f"{shown}: say in which country it stands and which unit runs it")
        if place.keep < 1:
            faults.append(f"{shown}.keep: one backup at least")
        if place.backend == "local" and not Path(place.path).is_absolute():
            faults.append(f"{shown}.path: the whole path of a folder")
    return faults


def _secrets(config: Config) -> list[str]:
    """Faults of the files that secrets are in."""
    faults: list[str] = []
    named = [
        (f"{section}.{key}", getattr(getattr(config, section), key))
        for section, key in (("database", "password_file"), ("keys", "passphrase_file"), ("keys", "clouds_file"))
    ]
    named.append(("storage.credentials", config.storage.credentials))
    named += [(f"stores.{name}.credentials", store.credentials) for name, store in config.stores.items()]
    named += [(f"backup.places.{name}.credentials", place.credentials) for name, place in config.backup.places.items()]
    for shown, value in named:
        if value and not config.path(value).is_file():
            faults.append(f"{shown}: {config.path(value)} is not a file")
        elif value and config.path(value).stat().st_mode & 0o077:
            faults.append(f"{shown}: {config.path(value)} can be read by others; chmod 600")
    return faults


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
