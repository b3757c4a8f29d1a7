"""One run's life in the launcher: its folder, its mount, its sandbox, its limits, its end.

    reserved ──start──▶ starting ──the mount answers──▶ running ──▶ ended ──discard──▶ (gone)

Everything here runs on the launcher's one thread. Waiting is bounded: a killed process is gone within milliseconds.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from msgspec.structs import replace

from valv.compute import box, scratch, wire
from valv.compute.cgroup import Group, Groups, Use
from valv.compute.command import Command, Outcome
from valv.compute.process import Child, readable
from valv.compute.reports import Reports
from valv.compute.watch import Watch, size
from valv.errors import ComputeFault, Fault
from valv.ports.compute import Limits, RunStatus
from valv.vault import fuse_mount

SILENCE: Final = 30.0
"""Seconds without any answer about the permit after which a run ends. Its reads fail long before."""
_FAREWELL: Final = 1.0
"""Seconds that a mount has to tell its last reads after it was unmounted."""
_KILLED: Final = 5.0
"""Seconds to wait for a killed process."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The users of a run's two sides; both the launcher's own where it is not root."""

    mount_uid: int
    run_uid: int


class MountCommand(Protocol):
    """The command line of a confined mount process; `fuse`, `files` and `reports` are descriptors that it inherits."""

    def __call__(self, uid: int, *, fuse: int, files: int, reports: int, grant_id: str, run_id: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Ground:
    """What all runs stand on. `watch(descriptor, call)`: call when it becomes readable, until `unwatch`."""

    folder: Path
    root: bool
    groups: Groups | None
    seccomp: bytes
    mount_command: MountCommand
    watch: Callable[[int, Callable[[], None]], None]
    unwatch: Callable[[int], None]


class Run:
    """One run, from its reservation on. Verbs leave it as it was where they raise."""

    def __init__(self, run_id: str, slot: Slot | None, ground: Ground) -> None:
        """`slot`: None for a run that another launcher left."""
        self.slot: Final = slot
        self.limits = Limits()
        self._ground = ground
        self._folder = ground.folder / run_id
        self._phase: Literal["reserved", "starting", "running", "ended"] = "reserved"
        self._status = RunStatus(run_id, "starting")
        self._request: wire.Start | None = None
        self._deadline = 0.0
        self._answered = 0.0
        self._reads: dict[str, int] = {}
        self._mount: Child | None = None
        self._reports: Reports | None = None
        self._command: Command | None = None
        self._group: Group | None = None
        self._watch: Watch | None = None
        self._outbox = -1

    @property
    def outbox(self) -> Path:
        return self._folder / "scratch" / "outbox"

    @property
    def active(self) -> bool:
        return self._phase in ("starting", "running")

    @property
    def ended(self) -> bool:
        return self._phase == "ended"

    def status(self) -> RunStatus:
        if not self.active:
            return self._status
        use = self._use()
        return replace(self._status, cpu=use.cpu, memory=use.memory, reads=dict(self._reads))

    # --- verbs ---

    def start(self, request: wire.Start, files: int) -> None:
        """Mount the files of the list `files` (a descriptor); the command follows when the mount answers."""
        if self.slot is None or self._phase != "reserved":
            return  # it was started before
        self.limits = request.limits
        self._request = request
        try:
            self._make_folders(self.slot.run_uid)
            self._start_mount(self.slot.mount_uid, request, files)
        except BaseException:
            self._release()
            scratch.wipe(self._folder)
            raise
        self._phase = "starting"
        self._answered = time.monotonic()

    def stop(self) -> None:
        """End the run, if it has not ended: when this returns, its whole tree is dead and its mount gone."""
        if self._command is not None and self.active and self._command.child.wait(0) is not None:
            self._finish(None)  # it had ended by itself
        elif not self.ended:
            self._finish(Outcome("stopped"))

    def discard(self) -> None:
        """End the run and remove all that it left."""
        self.stop()
        self._release()
        scratch.wipe(self._folder)

    def lose(self) -> None:
        """Another launcher's run: clear up what it left. Its processes died with that launcher."""
        self._release()
        for entry in list(self._folder.iterdir()):
            scratch.wipe(entry)
        self._phase = "ended"
        outcome = Outcome("lost", detail="the launcher was restarted")
        self._status = replace(self._status, state="ended", end=outcome.end, detail=outcome.detail, ended=time.time())

    def tick(self) -> None:
        """Judge the limits that the kernel does not judge by itself."""
        if not self.active:
            return
        now = time.monotonic()
        if now - self._answered > SILENCE:
            self._finish(Outcome("revoked", detail=f"for {SILENCE:.0f} s nobody could say whether the permit stands"))
        elif self._command is None:
            return
        elif now > self._deadline:
            self._finish(Outcome("time", detail=f"it ran for longer than {self.limits.seconds} s"))
        elif self._group is not None:
            if self._group.use().out_of_memory:
                self._finish(self._out_of_memory())
        elif self._watch is not None and self._command.init:
            if self._watch.look(self._command.init):
                self._finish(self._out_of_memory())
            elif size(self.outbox, self.limits.scratch) > self.limits.scratch:
                self._finish(Outcome("memory", detail=f"outputs take over {self.limits.scratch} bytes or are closed"))

    # --- the mount ---

    def _make_folders(self, uid: int) -> None:
        """`data`: where the files are mounted; `scratch`: the run's memory, with `work` and `outbox`."""
        inner = self._folder / "scratch"
        try:
            for folder in (self._folder, self._folder / "data", inner):
                folder.mkdir(mode=0o711, exist_ok=True)
                folder.chmod(0o711)
            if self._ground.root:
                scratch.mount(inner, self.limits.scratch, uid)
            for folder in (inner / "work", self.outbox):
                folder.mkdir(mode=0o700)
                os.chown(folder, uid, uid)
            self._outbox = os.open(self.outbox, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ComputeFault(f"the run's folders cannot be made: {error.strerror}") from None

    def _start_mount(self, uid: int, request: wire.Start, files: int) -> None:
        fuse = fuse_mount.mount(self._folder / "data", owner_uid=uid, allow_other=self._ground.root)
        ours, theirs = socket.socketpair()
        self._reports = Reports(ours)
        try:
            command = self._ground.mount_command(
                uid,
                fuse=fuse,
                files=files,
                reports=theirs.fileno(),
                grant_id=request.grant_id,
                run_id=request.run_id,
            )
            self._mount = Child(command, (fuse, files, theirs.fileno()))
        finally:
            theirs.close()
            os.close(fuse)
        self._ground.watch(self._reports.fileno(), self._on_report)

    def _on_report(self) -> None:
        if self._reports is None:
            return
        for report in self._reports.take():
            self._reads.update(report.reads)
            if report.granted is not None:
                self._answered = time.monotonic()
            if not self.active:
                continue
            if report.failed:
                self._mount_ended(f"the data cannot be mounted: {report.failed}")
            elif report.granted is False:
                self._finish(Outcome("revoked", detail="the permit does not stand"))
            elif report.ready and self._command is None:
                self._start_command()
        if self.active and self._reports is not None and self._reports.over:
            self._mount_ended("the mount process ended; its log says why")

    def _mount_ended(self, detail: str) -> None:
        self._finish(Outcome("not_started" if self._command is None else "lost", detail=detail))

    # --- the command ---

    def _start_command(self) -> None:
        request, ground = self._request, self._ground
        if request is None or self.slot is None:
            return
        try:
            if ground.groups is not None:
                # Scratch is memory, and what a run puts there counts as its own.
                memory = self.limits.memory + self.limits.scratch
                self._group = ground.groups.create(request.run_id, memory, self.limits.processes + box.OWN_PROCESSES)
            else:
                self._watch = Watch(self.limits.memory)
            self._command = Command(
                request.command,
                folders=box.Folders(
                    data=self._folder / "data",
                    outbox=self.outbox,
                    work=self._folder / "scratch" / "work" if ground.root else None,
                ),
                outbox=self._outbox,
                uid=self.slot.run_uid if ground.root else None,
                seccomp=ground.seccomp,
                environment=request.environment,
                limits=self.limits,
                group=self._group,
            )
        except OSError as error:
            self._finish(Outcome("not_started", detail=f"the limits cannot be set: {error.strerror}"))
        except Fault as fault:
            self._finish(Outcome("not_started", detail=fault.detail))
        else:
            self._phase = "running"
            self._status = replace(self._status, state="running", started=time.time())
            self._deadline = time.monotonic() + self.limits.seconds
            ground.watch(self._command.status, self._on_status)
            ground.watch(self._command.child.pidfd, lambda: self._finish(None))

    def _on_status(self) -> None:
        if self._command is not None and not self._command.listen():
            self._ground.unwatch(self._command.status)

    # --- the end ---

    def _finish(self, outcome: Outcome | None) -> None:
        """Kill what lives, take the mount away, and note how it ended; None: by itself."""
        use = Use(0.0, 0, False)
        if self._command is not None:
            self._ground.unwatch(self._command.status)
            self._ground.unwatch(self._command.child.pidfd)
            self._command.end()
            use = self._use()
            if outcome is None:
                outcome = self._out_of_memory() if use.out_of_memory else self._command.outcome()
        outcome = outcome or Outcome("lost")
        self._end_mount()
        self._release_command()
        self._phase = "ended"
        self._status = replace(
            self._status,
            state="ended",
            end=outcome.end,
            exit_code=outcome.exit_code,
            ended=time.time(),
            cpu=use.cpu,
            memory=use.memory,
            reads=dict(self._reads),
            detail=outcome.detail,
        )

    def _end_mount(self) -> None:
        """Unmounting ends the mount process, after a last word on what was read."""
        fuse_mount.unmount(self._folder / "data")
        if self._reports is not None:
            self._ground.unwatch(self._reports.fileno())
            until = time.monotonic() + _FAREWELL
            while not self._reports.over and (left := until - time.monotonic()) > 0:
                readable(self._reports.fileno(), left)
                for report in self._reports.take():
                    self._reads.update(report.reads)
            self._reports.close()
            self._reports = None
        if self._mount is not None:
            self._mount.kill()
            self._mount.wait(_KILLED)
            self._mount.close()
            self._mount = None

    def _release_command(self) -> None:
        if self._command is not None:
            self._command.close()
            self._command = None
        if self._group is not None:
            self._group.remove()
            self._group = None
        self._watch = None

    def _release(self) -> None:
        """Give back all that the kernel holds for this run."""
        if self._command is not None:
            self._command.end()
        self._release_command()
        self._end_mount()
        if self._outbox >= 0:
            os.close(self._outbox)
            self._outbox = -1
        if self._ground.root:
            scratch.unmount(self._folder / "scratch")

    def _use(self) -> Use:
        if self._group is not None:
            return self._group.use()
        return self._watch.use() if self._watch is not None else Use(0.0, 0, False)

    def _out_of_memory(self) -> Outcome:
        return Outcome(
            "memory", detail=f"it needed more than {self.limits.memory} bytes, with its scratch {self.limits.scratch}"
        )
