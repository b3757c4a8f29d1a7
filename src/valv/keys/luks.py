"""LUKS2 volumes of the node's disks and scratch, through `cryptsetup`. Passphrases are 32 random bytes that cross pipes
and never rest anywhere but sealed: in the volume's own header, as tokens (LUKS2 on-disk format, section 3.4).

    token `valv`         the passphrase as a Crypt4GH header under a key of the node's key holder
    token `valv-escrow`  shares of another passphrase, each sealed to one officer; so many of them open the volume

Changing a header works everywhere; opening a volume needs dm-crypt in the kernel.
"""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from valv.errors import FormatFault, FullFault, InputFault, KeyFault, MissingFault, StorageFault
from valv.formats import shares
from valv.formats.officer import Officer

NODE: Final = "valv"
ESCROW: Final = "valv-escrow"
SECRET: Final = 32
SMALLEST: Final = 32 << 20
"""Bytes of a disk; its header takes half of them."""
MOST_OFFICERS: Final = 32
"""So many sealed shares fit into the header."""
_STRETCHED: Final = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
"""A random passphrase of 256 bits needs no stretching."""
_METADATA: Final = ("--luks2-metadata-size", "64k")
_WRONG_PASSPHRASE: Final = 2


class Token(msgspec.Struct, frozen=True):
    """What the node's own token says. `node`: whose key holder it is; `header`: base64."""

    keyslots: tuple[str, ...]
    node: str
    key_id: str
    header: str
    type: str = NODE


class Escrow(msgspec.Struct, frozen=True):
    """`shares`: officer → sealed share, base64; any `threshold` of them open."""

    keyslots: tuple[str, ...]
    threshold: int
    shares: dict[str, str]
    type: str = ESCROW


@dataclass(frozen=True, slots=True)
class Header:
    """What a volume's header says. `slots`: numbers of all key slots; tokens by their numbers; `others`: the slots that
    belong to no token of ours, so that nobody here can say who opens them."""

    uuid: str
    cipher: str
    slots: tuple[int, ...]
    nodes: dict[int, Token] = field(default_factory=dict)
    escrows: dict[int, Escrow] = field(default_factory=dict)

    @property
    def others(self) -> tuple[int, ...]:
        tokens: list[Token | Escrow] = [*self.nodes.values(), *self.escrows.values()]
        ours = {int(slot) for token in tokens for slot in token.keyslots}
        return tuple(slot for slot in self.slots if slot not in ours)


