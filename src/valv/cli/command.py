"""How a command is registered: its action, its example, the options that all share, and its faults.

A command is a function whose first parameter is a `Screen` (it works here) or a `Door` (it talks to the node).
"""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_type_hints

import typer
from typer.core import TyperGroup

from valv.cli.operator import Operator
from valv.cli.screen import Screen, show_fault
from valv.errors import Fault, InputFault, InternalFault, MissingFault

if TYPE_CHECKING:
    from valv.cli.client import Client
    from valv.cli.profile import Profile

Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No remarks and no progress.")]
ProfileFile = Annotated[
    Path | None,
    typer.Option("--profile", metavar="FILE", help="The profile with address and token.", show_default=False),
]
HERE = ""
"""The action of a command that touches nothing of a node."""
STOPPED = 130
"""Exit code after Ctrl-C."""


@dataclass(frozen=True)
class Start:
    """What the whole command line was started with."""

    operator: Operator
    profile: Path | None = None
    as_json: bool = False
    quiet: bool = False


class Local(Screen):
    """The screen of a command that needs no node over HTTP, with what an operator can do."""

    def __init__(self, start: Start, *, as_json: bool, quiet: bool) -> None:
        super().__init__(as_json=as_json or start.as_json, quiet=quiet or start.quiet)
        self.operator = start.operator

    def hidden(self, question: str, file: Path | None, option: str, *, twice: bool = False) -> str:
        """A secret from a file, or asked for without echo."""
        if file is not None:
            from valv.cli import profile as profiles

            return profiles.first_line(file, question.lower())
        if not self.interactive:
            raise InputFault(f"{question}: nobody can be asked here", f"give it in a file: {option} FILE")
        return str(typer.prompt(question, hide_input=True, err=True, confirmation_prompt=twice))


class Door(Local):
    """A screen with the node behind it."""

    def __init__(self, start: Start, *, as_json: bool, quiet: bool, profile: Path | None) -> None:
        from valv.cli import profile as profiles

        super().__init__(start, as_json=as_json, quiet=quiet)
        self.profile_file = profile or start.profile or profiles.default()
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            from valv.cli import profile as profiles

            self._client = self.connect(profiles.load(self.profile_file))
        return self._client

    def connect(self, profile: Profile) -> Client:
        from valv.cli.client import Client

        return Client(profile, self._code if self.interactive else None)

    def _code(self) -> str:
        return self.hidden("Code of your second factor", None, "--code-file")

    def get(self, *parts: str, **query: Any) -> Any:
        from valv.cli.client import path

        return self.client.ask("GET", path(*parts), query=query)

    def post(self, *parts: str, body: Mapping[str, Any] | None = None) -> Any:
        from valv.cli.client import path

        return self.client.ask("POST", path(*parts), body)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def group(summary: str, **settings: Any) -> typer.Typer:
    """A noun, under which commands stand."""
    settings = {"no_args_is_help": True} | settings
    return typer.Typer(help=summary, rich_markup_mode=None, add_completion=False, **settings)


def command(app: typer.Typer, name: str, *, action: str, example: str, **settings: Any) -> Callable[..., Any]:
    """Register a function as the command `name`. `action`: what it performs (a key of `ACTIONS`, or `HERE`); `example`:
    one or more lines as somebody would type them."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        run = _runnable(function)
        if action != HERE:
            from valv.app.operation import performs  # the policies' engine comes with it

            run = performs(action)(run)
        lines = "\n".join(f"  {line}" for line in example.splitlines())
        app.command(name, epilog=f"\b\nExample:\n{lines}", **settings)(run)
        return function

    return register


def _runnable(function: Callable[..., None]) -> Callable[..., None]:
    """The function as Typer takes it: its first parameter is replaced by the options that all commands share."""
    hints = get_type_hints(function, include_extras=True)
    first, *rest = inspect.signature(function).parameters.values()
    kind = hints[first.name]
    shared: dict[str, tuple[Any, Any]] = {"as_json": (Json, False), "quiet": (Quiet, False)}
    if kind is Door:
        shared["profile"] = (ProfileFile, None)

    def run(ctx: typer.Context, **given: Any) -> None:
        screen = kind(ctx.obj, **{name: given.pop(name) for name in shared})
        with faults():
            try:
                function(screen, **given)
            finally:
                if isinstance(screen, Door):
                    screen.close()

    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(parameter.replace(annotation=hints[parameter.name], kind=only) for parameter in rest),
        *(inspect.Parameter(name, only, annotation=hint, default=value) for name, (hint, value) in shared.items()),
    ]
    run.__doc__, run.__name__, run.__module__ = function.__doc__, function.__name__, function.__module__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


@contextmanager
def faults() -> Iterator[None]:
    """Whatever goes wrong in the block ends the command with one clear line and the right exit code."""
    try:
        yield
    except Fault as fault:
        _end(fault)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    except BrokenPipeError:
        # Whoever read our output has closed it (`valv ledger show | head`). Nothing is left to be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except FileNotFoundError as error:
        _end(MissingFault(f"{error.filename}", "check the path"))
    except OSError as error:
        _end(InputFault(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)))
    except (typer.Exit, typer.Abort, EOFError):
        raise
    except Exception as error:
        if type(error).__module__.startswith("typer"):  # a wrong option that a command found out itself
            raise
        _end(InternalFault(_place(error), "tell the node's operator what you typed and this line"))


def _end(fault: Fault) -> NoReturn:
    show_fault(fault)
    raise typer.Exit(fault.row.exit) from None


def _place(error: Exception) -> str:
    """The kind of a fault of the program and where it happened, but not its text, which may hold somebody's data."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {Path(frames[-1].filename).name} line {frames[-1].lineno}"


class Look(TyperGroup):
    """A noun that looks by itself: `valv runs` and `valv runs ID` are `valv runs show [ID]`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            args = ["show", *args]
        return super().parse_args(ctx, args)
