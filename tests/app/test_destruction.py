"""What becomes of copies in two stores when two officers destroy a dataset, and the certificate that proves it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pypdf
import pytest

from tests import officers
from tests.app.stores import SECOND, TwoStores
from tests.world import World
from valv.app import custody, destruction, fixity, ledger, outbox, printing, streams
from valv.app.node import new_id
from valv.app.repairing import REPAIR
from valv.core import backup
from valv.core.process import NODE
from valv.errors import FormatFault, IntegrityFault, RefusedFault, UnreachableFault
from valv.formats import certificate, note
from valv.formats.certificate import Bundle
from valv.worker.loops import TOPICS

FILES = {"a.txt": b"destroyed", "b.bin": b"\0" * 200_000}
REASON = "Återkallat av Žaneta Bērziņa (kommitté)."


class Kept(TwoStores):
    def __init__(self, made: World, place: Path) -> None:
        super().__init__(made)
        self.place = place
        self.officers = officers.Officers(self.node.config.node.name)
        self.operator = made.holder.client()
        self.operator.order(self.officers.ceremony(), [])

    def destroy(self, name: str, version: int = 1) -> str:
        """Ordered, and followed by the node; nothing is delivered yet."""
        key_id = str(self.dataset(name).version(version).key_id)
        self.operator.order(self.officers.order("destroy", "anna", "eva", key_ids=(key_id,), reason=REASON), [])
        custody.follow(self.worker)
        return key_id

    def deliver(self) -> None:
        self.clock.forward(hours=2)
        outbox.deliver(self.worker, TOPICS)

    def sign(self) -> str:
        ledger.checkpoint(self.worker)
        return str(self.node.keys.status().log_key)

    def there(self, rows: list[dict[str, Any]]) -> int:
        return sum(one is not None for row in rows for one in self.bytes_of(row).values())


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    with officers.world() as (made, place):
        yield Kept(made, place)


@pytest.fixture(scope="module")
def proof(kept: Kept) -> tuple[str, bytes, str]:
    """A destroyed dataset's name, its bundle, and the verifier key."""
    name, rows = kept.two_copies(FILES)
    with kept.node.records.writing() as unit:
        at, before = datetime.now(UTC) - timedelta(minutes=1), streams.load(unit, streams.BACKUP, backup.STREAM_ID)
        made: dict[str, Any] = {"size": 1, "root": "0" * 64, "manifest": "1" * 64, "bodies": 2, "held_back": 0}
        event = backup.BackupMade(place="vault-b", generation=3, **made, missing=0, stored=9, at=at)
        step = streams.Step(
            streams.BACKUP, backup.STREAM_ID, before.version, before.state, [backup.Begun(at=at), event]
        )
        streams.commit(unit, [step], by=NODE, at=at, command=new_id())
    shown = destruction.plan(kept.node, kept.who("carin"), name)
    stored = sum(row["cipher_size"] + 60 * row["segments"] for row in rows)
    assert shown.versions[0].copies == (("main", 2, stored), (SECOND, 2, stored))
    assert [one.place for one in shown.backups] == ["vault-b"] and len(shown.key_backups) == 1
    assert kept.there(rows) == 8
    kept.destroy(name)
    assert kept.there(rows) == 8 and kept.rows("destroyed_copy") != []
    with pytest.raises(RefusedFault) as why:
        destruction.bundle(kept.node, kept.who("carin"), name, 1)
    assert why.value.refusal.code == "no_certificate"
    kept.deliver()
    assert kept.there(rows) == 0
    assert kept.rows("destroyed_copy") == [] and kept.rows("copy", body=rows[0]["body"]) == []
    with pytest.raises(RefusedFault) as why:
        destruction.bundle(kept.node, kept.who("carin"), name, 1)
    assert why.value.refusal.code == "not_yet", "the event was not signed yet"
    key = kept.sign()
    return name, destruction.bundle(kept.node, kept.who("carin"), name, 1), key


