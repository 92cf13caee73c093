"""What a session works with, and what it knows of each field."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from acq_isl.commands import Orders, no_orders
from acq_isl.events import Tell
from acq_isl.protocols import Microscope, PredictionSource
from acq_isl.rules.label_names import Labels, Standing, joined, standing, together
from acq_isl.rules.rules import Choice, Decision
from acq_isl.stack import Outcome, Prediction, Refusal, StackRequest, Unpredicted
from acq_isl.storage.decision_log import Ledger


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
    labels : Labels
        Which model predicts what.
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
    labels: Labels = field(default_factory=Labels)


@dataclass(slots=True)
class Field:
    """What is known so far of one overview field; owned by the session.

    Parameters
    ----------
    request : StackRequest
    models : tuple of str
        Who is asked about it, by name; their answers are told in this order, whichever comes first.
    answers : dict of str to Outcome
        What each model said, by the name it was asked by, with labels called as in the run. The images of a
        prediction are reduced, for display: a run of a thousand fields must fit into memory.
    choice : Choice or None
    """

    request: StackRequest
    models: tuple[str, ...] = ("",)
    answers: dict[str, Outcome] = field(default_factory=dict)
    choice: Choice | None = None

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What models have said until now."""
        return tuple(self.answers[model] for model in self.models if model in self.answers)

    @property
    def outcome(self) -> Outcome | None:
        """What all models have said until now, as one; None before any has."""
        return joined(self.outcomes)

    @property
    def standing(self) -> Standing | None:
        """What became of the stack; None until every model has answered."""
        return together([standing(one) for one in self.outcomes], len(self.models))

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        return tuple(one for one in self.outcomes if isinstance(one, Prediction))

    @property
    def without(self) -> tuple[Refusal | Unpredicted, ...]:
        """What models said that did not predict it."""
        return tuple(one for one in self.outcomes if not isinstance(one, Prediction))
