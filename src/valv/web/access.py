"""Applications: written by researchers, held against the consent, decided by a committee."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, Response

from valv.app import access
from valv.app.node import allow, refuse
from valv.app.operation import performs
from valv.core import consent
from valv.core.authorize import Resource
from valv.errors import Fault, FormatFault
from valv.web.form import EMPTY, Form, Sent
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Member, Visit

router = APIRouter()
AIMS = {"general": "GRU", "health": "HMB", "disease": "DS", "ancestry": "POA", "methods": "METHODS"}
PROMISES = {
    "genetic": ("GSO", "It is a genetic study"),
    "clinical_care": ("CC", "Results are used in the care of patients"),
    "ethics_approval": ("IRB", "An ethics review board approved the study"),
    "will_publish": ("PUB", "The results will be published"),
    "will_collaborate": ("COL", "We collaborate with the study's investigators"),
    "will_return": ("RTN", "Results will be returned to the custodian"),
}
"""Declarations in plain words: field of `Purpose` → DUO term and label."""
DECLARED = {
    "for_profit": "Our organisation works for profit",
    "commercial": "The use is commercial",
}
FIELDS = {
    "dataset_missing": "datasets",
    "dataset_twice": "datasets",
    "dataset_unknown": "datasets",
    "no_version": "datasets",
    "person_unknown": "people",
    "disease_missing": "diseases",
    "place_missing": "country",
    "duration": "days",
    "fault.input": "days",
    "licence": "licence",
    "download_identifiable": "mode",
    "abroad": "country",
    "name_wrong": "title",
    "fault.format": "aim",
}
DECIDING = {"reason_missing": "reason", "duration": "granted", "fault.input": "granted"}


@router.get("/applications")
@performs("access.list")
def mine(visit: Member) -> Response:
    views = access.mine(visit.node, visit.who)
    own = [view for view in views if visit.who.account_id in view.state.people]
    others = [view for view in views if visit.who.account_id not in view.state.people]
    return visit.page("applications.html", own=own, others=others)


@router.get("/applications/new")
@performs("access.draft")
def begin(visit: Member, dataset: str = "") -> Response:
    allow(visit.node, visit.who, "access.draft", Resource(kind="access", owner=visit.who.account_id))
    country = visit.who.principal.country
    return _form(visit, Form({"datasets": [dataset], "country": [country], "days": ["365"], "mode": ["compute"]}))


def _form(
    visit: Visit, form: Form, access_id: str = "", problems: list[Problem] | None = None, status: int = 200
) -> Response:
    values = {"form": form, "access_id": access_id, "promises": PROMISES, "declared": DECLARED, "aims": AIMS}
    return visit.page("application_form.html", status, problems=problems, **values)


@router.post("/applications")
@performs("access.draft")
def draft(visit: Member, form: Sent) -> Response:
    try:
        ident = access.draft(visit.node, visit.who, asked(form), command=form.command)
    except FIXABLE as fault:
        return _form(visit, form, "", [told(fault, FIELDS)], fault.row.status)
    return visit.go(f"/applications/{ident}")


def asked(form: Form) -> access.Form:
    """The form in the use case's terms. Raises `InputFault`, `FormatFault` or a refusal naming what is wrong."""
    if not form.text("title"):
        raise refuse("name_wrong", "the title is empty: write one line")
    aim = form.text("aim")
    if aim not in AIMS:
        raise FormatFault("the purpose is not named", "choose what the data are to be used for")
    diseases = form.items("diseases")
    if aim == "disease" and not diseases:
        raise refuse("disease_missing")
    terms = [f"DS={disease}" for disease in diseases] if aim == "disease" else [AIMS[aim]]
    terms.extend(term for field, (term, _) in PROMISES.items() if form.ticked(field))
    return access.Form(
        title=form.text("title"),
        summary=form.text("summary"),
        datasets=tuple(dict.fromkeys(form.items("datasets"))),
        purpose=tuple(terms),
        country=form.text("country"),
        institution=form.text("institution"),
        project=form.text("project"),
        for_profit=form.ticked("for_profit"),
        commercial=form.ticked("commercial"),
        people=tuple(dict.fromkeys(form.items("people"))),
        mode="download" if form.text("mode") == "download" else "compute",
        days=form.number("days", "the number of days"),
        licence=form.ticked("licence"),
    )


@router.get("/applications/{access_id}/edit")
@performs("access.save")
def edit(visit: Member, access_id: str) -> Response:
    view = access.show(visit.node, visit.who, access_id)
    if "save" not in view.may:
        raise refuse("wrong_phase", f"this application is {view.state.phase}")
    return _form(visit, _filled(view), access_id)


