"""The published schema of certificates and bundles is that of the code, and takes what the code writes."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest

from valv.errors import FormatFault
from valv.formats import certificate
from valv.formats.certificate import Bundle, Certificate

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "formats" / "certificate.schema.json"
FOUND = Certificate(
    node="uu.valv",
    country="SE",
    unit="Medicine",
    dataset="heart",
    dataset_id="d1",
    version=2,
    files=1,
    bytes=5,
    manifest="ab" * 32,
    key="version-x",
    generation=4,
    destroyed="2031-01-02T03:04:05Z",
    order=certificate.Order("o1", "Återkallat.", ("anna", "bo"), 3, "cd" * 32),
    stores=(certificate.Store("main", "local", "SE", "Medicine", 1, 93, "2031-01-02T03:04:06Z"),),
    copies=(certificate.Copy("f", "b", "main", 93),),
    key_backups=(certificate.KeyBackup("/mnt/keys", 4),),
    backups=(certificate.Backup("vault", 7, "2031-01-01T00:00:00Z"),),
    completed="2031-01-02T03:04:07Z",
)


def schema() -> dict[str, object]:
    made = msgspec.json.schema(Certificate)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": certificate.FORMAT} | made


def test_the_schema_is_fresh() -> None:
    assert json.loads(SCHEMA.read_text("utf-8")) == schema()


def test_it_takes_what_is_written_and_nothing_else() -> None:
    held = jsonschema_rs.validator_for(json.loads(SCHEMA.read_text("utf-8")))
    value = json.loads(certificate.encode(FOUND))
    held.validate(value)
    for wrong in ({**value, "more": 1}, {**value, "copies": [{"file": "f"}]}, {**value, "version": "2"}):
        assert not held.is_valid(wrong)


def test_one_spelling_only() -> None:
    text = certificate.encode(FOUND).decode()
    assert certificate.decode(text) == FOUND
    for other in (json.dumps(json.loads(text)), text + "\n", text.replace("valv-certificate-1", "valv-certificate-2")):
        with pytest.raises(FormatFault):
            certificate.decode(other)


def test_words_name_every_copy_and_place() -> None:
    text = certificate.words(FOUND)
    for part in ("f b main 93", "/mnt/keys: generation 4", "vault: up to generation 7", "Återkallat.", "anna, bo"):
        assert part in text
    assert certificate.readable(certificate.encode(FOUND).decode()) == text


def test_a_bundle_without_its_parts_is_none() -> None:
    bundle = Bundle(certificate=certificate.encode(FOUND).decode(), leaf="{}", proof=(), checkpoint="", minutes="")
    with pytest.raises(FormatFault):
        certificate.verify(certificate.encode(bundle), "uu.valv+00000000+AA==")
