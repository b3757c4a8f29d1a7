"""Withdrawal of participants from a dataset: ask for one, look how it goes on, say what becomes of files that no
program can rewrite. Asking closes the versions in the same transaction; the worker does the rest: `app.withdrawing`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec

from valv.app import account, outbox, streams, text
from valv.app import dataset as datasets
from valv.app.node import Node, Who, derived_id, new_id, permitted, refuse
from valv.app.streams import DATASET, PERMIT, WITHDRAWAL, Step, retried
from valv.core import dataset, permit, withdrawal
from valv.core.process import NODE
from valv.errors import Refusal
from valv.ports.compute import WHY
from valv.ports.records import Unit

PERSONS = "persons"
NAMES = "names"
"""Kinds of the texts that name who withdrew, and what must not be left of them. Both are erased at the end."""
LONGEST = 4_000_000
"""Letters of such a text."""
MOST = 10_000
"""People of one withdrawal, and withdrawals of one dataset."""
Fate = Literal["drop", "keep"]


class Open(msgspec.Struct, frozen=True, kw_only=True):
    """A file that waits for the custodian. `why`: what the node could not do."""

    file_id: str
    path: str
    why: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """`left`: files without an outcome yet; `waiting`: those of them that wait for the custodian, told to the custodian
    alone; `old_key`: where the old version may be destroyed now, the key that officers would name. Who withdrew is not
    told."""

    state: withdrawal.Withdrawal
    dataset: str
    by: str
    reason: str
    why: str
    left: int
    waiting: list[Open]
    old_key: str
    may_act: bool


class Persons(msgspec.Struct, frozen=True):
    """What a text of the kind `PERSONS` holds."""

    pseudonyms: tuple[str, ...]


def checked(pseudonyms: Sequence[str]) -> tuple[str, ...]:
    """The pseudonyms as `participants.tsv` may have them, each once."""
    found = tuple(dict.fromkeys(word.strip() for word in pseudonyms if word.strip()))
    if not found:
        raise refuse("person_missing")
    if len(found) > MOST or any(len(word) > 200 or not word.isprintable() for word in found):
        raise refuse("person_wrong", f"at most {MOST}, each of 1 to 200 letters")
    return found


@retried
def start(
    node: Node,
    who: Who,
    name: str,
    *,
    pseudonyms: Sequence[str],
    reason: str,
    version: int = 0,
    runs_end: bool = True,
    command: str,
) -> list[str]:
    """Take these people out of a version of the dataset `name` (0: of every version that is not replaced yet). From
    this transaction on no run and no download of these versions begins. Returns the ids of the withdrawals, one for
    each version."""
    at = node.clock()
    people = checked(pseudonyms)
    with node.records.writing() as unit:
        owner, number = datasets.allowed(node, who, unit, name, "dataset.withdraw")
        if streams.done(unit, who.account_id, command):
            return _of_command(unit, owner, f"{who.account_id}:{command}")
        before = streams.find(unit, WITHDRAWAL, link=("dataset", owner.dataset_id), limit=MOST)
        facts = dataset.Facts(custodian=owner.custodian == who.account_id)
        steps: list[Step[Any]] = []
        for found in _chosen(owner, version):
            ident = derived_id(NODE, "withdrawal", f"{owner.dataset_id}:{found.number}:{len(before) + 1}")
            steps.append(_ask(unit, who, owner, found, ident, people, reason, runs_end, before, at))
        decided = [event for step in steps for event in _closed(owner, step.after, facts, who.account_id, at)]
        closed = Step(DATASET, owner.dataset_id, number, owner, decided)
        streams.commit(unit, [*steps, closed], by=who.account_id, at=at, command=command)
        datasets.refresh(unit, closed.after, at)
        for step in steps:
            _tell_closed(unit, owner, step.after, at)
    return [step.ident for step in steps]


def _chosen(owner: dataset.Dataset, version: int) -> list[dataset.Version]:
    if version:
        found = owner.version(version)
        if found is None:
            raise refuse("no_version", f"{owner.name} version {version}")
        if found.destroyed:
            raise refuse("version_destroyed", f"{owner.name} version {version}")
        if found.successor:
            raise refuse("version_replaced", f"version {found.successor} took its place")
        return [found]
    chosen = [found for found in owner.versions if not found.destroyed and not found.successor]
    if not chosen:
        raise refuse("no_version", owner.name)
    return chosen


def _ask(
    unit: Unit,
    who: Who,
    owner: dataset.Dataset,
    found: dataset.Version,
    ident: str,
    people: tuple[str, ...],
    reason: str,
    runs_end: bool,
    before: Sequence[withdrawal.Withdrawal],
    at: datetime,
) -> Step[withdrawal.Withdrawal]:
    stream = WITHDRAWAL.stream(ident)
    body = msgspec.json.encode(Persons(people)).decode()
    order = withdrawal.Ask(
        by=who.account_id,
        at=at,
        withdrawal_id=ident,
        dataset_id=owner.dataset_id,
        version=found.number,
        key_id=f"version-{ident}",
        persons=text.put(unit, stream, PERSONS, body, at, longest=LONGEST),
        count=len(people),
        reason=text.put(unit, stream, "reason", reason, at),
        runs_end=runs_end,
    )
    going = any(one.version == found.number and one.phase in withdrawal.GOING for one in before)
    facts = withdrawal.Facts(custodian=owner.custodian == who.account_id, going=going)
    return Step(WITHDRAWAL, ident, 0, None, withdrawal.decide(None, order, facts))


def _closed(
    owner: dataset.Dataset, state: withdrawal.Withdrawal, facts: dataset.Facts, by: str, at: datetime
) -> Sequence[dataset.Events]:
    """What a withdrawal does to the dataset."""
    order = dataset.CloseVersion(
        by=by, at=at, version=state.version, withdrawal_id=state.withdrawal_id, runs_end=state.runs_end
    )
    decided = dataset.decide(owner, order, facts)
    if isinstance(decided, Refusal):
        raise refuse(decided.code, decided.detail)
    return decided


def _tell_closed(unit: Unit, owner: dataset.Dataset, state: withdrawal.Withdrawal, at: datetime) -> None:
    for found in live(unit, owner.dataset_id, state.version):
        for person in found.people:
            outbox.mail(
                unit,
                at,
                key=f"withdrawal-asked:{state.withdrawal_id}:{found.permit_id}:{person}",
                account=person,
                subject="A dataset version was closed",
                body=f"Participants withdrew their consent from {owner.name} version {state.version}. It is closed for"
                f" new runs and downloads{'; runs that used it were stopped' if state.runs_end else ''}. The node is"
                f" making a version without them; your permit {found.permit_id} will then be for that one, with the"
                " same end and conditions. Delete copies of the closed version that you downloaded.",
            )


def live(unit: Unit, dataset_id: str, version: int) -> list[permit.Permit]:
    """Permits that name this version and may be used, or may be again."""
    found = streams.find(unit, PERMIT, link=("dataset", dataset_id), phases=permit.LIVE, limit=MOST)
    mine = (dataset_id, version)
    return [one for one in found if mine in ((w.dataset_id, w.version) for w in one.datasets)]


def _of_command(unit: Unit, owner: dataset.Dataset, command: str) -> list[str]:
    known = streams.find(unit, WITHDRAWAL, link=("dataset", owner.dataset_id), newest_first=False, limit=MOST)
    idents = [one.withdrawal_id for one in known]
    return [ident for ident in idents if unit.events(WITHDRAWAL.stream(ident))[0].command == command]


@retried
def cancel(node: Node, who: Who, withdrawal_id: str, *, command: str) -> None:
    """Make no successor. The version stays closed; a new withdrawal from it may be asked for."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version, owner = _mine(node, who, unit, withdrawal_id)
        if streams.done(unit, who.account_id, command):
            return
        facts = withdrawal.Facts(custodian=owner.custodian == who.account_id)
        order = withdrawal.Cancel(by=who.account_id, at=at)
        step = Step(WITHDRAWAL, withdrawal_id, version, state, withdrawal.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)


