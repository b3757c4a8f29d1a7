"""Certificates of destruction, to be kept: the bundle that proves itself, and the PDF."""

from __future__ import annotations

from fastapi import APIRouter, Response

from valv.app import destruction
from valv.app.node import refuse
from valv.app.operation import performs
from valv.web.visit import Member

router = APIRouter()


@router.get("/datasets/{name}/certificates/{version}/json")
@performs("dataset.certificate")
def fetch(visit: Member, name: str, version: str) -> Response:
    found = destruction.bundle(visit.node, visit.who, name, _number(version))
    return _file(found, "application/json", f"{name}-{version}.certificate.json")


@router.get("/datasets/{name}/certificates/{version}/pdf")
@performs("dataset.certificate")
def printed(visit: Member, name: str, version: str) -> Response:
    found = destruction.pdf(visit.node, visit.who, name, _number(version))
    return _file(found, "application/pdf", f"{name}-{version}.certificate.pdf")


def _number(version: str) -> int:
    if not (version.isascii() and version.isdecimal() and len(version) < 8):
        raise refuse("no_version", "a version is a number")
    return int(version)


def _file(content: bytes, media: str, name: str) -> Response:
    """`name`: the address has found a dataset by it, so that it is a plain one."""
    return Response(content, media_type=media, headers={"Content-Disposition": f'attachment; filename="{name}"'})
