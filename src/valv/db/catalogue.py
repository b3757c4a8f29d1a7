"""Finding datasets by words and filters, the same on both databases.

Two columns of a dataset row are derived from the others: `search` holds the words of its texts, `facets` one line for
each value that can be filtered by. Both are folded (Unicode NFKC, then case), for databases disagree on letter case.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

import sqlalchemy as sa

from valv.db.schema import dataset
from valv.errors import InputFault

DERIVED: Final = frozenset({"search", "facets"})
MAX_QUERY: Final = 1000
"""Characters of one search text or filter."""
_TEXTS: Final = ("name", "title", "description")
_WORDS: Final = ("diseases", "keywords")
_FACETS: Final = ("diseases", "data_types", "consent")
SOURCES: Final = frozenset({*_TEXTS, *_WORDS, *_FACETS})
"""The columns that the derived ones are made of."""


def folded(row: Mapping[str, Any]) -> dict[str, str]:
    """The derived columns of a dataset row."""
    parts = [str(row[name]) for name in _TEXTS]
    parts.extend(value for name in _WORDS for value in _values(row[name]))
    lines = [_facet(name, value) for name in _FACETS for value in _values(row[name])]
    return {"search": "\n".join(fold(part) for part in parts), "facets": "".join(lines)}


def conditions(text: str, filters: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
    """Visible datasets that hold every word of `text` and, for each column of `filters`, the value (empty: any)."""
    for query in (text, *filters.values()):
        if len(query) > MAX_QUERY or "\0" in query or any("\ud800" <= one <= "\udfff" for one in query):
            raise InputFault(f"a search has at most {MAX_QUERY} characters, all of them plain text")
    found: list[sa.ColumnElement[bool]] = [dataset.c.visible.is_(True)]
    found.extend(dataset.c.search.contains(word, autoescape=True) for word in fold(text).split())
    found.extend(
        dataset.c.facets.contains(_facet(name, value), autoescape=True) for name, value in filters.items() if value
    )
    return found


def fold(text: str) -> str:
    """NFKC with case folded away, so that STRASSE finds Straße and a composed letter finds a decomposed one."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _facet(name: str, value: str) -> str:
    """One whole line, so that a value never matches a part of another; runs of white space count as one space."""
    return f"\n{name}={' '.join(fold(value).split())}\n"


def _values(items: Any) -> list[str]:
    """The strings of a JSON list. An item that is an object, such as an id with a label, gives each string in it."""
    found: list[str] = []
    for item in items or ():
        parts = item.values() if isinstance(item, dict) else (item,)
        found.extend(part for part in parts if isinstance(part, str))
    return found
