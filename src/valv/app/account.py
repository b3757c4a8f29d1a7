"""Accounts: creating them, logging in, the second factor, and the keys that downloads are sealed to."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from valv.app import outbox, streams
from valv.app.node import NOBODY, Node, Who, allow, new_id, refuse
from valv.app.streams import ACCOUNT, Step
from valv.core import account
from valv.core.authorize import Principal, Resource
from valv.core.process import NODE
from valv.errors import FormatFault, InputFault
from valv.formats import crypt4gh
from valv.ports.records import Unit

FAILURES = 5
"""Failed log-ins for one name within `WINDOW` before further ones are refused unseen."""
WINDOW = timedelta(seconds=60)
CHALLENGE = timedelta(minutes=10)
STAFF = frozenset({"operator", "auditor"})
"""Who may log in to a restored node that is not open yet."""
CLEARED = 1000
"""Rows of a table looked at in one clearing."""


class LoggedIn(msgspec.Struct, frozen=True):
    """`token` is shown once; the node keeps only its hash."""

    token: str
    who: Who


def create(
    node: Node,
    *,
    name: str,
    display: str,
    email: str,
    roles: Sequence[account.Role],
    committees: Sequence[str] = (),
    organisation: str = "",
    country: str = "",
    password: str = "",
    totp: bool = False,
) -> tuple[str, str]:
    """Make an account (an operator's act, on the node itself). Returns its id and its TOTP secret ('' without)."""
    if not name or not name.replace("-", "").replace("_", "").isalnum() or name != name.lower():
        raise refuse("name_wrong", name)
    ident, at = new_id(), node.clock()
    secret = node.login.new_secret() if totp else ""
    with node.records.writing() as unit:
        if unit.rows("account", {"name": name}):
            raise refuse("name_taken", name)
        row = {
            "id": ident,
            "name": name,
            "display": display,
            "email": email,
            "roles": [*roles, *(f"committee:{name}" for name in committees)],
            "password": node.login.hash_password(password) if password else "",
            "totp_secret": secret or None,
            "totp_last": None,
            "created": at,
            "erased": None,
            "organisation": organisation,
            "home_country": country,
        }
        unit.insert("account", [row])
        created = account.Create(by=NODE, at=at, account_id=ident, roles=tuple(roles), committees=tuple(committees))
        events = account.decide(None, created, account.Facts())
        step = Step(ACCOUNT, ident, 0, None, events)
        if secret:
            enrol = account.decide(step.after, account.EnrolFactor(by=NODE, at=at, method="totp"), account.Facts())
            assert isinstance(events, list)
            assert isinstance(enrol, list)
            step = Step(ACCOUNT, ident, 0, None, [*events, *enrol])
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())
    return ident, secret


def log_in(node: Node, *, name: str, password: str, code: str = "", kind: str = "page", label: str = "") -> LoggedIn:
    """Open a session. Too many failures for a name are refused before the password is looked at."""
    at = node.clock()
    name_hash = hashlib.sha256(name.encode()).hexdigest()
    with node.records.reading() as unit:
        _limit(unit, name_hash, at)
        rows = unit.rows("account", {"name": name, "erased": None})
    row: dict[str, Any] = rows[0] if rows else {}
    good = node.login.check_password(password, str(row.get("password") or "")) and bool(row)
    step = None
    with node.records.writing() as unit:
        _limit(unit, name_hash, at)  # again: guesses that were made at the same time count too
        if good and code:
            # Counted by itself: else good passwords between wrong codes would make room for any number of guesses.
            step = _spend(node, unit, row, code, at)
        ok = good and (not code or step is not None)
        unit.insert("login_attempt", [{"name_hash": name_hash, "at": at, "ok": ok}])
        shut = streams.closed(unit)
        if ok and shut and STAFF.isdisjoint(row["roles"]):
            raise refuse("node_closed")
        if ok:
            token = secrets.token_urlsafe(32)
            who = _open_session(node, unit, row, token, kind, label, step)
        if ok and not shut:  # the ledger of a closed node takes nothing
            decided = account.RecordLogin(
                by=row["id"], at=at, how="page" if kind == "page" else "token", second_factor=step is not None
            )
            state, version = streams.need(unit, ACCOUNT, row["id"])
            events = account.decide(state, decided, account.Facts())
            streams.commit(
                unit, [Step(ACCOUNT, row["id"], version, state, events)], by=row["id"], at=at, command=new_id()
            )
    if not ok:
        raise refuse("code_wrong") if good else refuse("login_failed")
    return LoggedIn(token, who)


