"""File names inside a dataset: relative, plain, and the same on every system."""

from __future__ import annotations

import unicodedata

from valv.errors import Refusal

LONGEST = 1024
LONGEST_PART = 255


def fault(path: str) -> Refusal | None:
    """Why this path cannot be used in a dataset, or None. A path is relative, with '/' between its parts, in Unicode
    NFC, without control characters, '.' and '..'; at most 1024 bytes, 255 a part."""
    shown = repr(path[:60])
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        return Refusal("path_wrong", f"{shown} is not Unicode")
    if not path or size > LONGEST:
        return Refusal("path_wrong", f"{shown}: between 1 and {LONGEST} bytes")
    if path.startswith("/") or "\\" in path:
        return Refusal("path_wrong", f"{shown}: a relative path with '/' between its parts")
    if any(part in ("", ".", "..") for part in path.split("/")):
        return Refusal("path_wrong", f"{shown}: no empty part, '.' or '..'")
    if any(len(part.encode()) > LONGEST_PART for part in path.split("/")):
        return Refusal("path_wrong", f"{shown}: a part is longer than {LONGEST_PART} bytes")
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for letter in path):
        return Refusal("path_wrong", f"{shown}: holds a control or invisible character")
    if unicodedata.normalize("NFC", path) != path:
        return Refusal("path_wrong", f"{shown}: letters are not in Unicode's composed form (NFC)")
    return None


def folded(path: str) -> str:
    """What two paths share that differ in letter case or look alike (NFKC): such a pair is refused."""
    return unicodedata.normalize("NFKC", path).casefold()
