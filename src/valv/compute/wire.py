"""How the node's processes speak with the launcher.

A connection carries one request and one answer. Each is a frame: its length as u32, big-endian, then MessagePack. What
is large does not go through the launcher: a list of files comes as a descriptor of a memory file (JSON), outputs and
plain bytes leave through a descriptor that the caller gives (`stream`). Descriptors ride on the request's first byte
(SCM_RIGHTS, unix(7)).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from typing import Any, Final

import msgspec

from valv.errors import Fault, InputFault, InternalFault, Refusal, RefusedFault
from valv.formats.crypt4gh import KEY
from valv.ports.compute import MOST_REKEYED, Limits, MountedFile

FRAME: Final = 1 << 20
"""Longest request in bytes; a run's command and environment must fit in."""
ANSWER: Final = 1 << 26
"""Longest answer in bytes: a status lists each file that was read."""
LENGTH: Final = struct.Struct(">I")
DESCRIPTORS: Final = 2
"""Most descriptors of one request."""
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_BODY: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
FILES_BYTES: Final = 1 << 28


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """Answer: the user id of the run's mount."""

    run_id: str


class Start(msgspec.Struct, frozen=True, tag="start"):
    """With the descriptor of the file list."""

    run_id: str
    grant_id: str
    command: tuple[str, ...]
    limits: Limits
    environment: dict[str, str]


class Status(msgspec.Struct, frozen=True, tag="status"):
    """Answer: a `RunStatus`."""

    run_id: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    run_id: str


class Collect(msgspec.Struct, frozen=True, tag="collect"):
    """With the descriptor that the outputs go to."""

    run_id: str
    public_key: bytes


class Discard(msgspec.Struct, frozen=True, tag="discard"):
    run_id: str


class Runs(msgspec.Struct, frozen=True, tag="runs"):
    """Answer: a list of run ids."""


class ReserveReader(msgspec.Struct, frozen=True, tag="reserve-reader"):
    """Answer: a token, and the user id of the process that will read."""


class Read(msgspec.Struct, frozen=True, tag="read"):
    """With the descriptors of the file's description and of where the plain bytes go."""

    token: str
    grant_id: str


class Rekey(msgspec.Struct, frozen=True, tag="rekey"):
    """With the descriptors of the files' description and of where the answers go. `public_key`: whom the new data keys
    are sealed for; `bodies`: names of the new bodies, in the files' order. Whoever closes the other end of the second
    descriptor ends the work."""

    token: str
    grant_id: str
    public_key: bytes
    bodies: tuple[str, ...]


class Join(msgspec.Struct, frozen=True, tag="join"):
    """As `Rekey`, for the pieces of one file, in order, and one new body."""

    token: str
    grant_id: str
    public_key: bytes
    body: str


class Rewrite(msgspec.Struct, frozen=True, tag="rewrite"):
    """As `Join`, for one file and what a sandbox is to do with it. Who and what is in the description alone: a request
    is not hidden from whoever traces the launcher."""

    token: str
    grant_id: str
    public_key: bytes
    body: str


Request = Reserve | Start | Status | Stop | Collect | Discard | Runs | ReserveReader | Read | Rekey | Join | Rewrite


class Failure(msgspec.Struct, frozen=True):
    """A fault, to be raised on the other side."""

    code: str
    detail: str
    hint: str = ""
    refused: bool = False

    @classmethod
    def of(cls, fault: Fault) -> Failure:
        if isinstance(fault, RefusedFault):
            return cls(fault.refusal.code, fault.detail, refused=True)
        return cls(fault.code, fault.detail, fault.hint)

    def exception(self) -> Fault:
        if self.refused:
            return RefusedFault(Refusal(self.code, self.detail))
        kind = _KINDS.get(self.code, InternalFault)
        return kind(self.detail, self.hint)


class Answer(msgspec.Struct, frozen=True):
    fault: Failure | None = None
    value: Any = None


def frame(message: Request | Answer) -> bytes:
    """Raises `InputFault` where the message is too long."""
    data = msgspec.msgpack.encode(message)
    most = ANSWER if isinstance(message, Answer) else FRAME
    if len(data) > most:
        raise InputFault(f"the request or its answer has {len(data)} bytes, more than {most}", "shorten the command")
    return LENGTH.pack(len(data)) + data


def check_start(request: Start) -> None:
    """Raises `InputFault` where something could not be said to the kernel or means something else there."""
    check_name(request.grant_id)
    if not request.command or not request.command[0]:
        raise InputFault("the command is empty", "name a program to run")
    words = [*request.command, *request.environment.values()]
    if any("\0" in word for word in words):
        raise InputFault("the command or its environment holds a NUL character")
    for name in request.environment:
        if not _VARIABLE.fullmatch(name):
            raise InputFault(f"{name!r} cannot name an environment variable", "use letters, digits and '_'")
    for limit in ("seconds", "memory", "processes", "scratch"):
        if getattr(request.limits, limit) <= 0:
            raise InputFault(f"the limit of {limit} must be positive")


def check_name(name: str) -> None:
    """Run and grant ids name folders and groups; raises `InputFault` for any that could be more than a name."""
    if not NAME.fullmatch(name):
        raise InputFault("a run or grant id has 1 to 64 letters, digits, '_' or '-', and begins with none of these two")


def check_rekey(request: Rekey) -> None:
    """Raises `InputFault` where the key or a name of a body cannot be used. No dot: a body's sidecar has one."""
    check_name(request.grant_id)
    if len(request.public_key) != KEY:
        raise InputFault(f"a public key has {KEY} bytes, not {len(request.public_key)}")
    if not 0 < len(set(request.bodies)) == len(request.bodies) <= MOST_REKEYED:
        raise InputFault(f"1 to {MOST_REKEYED} files are encrypted anew in one go, each under a name of its own")
    if not all(_BODY.fullmatch(body) for body in request.bodies):
        raise InputFault("a body's name has 1 to 64 letters a-z, digits, '_' or '-', and begins with none of these two")


def check_join(request: Join) -> None:
    """As `check_rekey`."""
    check_rekey(Rekey(request.token, request.grant_id, request.public_key, (request.body,)))


def check_rewrite(request: Rewrite) -> None:
    """As `check_rekey`."""
    check_rekey(Rekey(request.token, request.grant_id, request.public_key, (request.body,)))


def files_descriptor(files: tuple[MountedFile, ...]) -> int:
    """A sealed memory file with the list, as JSON. The caller closes it."""
    return memory_file("files", msgspec.json.encode(files))


def read_files(descriptor: int) -> tuple[MountedFile, ...]:
    """The list again. Raises `InputFault` where it is none."""
    size = os.fstat(descriptor).st_size
    if size > FILES_BYTES:
        raise InputFault(f"the list of files has {size} bytes, more than {FILES_BYTES}")
    data = os.pread(descriptor, size, 0)
    try:
        return msgspec.json.decode(data, type=tuple[MountedFile, ...])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputFault(f"the list of files cannot be read: {error}") from None


def memory_file(name: str, data: bytes) -> int:
    """A file in memory that holds `data`, read from its start, and that nobody can change."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _kinds(kind: type[Fault]) -> dict[str, type[Fault]]:
    found = {kind.code: kind}
    for narrower in kind.__subclasses__():
        if narrower is not RefusedFault:
            found |= _kinds(narrower)
    return found


_KINDS: Final[dict[str, type[Fault]]] = {**_kinds(Fault), InternalFault.code: InternalFault}
