"""Signals end an acquisition as Ctrl-C does: told at once, wound up once, exit code as shells expect it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

log = logging.getLogger(__name__)

_SIGNALS = {
    name: getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
}
_WORDS = {"SIGINT": "Ctrl-C", "SIGHUP": "SIGHUP (the terminal was closed)"}
_INSIST = 3  # times of Ctrl-C that end even the winding up


class StoppedBySignal(KeyboardInterrupt):
    """The program was asked to end: by Ctrl-C, SIGTERM, SIGHUP or, on Windows, a closed console."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"stopped by {_WORDS.get(name, name)}")
        self.exit_code = 128 + number


def _ignore(why: str) -> None:
    """Nobody wants to know."""


class StopSignals:
    """While entered, the first signal raises `StoppedBySignal` in the main thread; later ones are only told.

    `tell` gets the reason in words, at once and on a thread of its own, though the main thread may be in a
    call that does not return. Signals that somebody else handles or ignores, as nohup does, stay theirs.
    """

    def __init__(self) -> None:
        self.tell: Callable[[str], None] = _ignore
        self._before: dict[int, Any] = {}
        self._raised = False
        self._pressed = 0

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # signals are the main thread's
        defaults = (signal.SIG_DFL, signal.default_int_handler)
        ours = [number for number in _SIGNALS.values() if signal.getsignal(number) in defaults]
        if not ours:
            return self
        self._terminals = [number for number in (0, 1, 2) if _is_terminal(number)]
        self._sender, receiver = socket.socketpair()
        self._sender.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        self._watching = threading.Thread(
            target=self._watch, args=(receiver,), name="acq-isl signals", daemon=True
        )
        self._watching.start()
        self._before = {number: signal.signal(number, self._handle) for number in ours}
        return self

    def __exit__(self, *_: object) -> None:
        if not self._before:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        signal.set_wakeup_fd(self._wakeup)
        self._sender.close()
        self._watching.join(1.0)

    def hold(self) -> None:
        """The winding up has begun: nothing is raised into it, unless Ctrl-C is pressed three times."""
        self._raised = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._leave_terminal()
        self._pressed += number == signal.SIGINT
        if not self._raised or self._pressed >= _INSIST:
            self._raised = True
            raise StoppedBySignal(number)

    def _watch(self, receiver: socket.socket) -> None:
        """Tell of each signal; on a thread of its own."""
        told = False
        with receiver:
            while numbers := receiver.recv(64):
                for number in numbers:
                    if number not in _SIGNALS.values():
                        continue
                    self._leave_terminal()
                    if told:
                        log.warning("stopping already; Ctrl-C %d times gives up what is not written", _INSIST)
                        continue
                    told, why = True, str(StoppedBySignal(number))
                    log.warning("%s: closing the shutter, then writing what there is", why)
                    self.tell(why)

    def _leave_terminal(self) -> None:
        """Write nowhere rather than to a terminal that is gone, where every word is an error."""
        for number in self._terminals:
            if not _is_terminal(number):
                nowhere = os.open(os.devnull, os.O_RDWR)
                os.dup2(nowhere, number)
                os.close(nowhere)
        self._terminals = [number for number in self._terminals if _is_terminal(number)]


def _is_terminal(number: int) -> bool:
    try:
        return os.isatty(number)
    except OSError:
        return False
