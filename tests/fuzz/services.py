"""Targets that need something around them: a request of the portal, a key holder with its keys."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from starlette.requests import Request

from tests.keys.officers import People, ordered
from valv.config import Keys
from valv.formats import crypt4gh
from valv.keys import folder as folders
from valv.keys import messages
from valv.keys.file import Cost, FileKeyring
from valv.keys.keyd import Keyd
from valv.keys.roles import Caller, Role, Roles
from valv.keys.server import Server
from valv.web.multipart import parts

_MOST = 1 << 16
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What the server and the client turn into a fault."""
_ORDER = ordered("destroy", node="fuzz.example", key_ids=("k1",), reason="to be found out")
_PASSPHRASE = b"correct horse battery staple"

Made = tuple[Callable[[bytes], None], Sequence[bytes]]


def multipart() -> Made:
    """The first byte is the size of the pieces in which the form comes, the first line its content type."""

    def run(data: bytes) -> None:
        step, (kind, _, body) = 1 + int.from_bytes(data[:1], "big"), data[1:].partition(b"\n")
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}
        left = [body[at : at + step] for at in range(0, len(body), step)][::-1]

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": left.pop() if left else b"", "more_body": bool(left)}

        async def read() -> None:
            seen = 0
            async for part in parts(Request(scope, receive)):
                if part.filename is None:
                    seen += len(await part.text(1000))
                else:
                    async for piece in part.pieces():
                        seen += len(piece)
            assert seen <= len(body) * 3  # replacement characters are longer than what they replace

        try:
            read().send(None)
        except StopIteration:
            return
        raise AssertionError("the form waits for what will never come")

    form = (
        b'--B\r\nContent-Disposition: form-data; name="token"\r\n\r\nabc\r\n'
        b'--B\r\nContent-Disposition: form-data; name="f"; filename="a%22b.vcf"\r\nContent-Type: text/plain\r\n\r\n'
        b"12\r\n-3\r\n--B--\r\n"
    )
    kind = b"multipart/form-data; boundary=B\n"
    star = form.replace(b'name="token"', b"name*=utf-8''%e2%82%ac; filename*=x''%ff")
    seeds = [kind + form, kind + star, kind + form[:-6], kind + b"--B--\r\n", b"text/plain\n" + form]
    return run, [bytes([step]) + seed for seed in seeds for step in (0, 6, 255)]


def _requests() -> list[messages.AnyRequest]:
    people = People("anna")
    header = crypt4gh.build_header(bytes(32), [crypt4gh.public_key(bytes(range(32)))])
    return [
        messages.Status(),
        messages.Unseal(b"wrong"),
        messages.Create("k1", "result"),
        messages.Confirm("k1"),
        messages.Narrow("k1"),
        messages.Adopt(header, "k1"),
        messages.Grant("g1", ["k1"], 100, 60.0),
        messages.Renew("g1", 60.0),
        messages.Revoke("g1"),
        messages.Reseal("g1", "k1", header, bytes(32)),
        messages.ResealOutside("k1", header, bytes(32)),
        messages.Sign(1, bytes(32), [bytes(32)]),
        messages.Destroy("k1"),
        messages.Rotate("k1", 2),
        messages.ResealWithin("k1", [header]),
        messages.ResealAcross("k1", [header], "k1"),
        messages.Retire("k1", 2),
        messages.UnsealShare("academic acid acrobat"),
        messages.Shares("anna"),
        messages.Order(people.signed(_ORDER, "anna"), ["academic acid"]),
        messages.Custody(),
        messages.HeldAfter(0),
        messages.BackUp(),
    ]


def keyd_frames() -> Made:
    """What arrives at a connection that then ends, and what is decoded of it."""

    def run(data: bytes) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data[:_MOST])
            theirs.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while (body := messages.receive(ours, 5.0, 5.0)) is not None:
                    for decode in (messages.decode_request, messages.decode_answer):
                        with contextlib.suppress(*_UNREADABLE):
                            decode(body)

    answers = [messages.Done(msgspec.Raw(b"\xc0")), messages.Failed("fault.input", "detail", "hint", {"a": "b"})]
    seeds = [messages.frame(one) for one in (*_requests(), *answers)]
    return run, [*seeds, b"".join(seeds), b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x05\xc0"]


def keyd() -> Made:
    """Requests to a key holder that has keys, each from a caller that the first byte of it picks."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="valv-fuzz-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o700)
    keyring = FileKeyring(Keys(), Cost(passes=1, lanes=1, memory=64))
    folders.create(folder, "fuzz.example", keyring, _PASSPHRASE).wipe()
    roles = Roles(own_uid=1, operator_uid=1, serve_uid=2, worker_uid=3, first_run_uid=100, last_run_uid=110)
    holder = Keyd(folder, "fuzz.example", roles, keyring)
    holder.unseal(_PASSPHRASE)
    callers = [roles.caller(uid) for uid in (1, 2, 3, 100)] + [Caller(3, frozenset(Role))]
    holder.answer(callers[4], messages.Create("k1", "result"))
    people = People("anna", "bo")
    ceremony = people.ceremony("anna", "bo", node="fuzz.example")
    holder.answer(callers[4], messages.Order(ceremony))
    held = len(holder.answer(callers[4], messages.HeldAfter(0)))
    listener = socket.socket()
    atexit.register(listener.close)
    server = Server(holder, roles, listener)
    secrets = [_PASSPHRASE, holder._store.intake_private(), holder._store.log_private()]

    def run(data: bytes) -> None:
        caller, body = callers[data[0] % len(callers) if data else 0], data[1:]
        try:
            request = messages.decode_request(body)
        except _UNREADABLE:
            request = None
        if isinstance(request, messages.Create | messages.Destroy) and request.key_id != "k2":
            return  # neither a disk full of keys nor a node without any
        if isinstance(request, messages.Rotate) and request.pair > 50:
            return
        answer = server._answer(caller, body)
        assert not any(secret in answer for secret in secrets), "a secret leaves"
        told = messages.decode_answer(answer[4:])
        if isinstance(told, messages.Failed) and told.code == "fault.internal":
            holder.answer(caller, messages.decode_request(body))  # again, for the traceback
            raise AssertionError("an internal fault")
        assert len(holder.answer(callers[4], messages.HeldAfter(0))) == held, "an order without two officers"

    return run, [bytes([who]) + messages.frame(one)[4:] for one in _requests() for who in (2, 4)]
