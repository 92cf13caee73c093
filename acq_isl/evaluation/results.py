"""What is asked of an evaluation, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from acq_isl.engines.model_file import ModelInfo
from acq_isl.evaluation.gate_test import Condition
from acq_isl.evaluation.scores import PixelScore, SpreadScore
from acq_isl.processing.segmentation import ObjectScore
from acq_isl.stack import Float32Image, Uint16Image

SplitUnit = Literal["field", "well"]
MODEL, FLOOR, CEILING = "model", "floor", "ceiling"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to evaluate.

    Parameters
    ----------
    split_unit : 'field' or 'well'
        What was held out of training as a whole, and so what a row of the table is.
    truth_of : mapping of str to str
        Name of the recorded stain by label of the model, where they cannot be told from the names.
    objects : tuple of str
        Labels whose separate objects are compared; nuclei if empty.
    truth_range : 'model' or 'pairs'
        Which counts stand for 0 and 1: what the model file says, or percentiles of these pairs.
    registration_um : float
        How far stain and transmitted light may be apart; no prediction can agree better than that.
    threads : int, optional
    """

    split_unit: SplitUnit = "field"
    truth_of: Mapping[str, str] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    truth_range: Literal["model", "pairs"] = "model"
    registration_um: float = 1.0
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """How well one way of guessing did on one label of one held-out unit.

    Parameters
    ----------
    unit, label : str
    way : str
        ``model``, ``floor``, ``ceiling``, or ``real NAME``: the stain of another label, taken as a guess.
    fields : int
    pixels : PixelScore
    spread : SpreadScore or None
        Of the model only.
    objects : mapping of IoU to ObjectScore
        Empty for labels without separate objects.
    """

    unit: str
    label: str
    way: str
    fields: int
    pixels: PixelScore
    spread: SpreadScore | None = None
    objects: Mapping[float, ObjectScore] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class ShownField:
    """A field to be looked at: middle plane, and by label the truth, mean and spread, 0 to 1."""

    name: str
    unit: str
    pixel_size_um: float
    transmitted: Uint16Image
    labels: Mapping[str, tuple[Float32Image, Float32Image, Float32Image]]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything an evaluation found."""

    model: ModelInfo
    engine: str
    settings: Settings
    scores: tuple[Score, ...]
    conditions: tuple[Condition, ...]
    truths: Mapping[str, str]
    """How the recorded counts were scaled, by label, for people."""
    shown: tuple[ShownField, ...]
    refused: tuple[tuple[str, str], ...]
    """Fields that could not be scored, with the reason."""
    leaks: tuple[str, ...]
    """What is known of these fields having been trained on."""
    warnings: tuple[str, ...]
    seconds: float

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(score.unit for score in self.scores))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(score.label for score in self.scores))

    @property
    def fields(self) -> int:
        """Fields that were scored."""
        first = {s.unit: s.fields for s in self.scores if s.way == MODEL}
        return sum(first.values())
