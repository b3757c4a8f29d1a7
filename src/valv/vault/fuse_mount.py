"""Mounting and unmounting a FUSE file system: by mount(2) as root, through `fusermount3` otherwise."""

from __future__ import annotations

import array
import ctypes
import errno
import os
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from valv.errors import ComputeFault

_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MNT_DETACH: Final = 2
_READ_AHEAD_KIB: Final = 4096
_libc: Final = ctypes.CDLL(None, use_errno=True)


def mount(target: Path, *, owner_uid: int, owner_gid: int | None = None, allow_other: bool = False) -> int:
    """Mount read-only on the folder `target`; returns the descriptor on which the server must then answer.

    `owner_uid`, `owner_gid` (the same number if None): who may enter; everybody with `allow_other`, which for others
    than root needs `user_allow_other` in /etc/fuse.conf. Raises `ComputeFault`.
    """
    if os.geteuid() == 0:
        return _mount_as_root(target, owner_uid, owner_uid if owner_gid is None else owner_gid, allow_other)
    return _mount_by_helper(target, allow_other)


def unmount(target: Path, *, lazy: bool = True) -> None:
    """Unmount; nothing happens where nothing is mounted. `lazy`: at once out of sight, gone with the last open file.
    Raises `ComputeFault`, so where the mount is busy and `lazy` is not asked for."""
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(target), _MNT_DETACH if lazy else 0) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):
            raise ComputeFault(f"{target} cannot be unmounted: {os.strerror(number)}")
        return
    if not is_mounted(target):
        return
    done = subprocess.run(
        ["fusermount3", "-u", *(["-z"] if lazy else []), "--", target], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ComputeFault(f"{target} cannot be unmounted: {done.stderr.strip()}")


def is_mounted(target: Path) -> bool:
    """Without touching the mount itself, which may hang."""
    return _device(target) is not None


def _mount_as_root(target: Path, uid: int, gid: int, allow_other: bool) -> int:
    fd = -1
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions"
        options += ",allow_other" if allow_other else ""
        flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        if _libc.mount(b"valv", os.fsencode(target), b"fuse.valv", ctypes.c_ulong(flags), options.encode()):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise ComputeFault(
            f"the decrypting mount cannot be made: {error.strerror}", "load the kernel's fuse module; see 'valv doctor'"
        ) from None
    _widen_read_ahead(target)
    return fd


def _mount_by_helper(target: Path, allow_other: bool) -> int:
    options = "ro,nosuid,nodev,default_permissions,fsname=valv,subtype=valv" + (",allow_other" if allow_other else "")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", options, "--", target],
                env={"_FUSE_COMMFD": str(theirs.fileno()), "PATH": "/usr/bin:/bin"},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise ComputeFault("the decrypting mount needs 'fusermount3'", "install the package fuse3") from None
        if done.returncode:
            raise ComputeFault(f"the decrypting mount cannot be made: {done.stderr.strip()}")
        space = array.array("i", [0])
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(space.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            space = array.array("i", data[: space.itemsize])
            os.set_inheritable(space[0], False)
            return space[0]
    raise ComputeFault("'fusermount3' gave no descriptor of the mount")


def _widen_read_ahead(target: Path) -> None:
    """The kernel reads 128 KiB ahead unless told otherwise. Only speed hangs on it, so a read-only /sys is no fault."""
    with suppress(OSError):
        Path(f"/sys/class/bdi/{_device(target)}/read_ahead_kb").write_text(f"{_READ_AHEAD_KIB}\n")


def _device(target: Path) -> str | None:
    """`major:minor` of what is mounted on `target`, None where nothing is."""
    path = os.fsencode(target.absolute())
    for octal, plain in ((rb"\134", b"\\"), (rb"\040", b" "), (rb"\011", b"\t"), (rb"\012", b"\n")):
        path = path.replace(plain, octal)
    device = None
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split(b" ")
        if fields[4] == path:
            device = fields[2].decode()  # the last one lies on top
    return device
