"""The decrypting mount, on a real kernel."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from valv.errors import ComputeFault, InputFault
from valv.formats.crypt4gh import generate_keypair
from valv.formats.seal import sidecar
from valv.ports.compute import MountedFile
from valv.ports.storage import Place
from valv.storage.local import LocalStorage
from valv.vault.encrypt import Encryptor
from valv.vault.fuse_mount import is_mounted, mount, unmount
from valv.vault.fuse_tree import Tree

CHILD = Path(__file__).with_name("mount_child.py")
CONTENT = {
    "set/large.bin": random.Random(1).randbytes(9_000_001),
    "set/segments.bin": random.Random(2).randbytes(3 * 65536),
    "set/deep/er/small.txt": b"small\n",
    "set/empty": b"",
    "other/damaged.bin": random.Random(3).randbytes(200_000),
    "other/åäö.txt": "åäö".encode(),
}


class Mounted:
    """A served mount and the folder that steers its child."""

    child: subprocess.Popen[bytes]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.target = folder / "mnt"
        self.store = LocalStorage(folder / "store", Place("SE", "test"))

    def path(self, name: str) -> Path:
        return self.target / name

    def grant(self) -> None:
        (self.folder / "granted").touch()

    def revoke(self) -> None:
        (self.folder / "granted").unlink()

    def hang(self) -> None:
        (self.folder / "hang").touch()

    def unhang(self) -> None:
        (self.folder / "hang").unlink(missing_ok=True)

    def reads(self) -> dict[str, int]:
        return dict(json.loads((self.folder / "reads.json").read_text()))


@contextmanager
def served(folder: Path, user: int | None = None) -> Iterator[Mounted]:
    """`user`: who serves, where not we ourselves."""
    it = Mounted(folder)
    keys = generate_keypair()
    files = []
    for number, (path, content) in enumerate(CONTENT.items()):
        body = f"body{number}"
        encryptor = Encryptor(it.store.writer(body), it.store.writer(sidecar(body)), keys.public)
        encryptor.write(content)
        sealed = encryptor.finish()
        files.append(MountedFile(path, path, body, sealed.header, "key", sealed.size, sealed.seal_root))
        if "damaged" in path:
            (stored,) = (folder / "store" / "bodies").glob(f"*/{body}")
            with stored.open("r+b") as file:
                file.seek(65564 + 500)
                file.write(b"\0\1\2\3")
    (folder / "spec.json").write_bytes(msgspec.json.encode({"files": files, "private_key": keys.private}))
    it.target.mkdir()
    it.grant()
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user)
    try:
        fd = mount(it.target, owner_uid=os.getuid(), allow_other=os.getuid() == 0)
    except ComputeFault as fault:
        pytest.skip(f"no FUSE here: {fault}")
    child = subprocess.Popen([sys.executable, str(CHILD), str(folder), str(fd), str(user or "")], pass_fds=[fd])
    it.child = child
    os.close(fd)
    try:
        yield it
        it.unhang()
        killed = child.poll()
        unmount(it.target)
        assert killed or child.wait(20) == 0
    finally:
        unmount(it.target)
        if child.poll() is None:
            child.kill()
            child.wait()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    with served(tmp_path) as it:
        yield it


def soon(check: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if check():
            return True
        time.sleep(0.01)
    return False


def denied(action: Callable[[], object], number: int = errno.EACCES) -> bool:
    try:
        action()
    except OSError as error:
        return error.errno == number
    return False


def test_content_is_the_plain_content(mounted: Mounted) -> None:
    for name, content in CONTENT.items():
        if "damaged" not in name:
            assert mounted.path(name).read_bytes() == content, name


def test_ranges(mounted: Mounted) -> None:
    draw = random.Random(4)
    content = CONTENT["set/large.bin"]
    fd = os.open(mounted.path("set/large.bin"), os.O_RDONLY)
    for _ in range(200):
        offset, size = draw.randrange(len(content) + 1000), draw.choice((1, 100, 4096, 65536, 300_000))
        assert os.pread(fd, size, offset) == content[offset : offset + size]
    os.close(fd)


def test_mapping(mounted: Mounted) -> None:
    content = CONTENT["set/large.bin"]
    with mounted.path("set/large.bin").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert pages[5_000_000:5_000_100] == content[5_000_000:5_000_100]
        assert pages[:] == content


def test_listing_and_attributes(mounted: Mounted) -> None:
    found = {
        str((Path(folder) / name).relative_to(mounted.target))
        for folder, _, names in os.walk(mounted.target)
        for name in names
    }
    assert found == set(CONTENT)
    listed = subprocess.run(["ls", "-laR", mounted.target], capture_output=True, text=True, check=True)
    assert "large.bin" in listed.stdout
    status = mounted.path("set/large.bin").stat()
    assert status.st_size == len(CONTENT["set/large.bin"])
    assert status.st_blksize == 1 << 20
    assert status.st_mode & 0o777 == 0o444
    assert mounted.path("set").stat().st_nlink == 3
    assert not mounted.path("set/missing").exists()
    assert denied(lambda: mounted.path("set/empty/below").stat(), errno.ENOTDIR)
    room = os.statvfs(mounted.target)
    assert room.f_blocks * room.f_frsize >= sum(map(len, CONTENT.values()))
    assert room.f_bavail == 0
    with pytest.raises(OSError, match=r"not supported"):
        os.getxattr(mounted.path("set/empty"), "user.x")


def test_a_folder_of_many_files_is_listed_once_each() -> None:
    names = [f"{number:05}" for number in range(3000)]
    tree = Tree([MountedFile(name, f"d/{name}", "b", b"", "k", 0, b"") for name in names], uid=0, gid=0, time=0)
    node = tree.nodes[1].children[b"d"]
    for plus in (False, True):
        seen: list[str] = []
        offset = 0
        while listing := tree.entries(node, offset, 4096, plus=plus):
            assert len(listing) <= 4096
            offset = parse_listing(listing, seen, plus=plus)
        assert seen == [".", "..", *names]


def parse_listing(listing: bytes, seen: list[str], *, plus: bool) -> int:
    """Adds the names to `seen`; where the listing goes on."""
    at, offset = 0, 0
    while at < len(listing):
        at += 128 if plus else 0
        offset = int.from_bytes(listing[at + 8 : at + 16], sys.byteorder)
        length = int.from_bytes(listing[at + 16 : at + 20], sys.byteorder)
        seen.append(listing[at + 24 : at + 24 + length].decode())
        at += (24 + length + 7) // 8 * 8
    return offset


def test_every_write_is_refused(mounted: Mounted) -> None:
    file, folder = mounted.path("set/large.bin"), mounted.path("set")
    for action in (
        lambda: file.open("r+b"),
        lambda: file.open("ab"),
        lambda: (folder / "new").open("wb"),
        lambda: (folder / "new").mkdir(),
        lambda: (folder / "new").symlink_to("x"),
        lambda: os.link(file, folder / "new"),
        lambda: os.mkfifo(folder / "new"),
        lambda: file.unlink(),
        lambda: (folder / "deep").rmdir(),
        lambda: file.rename(folder / "new"),
        lambda: file.chmod(0o777),
        lambda: os.utime(file),
        lambda: os.truncate(file, 0),
    ):
        assert denied(action, errno.EROFS)
    if os.geteuid() == 0:
        assert denied(lambda: os.setxattr(file, "user.x", b""), errno.EROFS)


def test_altered_bytes_are_an_error_and_only_they(mounted: Mounted) -> None:
    fd = os.open(mounted.path("other/damaged.bin"), os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    content = CONTENT["other/damaged.bin"]
    assert os.pread(fd, 4096, 0) == content[:4096]
    assert denied(lambda: os.pread(fd, 4096, 70_000), errno.EIO)
    assert os.pread(fd, 4096, 140_000) == content[140_000:144_096]
    os.close(fd)
    assert denied(mounted.path("other/damaged.bin").read_bytes, errno.EIO)


def test_many_readers(mounted: Mounted) -> None:
    content = CONTENT["set/large.bin"]
    wrong: list[int] = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        fd = os.open(mounted.path("set/large.bin"), os.O_RDONLY)
        for _ in range(100):
            offset = draw.randrange(len(content))
            if os.pread(fd, 100_000, offset) != content[offset : offset + 100_000]:
                wrong.append(offset)
        os.close(fd)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_was_read_is_told(mounted: Mounted) -> None:
    assert mounted.path("set/segments.bin").read_bytes()
    assert soon(lambda: mounted.reads() == {"set/segments.bin": 3 * 65536})
    assert mounted.path("set/deep/er/small.txt").read_bytes()
    assert soon(lambda: mounted.reads().get("set/deep/er/small.txt") == 6)


def test_revocation_reaches_open_files_cached_and_mapped_pages(mounted: Mounted) -> None:
    path = mounted.path("set/large.bin")
    assert path.read_bytes() == CONTENT["set/large.bin"]
    fd = os.open(path, os.O_RDONLY)
    touch = "import mmap,sys,time; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=1); m[5000000]; "
    touch += "print('up',flush=True)\nwhile True: m[5000000]; time.sleep(.01)"
    mapper = subprocess.Popen([sys.executable, "-c", touch, str(path)], stdout=subprocess.PIPE)
    assert mapper.stdout is not None
    assert mapper.stdout.readline() == b"up\n"
    began = time.monotonic()
    mounted.revoke()
    assert soon(lambda: denied(lambda: os.pread(fd, 4096, 0)))
    assert time.monotonic() - began < 1.0
    assert mapper.wait(10) == -7  # SIGBUS: its page is gone and may not come back
    mapper.stdout.close()
    for offset in range(0, 9_000_000, 500_000):
        assert denied(lambda offset=offset: os.pread(fd, 4096, offset))
    for name in CONTENT:
        assert denied(lambda name=name: mounted.path(name).open("rb"))
    mounted.grant()
    assert soon(lambda: not denied(lambda: os.pread(fd, 4096, 0)))
    assert os.pread(fd, 4096, 0) == CONTENT["set/large.bin"][:4096]
    os.close(fd)


def test_revocation_reaches_readers_that_hang_in_storage(mounted: Mounted) -> None:
    fd = os.open(mounted.path("set/large.bin"), os.O_RDONLY)
    assert mounted.path("set/segments.bin").read_bytes()
    cached = os.open(mounted.path("set/segments.bin"), os.O_RDONLY)
    mounted.hang()
    outcomes: list[bool] = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(denied(lambda: os.pread(fd, 4096, n * 2_000_000))))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert outcomes == []
    began = time.monotonic()
    mounted.revoke()
    for thread in threads:
        thread.join(10)
    assert outcomes == [True] * 4
    assert denied(lambda: os.pread(cached, 4096, 0)) or soon(lambda: denied(lambda: os.pread(cached, 4096, 0)), 1)
    assert time.monotonic() - began < 1.5
    os.close(fd)
    mounted.unhang()
    mounted.grant()
    assert soon(lambda: not denied(mounted.path("set/large.bin").read_bytes))
    assert mounted.path("set/large.bin").read_bytes() == CONTENT["set/large.bin"]
    os.close(cached)


def test_a_store_that_is_away_is_an_error_and_no_refusal(mounted: Mounted) -> None:
    away, path = mounted.folder / "store-away", mounted.path("set/large.bin")
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    assert os.pread(fd, 4096, 0) == CONTENT["set/large.bin"][:4096]
    away.touch()
    assert denied(lambda: os.pread(fd, 4096, 5_000_000), errno.EIO)
    assert denied(lambda: mounted.path("set/segments.bin").open("rb"), errno.EIO)
    mounted.revoke()
    assert soon(lambda: denied(lambda: os.pread(fd, 4096, 6_000_000)))  # a lost permit says so whatever stores do
    mounted.grant()
    away.unlink()
    assert soon(lambda: not denied(lambda: os.pread(fd, 4096, 5_000_000)))
    assert os.pread(fd, 4096, 5_000_000) == CONTENT["set/large.bin"][5_000_000:5_004_096]
    os.close(fd)
    assert mounted.path("set/segments.bin").read_bytes() == CONTENT["set/segments.bin"]


def test_without_the_key_holder_nothing_is_opened(mounted: Mounted) -> None:
    away = mounted.folder / "keys-away"
    away.touch()
    assert denied(lambda: mounted.path("set/segments.bin").open("rb"))
    away.unlink()
    assert mounted.path("set/segments.bin").read_bytes() == CONTENT["set/segments.bin"]


def test_the_server_needs_no_privilege(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("handing the mount to another user needs root")
    with tempfile.TemporaryDirectory() as name, served(Path(name), user=65534) as it:
        for path, content in CONTENT.items():
            if "damaged" not in path:
                assert it.path(path).read_bytes() == content
        other = subprocess.run(
            ["cat", it.path("set/deep/er/small.txt")], user=1, group=1, capture_output=True, check=False
        )
        assert other.returncode != 0  # the folder above the mount is not for others
        it.revoke()
        assert soon(lambda: denied(it.path("set/large.bin").read_bytes))


def test_a_server_that_dies_gives_nothing_any_more(mounted: Mounted) -> None:
    fd = os.open(mounted.path("set/large.bin"), os.O_RDONLY)
    mounted.child.kill()
    mounted.child.wait()
    assert soon(lambda: denied(lambda: os.pread(fd, 4096, 8_000_000), errno.ENOTCONN))
    assert denied(lambda: os.close(fd), errno.ENOTCONN)


def test_unmounting_is_idempotent(tmp_path: Path) -> None:
    assert not is_mounted(tmp_path)
    unmount(tmp_path)
    unmount(tmp_path / "missing")


@pytest.mark.parametrize(
    "path", ["", "/", "/abs", "a//b", "a/", "../a", "a/../b", "a/./b", ".", "a\0b", "x" * 256, "\ud800"]
)
def test_unclean_paths_are_refused(path: str) -> None:
    with pytest.raises(InputFault):
        Tree([MountedFile("f", path, "b", b"", "k", 0, b"")], uid=0, gid=0, time=0)


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_paths_that_collide_are_refused(paths: tuple[str, str]) -> None:
    with pytest.raises(InputFault):
        Tree([MountedFile("f", path, "b", b"", "k", 0, b"") for path in paths], uid=0, gid=0, time=0)
