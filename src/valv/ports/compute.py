"""Where runs run.

Duties of every backend (`Compute`):

1. The command sees exactly the files of its spec, read-only, under `/data/<path>`, an empty writable `/work` and
   `/outbox`, and a base system; no network, no other process, no other dataset, no host file.
2. Every verb is idempotent: starting a run that is known changes nothing; stopping an ended run is no error.
3. A run ends as a whole tree: after `stop` returns, or when a limit is hit, no process of it is left.
4. When the run's permit loses its lease, reads fail with EACCES within 500 ms and the tree ends within 2 s.
5. Standard output and error go to `stdout.txt` and `stderr.txt` in the outbox: they are outputs like others. What
   stayed empty of these two is not collected.
6. Nothing of a run outlives `discard`.
7. The order is `reserve`, the key holder's grant for the user that it names, `start`, `status` …, `collect`, `discard`.
   A place is taken from `reserve` to `discard`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Final, Literal, Protocol

import msgspec

from valv.errors import Fault, FormatFault, IntegrityFault, KeyFault, MissingFault

MOST_REKEYED: Final = 256
"""Files of one `Reader.rekey`."""
MOST_JOINED: Final = 50_000
"""Pieces of one `Reader.join`."""
DAMAGE: Final = (KeyFault, FormatFault, IntegrityFault, MissingFault)
"""Faults of one file, and not of the moment."""


WHY: Final = {
    "broken": "the file breaks its format, or is cut off",
    "long_row": "the file has a row that is longer than can be worked on",
    "large": "the file is larger than can be worked on as a whole",
    "unknown": "the node cannot rewrite files of this format",
    "opaque": "nobody is listed for the file, and the node cannot look into its format",
    "no_column": "no column of the table says whose a row is",
    "no_tool": "the node has no bcftools, which this format needs",
    "proband": "the family is told of from the person who withdraws",
    "not_found": "the person is listed for the file, and no sample, row or record in it has their name",
    "remains": "after it was rewritten, a name was still in it",
    "damaged": "the stored file does not hold: it was altered, or its key is another",
    "memory": "the file needed more memory than is allowed",
}
"""Why a job cannot be done, by the codes that a sandbox may answer, in words for the custodian. None of them says
anything of the content."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds of one run: wall seconds, bytes of memory, processes and threads, bytes of scratch and outputs."""

    seconds: int = 3600
    memory: int = 2 << 30
    processes: int = 256
    scratch: int = 1 << 30


class MountedFile(msgspec.Struct, frozen=True):
    """One file as a reader process needs it.

    `path`: `<dataset>/<path in it>`; `body`: name in the store; `header`: Crypt4GH header sealed to `key_id`;
    `size`: plain bytes; `seal_root`: root of the seal, 32 bytes; `file_id`: what the ledger calls it; `tree_root`: root
    of the hash tree, 32 bytes, where reads must hold to it too, because somebody outside may know the data key.
    """

    file_id: str
    path: str
    body: str
    header: bytes
    key_id: str
    size: int
    seal_root: bytes
    tree_root: bytes = b""


class RunSpec(msgspec.Struct, frozen=True):
    run_id: str
    grant_id: str
    command: tuple[str, ...]
    files: tuple[MountedFile, ...]
    limits: Limits = Limits()
    environment: dict[str, str] = {}


RunEnd = Literal["exited", "time", "memory", "stopped", "revoked", "lost", "not_started"]


class RunStatus(msgspec.Struct, frozen=True):
    """`exit_code` only where `end` is `exited`; times in seconds since 1970; `cpu` in seconds, `memory` peak bytes;
    `reads`: plain bytes read so far by file id; `detail`: for the operator, never from the run's own output."""

    run_id: str
    state: Literal["starting", "running", "ended", "unknown"]
    end: RunEnd | None = None
    exit_code: int | None = None
    started: float | None = None
    ended: float | None = None
    cpu: float = 0.0
    memory: int = 0
    reads: dict[str, int] = {}
    detail: str = ""


class Output(msgspec.Struct, frozen=True):
    """One collected output, already encrypted for the node's key of the release and committed to the store."""

    path: str
    body: str
    header: bytes
    size: int
    sha256: bytes
    seal_root: bytes
    tree_root: bytes


class Skipped(msgspec.Struct, frozen=True):
    """An entry of the outbox that is not taken, and why (`symlink`, `device`, `fifo`, `name`, `socket`, …)."""

    path: str
    reason: str


class Rekeyed(msgspec.Struct, frozen=True):
    """A body that was encrypted anew: what a row of `file` says of it. Sizes in bytes."""

    header: bytes
    cipher_size: int
    segments: int
    seal_root: bytes
    tree_root: bytes


