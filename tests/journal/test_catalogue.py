from __future__ import annotations

import time
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valv.db.catalogue import fold
from valv.db.database import Database
from valv.errors import InputFault

NOW = datetime(2031, 2, 3, tzinfo=UTC)


def row(name: str, **values: Any) -> dict[str, Any]:
    full = {
        "id": f"id-{name}",
        "name": name,
        "title": f"Title of {name}",
        "class": "anonymised",
        "custodian": "c",
        "country": "SE",
        "unit": "u",
        "visible": True,
        "changed": NOW,
    }
    return {**full, **values}


@pytest.fixture
def filled(database: Database) -> Database:
    with database.writing() as unit:
        unit.insert(
            "dataset",
            [
                row("rare", title="Sällsynta SJUKDOMAR", diseases=["MONDO:0005148", "Type 2 Diabetes"]),
                row("percent", description="about 100% of_all\\them", keywords=["Straße", "å"]),
                row("plain", description="about 100 percent", data_types=["vcf"], consent=["DUO:0000042", "NO_USE"]),
                row("other", data_types=["vcf.gz", "bam"], consent=["DUO:000004"], changed=NOW + timedelta(days=1)),
                row("hidden", title="rare plain percent", visible=False, data_types=["vcf"]),
                row("objects", diseases=[{"id": "OMIM:1", "label": "Marfan syndrome"}]),
            ],
        )
    return database


def names(database: Database, **how: Any) -> list[str]:
    with database.reading() as unit:
        total, rows = unit.search_catalogue(**how)
    assert total >= len(rows)
    return [one["name"] for one in rows]


def test_every_word_must_match_and_case_does_not(filled: Database) -> None:
    assert names(filled, text="sällsynta") == names(filled, text="SÄLLSYNTA sjukdomar") == ["rare"]
    assert names(filled, text="sa\u0308llsynta") == ["rare"], "a letter put together from two is the same letter"
    assert names(filled, text="sällsynta nonsense") == []
    assert names(filled, text="STRASSE Å") == ["percent"]
    assert names(filled, text="diabetes") == names(filled, text="mondo:0005148") == ["rare"]
    assert names(filled, text="marfan") == names(filled, text="omim:1") == ["objects"]
    assert names(filled, text="title of plain") == ["plain"]
    assert names(filled, text="DUO:0000042") == [], "consent is a filter, not a word"


def test_signs_of_patterns_are_plain_signs(filled: Database) -> None:
    assert names(filled, text="100%") == ["percent"]
    assert names(filled, text="of_all") == ["percent"]
    assert names(filled, text="_f_all") == []
    assert names(filled, text="\\them") == ["percent"]
    assert names(filled, text="%") == ["percent"]
    assert names(filled, text="/") == names(filled, text="'") == names(filled, text='"') == []


def test_filters_compare_whole_values(filled: Database) -> None:
    assert names(filled, data_type="vcf") == ["plain"]
    assert names(filled, data_type="VCF.gz") == ["other"]
    assert names(filled, consent="DUO:0000042") == ["plain"]
    assert names(filled, consent="DUO:000004") == ["other"]
    assert names(filled, consent="NO_USE") == ["plain"]
    assert names(filled, consent="NOxUSE") == names(filled, consent="%") == []
    assert names(filled, disease="type 2 diabetes") == ["rare"]
    assert names(filled, disease="diabetes") == []
    assert names(filled, disease="omim:1") == ["objects"]
    assert names(filled, data_type="vcf", consent="DUO:000004") == []


def test_pages_and_order(filled: Database) -> None:
    with filled.reading() as unit:
        total, first = unit.search_catalogue(limit=2)
        _, rest = unit.search_catalogue(offset=2)
    assert total == 5
    assert [one["name"] for one in [*first, *rest]] == ["other", "objects", "percent", "plain", "rare"]
    assert not {"search", "facets"} & set(first[0])


def test_changes_of_a_row_are_found_at_once(filled: Database) -> None:
    with filled.writing() as unit:
        unit.update("dataset", {"name": "plain"}, {"title": "Quite new", "consent": ["DUO:1"]})
        unit.update("dataset", {"name": "rare"}, {"visible": False})
        unit.update("dataset", {"name": "objects"}, {"name": "things"})
        unit.upsert("dataset", row("other", keywords=["fresh"]))
        unit.upsert("dataset", row("sixth", keywords=["fresh"]))
    assert names(filled, text="quite new") == names(filled, consent="duo:1") == ["plain"]
    assert names(filled, text="sällsynta") == names(filled, consent="DUO:0000042") == []
    assert names(filled, text="things") == ["things"]
    assert names(filled, text="fresh") == ["other", "sixth"]
    assert names(filled, data_type="bam") == ["other"], "an upsert leaves alone what it does not name"


def test_impossible_searches(filled: Database) -> None:
    for text in ("x" * 1001, "nul\0", "half\ud800"):
        with pytest.raises(InputFault), filled.reading() as unit:
            unit.search_catalogue(text=text)
        with pytest.raises(InputFault), filled.reading() as unit:
            unit.search_catalogue(disease=text)


@given(st.text())
def test_composed_and_decomposed_letters_fold_alike(text: str) -> None:
    assert fold(unicodedata.normalize("NFD", text)) == fold(unicodedata.normalize("NFC", text)) == fold(text)


def test_five_thousand_rows(database: Database) -> None:
    """A generous bound here; the benchmark prints the figure."""
    with database.writing() as unit:
        unit.insert(
            "dataset",
            [
                row(
                    f"set-{number:05}",
                    description="A cohort of volunteers, measured again every second year. " * 10,
                    diseases=[f"MONDO:{number % 70:07}", f"disease {number % 70}"],
                    data_types=["vcf" if number % 2 else "bam"],
                    consent=["DUO:0000042"],
                )
                for number in range(5000)
            ],
        )
    with database.reading() as unit:
        unit.search_catalogue(limit=1)
        started = time.perf_counter()
        total, rows = unit.search_catalogue(
            text="cohort disease 12", data_type="vcf", consent="DUO:0000042", offset=10, limit=20
        )
        took = time.perf_counter() - started
    assert (total, len(rows)) == (sum("12" in f"{n % 70:07}{n:05}" and n % 2 for n in range(5000)), 20)
    assert took < 1
