"""What a command shows: tables on a terminal, tab-separated lines elsewhere, raw JSON where it was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from valv.cli.text import plain, size
from valv.errors import Fault

Advance = Callable[[int], None]


class Bars:
    """Progress of several files at a time, from several threads. Without a terminal nothing is drawn."""

    def __init__(self, bars: Any, total: Any) -> None:
        self._bars, self._total = bars, total

    @contextmanager
    def file(self, title: str, size: int) -> Iterator[Advance]:
        """A bar for one file, as long as the block lasts; what is done counts in all, too."""
        if self._bars is None:
            yield lambda _: None
            return
        task = self._bars.add_task(f"  {plain(title)}", total=size)

        def advance(count: int) -> None:
            self._bars.update(task, advance=count)
            self._bars.update(self._total, advance=count)

        try:
            yield advance
        finally:
            self._bars.remove_task(task)


class Screen:
    """`as_json`: results as JSON and nothing else on standard output; `quiet`: no remarks and no progress.

    Results go to standard output, remarks, progress and errors to standard error.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked something."""
        return sys.stdin.isatty() and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """A result, for people. With --json it is left out: `answer` has given it."""
        if not self.as_json:
            print(plain(text, lines=True))

    def note(self, text: str) -> None:
        """A remark."""
        if not self.quiet:
            print(plain(text, lines=True), file=sys.stderr)

    def warn(self, text: str) -> None:
        """A remark that must be seen, even where only results were asked for."""
        print(plain(text, lines=True), file=sys.stderr)

    def answer(self, value: Any) -> bool:
        """Print a result as JSON where that was asked for. Returns whether it was."""
        if self.as_json:
            print(json.dumps(value, indent=2))
        return self.as_json

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str = "nothing to show") -> None:
        if self.as_json:
            return
        cells = [[plain(cell) for cell in row] for row in rows]
        if not cells:
            self.note(empty)
        elif sys.stdout.isatty():
            from rich.box import SIMPLE_HEAD
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            table = Table(box=SIMPLE_HEAD, pad_edge=False)
            for column in columns:
                table.add_column(column, overflow="fold")
            for row in cells:
                table.add_row(*map(Text, row))
            Console(highlight=False).print(table)
        else:
            for row in [list(columns), *cells]:
                print("\t".join(row))

    def facts(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values, a line each."""
        if self.as_json:
            return
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            lines = plain(value, lines=True).splitlines() or [""]
            print(f"{name:<{width}}  {lines[0]}".rstrip())
            for line in lines[1:]:
                print(f"{'':<{width}}  {line}".rstrip())

    @contextmanager
    def progress(self, title: str, total: int | None, *, counted: bool = False) -> Iterator[Advance]:
        """A bar over `total` bytes (None: not known) for the block; the block calls what it gets with the bytes done.
        `counted`: the bar is over things and not over bytes. Without a terminal nothing is drawn."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda _: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining
        from rich.progress import TransferSpeedColumn as Speed

        amount: list[ProgressColumn] = [MofNCompleteColumn()] if counted else [DownloadColumn(True), Speed()]
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), *amount)
        with Progress(*columns, Remaining(), console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(plain(title), total=total)
            yield lambda count: bars.update(task, advance=count)

    @contextmanager
    def transfers(self, title: str, total: int) -> Iterator[Bars]:
        """A bar over `total` bytes in all, and one for each file that is on its way."""
        if self.quiet or not sys.stderr.isatty():
            yield Bars(None, None)
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining
        from rich.progress import TransferSpeedColumn as Speed

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(True), Speed())
        with Progress(*columns, Remaining(), console=Console(stderr=True), transient=True) as bars:
            yield Bars(bars, bars.add_task(plain(title), total=total))

    def sent(self, path: str, count: int, what: str) -> None:
        """A line for a file that is done with."""
        self.note(f"  {what:<10} {path}  ({size(count)})")


def show_fault(fault: Fault) -> None:
    """What happened and what to do, on standard error; in red on a terminal."""
    row = fault.row
    text = f"Error: {row.title}: {fault.detail}" if fault.detail else f"Error: {row.title}"
    hint = fault.hint or row.hint
    text, hint = plain(text, lines=True), plain(hint, lines=True)
    if sys.stderr.isatty():
        text = f"\x1b[31m{text}\x1b[0m"
    print(f"{text}\n  → {hint}" if hint else text, file=sys.stderr)
