"""What a session works with; opened and closed by whoever starts it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from acq_isl.commands import CommandSource, no_commands
from acq_isl.events import EventHandler
from acq_isl.protocols import Microscope, PredictionSource
from acq_isl.rules import Decision
from acq_isl.rules.actions import Message
from acq_isl.rules.cache import Ask
from acq_isl.rules.label_names import Labels
from acq_isl.rules.pixels import PixelToStage
from acq_isl.stack import Prediction, StackKey
from acq_isl.storage.decision_log import Ledger


class PredictionStore(Protocol):
    """Where predictions are kept."""

    def put(self, prediction: Prediction) -> None:
        """Keep a prediction; StorageError if that is not possible."""


@dataclass(frozen=True, slots=True)
class SessionTools:
    """What a session works with; opened and closed by whoever starts it."""

    microscope: Microscope
    predictions: PredictionSource
    store: PredictionStore
    ledger: Ledger
    call: Callable[[str, Decision, Prediction], str]
    """Runs a user's function by its name, guarded; returns what became of it, in words."""
    emit: EventHandler  # gets the events of the run; must return quickly
    commands: CommandSource = no_commands  # an operator's commands since the last call
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    labels: Labels = dataclasses.field(default_factory=Labels)  # which model predicts what
    notify: Callable[[Message], str] = lambda message: "nobody listens"
    pixel_to_stage: PixelToStage | None = None  # None if nobody has measured it
    fov_um: tuple[float, float] = (1.0, 1.0)  # width and height of the field of view
    discard: Callable[[StackKey, bool], None] = lambda key, again: None
    """Is told of a stack whose slices are not wanted any more, and whether it is imaged again."""
    ask: Ask | None = None  # measures by a user's function, guarded
