"""Exposures become counts on one thread of their own, while the core still exposes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self, TypeVar

import numpy as np

from acq_isl.errors import ScopeError
from acq_isl.sim.scope.camera import Camera, CountsImage, compute_flux
from acq_isl.sim.scope.config import ScopeSettings
from acq_isl.sim.scope.exposure import Exposure
from acq_isl.sim.scope.timeline import Timeline
from acq_isl.sim.view import Preparable, Specimen, View

_log = logging.getLogger(__name__)
_RENDER_TIMEOUT_S = 60.0
_FARTHEST = 1.6  # steps longer than so many widths of the view are no scan

Result = TypeVar("Result")


class Renderer:
    """The one thread on which the specimen is rendered, and one that prepares where a scan will come to."""

    def __init__(self, specimen: Specimen, camera: Camera, settings: ScopeSettings) -> None:
        self._specimen, self._camera, self._settings = specimen, camera, settings
        self.timeline = Timeline(settings.time_scale)
        self._prefetch: Prefetch | None = None

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="simulated camera")
        self._open, self._prefetch = ExitStack(), None
        if self._settings.prepare_ahead and isinstance(self._specimen, Preparable):
            prefetch = Prefetch(self._specimen.prepare, self._settings.prepare_ahead)
            self._prefetch = self._open.enter_context(prefetch)
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def submit(self, exposure: Exposure, frame: tuple[int, int]) -> Future[CountsImage]:
        """Begin to render; ``frame`` is number of sequence and of image, for the noise."""
        brightness = self._settings.light(exposure.view.channel).brightness
        dated = self.timeline.record(exposure, frame, brightness)
        return self._thread.submit(self._render, dated, frame)

    def truth(self, view: View) -> dict[str, Any]:
        """True label images of the specimen for a view."""
        return wait_for_result(self._thread.submit(self._specimen.truth, view))

    def _render(self, exposure: Exposure, frame: tuple[int, int]) -> CountsImage:
        view = exposure.view
        if exposure.lit and view.channel in self._specimen.channels:
            lamp = self._settings.light(view.channel)
            light = self._specimen.render(view)
            if self._prefetch is not None:
                self._prefetch.follow(view)
            brightness = lamp.brightness * exposure.lamp
            flux = compute_flux(exposure.exposure_ms, lamp.nominal_exposure_ms, brightness, view.binning)
        else:
            light, flux = np.zeros(view.shape, np.float32), 0.0
        if light.shape != view.shape:
            raise ScopeError(
                f"the specimen rendered an image of the wrong size in channel {view.channel}",
                wanted=str(view.shape),
                got=str(light.shape),
            )
        glow = self._camera.glow(view, exposure.exposure_ms)
        counts = self._camera.read(light, flux=flux, bit_depth=exposure.bit_depth, frame=frame, glow=glow)
        pixels: CountsImage = counts.astype(f"u{exposure.bytes_per_pixel}", copy=False)
        return pixels


def wait_for_result(future: Future[Result]) -> Result:
    """Result of the renderer, with its error or a time-out as ScopeError."""
    try:
        return future.result(_RENDER_TIMEOUT_S)
    except ScopeError:
        raise
    except TimeoutError as error:
        raise ScopeError(f"the specimen took longer than {_RENDER_TIMEOUT_S:g} s to render") from error
    except Exception as error:
        raise ScopeError(
            "the specimen could not be rendered",
            got=f"{type(error).__name__}: {error}",
            fix="call render(view) of the specimen with scope.view() to see where",
        ) from error


def predict_scan(before: View, now: View, count: int) -> tuple[View, ...]:
    """Where a scan will look next: the same step again, ``count`` times, if it is about a field of view."""
    x_um, y_um = now.x_um - before.x_um, now.y_um - before.y_um
    height, width = (side * now.pixel_size_um for side in now.shape)
    alike = before.shape == now.shape and before.pixel_size_um == now.pixel_size_um
    length = max(abs(x_um) / width, abs(y_um) / height)
    if not alike or length == 0 or length > _FARTHEST:
        return ()
    return tuple(
        replace(now, x_um=now.x_um + n * x_um, y_um=now.y_um + n * y_um) for n in range(1, count + 1)
    )


class Prefetch:
    """Prepares places on a thread of its own; what comes while it is busy and full is dropped and counted."""

    def __init__(self, prepare: Callable[[View], None], count: int) -> None:
        self._prepare, self._count = prepare, count
        self._pending: list[Future[None]] = []
        self._last: View | None = None
        self.dropped = 0

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare specimen")
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def follow(self, view: View) -> None:
        """Prepare what comes after a view that was exposed; returns at once."""
        before, self._last = self._last, view
        for place in () if before is None else predict_scan(before, view, self._count):
            self._pending = [future for future in self._pending if not future.done()]
            if len(self._pending) > self._count:  # the others wait for the first
                self.dropped += 1
            else:
                self._pending.append(self._thread.submit(self._prepare_quietly, place))

    def _prepare_quietly(self, place: View) -> None:
        try:
            self._prepare(place)
        except Exception:  # noqa: BLE001
            # The exposure itself will meet the same error and tell the user.
            _log.debug("a place could not be prepared ahead", exc_info=True)
