"""Dataset: its versions, and what class each of them really has.

`anonymised` is a claim. It takes effect for a version after an identifier scan and the assessment of a second person;
until then, and whenever it is narrowed, the version counts as identifiable.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias, assert_never

import msgspec

from valv.core.classes import DataClass
from valv.core.process import NODE, Command, Event, Table, guard
from valv.errors import Refusal

KIND = "dataset"
Phase: TypeAlias = Literal["registered", "live", "closed"]


class Narrower(msgspec.Struct, frozen=True, kw_only=True):
    """The consent of some participants became narrower than the version's. `consent`: DUO terms; `people`: id of the
    text that names them, `count`: how many they are."""

    consent: tuple[str, ...]
    people: str
    count: int


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """`findings`: number of suspicious places the identifier scan found, None before the scan; `confirmed`: the
    assessment, None before it; `destroyed`: its key is gone, and nothing opens its files any more; `certificate`: id of
    the text that says that all copies are gone. `closed`: since when no run and no download may begin, None where they
    may; `runs_end`: those that had begun end too; `successor`: number of the version that took its place, 0 for none;
    `narrower`: what some of its participants consent to by now."""

    number: int
    deposit_id: str
    key_id: str
    claimed: DataClass
    consent: tuple[str, ...]
    files: int
    size: int
    manifest: str
    participants: int
    findings: int | None = None
    confirmed: bool | None = None
    destroyed: bool = False
    certificate: str = ""
    closed: datetime | None = None
    runs_end: bool = True
    successor: int = 0
    narrower: tuple[Narrower, ...] = ()

    @property
    def consents(self) -> tuple[tuple[str, ...], ...]:
        """Every consent that a use must fit: the version's, and those of participants who narrowed theirs."""
        return (self.consent, *dict.fromkeys(found.consent for found in self.narrower))

    @property
    def effective(self) -> DataClass:
        """The class that counts."""
        return "anonymised" if self.claimed == "anonymised" and self.confirmed else "identifiable"


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """`committee`: the group of accounts that decides on access; `custodian`: who deposits and states consent."""

    dataset_id: str
    name: str
    custodian: str
    committee: str
    country: str
    unit: str
    phase: Phase = "registered"
    versions: tuple[Version, ...] = ()

    @property
    def current(self) -> Version | None:
        return self.versions[-1] if self.versions else None

    def version(self, number: int) -> Version | None:
        return next((version for version in self.versions if version.number == number), None)

    def living(self, number: int) -> Version | None:
        """The version, or the one that took its place."""
        found = self.version(number)
        while found is not None and found.successor:
            found = self.version(found.successor)
        return found


# --- commands ---
class Register(Command, frozen=True, kw_only=True):
    dataset_id: str
    name: str
    committee: str
    country: str
    unit: str


class AddVersion(Command, frozen=True, kw_only=True):
    """`replaces`: the version whose place it takes, 0 for none; it then brings along what is known of that one:
    `findings`, `confirmed`, `narrower`."""

    deposit_id: str
    key_id: str
    claimed: DataClass
    consent: tuple[str, ...]
    files: int
    size: int
    manifest: str
    participants: int
    replaces: int = 0
    findings: int | None = None
    confirmed: bool | None = None
    narrower: tuple[Narrower, ...] = ()


class RecordScan(Command, frozen=True, kw_only=True):
    """What the identifier scan of a version found. `report`: id of the text that lists the findings."""

    version: int
    findings: int
    report: str


class Assess(Command, frozen=True, kw_only=True):
    """A second person's word on the claim `anonymised`. `reason`: id of a text."""

    version: int
    confirm: bool
    reason: str


class Narrow(Command, frozen=True, kw_only=True):
    """The version is identifiable after all; downloads end at once."""

    version: int
    reason: str


class Close(Command, frozen=True, kw_only=True):
    reason: str


