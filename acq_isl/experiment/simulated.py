"""The simulated microscope of an experiment file, its specimen and its light. `acq_isl.sim` makes it."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from acq_isl.base import Folder, StrictModel
from acq_isl.experiment.faults import FaultText

_Positive = Annotated[float, Field(gt=0)]
_Side = Annotated[int, Field(ge=16, le=33000)]


class _Optics(StrictModel):
    """What all kinds of light have; apertures hold at 0.3 um per unbinned pixel (20x)."""

    numerical_aperture: _Positive = 0.49
    wavelength_um: float = Field(default=0.55, ge=0.3, le=1.2)
    """Middle of the lamp's spectrum, in vacuum."""
    lamp_width_um: float = Field(default=0.0, ge=0, le=0.3)
    """Full width of the spectrum at half height; 0 for one wavelength."""
    medium_index: float = Field(default=1.33, ge=1)

    @model_validator(mode="after")
    def _lens_exists(self) -> Self:
        limit, got = self.medium_index, self.numerical_aperture
        if got >= limit:
            raise ValueError(f"numerical_aperture must be below medium_index ({limit:g}), not {got:g}")
        return self


class PhaseContrastOptics(_Optics):
    """An annulus in the condenser and a ring in the objective."""

    kind: Literal["phase_contrast"] = "phase_contrast"
    annulus_na: tuple[_Positive, _Positive] = (0.2, 0.235)
    """Inner and outer radius of annulus and ring."""
    decentre_na: tuple[float, float] = (0.015, 0.065)
    """Shift of the annulus against the ring in x and y; gives relief."""
    ring_transmission: float = Field(default=0.2, gt=0, le=1)
    dense_is_dark: bool = True
    """Positive phase contrast."""

    @model_validator(mode="after")
    def _annulus_fits(self) -> Self:
        (inner, outer), limit = self.annulus_na, self.numerical_aperture
        if not inner < outer < limit:
            wanted = f"annulus_na must grow and stay below numerical_aperture ({limit:g})"
            raise ValueError(f"{wanted}, not {inner:g} to {outer:g}")
        return self


class ObliqueOptics(_Optics):
    """An arc of light from one side."""

    kind: Literal["oblique"] = "oblique"
    direction_rad: float = math.pi / 2
    reach: tuple[_Positive, _Positive] = (0.6, 0.95)
    """Inner and outer radius of the arc as fractions of the aperture."""

    @model_validator(mode="after")
    def _arc_fits(self) -> Self:
        inner, outer = self.reach
        if not inner < outer <= 1:
            raise ValueError(f"reach must grow and end at 1 at most, not {inner:g} to {outer:g}")
        return self


class _Disc(_Optics):
    condenser_na: _Positive = 0.3

    @model_validator(mode="after")
    def _disc_fits(self) -> Self:
        limit, got = self.numerical_aperture, self.condenser_na
        if got > limit:
            raise ValueError(f"condenser_na must not exceed numerical_aperture ({limit:g}), not {got:g}")
        return self


class BrightfieldOptics(_Disc):
    """A disc of light in the condenser."""

    kind: Literal["brightfield"] = "brightfield"


class DICOptics(_Disc):
    """Differential interference contrast."""

    kind: Literal["dic"] = "dic"
    shear_um: _Positive = 0.35
    direction_rad: float = math.pi / 4
    bias_rad: float = Field(default=math.pi / 4, ge=0.1, le=math.pi)


SimulatedOptics = Annotated[
    PhaseContrastOptics | ObliqueOptics | BrightfieldOptics | DICOptics, Field(discriminator="kind")
]


