"""Steps of the kit: each says what it found, and none takes another one with it.

They run one after the other in a process of their own, which is ended and started anew when a step takes too
long or brings it down: drivers hang, and runtimes crash.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Literal

from acq_isl.cli.gpu_kit.card import Card, NeedsCard
from acq_isl.errors import AcqIslError

_KILLED_S = 10.0

Verdict = Literal["passed", "failed", "not applicable", "needs a card", "not reached"]
Fact = tuple[str, str | float]
Note = Callable[[str, str | float], None]


class NotApplicable(Exception):
    """There is nothing to look at here, and why."""


class Wrong(Exception):
    """What a step looked at is not as it has to be: what was found."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to look at. ``do`` notes numbers, returns a sentence, and can be sent to another process."""

    group: str
    title: str
    meaning: str  # what it stands for, and what it means if it fails
    do: Callable[[Card, Note], str]
    limit_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """What came of a step."""

    group: str
    title: str
    meaning: str
    verdict: Verdict
    found: str
    facts: tuple[Fact, ...] = ()  # what was noted, also before it failed or a card was needed
    took_s: float = 0.0


def take(step: Step, card: Card) -> Row:
    """Do a step here and now; whatever it raises becomes a row."""
    facts: list[Fact] = []
    began_s = time.perf_counter()

    def note(name: str, value: str | float) -> None:
        facts.append((name, value))

    verdict, found = _try(step, card, note)
    took_s = round(time.perf_counter() - began_s, 3)
    return Row(step.group, step.title, step.meaning, verdict, found, tuple(facts), took_s)


def _try(step: Step, card: Card, note: Note) -> tuple[Verdict, str]:
    try:
        return "passed", step.do(card, note)
    except NotApplicable as reason:
        return "not applicable", str(reason)
    except NeedsCard as reason:
        return "needs a card", reason.what
    except Wrong as reason:
        return "failed", str(reason)
    except AcqIslError as error:
        return "failed", str(error)
    except Exception as error:  # noqa: BLE001  whatever a vendor's runtime raises
        return "failed", f"{type(error).__name__}: {error}"


def unreached(step: Step, why: str) -> Row:
    """The row of a step that was not begun."""
    return Row(step.group, step.title, step.meaning, "not reached", why)


def take_all(steps: Sequence[Step], card: Card, until_s: float) -> Iterator[Row]:
    """Do all steps, each in a child within its limit; after ``until_s`` (monotonic) none is begun."""
    child: ProcessPoolExecutor | None = None
    try:
        for step in steps:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                yield unreached(step, "no time was left: give it more --minutes")
                continue
            child = child or ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            row = _take_in(child, step, card, min(step.limit_s, left_s))
            if row.verdict == "failed":  # a GPU in error answers nothing more to the process that met it
                _end(child)
                child = None
            yield row
    finally:
        if child is not None:
            _end(child)


def _take_in(child: ProcessPoolExecutor, step: Step, card: Card, limit_s: float) -> Row:
    began_s = time.perf_counter()
    try:
        return child.submit(take, step, card).result(limit_s)
    except TooLate:
        found = f"it did not end within {limit_s:.0f} s, and was ended"
    except BrokenProcessPool:
        found = "it brought its process down"
    took_s = round(time.perf_counter() - began_s, 3)
    return Row(step.group, step.title, step.meaning, "failed", found, (), took_s)


def _end(child: ProcessPoolExecutor) -> None:
    """End a child whatever it is doing."""
    processes = list((child._processes or {}).values())  # the only way to those that hang
    child.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
        process.join(_KILLED_S)  # one that is stuck in a driver does not even end when it is killed
