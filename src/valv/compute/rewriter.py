"""The sandbox of one rewriting: the launcher starts it, two pipes lead to the process that holds the key.

Inside: the system's /usr, a little memory of its own, the package `rewrite`, and nothing else. No key, no network, no
file of the node, no other process.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from dataclasses import dataclass
from importlib import resources
from typing import Final

from valv.compute import box
from valv.compute.cgroup import Group, Groups
from valv.compute.process import Child, bound, die_with_parent
from valv.compute.wire import memory_file
from valv.errors import ComputeFault
from valv.ports.compute import Limits

PYTHON: Final = "/usr/bin/python3"
LIMITS: Final = Limits(seconds=4 * 3600, memory=1 << 30, processes=16, scratch=64 << 20)
"""Upper bounds of one rewriting."""
_FOLDER: Final = "/rewriter"
_START: Final = b"from rewrite.job import main\n\nmain()\n"
_GONE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pipes:
    """Descriptors. `into`: what the rewriter reads; `out`: what it writes."""

    into: int
    out: int


class Rewriter:
    """A started sandbox. `uid`: its user, None for ours; `groups`: None where limits are set on each process."""

    def __init__(self, pipes: Pipes, *, uid: int | None, seccomp: bytes, groups: Groups | None, limits: Limits) -> None:
        """Raises `ComputeFault`."""
        theirs: list[int] = []
        self._group: Group | None = None
        try:
            if groups is not None:
                # Its memory file system counts as its own.
                memory = limits.memory + limits.scratch
                name = f"rewrite-{secrets.token_hex(8)}"
                self._group = groups.create(name, memory, limits.processes + box.OWN_PROCESSES)
            group = self._group
            options = _options(theirs, seccomp, limits.scratch)
            parent = os.getpid()

            def before() -> None:
                die_with_parent(parent)
                if group is not None:
                    group.enter()
                bound(limits, memory=group is None)

            user = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups", "--inh-caps=-all", "--"]
            program = [PYTHON, "-I", "-B", _FOLDER]
            if group is None:
                program = ["/usr/bin/prlimit", f"--nproc={limits.processes + box.OWN_PROCESSES}", "--", *program]
            self.child = Child(
                [*(user if uid is not None else ()), "bwrap", *options, "--", *program],
                theirs,
                stdin=pipes.into,
                stdout=pipes.out,
                stderr=subprocess.DEVNULL,
                before=before,
            )
        except OSError as error:
            self._free()
            raise ComputeFault(f"the sandbox cannot be made: {error.strerror}") from None
        except BaseException:
            self._free()
            raise
        finally:
            for descriptor in theirs:
                os.close(descriptor)

    def end(self) -> None:
        """Kill what lives. Repeating is an error."""
        self.child.kill()
        self.child.wait(_GONE)
        self.child.close()
        self._free()

    def _free(self) -> None:
        if self._group is not None:
            self._group.remove()
            self._group = None


def _options(theirs: list[int], seccomp: bytes, scratch: int) -> list[str]:
    """Options of bubblewrap; the descriptors that they name are added to `theirs`."""

    def given(name: str, data: bytes) -> str:
        theirs.append(descriptor := memory_file(name, data))
        return str(descriptor)

    options = box.alone(given("seccomp", seccomp), scratch)
    options += ["--ro-bind-data", given("main", _START), f"{_FOLDER}/__main__.py"]
    for module in resources.files("valv.compute.rewrite").iterdir():
        if module.name.endswith(".py"):
            data = module.read_bytes()
            options += ["--ro-bind-data", given(module.name, data), f"{_FOLDER}/rewrite/{module.name}"]
    return [*options, "--remount-ro", "/"]
