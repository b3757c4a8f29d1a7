"""Names of the node's sockets in its runtime folder."""

from __future__ import annotations

from typing import Final

KEYD: Final = "keyd.sock"
LAUNCHER: Final = "launcher.sock"
LEASE: Final = "lease.sock"
BODIES: Final = "bodies.sock"
