"""The destruction of dataset versions: what it takes, and the certificate that nothing is left."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from starlette.responses import Response

from valv.api.answer import answer, answers, disposition
from valv.api.asking import Id, Known
from valv.api.routes import PREFIX, routes
from valv.app import destruction
from valv.app.operation import performs

router = routes("datasets", f"{PREFIX}/datasets")
Version = Annotated[int, Path(ge=1, le=1_000_000)]
PDF = "application/pdf"


@router.get("/{name}/destruction")
@performs("dataset.certificate")
@answers(destruction.Plan, summary="versions, keys, copies and backups")
def plan_destruction(ask: Known, name: Id) -> Response:
    """What a destruction of the dataset's versions takes. Two officers order it at the node: 'valv dataset destroy'."""
    return answer(destruction.plan(ask.node, ask.who, name))


@router.get("/{name}/certificates/{version}")
@performs("dataset.certificate")
@answers(summary="the bundle: see docs/formats/certificate.md", media="application/json")
def fetch_certificate(ask: Known, name: Id, version: Version) -> Response:
    """The certificate of a version's destruction, with what proves it offline."""
    found = destruction.bundle(ask.node, ask.who, name, version)
    return _file(found, "application/json", f"{name}-{version}.certificate.json")


@router.get("/{name}/certificates/{version}/pdf")
@performs("dataset.certificate")
@answers(summary="the certificate, to be printed", media=PDF)
def print_certificate(ask: Known, name: Id, version: Version) -> Response:
    """The certificate of a version's destruction as PDF."""
    return _file(destruction.pdf(ask.node, ask.who, name, version), PDF, f"{name}-{version}.certificate.pdf")


def _file(content: bytes, media: str, name: str) -> Response:
    return Response(content, media_type=media, headers={"Content-Disposition": disposition(name)})
