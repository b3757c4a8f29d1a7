"""Sessions: log in for a token, show the second factor, log out."""

from __future__ import annotations

import msgspec
from pydantic import Field
from starlette.responses import Response

from valv.api.answer import answer, answers, nothing
from valv.api.asking import Anyone, Body, Known
from valv.api.routes import PREFIX, routes
from valv.app import account
from valv.app.node import Who
from valv.app.operation import performs

router = routes("sessions", f"{PREFIX}/sessions")


class LogIn(Body):
    """`code`: of the second factor, where it is shown at once; `label`: what the token is for."""

    name: str = Field(max_length=100)
    password: str = Field(max_length=1000)
    code: str = Field(default="", max_length=20)
    label: str = Field(default="", max_length=100, pattern="^[^\\x00]*$")


class Code(Body):
    code: str = Field(max_length=20)


class Me(msgspec.Struct, frozen=True, kw_only=True):
    """The account behind a session. `second_factor`: one was shown a short while ago."""

    account_id: str
    name: str
    display: str
    roles: frozenset[str]
    committees: frozenset[str]
    country: str
    second_factor: bool


class Session(msgspec.Struct, frozen=True):
    """`token` is shown this once."""

    token: str
    account: Me


def me(who: Who) -> Me:
    person = who.principal
    return Me(
        account_id=person.account_id,
        name=who.name,
        display=who.display,
        roles=person.roles,
        committees=person.committees,
        country=person.country,
        second_factor=person.second_factor,
    )


@router.post("")
@performs("session.open")
@answers(Session, 201, "logged in")
def log_in(ask: Anyone, body: LogIn) -> Response:
    """Log in. After five failures for a name, a minute's pause."""
    found = account.log_in(
        ask.node, name=body.name, password=body.password, code=body.code, kind="token", label=body.label
    )
    return answer(Session(found.token, me(found.who)), 201)


@router.get("/current")
@performs("session.see")
@answers(Me, summary="who this token belongs to")
def show_session(ask: Known) -> Response:
    """Whose token this is."""
    return answer(me(ask.who))


@router.post("/current/second-factor")
@performs("session.see")
@answers(Me, summary="the second factor counts for a while")
def show_second_factor(ask: Known, body: Code) -> Response:
    """Show the second factor in this session."""
    return answer(me(account.step_up(ask.node, ask.who, body.code)))


@router.delete("/current")
@performs("session.close")
@answers(status=204)
def log_out(ask: Known) -> Response:
    """Log out; the token ends."""
    account.log_out(ask.node, ask.who)
    return nothing()