def test_the_certificate_lists_every_copy(kept: Kept, proof: tuple[str, bytes, str]) -> None:
    name, bundle, key = proof
    found = certificate.verify(bundle, key)
    assert (found.dataset, found.version, found.files, found.bytes) == (name, 1, 2, 200_009)
    rows = kept.rows("file", dataset=found.dataset_id)
    assert {(one.file, one.body, one.store) for one in found.copies} == {
        (row["id"], row["body"], store) for row in rows for store in ("main", SECOND)
    }
    sizes = {row["body"]: row["cipher_size"] + 60 * row["segments"] for row in rows}
    assert all(one.bytes == sizes[one.body] for one in found.copies)
    assert [(one.name, one.copies, one.bytes) for one in found.stores] == [
        (store, 2, sum(sizes.values())) for store in ("main", SECOND)
    ]
    assert {one.unit for one in found.stores} == {"test", "another"}
    assert all(one.verified >= found.destroyed for one in found.stores)
    assert found.order.signers == ("anna", "eva") and found.order.reason == REASON
    assert [one.place for one in found.key_backups] == [str(kept.place)]
    assert [(one.place, one.generation) for one in found.backups] == [("vault-b", 3)]
    text = custody.show(kept.node, kept.who("audun")).acts[0].destroyed[0].certificate
    assert text == certificate.words(found) and "vault-b: up to generation 3" in text
    assert all(one.body in text for one in found.copies)
    note.verify(msgspec.json.decode(bundle, type=Bundle).minutes, key)


def test_who_may_fetch_it(kept: Kept, proof: tuple[str, bytes, str]) -> None:
    name = proof[0]
    for who in ("carin", "olle", "audun", "dagny"):
        assert destruction.bundle(kept.node, kept.who(who), name, 1)
        assert destruction.plan(kept.node, kept.who(who), name).versions[0].destroyed
    for who in ("rikard", "kerttu", "nemo"):
        for ask in (
            lambda who=who: destruction.bundle(kept.node, kept.who(who), name, 1),
            lambda who=who: destruction.pdf(kept.node, kept.who(who), name, 1),
            lambda who=who: destruction.plan(kept.node, kept.who(who), name),
        ):
            with pytest.raises(RefusedFault):
                ask()
    with pytest.raises(RefusedFault) as why:
        destruction.pdf(kept.node, kept.who("carin"), name, 2)
    assert why.value.refusal.code == "no_version"


def changed(bundle: bytes, **fields: Any) -> bytes:
    found = msgspec.json.decode(bundle)
    return msgspec.json.encode(found | fields)


