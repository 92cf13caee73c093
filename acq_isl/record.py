"""What a run leaves behind, in memory: written by the session, read by the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.processing.statistics import Amplitude
from acq_isl.rules.measurements import Measured
from acq_isl.rules.series import Curve
from acq_isl.scorecard import Scorecard
from acq_isl.stack import Float32Image, Outcome, Refusal, StackInfo, Uint16Image, Unpredicted

__all__ = ["Comparison", "Counts", "FieldRecord", "Measured", "RunRecord", "StageLatency"]


@dataclass(frozen=True, slots=True, eq=False)
class FieldRecord:
    """One overview field: the picture, what came of it, and why it was chosen or not."""

    info: StackInfo
    thumbnail: NDArray[np.uint8]
    """Sharpest transmitted-light plane, (y, x), reduced and stretched for display."""
    outcome: Outcome
    """The images of a `Prediction` are reduced, for display; the store has them in full."""
    measured: Measured | None = None
    """The measurement that fields are ranked by."""
    rank: int | None = None
    """1 is best; None without a prediction."""
    chosen: bool = False
    reason: str = ""
    """Why it was chosen or not, for people."""
    without: tuple[Refusal | Unpredicted, ...] = ()
    """Of several models those that did not predict it, each with its reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """A predicted label beside the fluorescence measured afterwards on the same field."""

    info: StackInfo
    """The overview stack."""
    label: str
    channel: str
    """The fluorescence channel that shows the same structure."""
    predicted: Float32Image
    measured: Uint16Image
    pearson: float
    """Correlation over all pixels; NaN if either image is constant."""
    f1: float = float("nan")
    """Separate objects in both images, matched where they overlap by half (intersection over union); NaN
    without any."""
    found: int = 0
    """Objects predicted."""
    true: int = 0
    """Objects in the stain."""
    floor: float = float("nan")
    """As ``pearson``, of the contrast of transmitted light alone (log z-variance), which is no prediction."""
    ceiling: float = float("nan")
    """As ``pearson``, of the stain exposed again: its noise drawn anew, displaced by 1 um."""
    amplitude: Amplitude = field(default_factory=Amplitude)
    """How bright the prediction is beside the stain, this from its 1st to its 99.8th percentile."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Every captured slice once, by what became of it.

    Law: ``captured == sum + open``, and ``open`` is 0 once everything has ended. Of several models all must
    predict a stack for its slices to count as predicted; if one of them is late, the stack is on disk for it
    and counts as spooled, whatever the others did.
    """

    requested: int = 0
    captured: int = 0
    predicted: int = 0
    refused: int = 0
    spooled: int = 0
    not_for_prediction: int = 0
    """Not wanted: measured only, a second image of a slice, after the end of its stack; see ``reasons``."""
    lost: int = 0
    reasons: tuple[tuple[str, str, int], ...] = ()
    """What became of slices (as in `__str__`), why, and of how many; not all need a reason."""

    @property
    def sum(self) -> int:
        """Slices of which it is known what became of them."""
        return self.predicted + self.refused + self.spooled + self.not_for_prediction + self.lost

    @property
    def open(self) -> int:
        """Slices on their way; when all has ended, those that were forgotten, or counted twice if below 0."""
        return self.captured - self.sum

    def __str__(self) -> str:
        names = ("predicted", "refused", "spooled", "not wanted", "lost", "on their way")
        numbers = (self.predicted, self.refused, self.spooled, self.not_for_prediction, self.lost, self.open)
        parts = []
        for name, number in zip(names, numbers, strict=True):
            why = ", ".join(f"{n} {text}" for fate, text, n in self.reasons if fate == name)
            parts += [f"{number} {name}" + (f" ({why})" if why else "")] * (number != 0)
        return f"{self.captured} slices captured = {' + '.join(parts) or '0'}"


@dataclass(frozen=True, slots=True)
class StageLatency:
    """Latency of one stage over all predicted stacks, in milliseconds."""

    stage: str
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True, eq=False)
class RunRecord:
    """Everything the report shows."""

    name: str
    """Of the experiment."""
    started: str
    """ISO 8601 local time with offset."""
    duration_s: float
    scope: str
    """Such as ``simulated microscope, recorded specimen``."""
    model: str
    """Name, version and first digits of the hash, of each; empty without an engine."""
    model_colors: dict[str, str] = field(default_factory=dict)
    """``#rrggbb`` by label."""
    engine: str = ""
    fields: tuple[FieldRecord, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    decisions: tuple[dict[str, Any], ...] = ()
    """Lines of ``decisions.jsonl``."""
    counts: Counts = Counts()
    latencies: tuple[StageLatency, ...] = ()
    """In the order expose, transfer, wait, infer, decode, turn, decide."""
    response: StageLatency | None = None
    """From the last slice of a field to its decision, all stages together, by one clock."""
    shortfall: str = ""
    """What was not predicted although the experiment requires it; empty if nothing is missing."""
    light: tuple[str, ...] = ()
    """Light that was spent and avoided, one sentence for each preset beside the overview's."""
    versions: dict[str, str] = field(default_factory=dict)
    """By package."""
    files: dict[str, str] = field(default_factory=dict)
    """Path relative to the run folder, by what is there."""
    warnings: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = ()
    """Measurements over time; none where there was one time point."""
    experiment_yaml: str = ""
    scorecard: Scorecard | None = None
    """None unless the microscope was a simulated one, which knows the truth."""
    label_models: dict[str, str] = field(default_factory=dict)
    """Model of each label; empty if there is one model only."""