def _limit(unit: Unit, name_hash: str, at: datetime) -> None:
    """Refuse where the last attempts all failed a short while ago."""
    attempts = unit.rows("login_attempt", {"name_hash": name_hash}, order="-id", limit=FAILURES)
    if sum(not row["ok"] and row["at"] > at - WINDOW for row in attempts) >= FAILURES:
        raise refuse("login_limited")


def _spend(node: Node, unit: Unit, row: dict[str, Any], code: str, at: datetime) -> int | None:
    """Check a code of the second factor and use it up: of two requests with the same code one is taken. Returns its
    time step, None where it is wrong. Attempts are limited for the account, wherever they come in."""
    name_hash = hashlib.sha256(b"code:" + str(row["id"]).encode()).hexdigest()
    _limit(unit, name_hash, at)
    step = _code(node, row, code)
    if step is not None and not unit.update(
        "account", {"id": row["id"], "totp_last": row["totp_last"]}, {"totp_last": step}
    ):
        step = None  # another request was quicker
    unit.insert("login_attempt", [{"name_hash": name_hash, "at": at, "ok": step is not None}])
    return step


def _code(node: Node, row: dict[str, Any], code: str) -> int | None:
    secret = row.get("totp_secret")
    if not secret or not code.isascii():
        return None
    return node.login.check_code(secret, code, row.get("totp_last"), node.clock())


def _open_session(
    node: Node, unit: Unit, row: dict[str, Any], token: str, kind: str, label: str, step: int | None
) -> Who:
    at, mark = node.clock(), _mark(token)
    unit.insert(
        "session",
        [
            {
                "hash": mark,
                "account": row["id"],
                "kind": kind,
                "label": label[:100],
                "created": at,
                "seen": at,
                "expires": at + timedelta(seconds=node.config.login.absolute),
                "second_factor_at": at if step is not None else None,
            }
        ],
    )
    return _who(row, mark, step is not None)


def step_up(node: Node, who: Who, code: str) -> Who:
    """Show the second factor in this session; it counts for `login.step_up` seconds."""
    allow(node, who, "session.see", Resource(kind="session", owner=who.account_id))
    at = node.clock()
    with node.records.writing() as unit:
        rows = unit.rows("account", {"id": who.account_id})
        step = _spend(node, unit, rows[0], code, at) if rows else None
        if step is not None:
            unit.update("session", {"hash": who.session}, {"second_factor_at": at})
    if step is None:
        raise refuse("code_wrong")
    return _who(rows[0], who.session, True)


def log_out(node: Node, who: Who) -> None:
    with node.records.writing() as unit:
        unit.delete("session", {"hash": who.session})


def who_is(node: Node, token: str) -> Who:
    """The person behind a session token, or `NOBODY`. Keeps the session alive, at most one write a minute."""
    if not token:
        return NOBODY
    mark, at = _mark(token), node.clock()
    with node.records.reading() as unit:
        sessions = unit.rows("session", {"hash": mark})
        rows = unit.rows("account", {"id": sessions[0]["account"], "erased": None}) if sessions else []
    if not sessions or not rows:
        return NOBODY
    session = sessions[0]
    idle = timedelta(seconds=node.config.login.idle)
    if at >= session["expires"] or at - session["seen"] > idle:
        with node.records.writing() as unit:
            unit.delete("session", {"hash": mark})
        return NOBODY
    if at - session["seen"] > min(timedelta(seconds=60), idle / 4):
        with node.records.writing() as unit:
            unit.update("session", {"hash": mark}, {"seen": at})
    shown = session["second_factor_at"]
    fresh = shown is not None and at - shown <= timedelta(seconds=node.config.login.step_up)
    return _who(rows[0], mark, fresh)


