"""A dataset's page: what it is, what its donors agreed to, its versions, the assessment of a claim, who touched it."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import dataset, placement, withdrawal
from valv.app.node import permitted, refuse
from valv.app.operation import performs
from valv.core.authorize import Resource
from valv.web.form import EMPTY, Form, Sent
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Member, Visit

router = APIRouter()
ASSESSING = {"reason_missing": "reason"}
NARROWING = {"reason_missing": "narrow-reason"}
WITHDRAWING = {
    "reason_missing": "withdraw-reason",
    "person_missing": "pseudonyms",
    "person_wrong": "pseudonyms",
    "withdrawal_going": "pseudonyms",
}
PAGE = 200


@router.get("/datasets/{name}")
@performs("dataset.see")
def show(visit: Member, name: str) -> Response:
    return _page(visit, name)


def _page(
    visit: Visit, name: str, form: Form = EMPTY, problems: list[Problem] | None = None, status: int = 200
) -> Response:
    page = dataset.show(visit.node, visit.who, name)
    resource = dataset.resource(page.state)
    may = {
        action
        for action in ("describe", "narrow", "history", "certificate", "withdraw", "withdrawals")
        if permitted(visit.node, visit.who, f"dataset.{action}", resource) is None
    }
    # Whoever lacks only a fresh second factor is offered the assessment, and asked for the factor first.
    lacking = permitted(visit.node, visit.who, "dataset.assess", resource)
    open_claim = next(
        (
            found
            for found in reversed(page.state.versions)
            if found.claimed == "anonymised" and found.confirmed is None and not found.destroyed
        ),
        None,
    )
    return visit.page(
        "dataset.html",
        status,
        problems=problems,
        page=page,
        may=may,
        may_assess=lacking is None,
        needs_factor=lacking is not None and lacking.code == "second_factor",
        claim=open_claim,
        withdrawals=withdrawal.mine(visit.node, visit.who, name) if "withdrawals" in may else [],
        placed=_placed(visit, name, resource),
        form=form,
    )


def _placed(visit: Visit, name: str, resource: Resource) -> placement.View | None:
    """Where its files are kept, for those who may say so."""
    if permitted(visit.node, visit.who, "storage.rule", resource) is not None:
        return None
    return placement.show(visit.node, visit.who, name)


@router.post("/datasets/{name}/assess")
@performs("dataset.assess")
def assess(visit: Member, name: str, form: Sent) -> Response:
    try:
        dataset.assess(
            visit.node,
            visit.who,
            name,
            version=form.number("version", "version"),
            confirm=_confirmed(form),
            reason=form.text("reason"),
            command=form.command,
        )
    except FIXABLE as fault:
        return _page(visit, name, form, [told(fault, ASSESSING)], fault.row.status)
    return visit.go(f"/datasets/{name}")


def _confirmed(form: Form) -> bool:
    word = form.text("word")
    if word not in ("confirm", "deny"):
        raise refuse("reason_missing", "say whether the claim holds")
    return word == "confirm"


@router.post("/datasets/{name}/narrow")
@performs("dataset.narrow")
def narrow(visit: Member, name: str, form: Sent) -> Response:
    try:
        dataset.narrow(
            visit.node,
            visit.who,
            name,
            version=form.number("version", "version"),
            reason=form.text("reason"),
            command=form.command,
        )
    except FIXABLE as fault:
        return _page(visit, name, EMPTY, [told(fault, NARROWING)], fault.row.status)
    return visit.go(f"/datasets/{name}")


@router.post("/datasets/{name}/withdraw")
@performs("dataset.withdraw")
def withdraw(visit: Member, name: str, form: Sent) -> Response:
    try:
        withdrawal.start(
            visit.node,
            visit.who,
            name,
            pseudonyms=form.text("pseudonyms").split("\n"),
            reason=form.text("withdraw-reason"),
            runs_end=not form.ticked("let-runs-end"),
            command=form.command,
        )
    except FIXABLE as fault:
        return _page(visit, name, form, [told(fault, WITHDRAWING)], fault.row.status)
    return visit.go(f"/datasets/{name}#withdrawals-title")


@router.post("/datasets/{name}/withdrawals/{withdrawal_id}/cancel")
@performs("dataset.withdraw")
def cancel_withdrawal(visit: Member, name: str, withdrawal_id: str, form: Sent) -> Response:
    try:
        withdrawal.cancel(visit.node, visit.who, withdrawal_id, command=form.command)
    except FIXABLE as fault:
        return _page(visit, name, EMPTY, [told(fault, {})], fault.row.status)
    return visit.go(f"/datasets/{name}#withdrawals-title")


@router.post("/datasets/{name}/withdrawals/{withdrawal_id}/files/{file_id}")
@performs("dataset.withdraw")
def settle(visit: Member, name: str, withdrawal_id: str, file_id: str, form: Sent) -> Response:
    """The custodian's word on a file: the button says which."""
    try:
        fate: withdrawal.Fate = "keep" if form.text("fate") == "keep" else "drop"
        withdrawal.settle(visit.node, visit.who, withdrawal_id, file_id, fate=fate, command=form.command)
    except FIXABLE as fault:
        return _page(visit, name, EMPTY, [told(fault, {})], fault.row.status)
    return visit.go(f"/datasets/{name}#withdrawals-title")


@router.get("/datasets/{name}/describe")
@performs("dataset.describe")
def ask_description(visit: Member, name: str) -> Response:
    page = dataset.show(visit.node, visit.who, name)
    lacking = permitted(visit.node, visit.who, "dataset.describe", dataset.resource(page.state))
    if lacking is not None:
        raise refuse(lacking.code, lacking.detail)
    row = page.row
    fields = {key: [str(row[key])] for key in ("title", "description")}
    fields |= {key: [", ".join(row[key])] for key in ("diseases", "data_types", "keywords")}
    return visit.page("describe.html", name=row["name"], form=Form(fields))


@router.post("/datasets/{name}/describe")
@performs("dataset.describe")
def describe(visit: Member, name: str, form: Sent) -> Response:
    try:
        if not form.text("title"):
            raise refuse("name_wrong", "the title is empty")
        dataset.describe(visit.node, visit.who, name, description(form))
    except FIXABLE as fault:
        return visit.page(
            "describe.html", fault.row.status, problems=[told(fault, {"name_wrong": "title"})], name=name, form=form
        )
    return visit.go(f"/datasets/{name}")


def description(form: Form) -> dataset.Description:
    """The catalogue's texts, as the forms for a description and for a deposit give them."""
    return dataset.Description(
        title=form.text("title"),
        description=form.text("description"),
        diseases=form.items("diseases"),
        data_types=form.items("data_types"),
        keywords=form.items("keywords"),
    )


@router.get("/datasets/{name}/history")
@performs("dataset.history")
def history(visit: Member, name: str, page: str = "1") -> Response:
    events = dataset.history(visit.node, visit.who, name)[::-1]
    pages = max(1, -(-len(events) // PAGE))
    number = min(pages, int(page)) if page.isdecimal() and len(page) < 7 and int(page) > 0 else 1
    shown = events[(number - 1) * PAGE : number * PAGE]
    return visit.page("history.html", name=name, events=shown, total=len(events), number=number, pages=pages)
