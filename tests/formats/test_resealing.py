"""Headers re-sealed with the same keys are each what `reseal` makes of it; a key is only loaded where it is tried."""

from __future__ import annotations

import pytest

from valv.errors import InputFault, KeyFault
from valv.formats import crypt4gh
from valv.formats.crypt4gh import build_header, generate_keypair, open_header

OLD, NEW, PARTNER, STRANGER = (generate_keypair() for _ in range(4))


def _all(headers: list[bytes], private_keys: list[bytes]) -> list[bytes]:
    keys = crypt4gh.Keys(private_keys)
    return [keys.reseal(header, [PARTNER.public]) for header in headers]


def test_each_header_keeps_its_data_key_and_edit_list() -> None:
    told = [(bytes([number]) * 32, [number, number + 1] if number % 2 else None) for number in range(9)]
    readers = [(NEW, OLD)[number % 3 == 0] for number in range(9)]
    headers = [build_header(key, [who.public], edits) for (key, edits), who in zip(told, readers, strict=True)]
    made = _all(headers, [NEW.private, OLD.private])
    assert len(set(made)) == len(headers)
    for header, (key, edits) in zip(made, told, strict=True):
        opened = open_header(header, [PARTNER.private])
        assert opened.data_keys == (key,)
        assert opened.edit_list == (None if edits is None else tuple(edits))
        with pytest.raises(KeyFault):
            open_header(header, [NEW.private, OLD.private])


def test_one_header_that_does_not_open_stops_all() -> None:
    headers = [build_header(bytes(32), [who.public]) for who in (NEW, STRANGER, NEW)]
    with pytest.raises(KeyFault, match=crypt4gh.fingerprint(NEW.public).replace("+", r"\+")):
        _all(headers, [NEW.private])


def test_a_key_of_another_length_is_found_although_it_is_not_needed() -> None:
    header = build_header(bytes(32), [NEW.public])
    with pytest.raises(InputFault, match="32 bytes, not 5"):
        crypt4gh.reseal(header, [NEW.private, b"short"], [PARTNER.public])
    with pytest.raises(InputFault, match="32 bytes, not 5"):
        _all([header], [NEW.private, b"short"])


def test_packets_of_others_stay() -> None:
    header = build_header(bytes(32), [NEW.public, STRANGER.public])
    made = crypt4gh.reseal(header, [NEW.private], [PARTNER.public], keep_others=True)
    for who in (PARTNER, STRANGER):
        assert open_header(made, [who.private]).data_keys == (bytes(32),)
    with pytest.raises(KeyFault):
        open_header(made, [NEW.private])