def _mark(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _who(row: dict[str, Any], mark: bytes, second_factor: bool) -> Who:
    plain = frozenset(role for role in row["roles"] if ":" not in role)
    committees = frozenset(role.partition(":")[2] for role in row["roles"] if role.startswith("committee:"))
    principal = Principal(
        account_id=row["id"],
        roles=plain,
        country=row["home_country"],
        committees=committees,
        second_factor=second_factor,
    )
    return Who(principal=principal, name=row["name"], display=row["display"], session=mark)


def names(unit: Unit, idents: Sequence[str]) -> dict[str, str]:
    """Display names by account id, for pages that may show them."""
    rows = unit.rows("account", {"id": sorted(set(idents))}) if idents else []
    return {row["id"]: row["display"] for row in rows} | {NODE: "the node"}


def account_names(unit: Unit, idents: Sequence[str]) -> tuple[str, ...]:
    """The names under which these accounts log in."""
    rows = unit.rows("account", {"id": sorted(set(idents)), "erased": None}, order="name") if idents else []
    return tuple(str(row["name"]) for row in rows)


def members(unit: Unit, committee: str) -> tuple[str, ...]:
    """Account ids of the people of a committee."""
    rows = unit.rows("account", {"erased": None}, order="name")
    return tuple(row["id"] for row in rows if f"committee:{committee}" in row["roles"])


def by_name(unit: Unit, wanted: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Account ids of these account names, and the names that have none."""
    rows = unit.rows("account", {"name": sorted(set(wanted)), "erased": None}) if wanted else []
    known = {row["name"]: row["id"] for row in rows}
    return tuple(known[name] for name in wanted if name in known), tuple(n for n in wanted if n not in known)


# --- the node's own step ---


def clear_old(node: Node) -> None:
    """Drop what is of no use any more: attempts to log in a day ago and earlier, sessions and challenges that ended."""
    at = node.clock()
    with node.records.writing() as unit:
        attempts = unit.rows("login_attempt", order="id", limit=CLEARED)
        gone = [row["id"] for row in attempts if row["at"] < at - timedelta(days=1)]
        sessions = [row["hash"] for row in unit.rows("session", order="expires", limit=CLEARED) if row["expires"] < at]
        waiting = unit.rows("key_challenge", order="expires", limit=CLEARED)
        challenges = [row["id"] for row in waiting if row["expires"] < at]
        for table, column, values in (
            ("login_attempt", "id", gone),
            ("session", "hash", sessions),
            ("key_challenge", "id", challenges),
        ):
            if values:
                unit.delete(table, {column: values})


# --- keys for downloads ---


class Challenge(msgspec.Struct, frozen=True):
    """Proof of possession: `header` is a Crypt4GH header whose data key only the holder of the private key learns; the
    answer is the SHA-256 of that data key, hex."""

    challenge_id: str
    header: bytes


def challenge_key(node: Node, who: Who, *, public: bytes, label: str) -> Challenge:
    allow(node, who, "account.key_add", Resource(kind="account", id=who.account_id, owner=who.account_id))
    if len(public) != 32 or public == bytes(32):
        raise InputFault("not a Crypt4GH public key", "make one with 'valv crypt keygen'")
    secret, at = secrets.token_bytes(32), node.clock()
    try:
        header = crypt4gh.build_header(secret, [public])
    except (ValueError, FormatFault) as error:
        raise InputFault("not a usable X25519 public key", "make one with 'valv crypt keygen'") from error
    ident = new_id()
    with node.records.writing() as unit:
        unit.insert(
            "key_challenge",
            [
                {
                    "id": ident,
                    "account": who.account_id,
                    "label": label[:100],
                    "public": public,
                    "answer_hash": hashlib.sha256(answer(secret).encode()).digest(),
                    "expires": at + CHALLENGE,
                }
            ],
        )
    return Challenge(ident, header)


def answer(data_key: bytes) -> str:
    """What the holder sends back: a digest, so that the data key itself never travels."""
    return hashlib.sha256(b"valv-key-proof-v1" + data_key).hexdigest()


def add_key(node: Node, who: Who, *, challenge_id: str, answer: str) -> str:
    """Register the key of an answered challenge; the owner gets a notice by mail. Returns the key's fingerprint."""
    allow(node, who, "account.key_add", Resource(kind="account", id=who.account_id, owner=who.account_id))
    at = node.clock()
    with node.records.writing() as unit:
        rows = unit.rows("key_challenge", {"id": challenge_id, "account": who.account_id})
        added = unit.rows("account_key", {"id": challenge_id, "account": who.account_id, "ended": None})
        if added:
            return str(added[0]["fingerprint"])  # answered before, and the answer was lost on its way
        if not rows or rows[0]["expires"] < at:
            raise refuse("not_proven", "the challenge is unknown or too old")
        row = rows[0]
        proven = secrets.compare_digest(hashlib.sha256(answer.encode()).digest(), row["answer_hash"])
        fingerprint = crypt4gh.fingerprint(row["public"])
        state, version = streams.need(unit, ACCOUNT, who.account_id)
        facts = account.Facts(proven=proven, second_factor=who.principal.second_factor)
        add = account.AddKey(by=who.account_id, at=at, key_id=challenge_id, fingerprint=fingerprint)
        step = Step(ACCOUNT, who.account_id, version, state, account.decide(state, add, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=f"key:{challenge_id}")
        unit.delete("key_challenge", {"id": challenge_id})
        unit.insert(
            "account_key",
            [
                {
                    "id": challenge_id,
                    "account": who.account_id,
                    "label": row["label"],
                    "public": row["public"],
                    "fingerprint": fingerprint,
                    "added": at,
                    "ended": None,
                }
            ],
        )
        outbox.mail(
            unit,
            at,
            key=f"key-added:{challenge_id}",
            account=who.account_id,
            subject="A key was added to your account",
            body=f"The public key {fingerprint} ({row['label']}) was added to your account at {at:%Y-%m-%d %H:%M} UTC. "
            "If this was not you, end it at once with 'valv account key end' and tell the node's operator.",
        )
    return fingerprint


def end_key(node: Node, who: Who, key_id: str) -> None:
    allow(node, who, "account.key_end", Resource(kind="account", id=who.account_id, owner=who.account_id))
    at = node.clock()
    with node.records.writing() as unit:
        state, version = streams.need(unit, ACCOUNT, who.account_id)
        end = account.EndKey(by=who.account_id, at=at, key_id=key_id)
        step = Step(ACCOUNT, who.account_id, version, state, account.decide(state, end, account.Facts()))
        streams.commit(unit, [step], by=who.account_id, at=at, command=new_id())
        unit.update("account_key", {"id": key_id, "account": who.account_id}, {"ended": at})


def keys(node: Node, who: Who) -> list[dict[str, Any]]:
    """The account's registered keys: id, label, fingerprint, added."""
    allow(node, who, "account.see", Resource(kind="account", id=who.account_id, owner=who.account_id))
    with node.records.reading() as unit:
        rows = unit.rows("account_key", {"account": who.account_id, "ended": None}, order="added")
    return [{key: row[key] for key in ("id", "label", "fingerprint", "added")} for row in rows]
