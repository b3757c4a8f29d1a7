"""The `serve` process: the HTTP door, with API and portal. It holds no key."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from valv import config as configuration
from valv.assemble.node import build
from valv.errors import Fault
from valv.keys.memory import protect_process

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="valv serve", description="The HTTP door of a node.")
    parser.add_argument("--node", type=Path, required=True, help="the node's folder")
    options = parser.parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    # The client library logs each address that it asks, and addresses can name what somebody looks for.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        protect_process()  # it has data keys while it encrypts what arrives
        config = configuration.load(options.node)
        parts = build(config)
    except Fault as fault:
        logging.getLogger("valv.serve").error("%s", fault)
        return fault.row.exit
    import uvicorn

    from valv.api import app as api
    from valv.assemble.connection import Connection
    from valv.web import app as web

    uvicorn.run(
        beside(api.create(parts.node, parts.reader), web.create(parts.node, parts.reader)),
        host=config.serve.host,
        port=config.serve.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        http=Connection,
        timeout_graceful_shutdown=3,
    )
    return 0


def beside(api: Application, portal: Application) -> Application:
    """Both doors on one address. They share nothing: each has its own headers, errors and log-in."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        door = api if path == "/health" or path.startswith("/api/") else portal
        await door(scope, receive, send)

    return application


if __name__ == "__main__":
    sys.exit(main())
