"""What the exceptions of the iRODS client mean."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import irods.exception as errors

from valv.errors import Fault, FullFault, MissingFault, StorageFault, UnreachableFault

_ENOSPC: Final = 28
AWAY: Final = (errors.NetworkException, OSError, EOFError)
_MISSING: Final = (
    errors.DoesNotExist,
    errors.CAT_NO_ROWS_FOUND,
    errors.CAT_UNKNOWN_FILE,
    errors.CAT_UNKNOWN_COLLECTION,
)
_TAKEN: Final = (
    errors.CATALOG_ALREADY_HAS_ITEM_BY_THAT_NAME,
    errors.CAT_NAME_EXISTS_AS_DATAOBJ,
    errors.OVERWRITE_WITHOUT_FORCE_FLAG,
)
_DENIED: Final = (
    errors.CAT_INVALID_AUTHENTICATION,
    errors.CAT_INVALID_USER,
    errors.CAT_NO_ACCESS_PERMISSION,
    errors.SYS_NO_API_PRIV,
)


def fault(error: Exception, what: str) -> Fault:
    """What an exception of the client means. Its words may name users and paths, and are not shown."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, _MISSING):
        return MissingFault(f"{what}: not in the store")
    if isinstance(error, _TAKEN):
        return taken(what)
    if isinstance(error, AWAY):
        return UnreachableFault(f"{what}: the iRODS server broke off: {type(error).__name__}", "see that it runs")
    if isinstance(error, _DENIED):
        return StorageFault(
            f"{what}: the iRODS server refuses: {type(error).__name__}",
            "see the user, the password and the rights on the store's collection",
        )
    code = int(getattr(error, "code", 0) or 0)
    if isinstance(error, errors.SYS_RESC_QUOTA_EXCEEDED) or (code < 0 and -code % 1000 == _ENOSPC):
        return FullFault(f"{what}: the store is full")
    return StorageFault(f"{what}: the iRODS server answers {type(error).__name__}")


@contextmanager
def faults(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the client's exceptions have no common ancestor
        raise fault(error, what) from None


def taken(name: str) -> StorageFault:
    return StorageFault(f"{name} exists already", "a body is written once; use a new name")
