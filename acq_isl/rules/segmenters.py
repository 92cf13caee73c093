"""How the objects of a predicted label are told apart. Pure."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from acq_isl.errors import ExperimentError
from acq_isl.processing.segmentation import Mask, number_objects, segment
from acq_isl.rules.plugins import PluginPoint
from acq_isl.stack import Float32Image


class Segmenter(PluginPoint):
    """Plug-in point: a predicted label becomes separate objects.

    A kind of your own derives from this class and is an entry point in ``acq_isl.segmenters``.
    """

    plugin_group: ClassVar[str] = "acq_isl.segmenters"

    @classmethod
    def built_in(cls) -> tuple[type[Segmenter], ...]:
        return (Watershed,)

    @abstractmethod
    def segment(self, image: Float32Image, pixel_size_um: float) -> Mask:
        """Objects of a predicted label, (y, x) int32: 0 is background, every object has its own number.

        ``image`` is predicted intensity, (y, x) float32; 0 is background, 1 the bright end of training.
        """


class Watershed(Segmenter):
    """Objects brighter than a threshold; touching round ones are split at their waist."""

    kind: Literal["watershed"] = "watershed"
    above: float = Field(default=0.5, allow_inf_nan=False)
    """Predicted intensity; 1 is the bright end of the training truth."""
    min_area_um2: float = Field(default=20.0, ge=0, allow_inf_nan=False)
    """Smaller objects are debris; in square micrometres of specimen."""

    def segment(self, image: Float32Image, pixel_size_um: float) -> Mask:
        return segment(image, self.above, self.min_area_um2, pixel_size_um)


def find_objects(segmenter: Segmenter, image: Float32Image, pixel_size_um: float) -> Mask:
    """Objects of an image, (y, x) int32, numbered from 1 without gaps; ExperimentError if it fails."""
    what = f"the segmenter {segmenter.kind} failed"
    try:
        objects = np.asarray(segmenter.segment(image, pixel_size_um))
    except Exception as error:
        raise ExperimentError(what, got=f"{type(error).__name__}: {error}") from error
    if objects.shape != image.shape or objects.dtype.kind not in "iu" or objects.min(initial=0) < 0:
        wanted, got = f"{image.shape} whole numbers from 0 on", f"{objects.shape} {objects.dtype}"
        raise ExperimentError(what, wanted=wanted, got=got)
    return number_objects(objects)