class CloseVersion(Command, frozen=True, kw_only=True):
    """No run and no download of this version may begin, because of a withdrawal. `runs_end`: those that had begun end
    too."""

    version: int
    withdrawal_id: str
    runs_end: bool


class OpenVersion(Command, frozen=True, kw_only=True):
    """The withdrawal found nobody in this version: it may be used again."""

    version: int


class NarrowConsent(Command, frozen=True, kw_only=True):
    """Some participants narrowed their consent."""

    version: int
    narrower: Narrower


class RecordDestruction(Command, frozen=True, kw_only=True):
    """The key holder has destroyed the version's key, as two officers ordered. `generation`: of the root key that was
    made then."""

    version: int
    generation: int


class Certify(Command, frozen=True, kw_only=True):
    """Nothing of the version is left in any store, nor of its key in the key backup. `certificate`: id of a text;
    `digest`: its SHA-256, hex."""

    version: int
    certificate: str
    digest: str = ""


Commands: TypeAlias = (
    Register
    | AddVersion
    | RecordScan
    | Assess
    | Narrow
    | Close
    | CloseVersion
    | OpenVersion
    | NarrowConsent
    | RecordDestruction
    | Certify
)


# --- events ---
class Registered(Event, frozen=True, kw_only=True, tag="dataset.registered"):
    dataset_id: str
    name: str
    custodian: str
    committee: str
    country: str
    unit: str


class VersionAdded(Event, frozen=True, kw_only=True, tag="dataset.version_added"):
    number: int
    deposit_id: str
    key_id: str
    claimed: DataClass
    consent: tuple[str, ...]
    files: int
    size: int
    manifest: str
    participants: int
    replaces: int = 0
    findings: int | None = None
    confirmed: bool | None = None
    narrower: tuple[Narrower, ...] = ()


class Scanned(Event, frozen=True, kw_only=True, tag="dataset.scanned"):
    version: int
    findings: int
    report: str


class Assessed(Event, frozen=True, kw_only=True, tag="dataset.assessed"):
    version: int
    confirmed: bool
    assessor: str
    reason: str


class Narrowed(Event, frozen=True, kw_only=True, tag="dataset.narrowed"):
    version: int
    reason: str


class Closed(Event, frozen=True, kw_only=True, tag="dataset.closed"):
    reason: str


class VersionClosed(Event, frozen=True, kw_only=True, tag="dataset.version_closed"):
    version: int
    withdrawal_id: str
    runs_end: bool
    at: datetime


class VersionOpened(Event, frozen=True, kw_only=True, tag="dataset.version_opened"):
    version: int


class ConsentNarrowed(Event, frozen=True, kw_only=True, tag="dataset.consent_narrowed"):
    version: int
    narrower: Narrower


class KeyDestroyed(Event, frozen=True, kw_only=True, tag="dataset.key_destroyed"):
    """From now on nobody reads the version, nor any copy of its files."""

    version: int
    generation: int


class DestructionCertified(Event, frozen=True, kw_only=True, tag="dataset.destruction_certified"):
    """By the digest the ledger's signature counts for the certificate too."""

    version: int
    certificate: str
    digest: str = ""


Events: TypeAlias = (
    Registered
    | VersionAdded
    | Scanned
    | Assessed
    | Narrowed
    | Closed
    | VersionClosed
    | VersionOpened
    | ConsentNarrowed
    | KeyDestroyed
    | DestructionCertified
)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """`custodian`: the actor may register datasets; `assessor`: the actor may assess claims of anonymity."""

    custodian: bool = False
    assessor: bool = False
    name_taken: bool = False


TABLE: Table = {
    "new": {"custodian": frozenset({Register})},
    "registered": {NODE: frozenset({AddVersion}), "custodian": frozenset({Close})},
    "live": {
        NODE: frozenset({AddVersion, RecordScan, OpenVersion, RecordDestruction, Certify}),
        "assessor": frozenset({Assess, Narrow}),
        "custodian": frozenset({Narrow, Close, CloseVersion, NarrowConsent}),
    },
    "closed": {NODE: frozenset({RecordDestruction, Certify})},
}


