"""`valv doctor`: looks at a node, its machine, its records and its processes; each fault with what to do about it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from valv import config as configuration
from valv.app import copying, inspection
from valv.app.inspection import Finding
from valv.app.node import Node
from valv.assemble import backup, confine, custody, up
from valv.assemble.node import build
from valv.config import Config
from valv.errors import Fault

NEVER_ON_DISK = "switch it off (swapoff), or put it on dm-crypt with a random key at each start (crypttab: swap)"
MORE_LOCKED = "raise the limit on locked memory (ulimit -l 1024, or LimitMEMLOCK=1M) and start the node again"
SWEPT_WHEN_DOWN = "stop the node and run 'valv doctor' again: what no record points to is then deleted"


def doctor(directory: Path, console: Console | None = None) -> int:
    """Print what is found. Returns 0 where nothing is wrong, else 1, or the exit code of a configuration's fault.

    Warnings are printed, and not counted as wrong. While the node is down, bodies that no record points to (left by a
    crash) are deleted.
    """
    console = console or Console()
    try:
        config = configuration.load(directory, secrets=True)
    except Fault as fault:
        console.print(f"[red]✗[/] {fault}")
        return fault.row.exit
    node = build(config).node
    running = up.running(config)
    console.print(f"{config.node.title} in {config.home}: {'up' if running else 'down'}")
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("the machine has what the processes need", lambda: _machine(config)),
        ("files can be read only by those who should", lambda: _modes(config)),
        ("the database answers and has this release's schema", lambda: _database(node)),
        ("the ledger holds under its newest signed checkpoint", lambda: _ledger(node, bool(running))),
        ("states are what their events say", lambda: inspection.snapshots(node)),
        ("rights and keys are those of the ledger", lambda: inspection.accounts(node)),
        ("texts are those that the ledger names", lambda: inspection.texts(node)),
        ("versions hold the files that were handed in", lambda: inspection.manifests(node)),
        ("every file is in the store, and nothing else", lambda: _bodies(node, bool(running))),
        ("every copy is in its store, and no other", lambda: _copies(node, bool(running))),
        ("no copy is suspect or damaged", lambda: _damaged(node)),
        ("stores answer, and hold no half-written bodies", lambda: _stores(node, bool(running))),
        ("deliveries get through", lambda: inspection.outbox(node)),
    ]
    wrong = 0
    for name, look in checks:
        try:
            found = list(look())
        except Fault as fault:
            found = [Finding(str(fault), "")]
        console.print(f"{'[red]✗[/]' if found else '[green]✓[/]'} {name}")
        for finding in found[:20]:
            console.print(f"    {finding.what}" + (f"\n      → {finding.hint}" if finding.hint else ""))
        wrong += len(found)
    others = (*custody.findings(config, node, bool(running)), *backup.findings(node))
    for finding in (*swap(), *_unlocked(config, node, running), *others):
        console.print(f"[yellow]![/] {finding.what}\n      → {finding.hint}")
    return 1 if wrong else 0


def _machine(config: Config) -> Iterator[Finding]:
    try:
        up.check(config)
        if up.running(config) is None:
            up.check_port(config)
    except Fault as fault:
        yield Finding(fault.detail, fault.hint or fault.row.hint)


def _modes(config: Config) -> Iterator[Finding]:
    for path in (config.path("db"), *confine.store_folders(config).values(), config.path(config.keys.path)):
        if path.exists() and path.stat().st_mode & 0o007:
            yield Finding(f"{path} can be entered by everybody", f"chmod o-rwx {path}")


def _database(node: Node) -> Iterator[Finding]:
    with node.records.reading() as unit:
        unit.head()
    yield from ()


def _ledger(node: Node, running: bool) -> Iterator[Finding]:
    from valv.db.database import Database

    assert isinstance(node.records, Database)
    # The verifier key is public; the key holder tells it while it runs. Without it the signature is left aside.
    key = node.keys.status().log_key if running else ""
    report = node.records.verify(vkey=key)
    if not report.ok:
        yield Finding(
            report.fault, "the ledger was changed: keep the disk as it is and call the data-protection officer"
        )
    if running:
        yield from inspection.signed(node)


def _bodies(node: Node, running: bool) -> Iterator[Finding]:
    missing, left = inspection.bodies(node)
    for name in sorted(missing):
        yield Finding(f"{name} is missing in the store", "restore it from a backup")
    if left and running:
        # While files arrive, a name can be in the store a moment before its record says so.
        settled = left & inspection.bodies(node)[1]
        if settled:
            yield Finding(f"{len(settled)} bodies belong to no record", SWEPT_WHEN_DOWN)
    elif left:
        for name in sorted(left):
            node.storage.delete(name)


def _copies(node: Node, running: bool) -> Iterator[Finding]:
    missing, left = copying.stray(node)
    for store, body in missing:
        if not running or (store, body) in copying.stray(node)[0]:
            yield Finding(f"the copy of {body} in {store} is not whole", "a scrub makes it anew from another copy")
    if running:
        settled = set(left) & set(copying.stray(node)[1]) if left else ()
        if settled:
            yield Finding(f"{len(settled)} bodies are in a store where no record says so", SWEPT_WHEN_DOWN)
        return
    for store, name in left:
        node.each_store()[store].delete(name)


def _damaged(node: Node) -> Iterator[Finding]:
    """Copies that somebody met and that did not hold, until a scrub has looked at them and made them anew."""
    with node.records.reading() as unit:
        found = {
            (store, state): unit.count("copy", {"store": store, "state": state})
            for store in node.each_store()
            for state in ("suspect", "bad")
        }
    for (store, state), count in found.items():
        if count:
            what = "suspect" if state == "suspect" else "damaged"
            yield Finding(f"{count} copies in {store} are {what}", "a scrub looks at them and makes them anew")


def _stores(node: Node, running: bool) -> Iterator[Finding]:
    """Whether each store answers. While the node is down, what killed writers left behind is removed."""
    for name, store in node.each_store().items():
        try:
            if running:
                store.usage()
            else:
                store.sweep()
        except Fault as fault:
            yield Finding(f"store {name}: {fault.detail}", fault.hint or fault.row.hint)


def swap(swaps: Path = Path("/proc/swaps"), system: Path = Path("/sys")) -> Iterator[Finding]:
    """Swap space that writes memory to a disk in plain. `swaps`: as in proc(5); `system`: where sysfs is mounted."""
    lines = swaps.read_text("utf-8", "replace").splitlines()[1:] if swaps.exists() else []
    for line in lines:
        name = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), line.split()[0])
        device = _device(Path(name), system)
        if device is None or not _safe(device):
            yield Finding(f"swap space {name} is not encrypted: keys in memory can come to rest on disk", NEVER_ON_DISK)


def _device(path: Path, system: Path) -> Path | None:
    """The block device that a swap space lies on, as a folder of sysfs; None where that cannot be told."""
    with contextlib.suppress(OSError):
        found = path.stat()
        number = found.st_rdev or found.st_dev
        device = system / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
        return device.resolve(strict=True)
    return None


def _safe(device: Path) -> bool:
    """Whether what is written to a block device is encrypted (dm-crypt, there or in all that it is made of), or stays
    in memory (zram without a device behind it)."""
    if device.name.startswith("zram"):
        behind = device / "backing_dev"
        return not behind.exists() or behind.read_text().strip() in ("", "none")
    kind = device / "dm" / "uuid"
    if kind.exists() and kind.read_text().startswith("CRYPT-"):
        return True
    below = device / "slaves"
    made_of = [path.resolve() for path in below.iterdir()] if below.is_dir() else []
    return bool(made_of) and all(map(_safe, made_of))


def _unlocked(config: Config, node: Node, running: int | None) -> Iterator[Finding]:
    """The key holder tells in its log alone whether it could lock the root key's memory; the kernel tells us."""
    if running is None or config.keys.backend != "file" or not node.keys.status().open:
        return
    for process in _below(running):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"valv.assemble.keyd" in words and words[0] != b"bwrap":
                locked = re.search(r"(?m)^VmLck:\s+(\d+) kB$", (process / "status").read_text())
                if locked and int(locked[1]) == 0:
                    yield Finding("the root key's memory is not locked: it may be swapped out", MORE_LOCKED)


def _below(pid: int) -> Iterator[Path]:
    """The folders in /proc of all processes that a process started, directly or not."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield Path("/proc", child)
            yield from _below(int(child))
