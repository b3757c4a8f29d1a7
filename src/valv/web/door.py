"""What the pages share: the node, the templates, the key of the forms' tokens, and the portal's own files."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from importlib import resources

import anyio
from jinja2 import Environment, PackageLoader, StrictUndefined

from valv.app.node import Node
from valv.ports.compute import Reader
from valv.web import words

UPLOADS = 8
"""Files that may arrive through the portal at once, so that slow senders do not take every thread."""
MEDIA = {"valv.css": "text/css; charset=utf-8", "logo.svg": "image/svg+xml"}


@dataclass(frozen=True)
class Door:
    """`key`: of the tokens in forms, fresh in each process; `files`: what `/static/` serves, by name."""

    node: Node
    reader: Reader
    templates: Environment
    files: dict[str, bytes]
    uploads: anyio.CapacityLimiter
    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def secure(self) -> bool:
        """Whether the portal is reached over HTTPS, so that its cookies must be."""
        return self.node.config.public_url.startswith("https://")


def open_door(node: Node, reader: Reader) -> Door:
    files = {name: resources.files("valv.web").joinpath("static", name).read_bytes() for name in MEDIA}
    templates = Environment(
        loader=PackageLoader("valv.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(words.FILTERS)
    templates.globals["site"] = node.config.node
    templates.globals["static"] = {name: f"/static/{name}?v={_mark(content)}" for name, content in files.items()}
    return Door(node=node, reader=reader, templates=templates, files=files, uploads=anyio.CapacityLimiter(UPLOADS))


def _mark(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