def roles(state: Dataset | None, by: str, facts: Facts) -> frozenset[str]:
    """The custodian never assesses their own claim: a second person does."""
    if by == NODE:
        return frozenset({NODE})
    owner = facts.custodian if state is None else by == state.custodian
    found = {"custodian"} if owner else set()
    if facts.assessor and not owner:
        found.add("assessor")
    return frozenset(found)


def decide(state: Dataset | None, command: Commands, facts: Facts) -> list[Events] | Refusal:
    if isinstance(command, Assess) and state is not None and command.by == state.custodian:
        return Refusal("own_claim", "the custodian who made the claim cannot assess it")
    refusal = guard(TABLE, state.phase if state else "new", roles(state, command.by, facts), command)
    if refusal:
        return refusal
    match command:
        case Register():
            if facts.name_taken:
                return Refusal("name_taken", command.name)
            return [
                Registered(
                    dataset_id=command.dataset_id,
                    name=command.name,
                    custodian=command.by,
                    committee=command.committee,
                    country=command.country,
                    unit=command.unit,
                )
            ]
        case AddVersion():
            number = len(state.versions) + 1 if state else 1
            if state and any(version.deposit_id == command.deposit_id for version in state.versions):
                return Refusal("already_published", "this deposit is a version already")
            if command.replaces and (state is None or not _replaceable(state, command.replaces)):
                return Refusal("no_version", f"version {command.replaces} is not one to be replaced")
            return [
                VersionAdded(
                    number=number,
                    deposit_id=command.deposit_id,
                    key_id=command.key_id,
                    claimed=command.claimed,
                    consent=command.consent,
                    files=command.files,
                    size=command.size,
                    manifest=command.manifest,
                    participants=command.participants,
                    replaces=command.replaces,
                    findings=command.findings,
                    confirmed=command.confirmed,
                    narrower=command.narrower,
                )
            ]
        case RecordScan():
            return _scan(state, command)
        case Assess():
            return _assess(state, command)
        case Narrow():
            version = _living(state, command.version)
            if isinstance(version, Refusal):
                return version
            if version.effective == "identifiable" and version.claimed == "identifiable":
                return Refusal("already_identifiable")
            return [Narrowed(version=command.version, reason=command.reason)]
        case Close():
            return [Closed(reason=command.reason)]
        case CloseVersion():
            return _close_version(state, command)
        case OpenVersion():
            version = _living(state, command.version)
            if isinstance(version, Refusal):
                return version
            return [VersionOpened(version=command.version)] if version.closed and not version.successor else []
        case NarrowConsent():
            version = _living(state, command.version)
            if isinstance(version, Refusal):
                return version
            if version.successor:
                return Refusal("version_replaced", f"version {version.successor} took its place")
            return [ConsentNarrowed(version=command.version, narrower=command.narrower)]
        case RecordDestruction():
            version = _living(state, command.version)
            if isinstance(version, Refusal):
                return version
            return [KeyDestroyed(version=command.version, generation=command.generation)]
        case Certify():
            return _certify(state, command)
        case _:
            assert_never(command)


def _living(state: Dataset | None, number: int) -> Version | Refusal:
    """The version, unless its key was destroyed."""
    version = state.version(number) if state else None
    if version is None:
        return Refusal("no_version", f"version {number}")
    return Refusal("version_destroyed", f"version {number}") if version.destroyed else version


def _replaceable(state: Dataset, number: int) -> bool:
    version = state.version(number)
    return version is not None and version.closed is not None and not version.successor


def _close_version(state: Dataset | None, command: CloseVersion) -> list[Events] | Refusal:
    version = _living(state, command.version)
    if isinstance(version, Refusal):
        return version
    if version.successor:
        return Refusal("version_replaced", f"version {version.successor} took its place")
    return [
        VersionClosed(
            version=command.version, withdrawal_id=command.withdrawal_id, runs_end=command.runs_end, at=command.at
        )
    ]


