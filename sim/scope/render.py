"""Exposures become counts on one thread of their own, while the core still exposes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self, TypeVar

import numpy as np

from acq_isl.errors import ScopeError
from acq_isl.sim.prefetch import Prefetch, Prepares
from acq_isl.sim.scope.camera import Camera, CountsImage, flux_of
from acq_isl.sim.scope.config import ScopeSettings
from acq_isl.sim.scope.exposure import Exposure
from acq_isl.sim.scope.timeline import Timeline
from acq_isl.sim.view import Specimen, View

_RENDER_TIMEOUT_S = 60.0

Result = TypeVar("Result")


class Renderer:
    """Turns exposures into counts on one thread of its own, while the core still exposes.

    The specimen is only rendered on that thread; with ``settings.prepare_ahead`` another one prepares places
    that a scan will come to. Owned by `SimulatedScope`.

    Parameters
    ----------
    specimen : Specimen
    camera : Camera
    settings : ScopeSettings
    """

    def __init__(self, specimen: Specimen, camera: Camera, settings: ScopeSettings) -> None:
        self._specimen, self._camera, self._settings = specimen, camera, settings
        self.timeline = Timeline(settings.time_scale)
        self._prefetch: Prefetch | None = None

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="simulated camera")
        self._open, self._prefetch = ExitStack(), None
        if self._settings.prepare_ahead and isinstance(self._specimen, Prepares):
            prefetch = Prefetch(self._specimen.prepare, self._settings.prepare_ahead)
            self._prefetch = self._open.enter_context(prefetch)
        return self

    def __exit__(self, *error: object) -> None:
        with self._open:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def submit(self, exposure: Exposure, frame: tuple[int, int]) -> Future[CountsImage]:
        """Begin to render; ``frame`` is number of sequence and of image, for the noise."""
        brightness = self._settings.light(exposure.view.channel).brightness
        dated = self.timeline.exposed(exposure, frame, brightness)
        return self._thread.submit(self._render, dated, frame)

    def truth(self, view: View) -> dict[str, Any]:
        """True label images of the specimen for a view."""
        return finished(self._thread.submit(self._specimen.truth, view))

    def _render(self, exposure: Exposure, frame: tuple[int, int]) -> CountsImage:
        view = exposure.view
        if exposure.lit and view.channel in self._specimen.channels:
            lamp = self._settings.light(view.channel)
            light = self._specimen.render(view)
            if self._prefetch is not None:
                self._prefetch.saw(view)
            flux = flux_of(
                exposure.exposure_ms,
                lamp.nominal_exposure_ms,
                brightness=lamp.brightness * exposure.lamp,
                binning=view.binning,
            )
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


def finished(future: Future[Result]) -> Result:
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
