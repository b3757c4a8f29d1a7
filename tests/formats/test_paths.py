"""File names in a dataset: what passes stays inside its folder, on every system."""

from __future__ import annotations

import posixpath
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from valv.formats import paths

PARTS = st.one_of(
    st.sampled_from(["", ".", "..", "...", "a", "å", "Å", "~", "C:", "\\", "\0", "-", "a\n", "\u202e", "b" * 256]),
    st.text(max_size=12),
)
PATHS = st.lists(PARTS, min_size=1, max_size=6).map("/".join)


@given(PATHS)
@example("a/../b")
@example("/etc/passwd")
@example("..")
@example("a/..")
@example("\ud800")
def test_what_passes_stays_inside(path: str) -> None:
    if paths.fault(path) is None:
        assert posixpath.normpath(path) == path
        assert not PurePosixPath(path).is_absolute()
        assert ".." not in PurePosixPath(path).parts + PureWindowsPath(path).parts
        assert (Path("/data") / path).resolve().is_relative_to("/data")
        assert unicodedata.normalize("NFC", path) == path
        assert path.isprintable() or any(unicodedata.category(letter) == "Zs" for letter in path)
        assert len(path.encode()) <= paths.LONGEST
        assert all(0 < len(part.encode()) <= paths.LONGEST_PART for part in path.split("/"))


@given(PATHS)
def test_a_refusal_is_short_and_can_be_printed(path: str) -> None:
    refusal = paths.fault(path)
    if refusal is not None:
        assert refusal.code == "path_wrong"
        refusal.detail.encode()
        assert refusal.detail.isprintable()
        assert len(refusal.detail) < 1000


@pytest.mark.parametrize(
    "path", ["a.vcf", "cases/1/a b.json", "bilder/Å.dcm", "..a", "a..", "...", "data.tar.gz", "日本/x", "a" * 255]
)
def test_good_names(path: str) -> None:
    assert paths.fault(path) is None


BAD = ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "../a", "a\\b", "a\0", "a\nb", "a\x7f"]
UNSEEN = ["\u202ea", "A\u030a", "\ufeffa", "a\u200bb", "a\ud800", "a\u2028b"]
LONG = ["a" * 256, "/".join(["a" * 200] * 6)]


@pytest.mark.parametrize("path", [*BAD, *UNSEEN, *LONG])
def test_bad_names(path: str) -> None:
    refusal = paths.fault(path)
    assert refusal is not None
    assert refusal.code == "path_wrong"


@pytest.mark.parametrize(
    ("one", "other"), [("A.vcf", "a.VCF"), ("Straße", "STRASSE"), ("ﬁle", "file"), ("Ⅳ", "iv"), ("Å", "å"), ("ſ", "S")]
)
def test_twins(one: str, other: str) -> None:
    assert paths.folded(one) == paths.folded(other)


@given(st.text(max_size=20))
def test_folding_is_settled(path: str) -> None:
    """Folding again changes nothing: letters, case and look are all taken into account at once."""
    once = paths.folded(path)
    assert paths.folded(once) == once
    assert paths.folded(path.upper().lower()) == paths.folded(paths.folded(path.upper().lower()))
