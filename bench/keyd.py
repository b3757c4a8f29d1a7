"""The key holder: re-seals through it against bare re-seals in this process, and the root key made anew.

A re-seal (the limit: the same cryptography, no checks) prints microseconds for each and the ratio: the round trip pays
for the socket, the check of the grant, and reading and unwrapping the key's record from disk each time. Rotation
re-seals many headers in one request. Making the root key anew (a destruction, a ceremony) re-wraps every key: printed
is the time for each key, which must not grow with their number, and the floor that writing so many small files sets.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from valv.config import Keys
from valv.errors import Fault
from valv.formats import crypt4gh
from valv.keys import disk, folder
from valv.keys.client import KeydClient
from valv.keys.file import FileKeyring
from valv.keys.folder import Folder
from valv.keys.keyd import Keyd
from valv.keys.roles import Roles
from valv.keys.server import Server

ROUNDS = 2000
HEADERS = 1000
"""In one request of a rotation."""
FEW, MANY = 1000, 10_000
"""Keys of a node."""
PASSPHRASE = b"bench-phrase"


def microseconds(act: Callable[[], object]) -> tuple[float, float]:
    """Median and 99th percentile of one call."""
    for _ in range(100):
        act()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        act()
        times.append((time.perf_counter_ns() - start) / 1000)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def serve(path: Path, where: Path) -> None:
    """Run the key holder in this process until it is killed."""
    roles = Roles(own_uid=os.geteuid(), shared=True)
    keyd = Keyd(path, "bench", roles, FileKeyring(Keys()))
    keyd.unseal(PASSPHRASE)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen()
        Server(keyd, roles, listener).serve()


def connect(where: Path) -> KeydClient:
    client = KeydClient(where)
    for _ in range(1000):
        with contextlib.suppress(Fault):
            client.status()
            return client
        time.sleep(0.01)
    raise SystemExit("the key holder did not start")


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        path, where = made(Path(name, "keys")), Path(name, "keyd.sock")
        child = os.fork()
        if child == 0:
            serve(path, where)
            os._exit(0)
        try:
            measure(connect(where))
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)
    return rolling()


def made(path: Path) -> Path:
    path.mkdir(mode=0o700)
    folder.create(path, "bench", FileKeyring(Keys()), PASSPHRASE).wipe()
    return path


def measure(client: KeydClient) -> None:
    header = crypt4gh.build_header(bytes(32), [client.create("version", "anonymised")])
    client.grant("run", ["version"], os.geteuid(), 600)
    mine = crypt4gh.generate_keypair()
    ours = crypt4gh.build_header(bytes(32), [mine.public])
    bare, bare_worst = microseconds(lambda: crypt4gh.reseal(ours, [mine.private], [mine.public]))
    trip, trip_worst = microseconds(lambda: client.reseal("run", "version", header, mine.public))
    ping, ping_worst = microseconds(client.status)
    headers = [header] * HEADERS
    client.rotate("version", 2)
    ratios, times = [], []
    for _ in range(15):  # by turns, so that both see the same machine
        alone = seconds(lambda: [crypt4gh.reseal(ours, [mine.private], [mine.public]) for _ in headers])
        times.append(seconds(lambda: client.reseal_within("version", headers)))
        ratios.append(times[-1] / alone)
    rotated = statistics.median(times) * 1e6 / HEADERS
    print(f"re-seal in process        {bare:7.0f} µs   p99 {bare_worst:7.0f}")
    print(f"status through keyd       {ping:7.0f} µs   p99 {ping_worst:7.0f}")
    print(f"re-seal through keyd      {trip:7.0f} µs   p99 {trip_worst:7.0f}   ratio {trip / bare:.2f}")
    print(f"re-seal, {HEADERS} at a time   {rotated:7.0f} µs each            ratio {statistics.median(ratios):.2f}")


def rolling() -> int:
    """Non-zero where the time for each key grows with the number of keys by more than half."""
    each: dict[int, float] = {}
    for count in (FEW, MANY):
        with tempfile.TemporaryDirectory() as name:
            path = made(Path(name, "keys"))
            opened = Folder(path, FileKeyring(Keys()), PASSPHRASE)
            fill(opened, count)
            took = statistics.median(seconds(opened.roll) for _ in range(3))
            floor = statistics.median(seconds(lambda: write(Path(name), opened, count)) for _ in range(3))  # noqa: B023
            opened.close()
        each[count] = took / count * 1e6
        print(
            f"root key anew, {count:6} keys {took:6.2f} s   {each[count]:5.0f} µs a key"
            f"   ratio to their files alone {took / floor:.2f}"
        )
    growth = each[MANY] / each[FEW]
    print(f"growth of the time a key from {FEW} to {MANY} keys: {growth:.2f}")
    return int(growth > 1.5)


def fill(opened: Folder, count: int) -> None:
    """Make so many keys, quicker than durably one by one."""
    store, durably, versions = opened.store, disk.write, dict[str, int]()
    disk.write = lambda path, data, *, wipe_old=False: void(path.write_bytes(data))  # noqa: ARG005
    store._put_version = lambda key_id, version: versions.update({key_id: version})  # type: ignore[method-assign]
    for number in range(count - 1):
        store.create_key(f"ds-{number:08}", "identifiable")
    disk.write = durably
    del store._put_version
    store._index.versions.update(versions)
    store.create_key("last", "identifiable")


def void(_: object) -> None:
    """Drop a value."""


def write(parent: Path, opened: Folder, count: int) -> None:
    """The floor: so many files of that size, durable, overwritten and removed again."""
    path = parent / "floor"
    path.mkdir()
    content = bytes(len((opened.store._path / "keys" / "last.json").read_bytes()))
    for number in range(count):
        disk.write_loose(path / f"{number}", content)
    disk.sync_all(path)
    disk.wipe_tree(path)


if __name__ == "__main__":
    sys.exit(main())
