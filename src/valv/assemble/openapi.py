"""The OpenAPI document of the HTTP door, checked in so that a change of the API is seen in review.

`python -m valv.assemble.openapi --write` writes it, `--check` fails with a diff where it is stale.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from valv.api.app import build

PLACE = Path("tests/golden/openapi.json")


def document() -> str:
    """The document as text, with its keys in order."""
    return json.dumps(build().openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def stale(root: Path) -> list[str]:
    """The lines by which the document in `root` differs from what the code says; none where it is fresh."""
    path = root / PLACE
    kept = path.read_text("utf-8") if path.exists() else ""
    return list(difflib.unified_diff(kept.splitlines(), document().splitlines(), str(PLACE), "now", lineterm=""))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m valv.assemble.openapi", description="The OpenAPI document.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="write it")
    action.add_argument("--check", action="store_true", help="fail where the one kept is stale")
    parser.add_argument("--root", type=Path, default=Path())
    options = parser.parse_args(argv)
    if options.write:
        path = options.root / PLACE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document(), "utf-8")
        return 0
    difference = stale(options.root)
    if difference:
        print("\n".join(difference))
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
