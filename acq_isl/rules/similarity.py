"""Measurements of how well a stack suits its model: how new it looks, how far out of focus it is. Pure."""

from __future__ import annotations

from typing import Literal

import numpy as np

from acq_isl.rules.measurements import Measurement
from acq_isl.rules.units import MARGIN, NOVELTY, OFFSET
from acq_isl.stack import Prediction


class _GateMeasurement(Measurement):
    """What a model's gate makes of a stack."""

    label: str = ""
    """A label of the model whose gate is asked, where a run has several models."""
    distance: str | None = None
    """Which of the gate's distances, such as ``features``. Default: the one nearest to its limit."""

    def share(self, prediction: Prediction) -> float:
        """Distance as a share of its limit; NaN without a gate."""
        shares = [
            each.value / each.limit
            for each in prediction.distances
            if each.limit > 0 and self.distance in (None, each.name)
        ]
        return max(shares, default=np.nan)

    @property
    def _which(self) -> str:
        return f", {self.distance}" if self.distance else ""


class Novelty(_GateMeasurement):
    """How unlike the training set a stack looks: the largest distance of the gate, as a share of its limit.

    Above 1 a stack is refused. Unknown for a model without a gate.
    """

    unit = NOVELTY
    kind: Literal["novelty"] = "novelty"

    @property
    def title(self) -> str:
        return f"novelty of the stack (gate distance{self._which})"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        return self.share(prediction), np.nan


class Quality(_GateMeasurement):
    """How far a stack stays below the limits of the model's gate: 1 as in training, 0 at the limit."""

    unit = MARGIN
    kind: Literal["quality"] = "quality"

    @property
    def title(self) -> str:
        return f"quality of the stack (gate margin{self._which})"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        return 1 - self.share(prediction), np.nan


class FocusOffset(Measurement):
    """How far above the middle of a stack its sharpest plane lies, in micrometres of stage travel.

    Unknown where the engine has not measured it, as for a stack of fewer than three planes.
    """

    unit = OFFSET
    kind: Literal["focus_offset"] = "focus_offset"
    label: str = ""
    """A label of the model that is asked, where a run has several models."""

    @property
    def title(self) -> str:
        return "focus offset of the stack"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        known = prediction.focus_offset_um
        return np.nan if known is None else known, np.nan
