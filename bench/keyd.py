"""A re-seal through the key holder against the bare re-seal in this process (the limit: same cryptography, no checks).

Prints microseconds for each and the ratio: the round trip pays for the socket, the check of the grant, and reading and
unwrapping the key's record from disk each time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from valv.config import Keys
from valv.errors import Fault
from valv.formats import crypt4gh
from valv.keys.client import KeydClient
from valv.keys.file import FileKeyring, FileRoot
from valv.keys.keyd import Keyd
from valv.keys.roles import Roles
from valv.keys.server import Server
from valv.keys.store import Store

ROUNDS = 2000


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


def serve(folder: Path) -> None:
    """Run the key holder in this process until it is killed."""
    roles = Roles(own_uid=os.geteuid(), shared=True)
    keyd = Keyd(folder, "bench", roles, FileKeyring(Keys()))
    keyd.unseal(b"bench-phrase")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "keyd.sock"))
        listener.listen()
        Server(keyd, roles, listener).serve()


def connect(folder: Path) -> KeydClient:
    client = KeydClient(folder / "keyd.sock")
    for _ in range(1000):
        with contextlib.suppress(Fault):
            client.status()
            return client
        time.sleep(0.01)
    raise SystemExit("the key holder did not start")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "keys")
        folder.mkdir(mode=0o700)
        Store.create(folder, "bench", FileRoot.create(folder / "root.json", b"bench-phrase"))
        child = os.fork()
        if child == 0:
            serve(folder)
            os._exit(0)
        try:
            measure(connect(folder))
        finally:
            os.kill(child, 9)
            os.waitpid(child, 0)


def measure(client: KeydClient) -> None:
    header = crypt4gh.build_header(bytes(32), [client.create("version", "anonymised")])
    client.grant("run", ["version"], os.geteuid(), 600)
    mine = crypt4gh.generate_keypair()
    ours = crypt4gh.build_header(bytes(32), [mine.public])
    bare, bare_worst = microseconds(lambda: crypt4gh.reseal(ours, [mine.private], [mine.public]))
    trip, trip_worst = microseconds(lambda: client.reseal("run", "version", header, mine.public))
    ping, ping_worst = microseconds(client.status)
    print(f"re-seal in process        {bare:7.0f} µs   p99 {bare_worst:7.0f}")
    print(f"status through keyd       {ping:7.0f} µs   p99 {ping_worst:7.0f}")
    print(f"re-seal through keyd      {trip:7.0f} µs   p99 {trip_worst:7.0f}   ratio {trip / bare:.2f}")


if __name__ == "__main__":
    main()
