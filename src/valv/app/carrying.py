"""The end of a withdrawal: the successor version is published, permits move to it, and what named people is erased."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from valv.app import dataset as datasets
from valv.app import outbox, streams, text
from valv.app import withdrawal as withdrawals
from valv.app.deposit import PARTICIPANTS, manifest
from valv.app.node import Node, new_id
from valv.app.streams import DATASET, PERMIT, WITHDRAWAL, Step, retried
from valv.core import consent, dataset, permit, withdrawal
from valv.core.process import NODE
from valv.errors import Refusal
from valv.formats import duo
from valv.ports.records import Unit

NOTHING_LEFT = (
    "Nothing would be left of the version: every file was dropped. It stays closed. Revoke its permits, and have two"
    " officers destroy its key."
)


@retried
def publish(node: Node, state: withdrawal.Withdrawal, old: dataset.Version) -> None:
    """All or nothing: the successor, its files, the catalogue row, and the permits of the old version."""
    at = node.clock()
    with node.records.writing() as unit:
        now, version = streams.need(unit, WITHDRAWAL, state.withdrawal_id)
        owner, number = streams.need(unit, DATASET, state.dataset_id)
        rows = unit.rows("file", {"deposit": state.withdrawal_id, "state": "verified"}, order="path")
        data = [row for row in rows if row["path"] != PARTICIPANTS]
        if not data:
            said = text.put(unit, WITHDRAWAL.stream(state.withdrawal_id), "why", NOTHING_LEFT, at)
            failed = withdrawal.decide(now, withdrawal.Fail(by=NODE, at=at, why=said), withdrawal.Facts())
            streams.commit(
                unit,
                [Step(WITHDRAWAL, state.withdrawal_id, version, now, failed)],
                by=NODE,
                at=at,
                command=new_id(),
            )
            tell(unit, owner, state, at, "A withdrawal came to no end", NOTHING_LEFT)
            return
        fresh = owner.version(old.number) or old
        add = dataset.AddVersion(
            by=NODE,
            at=at,
            deposit_id=state.withdrawal_id,
            key_id=state.key_id,
            claimed=fresh.claimed,
            consent=fresh.consent,
            files=len(data),
            size=sum(row["size"] for row in data),
            manifest=manifest(rows),
            participants=fresh.participants,
            replaces=fresh.number,
            findings=fresh.findings,
            confirmed=fresh.confirmed,
            narrower=_narrower(unit, now, fresh),
        )
        added = Step(DATASET, state.dataset_id, number, owner, dataset.decide(owner, add, dataset.Facts()))
        current = added.after.current
        assert current is not None
        left = unit.count("withdrawal_file", {"withdrawal": state.withdrawal_id, "state": ["todo", "asking"]})
        order = withdrawal.Publish(by=NODE, at=at, successor=current.number)
        done = Step(
            WITHDRAWAL,
            state.withdrawal_id,
            version,
            now,
            withdrawal.decide(now, order, withdrawal.Facts(left=left)),
        )
        streams.commit(unit, [added, done], by=NODE, at=at, command=f"publish:{state.withdrawal_id}")
        unit.update("file", {"deposit": state.withdrawal_id, "state": "verified"}, {"version": current.number})
        unit.insert(
            "dataset_version_file",
            [{"dataset": state.dataset_id, "version": current.number, "file": row["id"]} for row in data],
        )
        datasets.refresh(unit, added.after, at)
        if current.effective == "anonymised":
            key = {"key_id": current.key_id}
            outbox.put(unit, at, topic="key.confirm", key=f"key.confirm:{current.key_id}", body=key)


def _narrower(unit: Unit, state: withdrawal.Withdrawal, old: dataset.Version) -> tuple[dataset.Narrower, ...]:
    """Narrower consents of people who are still in the successor."""
    gone = _pseudonyms(unit, state.persons)
    return tuple(one for one in old.narrower if not (named := _pseudonyms(unit, one.people)) or not named <= gone)


def _pseudonyms(unit: Unit, ident: str) -> frozenset[str]:
    body = text.get(unit, ident)
    return frozenset(msgspec.json.decode(body, type=withdrawals.Persons).pseudonyms) if body else frozenset()


@retried
def finish(node: Node, state: withdrawal.Withdrawal) -> None:
    """Move every permit that names the old version; once none does, the withdrawal is over."""
    at = node.clock()
    with node.records.writing() as unit:
        now, version = streams.need(unit, WITHDRAWAL, state.withdrawal_id)
        owner, number = streams.need(unit, DATASET, state.dataset_id)
        named = withdrawals.live(unit, state.dataset_id, state.version)
        order: withdrawal.Commands = withdrawal.Carry(by=NODE, at=at, permits=len(named))
        if not named:
            order = withdrawal.Finish(by=NODE, at=at)
        events = withdrawal.decide(now, order, withdrawal.Facts(named=len(named)))
        if isinstance(events, Refusal):
            return
        moved = [_move(unit, one, owner, now, at) for one in named]
        steps: list[Step[Any]] = [Step(WITHDRAWAL, state.withdrawal_id, version, now, events), *moved]
        # Who approves at this moment looks at the dataset as it was before: then one of the two is too late.
        streams.commit(
            unit, steps, by=NODE, at=at, command=new_id(), asserts={DATASET.stream(state.dataset_id): number}
        )
        for step in moved:
            _tell_moved(unit, step.after, owner, now, at)
        if not named:
            erase(unit, now, at)
            tell(
                unit,
                owner,
                now,
                at,
                "A withdrawal is finished",
                f"{owner.name} version {now.successor} took the place of version {now.version}: {now.dropped} files"
                f" were dropped, {now.rewritten} rewritten, {now.taken} taken over as they are, {now.permits} permits"
                " moved."
                f" Version {now.version} stays closed. To destroy it for good, two officers order it: its key is"
                f" {_key_of(owner, now.version)}.",
            )


def _key_of(owner: dataset.Dataset, number: int) -> str:
    found = owner.version(number)
    return found.key_id if found else ""


def _move(
    unit: Unit, known: permit.Permit, owner: dataset.Dataset, state: withdrawal.Withdrawal, at: datetime
) -> Step[permit.Permit]:
    """Also a suspended permit moves; it may be used again where the successor fits."""
    found, version = streams.need(unit, PERMIT, known.permit_id)
    order = permit.Move(by=NODE, at=at, dataset_id=owner.dataset_id, before=state.version, after=state.successor)
    decided = permit.decide(found, order, permit.Facts())
    step = Step(PERMIT, known.permit_id, version, found, decided)
    if found.phase != "suspended" or isinstance(decided, Refusal) or not fits(unit, step.after):
        return step
    said = text.put(unit, PERMIT.stream(known.permit_id), "reason", "The version without who withdrew fits.", at)
    resumed = permit.decide(step.after, permit.Resume(by=NODE, at=at, reason=said), permit.Facts())
    if isinstance(resumed, Refusal):
        return step
    return Step(PERMIT, known.permit_id, version, found, [*decided, *resumed])


def fits(unit: Unit, state: permit.Permit) -> bool:
    """Whether the purpose fits what everybody in the permit's datasets consents to, at least as well as it fitted the
    consents that the committee looked at."""
    return all(
        version is not None and fits_consents(version, state)
        for version in (
            streams.need(unit, DATASET, wanted.dataset_id)[0].version(wanted.version) for wanted in state.datasets
        )
    )


def fits_consents(version: dataset.Version, state: permit.Permit) -> bool:
    """The same for one version."""
    consents = [tuple(duo.parse(term) for term in terms) for terms in version.consents]
    days = (state.ends - state.starts).days
    before, after = (
        consent.match_all(some, state.purpose, starts=state.starts.date(), days=days)
        for some in (consents[:1], consents)
    )
    return not consent.fits_less(before, after)


def _tell_moved(
    unit: Unit, moved: permit.Permit, owner: dataset.Dataset, state: withdrawal.Withdrawal, at: datetime
) -> None:
    for person in moved.people:
        outbox.mail(
            unit,
            at,
            key=f"permit-moved:{moved.permit_id}:{state.withdrawal_id}:{person}",
            account=person,
            subject="A permit is for another version now",
            body=f"Participants withdrew their consent from {owner.name} version {state.version}. Permit"
            f" {moved.permit_id} is for version {state.successor} from now on, which is without them; its end and its"
            " conditions are the same. Start work on the old version anew, and delete copies of it.",
        )


def tell(
    unit: Unit, owner: dataset.Dataset, state: withdrawal.Withdrawal, at: datetime, subject: str, body: str
) -> None:
    """Tell the custodian. The same subject is told once for a withdrawal, and anew after its files were settled."""
    outbox.mail(
        unit,
        at,
        key=f"withdrawal:{state.withdrawal_id}:{subject}:{state.kept + state.dropped}",
        account=owner.custodian,
        subject=subject,
        body=body,
    )


def erase(unit: Unit, state: withdrawal.Withdrawal, at: datetime) -> None:
    """Nothing names who withdrew any more. What is left is the salted digest: whoever has the pseudonym can show that
    it was meant, and nobody can find it."""
    kinds = [withdrawals.PERSONS, withdrawals.NAMES]
    where = {"owner_stream": WITHDRAWAL.stream(state.withdrawal_id), "kind": kinds}
    unit.update("text", where, {"body": None, "erased": at})


def leave(unit: Unit, body: str, file_id: str, at: datetime) -> None:
    """A body that no file has: it is deleted a little later, when whoever writes it has ended."""
    unit.upsert("stale_body", {"body": body, "dataset": "", "file": file_id, "since": at})