@retried
def settle(node: Node, who: Who, withdrawal_id: str, file_id: str, *, fate: Fate, command: str) -> None:
    """The custodian's word on a file that no program can rewrite: drop it, or keep it, because nothing in it is of who
    withdrew; one that was rewritten is kept as it then is. What is dropped may come again with a later deposit."""
    at = node.clock()
    with node.records.writing() as unit:
        state, version, owner = _mine(node, who, unit, withdrawal_id)
        if streams.done(unit, who.account_id, command):
            return
        rows = unit.rows("withdrawal_file", {"withdrawal": withdrawal_id, "file": file_id, "state": "asking"})
        if not rows:
            raise refuse("no_file")
        file = unit.rows("file", {"id": file_id})[0]
        facts = withdrawal.Facts(custodian=owner.custodian == who.account_id)
        order = withdrawal.RecordFile(
            by=who.account_id,
            at=at,
            file_id=file_id,
            outcome="dropped" if fate == "drop" else "kept",
            before=file["tree_root"].hex(),
            after="",
        )
        step = Step(WITHDRAWAL, withdrawal_id, version, state, withdrawal.decide(state, order, facts))
        streams.commit(unit, [step], by=who.account_id, at=at, command=command)
        made = rows[0]["made"]
        if fate == "drop" and made:
            gone = unit.rows("file", {"id": made})[0]
            unit.upsert("stale_body", {"body": gone["body"], "dataset": "", "file": made, "since": at})
            unit.delete("file", {"id": made})
        values: dict[str, Any] = {"state": "done", "work": "drop", "made": ""}
        if fate == "keep":
            values = {"state": "done"} if made else {"state": "todo", "work": "keep"}
        unit.update("withdrawal_file", {"withdrawal": withdrawal_id, "file": file_id}, values)


