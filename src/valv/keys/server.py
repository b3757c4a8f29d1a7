"""The key holder's socket: connections, their limits, and who is at the other end of each."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
import time
import traceback
from collections import Counter
from typing import Final

import msgspec

from valv.errors import Fault, InputFault, InternalFault, Refusal, RefusedFault, UnreachableFault
from valv.keys import messages
from valv.keys.keyd import Keyd
from valv.keys.messages import Answer, Done, Failed
from valv.keys.roles import Caller, Roles

log = logging.getLogger("valv.keyd")

_PEER: Final = struct.Struct("=iII")
"""struct ucred: pid, uid, gid."""


class Limits(msgspec.Struct, frozen=True):
    """Seconds: `idle` between two requests, `transfer` for one message either way. Connections: `each` of one user,
    `each_run` of one run's user, `runs` of all runs together (the others keep theirs whatever the runs do)."""

    idle: float = 600.0
    transfer: float = 10.0
    each: int = 128
    each_run: int = 4
    runs: int = 512


class Server:
    """Serves one listening unix stream socket, a thread for each connection."""

    def __init__(self, keyd: Keyd, roles: Roles, listener: socket.socket, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        self._keyd = keyd
        self._roles = roles
        self._listener = listener
        self._limits = limits
        self._mutex = threading.Lock()
        self._open: dict[socket.socket, Caller] = {}
        self._stopping = False

    def serve(self) -> None:
        """Accept until `stop`."""
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping:
                    log.error("cannot accept: %s", error.strerror)
                    time.sleep(0.1)  # out of descriptors or memory: others must finish first
                continue
            self._begin(connection)

    def stop(self) -> None:
        """Stop accepting and end every connection. May be called from a signal handler."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _begin(self, connection: socket.socket) -> None:
        try:
            caller = self._roles.caller(peer_uid(connection))
            fault = self._admit(connection, caller)
            if fault is None:
                threading.Thread(target=self._converse, args=(connection, caller), daemon=True).start()
                return
            _log_refused(caller, "connect", fault)
            messages.send(connection, messages.frame(failed(fault)), 0.0)
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread can be started
            log.error("cannot serve a connection: %s", type(error).__name__)
        self._end(connection)

    def _admit(self, connection: socket.socket, caller: Caller) -> Fault | None:
        """Take the connection into account, or the fault that tells why not."""
        if not caller.roles:
            return RefusedFault(Refusal("key_not_yours", "this user is no part of the node"))
        with self._mutex:
            users = Counter(other.uid for other in self._open.values())
            runs = sum(other.only_runs for other in self._open.values())
            most = self._limits.each_run if caller.only_runs else self._limits.each
            if users[caller.uid] >= most or (caller.only_runs and runs >= self._limits.runs):
                return UnreachableFault("too many connections to the key holder", "close some and try again")
            self._open[connection] = caller
        return None

    def _converse(self, connection: socket.socket, caller: Caller) -> None:
        try:
            while (body := self._receive(connection, caller)) is not None:
                messages.send(connection, self._answer(caller, body), self._limits.transfer)
        except OSError:
            pass  # slow, idle too long, or gone: the client connects again
        except Exception as error:
            _log_broken("connection", error)
        finally:
            self._end(connection)

    def _receive(self, connection: socket.socket, caller: Caller) -> bytes | None:
        try:
            return messages.receive(connection, self._limits.idle, self._limits.transfer)
        except InputFault as fault:  # where the next message begins cannot be told: say so and close
            _log_refused(caller, "frame", fault)
            messages.send(connection, messages.frame(failed(fault)), self._limits.transfer)
            return None

    def _answer(self, caller: Caller, body: bytes) -> bytes:
        verb = "unknown"
        try:
            try:
                request = messages.decode_request(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise InputFault("this is no request that the key holder knows") from None
            verb = messages.verb_of(request)
            return messages.frame(Done(msgspec.Raw(msgspec.msgpack.encode(self._keyd.answer(caller, request)))))
        except Fault as fault:
            _log_refused(caller, verb, fault)
            return messages.frame(failed(fault))
        except Exception as error:
            _log_broken(verb, error)
            return messages.frame(failed(InternalFault(f"the key holder failed at '{verb}'", "look at its log")))

    def _end(self, connection: socket.socket) -> None:
        with self._mutex:
            self._open.pop(connection, None)
        connection.close()


def peer_uid(connection: socket.socket) -> int:
    """The user id of the process that connected, as the kernel noted it then (SO_PEERCRED)."""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


def failed(fault: Fault) -> Answer:
    if isinstance(fault, RefusedFault):
        return Failed(fault.refusal.code, fault.refusal.detail, refused=True)
    return Failed(fault.code, fault.detail, fault.hint, fault.context)


def _log_refused(caller: Caller, verb: str, fault: Fault) -> None:
    code = fault.refusal.code if isinstance(fault, RefusedFault) else fault.code
    log.warning("refused uid=%d verb=%s code=%s", caller.uid, verb, code)


def _log_broken(verb: str, error: Exception) -> None:
    """Where it broke and the kind of error; never its text, which may hold a value."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    log.error("failed verb=%s error=%s at=%s:%s", verb, type(error).__name__, last.filename, last.lineno)
