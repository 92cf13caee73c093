"""The one place where slices are counted: once when captured, once more when known what became of them."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal, Protocol, runtime_checkable

from acq_isl.record import Counts
from acq_isl.stack import Slice

Fate = Literal["predicted", "refused", "spooled", "not wanted", "lost"]

SECOND_IMAGE = "second image of the slice"
AFTER_DRAIN = "came after drain"
INTERRUPTED = "its stack was interrupted and imaged again"
CUT_OFF = "its stack failed and was left out"


class SliceAccounts:
    """Slices that somebody answers for, by what became of them. Any thread may call any method.

    Reasons are of a few kinds, without names or numbers.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured = 0
        self._ended: Counter[tuple[Fate, str]] = Counter()

    def capture(self) -> None:
        """A slice is here; from now on it is open."""
        with self._lock:
            self._captured += 1

    def hand_on(self) -> None:
        """Somebody else has a slice now and answers for it."""
        with self._lock:
            self._captured -= 1

    def end(self, fate: Fate, why: str = "", slices: int = 1) -> None:
        """Slices are open no longer."""
        with self._lock:
            self._ended[fate, why] += slices

    @property
    def counts(self) -> Counts:
        with self._lock:
            captured, ended = self._captured, +self._ended
        by_fate: Counter[Fate] = Counter()
        for (fate, _), slices in ended.items():
            by_fate[fate] += slices
        return Counts(
            captured=captured,
            predicted=by_fate["predicted"],
            refused=by_fate["refused"],
            spooled=by_fate["spooled"],
            not_for_prediction=by_fate["not wanted"],
            lost=by_fate["lost"],
            reasons=tuple(sorted((fate, why, slices) for (fate, why), slices in ended.items() if why)),
        )


@runtime_checkable
class AccountingSink(Protocol):
    """A `SliceSink` that answers for each slice it was given; who gives them shares its accounts."""

    @property
    def accounts(self) -> SliceAccounts: ...

    def put(self, slice_: Slice) -> None: ...