def _mine(
    node: Node, who: Who, unit: Unit, withdrawal_id: str, action: str = "dataset.withdraw"
) -> tuple[withdrawal.Withdrawal, int, dataset.Dataset]:
    state, version = streams.need(unit, WITHDRAWAL, withdrawal_id)
    owner = streams.need(unit, DATASET, state.dataset_id)[0]
    refusal = permitted(node, who, action, datasets.resource(owner, state.version))
    if refusal is not None:
        raise refuse(refusal.code, refusal.detail)
    return state, version, owner


def show(node: Node, who: Who, withdrawal_id: str) -> View:
    with node.records.reading() as unit:
        state, _, owner = _mine(node, who, unit, withdrawal_id, "dataset.withdrawals")
        return _view(node, who, unit, state, owner)


def mine(node: Node, who: Who, name: str = "") -> list[View]:
    """The withdrawals that the actor may see, newest first; of one dataset where it is named."""
    with node.records.reading() as unit:
        query = {"link": ("dataset", datasets.named(unit, name)[0].dataset_id)} if name else {}
        found = [
            (state, streams.need(unit, DATASET, state.dataset_id)[0])
            for state in streams.find(unit, WITHDRAWAL, limit=200, **query)
        ]
        return [
            _view(node, who, unit, state, owner)
            for state, owner in found
            if permitted(node, who, "dataset.withdrawals", datasets.resource(owner, state.version)) is None
        ]


def _view(node: Node, who: Who, unit: Unit, state: withdrawal.Withdrawal, owner: dataset.Dataset) -> View:
    may = permitted(node, who, "dataset.withdraw", datasets.resource(owner, state.version)) is None
    asking = unit.rows("withdrawal_file", {"withdrawal": state.withdrawal_id, "state": "asking"}) if may else []
    asking = asking if state.phase in withdrawal.GOING else []
    paths = {row["id"]: row["path"] for row in unit.rows("file", {"id": [row["file"] for row in asking]})}
    old = owner.version(state.version)
    offered = state.phase == "finished" and old is not None and not old.destroyed
    return View(
        state=state,
        dataset=owner.name,
        by=account.names(unit, [state.by]).get(state.by, ""),
        reason=text.get(unit, state.reason),
        why=text.get(unit, state.why),
        left=unit.count("withdrawal_file", {"withdrawal": state.withdrawal_id, "state": ["todo", "asking"]})
        if state.phase in withdrawal.GOING
        else 0,
        waiting=[
            Open(file_id=row["file"], path=paths[row["file"]], why=WHY.get(row["why"], row["why"]))
            for row in sorted(asking, key=lambda row: paths[row["file"]])
        ],
        old_key=old.key_id if old is not None and offered else "",
        may_act=may and state.phase in withdrawal.GOING and state.phase != "carrying",
    )


def new_row(state: withdrawal.Withdrawal, file: dict[str, Any], at: datetime) -> dict[str, Any]:
    """The row of the successor's file for one of the old version; with its body, until the caller says otherwise."""
    kept = ("dataset", "path", "folded", "body", "size", "cipher_size", "segments", "seal_root", "sha256")
    return {key: file[key] for key in (*kept, "sent_sha256", "tree_root", "known_outside")} | {
        "id": new_id(),
        "deposit": state.withdrawal_id,
        "version": None,
        "header": None,
        "key_id": state.key_id,
        "state": "verified",
        "reason": "",
        "received": at,
    }
