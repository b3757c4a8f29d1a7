"""What holds for every process: the table is complete, what it forbids is refused, folding is total."""

from typing import get_args

import msgspec
import pytest

from valv.assemble.explore import SAMPLES, explore
from valv.core.process import Command, command_name, encode, tag
from valv.errors import CATALOGUE, Refusal

WALKS = {sample.name: explore(sample) for sample in SAMPLES}
each = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
OWN = {"own_application", "own_claim", "own_outputs", "no_permit"}
"""Refusals that are given before the table is asked, because they say more than it."""


def phase_of(state):
    return state.phase if state else "new"


@each
def test_the_table_names_every_phase_and_only_commands_of_the_process(sample):
    phases = set(get_args(sample.process.Phase))
    assert set(sample.process.TABLE) == phases | {"new"}
    commands = set(get_args(sample.process.Commands))
    named = {kind for roles in sample.process.TABLE.values() for kinds in roles.values() for kind in kinds}
    assert named == commands


@each
def test_every_phase_and_every_cell_of_the_table_is_reached(sample):
    states, steps = WALKS[sample.name]
    assert {phase_of(state) for state in states} == set(sample.process.TABLE)
    cells = {
        (phase, command_name(kind), role)
        for phase, roles in sample.process.TABLE.items()
        for role, kinds in roles.items()
        for kind in kinds
    }
    assert {(step.before, step.command, step.role) for step in steps} == cells


@each
def test_what_the_table_does_not_allow_is_refused_with_the_right_code(sample):
    """Every state × actor × command: outside the table `not_yours` where another role may, else `wrong_phase`."""
    process = sample.process
    for state in WALKS[sample.name][0]:
        allowed = process.TABLE[phase_of(state)]
        for actor, facts in {**sample.actors, "stranger": process.Facts()}.items():
            roles = process.roles(state, actor, facts)
            for given in sample.commands:
                command = msgspec.structs.replace(given, by=actor)
                decided = process.decide(state, command, facts)
                kind = type(command)
                if any(kind in allowed.get(role, ()) for role in roles):
                    if isinstance(decided, Refusal):
                        assert decided.code != "wrong_phase" and decided.code in CATALOGUE
                    continue
                assert isinstance(decided, Refusal), f"{phase_of(state)}: {actor} may {command_name(kind)}"
                others = any(kind in kinds for kinds in allowed.values())
                assert decided.code in {"not_yours" if others else "wrong_phase", *OWN}


@each
def test_nothing_happens_after_a_final_phase(sample):
    final = {phase for phase, roles in sample.process.TABLE.items() if not roles}
    for state in WALKS[sample.name][0]:
        if phase_of(state) in final:
            for actor, facts in sample.actors.items():
                for given in sample.commands:
                    command = msgspec.structs.replace(given, by=actor)
                    assert isinstance(sample.process.decide(state, command, facts), Refusal)


def events_of(sample):
    """One event of every kind, as decided somewhere on the walk."""
    found = {}
    for state in WALKS[sample.name][0]:
        for actor, facts in sample.actors.items():
            for given in sample.commands:
                decided = sample.process.decide(state, msgspec.structs.replace(given, by=actor), facts)
                for event in () if isinstance(decided, Refusal) else decided:
                    found.setdefault(type(event), event)
    return found


@each
def test_folding_is_total(sample):
    """Every event folds into every state but the empty one, into which only the first does; none is unknown."""
    process, events = sample.process, events_of(sample)
    assert set(events) == set(get_args(process.Events))
    first = [kind for kind, event in events.items() if _begins(process, event)]
    assert len(first) == 1
    for state in WALKS[sample.name][0]:
        for kind, event in events.items():
            if state is None and kind not in first:
                with pytest.raises(ValueError, match="before"):
                    process.evolve(state, event)
            else:
                assert process.evolve(state, event).phase in process.TABLE


def _begins(process, event):
    try:
        return process.evolve(None, event) is not None
    except ValueError:
        return False


@each
def test_events_and_states_survive_json(sample):
    for event in events_of(sample).values():
        name, data = encode(event)
        assert msgspec.json.decode(data, type=sample.process.Events) == event
        assert name == tag(event) and name.startswith(f"{sample.name}.")
    for state in WALKS[sample.name][0][1:]:
        assert msgspec.json.decode(msgspec.json.encode(state), type=type(state)) == state


@each
def test_every_event_says_which_process_it_is_of_once(sample):
    tags = [tag(kind) for kind in get_args(sample.process.Events)]
    assert len(set(tags)) == len(tags)


def test_commands_carry_actor_and_time():
    for sample in SAMPLES:
        for kind in get_args(sample.process.Commands):
            assert issubclass(kind, Command) and {"by", "at"} <= set(kind.__struct_fields__)
