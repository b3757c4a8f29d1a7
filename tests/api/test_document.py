"""The OpenAPI document says what the door does: held against random requests."""

from __future__ import annotations

from pathlib import Path

import pytest
import schemathesis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from valv.api.app import build
from valv.assemble import openapi
from valv.formats import batch

ROOT = Path(__file__).resolve().parents[2]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 40
schemathesis.serializer.alias(["application/offset+octet-stream", batch.MEDIA], "application/octet-stream")
DOCUMENT = schemathesis.openapi.from_dict(build().openapi())
OPERATIONS = {found.ok().definition.raw["operationId"]: found.ok() for found in DOCUMENT.get_all_operations()}


def test_the_document_is_fresh():
    difference = "\n".join(openapi.stale(ROOT))
    assert not difference, f"{difference}\nrun 'python -m valv.assemble.openapi --write' and review the change"


def test_check_tells_a_stale_document(tmp_path):
    assert openapi.main(["--check", "--root", str(tmp_path)]) == 1
    assert openapi.main(["--write", "--root", str(tmp_path)]) == 0
    assert openapi.main(["--check", "--root", str(tmp_path)]) == 0


@pytest.fixture(scope="session")
def real(node_world):
    """Ids of things that are there, by the name of the path's parameter."""
    w = node_world
    w.anonymised("random", {"f.txt": b"content"})
    compute, alma = w.permit("random", people=["alma"]), w.person("alma")
    _, release = w.run(compute, {"out.txt": b"1"})
    new = {"dataset": "random-own", "class": "anonymised", "consent": ["GRU"], "committee": "dac"}
    return {
        "name": "random",
        "deposit_id": alma.post("/deposits", new)["deposit_id"],
        "access_id": alma.post("/applications", w.form("random"))["access_id"],
        "permit_id": w.permit("random", mode="download", people=["alma"]),
        "run_id": alma.post("/runs", {"permit": compute, "command": ["true"]})["run_id"],
        "release_id": release,
    }


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"log_out"}))
def test_answers_are_as_documented(w, real, name):
    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(case=OPERATIONS[name].as_strategy(), known=st.booleans())
    def answers(case, known):
        if known:
            case.path_parameters.update({key: real[key] for key in case.path_parameters if key in real})
        headers = {"Authorization": f"Bearer {w.person('alma').token}"}
        case.call_and_validate(base_url=w.server.url, headers=headers, checks=CHECKS)

    answers()
