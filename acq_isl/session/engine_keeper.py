"""Starts the engine's process again when it has ended in the middle of a run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from acq_isl.errors import AcqIslError

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 3.0, 10.0)
"""Before each new start; after so many nobody tries any more, and stacks wait on disk."""
RECOVERED_S = 300.0
"""An engine that has served for so long may be started as often again."""
_LOOK_S = 0.25


class Restartable(Protocol):
    """The process of an engine."""

    @property
    def ended_with(self) -> int | None:
        """Its exit code; None while it runs."""

    def restart(self) -> None:
        """Start it again at the same address; EngineError if it does not serve, or is stopped meanwhile."""

    def stop(self) -> None:
        """End it for good; any thread."""


class EngineKeeper:
    """Watches the process of an engine on a thread of its own; use it inside the process's own ``with``.

    Its end is the process's end, so that nobody waits for an engine that is just being started. ``tell``
    gets what is done, why, and what became of it, in words, on that thread.
    """

    def __init__(
        self,
        process: Restartable,
        tell: Callable[[str, str, str], None],
        pauses_s: Sequence[float] = PAUSES_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process, self._tell, self._pauses_s, self._monotonic = process, tell, pauses_s, monotonic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="acq-isl engine keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._process.stop()
        self._thread.join()

    def _watch(self) -> None:
        starts, served_since_s = 0, self._monotonic()
        while not self._stopping.wait(_LOOK_S):
            code = self._process.ended_with
            if code is None:
                continue
            if self._monotonic() - served_since_s > RECOVERED_S:
                starts = 0
            why = f"its process ended with code {code} in the middle of the run"
            if starts == len(self._pauses_s):
                self._note("leave the engine alone", why, "stacks wait; 'acq-isl recover RUN' predicts them")
                return
            if self._stopping.wait(self._pauses_s[starts]):
                return
            starts += 1
            self._note(f"start the engine again, {starts} of {len(self._pauses_s)}", why, self._restart())
            served_since_s = self._monotonic()

    def _restart(self) -> str:
        began_s = self._monotonic()
        try:
            self._process.restart()
        except AcqIslError as error:
            return f"failed: {error}"
        return f"done: it serves after {self._monotonic() - began_s:.1f} s"

    def _note(self, what: str, why: str, done: str) -> None:
        log.warning("the engine: %s (%s): %s", what, why, done)
        try:
            self._tell(what, why, done)
        except AcqIslError as error:
            log.warning("this could not be written down: %s", error)
