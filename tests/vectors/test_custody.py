"""Officers' keys, orders, minutes, shares and the key backup against their vectors."""

from __future__ import annotations

import importlib.util
import itertools
import json
from base64 import b64decode
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from valv.errors import Fault, FormatFault, KeyFault
from valv.formats import minutes, note, officer, order, shares
from valv.formats.officer import Officer
from valv.keys import recovery
from valv.keys.file import SecretRoot
from valv.keys.memory import Secret
from valv.keys.store import Store

VECTORS = Path(__file__).parents[2] / "vectors"


def load_make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_custody", Path(__file__).with_name("make_custody.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / "custody" / f"{name}.json").read_text())
    return found


def test_the_vectors_are_what_the_specification_gives() -> None:
    for path, text in make.contents().items():
        assert (VECTORS / path).read_text() == text, f"{path}: run tests/vectors/make_custody.py"


@pytest.mark.parametrize("case", cases("officers"), ids=lambda case: case["name"])
def test_officers(case: dict[str, str]) -> None:
    private = bytes.fromhex(case["private"])
    assert Officer.of(case["name"], private).written == case["line"]
    assert officer.signer(private).private_bytes_raw().hex() == case["sign_seed"]
    assert Officer.read(f"{case['line']}\n").name == case["name"]


@pytest.mark.parametrize("case", cases("orders"), ids=lambda case: case["case"])
def test_orders(case: dict[str, Any]) -> None:
    fields = case["fields"]
    if fields is None:
        with pytest.raises(FormatFault):
            order.decode(case["text"])
        return
    found = order.decode(case["text"])
    assert found.encode() == case["text"]
    said = {
        "node": found.node,
        "order": found.ident,
        "at": found.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "do": found.deed,
        "keys": list(found.key_ids),
        "reason": found.reason,
        "officers": [one.name for one in found.officers],
        "threshold": found.threshold,
        "persons": found.persons,
    }
    assert {name: value for name, value in said.items() if value or name in fields} == fields


@pytest.mark.parametrize("case", cases("notes"), ids=lambda case: case["case"])
def test_signatures(case: dict[str, Any]) -> None:
    right = []
    for known in cases("officers"):
        try:
            note.verify(case["note"], Officer.read(known["line"]).sign_key)
        except Fault:
            continue
        right.append(known["name"])
    assert right == case["signed_by"]


def test_signing_gives_these_bytes() -> None:
    wanted = next(case["note"] for case in cases("notes") if case["case"] == "two officers")
    text = make.DESTROY
    for name in ("anna", "eva"):
        text = officer.sign(make.private(name), name, text)
    assert text == wanted


@pytest.mark.parametrize("case", cases("minutes"), ids=lambda case: case["case"])
def test_minutes(case: dict[str, Any]) -> None:
    found, fields = minutes.read(case["minutes"]), case["fields"]
    note.verify(case["minutes"], case["log_key"])
    assert (found.node, found.generation, list(found.signers)) == (
        fields["node"],
        fields["generation"],
        fields["signed"],
    )
    assert found.done == datetime.fromisoformat(fields["done"])
    assert found.order == fields["order"] and found.wanted == order.decode(note.read(fields["order"])[0])
    for broken in (
        case["minutes"].replace("valv minutes 1", "valv minutes 2"),
        case["minutes"].replace("generation: 4\n", ""),
        case["minutes"].replace("generation: 4", "generation: four"),
        case["minutes"].replace("  do: destroy", "do: destroy"),
        case["minutes"].replace("order:\n", "", 1),
    ):
        with pytest.raises(FormatFault):
            minutes.read(broken)


@pytest.mark.parametrize("case", cases("shares"))
def test_shares(case: dict[str, Any]) -> None:
    words = []
    for share in case["shares"]:
        sealed = b64decode(share["sealed"])
        words.append(shares.unseal(sealed, make.private(share["officer"])))
        assert words[-1] == share["words"]
        other = next(one["officer"] for one in case["shares"] if one["officer"] != share["officer"])
        with pytest.raises(KeyFault):
            shares.unseal(sealed, make.private(other))
        with pytest.raises(FormatFault):
            shares.unseal(sealed[:-1] + bytes([sealed[-1] ^ 1]), make.private(share["officer"]))
    for count in range(1, len(words) + 1):
        for some in itertools.combinations(words, count):
            if count < case["threshold"]:
                with pytest.raises(KeyFault):
                    shares.combine(some)
            else:
                assert shares.combine(some).hex() == case["secret"]


@pytest.mark.parametrize("case", cases("backup"))
def test_the_key_backup(case: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "generation-000004"
    (folder / "keys").mkdir(parents=True)
    folder.chmod(0o700)
    for name, content in case["files"].items():
        (folder / name).write_text(content)
    given = recovery.read(folder)
    assert given is not None and given.threshold == 2
    some = [shares.unseal(given.shares[name], make.private(name)) for name in ("bo", "eva")]
    assert shares.combine(some).hex() == case["recovery_key"]
    store = Store(folder, SecretRoot(Secret(shares.combine(some))))
    try:
        assert store.intake_private().hex() == case["intake"] and store.log_private().hex() == case["ledger"]
        assert {key: [one.hex() for one in store.unlock(key)[1]] for key in store.key_ids} == case["keys"]
        assert sorted(store.destroyed) == case["destroyed"]
    finally:
        store.close()
