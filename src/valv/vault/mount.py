"""A read-only file system that decrypts as it reads, on an open `/dev/fuse` descriptor.

The kernel's protocol is spoken directly, by a few threads with a queue each. Files are immutable, so the kernel may
keep names, attributes and pages; but only while the permit stands. When the lease is lost

- each open and read answers EACCES, those that wait in the middle of a read too;
- the kernel drops the pages that it holds, also where they are mapped into a process.

A reply that is on its way while the lease is lost does no harm: its pages are locked until it arrives, and dropping
them waits for that.

When the serving process dies, the kernel gives no more than the pages it has: whoever started it must then unmount and
end the processes that have files open.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from valv.errors import Fault, RefusedFault, SealedFault
from valv.formats.crypt4gh import generate_keypair
from valv.ports.compute import MountedFile
from valv.ports.storage import Body
from valv.vault import fuse_wire as wire
from valv.vault.fuse_files import FileGate, KeysAwayFault
from valv.vault.fuse_tree import FOREVER, Node, Tree
from valv.vault.fuse_wire import Op, Request
from valv.vault.lease import HeldLease

_log: Final = logging.getLogger(__name__)
_CLOSING: Final = 2.0
"""Seconds that closing waits for the kernel to drop pages and for threads that hang in storage."""
_NOT_NOW: Final = (RefusedFault, SealedFault, KeysAwayFault)


class _Answer(Exception):
    """Answer the request with this errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class MountServer:
    """Serves `files` on `fd`, a `/dev/fuse` descriptor that is mounted already (`valv.vault.fuse_mount`).

    `open_body`: the store's `open`. `open_header`: gets a file and this server's public key (fresh for each server),
    returns the file's header re-sealed to it. `beat`: told the plain bytes read so far by file id, answers whether the
    permit stands. `owner`: user and group id that own every node. Takes over `fd`.
    """

    def __init__(
        self,
        fd: int,
        files: Sequence[MountedFile],
        *,
        open_body: Callable[[str], Body],
        open_header: Callable[[MountedFile, bytes], bytes],
        beat: Callable[[dict[str, int]], bool],
        threads: int = 2,
        owner: tuple[int, int] | None = None,
    ) -> None:
        uid, gid = owner or (os.geteuid(), os.getegid())
        keys = generate_keypair()
        self._tree = Tree(files, uid=uid, gid=gid, time=int(time.time()))
        self._gates = {
            node.ino: FileGate(node.file, keys, open_body, open_header)
            for node in self._tree.nodes.values()
            if node.file
        }
        self._fd = fd
        self._threads = threads
        self._lease = HeldLease(lambda: beat(self.reads()))
        self._reads: dict[str, int] = {}
        self._reads_lock = threading.Lock()
        self._waiting: dict[int, int] = {}  # reads in hand: request → the descriptor that answers it
        self._opened: set[int] = set()  # nodes of which the kernel may hold pages
        self._over = threading.Event()
        self._unmounted = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def reads(self) -> dict[str, int]:
        """Plain bytes given to the kernel so far, by file id."""
        with self._reads_lock:
            return dict(self._reads)

    def run(self) -> None:
        """Serve until the file system is unmounted or `close` is called; then close the descriptor."""
        fds = [self._fd, *(_clone(self._fd) for _ in range(self._threads - 1))]
        for fd in fds:
            os.set_blocking(fd, False)
        self._lease.start()
        loops = [threading.Thread(target=self._serve, args=(fd,), name="fuse", daemon=True) for fd in fds]
        loops.append(threading.Thread(target=self._guard, name="fuse-guard", daemon=True))
        for loop in loops:
            loop.start()
        self._over.wait()
        self._lease.end()
        self._refuse_waiting()
        if not self._unmounted:
            self._drop_pages().join(_CLOSING)
        os.eventfd_write(self._wake, 1)
        deadline = time.monotonic() + _CLOSING
        for loop in loops:
            loop.join(max(0.0, deadline - time.monotonic()))
        if not any(loop.is_alive() for loop in loops):
            for fd in {*fds, self._wake}:
                os.close(fd)

    def close(self) -> None:
        """End `run`. The mount stays, without an answer to anything, until it is unmounted."""
        self._over.set()

    # --- the loop ---

    def _serve(self, fd: int, *, while_lost: bool = False) -> None:
        """Answer requests from `fd` until the end, or, `while_lost`, until the lease is held again."""
        request = memoryview(bytearray(wire.MIN_REQUEST))
        reply = memoryview(bytearray(wire.MAX_READ))
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        waiter.register(self._wake, select.POLLIN)
        while not (while_lost and self._lease.held):
            try:
                length = os.readv(fd, [request])
            except OSError as error:
                if error.errno == errno.ENODEV:
                    self._unmounted = True
                    self._over.set()
                    return
                # EAGAIN: nothing to do. ENOENT: the request was withdrawn. EINTR: a signal.
                if error.errno not in (errno.EAGAIN, errno.ENOENT, errno.EINTR):
                    _log.error("the mount cannot be served: %s", os.strerror(error.errno or errno.EIO))
                    self._over.set()
                    return
                ready = waiter.poll(50 if while_lost else None)
                if any(number == self._wake for number, _ in ready):
                    return
                continue
            self._answer(fd, wire.parse_request(request[:length]), reply)

    def _answer(self, fd: int, request: Request, reply: memoryview) -> None:
        if request.op in wire.SILENT:
            return
        try:
            if request.op == Op.READ:
                self._read(fd, request, reply)
                return
            payload = self._handle(request)
        except _Answer as answer:
            self._send(fd, wire.out_header(request.unique, error=answer.number))
        except Exception as error:  # one request must not end the mount; its text may hold a name, so it is not logged
            _log.error("request %d of the mount failed: %s", request.op, type(error).__name__)
            self._send(fd, wire.out_header(request.unique, error=errno.EIO))
        else:
            self._send(fd, wire.out_header(request.unique, length=len(payload)), payload)
        if request.op == Op.DESTROY:
            self._over.set()

    def _send(self, fd: int, *parts: bytes | memoryview) -> None:
        """ENOENT: the request was withdrawn meanwhile; ENODEV: unmounted, which the next read says again."""
        try:
            os.writev(fd, parts)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                _log.error("an answer of the mount was not taken: %s", os.strerror(error.errno or errno.EIO))

    # --- the lease ---

    def _guard(self) -> None:
        """Each time the lease is lost, cut everybody off, and answer requests until it is held again: the other threads
        may hang in storage."""
        while self._lease.wait_lost():
            self._refuse_waiting()
            self._drop_pages()
            self._serve(self._fd, while_lost=True)
            if self._over.is_set():
                return

    def _refuse_waiting(self) -> None:
        for unique in list(self._waiting):
            fd = self._waiting.pop(unique, None)  # None: its thread has come to answer it just now
            if fd is not None:
                self._send(fd, wire.out_header(unique, error=errno.EACCES))

    def _drop_pages(self) -> threading.Thread:
        """In a thread, because the kernel waits for pages that are being read, whose requests somebody must answer."""
        thread = threading.Thread(target=self._invalidate, args=(sorted(self._opened),), name="fuse-drop", daemon=True)
        thread.start()
        return thread

    def _invalidate(self, inos: list[int]) -> None:
        for ino in inos:
            self._send(self._fd, wire.invalidate_inode(ino))

    # --- requests ---

    def _handle(self, request: Request) -> bytes:
        op, data = request.op, request.data
        if op == Op.INIT:
            return self._init(data)
        if op in wire.WRITES:
            raise _Answer(errno.EROFS)
        if op in (Op.FLUSH, Op.RELEASEDIR, Op.DESTROY):
            return b""
        if op == Op.STATFS:
            return wire.statfs_out(size=self._tree.size, files=len(self._tree.nodes), block=4096)
        node = self._tree.nodes.get(request.ino)
        if node is None:
            raise _Answer(errno.ESTALE)
        match op:
            case Op.LOOKUP:
                child = node.children.get(wire.parse_name(data))
                return wire.entry_out(child.ino, child.attributes, FOREVER) if child else wire.no_entry(FOREVER)
            case Op.GETATTR:
                return wire.attr_out(node.attributes, FOREVER)
            case Op.ACCESS:
                if wire.parse_access(data) & os.W_OK:
                    raise _Answer(errno.EROFS)
                return b""
            case Op.OPENDIR:
                return wire.open_out(0)
            case Op.READDIR | Op.READDIRPLUS:
                offset, size = wire.parse_read(data)
                return self._tree.entries(node, offset, size, plus=op == Op.READDIRPLUS)
            case Op.OPEN:
                return self._open(node, wire.parse_open(data))
            case Op.RELEASE:
                self._gates[node.ino].release()
                return b""
            case _:
                raise _Answer(errno.ENOSYS)

    def _init(self, data: memoryview) -> bytes:
        major, minor, flags = wire.parse_init(data)
        if major != wire.MAJOR or minor < wire.MIN_MINOR:
            _log.error("this kernel speaks FUSE %d.%d; %d.%d is needed", major, minor, wire.MAJOR, wire.MIN_MINOR)
            raise _Answer(errno.EPROTO)
        return wire.init_out(flags & wire.WANTED)

    def _open(self, node: Node, flags: int) -> bytes:
        if node.file is None:
            raise _Answer(errno.EISDIR)
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise _Answer(errno.EROFS)
        if not self._lease.held:
            raise _Answer(errno.EACCES)
        try:
            self._gates[node.ino].acquire()
        except Fault as fault:
            raise self._refusal(node.file, fault) from None
        self._opened.add(node.ino)
        return wire.open_out(wire.OPEN_KEEP_CACHE)

    def _read(self, fd: int, request: Request, reply: memoryview) -> None:
        """Answers the request itself, unless the guard has refused it meanwhile."""
        node = self._tree.nodes.get(request.ino)
        if node is None or node.file is None:
            raise _Answer(errno.EISDIR)
        offset, size = wire.parse_read(request.data)
        target = reply[: min(size, wire.MAX_READ)]
        self._waiting[request.unique] = fd
        failed: _Answer | None = None
        length = 0
        try:
            if not self._lease.held:
                raise _Answer(errno.EACCES)
            # A user of its own: once refused, the file may be released while this read still hangs in storage.
            gate = self._gates[node.ino]
            reader = gate.acquire()
            try:
                length = reader.read_into(target, offset)
            finally:
                gate.release()
            if not self._lease.held:
                raise _Answer(errno.EACCES)
        except _Answer as answer:
            failed = answer
        except Fault as fault:
            failed = self._refusal(node.file, fault)
        if self._waiting.pop(request.unique, None) is None:
            return
        if failed is not None:
            raise failed
        with self._reads_lock:
            self._reads[node.file.file_id] = self._reads.get(node.file.file_id, 0) + length
        self._send(fd, wire.out_header(request.unique, length=length), target[:length])

    def _refusal(self, file: MountedFile, fault: Fault) -> _Answer:
        """EACCES where the key holder said no or is away, EIO where the stored bytes are at fault or cannot be had."""
        _log.error("file %s cannot be read: %s", file.file_id, fault.code)
        return _Answer(errno.EACCES if isinstance(fault, _NOT_NOW) else errno.EIO)


def _clone(fd: int) -> int:
    """One more queue on the connection of `fd`; where the device may not be opened, the same queue once more."""
    try:
        clone = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return os.dup(fd)
    try:
        fcntl.ioctl(clone, wire.CLONE, fd.to_bytes(4, "little"))
    except OSError:
        with suppress(OSError):
            os.close(clone)
        return os.dup(fd)
    return clone
