"""Frames of pymmcore-plus' MDA runner, as the images of Pycro-Manager that the capture hook knows.

Nothing of pymmcore-plus is imported: its runner finds these methods by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import useq

from acq_isl.hooks.capture import CaptureHook

_AXES = {"t": "time", "z": "z"}


class MdaFrames:
    """A handler for ``CMMCorePlus.run_mda(sequence, output=[..., handler])``; never raises, never waits."""

    def __init__(self, hook: CaptureHook) -> None:
        self._hook = hook
        self._names: dict[tuple[str, str], int] = {}

    def sequenceStarted(self, sequence: useq.MDASequence, metadata: Any = None) -> None:
        """Stacks of this acquisition are others than those before, whatever their axes."""
        self._names.clear()
        self._hook.begin_acquisition()

    def frameReady(self, image: Any, event: useq.MDAEvent, metadata: Mapping[str, Any]) -> None:
        """Hand a frame on; ``image`` is (y, x) uint16 or uint8."""
        # A dict of our own: what the hook adds to it is no business of the runner's other handlers.
        self._hook(image, self._tags(event, metadata))

    def sequenceFinished(self, sequence: useq.MDASequence) -> None:
        """Slices that wait for the second one of their stack wait no longer."""
        self._hook.flush()

    def _tags(self, event: useq.MDAEvent, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """What Pycro-Manager's metadata would say of a frame; places in um, exposure in ms."""
        index = {str(axis): number for axis, number in event.index.items()}
        position, channel = index.pop("p", None), index.pop("c", 0)
        axes: dict[str, Any] = {_AXES.get(axis, axis): number for axis, number in index.items()}
        if event.channel is not None:
            axes["channel"] = self._tell_apart("channel", event.channel.config, channel)
        if event.pos_name or position is not None:
            axes["position"] = self._tell_apart("position", event.pos_name or f"p{position}", position or 0)
        z_um = event.z_pos if event.z_pos is not None else metadata.get("position", {}).get("z")
        return {
            "Axes": axes,
            "ZPosition_um_Intended": z_um,
            "XPosition_um_Intended": event.x_pos,
            "YPosition_um_Intended": event.y_pos,
            "Exposure": metadata.get("exposure_ms", event.exposure),
            "PixelSize_um": metadata.get("pixel_size_um"),
            "Camera": metadata.get("camera_device"),
        }

    def _tell_apart(self, axis: str, name: str, number: int) -> str:
        """Two positions or channels of one name are two all the same; the first one keeps it."""
        return name if self._names.setdefault((axis, name), number) == number else f"{name} {number}"
