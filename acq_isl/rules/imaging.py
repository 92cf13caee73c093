"""Actions that image something: the field, planes of it, what is around it, or one object in it. Pure."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import ndimage

from acq_isl.errors import ActionRefused
from acq_isl.rules.actions import (
    Action,
    ActionTools,
    Limits,
    Need,
    NeedsPixelToStage,
    NeedsPreset,
    Occasion,
    check_exposure,
    check_place,
    check_preset,
)
from acq_isl.rules.segmenters import Segmenter, Watershed, find_objects
from acq_isl.stack import Prediction, StackInfo, StackRequest

_SURE = 2.0  # errors of so many residuals are reckoned with


class Imaging(Action):
    """What all actions have in common that image in fluorescence."""

    channels: tuple[str, ...] = Field(min_length=1)
    """Presets, imaged in this order."""
    exposure_ms: float = Field(gt=0, allow_inf_nan=False)
    group: str = Field(default="Channel", min_length=1)
    """Micro-Manager configuration group of the presets."""

    def needs(self) -> tuple[Need, ...]:
        return tuple(NeedsPreset(self.group, channel) for channel in self.channels)

    def check(self, info: StackInfo, limits: Limits) -> None:
        for channel in self.channels:
            check_preset(self.title, self.group, channel, limits)
        check_exposure(self.title, self.exposure_ms, limits)
        for x_um, y_um in self._places(info):
            check_place(self.title, x_um, y_um, self._heights(info.z_um), limits)

    @abstractmethod
    def _heights(self, stack_z_um: Sequence[float]) -> tuple[float, ...]:
        """Planes on the stage, of a stack that triggered."""

    def _places(self, info: StackInfo) -> Iterator[tuple[float, float]]:
        """Where it images, as far as that is known from the field."""
        yield info.x_um, info.y_um

    @property
    def _how(self) -> str:
        return f"in {', '.join(self.channels)} ({self.exposure_ms:g} ms"

    def _image(self, field: StackRequest, tools: ActionTools, name: str = "") -> None:
        """Image a place in all channels; ``name`` tells it from the field itself."""
        position = f"{field.key.position}{name}"
        z_um, light = self._heights(field.z_um), self.exposure_ms
        stack = replace(field, z_um=z_um, group=self.group, exposure_ms=light, predict=False)
        stack = replace(stack, modality="fluorescence", polarity="unknown")
        for channel in self.channels:
            key = replace(field.key, channel=channel, position=position)
            tools.acquire(replace(stack, key=key, preset=channel))


class _Planes(Imaging):
    """Images single planes, by default one in the middle of the stack."""

    z_offsets_um: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """Planes relative to the middle of the stack that triggered, in micrometres."""

    def _heights(self, stack_z_um: Sequence[float]) -> tuple[float, ...]:
        middle = (min(stack_z_um) + max(stack_z_um)) / 2
        return tuple(middle + offset for offset in self.z_offsets_um)


class ImageField(_Planes):
    """Image this field in fluorescence now, before the next event; once, or as a fast series."""

    kind: Literal["image"] = "image"
    times: int = Field(default=1, ge=1, le=10_000)
    """How often."""
    every_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """From the beginning of one image to that of the next; 0 is as fast as possible."""

    @property
    def title(self) -> str:
        planes = f", {len(self.z_offsets_um)} planes" if len(self.z_offsets_um) > 1 else ""
        often = f", {self.times} x every {self.every_s:g} s" if self.times > 1 else ""
        return f"image this field {self._how}{planes}{often})"

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        for number in range(self.times):
            if number and self.every_s:
                tools.wait(self.every_s)
            name = f"_n{number:04d}" if number else ""
            try:
                self._image(occasion.field, tools, name)
            except ActionRefused as error:
                if not number:
                    raise
                return f"ended after {number} of {self.times} images: {error}"
        return "done"


class ImageStack(Imaging):
    """Image this field in fluorescence as a z-stack about the middle of the stack that triggered."""

    kind: Literal["z_stack"] = "z_stack"
    range_um: float = Field(gt=0, allow_inf_nan=False)
    """From the lowest plane to the highest."""
    step_um: float = Field(gt=0, allow_inf_nan=False)

    @property
    def title(self) -> str:
        return f"image a z-stack of this field {self._how}, {self.range_um:g} um by {self.step_um:g} um)"

    def _heights(self, stack_z_um: Sequence[float]) -> tuple[float, ...]:
        middle, steps = (min(stack_z_um) + max(stack_z_um)) / 2, round(self.range_um / self.step_um)
        return tuple(round(middle + (n - steps / 2) * self.step_um, 4) for n in range(steps + 1))

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        self._image(occasion.field, tools, "")
        return "done"


class ImageAround(_Planes):
    """Image this field and its neighbours in fluorescence, row by row."""

    kind: Literal["tile"] = "tile"
    rows: int = Field(default=3, ge=1, le=99)
    columns: int = Field(default=3, ge=1, le=99)
    overlap: float = Field(default=0.1, ge=0, lt=1)
    """Share of a field that neighbours have in common."""

    @property
    def title(self) -> str:
        return f"image {self.rows} x {self.columns} fields around this one {self._how})"

    def _places(self, info: StackInfo) -> Iterator[tuple[float, float]]:
        height_um, width_um = (side * info.pixel_size_um * (1 - self.overlap) for side in info.shape)
        for row in range(self.rows):
            for column in range(self.columns):
                x_um = info.x_um + (column - (self.columns - 1) / 2) * width_um
                yield x_um, info.y_um + (row - (self.rows - 1) / 2) * height_um

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        for number, (x_um, y_um) in enumerate(self._places(occasion.prediction.info)):
            name = f"_tile_{number // self.columns}_{number % self.columns}"
            self._image(replace(occasion.field, x_um=x_um, y_um=y_um), tools, name)
        return "done"


class CentreObject(_Planes):
    """Bring one object of a predicted label to the middle of the image, and image it in fluorescence.

    Refused when the object and the circle of what is not known, twice the residual of ``pixel_to_stage``,
    do not fit into the field.
    """

    kind: Literal["centre"] = "centre"
    label: str = Field(min_length=1)
    which: Literal["largest", "brightest", "most central"] = "largest"
    objects_by: Segmenter = Watershed()

    @property
    def title(self) -> str:
        return f"centre the {self.which} object of {self.label} (predicted) and image it {self._how})"

    def needs(self) -> tuple[Need, ...]:
        return (*super().needs(), NeedsPixelToStage())

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        info, affine = occasion.prediction.info, tools.pixel_to_stage
        row, column, radius_um = self.find(occasion.prediction)
        x_um, y_um = affine.offset_um(row, column, info.shape)
        error_um = _SURE * affine.residual_um
        room_um = min(info.shape) * affine.pixel_size_um / 2
        if error_um + radius_um > room_um:
            raise ActionRefused(
                f"not done: {self.title}",
                wanted=f"an object that is surely in the field, {room_um:.3g} um about its middle",
                got=f"a radius of {radius_um:.3g} um, known to {error_um:.3g} um",
                fix="measure pixel_to_stage again (acq-isl affine), or use a lower magnification",
            )
        at = replace(occasion.field, x_um=info.x_um + x_um, y_um=info.y_um + y_um)
        self._image(at, tools, "_centred")
        return f"done: object at x {at.x_um:.1f}, y {at.y_um:.1f} um (to {error_um:.2g} um)"

    def find(self, prediction: Prediction) -> tuple[float, float, float]:
        """Row and column of the object's middle, and its radius in um; ActionRefused if there is none."""
        image, pixel_um = prediction.label(self.label), prediction.info.pixel_size_um
        objects = find_objects(self.objects_by, image, pixel_um)
        numbers = np.arange(1, int(objects.max(initial=0)) + 1)
        if not len(numbers):
            raise ActionRefused(f"not done: {self.title}", got=f"no object of {self.label} in this field")
        middles = np.array(ndimage.center_of_mass(objects > 0, objects, numbers))
        areas = ndimage.sum_labels(np.ones(image.shape), objects, numbers)
        match self.which:
            case "largest":
                best = int(np.argmax(areas))
            case "brightest":
                best = int(np.argmax(ndimage.mean(image, objects, numbers)))
            case "most central":
                away = np.linalg.norm(middles - (np.array(image.shape) - 1) / 2, axis=1)
                best = int(np.argmin(away))
        row, column = middles[best]
        return float(row), float(column), math.sqrt(float(areas[best]) / math.pi) * pixel_um


ACTIONS: tuple[type[Action], ...] = (ImageField, ImageStack, ImageAround, CentreObject)
