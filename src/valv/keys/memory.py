"""Secrets in memory: hidden from the kernel where it can do that, kept out of swap and core dumps, wiped when done.

The page comes from memfd_secret(2) where there is one: it belongs to this process alone, the kernel takes it out of its
own map of memory, so that /proc/self/mem, a debugger and a fault in the kernel that reads at will find nothing, and it
is never written to a disk, not even when the machine is to hibernate. Else it is anonymous memory under mlock(2).

Limits, said plainly: `cryptography` copies a key into OpenSSL's own memory while it works with it (and cleanses that
copy), and a Python `bytes` object cannot be wiped. So secrets that live as long as the process rest here, written into
their page with `filled` where that can be, and every other secret exists as `bytes` only inside the call that needs it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Callable
from typing import Final

from valv.errors import InputFault

LONGEST: Final = 4096
"""Bytes of the longest secret."""
PR_SET_DUMPABLE: Final = 4
_MEMFD_SECRET: Final = {"x86_64": 447, "aarch64": 447, "riscv64": 447}
"""The number of the system call by machine; the C library has no function for it."""
_MAP_FIXED: Final = 0x10
_MAP_LOCKED: Final = 0x2000
_FAILED: Final = ctypes.c_void_p(-1).value

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Secret:
    """Up to 4096 secret bytes in a page of their own, which forked processes do not have.

    `hidden`: whether the page is the kernel's secret memory. `locked`: whether it is kept out of swap; so is all that
    is hidden.
    """

    __slots__ = ("_length", "_page", "hidden", "locked")

    def __init__(self, value: bytes | bytearray | memoryview[int]) -> None:
        """Raises `InputFault` for more than 4096 bytes."""
        self._open(len(value))
        self._page[: self._length] = value

    @classmethod
    def filled(cls, length: int, fill: Callable[[memoryview[int]], object]) -> Secret:
        """`fill` writes the secret into its page, so that it lies nowhere else. Where it raises, nothing is left."""
        secret = cls.__new__(cls)
        secret._open(length)
        try:
            with memoryview(secret._page) as page, page[:length] as exact:
                fill(exact)
        except BaseException:
            secret.wipe()
            raise
        return secret

    def _open(self, length: int) -> None:
        if length > LONGEST:
            raise InputFault(f"a secret has at most {LONGEST} bytes, this one {length}")
        self._length = length
        self._page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.hidden = _hide(self._page)
        self._page.madvise(mmap.MADV_DONTDUMP)
        self._page.madvise(mmap.MADV_DONTFORK)
        self.locked = self.hidden or _lock(self._page)

    def view(self) -> memoryview[int]:
        """The secret without a copy. Release it (use `with`) before `wipe`."""
        return memoryview(self._page)[: self._length].toreadonly()

    def wipe(self) -> None:
        """Overwrite and give back the page. Repeating is no error. While there are views it overwrites, and then raises
        `BufferError`."""
        if not self.wiped:
            self._page[: self._length] = bytes(self._length)
            self._page.close()

    @property
    def wiped(self) -> bool:
        return self._page.closed

    def __repr__(self) -> str:
        return "Secret()"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a secret is not serialised")


def protect_process() -> None:
    """No core dump, no debugger of the same user, no reading through /proc by others."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")


def _hide(page: mmap.mmap) -> bool:
    """Put secret memory of the kernel in the place of the page, which is still empty.

    False, and the page as it was, where the kernel has no memfd_secret(2) or it is switched off (before Linux 6.5 it
    must be asked for at boot: secretmem.enable=1), a filter forbids it, or the limit on locked memory is reached.
    """
    number = _MEMFD_SECRET.get(os.uname().machine)
    if number is None:
        return False
    descriptor = _libc.syscall(number, os.O_CLOEXEC)
    if descriptor < 0:
        return False
    try:
        os.ftruncate(descriptor, len(page))
        # MAP_LOCKED: the limit is then looked at before the old page is taken away, not after.
        if _map(page, mmap.MAP_SHARED | _MAP_LOCKED, descriptor):
            return True
    except OSError:
        return False
    finally:
        os.close(descriptor)  # the page stays; without a descriptor nobody can map it a second time
    if not _map(page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1):  # older kernels may have left a hole
        raise MemoryError("no memory for a secret")
    return False


def _map(page: mmap.mmap, flags: int, descriptor: int) -> bool:
    """mmap(2) over the page, whose object keeps the address and gives it back at the end."""
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    placed = _libc.mmap(_address(page), len(page), protection, flags | _MAP_FIXED, descriptor, 0)
    return placed is not None and placed != _FAILED


def _lock(page: mmap.mmap) -> bool:
    """mlock(2) on the page. False where RLIMIT_MEMLOCK does not allow it."""
    return bool(_libc.mlock(_address(page), len(page)) == 0)


def _address(page: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(page))
