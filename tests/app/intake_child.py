"""A node's server and the steps of its worker with deposits, in one process, until it is killed: words are the node's
folder and the users that the key holder is asked as (-1: our own)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvicorn

from tests.keys.running import ClientAs
from tests.world import DirectReader
from valv import config as configuration
from valv.api import app as api
from valv.app import copying, intake, joining
from valv.assemble.node import build
from valv.assemble.sockets import KEYD
from valv.errors import Fault


def main(words: list[str], begun: Callable[[], None]) -> None:
    config = configuration.load(Path(words[0]))
    users = [int(word) if word != "-1" else None for word in words[1:]]
    serve, work, read = (ClientAs(config.runtime / KEYD, uid) for uid in users)
    made = build(config).node
    node, worker = replace(made, keys=serve), replace(made, keys=work)
    reader = DirectReader(made.storage, read, users[2] or 0)
    settings = uvicorn.Config(
        api.create(node, reader),
        host=config.serve.host,
        port=config.serve.port,
        log_level="critical",
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(settings)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.005)
    begun()
    steps: list[Callable[[], object]] = [
        lambda: joining.step(worker, reader),
        lambda: intake.process_submitted(worker, reader),
        lambda: copying.follow(worker),
        lambda: copying.turn(worker),
    ]
    while True:
        for step in steps:
            try:
                step()
            except Fault as fault:  # the next turn takes it up again
                print(fault, flush=True)
        time.sleep(0.02)
