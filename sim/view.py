"""What a simulated camera looks at, and what lies there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from acq_isl.stack import Float32Image


@dataclass(frozen=True, slots=True)
class View:
    """State of the microscope at the start of an exposure, as far as the image depends on it.

    Parameters
    ----------
    x_um, y_um : float
        Specimen position under the middle of the region of interest, in micrometres. Row index grows
        with y, column index with x.
    z_um : float
        Focus drive position in micrometres.
    channel : str
        Preset of the channel group, such as ``"Phase"`` or ``"DAPI"``.
    pixel_size_um : float
        Edge of one (binned) pixel in the specimen, in micrometres.
    shape : (int, int)
        Rows and columns of the image, after region of interest and binning.
    sensor_origin_px : (int, int)
        Row and column of the image's first pixel on the unbinned sensor; dust stays on it.
    binning : int
    """

    x_um: float
    y_um: float
    z_um: float
    channel: str
    pixel_size_um: float
    shape: tuple[int, int]
    sensor_origin_px: tuple[int, int] = (0, 0)
    binning: int = 1


class Specimen(Protocol):
    """What lies on the stage. Implementations are deterministic and may cache within a bound."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels it can be seen in; the first is transmitted light."""

    def render(self, view: View) -> Float32Image:
        """Noise-free light for a view, (y, x) float32.

        1.0 fills the well at the nominal exposure of the channel. Outside of the specimen it is the
        empty medium, never an error.
        """

    def truth(self, view: View) -> dict[str, Float32Image]:
        """True label images by label name, such as ``nuclei``; each (y, x) float32 in 0..1."""
