"""What a model expects and gives.

The manifest is JSON, kept inside the model file (ONNX ``metadata_props``), so that a bare model file
is enough to run, to check, and to refuse.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, StringConstraints, ValidationError, field_serializer, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ModelError
from acq_isl.stack import Counting, Modality, NetworkLabel, Polarity

MANIFEST_KEY = "acq_isl_manifest"
FORMAT = "acq-isl-model/1"

SLACK = 0.005
"""Stages report what they reached, not what was asked for; a bound that was met on paper stays met."""

NETWORKS = frozenset({
    "axon", "axons", "dendrite", "dendrites", "neurite", "neurites",
    "map2", "nfh", "neurofilament", "tubb3", "tuj1", "tau",
})  # fmt: skip
"""Labels and markers, in small letters, of what is a network and has no objects to be counted."""

Tolerated = Literal["polarity", "half the z range"]
_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
_Pixels = Annotated[int, Field(ge=0, le=8192)]
_Height = Annotated[float, Field(ge=-10_000, le=10_000)]  # um

_MOST_TEXT = 1 << 20
_MOST_COUNTS = 1 << 28  # of the smallest tile
_MOST_SIGMA_PX = 2048


class Label(StrictModel):
    """One predicted structure."""

    name: _Name
    """Bare name, such as ``nuclei``."""
    marker: str
    """The stain the truth of training stands for, such as ``DAPI``."""
    color: str = Field(default="#ffffff", pattern=r"^#[0-9a-fA-F]{6}$")
    """Display hue as ``#rrggbb``, colour-blind safe within one model."""
    structure: str = ""
    """What the stain marks, such as ``dendrites and cell bodies``; empty if the name says it all."""
    specimen: Literal["live", "fixed", "simulated", "unknown"] = "unknown"
    """State of the cells while the truth of training was recorded."""
    projection: str = ""
    """How the truth became one image, such as ``maximum of a confocal stack``."""
    truth_range: tuple[float, float] | None = None
    """Counts of the training truth that stand for 0 and 1, one pair for the whole training set."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.truth_range is not None and self.truth_range[1] <= self.truth_range[0]:
            raise ValueError(f"truth_range must rise: {self.truth_range}")
        return self


class Instrument(StrictModel):
    """What the training stacks were recorded with, as far as it is known. For people and for the record."""

    magnification: float | None = Field(default=None, gt=0)
    """Of the objective."""
    numerical_aperture: float | None = Field(default=None, gt=0)
    """Of the objective."""
    illumination: str = ""
    """Lamp, filter and condenser, such as ``halogen, green filter, condenser NA 0.3``."""
    bit_depth: int | None = Field(default=None, ge=1, le=16)
    """Of the camera's counts."""
    focus_reference: str = ""
    """What lies in focus in the middle of a stack, such as ``cell bodies`` or ``surface of the glass``."""
    z_sign: Literal["into the specimen", "out of the specimen", "unknown"] = "unknown"
    """Where the plane of focus moves as ``z_offsets_um`` rises."""


class Training(StrictModel):
    """Which images a model has seen, so that nobody evaluates it on them by mistake."""

    cell_type: str = ""
    plates: tuple[str, ...] = ()
    wells: tuple[str, ...] = ()
    """Wells any of whose images were used, for training or for choosing a checkpoint."""
    fields: tuple[str, ...] = ()
    """The same for fields of view."""
    split_unit: Literal["well", "field", "block of a field", "none"] = "none"
    """What was held out as a whole while training."""
    data_licence: str = ""


class Evaluation(StrictModel):
    """How well one label did on images that the model had not seen."""

    label: _Name
    dataset: str
    split_unit: Literal["well", "field", "block of a field", "none"]
    n: int = Field(ge=1)
    """Number of held-out units."""
    metrics: dict[str, float]
    """Mean over the units, by name."""


class Looks(StrictModel):
    """How often a set of images was scored while the model was made: what was looked at often flatters."""

    dataset: str
    why: str
    times: int = Field(ge=0)
    last: str
    """Time of the last look, ISO 8601; empty: not known."""


