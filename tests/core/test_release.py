"""Releases: every refusal, once."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from valv.core import release
from valv.core.process import NODE

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ITEMS = tuple(release.Item(file_id=name, size=1, seal_root="00") for name in ("f", "g"))
SEALED = release.Release(
    release_id="x",
    run_id="x",
    permit_id="p",
    author="r",
    people=("r", "s"),
    datasets=("d",),
    key_id="k",
    items=ITEMS,
    manifest="m",
)
IN_REVIEW = replace(SEALED, phase="in_review", context="t")
CHECKER = release.Facts(checker=True, manifest="m")
NOBODY = release.Facts(manifest="m")


def check(by="k", file_id="f", approve=True, reason="r", manifest="m"):
    return release.Check(by=by, at=NOW, file_id=file_id, approve=approve, reason=reason, manifest=manifest)


def inspect(by="k", file_id="f"):
    return release.Inspect(by=by, at=NOW, file_id=file_id)


REQUEST = release.Request(by="r", at=NOW, context="t")
RELEASED = replace(
    IN_REVIEW, phase="released", items=(replace(ITEMS[0], approved=True), replace(ITEMS[1], approved=False))
)
CASES = [
    ("nothing_to_release", replace(SEALED, items=()), REQUEST, NOBODY),
    ("context_missing", SEALED, replace(REQUEST, context=""), NOBODY),
    ("own_outputs", IN_REVIEW, check(by="r"), CHECKER),
    ("own_outputs", IN_REVIEW, check(by="s"), CHECKER),
    ("own_outputs", IN_REVIEW, inspect(by="s"), CHECKER),
    ("no_file", IN_REVIEW, check(file_id="z"), CHECKER),
    ("no_file", IN_REVIEW, inspect(file_id="z"), CHECKER),
    ("reason_missing", IN_REVIEW, check(reason=""), CHECKER),
    ("already_checked", replace(IN_REVIEW, items=(replace(ITEMS[0], approved=False), ITEMS[1])), check(), CHECKER),
    ("seal_broken", IN_REVIEW, check(manifest="other"), CHECKER),
    ("seal_broken", IN_REVIEW, check(), replace(CHECKER, manifest="other")),
    ("not_released", RELEASED, release.Fetch(by="r", at=NOW, file_id="g"), NOBODY),
    ("not_yours", RELEASED, release.Fetch(by="s", at=NOW, file_id="f"), NOBODY),
    ("not_yours", IN_REVIEW, check(), NOBODY),
    ("not_yours", SEALED, replace(REQUEST, by="s"), NOBODY),
    ("wrong_phase", IN_REVIEW, release.Fetch(by="r", at=NOW, file_id="f"), NOBODY),
    ("wrong_phase", SEALED, inspect(), CHECKER),
    ("wrong_phase", replace(IN_REVIEW, phase="withdrawn"), check(), CHECKER),
]


@pytest.mark.parametrize(("code", "state", "command", "facts"), CASES)
def test_refusals(refused, code, state, command, facts):
    assert refused(release, state, command, facts) == code


def test_every_refusal_has_a_case(codes_of):
    assert codes_of(release) <= {case[0] for case in CASES}


def test_nothing_leaves_before_the_last_file_is_decided(follow):
    half = follow(release, IN_REVIEW, check(), CHECKER)
    assert half.phase == "in_review" and half.released == ()
    done = follow(release, half, check(file_id="g", approve=False), CHECKER)
    assert done.phase == "released" and [item.file_id for item in done.released] == ["f"]


def test_nothing_approved_is_rejected(follow):
    state = IN_REVIEW
    for name in ("f", "g"):
        state = follow(release, state, check(file_id=name, approve=False), CHECKER)
    assert state.phase == "rejected" and state.released == ()


def test_the_node_cannot_check(refused):
    assert refused(release, IN_REVIEW, check(by=NODE), CHECKER) == "not_yours"