def _certify(state: Dataset | None, command: Certify) -> list[Events] | Refusal:
    version = state.version(command.version) if state else None
    if version is None:
        return Refusal("no_version", f"version {command.version}")
    if not version.destroyed:
        return Refusal("not_yet", f"version {command.version} was not destroyed")
    if version.certificate:
        return []
    return [DestructionCertified(version=command.version, certificate=command.certificate, digest=command.digest)]


def _scan(state: Dataset | None, command: RecordScan) -> list[Events] | Refusal:
    version = _living(state, command.version)
    if isinstance(version, Refusal):
        return version
    if version.claimed != "anonymised":
        return Refusal("not_claimed")
    if version.findings is not None:
        return Refusal("already_scanned")
    return [Scanned(version=command.version, findings=command.findings, report=command.report)]


def _assess(state: Dataset | None, command: Assess) -> list[Events] | Refusal:
    version = _living(state, command.version)
    if isinstance(version, Refusal):
        return version
    if version.claimed != "anonymised":
        return Refusal("not_claimed")
    if version.findings is None:
        return Refusal("not_scanned", "the identifier scan has not ended yet")
    if version.confirmed is not None:
        return Refusal("already_assessed")
    if command.confirm and version.findings and not command.reason:
        return Refusal(
            "reason_missing", f"the scan found {version.findings} suspicious places: say why it is anonymised"
        )
    return [Assessed(version=command.version, confirmed=command.confirm, assessor=command.by, reason=command.reason)]


def evolve(state: Dataset | None, event: Events) -> Dataset:
    if isinstance(event, Registered):
        return Dataset(
            dataset_id=event.dataset_id,
            name=event.name,
            custodian=event.custodian,
            committee=event.committee,
            country=event.country,
            unit=event.unit,
        )
    if state is None:
        raise ValueError(f"{type(event).__name__} before Registered")
    match event:
        case VersionAdded():
            version = Version(
                number=event.number,
                deposit_id=event.deposit_id,
                key_id=event.key_id,
                claimed=event.claimed,
                consent=event.consent,
                files=event.files,
                size=event.size,
                manifest=event.manifest,
                participants=event.participants,
                findings=event.findings,
                confirmed=event.confirmed,
                narrower=event.narrower,
            )
            before = _changed(state, event.replaces, successor=event.number)
            return msgspec.structs.replace(before, phase="live", versions=(*before.versions, version))
        case Scanned():
            return _changed(state, event.version, findings=event.findings)
        case Assessed():
            return _changed(state, event.version, confirmed=event.confirmed)
        case Narrowed():
            return _changed(state, event.version, claimed="identifiable", confirmed=False)
        case Closed():
            return msgspec.structs.replace(state, phase="closed")
        case VersionClosed():
            # The earliest moment counts: who was let go on then may do so now only if this withdrawal says so too.
            found = state.version(event.version)
            since = found.closed if found and found.closed else event.at
            ends = event.runs_end or bool(found and found.closed and found.runs_end)
            return _changed(state, event.version, closed=since, runs_end=ends)
        case VersionOpened():
            return _changed(state, event.version, closed=None, runs_end=True)
        case ConsentNarrowed():
            found = state.version(event.version)
            return _changed(state, event.version, narrower=(*(found.narrower if found else ()), event.narrower))
        case KeyDestroyed():
            return _changed(state, event.version, destroyed=True)
        case DestructionCertified():
            return _changed(state, event.version, certificate=event.certificate)
        case _:
            assert_never(event)


def _changed(state: Dataset, number: int, **values: object) -> Dataset:
    versions = tuple(
        msgspec.structs.replace(version, **values) if version.number == number else version
        for version in state.versions
    )
    return msgspec.structs.replace(state, versions=versions)
