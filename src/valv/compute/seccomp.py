"""The system call filter of a run: a classic BPF program, assembled here so that no library decides what it says.

Form: `struct sock_filter` (linux/filter.h), 8 bytes each: code u16, jt u8, jf u8, k u32, in the machine's order; it
reads `struct seccomp_data` (linux/seccomp.h): nr at 0, arch at 4, arguments of 8 bytes from 16 on. Numbers are those of
the kernel's system call tables.

A run may do what ordinary programs do: files, threads, processes, UNIX sockets. It may not reach kernel parts that no
analysis needs and from which escapes have come. Calls newer than `NEWEST` answer ENOSYS, so that a newer kernel adds
nothing unseen; programs fall back as on an older kernel.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from valv.errors import ComputeFault

ALLOW: Final = 0x7FFF0000
KILL: Final = 0x80000000
ERRNO: Final = 0x00050000

NEWEST: Final = 456
"""The last number that was judged: futex_requeue. From 424 on all architectures share one numbering."""

ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* by `platform.machine()`. Another architecture, the 32-bit ones too, ends the process."""

REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    # keyrings are shared with the host by user id
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # looking into or steering other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # large attack surface
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    # files past the mount tree
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42),
    # the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
}
"""Calls that answer EPERM: numbers on x86_64 and aarch64, None where the call does not exist."""

MISSING: Final[dict[str, tuple[int, int]]] = {
    "clone3": (435, 435),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
"""Calls that answer ENOSYS, because programs then take an older way. `clone3` hides its flags from a filter."""

_CLONE: Final = (56, 220)
_IOCTL: Final = (16, 29)
_SOCKET: Final = (41, 198)
_SOCKETPAIR: Final = (53, 199)
_PERSONALITY: Final = (135, 92)

NEW_NAMESPACES: Final = 0x7E020000
"""CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET."""
_AF_UNIX: Final = 1
_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C
_PERSONALITIES: Final = (0, 0xFFFFFFFF)
"""PER_LINUX and the question which one is set."""

_NR: Final = 0
_ARCH: Final = 4
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_GREATER: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K


def program(machine: str) -> bytes:
    """The filter for `machine` (as `platform.machine()` spells it). Raises `ComputeFault` for one without a table."""
    if machine not in ARCHITECTURES:
        raise ComputeFault(
            f"runs cannot be confined on {machine}", f"use a machine with {' or '.join(sorted(ARCHITECTURES))}"
        )
    column = list(ARCHITECTURES).index(machine)
    code = [
        _op(_LOAD, _ARCH),
        _op(_EQUAL, ARCHITECTURES[machine], yes=1),
        _op(_RETURN, KILL),
        _op(_LOAD, _NR),
        _op(_GREATER, NEWEST, no=1),  # as unsigned numbers, so the x32 calls (bit 30) are among these
        _op(_RETURN, ERRNO | errno.ENOSYS),
    ]
    for numbers in REFUSED.values():
        if (number := numbers[column]) is not None:
            code += _answer(number, errno.EPERM)
    for present in MISSING.values():
        code += _answer(present[column], errno.ENOSYS)
    code += _argument(_CLONE[column], 0, [(_ANY_BIT, NEW_NAMESPACES)], match=errno.EPERM)
    code += _argument(_IOCTL[column], 1, [(_EQUAL, _TIOCSTI), (_EQUAL, _TIOCLINUX)], match=errno.EPERM)
    for call in (_SOCKET, _SOCKETPAIR):
        code += _argument(call[column], 0, [(_EQUAL, _AF_UNIX)], other=errno.EAFNOSUPPORT)
    code += _argument(_PERSONALITY[column], 0, [(_EQUAL, value) for value in _PERSONALITIES], other=errno.EPERM)
    code.append(_op(_RETURN, ALLOW))
    return b"".join(code)


def _op(code: int, k: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many to skip when a comparison holds or not."""
    return struct.pack("=HBBI", code, yes, no, k)


def _answer(number: int, code: int) -> list[bytes]:
    return [_op(_EQUAL, number, no=1), _op(_RETURN, ERRNO | code)]


def _argument(
    number: int, argument: int, tests: list[tuple[int, int]], *, match: int | None = None, other: int | None = None
) -> list[bytes]:
    """Judge call `number` by the low half of one argument: the answer where a test holds, and where none does.

    Both arguments that matter here are 32-bit in the kernel; the upper half is ignored there as here.
    """
    body = [_op(_LOAD, 16 + 8 * argument)]
    for at, (kind, value) in enumerate(tests):
        body.append(_op(kind, value, yes=len(tests) - at))  # to the answer for a match
    body.append(_op(_RETURN, ALLOW if other is None else ERRNO | other))
    body.append(_op(_RETURN, ALLOW if match is None else ERRNO | match))
    return [_op(_EQUAL, number, no=len(body)), *body]
