"""Bodies on tape: where they lie, and asking for them on disk, by dCache's REST interface.

Which server speaks it, the door says under `/.well-known/wlcg-tape-rest-api` (WLCG Tape REST API); else it is taken to
be the door itself. Source: dCache's documentation of `/api/v1/namespace` and `/api/v1/tape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import msgspec

from valv.errors import StorageFault
from valv.ports.storage import Locality
from valv.storage.dcache_door import Door
from valv.storage.dcache_line import secure

KEPT: Final = "P7D"
"""How long a staged body stays on disk."""
_AT_ONCE: Final = 1000
_WELL_KNOWN: Final = "/.well-known/wlcg-tape-rest-api"
_ANY: Final = frozenset({400, 401, 403, 404, 405, 500, 501})
_LOCALITIES: Final = {
    "ONLINE": Locality.ONLINE,
    "ONLINE_AND_NEARLINE": Locality.ONLINE,
    "NEARLINE": Locality.NEARLINE,
    "LOST": Locality.LOST,
    "UNAVAILABLE": Locality.UNAVAILABLE,
    "NONE": Locality.UNAVAILABLE,
}


def where(door: Door, path: str, what: str) -> Locality:
    """Raises `MissingFault`, and `StorageFault` where the server does not tell."""
    url = f"{_api(door)}/namespace{quote(door.base + path)}?locality=true"
    found = _decoded(door.send("GET", url, what, {"Accept": "application/json"}).content)
    told = found.get("fileLocality") if isinstance(found, dict) else None
    if not isinstance(told, str) or told not in _LOCALITIES:
        raise StorageFault(f"{what}: the store does not tell where it lies")
    return _LOCALITIES[told]


def stage(door: Door, paths: Sequence[str]) -> None:
    """Ask for these on disk for `KEPT`. The request itself is forgotten: `where` tells how far it is."""
    api = _api(door)
    for start in range(0, len(paths), _AT_ONCE):
        files = [{"path": door.base + path, "diskLifetime": KEPT} for path in paths[start : start + _AT_ONCE]]
        wanted = msgspec.json.encode({"files": files}).decode()
        door.send("POST", f"{api}/tape/stage", "staging", {"Content-Type": "application/json"}, wanted)


def _api(door: Door) -> str:
    """The address of the REST interface, without '/' at its end."""
    answer = door.send("GET", door.root + _WELL_KNOWN, "the store's tape service", allow=_ANY)
    found = _decoded(answer.content) if answer.status_code == 200 else None
    endpoints = found.get("endpoints") if isinstance(found, dict) else None
    for endpoint in endpoints if isinstance(endpoints, list) else []:
        uri = endpoint.get("uri") if isinstance(endpoint, dict) else None
        if isinstance(uri, str) and endpoint.get("version") == "v1" and secure(uri):
            return uri.rstrip("/").removesuffix("/tape")
    return f"{door.root}/api/v1"


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return None
