"""What a session works with, and what it knows of each field."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from acq_isl.ledger import Ledger
from acq_isl.news import Tell
from acq_isl.orders import Orders, no_orders
from acq_isl.protocols import Microscope, PredictionSource
from acq_isl.rules import Choice, Decision
from acq_isl.stack import Outcome, Prediction, StackRequest


class PredictionStore(Protocol):
    """Where predictions are kept."""

    def put(self, prediction: Prediction) -> None:
        """Keep a prediction; StorageError if that is not possible."""


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a session works with; opened and closed by whoever starts it.

    Parameters
    ----------
    microscope : Microscope
    predictions : PredictionSource
    store : PredictionStore
    ledger : Ledger
    call : callable
        Runs a user's function by its name with the decision and the prediction, guarded, and returns
        what became of it in words.
    tell : callable
        Told of everything that happens; must return quickly.
    orders : callable
        What an operator asks for, since it was called last.
    now, sleep : callable
        Monotonic clock in seconds, and how to wait for it.
    """

    microscope: Microscope
    predictions: PredictionSource
    store: PredictionStore
    ledger: Ledger
    call: Callable[[str, Decision, Prediction], str]
    tell: Tell
    orders: Orders = no_orders
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(slots=True)
class Field:
    """What is known so far of one overview field; owned by the session."""

    request: StackRequest
    outcome: Outcome | None = None
    choice: Choice | None = None
