"""Other encrypting file systems over the same content, for the benchmark of the mount: gocryptfs with both of its
ciphers, and crypt4ghfs in an environment of its own (`make bench` builds it)."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from valv.formats.crypt4gh import KeyPair
from valv.formats.keyfile import write_private

CRYPT4GHFS = Path(__file__).parents[1] / ".venv-bench" / "bin" / "crypt4ghfs"
START = 15.0


@dataclass(frozen=True)
class Mounted:
    """A mounted file system: where the files are, and the process that serves it."""

    files: list[Path]
    pid: int


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Gocryptfs:
    """`plain`: the files, copied in once. Raises `SystemExit` where gocryptfs is not installed."""

    def __init__(self, folder: Path, plain: Sequence[Path], *words: str) -> None:
        if shutil.which("gocryptfs") is None:
            raise SystemExit("gocryptfs is not installed: apt-get install gocryptfs")
        self._cipher, self._target = folder / "cipher", folder / "mnt"
        self._secret = folder / "passphrase"
        for made in (folder, self._cipher, self._target):
            made.mkdir()
        self._secret.write_text(os.urandom(16).hex())
        given = ("-q", "-passfile", str(self._secret))
        subprocess.run(["gocryptfs", "-init", "-scryptn", "10", *words, *given, str(self._cipher)], check=True)
        self._names = [path.name for path in plain]
        with self.mounted() as mounted:
            for source, target in zip(plain, mounted.files, strict=True):
                shutil.copyfile(source, target)

    @contextmanager
    def mounted(self) -> Iterator[Mounted]:
        words = ["gocryptfs", "-fg", "-q", "-passfile", str(self._secret), str(self._cipher), str(self._target)]
        with _served(words, self._target) as pid:
            yield Mounted([self._target / name for name in self._names], pid)


class Crypt4ghfs:
    """`files`: Crypt4GH files with the ending `.c4gh`, made for `keys`."""

    def __init__(self, folder: Path, files: Sequence[Path], keys: KeyPair) -> None:
        if not CRYPT4GHFS.exists():
            raise SystemExit("crypt4ghfs is not installed: run 'make bench NAME=mount'")
        self._folder, self._target = folder, folder / "mnt"
        for made in (folder, self._target):
            made.mkdir()
        self._names = [path.name.removesuffix(".c4gh") for path in files]
        (folder / "key").write_text(write_private(keys.private, "bench"))
        (folder / "key").chmod(0o600)
        self._conf = folder / "conf"
        self._conf.write_text(
            f"[DEFAULT]\nrootdir={files[0].parent}\nextension=.c4gh\n"
            f"[CRYPT4GH]\nseckey={folder / 'key'}\n[FUSE]\noptions=ro,default_permissions\n"
        )
        self._conf.chmod(0o600)

    @contextmanager
    def mounted(self) -> Iterator[Mounted]:
        words = [str(CRYPT4GHFS), "--foreground", "--conf", str(self._conf), str(self._target)]
        surroundings = {**os.environ, "C4GH_PASSPHRASE": "bench"}  # a key of this benchmark alone
        with _served(words, self._target, surroundings) as pid:
            yield Mounted([self._target / name for name in self._names], pid)


@contextmanager
def _served(words: Sequence[str], target: Path, surroundings: dict[str, str] | None = None) -> Iterator[int]:
    child = subprocess.Popen(words, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: target.is_mount() or child.poll() is not None)
        if not target.is_mount():
            raise SystemExit(f"{words[0]} did not mount (exit code {child.poll()})")
        yield child.pid
    finally:
        subprocess.run(["umount", str(target)], check=False, capture_output=True)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + START
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
