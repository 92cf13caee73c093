"""How far predictions are trusted in a run: spot checks against the stain, and fields left to chance."""

from __future__ import annotations

from pydantic import Field, model_validator

from acq_isl.base import StrictModel


class Bar(StrictModel):
    """What a predicted label must reach against its stain; give one of the two, or both."""

    r: float | None = Field(default=None, ge=-1, le=1)
    """Correlation of all pixels, mean of the last checks."""
    f1: float | None = Field(default=None, ge=0, le=1)
    """Separate objects that agree, of the last checks together."""

    @model_validator(mode="after")
    def _any(self) -> Bar:
        if self.r is None and self.f1 is None:
            raise ValueError("give r, f1, or both: without a bar nobody can fall below it")
        return self


class SpotChecks(StrictModel):
    """A random share of the overview fields is also imaged in fluorescence, and predictions held against it.

    A label that falls below the bar is only proposed from then on: nothing is chosen or done by it.
    """

    share: float = Field(gt=0, le=1)
    """Probability of each overview field, at each time point, to be checked."""
    at_least: Bar
    """Below it a label is only proposed."""
    truth: dict[str, str] = Field(default_factory=dict)
    """Which fluorescence preset shows which label; default: `truth` of the experiment."""
    exposure_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Default: that of the same preset in `revisit`."""
    z_offsets_um: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """Planes relative to the middle of the overview stack, in micrometres."""
    group: str = Field(default="Channel", min_length=1)
    """Micro-Manager configuration group of the presets."""
    least: int = Field(default=3, ge=1)
    """Checks before anything is said of a label."""
    over: int = Field(default=8, ge=1)
    """How many of the last checks are looked at together."""
    seed: int = 0
    """Of the draw: the same seed draws the same fields."""

    @model_validator(mode="after")
    def _enough(self) -> SpotChecks:
        if self.over < self.least:
            raise ValueError(f"least {self.least} is more than over {self.over}, so nothing would be judged")
        return self


class BiasGuard(StrictModel):
    """A random share of the fields is revisited whatever the rules say, so that means over all are known."""

    share: float = Field(gt=0, le=1)
    """Probability of each overview field, at each time point, to be revisited."""
    seed: int = 0
    """Of the draw: the same seed draws the same fields."""
