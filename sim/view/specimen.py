"""What a simulated microscope asks of a specimen, and what a specimen may offer besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from acq_isl.sim.view.camera_settings import CameraSettings
from acq_isl.sim.view.view import View
from acq_isl.stack import Float32Image


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


@runtime_checkable
class HasCamera(Protocol):
    """A specimen that says how it wants to be seen, as a recorded one whose pixels hold noise already."""

    @property
    def camera(self) -> CameraSettings:
        """Settings to use unless `acq_isl.sim.ScopeSettings.camera` says otherwise."""


@runtime_checkable
class HasMetadata(Protocol):
    """A specimen that adds to the metadata of each image."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Text by key; JSON where it has parts."""


@runtime_checkable
class Preparable(Protocol):
    """A specimen that can do part of its work before it is looked at."""

    def prepare(self, view: View) -> None:
        """Make ready for `render` at this place, at any focus; safe beside it in another thread."""
