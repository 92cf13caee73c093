"""A user's function, called so that whoever needs its answer waits for a while, not for ever."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from acq_isl.errors import AcquisitionFailed

Result = TypeVar("Result")
_Outcome = tuple[bool, Any]  # whether it returned, and what it returned or raised
_Call = tuple[Any, queue.SimpleQueue[_Outcome]]


class Callback(Generic[Result]):
    """Calls a function on a (daemon) thread of its own, always the same one.

    Raises what the function raises, and AcquisitionFailed if it has not returned after ``limit_s``, wants to
    end the process, or did not return earlier: then it is not called again. ``what`` names it.
    """

    def __init__(self, function: Callable[..., Result], what: str, limit_s: float) -> None:
        self._function, self._what, self._limit_s = function, what, limit_s
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn = threading.Lock()
        self._stuck = False
        weakref.finalize(self, self._calls.put, None)

    def __call__(self, *arguments: Any) -> Result:
        with self._turn:
            if self._stuck:
                raise AcquisitionFailed(f"{self._what} did not end before, and is not called again")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=_serve,
                    args=(self._function, self._calls),
                    name=f"acq-isl {self._what}",
                    daemon=True,
                )
                self._thread.start()
            answer: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
            self._calls.put((arguments, answer))
            try:
                returned, result = answer.get(timeout=self._limit_s)
            except queue.Empty:
                self._stuck = True
                raise AcquisitionFailed(
                    f"{self._what} did not end",
                    wanted=f"within {self._limit_s:g} s",
                    fix="check the device or function it waits for; it is not called again",
                ) from None
        if returned:
            answered: Result = result
            return answered
        if isinstance(result, Exception):
            raise result
        raise AcquisitionFailed(
            f"{self._what} raised {type(result).__name__}", got=str(result), fix="let it return instead"
        ) from result

    def close(self) -> None:
        """End the thread, if its function has returned; the next call begins another."""
        thread, self._thread = self._thread, None
        if thread is not None and not self._stuck:
            self._calls.put(None)
            thread.join(1.0)


def _serve(function: Callable[..., Any], calls: queue.SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        arguments, answer = call
        try:
            answer.put((True, function(*arguments)))
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            answer.put((False, error))
        del call, arguments, answer