class Volume:
    """A LUKS2 volume on a block device or in a file. Raises `MissingFault` where there is no such device,
    `StorageFault` where `cryptsetup` fails, `KeyFault` where a passphrase does not open it."""

    def __init__(self, device: Path) -> None:
        if not device.exists():
            raise MissingFault(f"{device} does not exist", "name a disk, or make a file with --size")
        self.device: Final = device

    def empty(self) -> bool:
        """Whether nothing that would be lost is recognised on the device."""
        done = subprocess.run(["blkid", "--probe", str(self.device)], capture_output=True, check=False)
        return done.returncode == 2  # blkid(8): nothing was found

    def make(self, secret: bytes, ident: str) -> None:
        """Write a new header, which opens with `secret`. What was there is lost. Raises `InputFault` for a device that
        is hardly larger than the header."""
        with self.device.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
        if size < SMALLEST:
            raise InputFault(f"{self.device} has {size >> 20} MiB", f"a disk needs {SMALLEST >> 20} MiB at least")
        self._run("luksFormat", "--type", "luks2", *_STRETCHED, *_METADATA, "--uuid", ident, secret=secret)

    def header(self) -> Header:
        """Raises `FormatFault` where it is no LUKS2 volume."""
        done = subprocess.run(
            ["cryptsetup", "luksDump", "--dump-json-metadata", str(self.device)], capture_output=True, check=False
        )
        if done.returncode:
            raise FormatFault(f"{self.device} is no LUKS2 volume", "make one with 'valv luks create'")
        told = msgspec.json.decode(done.stdout)
        ident = self._output("luksUUID").strip()
        nodes: dict[int, Token] = {}
        escrows: dict[int, Escrow] = {}
        for number, token in told["tokens"].items():
            if token.get("type") == NODE:
                nodes[int(number)] = _token(token, Token)
            elif token.get("type") == ESCROW:
                escrows[int(number)] = _token(token, Escrow)
        cipher = ", ".join(sorted({str(one.get("encryption", "")) for one in told["segments"].values()}))
        return Header(ident, cipher, tuple(sorted(map(int, told["keyslots"]))), nodes, escrows)

    def check(self, secret: bytes, slot: int | None = None) -> bool:
        """Whether it opens with `secret`, in this slot or any."""
        chosen = () if slot is None else ("--key-slot", str(slot))
        done = self._start("open", "--test-passphrase", *chosen, "--key-file", "-", str(self.device), secret=secret)
        if done.returncode not in (0, 1, _WRONG_PASSPHRASE):
            raise _fault(self.device, done.stderr)
        return done.returncode == 0

    def add(self, known: bytes, fresh: bytes) -> int:
        """A new key slot that opens with `fresh`; its number. `known` opens the volume."""
        taken = self.header().slots
        slot = next(number for number in range(32) if number not in taken)
        with ExitStack() as stack:
            old, new = (stack.enter_context(_Pipe(one)) for one in (known, fresh))
            keys = ("--key-file", old.path, "--new-keyfile", new.path, "--new-key-slot", str(slot))
            self._run("luksAddKey", *_STRETCHED, *keys, descriptors=(old.reading, new.reading))
        return slot

    def attach(self, token: Token | Escrow) -> None:
        """Write a token into the header."""
        done = self._start("token", "import", "--json-file", "-", str(self.device), secret=msgspec.json.encode(token))
        if done.returncode:
            raise _fault(self.device, done.stderr)

    def drop_slots(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._run("luksKillSlot", "--batch-mode", after=(str(slot),))

    def drop_token(self, number: int, token: Token | Escrow) -> None:
        """The slots of a token, then the token."""
        there = self.header().slots
        self.drop_slots([int(slot) for slot in token.keyslots if int(slot) in there])
        self._run("token", "remove", "--token-id", str(number))

    def open(self, secret: bytes, name: str) -> Path:
        """Open it as /dev/mapper/`name`."""
        self._run("open", "--key-file", "-", secret=secret, after=(name,))
        return Path("/dev/mapper", name)

    def erase(self) -> None:
        """Destroy every key slot: what is on the volume is gone for ever."""
        self._run("luksErase", "--batch-mode")

    def _run(
        self,
        verb: str,
        *words: str,
        secret: bytes = b"",
        descriptors: tuple[int, ...] = (),
        after: tuple[str, ...] = (),
    ) -> None:
        given = ("--batch-mode", "--key-file", "-") if verb == "luksFormat" else ()
        done = self._start(verb, *given, *words, str(self.device), *after, secret=secret, descriptors=descriptors)
        if done.returncode == _WRONG_PASSPHRASE:
            raise KeyFault(f"{self.device} does not open with this key", "see 'valv luks status'")
        if done.returncode:
            raise _fault(self.device, done.stderr)

    def _output(self, verb: str) -> str:
        done = self._start(verb, str(self.device))
        if done.returncode:
            raise _fault(self.device, done.stderr)
        return done.stdout.decode()

    def _start(
        self, *words: str, secret: bytes = b"", descriptors: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        return run(*words, secret=secret, descriptors=descriptors)


def run(*words: str, secret: bytes = b"", descriptors: tuple[int, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    """`cryptsetup` with these words; `secret` over its standard input."""
    try:
        return subprocess.run(
            ["cryptsetup", *words],
            input=secret,
            capture_output=True,
            check=False,
            pass_fds=descriptors,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise MissingFault("cryptsetup is not installed", "apt-get install cryptsetup-bin") from None


def close(name: str) -> None:
    """Close an open volume. Repeating is no error."""
    if not Path("/dev/mapper", name).exists():
        return
    done = run("close", name)
    if done.returncode:
        raise StorageFault(f"{name}: {_last(done.stderr)}", "unmount it first")


def new_ident() -> str:
    return str(uuid.uuid4())


def new_secret() -> bytes:
    return secrets.token_bytes(SECRET)


def key_id(ident: str) -> str:
    """The name of a volume's key at the key holder."""
    return f"volume-{ident}"


def node_token(slot: int, node: str, ident: str, header: bytes) -> Token:
    return Token((str(slot),), node, key_id(ident), base64.b64encode(header).decode())


def escrow_token(slot: int, secret: bytes, officers: Sequence[Officer], threshold: int) -> Escrow:
    """Raises `InputFault` for too few or too many officers, or a name twice."""
    names = [officer.name for officer in officers]
    if len(set(names)) != len(names):
        raise InputFault("an officer is named twice", "give each officer's public key once")
    if not 2 <= threshold <= len(names) <= MOST_OFFICERS:
        raise InputFault(
            f"{threshold} of {len(names)} officers cannot be",
            f"at least 2 are needed, and at most {MOST_OFFICERS} hold",
        )
    words = shares.split(secret, threshold, len(names))
    sealed = {
        officer.name: base64.b64encode(shares.seal(share, bytes.fromhex(officer.share_key))).decode()
        for officer, share in zip(officers, words, strict=True)
    }
    return Escrow((str(slot),), threshold, sealed)


class _Pipe:
    """A secret to be read once from `path` by a child that gets the descriptor `reading`."""

    def __init__(self, secret: bytes) -> None:
        self.reading, writing = os.pipe()
        os.write(writing, secret)
        os.close(writing)
        self.path = f"/dev/fd/{self.reading}"

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.reading)


def _token(told: dict[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(told, kind)
    except msgspec.ValidationError:
        raise FormatFault(f"a token of the volume ({told.get('type')}) was altered") from None


def _fault(device: Path, said: bytes) -> StorageFault:
    text = _last(said)
    if "device-mapper" in said.decode(errors="replace"):
        return StorageFault("this machine cannot open encrypted volumes", "load the kernel's module dm-crypt")
    kind = FullFault if "No space left" in text or "too small" in text else StorageFault
    return kind(f"{device}: {text}")


def _last(said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "cryptsetup said nothing"


def numbered(tokens: dict[int, Token]) -> Iterator[tuple[int, Token, bytes]]:
    """The tokens that have a slot, the newest first, each with its sealed passphrase."""
    for number in sorted(tokens, reverse=True):
        token = tokens[number]
        if token.keyslots:
            yield number, token, base64.b64decode(token.header)
