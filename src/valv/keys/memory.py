"""Secrets in memory: locked against swapping, left out of core dumps, wiped when done.

Limits, said plainly: `cryptography` copies a key into OpenSSL's own memory while it works with it (and cleanses that
copy), and a Python `bytes` object cannot be wiped. So the one secret that lives as long as the process (the root key)
rests here, and every other secret exists as `bytes` only inside the call that needs it.
"""

from __future__ import annotations

import ctypes
import mmap
import resource
from typing import Final

PR_SET_DUMPABLE: Final = 4


class Secret:
    """A few secret bytes in a page of their own. `locked` says whether the kernel agreed to keep it out of swap."""

    __slots__ = ("_length", "_page", "locked")

    def __init__(self, value: bytes) -> None:
        self._length = len(value)
        self._page = mmap.mmap(-1, max(self._length, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._page.madvise(mmap.MADV_DONTDUMP)
        self._page.madvise(mmap.MADV_DONTFORK)
        self.locked = _lock(self._page)
        self._page[: self._length] = value

    def view(self) -> memoryview:
        """The secret without a copy. Release it (use `with`) before `wipe`."""
        return memoryview(self._page)[: self._length].toreadonly()

    def wipe(self) -> None:
        """Overwrite and give back the page. Repeating is no error."""
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
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE) failed")


def _lock(page: mmap.mmap) -> bool:
    """mlock(2) on the page. False where RLIMIT_MEMLOCK does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.c_char.from_buffer(page)
    return bool(libc.mlock(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(page))) == 0)
