"""How much light a specimen may get, and has got, by place. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ActionRefused
from acq_isl.stack import StackRequest

_ROUNDING = 1e-9
Unit = Literal["ms", "mJ/cm2"]


class LightBudget(StrictModel):
    """Most light through some presets, on every field or in the whole run; give ``ms`` or ``mj_cm2``.

    A field has got the light of every stack whose field of view covered its middle, whatever its name.
    """

    per: Literal["field", "run"] = "field"
    presets: tuple[str, ...] = Field(min_length=1)
    """Their light is added up."""
    ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Exposure, in milliseconds."""
    mj_cm2: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Dose in the specimen; needs ``irradiance_mw_cm2`` of these presets."""

    @model_validator(mode="after")
    def _one_unit(self) -> LightBudget:
        if (self.ms is None) == (self.mj_cm2 is None):
            raise ValueError("give either 'ms' or 'mj_cm2', not both and not neither")
        return self

    @property
    def most(self) -> tuple[float, Unit]:
        return (self.ms, "ms") if self.ms is not None else (float(self.mj_cm2 or 0.0), "mJ/cm2")


class LightLimits(StrictModel):
    """What light costs, and how much there is; a stack that would exceed a budget is not begun."""

    irradiance_mw_cm2: dict[str, float] = Field(default_factory=dict)
    """In the specimen, by preset, as measured with a power meter: 1 mW/cm2 for 1 s is 1 mJ/cm2."""
    budgets: tuple[LightBudget, ...] = ()

    @model_validator(mode="after")
    def _calibrated(self) -> LightLimits:
        for preset, value in self.irradiance_mw_cm2.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"irradiance_mw_cm2 of {preset} must be more than 0, got {value}")
        for budget in self.budgets:
            unknown = [name for name in budget.presets if name not in self.irradiance_mw_cm2]
            if budget.mj_cm2 is not None and unknown:
                raise ValueError(f"a budget in mJ/cm2 needs irradiance_mw_cm2 of {', '.join(unknown)}")
        return self

    def cost(self, preset: str, ms: float, unit: Unit) -> float:
        """What so many milliseconds through a preset cost, in ms or mJ/cm2."""
        return ms if unit == "ms" else ms * self.irradiance_mw_cm2[preset] / 1e3


@dataclass(frozen=True, slots=True)
class Dose:
    """Light of some slices: where (middle and size of the field of view, um), through what, how long."""

    time: int
    position: str
    preset: str
    x_um: float
    y_um: float
    fov_um: tuple[float, float]
    ms: float

    def covers(self, x_um: float, y_um: float) -> bool:
        width, height = self.fov_um
        near = abs(x_um - self.x_um) <= width / 2, abs(y_um - self.y_um) <= height / 2
        return all(near)


class LightLedger:
    """All light of a run, by place; ``fov_um`` is width and height of a field of view."""

    def __init__(self, limits: LightLimits, fov_um: tuple[float, float] = (1.0, 1.0)) -> None:
        self._limits, self._fov_um = limits, fov_um
        self._doses: list[Dose] = []

    @property
    def doses(self) -> tuple[Dose, ...]:
        return tuple(self._doses)

    @staticmethod
    def entries_of(request: StackRequest) -> dict[str, Any]:
        """What has to be written down with a dose, so that it can be taken up again."""
        place = {"time_point": request.key.time, "preset": request.preset}
        return place | {"x_um": request.x_um, "y_um": request.y_um}

    def book(self, request: StackRequest, slices: int) -> None:
        """So many slices of a stack were exposed."""
        key, ms = request.key, request.exposure_ms * slices
        place = request.x_um, request.y_um
        self._doses.append(Dose(key.time, key.position, request.preset, *place, self._fov_um, ms))

    def take_up(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Light of an earlier process, as `entries_of` and a ledger wrote it down."""
        for line in lines:
            if line.get("kind") == "dose" and "x_um" in line:
                place = line["position"], line["preset"], line["x_um"], line["y_um"]
                self._doses.append(Dose(line["time_point"], *place, self._fov_um, line["exposure_ms"]))

    def got_ms(self, x_um: float, y_um: float) -> dict[str, float]:
        """Light that a point of the specimen (stage coordinates) has got, in ms by preset."""
        sums: dict[str, float] = {}
        for dose in self._doses:
            if dose.covers(x_um, y_um):
                sums[dose.preset] = sums.get(dose.preset, 0.0) + dose.ms
        return sums

    def check(self, request: StackRequest) -> None:
        """ActionRefused if a stack would exceed a budget; says which, and what is left of it."""
        wanted_ms = request.exposure_ms * len(request.z_um)
        for budget in self._limits.budgets:
            if request.preset not in budget.presets:
                continue
            most, unit = budget.most
            spent = self._spent(budget, request, unit)
            cost = self._limits.cost(request.preset, wanted_ms, unit)
            if spent + cost > most * (1 + _ROUNDING):
                where = "this field" if budget.per == "field" else "this run"
                raise ActionRefused(
                    f"not done: the light of {request.key}",
                    wanted=f"at most {most:g} {unit} of {' and '.join(budget.presets)} on {where}",
                    got=f"{spent:g} {unit} spent, {cost:g} {unit} more asked for",
                    fix="nothing, if the dose is spent; else raise limits.light.budgets in the experiment",
                )

    def _spent(self, budget: LightBudget, request: StackRequest, unit: Unit) -> float:
        here = (
            self.got_ms(request.x_um, request.y_um).items()
            if budget.per == "field"
            else ((dose.preset, dose.ms) for dose in self._doses)
        )
        return sum(self._limits.cost(name, ms, unit) for name, ms in here if name in budget.presets)


def explain_light(
    ledger: LightLedger, limits: LightLimits, fields: int, overview: Iterable[str]
) -> list[str]:
    """One sentence for each preset but those of the overview: what was spent, and what was avoided.

    Imaging everything would have taken, at each of ``fields`` visits, what a lit one took on average.
    """
    planned = set(overview)
    found = []
    for preset in dict.fromkeys(dose.preset for dose in ledger.doses if dose.preset not in planned):
        doses = [dose for dose in ledger.doses if dose.preset == preset]
        lit = {(dose.time, round(dose.x_um), round(dose.y_um)) for dose in doses}  # whatever it is called
        spent_ms = sum(dose.ms for dose in doses)
        all_ms = spent_ms / len(lit) * max(fields, len(lit))
        text = f"{preset}: {_amount(limits, preset, spent_ms)} of light on {len(lit)} of {fields} fields"
        if all_ms > spent_ms:
            text += (
                f"; imaging all of them would have taken {_amount(limits, preset, all_ms)}, so "
                f"{1 - spent_ms / all_ms:.0%} was avoided"
            )
        found.append(f"{text}.")
    return found


def _amount(limits: LightLimits, preset: str, ms: float) -> str:
    text = f"{ms / 1e3:.3g} s"
    if preset in limits.irradiance_mw_cm2:
        text += f" ({limits.cost(preset, ms, 'mJ/cm2'):.3g} mJ/cm2 in sum)"
    return text
