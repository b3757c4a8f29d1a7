"""Parts that really work, and fail where a test says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import Buffer

from valv.errors import FullFault
from valv.ports.storage import BodyWriter, Storage


class FailingStorage:
    """Writes to a real store; the `nth` call of `verb` (writer, write, commit) fails as a full disk does."""

    def __init__(self, inner: Storage, verb: str, nth: int) -> None:
        self._inner, self._verb, self._left = inner, verb, nth
        self.failed = False

    def strike(self, verb: str) -> None:
        if verb == self._verb:
            self._left -= 1
            if self._left == 0:
                self.failed = True
                raise FullFault("no space left")

    def writer(self, name: str) -> BodyWriter:
        self.strike("writer")
        return FailingWriter(self, self._inner.writer(name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class FailingWriter:
    def __init__(self, storage: FailingStorage, inner: BodyWriter) -> None:
        self._storage, self._inner = storage, inner

    def write(self, data: Buffer) -> None:
        self._inner.write(data)
        self._storage.strike("write")

    def commit(self) -> None:
        self._storage.strike("commit")
        self._inner.commit()

    def abort(self) -> None:
        self._inner.abort()


class Interfering:
    """Real records; `act` is called once, in the middle of the next transaction that appends: either before the append
    (`when` 'before') or after it ('after'). What it raises ends the transaction."""

    def __init__(self, inner: Any, act: Callable[[], None], when: str = "before") -> None:
        self._inner, self._act, self._when = inner, act, when
        self.done = False

    def reading(self) -> Any:
        return self._inner.reading()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        with self._inner.writing() as unit:
            yield _InterferingUnit(self, unit)

    def strike(self, when: str) -> None:
        if when == self._when and not self.done:
            self.done = True
            self._act()


class _InterferingUnit:
    def __init__(self, records: Interfering, inner: Any) -> None:
        self._records, self._inner = records, inner

    def append(self, *args: Any, **kwargs: Any) -> Any:
        self._records.strike("before")
        recorded = self._inner.append(*args, **kwargs)
        self._records.strike("after")
        return recorded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
