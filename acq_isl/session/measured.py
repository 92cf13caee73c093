"""What was measured in a run, in all its data sets, finished or cut off; only ever read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from acq_isl.errors import SliceLost
from acq_isl.hooks.events import planned_position
from acq_isl.hooks.metadata import read_metadata
from acq_isl.readers.ndtiff import NdtiffImage
from acq_isl.readers.ndtiff_headers import all_images
from acq_isl.stack import StackInfo, StackKey, StackRequest, Uint16Image, ZStack


class MeasuredRun:
    """The images in ``measured_1``, ``measured_2``, ... of a run folder, by stack and slice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sets = (path.name for path in folder.glob("measured_*") if path.is_dir())
        self.sets = tuple(sorted(sets, key=lambda name: (len(name), name)))  # measured_2 before measured_10
        self._images: dict[StackKey, dict[int, NdtiffImage]] = {}
        self.captured = 0
        """Number of images."""
        for name in self.sets:  # what was imaged again counts
            for image in all_images(folder / name):
                axes = image.axes
                time, channel = int(axes.get("time", 0)), str(axes.get("channel", ""))
                key = StackKey(time, planned_position(str(axes.get("position", ""))), channel)
                self.captured += 1
                self._images.setdefault(key, {})[image.z] = image

    @property
    def replaced(self) -> int:
        """Number of images whose stack was cut off or interrupted, and imaged again."""
        return self.captured - sum(map(len, self._images.values()))

    @property
    def keys(self) -> tuple[StackKey, ...]:
        """Stacks of which there is at least a slice, in order of arrival."""
        return tuple(self._images)

    def planes(self, key: StackKey) -> int:
        """How many slices of a stack there are."""
        return len(self._images.get(key, {}))

    def images(self, request: StackRequest) -> Uint16Image:
        """All slices of a stack, (z, y, x) uint16; SliceLost if one is not there, or was never written."""
        found, planes = self._images.get(request.key, {}), len(request.z_um)
        missing = [z for z in range(planes) if z not in found]
        pixels = [found[z].read() for z in range(planes) if z in found]
        # After a power failure a file may have its length, and nothing in it: no camera reads 0 throughout.
        missing += [z for z, plane in enumerate(pixels) if not plane.any()] if not missing else []
        if missing:
            raise SliceLost(
                f"{len(missing)} of {planes} slices of {request.key} are not in the measured data",
                got=f"without z {', '.join(map(str, missing))}",
            )
        return np.stack(pixels).astype(np.uint16, copy=False)

    def stack(self, request: StackRequest) -> ZStack:
        """A stack as its slices were announced while it was imaged; raises as `images`."""
        pixels = self.images(request)
        about = read_metadata(self._images[request.key][0].metadata())
        info = StackInfo(
            key=request.key,
            z_um=request.z_um,
            shape=(pixels.shape[1], pixels.shape[2]),
            pixel_size_um=about.pixel_size_um,
            x_um=request.x_um,
            y_um=request.y_um,
            exposure_ms=about.exposure_ms,
            modality=request.modality,
            polarity=request.polarity,
        )
        return ZStack(info, pixels, (0.0,) * len(request.z_um))
