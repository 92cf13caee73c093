"""How much light a run took, how far beside and how late it fell. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acq_isl.scorecard import LightScore, Spread
from acq_isl.session.grading.scores import KnownCell, KnownField
from acq_isl.stack import StackKey, StackRequest


@dataclass(frozen=True, slots=True)
class Lit:
    """One exposure, where and when it truly was: Unix seconds, um, milliseconds of light."""

    unix_s: float
    x_um: float
    y_um: float
    z_um: float
    dose_ms: float


@dataclass(frozen=True, slots=True)
class Imaged:
    """A stack of the run with its exposures, in order, and the cells that were there then, if known."""

    request: StackRequest
    lit: tuple[Lit, ...]
    cells: tuple[KnownCell, ...] = ()


def score_light(imaged: Sequence[Imaged], overview: set[StackKey]) -> LightScore:
    """Light by channel; ``overview`` are the keys of the overview stacks."""
    sums: dict[bool, dict[str, float]] = {True: {}, False: {}}
    places: set[tuple[int, str]] = set()
    for one in imaged:
        first = one.request.key in overview
        channel = one.request.key.channel
        sums[first][channel] = sums[first].get(channel, 0.0) + sum(lit.dose_ms for lit in one.lit)
        places |= set() if first else {(one.request.key.time, one.request.key.position)}
    times = [lit.unix_s for one in imaged for lit in one.lit]
    per_field = sum(sums[False].values()) / len(places) if places else 0.0
    return LightScore(
        sums[True], sums[False], per_field * len(overview), max(times) - min(times) if times else 0.0
    )


def score_targeting(
    label: str | None, fields: Sequence[KnownField], imaged: Sequence[Imaged]
) -> tuple[Spread, Spread]:
    """How far from where the overview had them fluorescence found the wanted cells: aside, and in z; um.

    Aside is the median over the cells of one image: what the stage missed and what the cells moved. Where no
    wanted cell is known, it is how far the middle of the image lies beside that of the overview.
    """
    stacks = {one.request.key: one for one in imaged if one.lit}
    aside: list[float] = []
    height: list[float] = []
    for field in fields:
        seen = stacks.get(field.key)
        if seen is None:
            continue
        wanted = {cell.id: cell for cell in field.cells or () if label and cell.marked(label)}
        for one in _stained(field.key, imaged):
            there = [cell for cell in one.cells if cell.id in wanted]
            off = _middle(one.lit) - _middle(seen.lit)
            moved = [_place(cell) - _place(wanted[cell.id]) - off for cell in there] or [off]
            aside.append(float(np.median([np.hypot(*by) for by in moved])))
            if there:
                middle = float(np.median([cell.z_um for cell in there]))
                height.append(min(abs(lit.z_um - middle) for lit in one.lit))
    return Spread.of(aside), Spread.of(height)


def _middle(lit: Sequence[Lit]) -> NDArray[np.float64]:
    return np.mean([(one.x_um, one.y_um) for one in lit], axis=0)  # type: ignore[no-any-return]


def _place(cell: KnownCell) -> NDArray[np.float64]:
    return np.array([cell.x_um, cell.y_um])


def score_action(fields: Sequence[KnownField], imaged: Sequence[Imaged]) -> Spread:
    """Seconds from the end of a field's last overview slice to its first light in fluorescence."""
    stacks = {one.request.key: one for one in imaged if one.lit}
    waits = []
    for field in fields:
        after = [one.lit[0].unix_s for one in _stained(field.key, imaged)]
        if after and field.key in stacks:
            seen = stacks[field.key]
            waits.append(min(after) - seen.lit[-1].unix_s - seen.request.exposure_ms / 1000)
    return Spread.of(waits)


def _stained(key: StackKey, imaged: Sequence[Imaged]) -> list[Imaged]:
    """Other stacks of the same place and time point."""
    return [
        one
        for one in imaged
        if one.lit
        and one.request.key != key
        and (one.request.key.time, one.request.key.position) == (key.time, key.position)
    ]
