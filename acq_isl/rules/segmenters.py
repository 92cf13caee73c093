"""How the objects of a predicted label are told apart. Pure."""

from __future__ import annotations

from abc import abstractmethod
from functools import cache
from typing import Any, ClassVar, Literal

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
        return Watershed, Cellpose, StarDist

    def check(self) -> None:
        """ExperimentError if it cannot be used here; asked before a run."""

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


class Cellpose(Segmenter):
    """Objects by Cellpose (Pachitariu et al. 2025), which is not part of acq-isl: pip install "cellpose>=4".

    It loads its weights from the network when it is first used.
    """

    kind: Literal["cellpose"] = "cellpose"
    diameter_um: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Usual diameter of an object, in micrometres of specimen. Default: Cellpose's own."""
    gpu: bool = False
    """Whether it may use a GPU."""

    def check(self) -> None:
        _cellpose(self.gpu)

    def segment(self, image: Float32Image, pixel_size_um: float) -> Mask:
        diameter_px = None if self.diameter_um is None else self.diameter_um / pixel_size_um
        masks, *_ = _cellpose(self.gpu).eval(image, diameter=diameter_px)
        return np.asarray(masks, np.int32)


class StarDist(Segmenter):
    """Star-convex objects by StarDist (Schmidt et al. 2018), not part of acq-isl: pip install stardist.

    It loads its weights from the network when it is first used.
    """

    kind: Literal["stardist"] = "stardist"
    model: str = "2D_versatile_fluo"
    """One of StarDist's pretrained models."""
    probability: float | None = Field(default=None, gt=0, lt=1)
    """Least probability of an object. Default: the model's own."""

    def check(self) -> None:
        _stardist(self.model)

    def segment(self, image: Float32Image, pixel_size_um: float) -> Mask:
        masks, _ = _stardist(self.model).predict_instances(image, prob_thresh=self.probability)
        return np.asarray(masks, np.int32)


@cache
def _cellpose(gpu: bool) -> Any:
    try:
        from cellpose.models import CellposeModel
    except ImportError as error:
        raise _not_installed("cellpose", 'pip install "cellpose>=4"', error) from error
    return CellposeModel(gpu=gpu)


@cache
def _stardist(model: str) -> Any:
    try:
        from stardist.models import StarDist2D
    except ImportError as error:
        raise _not_installed("stardist", "pip install stardist tensorflow", error) from error
    found = StarDist2D.from_pretrained(model)
    if found is None:
        raise ExperimentError(
            f"StarDist has no pretrained model {model!r}", fix="see StarDist2D.from_pretrained()"
        )
    return found


def _not_installed(name: str, command: str, error: ImportError) -> ExperimentError:
    what = f"the segmenter {name} needs a package that is not installed here"
    return ExperimentError(what, got=str(error), fix=f"{command}; or segmenter: {{kind: watershed}}")


def find_objects(segmenter: Segmenter, image: Float32Image, pixel_size_um: float) -> Mask:
    """Objects of an image, (y, x) int32, numbered from 1 without gaps; ExperimentError if it fails."""
    what = f"the segmenter {segmenter.kind} failed"
    try:
        objects = np.asarray(segmenter.segment(image, pixel_size_um))
    except ExperimentError:
        raise
    except Exception as error:
        raise ExperimentError(what, got=f"{type(error).__name__}: {error}") from error
    if objects.shape != image.shape or objects.dtype.kind not in "iu" or objects.min(initial=0) < 0:
        wanted, got = f"{image.shape} whole numbers from 0 on", f"{objects.shape} {objects.dtype}"
        raise ExperimentError(what, wanted=wanted, got=got)
    return number_objects(objects)
