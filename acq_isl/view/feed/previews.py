"""Pictures small enough to send, from full-size planes and predictions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.events import EventHandler, Predicted, Seen
from acq_isl.protocols import CopyingSink, SliceSink
from acq_isl.stack import Slice, StackInfo, Uint16Image
from acq_isl.stream.accounts import AccountingSink, SliceAccounts
from acq_isl.view.feed.messages import PREVIEW_PX, Images


def reduction(shape: tuple[int, int], longest_px: int = PREVIEW_PX) -> int:
    """By which whole number a picture is reduced so that its longest side fits ``longest_px``."""
    return max(-(-max(shape) // longest_px), 1)


def thin(plane: Uint16Image, longest_px: int = PREVIEW_PX) -> Uint16Image:
    """Every n-th pixel of a (y, x) plane, a copy: a tenth of the time that averaging takes."""
    step = reduction((plane.shape[0], plane.shape[1]), longest_px)
    rows, columns = (max(side // step, 1) for side in plane.shape)
    return plane[: rows * step : step, : columns * step : step].copy()


def average(planes: NDArray[Any], longest_px: int = PREVIEW_PX) -> NDArray[np.float32]:
    """(..., y, x) reduced by averaging blocks, float32; rows and columns that fill no block are left out."""
    step = reduction((planes.shape[-2], planes.shape[-1]), longest_px)
    if step == 1:
        return np.asarray(planes, np.float32)
    rows, columns = (max(side // step, 1) for side in planes.shape[-2:])
    if min(planes.shape[-2:]) < step:  # a strip thinner than a block
        return np.asarray(planes[..., : rows * step : step, : columns * step : step], np.float32)
    cut = planes[..., : rows * step, : columns * step]
    blocks = cut.reshape(*planes.shape[:-2], rows, step, columns, step)
    # A product with ones sums the short last axis at the speed of memory, several times faster than mean().
    ones = np.full(step, 1 / (step * step), np.float32)
    reduced: NDArray[np.float32] = (np.asarray(blocks, np.float32) @ ones).sum(axis=-2)
    return reduced


def eight_bit(planes: NDArray[Any]) -> NDArray[np.uint8]:
    """0 to 1 becomes 0 to 255; what lies outside is clipped, what is no number becomes 0."""
    finite = np.nan_to_num(planes, nan=0.0, posinf=1.0, neginf=0.0)
    pixels: NDArray[np.uint8] = (np.clip(finite, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return pixels


def preview_of(slice_: Slice, predict: bool) -> Seen:
    """The event of a slice: where and when, and its pixels thinned."""
    info = slice_.info
    pixels = thin(slice_.pixels)
    x_um, y_um = _middle(info)
    return Seen(
        key=info.key,
        predict=predict,
        x_um=x_um,
        y_um=y_um,
        z_um=info.z_um[slice_.z_index],
        pixel_size_um=info.pixel_size_um * reduction(info.shape),
        shape=(pixels.shape[0], pixels.shape[1]),
        captured_s=slice_.captured_s,
        pixels=pixels,
    )


def reduce_plane(event: Seen) -> tuple[Seen, Images]:
    """A measured plane as it is sent: the event with its display range, and (y, x) uint16 beside it."""
    if event.pixels is None:
        raise ValueError("a plane without pixels cannot be sent")
    # Fluorescence is sparse: the 99th percentile would hide it, a single hot pixel darken it.
    low, high = np.percentile(event.pixels[::2, ::2], (0.5, 99.8 if event.predict else 99.95))
    return replace(event, low=float(low), high=float(high), pixels=None), (event.pixels,)


def reduce_prediction(event: Predicted) -> tuple[Predicted, Images]:
    """A prediction as it is sent: mean (label, y, x) uint8 and uncertainty (y, x) uint8 beside the event."""
    if event.prediction is None:
        raise ValueError("an event without its prediction cannot be sent")
    info = event.prediction.info
    mean = eight_bit(average(event.prediction.mean))
    # One haze for all labels: the label that is least sure decides.
    uncertainty = eight_bit(average(event.prediction.spread.max(axis=0)))
    x_um, y_um = _middle(info)
    reduced = replace(
        event,
        x_um=x_um,
        y_um=y_um,
        pixel_size_um=info.pixel_size_um * reduction(info.shape),
        shape=(mean.shape[1], mean.shape[2]),
        prediction=None,
    )
    return reduced, (mean, uncertainty)


def _middle(info: StackInfo) -> tuple[float, float]:
    """Stage x and y of the middle of a reduced picture, which leaves out what fills no block."""
    step = reduction(info.shape)
    rows, columns = (side - max(side // step, 1) * step for side in info.shape)
    return info.x_um - columns / 2 * info.pixel_size_um, info.y_um - rows / 2 * info.pixel_size_um


class WatchedSink:
    """Hands slices for prediction on to a sink, and emits the middle plane of each stack as `Seen`.

    Called on the acquisition's image thread: it adds the copy of one reduced plane per stack. ``emit`` must
    return quickly and not raise.
    """

    def __init__(self, sink: SliceSink, emit: EventHandler) -> None:
        self._sink = sink
        self._emit = emit
        self.copies = isinstance(sink, CopyingSink) and sink.copies
        self.accounts = sink.accounts if isinstance(sink, AccountingSink) else SliceAccounts()

    def put(self, slice_: Slice) -> None:
        """A slice for prediction."""
        self._sink.put(slice_)
        self._show(slice_, predict=True)

    def put_measured(self, slice_: Slice) -> None:
        """A slice that is measured only, such as fluorescence: the sink does not want it."""
        self._show(slice_, predict=False)

    def _show(self, slice_: Slice, *, predict: bool) -> None:
        if slice_.z_index == slice_.info.middle:
            self._emit(preview_of(slice_, predict))
