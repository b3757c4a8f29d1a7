"""The filter, judged by an interpreter of its own and by the numbers that libseccomp has."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.compute import seccomp
from valv.errors import ComputeFault

MACHINES = list(seccomp.ARCHITECTURES)
ALLOW, KILL = seccomp.ALLOW, seccomp.KILL


def refused(number: int) -> int:
    return seccomp.ERRNO | number


def judge(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the kernel would answer: a classic BPF machine, as far as the filter uses it."""
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    words = [*arguments, *[0] * (6 - len(arguments))]
    audit = seccomp.ARCHITECTURES[machine] if arch is None else arch
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, audit, 0, *(word & (1 << 64) - 1 for word in words))
    accumulator, at = 0, 0
    while True:
        kind, yes, no, k = code[at]
        at += 1
        if kind == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif kind == 0x06:
            return int(k)
        else:
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x45: bool(accumulator & k)}[kind]
            at += yes if holds else no


@pytest.mark.parametrize("machine", MACHINES)
def test_each_refused_call(machine: str) -> None:
    column = MACHINES.index(machine)
    for name, numbers in seccomp.REFUSED.items():
        if numbers[column] is not None:
            assert judge(machine, numbers[column] or 0) == refused(errno.EPERM), name
    for name, present in seccomp.MISSING.items():
        assert judge(machine, present[column]) == refused(errno.ENOSYS), name


@pytest.mark.parametrize("machine", MACHINES)
def test_ordinary_calls_are_allowed(machine: str) -> None:
    for x86, arm in ((0, 63), (1, 64), (9, 222), (257, 56), (59, 221), (60, 93), (202, 98), (231, 94), (318, 278)):
        assert judge(machine, x86 if machine == "x86_64" else arm) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_another_architecture_ends_the_process(machine: str) -> None:
    for arch in (0x40000003, 0x40000028, 0xC000003E ^ 1, 0):
        assert judge(machine, 0, arch=arch) == KILL


@pytest.mark.parametrize("machine", MACHINES)
@given(number=st.integers(seccomp.NEWEST + 1, (1 << 32) - 1))
def test_unjudged_calls_are_missing(machine: str, number: int) -> None:
    assert judge(machine, number) == refused(errno.ENOSYS)


@pytest.mark.parametrize("machine", MACHINES)
@given(flags=st.integers(0, (1 << 64) - 1))
def test_clone_makes_processes_but_no_namespaces(machine: str, flags: int) -> None:
    number = 56 if machine == "x86_64" else 220
    wanted = refused(errno.EPERM) if flags & seccomp.NEW_NAMESPACES else ALLOW
    assert judge(machine, number, flags) == wanted


@pytest.mark.parametrize("machine", MACHINES)
@given(family=st.integers(0, (1 << 32) - 1), upper=st.integers(0, (1 << 32) - 1))
def test_only_unix_sockets(machine: str, family: int, upper: int) -> None:
    wanted = ALLOW if family == 1 else refused(errno.EAFNOSUPPORT)
    for x86, arm in ((41, 198), (53, 199)):
        assert judge(machine, x86 if machine == "x86_64" else arm, upper << 32 | family) == wanted


@pytest.mark.parametrize("machine", MACHINES)
@given(request=st.integers(0, (1 << 64) - 1))
def test_terminals_take_no_input(machine: str, request: int) -> None:
    number = 16 if machine == "x86_64" else 29
    wanted = refused(errno.EPERM) if request & 0xFFFFFFFF in (0x5412, 0x541C) else ALLOW
    assert judge(machine, number, 3, request) == wanted
    assert judge(machine, number, 3, 0x5412 | 1 << 40) == refused(errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_personality(machine: str) -> None:
    number = 135 if machine == "x86_64" else 92
    assert judge(machine, number, 0xFFFFFFFF) == ALLOW
    assert judge(machine, number, 0) == ALLOW
    assert judge(machine, number, 0x0040000) == refused(errno.EPERM)


def test_an_unknown_machine_is_a_fault() -> None:
    with pytest.raises(ComputeFault, match="riscv64"):
        seccomp.program("riscv64")


def test_the_numbers_are_those_of_libseccomp() -> None:
    library = ctypes.util.find_library("seccomp")
    if library is None:
        pytest.skip("libseccomp is not installed")
    resolve = ctypes.CDLL(library).seccomp_syscall_resolve_name_arch
    resolve.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    for column, machine in enumerate(MACHINES):
        for name, numbers in {**seccomp.REFUSED, **seccomp.MISSING}.items():
            number = resolve(seccomp.ARCHITECTURES[machine], name.encode())
            assert (number if number >= 0 else None) == numbers[column], (machine, name)
