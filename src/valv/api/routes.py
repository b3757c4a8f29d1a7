"""Where the operations of a noun hang."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

PREFIX: Final = "/api/v1"


def routes(noun: str, prefix: str = PREFIX) -> APIRouter:
    """The router of one noun. An operation's id in the OpenAPI document is its function's name."""
    return APIRouter(
        prefix=prefix,
        tags=[noun],
        default_response_class=Response,
        generate_unique_id_function=lambda route: route.name,
    )
