"""How alive a simulated culture is: part of an experiment file, obeyed by the simulated microscope."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Life(BaseModel):
    """Rates of drift, growth and death. By default a culture stands still, as at time 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