def inside(bundle: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The bundle with something in the certificate changed, spelled as it must be."""
    outer = msgspec.json.decode(bundle)
    found = msgspec.json.decode(outer["certificate"])
    change(found)
    outer["certificate"] = msgspec.json.encode(found, order="sorted").decode()
    return msgspec.json.encode(outer)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["copies"].pop(),
        lambda found: found["stores"].pop(),
        lambda found: found["stores"][0].update(copies=9),
        lambda found: found.update(completed="2020-01-01T00:00:00Z"),
        lambda found: found.update(version=2),
        lambda found: found["order"].update(signers=["anna", "bo"]),
        lambda found: found.update(node="another.valv"),
        lambda found: found.update(key="version-another"),
    ],
)
def test_a_changed_certificate_does_not_hold(
    proof: tuple[str, bytes, str], change: Callable[[dict[str, Any]], Any]
) -> None:
    _, bundle, key = proof
    with pytest.raises((IntegrityFault, FormatFault)):
        certificate.verify(inside(bundle, change), key)


def test_no_part_of_the_bundle_can_be_changed(kept: Kept, proof: tuple[str, bytes, str]) -> None:
    _, bundle, key = proof
    found = msgspec.json.decode(bundle)
    leaf = msgspec.json.decode(found["leaf"])
    forged = leaf | {"data": leaf["data"] | {"digest": "0" * 64}}
    for fields in (
        {"leaf": msgspec.json.encode(leaf | {"position": 0}, order="sorted").decode()},
        {"leaf": msgspec.json.encode(forged, order="sorted").decode()},
        {"leaf": msgspec.json.encode(leaf | {"tag": "dataset.closed"}, order="sorted").decode()},
        {"leaf": "{}"},
        {"proof": found["proof"][:-1]},
        {"proof": [*found["proof"], base64.b64encode(bytes(32)).decode()]},
        {"proof": ["?"]},
        {"checkpoint": found["checkpoint"].replace("\n", "\n\n", 1)},
        {"checkpoint": ""},
        {"minutes": ""},
        {"minutes": found["minutes"].replace("anna", "bo")},
        {"certificate": found["certificate"] + " "},
        {"format": "valv-certificate-bundle-2"},
        {"more": 1},
    ):
        with pytest.raises((IntegrityFault, FormatFault)):
            certificate.verify(changed(bundle, **fields), key)
    other = officers.Officers("valv.example").public[0].sign_key
    with pytest.raises(IntegrityFault, match="not signed"):
        certificate.verify(bundle, other)
    for data in (b"", b"[]", b"\xff", bundle[:-1]):
        with pytest.raises(FormatFault):
            certificate.verify(data, key)
    # One changed digit anywhere in the certificate.
    text = found["certificate"]
    for at in range(0, len(text), 97):
        if text[at].isalnum():
            letter = "0" if text[at] != "0" else "1"
            with pytest.raises((IntegrityFault, FormatFault)):
                certificate.verify(changed(bundle, certificate=text[:at] + letter + text[at + 1 :]), key)
    assert certificate.verify(bundle, key)


def test_the_certificate_of_another_version_does_not_pass(kept: Kept, proof: tuple[str, bytes, str]) -> None:
    name, _ = kept.two_copies({"x": b"1"})
    kept.publish(name, {"x": b"2"})
    kept.destroy(name, 1)
    kept.destroy(name, 2)
    kept.deliver()
    kept.deliver()
    key = kept.sign()
    first, second = (destruction.bundle(kept.node, kept.who("carin"), name, number) for number in (1, 2))
    assert (certificate.verify(first, key).version, certificate.verify(second, key).version) == (1, 2)
    other = msgspec.json.decode(second)
    for part in ("certificate", "leaf", "minutes"):
        with pytest.raises(IntegrityFault):
            certificate.verify(changed(first, **{part: other[part]}), key)


def test_the_pdf(kept: Kept, proof: tuple[str, bytes, str]) -> None:
    name, bundle, key = proof
    made = destruction.pdf(kept.node, kept.who("carin"), name, 1)
    assert made == destruction.pdf(kept.node, kept.who("carin"), name, 1), "the same bytes each time"
    found = certificate.verify(bundle, key)
    read = pypdf.PdfReader(io.BytesIO(made), strict=True)
    text = "\n".join(page.extract_text() for page in read.pages)
    squeezed = "".join(text.split())
    for one in found.copies:
        assert one.file in squeezed and one.body in squeezed
    assert certificate.digest(msgspec.json.decode(bundle)["certificate"]) in squeezed
    for part in (name, "anna, eva", SECOND, "vault-b", "Återkallat av Žaneta Berzina"):
        assert "".join(part.split()) in squeezed, part
    assert read.metadata.title == f"Certificate of destruction: {name}, version 1"
    assert read.root_object["/Lang"] == "en"
    assert not any(word in made for word in (b"/JavaScript", b"/JS", b"/OpenAction", b"/CreationDate", b"/AA"))


def test_a_long_table_goes_over_pages(proof: tuple[str, bytes, str]) -> None:
    _, bundle, key = proof
    found = certificate.verify(bundle, key)
    copies = tuple(
        certificate.Copy(f"{number:032}", new_id(), "a-store-with-a-long-name", number) for number in range(500)
    )
    long = msgspec.structs.replace(found, copies=copies)
    read = pypdf.PdfReader(io.BytesIO(printing.pdf(long)))
    squeezed = "".join("".join(page.extract_text() for page in read.pages).split())
    assert len(read.pages) > 10 and all(one.body in squeezed for one in copies)
    assert f"page{len(read.pages)}of{len(read.pages)}" in squeezed


def test_nothing_is_certified_while_a_store_has_something_left(kept: Kept) -> None:
    """A body comes back, as from a restored disk, before the certificate is written."""
    name, rows = kept.two_copies({"a.txt": b"comes back"})
    path = kept.path(SECOND, rows[0]["body"])
    content = path.read_bytes()
    key_id = kept.destroy(name)
    with kept.node.records.reading() as unit:
        body = unit.rows("outbox", {"key": f"destruction.certify:{key_id}"})[0]["body"]
    kept.clock.forward(hours=2)
    custody.delete_bodies(kept.worker, {"key_id": key_id})
    with kept.node.records.writing() as unit:
        unit.update("outbox", {"key": f"body.delete:{key_id}"}, {"done": kept.clock.now})
    path.write_bytes(content)
    with pytest.raises(UnreachableFault, match="files in the store second"):
        custody.certify(kept.worker, body)
    assert not kept.dataset(name).current.certificate
    path.unlink()
    kept.deliver()
    assert kept.dataset(name).current.certificate


def test_deletion_waits_for_a_copy_that_is_just_being_made(kept: Kept) -> None:
    name, rows = kept.two_copies({"a.txt": b"repaired"})
    where = {"body": rows[0]["body"], "store": SECOND}
    for values in ({"state": "bad", "fault": REPAIR}, {"state": "coming", "fault": "", "since": kept.clock.now}):
        with kept.node.records.writing() as unit:
            unit.update("copy", where, values)
        key_id = str(kept.dataset(name).current.key_id)
        with kept.node.records.writing() as unit:
            unit.update("file", {"key_id": key_id}, {"state": "destroyed"})
        with pytest.raises(UnreachableFault, match="just being made"):
            custody.delete_bodies(kept.worker, {"key_id": key_id})
        assert kept.there(rows) == 4
        with kept.node.records.writing() as unit:
            unit.update("file", {"key_id": key_id}, {"state": "verified"})
            unit.update("copy", where, {"state": "whole", "fault": ""})
    with kept.node.records.writing() as unit:  # what a crash left does not hold it up for ever
        unit.update("copy", where, {"state": "coming", "since": kept.clock.now})
    kept.destroy(name)
    kept.clock.forward(days=2)
    kept.deliver()
    assert kept.there(rows) == 0 and kept.dataset(name).current.certificate


def test_a_store_that_is_away_is_waited_for(kept: Kept) -> None:
    name, rows = kept.two_copies({"a.txt": b"away"})

    class Away:
        place = kept.stores[SECOND].place

        def __getattr__(self, _: str) -> Any:
            raise UnreachableFault("away")

    real = kept.stores[SECOND]
    kept.stores[SECOND] = Away()  # type: ignore[assignment]
    try:
        kept.destroy(name)
        kept.deliver()
        assert not kept.dataset(name).current.certificate
        left = custody.show(kept.node, kept.who("audun")).acts[0].destroyed[0].left
        assert left == ("files in the store",)
    finally:
        kept.stores[SECOND] = real
    kept.deliver()
    kept.deliver()
    assert kept.there(rows) == 0 and kept.dataset(name).current.certificate


def test_old_certificates_are_shown_as_they_are() -> None:
    assert certificate.readable("CERTIFICATE OF DESTRUCTION\n\nNode: x") == "CERTIFICATE OF DESTRUCTION\n\nNode: x"


def test_scrubs_leave_destroyed_files_alone(kept: Kept) -> None:
    name, rows = kept.two_copies({"a.txt": b"gone"})
    kept.destroy(name)
    done = kept.scrub()
    assert done.state.lost == 0
    kept.deliver()
    assert kept.there(rows) == 0
    assert kept.scrub().state.lost == 0 and fixity.health(kept.node, kept.who("olle")).damaged == ()