class Life(StrictModel):
    """Rates of drift, growth and death. By default a culture stands still, as at time 0."""

    prevalence: float = Field(default=0.0, ge=0, le=1)
    """Share of neurons that are dying at time 0."""
    death_rate_per_h: float = Field(default=0.0, ge=0)
    """Chance per hour that a living neuron begins to die."""
    dying_h: float = Field(default=1.5, gt=0)
    """Median time from the first sign to death, in hours."""
    drift_um_h: float = Field(default=0.0, ge=0, le=10)
    """RMS speed of cells, in micrometres per hour."""
    growth_um_h: float = Field(default=0.0, ge=0)
    """By how much an axon's tip advances in an hour; a dendrite's by a fifth of it."""
    drug_per_h: float = 0.5
    """What one ordinary dose of the drug adds to the death rate, per hour; below 0 it protects."""
    phototoxicity_per_h: float = Field(default=0.0, ge=0)
    """What one second of light in a stain's channel adds to the death rate of the neurons it hit, per hour;
    three times that in DAPI, 1/500 of it in transmitted light."""
    tick_s: float = Field(default=60.0, gt=0)
    """The culture moves on in steps of this many seconds; between them it looks the same."""

    @classmethod
    def ordinary(cls) -> Life:
        """A healthy culture: 3 % dying, 1 % more per hour; cells drift 4 um, axons grow 15 um an hour."""
        return cls(
            prevalence=0.03, death_rate_per_h=0.01, drift_um_h=4.0, growth_um_h=15.0, phototoxicity_per_h=0.02
        )


class SyntheticSpecimen(StrictModel):
    """Neurons that are computed, without end in x and y."""

    kind: Literal["synthetic"] = "synthetic"
    seed: int = 1
    life: Life = Life()
    """What changes with time; by default nothing does."""
    optics: SimulatedOptics = PhaseContrastOptics()
    """The light it is seen in. `Experiment.optics` says what the model is told of it."""


class EpithelialSpecimen(StrictModel):
    """Adherent, epithelial-like cells that are computed, without end in x and y, the same at all times."""

    kind: Literal["epithelial"] = "epithelial"
    seed: int = 1
    confluency: float = Field(default=0.6, ge=0, le=1)
    """Share of the glass that living cells cover."""
    cell_um: float = Field(default=24.0, ge=12, le=40)
    """Distance of neighbours where they touch."""
    mitotic: float = Field(default=0.03, ge=0, le=1)
    """Share of living cells that divide: round, with condensed chromatin."""
    dead: float = Field(default=0.04, ge=0, le=2)
    """Dead cells for each living one."""
    optics: SimulatedOptics = BrightfieldOptics()
    """The light it is seen in. `Experiment.optics` says what the model is told of it."""


class RecordedSpecimen(StrictModel):
    """A z-stack and label images that somebody recorded, tiled over the stage."""

    kind: Literal["recorded"] = "recorded"
    folder: Folder
    """TIFF files (or one file), an NDTiff data set, or an OME-Zarr image."""
    transmitted: str | None = None
    """Channel of transmitted light, where its name does not tell."""
    position: str | None = None
    time: int | None = Field(default=None, ge=0)
    z_step_um: float | None = Field(default=None, gt=0)
    pixel_size_um: float | None = Field(default=None, gt=0)
    """Lengths are only needed where the files do not say."""


class SimulatedMicroscope(StrictModel):
    """The real Micro-Manager core with demo devices and a computed or recorded specimen."""

    kind: Literal["simulated"] = "simulated"
    specimen: SyntheticSpecimen | EpithelialSpecimen | RecordedSpecimen = Field(
        default_factory=SyntheticSpecimen, discriminator="kind"
    )
    camera_px: tuple[_Side, _Side] = (512, 512)
    """Rows and columns of the camera, 16 to 33000 as Micro-Manager's demo camera has them."""
    time_scale: float = Field(default=1.0, ge=0)
    """How many seconds pass for the specimen in one second."""
    prepare_ahead: int = Field(default=0, ge=0, le=4)
    """Fields of a scan that a second thread draws in advance; the images are the same."""
    faults: tuple[FaultText, ...] = ()
    """What goes wrong on purpose, such as ``focus-drift:2``; see docs/simulator.md."""
