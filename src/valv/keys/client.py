"""The key holder as the other processes see it: `KeyHolder` over its socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from valv.errors import Fault, InternalFault, Refusal, RefusedFault, UnreachableFault
from valv.keys import messages
from valv.keys.messages import AnyRequest, Failed
from valv.ports.keys import Backup, Held, KeyClass, KeyCustody, KeyStatus, SealedShares

UNSEAL_SECONDS: Final = 120.0
"""The passphrase is stretched on purpose, and on a busy machine that takes its time."""
ORDER_SECONDS: Final = 600.0
"""A node of very many keys re-wraps them all."""
HINT: Final = "start the node with 'valv up', or look at the log of its key holder"

T = TypeVar("T")


class KeydClient:
    """Implements `valv.ports.keys.KeyHolder`. One connection for each thread (and process), made when it is needed.

    The faults and refusals of the key holder are raised here as what they were there. Where it does not answer within
    `seconds`, or is not there: `UnreachableFault`. A connection that broke is made anew once: every verb may be
    repeated.
    """

    def __init__(self, path: str | Path, seconds: float = 15.0) -> None:
        self._path = str(path)
        self._seconds = seconds
        self._local = threading.local()

    def status(self) -> KeyStatus:
        return self._ask(messages.Status(), KeyStatus)

    def unseal(self, passphrase: bytes) -> None:
        """Open the key holder. Raises `KeyFault` for a wrong passphrase. Only the operator may."""
        self._ask(messages.Unseal(passphrase), None, UNSEAL_SECONDS)

    def unseal_share(self, words: str) -> KeyStatus:
        """Give one officer's share; with the last that is needed it opens. Raises `KeyFault` for what is no share, and
        where shares do not fit together: then all are forgotten. Where the node is open, the share is not looked at.
        Only the operator may."""
        return self._ask(messages.UnsealShare(words), KeyStatus, UNSEAL_SECONDS)

    def shares(self, officer: str) -> SealedShares:
        """An officer's sealed shares. Only the operator may."""
        return self._ask(messages.Shares(officer), SealedShares)

    def create(self, key_id: str, key_class: KeyClass) -> bytes:
        return self._ask(messages.Create(key_id, key_class), bytes)

    def create_volume(self, key_id: str) -> bytes:
        """Make a `volume` key; its public half. Repeating gives the same. Only the operator may."""
        return self._ask(messages.CreateVolume(key_id), bytes)

    def reseal_volume(self, key_id: str, header: bytes, public_key: bytes) -> bytes:
        """Re-seal the passphrase of an encrypted disk to a key that was made for opening it. Only the operator may."""
        return self._ask(messages.ResealVolume(key_id, header, public_key), bytes)

    def confirm(self, key_id: str) -> None:
        self._ask(messages.Confirm(key_id), None)

    def narrow(self, key_id: str) -> None:
        self._ask(messages.Narrow(key_id), None)

    def adopt(self, header: bytes, key_id: str) -> bytes:
        return self._ask(messages.Adopt(header, key_id), bytes)

    def grant(self, grant_id: str, key_ids: list[str], uid: int, seconds: float) -> None:
        self._ask(messages.Grant(grant_id, key_ids, uid, seconds), None)

    def renew(self, grant_id: str, seconds: float) -> None:
        self._ask(messages.Renew(grant_id, seconds), None)

    def revoke(self, grant_id: str) -> None:
        self._ask(messages.Revoke(grant_id), None)

    def reseal(self, grant_id: str, key_id: str, header: bytes, public_key: bytes) -> bytes:
        return self._ask(messages.Reseal(grant_id, key_id, header, public_key), bytes)

    def reseal_outside(self, key_id: str, header: bytes, public_key: bytes) -> bytes:
        return self._ask(messages.ResealOutside(key_id, header, public_key), bytes)

    def sign(self, size: int, root: bytes, proof: list[bytes]) -> str:
        return self._ask(messages.Sign(size, root, proof), str)

    def destroy(self, key_id: str) -> None:
        self._ask(messages.Destroy(key_id), None, ORDER_SECONDS)

    def rotate(self, key_id: str, pair: int) -> bytes:
        return self._ask(messages.Rotate(key_id, pair), bytes)

    def reseal_across(self, key_id: str, headers: list[bytes], to: str) -> list[bytes]:
        return self._ask(messages.ResealAcross(key_id, headers, to), list[bytes], UNSEAL_SECONDS)

    def reseal_within(self, key_id: str, headers: list[bytes]) -> list[bytes]:
        return self._ask(messages.ResealWithin(key_id, headers), list[bytes], UNSEAL_SECONDS)

    def retire(self, key_id: str, pair: int) -> None:
        self._ask(messages.Retire(key_id, pair), None)

    def order(self, note: str, shares: list[str], passphrase: bytes = b"") -> str:
        return self._ask(messages.Order(note, shares, passphrase), str, ORDER_SECONDS)

    def custody(self) -> KeyCustody:
        return self._ask(messages.Custody(), KeyCustody)

    def held(self, after: int) -> list[Held]:
        return self._ask(messages.HeldAfter(after), list[Held])

    def back_up(self) -> list[Backup]:
        return self._ask(messages.BackUp(), list[Backup], ORDER_SECONDS)

    def close(self) -> None:
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()

    def _ask(self, request: AnyRequest, kind: type[T] | None, seconds: float | None = None) -> T:
        body = self._exchange(messages.frame(request), seconds or self._seconds)
        try:
            answer = messages.decode_answer(body)
            if not isinstance(answer, Failed):
                return msgspec.msgpack.decode(answer.result, type=kind)
        except msgspec.DecodeError:
            raise UnreachableFault(f"what answers at {self._path} is no key holder of this version", HINT) from None
        raise fault_of(answer)

    def _exchange(self, data: bytes, seconds: float) -> bytes:
        kept = self._kept()
        try:
            if kept is not None:
                with contextlib.suppress(ConnectionError):  # it was closed meanwhile: idle too long, or restarted
                    return self._once(kept, data, seconds)
            self._local.connection, self._local.pid = self._connect(seconds), os.getpid()
            return self._once(self._local.connection, data, seconds)
        except TimeoutError:
            raise UnreachableFault(f"the key holder did not answer within {seconds:.0f} s", HINT) from None
        except OSError as error:
            raise UnreachableFault(f"the key holder at {self._path}: {error.strerror or error}", HINT) from None

    def _once(self, connection: socket.socket, data: bytes, seconds: float) -> bytes:
        try:
            with contextlib.suppress(ConnectionError):  # the reason may still be there to be read
                messages.send(connection, data, seconds)
            body = messages.receive(connection, seconds, seconds)
            if body is None:
                raise ConnectionResetError("it closed the connection")
            return body
        except BaseException:
            self.close()
            raise

    def _kept(self) -> socket.socket | None:
        """This thread's connection, unless it was made before a fork: parent and child must not share one."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.connection = None
        connection: socket.socket | None = getattr(self._local, "connection", None)
        return connection

    def _connect(self, seconds: float) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(seconds)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        return connection


def fault_of(answer: Failed) -> Fault:
    """The fault that the key holder raised."""
    if answer.refused:
        return RefusedFault(Refusal(answer.code, answer.detail))
    kind = _KINDS.get(answer.code, InternalFault)
    return kind(answer.detail, answer.hint, dict(answer.context))


def _kinds(kind: type[Fault]) -> dict[str, type[Fault]]:
    """code → class, for all narrower kinds of fault."""
    found: dict[str, type[Fault]] = {}
    for narrower in kind.__subclasses__():
        if narrower is not RefusedFault:
            found |= {narrower.code: narrower, **_kinds(narrower)}
    return found


_KINDS: Final[dict[str, type[Fault]]] = _kinds(Fault)
