"""One request to the portal: who asks, and the page that answers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup

from valv.app import account
from valv.app.node import NOBODY, Node, Who, refuse
from valv.web import token
from valv.web.door import Door
from valv.web.problem import Problem

SESSION = "valv_session"
STRANGER = "valv_visit"
"""Holds a random value before the log-in, so that the log-in form too has a token bound to its browser."""


@dataclass(frozen=True)
class Visit:
    """`mark`: the cookie's value that tokens of forms are bound to; `begun`: it is new and must be set."""

    request: Request
    door: Door
    who: Who
    mark: str
    begun: bool

    @property
    def node(self) -> Node:
        return self.door.node

    @property
    def here(self) -> str:
        """Path and query of this request, for coming back."""
        query = self.request.url.query
        return quote(self.request.url.path, safe="/") + (f"?{query}" if query else "")

    @property
    def fresh(self) -> bool:
        """Whether a second factor was shown a short while ago."""
        return self.who.principal.second_factor

    def page(
        self, template: str, status: int = 200, /, *, problems: list[Problem] | None = None, **values: Any
    ) -> HTMLResponse:
        content = self.door.templates.get_template(template).render(
            who=self.who,
            roles=self.who.principal.roles,
            fresh=self.fresh,
            here=self.here,
            hidden=self._hidden,
            problems=problems or [],
            wrong={problem.field: problem.text for problem in problems or [] if problem.field},
            **values,
        )
        response = HTMLResponse(content, status)
        if self.begun:
            self.keep(response, STRANGER, self.mark)
        return response

    def go(self, path: str) -> RedirectResponse:
        """See the result at another address, so that loading the page again repeats nothing."""
        return RedirectResponse(path, 303)

    def keep(self, response: HTMLResponse | RedirectResponse, name: str, value: str) -> None:
        response.set_cookie(name, value, path="/", httponly=True, samesite="strict", secure=self.door.secure)

    def _hidden(self) -> Markup:
        """What every form carries: the token that binds it to this browser, and a fresh name for the command."""
        return Markup(
            '<input type="hidden" name="token" value="{}"><input type="hidden" name="command" value="{}">'
        ).format(token.make(self.door.key, self.mark), secrets.token_urlsafe(18))


def visit(request: Request) -> Visit:
    door: Door = request.app.state.door
    value = request.cookies.get(SESSION, "")
    who = account.who_is(door.node, value)
    if who.account_id:
        found = Visit(request, door, who, value, begun=False)
    else:
        kept = request.cookies.get(STRANGER, "")
        usable = len(kept) == 43 and kept.isascii()
        found = Visit(request, door, NOBODY, kept if usable else secrets.token_urlsafe(32), begun=not usable)
    request.state.visit = found
    return found


Visiting = Annotated[Visit, Depends(visit)]


def member(found: Visiting) -> Visit:
    """Somebody who is logged in."""
    if not found.who.account_id:
        raise refuse("login_needed")
    return found


Member = Annotated[Visit, Depends(member)]


def local(path: str) -> str:
    """The path if it lies in this portal, else the home page: nobody is led elsewhere after a log-in."""
    if not path.startswith("/") or path.startswith(("//", "/\\")) or not path.isprintable() or len(path) >= 2000:
        return "/"
    parts = urlsplit(path)
    return "/" if parts.scheme or parts.netloc else path
