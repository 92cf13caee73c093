"""A measurement: how bright the brightest pixel of a predicted label is."""

from __future__ import annotations

from typing import Literal

from acq_isl.rules import Measurement, Unit, inner_planes
from acq_isl.stack import Prediction


class Brightest(Measurement):
    """Brightest pixel of a predicted label, away from the unsure margin."""

    unit = Unit("percent", "% of the bright end", scale=100, digits=0)
    kind: Literal["brightest"] = "brightest"

    @property
    def title(self) -> str:
        return f"brightest pixel of {self.label} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        mean, std = inner_planes(prediction, self.label)
        brightest = mean.argmax()
        return float(mean.flat[brightest]), float(std.flat[brightest])
