"""A measurement that is one Python function of the user's. Pure: who calls it is an argument."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from acq_isl.rules.actions import FUNCTION
from acq_isl.rules.measurements import Measurement
from acq_isl.rules.units import Unit, unit_named
from acq_isl.stack import Prediction


class PythonFunction(Measurement):
    """What a function of yours returns for a `Prediction`: a number, or a number and its doubt (one SD).

    It is looked for beside the experiment file, then among installed packages, and runs in a process of its
    own. If it raises, takes longer than ``limit_s`` or returns no number, that is told, and nothing measured.
    """

    kind: Literal["python"] = "python"
    unit = Unit("number")
    function: str = Field(pattern=FUNCTION)
    """``package.module:name``."""
    in_unit: str = Field(alias="unit", min_length=1)
    """Unit of what it returns, such as ``objects`` or ``um2``."""
    label: str = ""
    """A label that it looks at; needed only where a run has several models."""
    limit_s: float = Field(default=5.0, gt=0, le=60)
    """How long it may take, in seconds; after that it is ended, and not called again in this run."""

    @property
    def measured_in(self) -> Unit:
        return unit_named(self.in_unit)

    @property
    def title(self) -> str:
        return f"{self.function} (predicted)"

    def measure(self, prediction: Prediction) -> tuple[float, float]:
        return np.nan, np.nan  # only a run calls it: see `MeasurementCache`
