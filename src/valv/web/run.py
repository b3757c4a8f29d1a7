"""Runs: start a command over permitted datasets, watch its phases, stop it."""

from __future__ import annotations

import shlex

from fastapi import APIRouter, Response

from valv.app import permit, run
from valv.app.operation import performs
from valv.errors import InputFault
from valv.ports.compute import Limits
from valv.web.form import EMPTY, Form, Sent
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Member, Visit

router = APIRouter()
FIELDS = {"command_missing": "line", "over_limit": "seconds", "fault.input": "line", "dataset_missing": "datasets"}
STEPS = ("queued", "running", "ended", "collected")
"""The phases of a run that goes well, in order."""


@router.get("/runs")
@performs("run.see")
def mine(visit: Member) -> Response:
    return visit.page("runs.html", runs=run.mine(visit.node, visit.who))


@router.get("/runs/new")
@performs("run.queue")
def begin(visit: Member, permit: str = "") -> Response:
    return _form(visit, permit, EMPTY)


def _form(
    visit: Visit, permit_id: str, form: Form, problems: list[Problem] | None = None, status: int = 200
) -> Response:
    usable = [
        view
        for view in permit.mine(visit.node, visit.who)
        if view.state.mode == "compute" and view.standing is None and visit.who.account_id in view.state.people
    ]
    chosen = next((view for view in usable if view.state.permit_id == permit_id), None)
    most = visit.node.config.compute
    usual = Limits()
    first = {
        "seconds": str(min(usual.seconds, most.seconds)),
        "memory": str(min(usual.memory, most.memory) >> 20),
        "processes": str(min(usual.processes, most.processes)),
        "scratch": str(min(usual.scratch, most.scratch) >> 20),
    }
    values = {"permits": usable, "chosen": chosen, "form": form, "most": most, "first": first}
    return visit.page("run_new.html", status, problems=problems, **values)


@router.post("/runs")
@performs("run.queue")
def queue(visit: Member, form: Sent) -> Response:
    permit_id = form.text("permit")
    try:
        ident = run.queue(
            visit.node,
            visit.who,
            permit_id=permit_id,
            datasets=form.all("datasets"),
            command_line=_words(form.text("line")),
            limits=_limits(form),
            command=form.command,
        )
    except FIXABLE as fault:
        return _form(visit, permit_id, form, [told(fault, FIELDS)], fault.row.status)
    return visit.go(f"/runs/{ident}")


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise InputFault(f"the command line cannot be read: {error}", "close every quote that is opened") from error


def _limits(form: Form) -> Limits:
    return Limits(
        seconds=form.number("seconds", "seconds"),
        memory=form.number("memory", "memory") << 20,
        processes=form.number("processes", "processes"),
        scratch=form.number("scratch", "scratch") << 20,
    )


@router.get("/runs/{run_id}")
@performs("run.see")
def show(visit: Member, run_id: str, still: str = "") -> Response:
    return _page(visit, run_id, still=still)


def _page(
    visit: Visit, run_id: str, problems: list[Problem] | None = None, status: int = 200, *, still: str = ""
) -> Response:
    view = run.show(visit.node, visit.who, run_id)
    phase = view.state.phase
    reached = STEPS.index(phase) if phase in STEPS else 1 if phase == "stopping" else 0
    return visit.page(
        "run.html",
        status,
        problems=problems,
        view=view,
        line=shlex.join(view.command),
        steps=STEPS,
        reached=reached,
        busy=phase not in ("collected", "cancelled"),
        still=still,
    )


@router.post("/runs/{run_id}/stop")
@performs("run.stop")
def stop(visit: Member, run_id: str, form: Sent) -> Response:
    try:
        run.stop(visit.node, visit.who, run_id, form.command)
    except FIXABLE as fault:
        return _page(visit, run_id, [told(fault, {})], fault.row.status)
    return visit.go(f"/runs/{run_id}")
