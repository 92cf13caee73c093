"""How much light a run took, how far beside and how late it fell. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acq_isl.scorecard import LightScore, Spread
from acq_isl.session.grading.scores import KnownField, marks
from acq_isl.sim import CellTruth, Taken
from acq_isl.stack import StackKey, StackRequest


@dataclass(frozen=True, slots=True)
class Imaged:
    """A stack of the run with its exposures, in order, and the cells that were there then, if known."""

    request: StackRequest
    exposures: tuple[Taken, ...]
    cells: tuple[CellTruth, ...] = ()


def score_light(imaged: Sequence[Imaged], overview: set[StackKey]) -> LightScore:
    """Light by channel; ``overview`` are the keys of the overview stacks, whose channels transmit light.

    What all fields would have taken is, of every channel, the mean of the fields that it was imaged in.
    """
    overview_ms: dict[str, float] = {}
    stain_ms: dict[str, float] = {}
    places: dict[str, set[tuple[int, int, int]]] = {}
    transmitted = {key.channel for key in overview}
    for stack in imaged:
        key = stack.request.key
        if key.channel not in transmitted:
            where = key.time, round(stack.request.x_um), round(stack.request.y_um)
            places.setdefault(key.channel, set()).add(where)  # a series has several names
        sums = overview_ms if key.channel in transmitted else stain_ms
        sums[key.channel] = sums.get(key.channel, 0.0) + sum(
            exposure.light.dose_ms for exposure in stack.exposures
        )
    times = [exposure.unix_s for stack in imaged for exposure in stack.exposures]
    all_ms = sum(ms / len(places[channel]) for channel, ms in stain_ms.items()) * len(overview)
    duration_s = max(times) - min(times) if times else 0.0
    return LightScore(overview_ms, stain_ms, all_ms, duration_s)


def score_targeting(
    label: str | None, fields: Sequence[KnownField], imaged: Sequence[Imaged]
) -> tuple[Spread, Spread]:
    """How far from where the overview had them fluorescence found the wanted cells: aside, and in z; um.

    Aside is the median over the cells of one image: what the stage missed and what the cells moved. Where no
    wanted cell is known, it is how far the middle of the image lies beside that of the overview.
    """
    aside: list[float] = []
    height: list[float] = []
    for field, overview, stained in _pairs(fields, imaged):
        wanted = {cell.id: cell for cell in field.cells or () if label and marks(label, cell)}
        there = [cell for cell in stained.cells if cell.id in wanted]
        off = _middle(stained) - _middle(overview)
        moved = [_place(cell) - _place(wanted[cell.id]) - off for cell in there] or [off]
        aside.append(float(np.median([np.hypot(*by) for by in moved])))
        if there:
            middle = float(np.median([cell.z_um for cell in there]))
            height.append(min(abs(exposure.light.z_um - middle) for exposure in stained.exposures))
    return Spread.of(aside), Spread.of(height)


def score_action(fields: Sequence[KnownField], imaged: Sequence[Imaged]) -> Spread:
    """Seconds from the end of a field's last overview slice to its first light in fluorescence."""
    waits: dict[StackKey, float] = {}
    for field, overview, stained in _pairs(fields, imaged):
        ended = overview.exposures[-1].unix_s + overview.request.exposure_ms / 1000
        wait = stained.exposures[0].unix_s - ended
        waits[field.key] = min(wait, waits.get(field.key, wait))
    return Spread.of(list(waits.values()))


def _pairs(fields: Sequence[KnownField], imaged: Sequence[Imaged]) -> list[tuple[KnownField, Imaged, Imaged]]:
    """Every field with its overview stack and each other stack of the same place and time point."""
    stacks = {stack.request.key: stack for stack in imaged if stack.exposures}
    return [
        (field, stacks[field.key], stack)
        for field in fields
        if field.key in stacks
        for key, stack in stacks.items()
        if key != field.key and (key.time, key.position) == (field.key.time, field.key.position)
    ]


def _middle(stack: Imaged) -> NDArray[np.float64]:
    return np.asarray(
        np.mean([(exposure.light.x_um, exposure.light.y_um) for exposure in stack.exposures], axis=0)
    )


def _place(cell: CellTruth) -> NDArray[np.float64]:
    return np.array([cell.x_um, cell.y_um])
