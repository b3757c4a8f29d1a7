"""Runs: a command over permitted datasets, in a sandbox without a way out."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from valv.api.answer import Created, answer, answers, nothing
from valv.api.asking import Body, Command, Id, Known, Line
from valv.api.routes import PREFIX, routes
from valv.app import run
from valv.app.operation import performs
from valv.ports.compute import Limits

router = routes("runs", f"{PREFIX}/runs")

_MOST = 1 << 53


class RunLimits(Body):
    """Wall seconds, bytes of memory, processes and threads, bytes of scratch and outputs. The node has limits of its
    own: to ask for more is refused."""

    seconds: int = Field(default=Limits().seconds, ge=1, le=_MOST)
    memory: int = Field(default=Limits().memory, ge=1, le=_MOST)
    processes: int = Field(default=Limits().processes, ge=1, le=_MOST)
    scratch: int = Field(default=Limits().scratch, ge=1, le=_MOST)


class NewRun(Body):
    """`datasets`: names that the permit covers, none for all of them; `command`: the program and its arguments."""

    permit: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,100}$")]
    datasets: list[Line] = Field(default=[], max_length=100)
    command: list[Annotated[str, Field(max_length=100_000)]] = Field(max_length=1000)
    limits: RunLimits | None = None


@router.post("")
@performs("run.queue")
@answers(Created, 201, "the run is queued")
def queue_run(ask: Known, command: Command, body: NewRun) -> Response:
    """Queue a run."""
    ident = run.queue(
        ask.node,
        ask.who,
        permit_id=body.permit,
        datasets=body.datasets,
        command_line=body.command,
        limits=Limits(**body.limits.model_dump()) if body.limits else None,
        command=command,
    )
    return answer(Created(run_id=ident), 201)


@router.get("")
@performs("run.see")
@answers(list[run.View], summary="newest first")
def list_runs(ask: Known) -> Response:
    """One's own runs."""
    return answer(run.mine(ask.node, ask.who))


@router.get("/{run_id}")
@performs("run.see")
@answers(run.View, summary="the run")
def show_run(ask: Known, run_id: Id) -> Response:
    """A run's state. What it wrote is never shown here; it leaves through a release."""
    return answer(run.show(ask.node, ask.who, run_id))


@router.post("/{run_id}/stop")
@performs("run.stop")
@answers(status=204)
def stop_run(ask: Known, command: Command, run_id: Id) -> Response:
    """Stop a run."""
    run.stop(ask.node, ask.who, run_id, command)
    return nothing()
