"""What is asked of an evaluation, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from acq_isl.engines.model_file import ModelInfo
from acq_isl.evaluation.gate_test import PerturbationScore
from acq_isl.evaluation.scores import PixelScore, StdScore, add_objects
from acq_isl.processing.segmentation import ObjectScore
from acq_isl.stack import Float32Image, Uint16Image
from acq_isl.training.data.pairs import Checks

SplitUnit = Literal["field", "well"]
MODEL, FLOOR, CEILING = "model", "floor", "ceiling"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to evaluate.

    ``split_unit`` is what was held out of training as a whole, and so what a row of the table is.
    ``truth_of`` names recorded stains by label where names do not tell; ``objects`` are labels whose
    separate objects are compared, nuclei if empty. ``truth_range`` says which counts stand for 0 and 1:
    those of the model file, or percentiles of these pairs. ``registration_um`` is how far stain and
    transmitted light may be apart; ``checks.register_labels`` moves stains to where the structure is.
    ``perturb``: stacks that do not fit are tried too, which takes most of the time.
    ``views``: over how many views predictions are averaged.
    """

    split_unit: SplitUnit = "field"
    truth_of: Mapping[str, str] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    truth_range: Literal["model", "pairs"] = "model"
    registration_um: float = 1.0
    threads: int | None = None
    checks: Checks = field(default_factory=Checks)
    perturb: bool = True
    views: int = 1


@dataclass(frozen=True, slots=True)
class Score:
    """How well one way of guessing did on one label of one held-out unit; fields of a unit are added. A way
    is ``model``, ``floor``, ``ceiling``, or ``real NAME``: the stain of another label, taken as a guess.
    ``std`` is of the model only, ``objects``, by IoU, of labels with separate objects. ``blocks`` are of the
    squares of its fields; ``counted`` are name, objects counted, one SD of it, and true ones, of each
    field."""

    unit: str
    label: str
    way: str
    pixels: PixelScore
    std: StdScore | None = None
    objects: Mapping[float, ObjectScore] = field(default_factory=dict)
    fields: int = 1
    blocks: tuple[PixelScore, ...] = ()
    counted: tuple[tuple[str, float, float, float], ...] = ()

    def __add__(self, other: Score) -> Score:
        return replace(
            self,
            pixels=self.pixels + other.pixels,
            std=None if self.std is None or other.std is None else self.std + other.std,
            objects={iou: add_objects([one, other.objects[iou]]) for iou, one in self.objects.items()},
            fields=self.fields + other.fields,
            blocks=self.blocks + other.blocks,
            counted=self.counted + other.counted,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ShownField:
    """A field to be looked at: middle plane, and by label the truth, mean and SD, 0 to 1."""

    name: str
    unit: str
    pixel_size_um: float
    transmitted: Uint16Image
    labels: Mapping[str, tuple[Float32Image, Float32Image, Float32Image]]


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything an evaluation found. ``truths`` says how counts were scaled, by label, for people;
    ``refused`` which fields could not be scored, and why; ``leaks`` what is known of these fields having been
    trained on."""

    model: ModelInfo
    engine: str
    settings: Settings
    scores: tuple[Score, ...]
    perturbations: tuple[PerturbationScore, ...]
    truths: Mapping[str, str]
    shown: tuple[ShownField, ...]
    refused: tuple[tuple[str, str], ...]
    leaks: tuple[str, ...]
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
        return sum({score.unit: score.fields for score in self.scores if score.way == MODEL}.values())
