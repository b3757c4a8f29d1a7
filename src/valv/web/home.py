"""The first page: what this is, the picture of the loop, and what waits for the person; and the portal's own files."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from valv.app import access, deposit, permit, release, run
from valv.app.node import refuse
from valv.app.operation import performs
from valv.web.door import MEDIA
from valv.web.visit import Visit, Visiting

router = APIRouter()


class Task(msgspec.Struct, frozen=True):
    """One line of what a person has here. `count`: how many wait or go on."""

    path: str
    title: str
    count: int
    text: str


@router.get("/")
@performs("node.see")
def show(visit: Visiting) -> Response:
    return visit.page("home.html", tasks=_tasks(visit) if visit.who.account_id else [])


def _tasks(visit: Visit) -> list[Task]:
    node, who, roles = visit.node, visit.who, visit.who.principal.roles
    tasks = []
    if "custodian" in roles:
        going = sum(view.state.phase in ("open", "submitted") for view in deposit.mine(node, who))
        tasks.append(Task("/deposits", "Deposits", going, "open, or being checked by the node"))
    if roles & {"researcher", "committee"}:
        views = access.mine(node, who)
        if "committee" in roles:
            waiting = sum("approve" in view.may for view in views)
            tasks.append(Task("/applications", "To decide", waiting, "applications wait for your committee"))
        if "researcher" in roles:
            mine = sum(
                view.state.applicant == who.account_id and view.state.phase in ("draft", "returned", "submitted")
                for view in views
            )
            tasks.append(Task("/applications", "Applications", mine, "of yours are drafted or handed in"))
    if roles & {"researcher", "committee", "custodian"}:
        valid = sum(view.standing is None for view in permit.mine(node, who))
        tasks.append(Task("/permits", "Permits", valid, "can be used now"))
    if "researcher" in roles:
        going = sum(view.state.phase not in ("collected", "cancelled") for view in run.mine(node, who))
        tasks.append(Task("/runs", "Runs", going, "wait or go on"))
    if roles & {"researcher", "checker"}:
        views_of_outputs = release.mine(node, who)
        if "checker" in roles:
            waiting = sum("check" in view.may for view in views_of_outputs)
            tasks.append(Task("/releases", "To check", waiting, "sets of outputs wait for a checker"))
        if "researcher" in roles:
            ready = sum(bool(view.may & {"fetch", "request"}) for view in views_of_outputs)
            tasks.append(Task("/releases", "Outputs", ready, "of yours can be asked for or fetched"))
    if roles & {"auditor", "operator"}:
        tasks.append(Task("/ledger", "Ledger", 0, "who did what, with its proof"))
        tasks.append(Task("/storage", "Storage", 0, "the stores, their copies, and what is being moved"))
        tasks.append(Task("/keys", "Keys", 0, "who guards them, and what officers ordered"))
    return tasks


@router.get("/static/{name}")
@performs("node.see")
def static(visit: Visiting, name: str) -> Response:
    content = visit.door.files.get(name)
    if content is None:
        raise refuse("not_found")
    return Response(content, media_type=MEDIA[name], headers={"cache-control": "public, max-age=86400"})
