"""The capture hook: each slice leaves for its sink the moment it is captured; the data stays as it is."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from secrets import randbits
from typing import Any

import numpy as np

from acq_isl.compatibility import check_heights
from acq_isl.errors import AcqIslError, AcquisitionFailed, ExperimentError
from acq_isl.hooks.events import announced_key
from acq_isl.hooks.held_slices import CapturedSlice, HeldSlices
from acq_isl.hooks.identity import Identities
from acq_isl.hooks.metadata import SliceMetadata, read_metadata
from acq_isl.protocols import CopyingSink, MeasuredSink, SliceSink
from acq_isl.record import Counts
from acq_isl.stack import Modality, Polarity, Slice, StackInfo, StackKey, StackRequest, Uint16Image
from acq_isl.stream.accounts import AFTER_DRAIN, SECOND_IMAGE, AccountingSink, Fate, SliceAccounts
from acq_isl.stream.callback import Callback

logger = logging.getLogger(__name__)

_OPEN_STACKS = 1 << 16
_PROBLEMS_KEPT = 100
_SINK_S = 2.0


@dataclass(frozen=True, slots=True, eq=False)
class _OpenStack:
    """A stack whose z is known, its key in the metadata, what has come of it, and on which thread."""

    key: StackKey
    info: StackInfo
    thread: weakref.ref[threading.Thread]
    arrived: set[int] = field(default_factory=set)
    ended: bool = False


class _NotTaken(Exception):
    """A slice that does not go to the sink, and what becomes of it instead."""

    def __init__(self, fate: Fate, why: str, problem: AcqIslError | None = None) -> None:
        super().__init__(why)
        self.fate, self.why, self.problem = fate, why, problem


class CaptureHook:
    """An ``image_process_fn`` that hands every slice to a sink and leaves the acquisition alone.

    Two lines in a notebook:

        hook = CaptureHook(sink, planes=13)
        with Acquisition(directory, name, image_process_fn=hook) as acq: ...

    It never raises, never waits, and always returns the image and metadata it was given. What goes
    wrong is kept in `problems` for whoever owns the hook, and `counts` says what became of every slice. The
    pixels are copied once: by the sink, if it is a `CopyingSink` that copies, else here. Acquisitions one
    after the other, and cameras that expose at once, have stacks of their own, whatever their axes.

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
        self._accounts = SliceAccounts()
        self._put: Callable[[Slice], None] = _put_nowhere
        if isinstance(sink, AccountingSink):  # ours, which never wait
            self._accounts, self._put = sink.accounts, sink.put
        elif sink is not None:
            self._put = Callback(sink.put, "the sink", _SINK_S)
        self._sink_copies = isinstance(sink, CopyingSink) and sink.copies
        self._measured = sink if isinstance(sink, MeasuredSink) else None
        self._pixel_size_um = pixel_size_um
        self._modality: Modality = modality
        self._polarity: Polarity = polarity
        self._lock = threading.Lock()
        self._acquisition = randbits(62)
        self._identities = Identities()
        self._last_image: Any = None
        self._requests: dict[StackKey, StackRequest] = {}
        self._open: OrderedDict[StackKey, _OpenStack] = OrderedDict()
        self._held = HeldSlices() if held is None else held
        self._problems: deque[AcqIslError] = deque(maxlen=_PROBLEMS_KEPT)
        self.problem_count = 0
        self.put_count = 0  # slices that the sink took; `counts` says more

    @classmethod
    def for_requests(cls, sink: SliceSink | None) -> CaptureHook:
        """A hook whose stacks are announced one by one with `expect`, as the guarded acquisition does."""
        return cls(sink, planes=1)

    @property
    def problems(self) -> tuple[AcqIslError, ...]:
        """What went wrong so far, the latest hundred; ``problem_count`` counts all."""
        with self._lock:
            return tuple(self._problems)

    @property
    def counts(self) -> Counts:
        """What became of every slice; with a sink that does not account for them, of those not handed on."""
        return self._accounts.counts

    def begin_acquisition(self) -> None:
        """What this thread hands over from now on is of another acquisition than what it did before."""
        with self._lock:
            self._identities.begin()

    def expect(self, request: StackRequest) -> None:
        """Announce a stack; its slices get the request's z, place and optics."""
        with self._lock:
            self._requests[announced_key(request)] = request

    def forget(self, key: StackKey) -> None:
        """Expect an announced stack no longer; ``key`` as its metadata has it."""
        with self._lock:
            self._requests.pop(key, None)
            self._open.pop(key, None)

    def flush(self) -> None:
        """End all stacks: the acquisition is over.

        A slice that still waits for the second one of its stack is handed on as a stack of one plane, so
        that the sink counts it and an engine says why it cannot predict it.
        """
        with self._lock:
            self._open.update({key: replace(stack, ended=True) for key, stack in self._open.items()})
            waiting = len(self._held)
        for _ in range(waiting):
            self._put_oldest_alone()

    def close(self) -> None:
        """End the thread that the sink may have; it begins again with the next slice."""
        if isinstance(self._put, Callback):
            self._put.close()

    def __call__(self, image: Any, metadata: Any) -> tuple[Any, Any]:
        """Called by Pycro-Manager with each image, on its image thread."""
        self._accounts.capture()
        with self._ending():
            if metadata.get("PixelType") is None:
                metadata["PixelType"] = "GRAY8" if image.dtype == np.uint8 else "GRAY16"
            if self._put is _put_nowhere:
                raise _NotTaken("not wanted", "there is no sink")
            self._take(image, metadata, time.time())
        return image, metadata

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Book the slice that is not taken. Nothing may be raised: it would end Pycro-Manager's thread."""
        try:
            yield
        except _NotTaken as turned:
            self._accounts.end(turned.fate, turned.why)
            if turned.problem is not None:
                self._note(turned.problem)
        except Exception as error:
            logger.warning("the capture hook failed", exc_info=True)
            self._accounts.end("lost", "it could not be handed on")
            failed = AcquisitionFailed("a captured slice could not be handed on", got=repr(error))
            self._note(error if isinstance(error, AcqIslError) else failed)

    def _take(self, image: Any, tags: Any, captured_s: float) -> None:
        try:
            metadata = read_metadata(tags)
        except AcquisitionFailed as problem:
            raise _NotTaken("refused", "its metadata cannot be read", problem) from problem
        metadata, request = self._identify(metadata)
        if request is not None and not request.predict and self._measured is None:
            raise _NotTaken("not wanted", "measured only")
        planes = len(request.z_um) if request is not None else self._planes or 1
        if not 0 <= metadata.z_index < planes:
            raise _NotTaken("not wanted", "more slices than planned", _beyond(metadata, planes))
        new = CapturedSlice(metadata, self._pixels(image, metadata), captured_s)
        with self._lock:
            known, first = self._open.get(metadata.key), self._held.get(metadata.key)
        if known is None:
            z_um = request.z_um if request is not None else self._z_um or _z_of_all(metadata, first, planes)
            if z_um is None:
                self._hold(new)
                return
            known = _OpenStack(metadata.key, self._info(first or new, request, z_um), _this_thread())
        if known.ended:
            raise _NotTaken("not wanted", AFTER_DRAIN, _late(metadata))
        self._check(known, new)
        if first is not None:
            with self._lock:
                if self._held.get(metadata.key) is not first:  # `flush` ended its stack just now
                    raise _NotTaken("not wanted", AFTER_DRAIN, _late(metadata))
                first = self._held.take(metadata.key)
            self._deliver(known, first, request)
        self._deliver(known, new, request)

    def _identify(self, metadata: SliceMetadata) -> tuple[SliceMetadata, StackRequest | None]:
        """The slice with the key of its own stack, and how that was announced."""
        with self._lock:
            named = self._identities.name(metadata)
            known = self._open.get(named.key)
            again = known is not None and metadata.z_index in known.arrived
            if again and known and (known.ended or known.thread() is not threading.current_thread()):
                self._identities.begin()
                named = self._identities.name(metadata)
            return named, self._requests.get(metadata.key)

    def _info(self, first: CapturedSlice, request: StackRequest | None, z_um: tuple[float, ...]) -> StackInfo:
        """What is known of a stack from its first slice, and from its announcement."""
        metadata = first.metadata
        return StackInfo(
            key=metadata.key if request is None else request.key,
            z_um=z_um,
            shape=(first.pixels.shape[0], first.pixels.shape[1]),
            pixel_size_um=metadata.pixel_size_um if self._pixel_size_um is None else self._pixel_size_um,
            x_um=metadata.x_um if request is None else request.x_um,
            y_um=metadata.y_um if request is None else request.y_um,
            exposure_ms=metadata.exposure_ms,
            modality=self._modality if request is None else request.modality,
            polarity=self._polarity if request is None else request.polarity,
        )

    def _pixels(self, image: Any, metadata: SliceMetadata) -> Uint16Image:
        last, self._last_image = self._last_image, image
        if metadata.snapped and metadata.camera_index and np.array_equal(last, image):
            problem = AcquisitionFailed(
                f"the image of camera {metadata.camera!r} is that of another camera",
                fix="pycromanager's Python core gives one camera's image of a snap for all: image the "
                "cameras one by one, or let z run as a hardware sequence",
            )
            raise _NotTaken("refused", "the image of another camera", problem)
        if image.ndim != 2 or image.dtype not in (np.uint16, np.uint8):
            problem = AcquisitionFailed(
                "a captured slice cannot be predicted",
                wanted="a (y, x) image of 8 or 16 bits",
                got=f"{image.shape} {image.dtype}",
                fix="set the camera to 16 bits monochrome",
            )
            raise _NotTaken("refused", "not a (y, x) image of 8 or 16 bits", problem)
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
            problem = AcquisitionFailed(
                f"slice z={metadata.z_index} of {info.key} has another size than the first one",
                wanted=f"{info.shape}",
                got=f"{new.pixels.shape}",
                fix="do not change ROI or binning within a stack",
            )
            raise _NotTaken("refused", "another size than its stack", problem)
        if metadata.z_index in stack.arrived:
            raise _NotTaken("not wanted", SECOND_IMAGE, _second_image(metadata))
        z, wanted = metadata.z_index, info.z_um[metadata.z_index]
        if metadata.z_um is None or abs(metadata.z_um - wanted) <= 1e-3 + 0.02 * _step(info.z_um):
            return
        problem = AcquisitionFailed(
            f"slice z={z} of {info.key} is not where the z step says",
            wanted=f"{wanted:.3f} um",
            got=f"{metadata.z_um:.3f} um",
            fix="give the capture hook z_um=[...] with the z of every slice",
        )
        really = (*info.z_um[:z], metadata.z_um, *info.z_um[z + 1 :])
        if check_heights(info.z_um) is None and check_heights(really) is not None:
            raise _NotTaken("refused", "not where the z step says", problem)
        self._note(problem)

    def _deliver(self, stack: _OpenStack, slice_: CapturedSlice, request: StackRequest | None) -> None:
        """Hand a slice on, and remember its stack, also once it is complete: to know a second image by."""
        info, z = stack.info, slice_.metadata.z_index
        with self._lock:
            self._remember(stack)
        with self._ending():
            self._give(Slice(info, z, slice_.pixels, slice_.captured_s, self._acquisition), request)
            stack.arrived.add(z)

    def _remember(self, stack: _OpenStack) -> None:
        self._open[stack.key] = stack
        if len(self._open) > _OPEN_STACKS:
            self._open.popitem(last=False)

    def _give(self, slice_: Slice, request: StackRequest | None) -> None:
        if request is not None and not request.predict and self._measured is not None:
            self._measured.put_measured(slice_)
            raise _NotTaken("not wanted", "measured only")
        self._put(slice_)
        self.put_count += 1
        self._accounts.hand_on()

    def _hold(self, slice_: CapturedSlice) -> None:
        """Keep a slice until the second one of its stack says what the z step is."""
        with self._lock:
            if self._held.get(slice_.metadata.key) is not None:
                raise _NotTaken("not wanted", SECOND_IMAGE, _second_image(slice_.metadata))
            self._held.add(slice_)
            full = self._held.full
        if full:
            self._put_oldest_alone()

    def _put_oldest_alone(self) -> None:
        """Hand a slice without a second one on as the stack of one plane that it is."""
        with self._ending():
            with self._lock:
                if not len(self._held):  # its second one came meanwhile
                    return
                slice_ = self._held.take_oldest()
            metadata = slice_.metadata
            self._note(
                AcquisitionFailed(
                    f"the stack {metadata.key} has only one slice, z={metadata.z_index}",
                    wanted=f"{self._planes} slices, numbered by the axis 'z'",
                    fix="name the axis of the slices 'z', or give the capture hook planes=1",
                )
            )
            info = self._info(slice_, None, (metadata.z_um or 0.0,))
            with self._lock:
                self._remember(_OpenStack(info.key, info, _this_thread(), {metadata.z_index}, ended=True))
            self._give(Slice(info, 0, slice_.pixels, slice_.captured_s, self._acquisition), None)

    def _note(self, problem: AcqIslError) -> None:
        with self._lock:
            self._problems.append(problem)
            self.problem_count += 1


