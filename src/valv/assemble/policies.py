"""The policy files that come with Valv, read once when a node starts."""

from __future__ import annotations

from importlib import resources

from valv.core.authorize import Policies

OVERLAYS = ("se", "no", "dk", "fi", "is")


def load_policies(country: str, overlays: tuple[str, ...] = ()) -> Policies:
    """The base policies with the overlay of the node's `country` and those of `overlays` (ISO 3166 codes, either case).
    A country without an overlay of its own has the base rules. Raises `ConfigFault` where a file is wrong."""
    wanted = dict.fromkeys(code.lower() for code in (country, *overlays))
    names = [f"overlays/{code}.cedar" for code in wanted if code in OVERLAYS]
    return Policies(
        _text("schema.cedarschema"),
        ("base.cedar", _text("base.cedar")),
        tuple((name, _text(name)) for name in names),
    )


def _text(name: str) -> str:
    return resources.files("valv.core").joinpath("policies", *name.split("/")).read_text("utf-8")
