"""Mail to people: through the node's SMTP server, or into a folder where there is none."""

from __future__ import annotations

import smtplib
import ssl
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any

from valv.app.node import Node, new_id
from valv.app.operation import performs
from valv.errors import InputFault, StorageFault, UnreachableFault

SECONDS = 20


@performs("node.operate")
def send(node: Node, body: dict[str, Any]) -> None:
    """Deliver one message of the outbox. Raises a fault where it must be tried again."""
    settings = node.config.mail
    with node.records.reading() as unit:
        rows = unit.rows("account", {"id": body["account"], "erased": None})
    if not rows or not rows[0]["email"]:
        return
    message = EmailMessage()
    message["From"] = settings.sender
    message["To"] = rows[0]["email"]
    message["Subject"] = f"[{node.config.node.title}] {body['subject']}"
    message.set_content(f"Dear {rows[0]['display']},\n\n{body['body']}\n\n{node.config.public_url}\n")
    if settings.host:
        _smtp(node, message)
    else:
        _folder(node, message, body)


def _smtp(node: Node, message: EmailMessage) -> None:
    settings = node.config.mail
    try:
        with smtplib.SMTP(settings.host, settings.port, timeout=SECONDS) as server:
            if settings.starttls:
                server.starttls(context=ssl.create_default_context())
            server.send_message(message)
    except smtplib.SMTPDataError as error:
        raise InputFault(f"the mail server did not take this message (status {error.smtp_code})") from None
    except smtplib.SMTPRecipientsRefused:
        raise InputFault("the mail server did not take a message for this address") from None
    except (OSError, smtplib.SMTPException) as error:
        raise UnreachableFault(f"the mail server did not take a message ({type(error).__name__})") from None


def _folder(node: Node, message: EmailMessage, body: dict[str, Any]) -> None:
    folder = node.config.path(node.config.mail.folder)
    name = f"{node.clock():%Y%m%dT%H%M%S%f}-{str(body['account'])[:8]}-{new_id()[:8]}.eml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(message.as_bytes())
    except OSError as error:
        raise StorageFault(f"a message could not be kept: {error.strerror}") from error


TOPICS: dict[str, Callable[[Node, dict[str, Any]], None]] = {"mail": send}
