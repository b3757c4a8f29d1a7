"""Scratch of a run: memory with a bound, gone when it is unmounted. What a run writes never reaches a disk."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path
from typing import Final

from valv.errors import ComputeFault

_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
_BLOCK: Final = 4096
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def mount(target: Path, size: int, uid: int) -> None:
    """A file system in memory of `size` bytes on the folder `target`, owned by `uid`. Raises `ComputeFault`."""
    # One inode for each 4 KiB, so that empty files cannot take more memory than full ones.
    options = f"size={size},nr_inodes={size // _BLOCK + 64},mode=0700,uid={uid},gid={uid}"
    if _mount(b"tmpfs", target, f"{options},noswap"):
        return
    if not _mount(b"tmpfs", target, options):  # kernels before 6.4 do not know noswap
        raise ComputeFault(f"scratch cannot be mounted: {os.strerror(ctypes.get_errno())}")


def mount_proc() -> None:
    """A fresh /proc over the old one: beside it a sandbox may mount its own, which it may not beside a masked one."""
    if not _mount(b"proc", Path("/proc"), ""):
        raise ComputeFault(f"/proc cannot be mounted: {os.strerror(ctypes.get_errno())}")


def unmount(target: Path) -> None:
    """Take the mount away at once, whoever still has files open in it. No error where there is none."""
    _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW)


def wipe(folder: Path) -> None:
    """Remove the folder with all in it, also what the run closed against reading. Links are not followed.

    By the system's own programs: they cope with any depth of folders. Raises `ComputeFault`.
    """
    if not folder.exists():
        return
    subprocess.run(["chmod", "-R", "u+rwx", "--", folder], capture_output=True, check=False)
    done = subprocess.run(["rm", "-rf", "--", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ComputeFault(f"{folder} cannot be removed", "look into it and remove it by hand")


def _mount(kind: bytes, target: Path, options: str) -> bool:
    failed: int = _libc.mount(kind, os.fsencode(target), kind, _MS_NOSUID | _MS_NODEV, options.encode())
    return not failed
