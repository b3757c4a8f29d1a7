"""Rights: the rules that must hold for everybody, whatever the policies say next year."""

from functools import cache
from importlib import resources

import cedarpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.assemble.policies import OVERLAYS, load_policies
from valv.assemble.rights import ACTORS, HOME, answer, classes_of
from valv.core.account import ROLES
from valv.core.actions import ACTIONS
from valv.core.authorize import ANONYMOUS, Context, Policies, Principal, Resource, authorize
from valv.errors import CATALOGUE, ConfigFault, InternalFault

load = cache(load_policies)
BASE = load("")
FILES = resources.files("valv.core").joinpath("policies")
SCHEMA = FILES.joinpath("schema.cedarschema").read_text("utf-8")

names = st.sampled_from(["", "a", "b", "c"])
people = st.builds(
    Principal,
    account_id=names,
    roles=st.frozensets(st.sampled_from(ROLES)),
    country=st.sampled_from(["", "SE", "NO"]),
    committees=st.frozensets(names),
    second_factor=st.booleans(),
)
contexts = st.builds(
    Context,
    country=st.sampled_from(["", "SE", "NO"]),
    mode=st.sampled_from(["", "compute", "download"]),
    outside=st.booleans(),
    ethics=st.booleans(),
    second_factor=st.booleans(),
    unit=names,
)


@st.composite
def asked(draw):
    """A principal, an action, a resource of its kind and a context."""
    action = draw(st.sampled_from(sorted(ACTIONS)))
    thing = Resource(
        ACTIONS[action].kind,
        id=draw(names),
        custodian=draw(names),
        committee=draw(names),
        owner=draw(names),
        people=draw(st.frozensets(names)),
        data_class=draw(st.sampled_from(["", "identifiable", "anonymised"])),
        country=draw(st.sampled_from(["", "SE", "NO"])),
        unit=draw(names),
    )
    return draw(people), action, thing, draw(contexts)


# --- what must hold for every question ---
@given(asked(), st.lists(st.sampled_from(OVERLAYS), unique=True))
def test_overlays_never_turn_a_refusal_into_a_yes(question, overlays):
    if authorize(BASE, *question) is not None:
        assert authorize(load("", tuple(sorted(overlays))), *question) is not None


@given(asked())
def test_refusals_are_in_the_catalogue_and_tell_no_internals(question):
    refusal = authorize(BASE, *question)
    if refusal is not None:
        assert refusal.code in CATALOGUE
        assert "policy" not in refusal.detail and "forbid" not in refusal.detail and "::" not in refusal.detail


@given(asked())
def test_a_stranger_sees_the_node_the_catalogue_and_the_log_in_only(question):
    _, action, thing, context = question
    refusal = authorize(BASE, ANONYMOUS, action, thing, context)
    if action not in ("node.see", "catalogue.find", "session.open"):
        assert refusal is not None and refusal.code == "login_needed"


@given(asked())
def test_identifiable_data_are_never_downloaded_nor_used_from_abroad(question):
    principal, action, thing, context = question
    if authorize(BASE, *question) is None and thing.data_class == "identifiable":
        assert action != "data.download"
        assert not context.outside
        if action in ("data.compute", "run.queue", "run.see", "release.inspect"):
            assert context.country == thing.country != ""
        if action in ("data.compute", "run.queue", "run.see"):
            assert principal.second_factor or context.second_factor


@given(asked(), st.lists(st.sampled_from(OVERLAYS), unique=True))
def test_what_is_not_known_to_be_anonymised_rests_at_home_only(question, overlays):
    principal, _, thing, context = question
    data = Resource("data", data_class=thing.data_class, country=thing.country, unit=thing.unit)
    for policies in (BASE, load("", tuple(sorted(overlays)))):
        if authorize(policies, principal, "storage.place", data, context) is None and data.data_class != "anonymised":
            assert (context.country, context.unit) == (data.country, data.unit)
            assert data.country and data.unit


@given(asked())
def test_nobody_decides_on_what_they_are_part_of(question):
    principal, action, thing, _ = question
    if authorize(BASE, *question) is None:
        if action in ("access.return", "access.approve", "access.reject", "release.inspect", "release.check"):
            assert principal.account_id not in {thing.owner, *thing.people}
        if action == "dataset.assess":
            assert principal.account_id != thing.custodian


@given(asked())
def test_operators_and_auditors_as_such_never_reach_data_or_outputs(question):
    principal, action, thing, context = question
    office = Principal("x", frozenset({"operator", "auditor"}), principal.country, second_factor=True)
    if action.startswith(("data.", "deposit.", "release.")) or action == "run.queue":
        assert authorize(BASE, office, action, thing, context) is not None


