"""Mail through a server that really listens: refused at first, it is sent later; nothing is lost."""

from __future__ import annotations

import contextlib
import email
import email.policy
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiosmtpd.controller import Controller

from tests.conftest import free_port
from valv.app import account, outbox
from valv.app.node import Node, new_id
from valv.config import Mail
from valv.worker import mail


class Inbox:
    """Keeps what comes. `refusals`: how many messages are answered with `answer` first."""

    def __init__(self, refusals: int = 0, answer: str = "451 try again later") -> None:
        self.messages: list[Any] = []
        self.asked = 0
        self._refusals, self._answer = refusals, answer

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("refused"):
            return "550 no such person"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.asked += 1
        if self.asked <= self._refusals:
            return self._answer
        parsed = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.messages.append((envelope.rcpt_tos, parsed))
        return "250 OK"


@contextlib.contextmanager
def listening(inbox: Inbox, port: int, **more: Any) -> Iterator[None]:
    controller = Controller(inbox, hostname="127.0.0.1", port=port, **more)
    controller.start()
    try:
        yield
    finally:
        controller.stop()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def to_server(s: Any, port: int) -> Node:
    return configured(s, Mail(host="127.0.0.1", port=port, sender="valv@example.org"))


def configured(s: Any, settings: Mail) -> Node:
    return replace(s.worker, config=msgspec.structs.replace(s.worker.config, mail=settings))


@pytest.fixture
def written(s: Any) -> Any:
    """Puts a message to somebody into the outbox; what lay there before is done."""
    with s.node.records.writing() as unit:
        unit.update("outbox", {"done": None}, {"done": s.clock()})

    def it(name: str, subject: str, body: str = "A body.") -> str:
        key = new_id()
        with s.node.records.writing() as unit:
            outbox.mail(unit, s.clock(), key=key, account=s.world.ids[name], subject=subject, body=body)
        return key

    return it


def waiting(s: Any) -> list[dict[str, Any]]:
    return [row for row in s.rows("outbox") if row["done"] is None]


def test_a_message_arrives(s: Any, to_server: Node, port: int, written: Any) -> None:
    inbox = Inbox()
    written("rikard", "En fråga", "Åäö — a line\n.\nanother line")
    with listening(inbox, port):
        assert outbox.deliver(to_server, mail.TOPICS) == 1
    ((recipients, message),) = inbox.messages
    assert recipients == ["rikard@example.org"]
    assert message["From"] == "valv@example.org"
    assert message["Subject"].endswith("En fråga")
    text = message.get_content()
    assert "Rikard" in text
    assert "Åäö — a line" in text
    assert "another line" in text


def test_refused_at_first_then_sent(s: Any, to_server: Node, port: int, written: Any) -> None:
    inbox = Inbox(refusals=3)
    for number in range(4):
        written("rikard", f"message {number}")
    with listening(inbox, port):
        for _ in range(10):
            outbox.deliver(to_server, mail.TOPICS)
            s.clock.forward(seconds=5)
    subjects = sorted(message["Subject"] for _, message in inbox.messages)
    assert [subject[-1] for subject in subjects] == ["0", "1", "2", "3"]
    assert waiting(s) == []


def test_a_server_that_is_away_for_days(s: Any, to_server: Node, port: int, written: Any) -> None:
    for number in range(5):
        written("rikard", f"message {number}")
    for _ in range(72):
        assert outbox.deliver(to_server, mail.TOPICS) == 0
        s.clock.forward(hours=1)
    assert len(waiting(s)) == 5
    assert {row["error"] for row in waiting(s)} <= {"fault.unreachable", ""}
    inbox = Inbox()
    with listening(inbox, port):
        assert outbox.deliver(to_server, mail.TOPICS) == 5
    assert len(inbox.messages) == 5


def test_one_address_that_is_refused_keeps_no_other_waiting(s: Any, to_server: Node, port: int, written: Any) -> None:
    name = f"p-{new_id()[:8]}"
    s.world.ids[name], _ = account.create(s.node, name=name, display="x", email="refused@example.org", roles=())
    written(name, "to nobody")
    written("rikard", "to somebody")
    inbox = Inbox()
    with listening(inbox, port):
        assert outbox.deliver(to_server, mail.TOPICS) == 1
    assert [row["error"] for row in waiting(s)] == ["fault.input"]


