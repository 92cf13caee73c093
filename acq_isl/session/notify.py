"""Telling somebody outside of a run: webhooks and e-mail to listed receivers, on a thread of its own."""

from __future__ import annotations

import json
import logging
import queue
import smtplib
import threading
import urllib.request
from collections.abc import Callable
from email.message import EmailMessage
from typing import Any, Self

from acq_isl.rules.actions import Message, NotifyLimits, check_message

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_WAITING = 32


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A listed host may not pass a message on to one that is not."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Notifier:
    """Sends messages one after the other; the run never waits. ``warn`` gets what could not be sent."""

    def __init__(self, limits: NotifyLimits, warn: Callable[[str], None]) -> None:
        self._limits, self._warn = limits, warn
        self._messages: queue.Queue[Message | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="acq-isl notify", daemon=True)
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            try:
                self._messages.put_nowait(None)
            except queue.Full:
                log.warning("messages were not sent: the receivers do not answer")
                return
            self._thread.join(2 * _TIMEOUT_S)

    def send(self, message: Message) -> str:
        """Log a message and send it to whom it names; ActionRefused if somebody is not listed."""
        check_message(message, self._limits)
        log.warning("%s", message.text)
        if not (message.webhook or message.email):
            return "done"
        if not self._thread.is_alive():
            self._thread.start()
        try:
            self._messages.put_nowait(message)
        except queue.Full:
            return f"not sent: {_WAITING} messages wait already"
        return "on its way"

    def _run(self) -> None:
        while (message := self._messages.get()) is not None:
            for send in (self._post, self._mail):
                try:
                    send(message)
                except Exception as error:  # whatever the network and its servers come up with
                    log.info("a message was not sent", exc_info=True)
                    self._warn(f"a message was not sent ({type(error).__name__}: {error}): {message.text}")

    def _post(self, message: Message) -> None:
        if not message.webhook:
            return
        body = json.dumps({"text": message.text}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(message.webhook, body, headers, method="POST")
        self._opener.open(request, timeout=_TIMEOUT_S).close()

    def _mail(self, message: Message) -> None:
        if not message.email:
            return
        mail = EmailMessage()
        mail["Subject"], mail["From"] = message.text.splitlines()[0][:120], self._limits.sender
        mail["To"] = ", ".join(message.email)
        mail.set_content(message.text)
        host, _, port = self._limits.smtp.partition(":")
        with smtplib.SMTP(host, int(port or 25), timeout=_TIMEOUT_S) as server:
            server.send_message(mail)
