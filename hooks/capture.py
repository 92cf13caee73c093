"""The capture hook: each slice leaves for its sink the moment it is captured; the data stays as it is."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from acq_isl.errors import AcqIslError, AcquisitionFailed, ExperimentError
from acq_isl.hooks.held_slices import CapturedSlice, HeldSlices
from acq_isl.hooks.metadata import SliceMetadata, read_metadata
from acq_isl.protocols import CopyingSink, MeasuredSink, SliceSink
from acq_isl.stack import Modality, Polarity, Slice, StackInfo, StackKey, StackRequest, Uint16Image

logger = logging.getLogger(__name__)

_OPEN_STACKS = 1 << 16
_PROBLEMS_KEPT = 100


@dataclass(frozen=True, slots=True, eq=False)
class _OpenStack:
    """A stack whose z is known, and which of its slices have come."""

    info: StackInfo
    arrived: set[int] = field(default_factory=set)


class CaptureHook:
    """An ``image_process_fn`` that hands every slice to a sink and leaves the acquisition alone.

    Two lines in a notebook::

        hook = CaptureHook(sink, planes=13)
        with Acquisition(directory, name, image_process_fn=hook) as acq: ...

    It never raises, never waits, and always returns the image and metadata it was given. What goes
    wrong is kept in `problems` for whoever owns the hook. The pixels are copied once: by the sink, if it
    is a `CopyingSink` that copies, else here.

    Parameters
    ----------
    sink : SliceSink or None
        Where slices go; None captures nothing but still passes every image on.
    planes : int, optional
        Slices of a stack. The z of each slice is then worked out from the first two, so the first one
        leaves together with the second; call `flush` when the acquisition is over.
    z_um : sequence of float, optional
        Stage z of every slice in micrometres; needed where the events move z by a step that varies.
    pixel_size_um : float, optional
        Taken from the metadata where not given.
    modality, polarity :
        Handed on to `StackInfo`.
    held : HeldSlices, optional
        Room for slices that wait for the second one of their stack.

    Raises
    ------
    ExperimentError
        Neither ``planes`` nor ``z_um`` is given, or they disagree.
    """

    def __init__(  # noqa: PLR0913  all but the sink have defaults
        self,
        sink: SliceSink | None,
        *,
        planes: int | None = None,
        z_um: Sequence[float] | None = None,
        pixel_size_um: float | None = None,
        modality: Modality = "unknown",
        polarity: Polarity = "unknown",
        held: HeldSlices | None = None,
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
        self._measured = sink if isinstance(sink, MeasuredSink) else None
        self._pixel_size_um = pixel_size_um
        self._modality: Modality = modality
        self._polarity: Polarity = polarity
        self._lock = threading.Lock()
        self._requests: dict[StackKey, StackRequest] = {}
        self._open: OrderedDict[StackKey, _OpenStack] = OrderedDict()
        self._held = HeldSlices() if held is None else held
        self._problems: deque[AcqIslError] = deque(maxlen=_PROBLEMS_KEPT)
        self.problem_count = 0

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
        """Expect an announced stack no longer."""
        with self._lock:
            self._requests.pop(key, None)
            self._open.pop(key, None)

    def flush(self) -> None:
        """End all stacks: the acquisition is over.

        A slice that still waits for the second one of its stack is handed on as a stack of one plane, so
        that the sink counts it and an engine says why it cannot predict it.
        """
        with self._lock:
            self._open.clear()
        while (alone := self._pop_oldest()) is not None:
            self._put_alone(alone)

    def __call__(self, image: Any, metadata: Any) -> tuple[Any, Any]:
        """Called by Pycro-Manager with each image, on its image thread."""
        with self._noting():
            if metadata.get("PixelType") is None:
                metadata["PixelType"] = "GRAY8" if image.dtype == np.uint8 else "GRAY16"
            if self._sink is not None:
                self._take(image, read_metadata(metadata), time.time())
        return image, metadata

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Keep what is raised, which would kill Pycro-Manager's image thread and hang the run."""
        try:
            yield
        except AcqIslError as problem:
            self._note(problem)
        except Exception as error:
            logger.warning("the capture hook failed", exc_info=True)
            self._note(AcquisitionFailed("a captured slice could not be handed on", got=repr(error)))

    def _take(self, image: Any, metadata: SliceMetadata, captured_s: float) -> None:
        key = metadata.key
        with self._lock:
            request = self._requests.get(key)
        if request is not None and not request.predict and self._measured is None:
            return
        planes = len(request.z_um) if request is not None else self._planes or 1
        if not 0 <= metadata.z_index < planes:
            raise AcquisitionFailed(
                f"slice z={metadata.z_index} of {key} is saved, but not predicted",
                wanted=f"z from 0 to {planes - 1} ({planes} planes)",
                fix="multi_d_acquisition_events makes one slice too many for some steps: use z_end - step/2",
            )
        new = CapturedSlice(metadata, self._pixels(image), captured_s)
        with self._lock:
            known = self._open.get(key)
            first = self._held.get(key)
        if known is None:
            z_um = request.z_um if request is not None else self._z_um or _z_of_all(metadata, first, planes)
            if z_um is None:
                self._hold(new)
                return
            known = _OpenStack(self._info(first or new, request, z_um))
        self._check(known, new)
        with self._lock:
            self._held.remove(key)
        for slice_ in (new,) if first is None else (first, new):
            self._deliver(known, slice_)

    def _info(self, first: CapturedSlice, request: StackRequest | None, z_um: tuple[float, ...]) -> StackInfo:
        """What is known of a stack from its first slice, and from its announcement."""
        metadata = first.metadata
        return StackInfo(
            key=metadata.key,
            z_um=z_um,
            shape=(first.pixels.shape[0], first.pixels.shape[1]),
            pixel_size_um=metadata.pixel_size_um if self._pixel_size_um is None else self._pixel_size_um,
            x_um=metadata.x_um if request is None else request.x_um,
            y_um=metadata.y_um if request is None else request.y_um,
            exposure_ms=metadata.exposure_ms,
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

    def _check(self, stack: _OpenStack, new: CapturedSlice) -> None:
        """Raise what keeps a slice out of its stack, and note what looks wrong about it."""
        info, metadata = stack.info, new.metadata
        if new.pixels.shape != info.shape:
            raise AcquisitionFailed(
                f"slice z={metadata.z_index} of {info.key} has another size than the first one",
                wanted=f"{info.shape}",
                got=f"{new.pixels.shape}",
                fix="do not change ROI or binning within a stack",
            )
        if metadata.z_index in stack.arrived:
            self._note(_second_image(metadata))
        wanted = info.z_um[metadata.z_index]
        if metadata.z_um is not None and abs(metadata.z_um - wanted) > 1e-3 + 0.02 * _step(info.z_um):
            self._note(
                AcquisitionFailed(
                    f"slice z={metadata.z_index} of {info.key} is not where the z step says",
                    wanted=f"{wanted:.3f} um",
                    got=f"{metadata.z_um:.3f} um",
                    fix="give the capture hook z_um=[...] with the z of every slice",
                )
            )

    def _deliver(self, stack: _OpenStack, slice_: CapturedSlice) -> None:
        """Hand a slice on, and remember its stack until the last slice has come."""
        info = stack.info
        stack.arrived.add(slice_.metadata.z_index)
        with self._lock:
            if len(stack.arrived) == info.planes:
                self._open.pop(info.key, None)
            else:
                self._open[info.key] = stack
                if len(self._open) > _OPEN_STACKS:
                    self._open.popitem(last=False)
            request = self._requests.get(info.key)
        self._put(Slice(info, slice_.metadata.z_index, slice_.pixels, slice_.captured_s), request)

    def _put(self, slice_: Slice, request: StackRequest | None) -> None:
        if request is not None and not request.predict and self._measured is not None:
            self._measured.put_measured(slice_)
        elif self._sink is not None:
            self._sink.put(slice_)

    def _hold(self, slice_: CapturedSlice) -> None:
        """Keep a slice until the second one of its stack says what the z step is."""
        with self._lock:
            if self._held.get(slice_.metadata.key) is not None:
                raise _second_image(slice_.metadata)
            self._held.add(slice_)
            full = self._held.full
        if full and (oldest := self._pop_oldest()) is not None:
            self._put_alone(oldest)

    def _pop_oldest(self) -> CapturedSlice | None:
        with self._lock:
            return self._held.pop_oldest()

    def _put_alone(self, slice_: CapturedSlice) -> None:
        """Hand a slice without a second one on as the stack of one plane that it is."""
        metadata = slice_.metadata
        self._note(
            AcquisitionFailed(
                f"the stack {metadata.key} has only one slice, z={metadata.z_index}",
                wanted=f"{self._planes} slices, numbered by the axis 'z'",
                fix="name the axis of the slices 'z', or give the capture hook planes=1",
            )
        )
        with self._noting():
            info = self._info(slice_, None, (metadata.z_um or 0.0,))
            self._put(Slice(info, 0, slice_.pixels, slice_.captured_s), None)

    def _note(self, problem: AcqIslError) -> None:
        with self._lock:
            self._problems.append(problem)
            self.problem_count += 1


def _second_image(metadata: SliceMetadata) -> AcquisitionFailed:
    return AcquisitionFailed(
        f"a second image came for slice z={metadata.z_index} of {metadata.key}; the first one counts",
        fix="give each camera and each image of an event axes of its own, for instance another channel",
    )


def _z_of_all(new: SliceMetadata, first: CapturedSlice | None, planes: int) -> tuple[float, ...] | None:
    """Z of every slice from two of them (or from one, for a single plane); None if it takes another."""
    if planes == 1:
        return (new.z_um or 0.0,)
    if new.z_um is None:
        raise AcquisitionFailed(
            f"the z of the slices of {new.key} is not known",
            wanted="events with 'z', or CaptureHook(..., z_um=[...])",
        )
    if first is None or first.metadata.z_um is None or first.metadata.z_index == new.z_index:
        return None
    step = (new.z_um - first.metadata.z_um) / (new.z_index - first.metadata.z_index)
    start = new.z_um - new.z_index * step
    return tuple(round(start + index * step, 6) for index in range(planes))


def _step(z_um: Sequence[float]) -> float:
    return abs(z_um[-1] - z_um[0]) / max(len(z_um) - 1, 1)
