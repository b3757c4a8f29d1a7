from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from valv.keys import messages
from valv.keys.roles import ALLOWED, Role, Roles, table
from valv.ports.keys import KeyHolder

DOCS = Path(__file__).parents[2] / "docs" / "keyd.md"
OPERATORS = {"unseal", "unseal_share", "shares", "create_volume", "reseal_volume"}
"""Verbs that no process of the node has, only who operates it."""
UIDS = st.one_of(st.integers(0, 2**32 - 1), st.integers(610000, 611100))


def test_the_documented_table_is_the_one_that_is_enforced() -> None:
    assert table() in DOCS.read_text("utf-8"), f"paste this into docs/keyd.md:\n{table()}"


def test_the_verbs_are_those_of_the_port_and_of_unsealing() -> None:
    port = {name for name in vars(KeyHolder) if not name.startswith("_")}
    requests = {str(kind.__struct_config__.tag) for kind in messages.Request.__subclasses__()}
    assert set(ALLOWED) == requests == port | OPERATORS


@given(UIDS)
def test_separate_users_have_one_role_at_most(uid: int) -> None:
    roles = Roles.separate(610000)
    caller = roles.caller(uid)
    assert len(caller.roles) <= 1
    assert (Role.RUN in caller.roles) == (610100 <= uid <= 610999) == roles.may_run(uid)
    assert (Role.OPERATOR in caller.roles) == (uid in (0, 610001))
    assert (Role.SERVE in caller.roles) == (uid == 610002)
    assert (Role.WORKER in caller.roles) == (uid == 610003)


@given(UIDS)
def test_a_shared_user_has_all_roles_and_nobody_else_any(uid: int) -> None:
    roles = Roles(own_uid=610500, shared=True)
    assert roles.caller(uid).roles == (frozenset(Role) if uid == 610500 else frozenset())
    assert roles.may_run(uid) == (uid == 610500)
