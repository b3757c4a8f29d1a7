"""Orders: what officers read is what they sign, and each order has one spelling."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valv.errors import FormatFault
from valv.formats import note, officer, order
from valv.formats.officer import MOST, Officer
from valv.formats.order import LONGEST, MOST_LINES, Order

AT = datetime(2026, 11, 23, 18, 0, tzinfo=UTC)
ANNA, BO = (Officer.of(name, name.encode().ljust(32, b".")) for name in ("anna", "bo"))

DESTROY = """\
valv order 1
node: valv.example
order: order-1
at: 2026-11-23T18:00:00Z
do: destroy
key: ds-1-1
key: ds-2-1
reason: withdrawn by the donors
"""
CEREMONY = f"""\
valv order 1
node: valv.example
order: order-1
at: 2026-11-23T18:00:00Z
do: ceremony
threshold: 2
persons: 1
officer: {ANNA.written}
officer: {BO.written}
"""
DRILL = """\
valv order 1
node: valv.example
order: order-1
at: 2026-11-23T18:00:00Z
do: drill
"""
SIGNED = "— anna WtL3adO+9fAeSlvLnvBI7WJ4s+BJ59fTrjTm43U8EObp8PayK30pWAY04LibiZWgtt2CWfQc/LZmuHXRu/BefY0i6ws="


def made(deed: Any, **more: Any) -> Order:
    return Order(**{"node": "valv.example", "ident": "order-1", "at": AT, "deed": deed, **more})


GOLDEN = {
    DESTROY: made("destroy", key_ids=("ds-1-1", "ds-2-1"), reason="withdrawn by the donors"),
    CEREMONY: made("ceremony", officers=(ANNA, BO), threshold=2, persons=1),
    DRILL: made("drill"),
    DRILL.replace("drill", "recover"): made("recover"),
    DESTROY.replace("reason: withdrawn by the donors\n", ""): made("destroy", key_ids=("ds-1-1", "ds-2-1")),
}


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_texts(text: str) -> None:
    assert GOLDEN[text].encode() == text
    assert order.decode(text) == GOLDEN[text]


def test_a_signed_order() -> None:
    """Ed25519 signatures are the same each time."""
    signed = officer.sign(b"anna".ljust(32, b"."), "anna", DESTROY)
    assert signed == f"{DESTROY}\n{SIGNED}\n"
    assert order.decode(note.verify(signed, ANNA.sign_key)) == GOLDEN[DESTROY]


IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
WORDS = st.text(min_size=1, max_size=60).filter(lambda one: one.isprintable() and one.strip() == one)
PEOPLE = st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True).map(
    lambda names: tuple(Officer.of(name, name.encode() * 32) for name in names)
)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)).map(lambda at: at.replace(microsecond=0, tzinfo=UTC))
COMMON = {"node": WORDS, "ident": IDS, "at": TIMES}
ORDERS = st.one_of(
    st.builds(
        Order, **COMMON, deed=st.just("destroy"), key_ids=st.lists(IDS).map(tuple), reason=st.one_of(st.just(""), WORDS)
    ),
    st.builds(
        Order,
        **COMMON,
        deed=st.just("ceremony"),
        officers=PEOPLE,
        threshold=st.integers(-5, 99),
        persons=st.integers(0, 10**9),
    ),
    st.builds(Order, **COMMON, deed=st.sampled_from(["drill", "recover"])),
)


@settings(deadline=None)
@given(ORDERS)
def test_round_trip(wanted: Order) -> None:
    text = wanted.encode()
    assert order.decode(text) == wanted and order.decode(text).encode() == text
    assert text.replace("\n", "").isprintable()


@settings(deadline=None, max_examples=300)
@given(text=st.sampled_from(list(GOLDEN)), place=st.integers(0, 2000), cut=st.integers(0, 3), more=st.text(max_size=3))
def test_one_spelling_only(text: str, place: int, cut: int, more: str) -> None:
    """A text that is changed anywhere is refused, or is the one spelling of another order."""
    place %= len(text) + 1
    bent = text[:place] + more + text[place + cut :]
    try:
        read = order.decode(bent)
    except FormatFault:
        return
    assert read.encode() == bent
    assert (read == GOLDEN[text]) == (bent == text)


def lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


@pytest.mark.parametrize(
    "bent",
    [
        "",
        "\n",
        DESTROY[:-1],
        DESTROY + "\n",
        "\n" + DESTROY,
        DESTROY.replace("\n", "\r\n"),
        DESTROY.replace("valv order 1", "valv order 2"),
        DESTROY.replace("node: ", "node:"),
        DESTROY.replace("node: ", "node:  "),
        DESTROY.replace("example\n", "example \n"),
        DESTROY.replace("do: destroy", "do: Destroy"),
        DESTROY.replace("do: destroy", "do: drill"),
        DESTROY.replace("do: destroy", "do: burn"),
        DESTROY + "reason: another\n",
        DESTROY + "key: ds-3\n",
        DESTROY + "more: of it\n",
        DESTROY + "threshold: 2\n",
        DESTROY.replace("key: ds-1-1", "key: ../ds-1-1"),
        DESTROY.replace("order-1", "order/1"),
        DESTROY.replace("order-1", "o" * 129),
        DESTROY.replace("18:00:00Z", "18:00:00+00:00"),
        DESTROY.replace("18:00:00Z", "18:00Z"),
        DESTROY.replace("2026-11-23", "2026-11-31"),
        DESTROY.replace("2026-11-23", "26-11-23"),
        CEREMONY.replace("threshold: 2", "threshold: 02"),
        CEREMONY.replace("threshold: 2", "threshold: +2"),
        CEREMONY.replace("threshold: 2", "threshold: \uff12"),
        CEREMONY.replace("threshold: 2", "threshold: two"),
        CEREMONY.replace("threshold: 2", "threshold: " + "9" * 5000),
        CEREMONY.replace("threshold: 2\n", ""),
        CEREMONY.replace("anna", "an na"),
        "".join(lines(DESTROY)[:1] + lines(DESTROY)[2:]),
        "".join(lines(DESTROY)[:1] + lines(DESTROY)[:0:-1]),
        "".join(lines(DESTROY)[:5] + lines(DESTROY)[6:4:-1] + lines(DESTROY)[7:] + lines(DESTROY)[5:6]),
    ],
)
def test_texts_that_are_no_order(bent: str) -> None:
    assert bent not in GOLDEN
    with pytest.raises(FormatFault):
        order.decode(bent)


@pytest.mark.parametrize("letter", ["\0", "\x1b", "\x7f", "\x85", "\x9b", "\u2028", "\u202e", "\u200b", "\xa0", "\t"])
def test_what_officers_cannot_see_is_refused(letter: str) -> None:
    """A control, bidi or invisible character could make a terminal show another order than the one that is signed."""
    for bent in (
        DESTROY.replace("by the", f"by{letter}the"),
        DESTROY.replace("valv.example", f"valv{letter}.example"),
        DESTROY.replace("key: ", f"key: {letter}", 1),
    ):
        with pytest.raises(FormatFault):
            order.decode(bent)
    with pytest.raises(FormatFault):
        made("destroy", key_ids=("a",), reason=f"a{letter}b").encode()


@pytest.mark.parametrize(
    "more",
    [
        {"node": ""},
        {"node": " x"},
        {"node": "a\nkey: b"},
        {"ident": ""},
        {"ident": "a\nb"},
        {"key_ids": ("a\nreason: b",)},
        {"key_ids": ("",)},
        {"reason": "a\nkey: b"},
        {"reason": " "},
        {"at": AT.replace(microsecond=1)},
        {"at": datetime(99, 1, 1, tzinfo=UTC)},
        {"officers": (ANNA,)},
        {"threshold": 2},
    ],
)
def test_what_cannot_be_written(more: dict[str, Any]) -> None:
    """Else a line could be smuggled in, or be lost."""
    wanted = msgspec.structs.replace(GOLDEN[DESTROY], **more)
    with pytest.raises(FormatFault):
        wanted.encode()


def test_times_of_other_zones_are_written_in_utc() -> None:
    here = made("drill", at=AT.astimezone(timezone(timedelta(hours=2))))
    assert here.encode() == DRILL


def test_bounds() -> None:
    most = MOST_LINES - 4
    assert made("destroy", key_ids=tuple(f"ds-{number}" for number in range(most))).encode()
    with pytest.raises(FormatFault, match="at most"):
        made("destroy", key_ids=tuple(f"ds-{number}" for number in range(most + 1))).encode()
    with pytest.raises(FormatFault, match="at most"):
        made("destroy", key_ids=("a",), reason="x" * LONGEST).encode()
    people = tuple(Officer.of(f"o{number}", bytes([number + 1]) * 32) for number in range(MOST + 1))
    assert made("ceremony", officers=people[:MOST], threshold=2, persons=1).encode()
    with pytest.raises(FormatFault, match="at most 16 officers"):
        made("ceremony", officers=people, threshold=2, persons=1).encode()
