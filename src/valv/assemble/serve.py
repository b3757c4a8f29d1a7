"""The `serve` process: the HTTP door, with API and portal. It holds no key."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from valv import config as configuration
from valv.assemble.node import build
from valv.errors import Fault


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="valv serve", description="The HTTP door of a node.")
    parser.add_argument("--node", type=Path, required=True, help="the node's folder")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    # The client library logs each address that it asks, and addresses can name what somebody looks for.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        config = configuration.load(options.node)
        parts = build(config)
    except Fault as fault:
        logging.getLogger("valv.serve").error("%s", fault)
        return fault.row.exit
    import uvicorn

    from valv import api, web

    application = api.create(parts.node, parts.reader)
    application.mount("/", web.create(parts.node, parts.reader))
    uvicorn.run(
        application,
        host=config.serve.host,
        port=config.serve.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_graceful_shutdown=3,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
