"""Walks through every process of the core with sample commands, to learn which step leads where.

The diagrams of the documentation are made from this, so that they show what the code does and not what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any, Final

import msgspec

from valv.core import (
    access,
    account,
    backup,
    dataset,
    deposit,
    fixity,
    permit,
    release,
    rotation,
    run,
    storage,
    withdrawal,
)
from valv.core.consent import Match, Purpose
from valv.core.process import NODE, Command, command_name
from valv.errors import Refusal

NOW: Final = datetime(2026, 1, 5, 9, tzinfo=UTC)
DEPTH: Final = 7


@dataclass(frozen=True)
class Sample:
    """One process with what it takes to walk through all of it. `actors`: who acts, with the facts that hold for them;
    `commands` are given by each of them in turn."""

    process: ModuleType
    title: str
    actors: Mapping[str, Any]
    commands: tuple[Command, ...]

    @property
    def name(self) -> str:
        return str(self.process.KIND)


@dataclass(frozen=True, order=True)
class Step:
    """Phases before and after; `new` is the phase of what does not exist yet."""

    before: str
    command: str
    role: str
    after: str


def explore(sample: Sample) -> tuple[list[Any], frozenset[Step]]:
    """The states within `DEPTH` steps of the beginning (None, which is before it, first) and every step that any actor
    can take from them."""
    steps: set[Step] = set()
    seen: set[bytes] = set()
    states: list[Any] = [None]
    every: list[Any] = [None]
    for _ in range(DEPTH):
        found: list[Any] = []
        for state in states:
            for actor, facts in sample.actors.items():
                for command in sample.commands:
                    after = _take(sample, state, msgspec.structs.replace(command, by=actor), facts, steps)
                    key = msgspec.msgpack.encode(after)
                    if after is not None and key not in seen:
                        seen.add(key)
                        found.append(after)
        states = found
        every.extend(found)
    return every, frozenset(steps)


def _take(sample: Sample, state: Any, command: Command, facts: Any, steps: set[Step]) -> Any:
    process = sample.process
    decided = process.decide(state, command, facts)
    if isinstance(decided, Refusal):
        return None
    after = state
    for event in decided:
        after = process.evolve(after, event)
    before = state.phase if state else "new"
    allowed = process.TABLE[before]
    for role in process.roles(state, command.by, facts):
        if type(command) in allowed.get(role, ()):
            steps.add(Step(before, command_name(type(command)), role, after.phase))
    return after


def _given(kind: type[Any], **fields: Any) -> Any:
    return kind(by="", at=NOW, **fields)


_PURPOSE: Final = Purpose(aim="health", for_profit=False, commercial=False, country="SE")
_WANTED: Final = (access.Wanted("d", 1),)
_REQUEST: Final = access.Request(
    title="t", summary="s", wanted=_WANTED, purpose=_PURPOSE, people=("p",), mode="compute", days=30, licence=True
)
_FACT: Final = access.DatasetFact(
    dataset_id="d",
    version=1,
    name="d",
    visible=True,
    effective="anonymised",
    country="SE",
    match=Match("permitted", ()),
)
_LIMITS: Final = run.Asked(seconds=1, memory=1, processes=1, scratch=1)
_ITEMS: Final = tuple(release.Item(file_id=name, size=1, seal_root="0" * 64) for name in ("f", "g"))

SAMPLES: Final[tuple[Sample, ...]] = (
    Sample(
        deposit,
        "Deposit",
        {"c": deposit.Facts(owner=True, files=1, size=1, manifest="m"), NODE: deposit.Facts()},
        (
            _given(deposit.Open, deposit_id="x", dataset_id="d", key_id="k", claimed="anonymised", consent=("GRU",)),
            _given(deposit.Submit),
            _given(deposit.Publish, version=1),
            _given(deposit.Fail, reason="r"),
            _given(deposit.Cancel),
        ),
    ),
    Sample(
        dataset,
        "Dataset",
        {
            "c": dataset.Facts(custodian=True),
            "a": dataset.Facts(assessor=True),
            NODE: dataset.Facts(),
        },
        (
            _given(dataset.Register, dataset_id="d", name="d", committee="k", country="SE", unit="u"),
            *(
                _given(
                    dataset.AddVersion,
                    deposit_id=deposit_id,
                    key_id="k",
                    claimed="anonymised",
                    consent=("GRU",),
                    files=1,
                    size=1,
                    manifest="m",
                    participants=1,
                )
                for deposit_id in ("x", "y")
            ),
            _given(dataset.RecordScan, version=1, findings=0, report="r"),
            _given(dataset.Assess, version=1, confirm=True, reason="r"),
            _given(dataset.Narrow, version=1, reason="r"),
            _given(dataset.Close, reason="r"),
            _given(dataset.CloseVersion, version=1, withdrawal_id="w", runs_end=True),
            _given(dataset.OpenVersion, version=1),
            _given(
                dataset.NarrowConsent,
                version=1,
                narrower=dataset.Narrower(consent=("HMB",), people="t", count=1),
            ),
            _given(dataset.RecordDestruction, version=1, generation=2),
            _given(dataset.Certify, version=1, certificate="r"),
        ),
    ),
    Sample(
        access,
        "Access (application)",
        {
            "r": access.Facts(datasets=(_FACT,), researcher=True),
            "m": access.Facts(datasets=(_FACT,), committee=True),
        },
        (
            _given(access.Draft, access_id="x", request=_REQUEST),
            _given(access.Save, request=_REQUEST),
            _given(access.Submit),
            _given(access.ReturnForChanges, reason="r"),
            _given(access.Approve, permit_id="p", starts=NOW, ends=NOW + timedelta(days=30), reason="r"),
            _given(access.Reject, reason="r"),
            _given(access.Withdraw),
        ),
    ),
    Sample(
        permit,
        "Permit",
        {
            NODE: permit.Facts(),
            "m": permit.Facts(committee=True),
            "c": permit.Facts(custodian=True),
            "r": permit.Facts(),
        },
        (
            _given(
                permit.Issue,
                permit_id="p",
                access_id="x",
                people=("r",),
                datasets=_WANTED,
                purpose=_PURPOSE,
                mode="download",
                starts=NOW,
                ends=NOW + timedelta(days=30),
            ),
            _given(permit.Revoke, reason="r"),
            permit.Expire(by="", at=NOW + timedelta(days=30)),
            _given(permit.GiveBack),
            _given(permit.Move, dataset_id="d", before=1, after=2),
            _given(permit.Suspend, reason="r"),
            _given(permit.Resume, reason="r"),
            _given(permit.RecordDownload, file_id="f", key="k", start=0),
        ),
    ),
    Sample(
        run,
        "Run",
        {"r": run.Facts(permit=None), NODE: run.Facts(permit=None)},
        (
            _given(
                run.Queue,
                run_id="x",
                aim="research",
                permit_id="p",
                datasets=_WANTED,
                command="t",
                limits=_LIMITS,
                result_key="k",
            ),
            _given(
                run.Queue,
                run_id="y",
                aim="scan",
                permit_id="",
                datasets=_WANTED,
                command="t",
                limits=_LIMITS,
                result_key="k",
            ),
            _given(run.Start),
            _given(run.Stop, why="stopped"),
            _given(run.Finish, end="exited", success=True),
            _given(run.RecordReads, reads={"f": 1}),
            _given(run.Collect, outputs=1, skipped=0),
        ),
    ),
    Sample(
        release,
        "Release",
        {NODE: release.Facts(), "r": release.Facts(), "k": release.Facts(checker=True, manifest="m")},
        (
            _given(
                release.Seal,
                release_id="x",
                run_id="x",
                permit_id="p",
                author="r",
                people=("r",),
                datasets=("d",),
                key_id="k",
                items=_ITEMS,
                manifest="m",
            ),
            _given(release.Request, context="t"),
            *(
                _given(release.Check, file_id=item.file_id, approve=approve, reason="r", manifest="m")
                for item in _ITEMS
                for approve in (True, False)
            ),
            _given(release.Withdraw),
            _given(release.Fetch, file_id="f"),
            _given(release.Inspect, file_id="f"),
        ),
    ),
    Sample(
        rotation,
        "Rotation",
        {"o": rotation.Facts(operator=True), "c": rotation.Facts(custodian=True), NODE: rotation.Facts()},
        (
            *(
                _given(rotation.Start, rotation_id="x", dataset_id="d", version=1, key_id="k", aim=aim, reason="r")
                for aim in ("rotate", "rekey")
            ),
            _given(rotation.RecordPair),
            _given(rotation.RecordBody, file_id="f", before="0" * 64, after="1" * 64),
            _given(rotation.Settle),
            _given(rotation.Retire),
            _given(rotation.Stop),
            _given(rotation.Fail, why="r"),
        ),
    ),
    Sample(
        storage,
        "Storage (placement of a dataset)",
        {
            "o": storage.Facts(operator=True, stores=frozenset({"main", "archive"})),
            "c": storage.Facts(custodian=True, stores=frozenset({"main", "archive"})),
            NODE: storage.Facts(),
        },
        (
            _given(storage.SetRule, dataset_id="d", rule="copies = 2"),
            _given(storage.Move, dataset_id="d", source="main", target="archive"),
            _given(storage.EndMove),
        ),
    ),
    Sample(
        withdrawal,
        "Withdrawal of participants",
        {"c": withdrawal.Facts(custodian=True), NODE: withdrawal.Facts()},
        (
            _given(
                withdrawal.Ask,
                withdrawal_id="x",
                dataset_id="d",
                version=1,
                key_id="k",
                persons="t",
                count=1,
                reason="r",
                runs_end=True,
            ),
            _given(withdrawal.Plan, files=2),
            _given(withdrawal.RecordFile, file_id="f", outcome="rewritten", before="0" * 64, after="1" * 64),
            _given(withdrawal.RecordTaken, files=1),
            _given(withdrawal.Wait, files=1),
            _given(withdrawal.GoOn),
            _given(withdrawal.Publish, successor=2),
            _given(withdrawal.Carry, permits=1),
            _given(withdrawal.Finish),
            _given(withdrawal.FindNobody),
            _given(withdrawal.Fail, why="r"),
            _given(withdrawal.Cancel),
        ),
    ),
    Sample(
        fixity,
        "Fixity (a scrub)",
        {"o": fixity.Facts(operator=True), NODE: fixity.Facts()},
        (
            _given(fixity.Begin, scrub_id="x", days=90, expected=2),
            _given(fixity.RecordDamage, body="b", file_id="f", store="main", fault="altered"),
            _given(fixity.RecordRepair, body="b", file_id="f", store="main", source="archive"),
            _given(fixity.RecordLoss, body="b", file_id="f"),
            _given(fixity.Finish, copies=2, size=1, unreached=0, left=0),
        ),
    ),
    Sample(
        backup,
        "Backup and restoring",
        {NODE: backup.Facts()},
        (
            _given(
                backup.RecordBackup,
                place="p",
                generation=1,
                size=1,
                root="0" * 64,
                manifest="1" * 64,
                bodies=1,
                held_back=0,
                missing=0,
                stored=1,
            ),
            _given(
                backup.RecordDrill, place="p", generation=1, size=1, root="0" * 64, bodies=1, wrong=0, milliseconds=1
            ),
            _given(
                backup.RecordRestore, place="p", generation=1, size=1, reached=2, root="0" * 64, known=2, lost=("d/1",)
            ),
        ),
    ),
    Sample(
        account,
        "Account",
        {"s": account.Facts(proven=True, second_factor=True), NODE: account.Facts()},
        (
            _given(account.Create, account_id="s", roles=("researcher",)),
            _given(account.AddKey, key_id="k", fingerprint="f"),
            _given(account.EndKey, key_id="k"),
            _given(account.EnrolFactor, method="totp"),
            _given(account.RecordLogin, how="page", second_factor=True),
        ),
    ),
)
