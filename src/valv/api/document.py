"""The OpenAPI document: requests as the framework describes them, answers and problems from the types that are sent."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from valv.api.answer import Told, told_of
from valv.api.problem import MEDIA, Problem
from valv.app.operation import action_of


def operations(app: FastAPI) -> list[APIRoute]:
    """Every operation of the door."""
    return [route for route in app.routes if isinstance(route, APIRoute)]


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document as JSON types. Each operation names its action as `x-valv-action`."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, openapi_version="3.1.0", routes=app.routes
    )
    routes = operations(app)
    told = [told_of(route.endpoint) for route in routes]
    kinds = [one.kind for one in told if one.kind is not None]
    schemas, components = msgspec.json.schema_components([Problem, *kinds], ref_template="#/components/schemas/{name}")
    known = document["components"]["schemas"]
    if twice := sorted(set(known) & set(components)):
        raise ValueError(f"two schemas have one name: {', '.join(twice)}")
    known.update(components)
    rest = iter(schemas[1:])
    wrong = {"description": "a problem (RFC 9457)", "content": {MEDIA: {"schema": schemas[0]}}}
    for route, one in zip(routes, told, strict=True):
        answered = _response(one, next(rest) if one.kind is not None else None)
        for method in route.methods or ():
            operation = document["paths"][route.path_format][method.lower()]
            operation["responses"] = {str(one.status): answered, "default": wrong}
            operation["x-valv-action"] = action_of(route.endpoint)
    return document


def _response(told: Told, schema: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"description": told.summary}
    if schema is not None:
        found["content"] = {"application/json": {"schema": schema}}
    elif told.media:
        found["content"] = {told.media: {"schema": {"type": "string", "format": "binary"}}}
    return found