def _beyond(metadata: SliceMetadata, planes: int) -> AcquisitionFailed:
    return AcquisitionFailed(
        f"slice z={metadata.z_index} of {metadata.key} is saved, but not predicted",
        wanted=f"z from 0 to {planes - 1} ({planes} planes)",
        fix="multi_d_acquisition_events makes one slice too many for some steps: use z_end - step/2",
    )


def _put_nowhere(slice_: Slice) -> None:
    """There is no sink."""


def _this_thread() -> weakref.ref[threading.Thread]:
    return weakref.ref(threading.current_thread())


def _late(metadata: SliceMetadata) -> AcquisitionFailed:
    return AcquisitionFailed(
        f"slice z={metadata.z_index} of {metadata.key} came after drain, when its stack had been given up",
        fix="drain when the acquisition is closed; the slice is in the measured data",
    )


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
        problem = AcquisitionFailed(
            f"the z of the slices of {new.key} is not known",
            wanted="events with 'z', or CaptureHook(..., z_um=[...])",
        )
        raise _NotTaken("refused", "its z is not known", problem)
    if first is None or first.metadata.z_um is None or first.metadata.z_index == new.z_index:
        return None
    step = (new.z_um - first.metadata.z_um) / (new.z_index - first.metadata.z_index)
    start = new.z_um - new.z_index * step
    return tuple(round(start + index * step, 6) for index in range(planes))


def _step(z_um: Sequence[float]) -> float:
    return (max(z_um) - min(z_um)) / max(len(z_um) - 1, 1)
