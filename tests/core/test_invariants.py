"""Random commands by random actors with random facts: whatever is tried, these never break."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.assemble.explore import SAMPLES
from valv.core import access, dataset, permit, release, run
from valv.core.access import Wanted
from valv.core.consent import Match, Purpose
from valv.core.process import NODE
from valv.errors import CATALOGUE, Refusal

START = datetime(2026, 3, 1, tzinfo=UTC)
ACTORS = ["r", "s", "m", "n", "k", "c", NODE]
actors = st.sampled_from(ACTORS)
times = st.integers(-5, 60).map(lambda days: START + timedelta(days=days))
reasons = st.sampled_from(["", "because"])
verdicts = st.sampled_from(["permitted", "human", "refused"])
classes = st.sampled_from(["identifiable", "anonymised"])
modes = st.sampled_from(["compute", "download"])
wanted = st.lists(st.builds(Wanted, st.sampled_from(["d", "e"]), st.integers(1, 2)), max_size=2).map(tuple)


def command(kind, **fields):
    return st.builds(kind, by=actors, at=times, **fields)


def walk(process, steps, check):
    """Give every command in turn; `check(before, command, facts, events, after)` sees each that is not refused."""
    state = None
    for order, facts in steps:
        decided = process.decide(state, order, facts)
        if isinstance(decided, Refusal):
            assert decided.code in CATALOGUE
            continue
        after = state
        for event in decided:
            after = process.evolve(after, event)
        check(state, order, facts, decided, after)
        state = after
    return state


def walks(commands, facts, *openings):
    """Random steps, most of them after a sensible beginning, without which chance would seldom get far."""
    beginning = st.sampled_from([[], *openings, *openings])
    return st.tuples(beginning, st.lists(st.tuples(commands, facts), min_size=8, max_size=40)).map(
        lambda x: x[0] + x[1]
    )


# --- any process ---
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
@given(data=st.data())
def test_nothing_follows_a_final_phase(sample, data):
    """Also where everybody claims every fact that anybody has."""
    facts = st.sampled_from(list(sample.actors.values()))
    people = st.sampled_from([*sample.actors, "stranger"])
    steps = data.draw(st.lists(st.tuples(people, st.sampled_from(sample.commands), facts), max_size=25))
    orders = [(msgspec.structs.replace(order, by=by), fact) for by, order, fact in steps]

    def check(before, order, _facts, events, after):
        if before is not None:
            assert sample.process.TABLE[before.phase], f"{order} after {before.phase}"
        assert after is not None or not events

    walk(sample.process, orders, check)


# --- applications ---
requests = st.builds(
    access.Request,
    title=st.just("t"),
    summary=st.just("s"),
    wanted=wanted,
    purpose=st.builds(
        Purpose,
        aim=st.sampled_from(["general", "health", "disease"]),
        diseases=st.sampled_from([(), ("MONDO:1",)]),
        country=st.sampled_from(["", "SE", "NO"]),
    ),
    people=st.sampled_from([(), ("s",), ("m",), ("s", "n")]),
    mode=modes,
    days=st.integers(-1, 60),
    licence=st.booleans(),
)


@st.composite
def access_facts(draw):
    known = draw(st.sampled_from([[("d", 1)], [("d", 1), ("d", 2), ("e", 1)]]))
    found = tuple(
        access.DatasetFact(
            dataset_id=name,
            version=number,
            name=name,
            visible=draw(st.sampled_from([True, True, True, False])),
            effective=draw(st.sampled_from(["anonymised", "anonymised", "identifiable"])),
            country="SE",
            match=Match(draw(verdicts), ()),
        )
        for name, number in known
    )
    return access.Facts(datasets=found, committee=draw(st.booleans()), researcher=draw(st.booleans()))


access_commands = st.one_of(
    command(access.Draft, access_id=st.just("x"), request=requests),
    command(access.Save, request=requests),
    command(access.Submit),
    command(access.ReturnForChanges, reason=reasons),
    command(access.Approve, permit_id=st.just("p"), starts=times, ends=times, reason=reasons),
    command(access.Reject, reason=reasons),
    command(access.Withdraw),
)


REQUEST = access.Request(
    title="t",
    summary="s",
    wanted=(Wanted("d", 1),),
    purpose=Purpose(aim="health", country="SE"),
    people=("s",),
    mode="compute",
    days=30,
    licence=True,
)
FACT = access.DatasetFact(
    dataset_id="d",
    version=1,
    name="d",
    visible=True,
    effective="identifiable",
    country="SE",
    match=Match("permitted", ()),
)
DRAFTED = (
    access.Draft(by="r", at=START, access_id="x", request=REQUEST),
    access.Facts(datasets=(FACT,), researcher=True),
)
HANDED_IN = (access.Submit(by="r", at=START), access.Facts(datasets=(FACT,)))


@settings(max_examples=400)
@given(walks(access_commands, access_facts(), [DRAFTED], [DRAFTED, HANDED_IN]))
def test_applications(steps):
    def check(before, order, facts, events, after):
        for event in events:
            match event:
                case access.Approved():
                    assert before.phase == "submitted" and facts.committee and order.by not in before.people
                    known = {(fact.dataset_id, fact.version): fact for fact in facts.datasets}
                    for want in before.request.wanted:
                        fact = known[want.dataset_id, want.version]
                        assert fact.visible and fact.match.verdict != "refused"
                        assert fact.match.verdict == "permitted" or order.reason
                        if fact.effective == "identifiable":
                            assert before.request.mode == "compute" and before.request.purpose.country == fact.country
                    assert event.starts < event.ends <= event.starts + timedelta(days=before.request.days)
                case access.Rejected() | access.Returned():
                    assert facts.committee and order.by not in before.people and event.reason
                case access.Submitted():
                    assert order.by == before.applicant and before.request.licence
                case _:
                    pass
        assert (after.phase == "approved") == bool(after.permit_id)

    walk(access, steps, check)


# --- permits ---
permit_commands = st.one_of(
    command(
        permit.Issue,
        permit_id=st.just("p"),
        access_id=st.just("x"),
        people=st.just(("r", "s")),
        datasets=wanted,
        purpose=st.just(Purpose(aim="health")),
        mode=modes,
        starts=times,
        ends=times,
    ),
    command(permit.Revoke, reason=reasons),
    command(permit.Expire),
    command(permit.GiveBack),
    command(permit.RecordDownload, file_id=st.just("f"), key=st.just("k"), start=st.just(0)),
)
permit_facts = st.builds(permit.Facts, committee=st.booleans(), custodian=st.booleans())


ISSUED = [
    permit.Issue(
        by=NODE,
        at=START,
        permit_id="p",
        access_id="x",
        people=("r", "s"),
        datasets=(Wanted("d", 1),),
        purpose=Purpose(aim="health"),
        mode=mode,
        starts=START,
        ends=START + timedelta(days=30),
    )
    for mode in ("compute", "download")
]


@settings(max_examples=400)
@given(walks(permit_commands, permit_facts, *([(order, permit.Facts())] for order in ISSUED)), times)
def test_permits(steps, later):
    def check(before, order, facts, events, after):
        for event in events:
            if isinstance(event, permit.Issued):
                assert order.by == NODE and before is None
            if isinstance(event, permit.Downloaded):
                assert order.by in before.people and before.mode == "download"
                assert before.starts <= order.at < before.ends
            if isinstance(event, permit.Revoked):
                assert order.by == NODE or facts.committee or facts.custodian

    state = walk(permit, steps, check)
    for by in ACTORS:
        for mode in ("compute", "download"):
            asked = permit.permits(state, account=by, dataset=None, mode=mode, at=later)
            if asked is None:
                assert state.phase == "issued" and by in state.people and mode == state.mode
                assert state.starts <= later < state.ends


# --- datasets ---
numbers = st.integers(1, 3)
dataset_commands = st.one_of(
    command(
        dataset.Register,
        dataset_id=st.just("d"),
        name=st.just("d"),
        committee=st.just("k"),
        country=st.just("SE"),
        unit=st.just("u"),
    ),
    command(
        dataset.AddVersion,
        deposit_id=st.sampled_from(["x", "y", "z"]),
        key_id=st.just("k"),
        claimed=classes,
        consent=st.just(("GRU",)),
        files=st.just(1),
        size=st.just(1),
        manifest=st.just("m"),
        participants=st.just(0),
    ),
    command(dataset.RecordScan, version=numbers, findings=st.integers(0, 2), report=st.just("r")),
    command(dataset.Assess, version=numbers, confirm=st.booleans(), reason=reasons),
    command(dataset.Narrow, version=numbers, reason=st.just("r")),
    command(dataset.Close, reason=st.just("r")),
)
dataset_facts = st.builds(dataset.Facts, custodian=st.booleans(), assessor=st.booleans())
REGISTERED = (
    dataset.Register(by="c", at=START, dataset_id="d", name="d", committee="k", country="SE", unit="u"),
    dataset.Facts(custodian=True),
)
ADDED = (
    dataset.AddVersion(
        by=NODE,
        at=START,
        deposit_id="w",
        key_id="k",
        claimed="anonymised",
        consent=("GRU",),
        files=1,
        size=1,
        manifest="m",
        participants=0,
    ),
    dataset.Facts(),
)
SCANNED = (dataset.RecordScan(by=NODE, at=START, version=1, findings=1, report="r"), dataset.Facts())


@settings(max_examples=400)
@given(walks(dataset_commands, dataset_facts, [REGISTERED, ADDED], [REGISTERED, ADDED, SCANNED]))
def test_datasets(steps):
    scanned, assessed, narrowed = set(), {}, set()

    def check(before, order, facts, events, after):
        for event in events:
            match event:
                case dataset.Scanned():
                    assert order.by == NODE
                    scanned.add(event.version)
                case dataset.Assessed():
                    assert event.version in scanned and facts.assessor
                    assert event.assessor == order.by != before.custodian
                    assessed[event.version] = event.confirmed
                case dataset.Narrowed():
                    narrowed.add(event.version)
                case _:
                    pass
        for version in after.versions:
            anonymised = version.effective == "anonymised"
            assert anonymised == (assessed.get(version.number, False) and version.number not in narrowed)
        assert [version.number for version in after.versions] == list(range(1, len(after.versions) + 1))

    walk(dataset, steps, check)


# --- releases ---
items = tuple(release.Item(file_id=name, size=1, seal_root="00") for name in ("f", "g"))
release_commands = st.one_of(
    command(
        release.Seal,
        release_id=st.just("x"),
        run_id=st.just("x"),
        permit_id=st.just("p"),
        author=st.just("r"),
        people=st.just(("r", "s")),
        datasets=st.just(("d",)),
        key_id=st.just("k"),
        items=st.just(items),
        manifest=st.just("m"),
    ),
    command(release.Request, context=reasons),
    command(
        release.Check,
        file_id=st.sampled_from(["f", "g", "z"]),
        approve=st.booleans(),
        reason=reasons,
        manifest=st.sampled_from(["m", "m", "other"]),
    ),
    command(release.Withdraw),
    command(release.Fetch, file_id=st.sampled_from(["f", "g", "z"])),
    command(release.Inspect, file_id=st.sampled_from(["f", "g", "z"])),
)
release_facts = st.builds(release.Facts, checker=st.booleans(), manifest=st.sampled_from(["m", "m", "m", "other"]))
SEALED = (
    release.Seal(
        by=NODE,
        at=START,
        release_id="x",
        run_id="x",
        permit_id="p",
        author="r",
        people=("r", "s"),
        datasets=("d",),
        key_id="k",
        items=items,
        manifest="m",
    ),
    release.Facts(),
)
ASKED = (release.Request(by="r", at=START, context="t"), release.Facts())


def checked(file_id, approve):
    order = release.Check(by="k", at=START, file_id=file_id, approve=approve, reason="r", manifest="m")
    return order, release.Facts(checker=True, manifest="m")


DECIDED = [SEALED, ASKED, checked("f", True), checked("g", False)]


@settings(max_examples=400)
@given(walks(release_commands, release_facts, DECIDED[:2], DECIDED[:3], DECIDED))
def test_releases(steps):
    approved = set()

    def check(before, order, facts, events, after):
        for event in events:
            match event:
                case release.Checked():
                    assert facts.checker and order.by not in {before.author, *before.people}
                    assert facts.manifest == before.manifest == order.manifest
                    if event.approved:
                        approved.add(event.file_id)
                case release.Inspected():
                    assert facts.checker and order.by not in {before.author, *before.people}
                case release.Fetched():
                    assert order.by == before.author and event.file_id in approved and before.phase == "released"
                case release.Concluded():
                    assert all(item.approved is not None for item in after.items)
                case _:
                    pass
        assert {item.file_id for item in after.released} <= approved
        if after.phase != "released":
            assert after.released == ()

    walk(release, steps, check)


# --- runs ---
run_commands = st.one_of(
    command(
        run.Queue,
        run_id=st.just("x"),
        aim=st.sampled_from(["research", "scan"]),
        permit_id=st.just("p"),
        datasets=wanted,
        command=st.just("t"),
        limits=st.builds(
            run.Asked, seconds=st.integers(-1, 9), memory=st.just(1), processes=st.just(1), scratch=st.just(1)
        ),
        result_key=st.just("k"),
    ),
    command(run.Start),
    command(run.Stop, why=st.sampled_from(["stopped", "revoked"])),
    command(run.Finish, end=st.just("exited"), success=st.booleans()),
    command(run.RecordReads, reads=st.sampled_from([{}, {"f": 1}])),
    command(run.Collect, outputs=st.just(1), skipped=st.just(0)),
)
run_facts = st.builds(
    run.Facts,
    permit=st.sampled_from([None, Refusal("permit_ended")]),
    ceiling=st.just(run.Asked(seconds=5, memory=1, processes=1, scratch=1)),
)


QUEUED = (
    run.Queue(
        by="r",
        at=START,
        run_id="x",
        aim="research",
        permit_id="p",
        datasets=(Wanted("d", 1),),
        command="t",
        limits=run.Asked(seconds=1, memory=1, processes=1, scratch=1),
        result_key="k",
    ),
    run.Facts(permit=None),
)
STARTED = (run.Start(by=NODE, at=START), run.Facts(permit=None))


@settings(max_examples=400)
@given(walks(run_commands, run_facts, [QUEUED], [QUEUED, STARTED]))
def test_runs(steps):
    def check(before, order, facts, events, after):
        for event in events:
            if isinstance(event, run.Queued):
                assert event.aim == "research" or event.owner == NODE
                assert 0 < event.limits.seconds <= 5 and event.datasets
            if isinstance(event, run.Queued | run.Started):
                assert facts.permit is None or (after.aim == "scan" and order.by == NODE)
            if isinstance(event, run.StopAsked | run.Cancelled) and order.by != NODE:
                assert order.by == before.owner and event.why == "stopped"
            if isinstance(event, run.Started | run.Ended | run.Read | run.Collected):
                assert order.by == NODE

    walk(run, steps, check)
