"""The capture hook: each slice leaves for its sink the moment it is captured; the data stays as it is."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from acq_isl.errors import AcqIslError, AcquisitionFailed, ExperimentError
from acq_isl.hooks.metadata import SliceTags, read_tags
from acq_isl.protocols import CopyingSink, MeasuredSink, SliceSink
from acq_isl.stack import Modality, Polarity, Slice, StackInfo, StackKey, StackRequest, Uint16Image

logger = logging.getLogger(__name__)

_OPEN_STACKS = 256
_PROBLEMS_KEPT = 100


@dataclass(frozen=True, slots=True, eq=False)
class _Early:
    """The first slice of a stack whose z step is not known yet."""

    tags: SliceTags
    pixels: Uint16Image
    captured_s: float


class CaptureHook:
    """An ``image_process_fn`` that hands every slice to a sink and leaves the acquisition alone.

    Two lines in a notebook::

        hook = CaptureHook(sink, planes=13)
        with Acquisition(directory, name, image_process_fn=hook) as acq: ...

    It never raises, never waits, and always returns the image and metadata it was given. What goes
    wrong is kept in `problems` for whoever owns the hook. The pixels are copied once: by the sink if it
    is a `CopyingSink` that says so, else here.

    Parameters
    ----------
    sink : SliceSink or None
        Where slices go; None captures nothing but still passes every image on.
    planes : int, optional
        Slices of a stack. The z of each slice is then worked out from the first two, so the first one
        leaves together with the second.
    z_um : sequence of float, optional
        Stage z of every slice in micrometres; needed where the events move z by a step that varies.
    pixel_size_um : float, optional
        Taken from the metadata where not given.
    modality, polarity :
        Handed on to `StackInfo`.

    Raises
    ------
    ExperimentError
        Neither ``planes`` nor ``z_um`` is given, or they disagree.
    """

    def __init__(
        self,
        sink: SliceSink | None,
        *,
        planes: int | None = None,
        z_um: Sequence[float] | None = None,
        pixel_size_um: float | None = None,
        modality: Modality = "unknown",
        polarity: Polarity = "unknown",
    ) -> None:
        self._z_um = None if z_um is None else tuple(float(z) for z in z_um)
        self._planes = planes if self._z_um is None else len(self._z_um)
        if not self._planes or self._planes < 1 or planes not in (None, self._planes):
            raise ExperimentError(
                "the capture hook must know how many slices a stack has",
                wanted="planes=13, or z_um=[...] with the z of every slice",
                got=f"planes={planes}, z_um={z_um}",
            )
        self._sink = sink
        self._sink_copies = isinstance(sink, CopyingSink) and sink.copies
        self._measured_sink = sink if isinstance(sink, MeasuredSink) else None
        self._pixel_size_um = pixel_size_um
        self._modality: Modality = modality
        self._polarity: Polarity = polarity
        self._lock = threading.Lock()
        self._requests: dict[StackKey, StackRequest] = {}
        self._open: OrderedDict[StackKey, StackInfo | _Early] = OrderedDict()
        self._problems: deque[AcqIslError] = deque(maxlen=_PROBLEMS_KEPT)
        self.problem_count = 0
        self.put_count = 0

    @classmethod
    def for_requests(cls, sink: SliceSink | None) -> CaptureHook:
        """A hook whose stacks are announced one by one with `expect`, as the guarded acquisition does."""
        return cls(sink, planes=1)

    @property
    def problems(self) -> tuple[AcqIslError, ...]:
        """What went wrong so far, the latest hundred; ``problem_count`` counts all."""
        with self._lock:
            return tuple(self._problems)

    def expect(self, request: StackRequest) -> None:
        """Announce a stack; its slices get the request's z, place and optics."""
        with self._lock:
            self._requests[request.key] = request

    def forget(self, key: StackKey) -> None:
        """An announced stack is done."""
        with self._lock:
            self._requests.pop(key, None)
            self._open.pop(key, None)

    def __call__(self, image: Any, metadata: Any) -> tuple[Any, Any]:
        """Called by Pycro-Manager with each image, on its image thread."""
        try:
            if metadata.get("PixelType") is None:
                metadata["PixelType"] = "GRAY8" if image.dtype == np.uint8 else "GRAY16"
            if self._sink is not None:
                self._take(image, read_tags(metadata), time.time())
        except AcqIslError as problem:
            self._note(problem)
        except Exception as error:
            # Anything that left this function would kill Pycro-Manager's image thread and hang the run.
            logger.warning("the capture hook failed", exc_info=True)
            self._note(AcquisitionFailed("a captured slice could not be handed on", got=repr(error)))
        return image, metadata

    def _take(self, image: Any, tags: SliceTags, captured_s: float) -> None:
        with self._lock:
            request = self._requests.get(tags.key)
            known = self._open.get(tags.key)
        if request is not None and not request.predict and self._measured_sink is None:
            return
        planes = len(request.z_um) if request is not None else self._planes or 1
        if not 0 <= tags.z_index < planes:
            raise AcquisitionFailed(
                f"slice z={tags.z_index} of {tags.key} is saved, but not predicted",
                wanted=f"z from 0 to {planes - 1} ({planes} planes)",
                fix="multi_d_acquisition_events makes one slice too many for some steps: use z_end - step/2",
            )
        pixels = self._pixels(image)
        if isinstance(known, StackInfo):
            self._check(known, tags, pixels)
            self._put(known, tags.z_index, pixels, captured_s)
            return
        early = [] if known is None else [known]
        info = self._info(tags, request, planes, pixels.shape, early)
        self._remember(tags.key, info or _Early(tags, pixels, captured_s))
        if info is not None:
            for one in (*early, _Early(tags, pixels, captured_s)):
                self._put(info, one.tags.z_index, one.pixels, one.captured_s)

    def _info(
        self,
        tags: SliceTags,
        request: StackRequest | None,
        planes: int,
        shape: tuple[int, ...],
        early: Sequence[_Early],
    ) -> StackInfo | None:
        """What is known of a stack, or None while its z step is not."""
        first = early[0].tags if early else tags
        z_um = request.z_um if request is not None else self._z_um or _z_of_all(tags, early, planes)
        if z_um is None:
            return None
        return StackInfo(
            key=tags.key,
            z_um=z_um,
            shape=(shape[0], shape[1]),
            pixel_size_um=self._pixel_size_um if self._pixel_size_um is not None else tags.pixel_size_um,
            x_um=first.x_um if request is None else request.x_um,
            y_um=first.y_um if request is None else request.y_um,
            exposure_ms=tags.exposure_ms,
            modality=self._modality if request is None else request.modality,
            polarity=self._polarity if request is None else request.polarity,
        )

    def _pixels(self, image: Any) -> Uint16Image:
        if image.ndim != 2 or image.dtype not in (np.uint16, np.uint8):
            raise AcquisitionFailed(
                "a captured slice cannot be predicted",
                wanted="a (y, x) image of 8 or 16 bits",
                got=f"{image.shape} {image.dtype}",
                fix="set the camera to 16 bits monochrome",
            )
        pixels: Uint16Image
        if image.dtype == np.uint8:
            pixels = image.astype(np.uint16)
        else:
            pixels = image.view() if self._sink_copies else image.copy()
        pixels.flags.writeable = False
        return pixels

    def _check(self, info: StackInfo, tags: SliceTags, pixels: Uint16Image) -> None:
        if pixels.shape != info.shape:
            raise AcquisitionFailed(
                f"slice z={tags.z_index} of {tags.key} has another size than the first one",
                wanted=f"{info.shape}",
                got=f"{pixels.shape}",
                fix="do not change ROI or binning within a stack",
            )
        wanted = info.z_um[tags.z_index]
        if tags.z_um is not None and abs(tags.z_um - wanted) > 1e-3 + 0.02 * _step(info.z_um):
            self._note(
                AcquisitionFailed(
                    f"slice z={tags.z_index} of {tags.key} is not where the z step says",
                    wanted=f"{wanted:.3f} um",
                    got=f"{tags.z_um:.3f} um",
                    fix="give the capture hook z_um=[...] with the z of every slice",
                )
            )

    def _put(self, info: StackInfo, z_index: int, pixels: Uint16Image, captured_s: float) -> None:
        slice_ = Slice(info, z_index, pixels, captured_s)
        with self._lock:
            request = self._requests.get(info.key)
        if request is not None and not request.predict and self._measured_sink is not None:
            self._measured_sink.put_measured(slice_)
        elif self._sink is not None:
            self._sink.put(slice_)
            self.put_count += 1

    def _remember(self, key: StackKey, known: StackInfo | _Early) -> None:
        with self._lock:
            self._open[key] = known
            dropped = self._open.popitem(last=False) if len(self._open) > _OPEN_STACKS else None
        if dropped is not None and isinstance(dropped[1], _Early):
            self._note(AcquisitionFailed(f"the stack {dropped[0]} has only one slice and was not predicted"))

    def _note(self, problem: AcqIslError) -> None:
        with self._lock:
            self._problems.append(problem)
            self.problem_count += 1


def _z_of_all(tags: SliceTags, early: Sequence[_Early], planes: int) -> tuple[float, ...] | None:
    """Z of every slice from two of them (or from one, for a single plane); None if it takes another."""
    if planes == 1:
        return (tags.z_um or 0.0,)
    if tags.z_um is None:
        raise AcquisitionFailed(
            f"the z of the slices of {tags.key} is not known",
            wanted="events with 'z', or CaptureHook(..., z_um=[...])",
        )
    if not early or early[0].tags.z_um is None or early[0].tags.z_index == tags.z_index:
        return None
    first = early[0].tags
    step = (tags.z_um - early[0].tags.z_um) / (tags.z_index - first.z_index)
    start = tags.z_um - tags.z_index * step
    return tuple(round(start + index * step, 6) for index in range(planes))


def _step(z_um: Sequence[float]) -> float:
    return abs(z_um[-1] - z_um[0]) / max(len(z_um) - 1, 1)
