"""Random patches of fields."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from acq_isl.errors import PairRefused
from acq_isl.training.data.augment import Augmentation, augment
from acq_isl.training.data.dataset import Field


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Patches: x (N, Z, P, P), y (N, L, P, P) from 0 to 1, weight, 1 where the truth is known, else 0, and
    live (N,) bool, see `Item`."""

    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor
    live: torch.Tensor


@dataclass(frozen=True, slots=True)
class Patches:
    """How patches are drawn; ``foreground`` is the share of them about a bright place."""

    count: int
    side_px: int
    foreground: float
    augmentation: Augmentation

    def check(self, fields: Sequence[Field]) -> None:
        """`PairRefused` if a field is smaller than what a patch is cut from."""
        for field in fields:
            if min(field.y.shape[1:]) < self._cut_px:
                raise PairRefused(
                    f"{field.name} is smaller than a patch",
                    wanted=f"{self._cut_px} pixels",
                    got=" x ".join(map(str, field.y.shape[1:])),
                    fix="make optimisation.patch_px or the range of augmentation.xy_scale smaller",
                )

    @property
    def _cut_px(self) -> int:
        return math.ceil(self.side_px * self.augmentation.reach)

    def draw(self, fields: Sequence[Field], rng: np.random.Generator) -> Batch:
        """Random patches of random fields, changed at random."""
        xs, ys, live = [], [], []
        for at in range(self.count):
            field = fields[int(rng.integers(len(fields)))]
            about_bright = math.ceil((at + 1) * self.foreground) > math.ceil(at * self.foreground)
            row, column = _corner(field, rng, self._cut_px, about_bright)
            cut = (slice(None), slice(row, row + self._cut_px), slice(column, column + self._cut_px))
            y = field.y[cut].astype(np.float32) / 255
            known = np.ones_like(y) if field.valid is None else field.valid[cut].astype(np.float32)
            x, both = augment(
                field.x[cut].astype(np.float32),
                np.concatenate([y, known]),
                self.side_px,
                self.augmentation,
                rng,
            )
            xs.append(x)
            ys.append(both)
            live.append(field.live)
        truth, weight = torch.from_numpy(np.stack(ys)).chunk(2, dim=1)
        trusted = (weight > 0.999).float()
        return Batch(torch.from_numpy(np.stack(xs)), truth.contiguous(), trusted, torch.tensor(live))


def _corner(field: Field, rng: np.random.Generator, side_px: int, on_foreground: bool) -> tuple[int, int]:
    room = np.array(field.y.shape[1:]) - side_px
    if on_foreground and len(field.foreground):
        middle = field.foreground[int(rng.integers(len(field.foreground)))]
        corner = np.clip(middle - side_px // 2 + rng.integers(-side_px // 4, side_px // 4, 2), 0, room)
    else:
        corner = rng.integers(0, room + 1)
    return int(corner[0]), int(corner[1])
