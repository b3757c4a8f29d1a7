"""A network of its own for servers that listen on every address: run under `unshare -n`, as a program.

    python xrootd_cell.py PORT:FD[,PORT:FD…] UID GID FOLDER[,FOLDER…]

Each listening socket FD was bound outside, on a loopback address; what connects there is carried to 127.0.0.1:PORT in
here. Each folder has `xrootd.cfg`. The servers end when this program's standard input does.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

SIOCSIFFLAGS = 0x8914
IFF_UP = 1
BLOCK = 1 << 20


def loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def carry(source: socket.socket, target: socket.socket) -> None:
    """Everything from `source`, then the end of it. A break on either side is a break on the other."""
    block = memoryview(bytearray(BLOCK))
    try:
        while count := source.recv_into(block):
            target.sendall(block[:count])
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def serve(outside: socket.socket, port: int) -> None:
    def connect(client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            with server:
                for one in (client, server):
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                back = threading.Thread(target=carry, args=(server, client), daemon=True)
                back.start()
                carry(client, server)
                back.join()

    while True:
        client, _ = outside.accept()
        threading.Thread(target=connect, args=(client,), daemon=True).start()


def main(ports: str, uid: str, gid: str, folders: str) -> None:
    loopback_up()
    for pair in ports.split(","):
        port, _, fd = pair.partition(":")
        threading.Thread(target=serve, args=(socket.socket(fileno=int(fd)), int(port)), daemon=True).start()
    identity = {"user": int(uid), "group": int(gid), "extra_groups": []} if os.geteuid() == 0 else {}
    servers = []
    for folder in map(Path, folders.split(",")):
        with (folder / "log").open("ab") as log:
            servers.append(
                subprocess.Popen(
                    ["xrootd", "-c", folder / "xrootd.cfg", "-n", folder.name],
                    cwd=folder,
                    env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    **identity,
                )
            )
    try:
        sys.stdin.buffer.read()
    finally:
        for server in servers:
            server.kill()
            server.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