class Joined(msgspec.Struct, frozen=True):
    """A body that was made of pieces: what a row of `file` says of it. Sizes in bytes; `sha256`: of what the pieces
    hold together. `sealed`: that was a Crypt4GH file already; `header` is then its own, sealed to whom it was made for,
    and `size` the plain bytes within."""

    header: bytes
    size: int
    cipher_size: int
    segments: int
    seal_root: bytes
    tree_root: bytes
    sha256: bytes
    sealed: bool


class Job(msgspec.Struct, frozen=True):
    """What a sandbox does with one file. `rewrite`: take the people `names` out; `look`: search for them; `index`: make
    the index `kind` (`tbi`, `csi`) of it. `path`: as in the dataset, whose ending tells the format; `keep`: names of
    others of which one of `names` is a part."""

    do: Literal["rewrite", "look", "index"]
    path: str
    names: tuple[str, ...]
    keep: tuple[str, ...] = ()
    kind: Literal["", "tbi", "csi"] = ""


RewriteOutcome = Literal["rewritten", "clean", "mentions", "drop", "custodian"]


class Rewritten(msgspec.Struct, frozen=True):
    """The answer to a `Job`. `rewritten`: there is a new body, and the other fields say what a row of `file` says of it
    (sizes in bytes, `sha256` of the plain bytes); `clean`, `mentions`: what a search found; `drop`: the file is of
    these people alone; `custodian`: it is no work for a program, and `why` is the code of the reason."""

    outcome: RewriteOutcome
    why: str = ""
    header: bytes = b""
    size: int = 0
    cipher_size: int = 0
    segments: int = 0
    seal_root: bytes = b""
    tree_root: bytes = b""
    sha256: bytes = b""


class Compute(Protocol):
    def reserve(self, run_id: str) -> int:
        """Set a slot aside for the run and tell the user id that its mount process will have, for the grant that must
        exist before `start`. Raises `ComputeFault` where no slot is free; `discard` gives the slot back."""
        ...

    def start(self, spec: RunSpec) -> None:
        """Start a run that was reserved. Returns before the command runs; `status` tells how it goes."""
        ...

    def status(self, run_id: str) -> RunStatus: ...

    def stop(self, run_id: str) -> None: ...

    def collect(self, run_id: str, public_key: bytes) -> Iterator[Output | Skipped]:
        """After the end: encrypt each output for `public_key` on its way into the store."""
        ...

    def discard(self, run_id: str) -> None: ...

    def runs(self) -> list[str]:
        """Run ids that the backend still knows, for the worker's reconciliation after a restart."""
        ...


class Reader(Protocol):
    """Opens one stored file for a caller that may see plain bytes (an output checker, a released result)."""

    def reserve(self) -> tuple[str, int]:
        """A token, good for one `read` within a minute, and the user id of the process that will read, for the grant
        that must exist before `read`. Raises `ComputeFault` where too many are reading."""
        ...

    def read(self, token: str, grant_id: str, file: MountedFile) -> Iterator[bytes]:
        """The plain bytes in order, complete unless a fault is raised. Closing the iterator ends the reading."""
        ...

    def rekey(
        self, token: str, grant_id: str, files: Sequence[tuple[MountedFile, str]], public_key: bytes
    ) -> Generator[Rekeyed | Fault, None, None]:
        """Encrypt stored files anew (1 to `MOST_REKEYED`), each under a data key that nobody knew, into the store under
        the name that stands beside it, and its sidecar; the old bodies stay. Headers are sealed for `public_key`.

        One answer for each file, in order, as soon as its new body is durable. A fault of the file itself (`DAMAGE`) is
        its answer, nothing is left of its new body, and the others go on. Any other fault is raised and ends all;
        closing the generator does, too. Names whose answer did not come may then have a body, or none. The grant is
        used before the first answer only."""
        ...

    def join(self, token: str, grant_id: str, parts: Sequence[MountedFile], body: str, public_key: bytes) -> Joined:
        """Make one body of pieces (1 to `MOST_JOINED`), in the store under the name `body`, and its sidecar; the pieces
        stay. What they hold together is encrypted under a data key that nobody knew, sealed for `public_key`; a
        Crypt4GH file is taken as it is. After a fault that is the pieces' own (`DAMAGE`) nothing is left of the new
        body; after another one there may be some of it."""
        ...

    def rewrite(
        self, token: str, grant_id: str, file: MountedFile, job: Job, *, public_key: bytes, body: str
    ) -> Rewritten:
        """Let a keyless sandbox work on the plain bytes of a stored file, and encrypt what it makes of it into the
        store under the name `body`, and its sidecar, sealed for `public_key`. The old body stays.

        Raises `FormatFault` where the sandbox ended without an answer (it broke, or hit its bounds), and the other
        faults of the file itself (`DAMAGE`); nothing is then left of the new body. After another fault there may be
        some of it."""
        ...
