"""How the simulated camera counts."""

from __future__ import annotations

from pydantic import Field

from acq_isl.base import StrictModel


class CameraSettings(StrictModel):
    """An sCMOS-like camera, in electrons."""

    full_well_e: float = Field(default=30_000.0, gt=0)
    """What reaches the largest count. Light 1.0 at the nominal exposure gives that many."""
    offset_e: float = Field(default=50.0, ge=0)
    """Electrons' worth of counts that a dark frame shows."""
    read_noise_e: float = Field(default=1.6, ge=0)
    """Standard deviation of the readout."""
    shot_noise: bool = True
    """Whether photons arrive at random. Off for a recorded specimen, whose images hold their noise."""
    hot_pixels: float = Field(default=0.0, ge=0, lt=1)
    """Share of pixels that gain electrons without light; always the same ones of the sensor."""
    hot_e_per_s: float = Field(default=20_000.0, ge=0)
    """Mean of what they gain in a second, exponentially distributed."""

    @classmethod
    def noiseless(cls) -> CameraSettings:
        """A camera that adds nothing: light 1.0 is the largest count, 0.0 is count 0."""
        return cls(offset_e=0.0, read_noise_e=0.0, shot_noise=False)
