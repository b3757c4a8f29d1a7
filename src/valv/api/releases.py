"""Releases: the outputs of runs, checked file by file before they leave."""

from __future__ import annotations

from pydantic import Field
from starlette.responses import Response

from valv.api.answer import BYTES, answer, answers, nothing, stream
from valv.api.asking import Body, Command, Id, Known, Text
from valv.api.routes import PREFIX, routes
from valv.app import release
from valv.app.operation import performs

router = routes("releases", f"{PREFIX}/releases")


class ReleaseRequest(Body):
    """`context`: what the outputs are, for the checker."""

    context: Text


class Decision(Body):
    """`manifest`: the one that the checker saw, so that the word counts for these very files."""

    approve: bool
    reason: Text = ""
    manifest: str = Field(pattern="^[0-9a-f]{64}$")


@router.get("")
@performs("release.see")
@answers(list[release.View], summary="newest first")
def list_releases(ask: Known) -> Response:
    """One's own releases and, for checkers, those that wait for a check."""
    return answer(release.mine(ask.node, ask.who))


@router.get("/{release_id}")
@performs("release.see")
@answers(release.View, summary="the release with its files")
def show_release(ask: Known, release_id: Id) -> Response:
    """A release and the decisions on its files."""
    return answer(release.show(ask.node, ask.who, release_id))


@router.post("/{release_id}/request")
@performs("release.request")
@answers(status=204)
def request_release(ask: Known, command: Command, release_id: Id, body: ReleaseRequest) -> Response:
    """Ask for the outputs."""
    release.request(ask.node, ask.who, release_id, context=body.context, command=command)
    return nothing()


@router.post("/{release_id}/withdrawal")
@performs("release.withdraw")
@answers(status=204)
def withdraw_release(ask: Known, command: Command, release_id: Id) -> Response:
    """Withdraw the request."""
    release.withdraw(ask.node, ask.who, release_id, command=command)
    return nothing()


@router.get("/{release_id}/files/{file_id}/inspection")
@performs("release.inspect")
@answers(summary="the plain bytes", media=BYTES)
def inspect_output(ask: Known, release_id: Id, file_id: Id) -> Response:
    """Look at an output as its checker. The look is written into the ledger."""
    file, chunks = release.inspect(ask.node, ask.who, ask.reader, release_id, file_id)
    return stream(chunks, size=file.size, name=file.path)


@router.post("/{release_id}/files/{file_id}/decision")
@performs("release.check")
@answers(status=204)
def decide_on_output(ask: Known, command: Command, release_id: Id, file_id: Id, body: Decision) -> Response:
    """Approve or reject an output."""
    release.check(
        ask.node,
        ask.who,
        release_id,
        file_id=file_id,
        approve=body.approve,
        reason=body.reason,
        seen=body.manifest,
        command=command,
    )
    return nothing()


@router.get("/{release_id}/files/{file_id}")
@performs("release.fetch")
@answers(summary="the plain bytes", media=BYTES)
def fetch_output(ask: Known, release_id: Id, file_id: Id) -> Response:
    """Fetch a released output as its author."""
    file, chunks = release.fetch(ask.node, ask.who, ask.reader, release_id, file_id)
    return stream(chunks, size=file.size, name=file.path)