# --- the reasons that a person gets ---
def test_second_factor_is_named_only_where_nothing_else_is_missing():
    thing = Resource("run", owner="a", people=frozenset({"a"}), data_class="identifiable", country="SE")
    me, other = Principal("a", frozenset({"researcher"}), "SE"), Principal("b", frozenset({"researcher"}), "SE")
    refusal = authorize(BASE, me, "run.queue", thing, Context("SE"))
    assert refusal is not None and refusal.code == "second_factor" and "second factor" in refusal.detail
    stranger = authorize(BASE, other, "run.queue", thing, Context("SE"))
    assert stranger is not None and stranger.code == "not_allowed"
    abroad = authorize(BASE, me, "run.queue", thing, Context("NO"))
    assert abroad is not None and abroad.code == "abroad"
    assert authorize(BASE, me, "run.queue", thing, Context("SE", second_factor=True)) is None


def test_an_unknown_place_is_abroad():
    thing = Resource("data", people=frozenset({"a"}), data_class="identifiable", country="")
    refusal = authorize(BASE, Principal("a"), "data.compute", thing, Context("", second_factor=True))
    assert refusal is not None and refusal.code == "abroad"


def test_revoking_a_permit_needs_no_second_factor():
    assert answer(BASE, "committee", "permit.revoke", "identifiable", "home", factor=False) == "yes"
    assert answer(BASE, "custodian", "permit.revoke", "identifiable", "abroad", factor=False) == "yes"


def test_an_application_to_download_identifiable_data_is_refused_at_once():
    thing = Resource("access", owner="a", data_class="identifiable", country="SE")
    refusal = authorize(BASE, Principal("a"), "access.submit", thing, Context("SE", mode="download"))
    assert refusal is not None and refusal.code == "download_identifiable"


@pytest.mark.parametrize("code", ["se", "no", "dk", "is"])
def test_ethics_approval_is_needed_where_the_country_says_so(code):
    policies = load(code.upper())
    for ethics, wanted in ((False, "not_allowed"), (True, "yes")):
        assert answer(policies, "owner", "access.submit", "identifiable", "home", factor=False, ethics=ethics) == wanted
    assert answer(policies, "owner", "access.submit", "anonymised", "home", factor=False, ethics=False) == "yes"


def test_every_action_is_possible_for_somebody_or_says_why_not():
    for action in ACTIONS:
        for data_class in classes_of(action):
            answers = {answer(BASE, actor, action, data_class, "home", factor=True) for actor in ACTORS}
            assert "yes" in answers or (action, data_class) == ("data.download", "identifiable")


def test_an_unknown_action_is_an_error_of_the_program():
    with pytest.raises(ValueError, match="unknown action"):
        authorize(BASE, ANONYMOUS, "data.take", Resource("data"), Context())
    with pytest.raises(ValueError, match="acts on"):
        authorize(BASE, ANONYMOUS, "data.compute", Resource("run"), Context())


# --- the files ---
@pytest.mark.parametrize("code", OVERLAYS)
def test_an_overlay_holds_forbid_only(code):
    policies = cedarpy.policies_to_pst(FILES.joinpath("overlays", f"{code}.cedar").read_text("utf-8"))
    effects = {policy.effect for policy in policies.static_policies.values()}
    assert effects == {"forbid"} and not policies.templates


def test_every_overlay_file_is_known():
    files = {file.name for file in FILES.joinpath("overlays").iterdir()}
    assert files == {f"{code}.cedar" for code in OVERLAYS}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("permit (principal, action, resource", "base.cedar"),
        ('permit (principal, action == Action::"data.take", resource);', "data.take"),
        ("permit (principal, action, resource) when { resource.colour == 1 };", "colour"),
        ('@code("no_such") @reason("r") forbid (principal, action, resource);', "no_such"),
        ("forbid (principal, action, resource);", "@reason"),
        ("permit (principal == ?principal, action, resource);", "template"),
    ],
)
def test_a_bad_policy_is_a_fault_that_names_the_file(text, wrong):
    with pytest.raises(ConfigFault) as caught:
        Policies(SCHEMA, ("base.cedar", text))
    assert "base.cedar" in str(caught.value) and wrong in str(caught.value)


def test_an_overlay_that_permits_is_a_fault():
    with pytest.raises(ConfigFault, match=r"xx\.cedar"):
        Policies(SCHEMA, ("base.cedar", ""), (("xx.cedar", "permit (principal, action, resource);"),))


def test_a_bad_schema_is_a_fault():
    with pytest.raises(ConfigFault, match="schema"):
        Policies("entity (", ("base.cedar", ""))


def test_a_policy_that_cannot_be_evaluated_is_a_fault_and_not_a_yes():
    """Cedar passes over a `forbid` that fails; the node must not. An overflow is the one failure that a schema cannot
    find."""
    text = (
        "permit (principal, action, resource);"
        '@reason("r") forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };'
    )
    policies = Policies(SCHEMA, ("base.cedar", text))
    with pytest.raises(InternalFault):
        authorize(policies, ANONYMOUS, "node.see", Resource("node"), Context(HOME))
