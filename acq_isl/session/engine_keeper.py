"""Starts the engine's process again when it has ended in the middle of a run, from the best way down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, Self

from acq_isl.errors import AcqIslError
from acq_isl.stream.process import Rung

log = logging.getLogger(__name__)

PAUSES_S = (1.0, 3.0, 10.0)
"""Before each new start; after so many on the last rung nobody tries any more, and stacks wait on disk."""
RECOVERED_S = 300.0
"""An engine that has served for so long may be started as often again, and a better one is tried again."""
_CLIMB_MOST_S = 3600.0
_LOOK_S = 0.25
_SAME = (Rung("the engine"),)


class Restartable(Protocol):
    """The process of an engine."""

    @property
    def ended_with(self) -> int | None:
        """Its exit code; None while it runs."""

    def restart(self, rung: Rung | None = None) -> None:
        """Start it again at the same address; EngineError if it does not serve, or is stopped meanwhile."""

    def stop(self) -> None:
        """End it for good; any thread."""


class EngineKeeper:
    """Watches the process of an engine on a thread of its own; use it inside the process's own ``with``.

    Its end is the process's end, so that nobody waits for an engine that is just being started. ``tell``
    gets what is done, why, and what became of it, in words, on that thread. ``rungs`` are the ways in which
    it may be started, best first: one that ends twice within `RECOVERED_S` makes place for the next. When
    that has served for as long, the best is tried again, and if it fails, after twice as long each time.
    """

    def __init__(
        self,
        process: Restartable,
        tell: Callable[[str, str, str], None],
        pauses_s: Sequence[float] = PAUSES_S,
        monotonic: Callable[[], float] = time.monotonic,
        rungs: Callable[[], Sequence[Rung]] = lambda: _SAME,
    ) -> None:
        self._process, self._tell, self._pauses_s, self._monotonic = process, tell, pauses_s, monotonic
        self._rungs, self._at, self._starts = rungs, 0, 0
        self._climb_s, self._served_since_s = RECOVERED_S, monotonic()
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
        while not self._stopping.wait(_LOOK_S):
            code, served_s = self._process.ended_with, self._monotonic() - self._served_since_s
            if code is None:
                if self._at and served_s > self._climb_s:
                    self._climb(served_s)
            elif not self._start_again(code, served_s):
                return

    def _start_again(self, code: int, served_s: float) -> bool:
        """After the process has ended; False if nobody is to try any more."""
        rungs = self._rungs()
        if served_s > RECOVERED_S:
            self._starts = 0
        why = f"its process ended with code {code} in the middle of the run"
        down = self._starts > 0 and self._at + 1 < len(rungs)
        if self._starts == len(self._pauses_s) and not down:
            self._note("leave the engine alone", why, "stacks wait; 'acq-isl recover RUN' predicts them")
            return False
        if self._stopping.wait(self._pauses_s[min(self._starts, len(self._pauses_s) - 1)]):
            return False
        if down:
            self._at, self._starts = self._at + 1, 1
            what = f"start it with {rungs[self._at].title} from now on"
        else:
            self._starts += 1
            what = f"start the engine again, {self._starts} of {len(self._pauses_s)}"
        self._note(what, why, self._restart(rungs[self._at]))
        return True

    def _climb(self, served_s: float) -> None:
        """Try the best engine again; the present one goes on if that does not serve."""
        rungs = self._rungs()
        why = f"{rungs[self._at].title} has served for {served_s:.0f} s"
        done = self._restart(rungs[0])
        self._climb_s = min(2 * self._climb_s, _CLIMB_MOST_S)
        if self._process.ended_with is None:
            self._at, self._starts = 0, 1
        else:
            done += f"; again with {rungs[self._at].title}: {self._restart(rungs[self._at])}"
        self._note(f"try {rungs[0].title} again", why, done)

    def _restart(self, rung: Rung) -> str:
        began_s = self._monotonic()
        try:
            self._process.restart(rung)
        except AcqIslError as error:
            done = f"failed: {error}"
        else:
            done = f"done: it serves after {self._monotonic() - began_s:.1f} s"
        self._served_since_s = self._monotonic()
        return done

    def _note(self, what: str, why: str, done: str) -> None:
        log.warning("the engine: %s (%s): %s", what, why, done)
        try:
            self._tell(what, why, done)
        except AcqIslError as error:
            log.warning("this could not be written down: %s", error)