@pytest.mark.parametrize("address", ["x@example.org\r\nBcc: evil@example.org", "ingen adress", "å@exämple.org"])
def test_an_address_that_cannot_be_written(s: Any, to_server: Node, port: int, written: Any, address: str) -> None:
    """It is no way to send elsewhere, and keeps nobody waiting."""
    name = f"p-{new_id()[:8]}"
    s.world.ids[name], _ = account.create(s.node, name=name, display="x", email=address, roles=())
    written(name, "odd")
    written("rikard", "even")
    inbox = Inbox()
    with listening(inbox, port):
        outbox.deliver(to_server, mail.TOPICS)
        s.clock.forward(seconds=10)
        outbox.deliver(to_server, mail.TOPICS)
    assert ["rikard@example.org"] in [recipients for recipients, _ in inbox.messages]
    assert not any("evil@example.org" in recipient for recipients, _ in inbox.messages for recipient in recipients)


def test_a_reason_writes_no_header(s: Any, to_server: Node, port: int, written: Any) -> None:
    inbox = Inbox()
    written("rikard", "A permit was revoked", "Over.\r\n\r\nBcc: evil@example.org\r\n.\r\nMAIL FROM:<x@y>")
    with listening(inbox, port):
        assert outbox.deliver(to_server, mail.TOPICS) == 1
    ((recipients, message),) = inbox.messages
    assert recipients == ["rikard@example.org"]
    assert message["Bcc"] is None


def test_somebody_who_is_gone_gets_nothing(s: Any, to_server: Node, written: Any) -> None:
    name = f"p-{new_id()[:8]}"
    s.world.ids[name], _ = account.create(s.node, name=name, display="x", email="gone@example.org", roles=())
    written(name, "x")
    with s.node.records.writing() as unit:
        unit.update("account", {"id": s.world.ids[name]}, {"erased": s.clock()})
    assert outbox.deliver(to_server, mail.TOPICS) == 1
    assert waiting(s) == []


def test_a_server_that_nobody_vouches_for_gets_no_mail(s: Any, port: int, written: Any, tmp_path: Path) -> None:
    """With STARTTLS the server's certificate is looked at."""
    context = certificate(tmp_path)
    node = configured(s, Mail(host="127.0.0.1", port=port, starttls=True, sender="valv@example.org"))
    inbox = Inbox()
    written("rikard", "x")
    with listening(inbox, port, tls_context=context, require_starttls=True):
        assert outbox.deliver(node, mail.TOPICS) == 0
    assert inbox.messages == []
    assert [row["error"] for row in waiting(s)] == ["fault.unreachable"]


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's context with a certificate that it signed itself."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.pem").write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


# --- without a server ---


def test_messages_become_files(s: Any, written: Any, tmp_path: Path) -> None:
    """Each its own file, also at the same moment by a clock that stands still."""
    node = configured(s, Mail(folder=str(tmp_path / "mail")))
    for number in range(20):
        written("rikard", f"message {number}")
    assert outbox.deliver(node, mail.TOPICS) == 20
    files = sorted((tmp_path / "mail").iterdir())
    subjects = {
        email.message_from_bytes(path.read_bytes(), policy=email.policy.default)["Subject"].split()[-1]
        for path in files
    }
    assert subjects == {str(number) for number in range(20)}


def test_a_folder_that_cannot_be_written(s: Any, written: Any, tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("a file in its place")
    node = configured(s, Mail(folder=str(tmp_path / "mail")))
    written("rikard", "x")
    assert outbox.deliver(node, mail.TOPICS) == 0
    assert [row["error"] for row in waiting(s)] == ["fault.storage"]
    (tmp_path / "mail").unlink()
    s.clock.forward(seconds=10)
    assert outbox.deliver(node, mail.TOPICS) == 1
    assert len(list((tmp_path / "mail").iterdir())) == 1
