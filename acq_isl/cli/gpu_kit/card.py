"""What the kit has at hand: a card, TensorRT in either flavour, a model, a folder of its own."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.tensorrt.api import PACKAGES, Flavour, FlavourName, load_flavour
from acq_isl.engines.tensorrt.cuda import Device
from acq_isl.engines.tensorrt.plan_cache import PlanStore
from acq_isl.errors import EngineError

FLAVOURS: tuple[FlavourName, ...] = ("rtx", "tensorrt")


SIDES_PX = (512, 1024, 2048)


class NeedsCard(EngineError):
    """From here on a step needs a GPU, and there is none."""


@dataclass(frozen=True, slots=True)
class Card:
    """What steps are given. Sent to another process, so it holds names only and opens things when asked."""

    model: str
    folder: Path
    sides_px: tuple[int, ...] = SIDES_PX
    rounds: int = 7
    copied_bytes: int = 1 << 28  # by each copy that measures bandwidth

    def file(self) -> ModelFile:
        return read_model(self.model)

    @property
    def store(self) -> PlanStore:
        """The kit's own plans, so that it builds what it looks at."""
        return PlanStore(self.folder / "plans")

    @property
    def field_px(self) -> tuple[int, int]:
        side = self.sides_px[len(self.sides_px) // 2]
        return side, side

    def device(self, ordinal: int = 0) -> Device:
        """The GPU, opened; NeedsCard without one."""
        try:
            return Device(ordinal)
        except EngineError as error:
            raise NeedsCard(error.what, wanted=error.wanted, got=error.got, fix=error.fix) from error

    def flavour(self, name: FlavourName) -> Flavour | None:
        """TensorRT in this flavour; None where it is not installed, EngineError if it does not load."""
        package = PACKAGES[name]
        return None if importlib.util.find_spec(package) is None else load_flavour(name)
