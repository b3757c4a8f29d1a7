"""Datasets: the catalogue, a dataset's page, the assessment of anonymity, and who touched it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import Query
from pydantic import Field
from starlette.responses import Response

from valv.api.answer import answer, answers, nothing
from valv.api.asking import Anyone, Body, Command, Id, Known, Line, Text, Words
from valv.api.routes import PREFIX, routes
from valv.app import dataset
from valv.app.node import allow
from valv.app.operation import performs

router = routes("datasets", f"{PREFIX}/datasets")


class About(Body):
    """The catalogue text, all of it: what is left out becomes empty."""

    title: Line = ""
    description: Text = ""
    diseases: list[Line] = Field(default=[], max_length=100)
    data_types: list[Line] = Field(default=[], max_length=100)
    keywords: list[Line] = Field(default=[], max_length=100)


class Assessment(Body):
    """`confirm`: the version is anonymised indeed."""

    version: int = Field(ge=1, le=1_000_000)
    confirm: bool
    reason: Text


class Narrowing(Body):
    version: int = Field(ge=1, le=1_000_000)
    reason: Text


class ScanReport(msgspec.Struct, frozen=True):
    """What the identifier scan of the newest version found, '' before the scan."""

    report: str


class Touched(msgspec.Struct, frozen=True):
    """One line of a dataset's history."""

    position: int
    at: datetime
    event: str
    actor: str
    stream: str


@router.get("")
@performs("catalogue.find")
@answers(dataset.Found, summary="one page of the catalogue")
def find_datasets(
    ask: Anyone,
    query: Words = "",
    disease: Words = "",
    data_type: Words = "",
    consent: Words = "",
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Search the catalogue. It is open to everybody and holds no data."""
    return answer(
        dataset.catalogue(
            ask.node,
            ask.who,
            query=query,
            disease=disease,
            data_type=data_type,
            consent=consent,
            offset=offset,
            limit=limit,
        )
    )


@router.get("/{name}")
@performs("dataset.see")
@answers(dataset.Page, summary="the dataset's page")
def show_dataset(ask: Known, name: Id) -> Response:
    """A dataset's description, consent and versions."""
    return answer(dataset.show(ask.node, ask.who, name))


@router.patch("/{name}")
@performs("dataset.describe")
@answers(status=204)
def describe_dataset(ask: Known, name: Id, body: About) -> Response:
    """Write the catalogue text."""
    about = dataset.Description(
        title=body.title,
        description=body.description,
        diseases=tuple(body.diseases),
        data_types=tuple(body.data_types),
        keywords=tuple(body.keywords),
    )
    dataset.describe(ask.node, ask.who, name, about)
    return nothing()


@router.get("/{name}/report")
@performs("dataset.report")
@answers(ScanReport, summary="the report")
def show_report(ask: Known, name: Id) -> Response:
    """The report of the identifier scan."""
    page = dataset.show(ask.node, ask.who, name)
    allow(ask.node, ask.who, "dataset.report", dataset.resource(page.state))
    return answer(ScanReport(page.report))


@router.post("/{name}/assessment")
@performs("dataset.assess")
@answers(status=204)
def assess_dataset(ask: Known, command: Command, name: Id, body: Assessment) -> Response:
    """Confirm or deny, as a second person, that a version is anonymised."""
    dataset.assess(
        ask.node, ask.who, name, version=body.version, confirm=body.confirm, reason=body.reason, command=command
    )
    return nothing()


@router.post("/{name}/narrowing")
@performs("dataset.narrow")
@answers(status=204)
def narrow_dataset(ask: Known, command: Command, name: Id, body: Narrowing) -> Response:
    """Make a version identifiable again. Downloads end at once."""
    dataset.narrow(ask.node, ask.who, name, version=body.version, reason=body.reason, command=command)
    return nothing()


@router.get("/{name}/history")
@performs("dataset.history")
@answers(list[Touched], summary="oldest first")
def show_history(ask: Known, name: Id) -> Response:
    """Who touched a dataset: every event of it and of what hangs off it."""
    return answer(dataset.history(ask.node, ask.who, name))
