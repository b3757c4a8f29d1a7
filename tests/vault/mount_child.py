"""Serves a mount in a process of its own, for the tests: a mount must not be used from the process that serves it.

Arguments: a folder with `spec.json`, the descriptor of `/dev/fuse`, and the user id to become, or "". In the folder,
`granted` stands for the permit, `hang` makes the store hang, `store-away` and `keys-away` make the store and the key
holder unreachable, `reads.json` tells the last beat.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import msgspec

from valv.errors import UnreachableFault
from valv.formats.crypt4gh import reseal
from valv.ports.compute import MountedFile
from valv.ports.storage import Body, Place
from valv.storage.local import LocalBody, LocalStorage
from valv.vault.mount import MountServer


class HangingBody:
    """A body whose storage can be made to hang, and to be away."""

    def __init__(self, body: LocalBody, folder: Path) -> None:
        self._body = body
        self._folder = folder
        self.size = body.size

    def pread_into(self, target: memoryview, offset: int) -> int:
        while (self._folder / "hang").exists():
            time.sleep(0.02)
        check(self._folder / "store-away")
        return self._body.pread_into(target, offset)

    def close(self) -> None:
        self._body.close()


def check(away: Path) -> None:
    if away.exists():
        raise UnreachableFault("it does not answer")


class Spec(msgspec.Struct):
    files: list[MountedFile]
    private_key: bytes


def main() -> None:
    folder, fd = Path(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3]:
        user = int(sys.argv[3])
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=Spec)
    store = LocalStorage(folder / "store", Place("SE", "test"))

    def open_body(name: str) -> Body:
        check(folder / "store-away")
        return HangingBody(store.open(name), folder)  # type: ignore[return-value]

    def open_header(file: MountedFile, public: bytes) -> bytes:
        check(folder / "keys-away")
        return reseal(file.header, [spec.private_key], [public])

    def beat(reads: dict[str, int]) -> bool:
        (folder / "reads.new").write_text(json.dumps(reads))
        (folder / "reads.new").rename(folder / "reads.json")
        return (folder / "granted").exists()

    server = MountServer(fd, spec.files, open_body=open_body, open_header=open_header, beat=beat)
    server.run()


if __name__ == "__main__":
    main()
