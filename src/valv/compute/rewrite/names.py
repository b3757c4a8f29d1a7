"""The names that must not be left: pseudonyms and samples of people who withdrew."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WITHIN = rb"[0-9A-Za-z]"


class Cannot(Exception):
    """The job is not for a program: the custodian must say what becomes of the file. `why`: a key of
    `valv.ports.compute.WHY`."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Names:
    """`taken`: names that must go; `kept`: names of others of which one of those is a part (`P-1` of `P-1-b`). A name
    counts where no letter or digit stands beside it; capital and small letters are the same."""

    def __init__(self, taken: Sequence[str], kept: Sequence[str] = ()) -> None:
        self.taken = frozenset(taken)
        folded = {name.casefold() for name in taken}
        self._folded = folded
        longest = sorted({name for name in kept if name.casefold() not in folded}, key=len, reverse=True)
        keep, take = _either(longest), _either(sorted(self.taken, key=len, reverse=True))
        inner = b"(?P<keep>" + keep + b")|(?P<take>" + take + b")" if longest else b"(?P<take>" + take + b")"
        self._search = re.compile(b"(?<!" + _WITHIN + b")(?:" + inner + b")(?!" + _WITHIN + b")", re.IGNORECASE)
        wide = [name.encode(code) for name in self.taken for code in ("utf-16-le", "utf-16-be")]
        self._wide = re.compile(b"|".join(map(re.escape, wide)), re.IGNORECASE)
        self.longest = max(len(name.encode()) for name in (*self.taken, *longest))

    def are(self, word: str) -> bool:
        """Whether this is one of the names."""
        return word.strip().casefold() in self._folded

    def found(self, data: bytes) -> bool:
        """Whether one of the names stands somewhere in `data`."""
        if any(match["take"] is not None for match in self._search.finditer(data)):
            return True
        return b"\0" in data and self._wide.search(data) is not None


def _either(words: Sequence[str]) -> bytes:
    return b"|".join(re.escape(word.encode()) for word in words)