class GateJudgement(StrictModel):
    """How a gate did on stacks that it was not fitted to, under conditions at random strength."""

    judged_on: str
    """For people, such as ``simulated fields of other cultures``."""
    harmful: int = Field(ge=0)
    """Stacks whose condition cost more than .07 mean r."""
    caught: float = Field(ge=0, le=1)
    """Share of these that it refused."""
    harmless: int = Field(ge=0)
    """Stacks whose condition cost less than .02."""
    refused: float = Field(ge=0, le=1)
    """Share of these that it refused."""
    clean_windows: float = Field(ge=0, le=1)
    """Share of windows above the limit in stacks as they should be."""
    correlation: float = Field(ge=-1, le=1)
    """Of estimated and true cost."""


class Gate(StrictModel):
    """How unlike the training set a stack may look before its prediction is refused.

    The graph's output ``distance``, (N, K, h, w), holds K distances in windows of about 128 px, for
    example the Mahalanobis distance of the pooled bottleneck features. The median over the windows of a
    field counts, so that a dust grain refuses nothing.
    """

    names: tuple[_Name, ...] = Field(min_length=1, max_length=64)
    """Of the K distances, for people, such as ``features``."""
    limits: tuple[float, ...] = Field(min_length=1)
    """A stack is refused when the median of any distance lies above its limit.

    ``cost`` among the names is no distance but what predictions on such a stack are estimated to cost, in
    hundredths of the mean correlation with the truth; then the others refuse only what lies further off than
    anything harmless."""
    false_alarms: float = Field(ge=0, le=1)
    """Share of fitting stacks that the limits refused, measured on held-out windows."""
    judged: GateJudgement | None = None
    """Of gates that estimate a cost."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.names) != len(self.limits):
            raise ValueError(f"gate has {len(self.limits)} limits for {len(self.names)} distances")
        return self


class AnyPlanes(StrictModel):
    """Stacks of one plane or more, evenly spaced or not, which are spread evenly over the model's own planes.

    Between two planes of a stack is interpolated; a single plane stands for all.
    """

    most_step_um: float = Field(gt=0, le=1000)
    """Largest distance of neighbouring planes that it was trained for, of the stack and once spread."""


class Manifest(StrictModel):
    """What must be true of a stack, and what comes out.

    The input is one channel, ``planes`` slices in the order of increasing ``z_offsets_um``.
    """

    format: Literal["acq-isl-model/1"] = "acq-isl-model/1"
    name: _Name
    version: str
    licence: str
    description: str
    modality: Modality
    polarity: Polarity
    """Whether dense matter looks dark or bright in focus."""
    pixel_size_um: float = Field(ge=0.005, le=100)
    z_offsets_um: tuple[_Height, ...] = Field(min_length=1, max_length=256)
    """Planes relative to the middle of the stack, in micrometres of stage travel, strictly increasing.

    The middle is halfway between the first and the last plane, so the offsets are symmetric about 0.
    """
    any_planes: AnyPlanes | None = None
    """Absent: stacks need the planes of ``z_offsets_um``; else these say how many the network looks at."""
    high_pass_um: float = Field(ge=0)
    """Sigma of the Gaussian background that is removed, in micrometres of specimen."""
    labels: tuple[Label, ...] = Field(min_length=1, max_length=64)
    min_tile_px: _Pixels = Field(gt=0)
    margin_px: _Pixels | None = None
    """Pixels at a field's border that what lies outside changes by more than 1 % RMS; None: the halo."""
    halo_px: _Pixels
    """Pixels at a tile border whose prediction depends on what is outside of the tile."""
    size_step_px: _Pixels = Field(gt=0)
    """Tile sides must be multiples of this."""
    max_tile_px: int | None = Field(default=None, gt=0, le=1 << 16)
    """Longest tile side whose memory is bearable; None: the engine's own limit."""
    blank_px: _Pixels = 0
    """Pixels at a tile's border that the network does not answer for, so that they are never shown."""
    spread_scale: tuple[float, ...] = ()
    """Per label, factor fitted on held-out pixels that turns the network's spread into one SD.

    For the record: the exported graph has applied it already.
    """
    spread_slope: tuple[float, ...] = ()
    """Per label, by how much wider the spread is where more is predicted: times 1 + slope * mean.

    Fitted and applied as ``spread_scale`` is; empty for models that have one factor for dark and bright.
    """
    tolerates: frozenset[Tolerated] = frozenset()
    """What may differ from what is stated here, as it was measured to cost less than .02 mean r."""
    gate: Gate | None = None
    """Absent: the model cannot tell from a stack's looks whether it was trained for the like."""
    counts: tuple[Annotated[Counting, Field(discriminator="kind")], ...] = ()
    """How objects are counted, of labels for which that was fitted; which labels have none."""
    statistic: Literal["mean", "median"] = "mean"
    """What the output ``mean`` holds of the distribution of each pixel's intensity."""
    trained_on: str
    metrics: dict[str, float] = Field(default_factory=dict)
    instrument: Instrument | None = None
    training: Training | None = None
    evaluations: tuple[Evaluation, ...] = ()
    looks: tuple[Looks, ...] = ()

    @field_serializer("tolerates")
    def _in_order(self, tolerates: frozenset[Tolerated]) -> list[Tolerated]:
        """A set comes in another order in every process; a model's text, and hashes of it, must not."""
        return sorted(tolerates)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        z, names = np.asarray(self.z_offsets_um), self.label_names
        if np.any(np.diff(z) <= 0):
            raise ValueError("z_offsets_um must rise from plane to plane")
        if abs(z[0] + z[-1]) > max(SLACK * self.z_step_um, 1e-6):
            raise ValueError("z_offsets_um must be symmetric about 0, the middle of the stack")
        if len(set(names)) < len(names):
            raise ValueError(f"label names must differ: {', '.join(names)}")
        for name, values in (("spread_scale", self.spread_scale), ("spread_slope", self.spread_slope)):
            if values and len(values) != len(names):
                raise ValueError(f"{name} has {len(values)} values for {len(names)} labels")
        if self.blank_px > self.halo_px:
            raise ValueError(f"blank_px, {self.blank_px}, cannot be more than halo_px, {self.halo_px}")
        if len(z) * self.least_side_px**2 > _MOST_COUNTS:
            raise ValueError(f"{len(z)} planes of {self.least_side_px} px, the smallest tile, fit no memory")
        if self.high_pass_um > _MOST_SIGMA_PX * self.pixel_size_um:
            raise ValueError(f"high_pass_um is {self.high_pass_um:g}, more than {_MOST_SIGMA_PX} pixels")
        for what, found in (("evaluations", self.evaluations), ("counts", self.counts)):
            strange = {each.label for each in found} - set(names)
            if strange:
                raise ValueError(f"{what} of labels that the model has not: {', '.join(sorted(strange))}")
        return self

    @property
    def planes(self) -> int:
        return len(self.z_offsets_um)

    @property
    def least_side_px(self) -> int:
        """Shortest side of a tile: `min_tile_px` in whole steps."""
        return -(-self.min_tile_px // self.size_step_px) * self.size_step_px

    @property
    def z_step_um(self) -> float:
        """Mean distance of neighbouring planes in micrometres, 0 for a single plane."""
        z = self.z_offsets_um
        return (z[-1] - z[0]) / (len(z) - 1) if len(z) > 1 else 0.0

    @property
    def counting(self) -> tuple[Counting, ...]:
        """`counts`, and labels known to be networks by their name or marker."""
        said = {counting.label for counting in self.counts}
        unsaid = [label for label in self.labels if label.name not in said]
        networks = (label for label in unsaid if NETWORKS & {label.name.lower(), label.marker.lower()})
        return (*self.counts, *(NetworkLabel(label.name) for label in networks))

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read the JSON form; ModelError names the first thing that is wrong."""
        if len(text) > _MOST_TEXT:
            raise ModelError(
                "the model's manifest cannot be used",
                wanted=f"at most {_MOST_TEXT} characters",
                got=str(len(text)),
                fix="export the model again with this version of acq-isl",
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ModelError(
                f"the model's manifest cannot be used: {where}: {first['msg']}",
                wanted=f"a manifest of format {FORMAT}",
                fix="export the model again with this version of acq-isl, or update acq-isl",
            ) from error
