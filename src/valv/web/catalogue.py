"""The catalogue: what can be applied for."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Response

from valv.app import dataset
from valv.app.operation import performs
from valv.formats import duo
from valv.web.problem import FIXABLE, Problem, told
from valv.web.visit import Visiting

router = APIRouter()
PAGE = 20
CONSENTS = [(short, label) for short, label in duo.TERMS.values()]
"""Terms that can be searched for, each with its meaning."""


@router.get("/catalogue")
@performs("catalogue.find")
def show(
    visit: Visiting, q: str = "", disease: str = "", data_type: str = "", consent: str = "", page: str = "1"
) -> Response:
    asked = {"q": q.strip(), "disease": disease.strip(), "data_type": data_type.strip(), "consent": consent.strip()}
    number = int(page) if page.isdecimal() and len(page) < 7 and int(page) > 0 else 1
    problems: list[Problem] = []
    found = dataset.Found(0, [])
    try:
        found = dataset.catalogue(
            visit.node,
            visit.who,
            query=asked["q"],
            disease=asked["disease"],
            data_type=asked["data_type"],
            consent=asked["consent"],
            offset=(number - 1) * PAGE,
            limit=PAGE,
        )
    except FIXABLE as fault:
        problems = [told(fault, {"fault.format": "consent", "fault.input": "q"})]
    values: dict[str, Any] = {"asked": asked, "found": found, "consents": CONSENTS, "number": number}
    values["pages"] = max(1, -(-found.total // PAGE))
    values["link"] = lambda wanted: "/catalogue?" + urlencode({**{k: v for k, v in asked.items() if v}, "page": wanted})
    return visit.page("catalogue.html", 400 if problems else 200, problems=problems, **values)
