"""An action: select a preset, then image the field in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from acq_isl.errors import ActionRefused
from acq_isl.rules import Action, ActionTools, Limits, Occasion
from acq_isl.stack import StackInfo, StackKey


class PresetAndImage(Action):
    """Select a preset of the group ``Channel`` and take one plane in it, in the middle of the stack."""

    kind: Literal["preset_and_image"] = "preset_and_image"
    preset: str
    exposure_ms: float

    @property
    def title(self) -> str:
        return f"image in {self.preset} for {self.exposure_ms:g} ms"

    def check(self, info: StackInfo, limits: Limits) -> None:
        if limits.exposure_ms is not None and self.exposure_ms > limits.exposure_ms:
            raise ActionRefused(
                f"{self.preset} would be exposed for too long",
                wanted=f"at most {limits.exposure_ms:g} ms",
                got=f"{self.exposure_ms:g} ms",
            )

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        field = occasion.field
        middle_um = (field.z_um[0] + field.z_um[-1]) / 2
        plane = replace(
            field,
            key=StackKey(field.key.time, field.key.position, self.preset),
            z_um=(middle_um,),
            preset=self.preset,
            exposure_ms=self.exposure_ms,
            modality="fluorescence",
            polarity="unknown",
            predict=False,
        )
        tools.acquire(plane)
        return "done"