def _filled(view: access.View) -> Form:
    """The form as the application fills it."""
    request, purpose = view.state.request, view.state.request.purpose
    fields = {
        "title": view.title,
        "summary": view.summary,
        "datasets": ", ".join(f"{found.name}@{found.version}" for found in view.datasets),
        "aim": purpose.aim,
        "diseases": ", ".join(purpose.diseases),
        "country": purpose.country,
        "institution": purpose.institution,
        "project": purpose.project,
        "people": ", ".join(view.people_names),
        "mode": request.mode,
        "days": str(request.days),
        "licence": "yes" if request.licence else "",
    }
    fields |= {name: "yes" if getattr(purpose, name) else "" for name in (*PROMISES, *DECLARED)}
    return Form({name: [value] for name, value in fields.items()})


@router.post("/applications/{access_id}/edit")
@performs("access.save")
def save(visit: Member, access_id: str, form: Sent) -> Response:
    try:
        access.save(visit.node, visit.who, access_id, asked(form), command=form.command)
    except FIXABLE as fault:
        return _form(visit, form, access_id, [told(fault, FIELDS)], fault.row.status)
    return visit.go(f"/applications/{access_id}")


@router.get("/applications/{access_id}")
@performs("access.see")
def show(visit: Member, access_id: str) -> Response:
    return _page(visit, access_id)


def _page(
    visit: Visit, access_id: str, form: Form = EMPTY, problems: list[Problem] | None = None, status: int = 200
) -> Response:
    view = access.show(visit.node, visit.who, access_id)
    return visit.page(
        "application.html",
        status,
        problems=problems,
        view=view,
        form=form,
        deciding=bool(view.may & {"approve", "return", "reject"}),
        writing=bool(view.may & {"save", "submit", "withdraw"}),
        declared=_declared(view.state.request.purpose),
        most=min(view.state.request.days, visit.node.config.policy.permit_days),
    )


def _refused(visit: Visit, access_id: str, form: Form, fault: Fault, fields: Mapping[str, str]) -> Response:
    return _page(visit, access_id, form, [told(fault, fields)], fault.row.status)


def _declared(purpose: consent.Purpose) -> list[str]:
    """What the applicant declares, as sentences."""
    said = [label for field, (_, label) in PROMISES.items() if getattr(purpose, field)]
    return [*said, *(label for field, label in DECLARED.items() if getattr(purpose, field))]


@router.post("/applications/{access_id}/submit")
@performs("access.submit")
def submit(visit: Member, access_id: str, form: Sent) -> Response:
    try:
        access.submit(visit.node, visit.who, access_id, command=form.command)
    except FIXABLE as fault:
        return _refused(visit, access_id, form, fault, {})
    return visit.go(f"/applications/{access_id}")


@router.post("/applications/{access_id}/withdraw")
@performs("access.withdraw")
def withdraw(visit: Member, access_id: str, form: Sent) -> Response:
    try:
        access.withdraw(visit.node, visit.who, access_id, command=form.command)
    except FIXABLE as fault:
        return _refused(visit, access_id, form, fault, {})
    return visit.go(f"/applications/{access_id}")


@router.post("/applications/{access_id}/approve")
@performs("access.approve")
def approve(visit: Member, access_id: str, form: Sent) -> Response:
    try:
        days = form.number("granted", "the number of days") if form.text("granted") else None
        access.approve(visit.node, visit.who, access_id, reason=form.text("reason"), days=days, command=form.command)
    except FIXABLE as fault:
        return _refused(visit, access_id, form, fault, DECIDING)
    return visit.go(f"/applications/{access_id}")


@router.post("/applications/{access_id}/return")
@performs("access.return")
def send_back(visit: Member, access_id: str, form: Sent) -> Response:
    try:
        access.send_back(visit.node, visit.who, access_id, reason=form.text("reason"), command=form.command)
    except FIXABLE as fault:
        return _refused(visit, access_id, form, fault, DECIDING)
    return visit.go(f"/applications/{access_id}")


@router.post("/applications/{access_id}/reject")
@performs("access.reject")
def reject(visit: Member, access_id: str, form: Sent) -> Response:
    try:
        access.reject(visit.node, visit.who, access_id, reason=form.text("reason"), command=form.command)
    except FIXABLE as fault:
        return _refused(visit, access_id, form, fault, DECIDING)
    return visit.go(f"/applications/{access_id}")
