"""One's own account and the keys that downloads are sealed to."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime

import msgspec
from pydantic import Field
from starlette.responses import Response

from valv.api.answer import answer, answers, nothing
from valv.api.asking import Body, Id, Known
from valv.api.routes import PREFIX, routes
from valv.api.sessions import Me, me
from valv.app import account
from valv.app.node import allow
from valv.app.operation import performs
from valv.core.authorize import Resource
from valv.errors import InputFault
from valv.formats import keyfile

router = routes("account", f"{PREFIX}/account")


class NewKey(Body):
    """`public`: a Crypt4GH public key, its file's text or the base64 of its 32 bytes."""

    public: str = Field(max_length=2000)
    label: str = Field(default="", max_length=100, pattern="^[^\\x00]*$")


class Answer(Body):
    """SHA-256, hex, of `valv-key-proof-v1` and the data key that the challenge's header holds."""

    answer: str = Field(max_length=200)


class Key(msgspec.Struct, frozen=True):
    """A registered key."""

    id: str
    label: str
    fingerprint: str
    added: datetime


class Fingerprint(msgspec.Struct, frozen=True):
    fingerprint: str


@router.get("")
@performs("account.see")
@answers(Me, summary="the account")
def show_account(ask: Known) -> Response:
    """One's own account."""
    allow(ask.node, ask.who, "account.see", Resource("account", ask.who.account_id, owner=ask.who.account_id))
    return answer(me(ask.who))


@router.get("/keys")
@performs("account.see")
@answers(list[Key], summary="oldest first")
def list_keys(ask: Known) -> Response:
    """One's registered keys."""
    return answer(account.keys(ask.node, ask.who))


@router.post("/keys")
@performs("account.key_add")
@answers(account.Challenge, 201, "answer it to register the key")
def challenge_key(ask: Known, body: NewKey) -> Response:
    """Begin to register a public key: a challenge that only the holder of its private half can answer."""
    return answer(account.challenge_key(ask.node, ask.who, public=_public(body.public), label=body.label), 201)


@router.post("/keys/{challenge_id}")
@performs("account.key_add")
@answers(Fingerprint, summary="the key is registered; its id is the challenge's")
def add_key(ask: Known, challenge_id: Id, body: Answer) -> Response:
    """Answer the challenge."""
    return answer(Fingerprint(account.add_key(ask.node, ask.who, challenge_id=challenge_id, answer=body.answer)))


@router.delete("/keys/{key_id}")
@performs("account.key_end")
@answers(status=204)
def end_key(ask: Known, key_id: Id) -> Response:
    """End a key: nothing is sealed to it any more."""
    account.end_key(ask.node, ask.who, key_id)
    return nothing()


def _public(text: str) -> bytes:
    if "BEGIN" in text:
        return keyfile.read_public(text)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputFault("public: neither a Crypt4GH public key file nor base64") from None
