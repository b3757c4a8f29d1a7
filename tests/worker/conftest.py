from __future__ import annotations

from tests.app.conftest import made, s

__all__ = ["made", "s"]
