"""What a guarded acquisition does with each image: capture it, ask the user's hooks, follow it to disk."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from acq_isl.hooks.capture import CaptureHook
from acq_isl.hooks.progress import AxesKey, Progress, axes_key
from acq_isl.hooks.pycromanager_backend import Run
from acq_isl.hooks.user_hooks import UserHooks, check_images, report_failure

Images = list[tuple[Any, dict[str, Any]]]


class ImageHooks:
    """The image functions of a guarded acquisition, of which none raises; the capture hook comes first."""

    def __init__(self, capture: CaptureHook, progress: Progress, user: UserHooks) -> None:
        self._capture = capture
        self._progress = progress
        self._user = user
        self._run: Run | None = None

    def connect(self, run: Run) -> None:
        """From now on extra images go into the storage of this acquisition."""
        self._run = run

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Keyword arguments for ``pycromanager.Acquisition``."""
        functions: dict[str, Callable[..., Any]] = {
            "image_process_fn": self.process,
            "image_saved_fn": self.note_saved,
        }
        if self._user.notification is not None:
            functions["notification_callback_fn"] = self.notify
        return functions

    def process(self, image: Any, metadata: Any) -> Any:
        """``image_process_fn``: always returns what storage can take, if need be the measured image."""
        image, metadata = self._capture(image, metadata)
        key = _key(metadata)
        if self._user.image_process is None or self._progress.failure is not None or self._run is None:
            self._progress.note_captured(key)
            return image, metadata
        images = self._process(key, image, metadata)
        self._progress.note_captured(key, [_key(made) for _, made in images])
        return self._run.make_answer(images)

    def _process(self, key: AxesKey, image: Any, metadata: dict[str, Any]) -> Images:
        """What the user's function makes of an image, checked; the measured image where it fails."""
        function = self._user.image_process
        unchanged = [(image, copy.deepcopy(metadata))]
        with report_failure("image_process", self._progress):
            self._progress.note_hook()
            # A copy, since the array may be on its way to the sink.
            return unchanged if function is None else check_images(key, function(image.copy(), metadata))
        return unchanged

    def note_saved(self, axes: Any, dataset: Any) -> None:
        """``image_saved_fn``: the image is stored if the dataset says so."""
        with report_failure("image_saved", self._progress):
            if dataset.has_image(**axes):
                self._progress.note_stored(axes_key(axes))
            if self._user.image_saved is not None and self._progress.failure is None:
                self._user.image_saved(axes, dataset)

    def notify(self, notification: Any) -> None:
        """``notification_callback_fn``."""
        with report_failure("notification", self._progress):
            if self._user.notification is not None and self._progress.failure is None:
                self._user.notification(notification)


def _key(metadata: Mapping[str, Any]) -> AxesKey:
    axes = metadata.get("Axes")
    return axes_key(axes) if isinstance(axes, Mapping) else frozenset()
