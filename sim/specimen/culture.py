"""When the cells of a region drift, sicken and die: numbers only, pure in seed, place, time and history."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acq_isl.experiment.simulated import Life
from acq_isl.sim.specimen.cells import REGION_UM, Floats, Region, to_seed
from acq_isl.sim.view import History, Light

_STREAM = 7919  # apart from the random numbers that place the cells
_MODES = 3
_PERIODS_H = (3.0, 8.0, 20.0)
_HOUR_S = 3600.0
_BLEBS = 8
# Light per millisecond, relative to a stain's channel: none is as harmful as ultraviolet (Icha et al. 2017,
# BioEssays 39:1700003), and hardly any as harmless as transmitted light.
_HARM = {"DAPI": 3.0, "MAP2": 1.0, "NFH": 1.0, "PI": 1.0}
_HARM_TRANSMITTED = 0.002


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of the specimen in seconds, and what was done to it before that matters."""

    time_s: float
    history: History


def find_moment(life: Life, time_s: float, history: History) -> Moment | None:
    """The step of time at which a culture is seen; None while it looks as it did at time 0."""
    at_s = max(np.floor(time_s / life.tick_s), 0) * life.tick_s
    past = history.until(at_s)
    light = past.light if life.phototoxicity_per_h else ()
    moves = life.death_rate_per_h or life.drift_um_h or life.growth_um_h or past.drugs or light
    if not (life.prevalence or (moves and at_s > 0)):
        return None
    return Moment(float(at_s), History(light, past.drugs))


@dataclass(frozen=True, slots=True, eq=False)
class Fates:
    """What is laid down for the cells of a region, whatever will be done to them; all float64."""

    resistance: Floats
    """(cell,): accumulated hazard (chance per hour, summed over hours) at which a cell begins to die;
    exponential with mean 1, infinite for glia."""
    rank: Floats
    """(cell,), 0..1: cells below the prevalence are dying at time 0."""
    progress: Floats
    """(cell,): how far those are, 0..1."""
    pace: Floats
    """(cell,): duration of dying relative to the median."""
    sway: Floats
    """(3, 2, cell, mode): amplitude, period and phase of the drift in y and x."""
    blebs: Floats
    """(3, cell, bleb): angle, distance and size of what a dying cell sheds."""


def make_random(seed: int, region: Region, number: int) -> np.random.Generator:
    """Random numbers of a region beside those that place its objects."""
    place = (round(region.x / REGION_UM), round(region.y / REGION_UM))
    return np.random.default_rng([seed, *(to_seed(index) for index in place), _STREAM + number])


def draw_fates(seed: int, region: Region) -> Fates:
    """What is laid down for the cells of a region; the same arguments always give the same."""
    rng = make_random(seed, region, 0)
    count = len(region.cells)
    mortal = np.array([cell.is_neuron for cell in region.cells], bool)
    sway = np.stack(
        [
            rng.normal(1.0, 0.3, (2, count, _MODES)),
            rng.uniform(0.7, 1.4, (2, count, _MODES)),
            rng.uniform(0, 2 * np.pi, (2, count, _MODES)),
        ]
    )
    blebs = np.stack(
        [rng.uniform(*span, (count, _BLEBS)) for span in ((0.0, 2 * np.pi), (0.7, 1.5), (0.3, 1.0))]
    )
    return Fates(
        resistance=np.where(mortal, rng.exponential(1.0, count), np.inf),
        rank=np.where(mortal, rng.random(count), np.inf),
        progress=rng.random(count),
        pace=np.exp(rng.normal(0, 0.3, count)),
        sway=sway,
        blebs=blebs,
    )


def compute_onset_s(fates: Fates, region: Region, life: Life, now: Moment) -> Floats:
    """When each cell began to die, in seconds, (cell,) float64; infinite if it has not by then.

    Rates are constant between two events, so the hazard is a chain of straight lines that is solved exactly.
    """
    starts, rates = _rates(region, life, now)
    gained = rates[:, :-1] * np.diff(starts) / _HOUR_S
    reached = np.concatenate([np.zeros((len(rates), 1)), np.cumsum(gained, axis=1)], axis=1)
    last = np.maximum(np.sum(reached <= fates.resistance[:, None], axis=1) - 1, 0)
    cells = np.arange(len(rates))
    left, rate = fates.resistance - reached[cells, last], rates[cells, last]
    wait_s = np.divide(left * _HOUR_S, rate, out=np.full(len(rates), np.inf), where=rate > 0)
    begun = starts[last] + wait_s
    begun[begun > now.time_s] = np.inf
    early = fates.rank < life.prevalence
    return np.where(early, -fates.progress * compute_duration_s(fates, life), begun)


def compute_duration_s(fates: Fates, life: Life) -> Floats:
    """Time from onset to death, (cell,) float64 seconds."""
    return fates.pace * life.dying_h * _HOUR_S


def compute_drift_um(fates: Fates, life: Life, time_s: Floats) -> Floats:
    """How far each cell is from where it was at time 0, at a time of its own: (2, cell) y and x, in um.

    A sum of slow oscillations: smooth, without end, and never far.
    """
    strength, pace, phase = fates.sway
    period_h = np.array(_PERIODS_H) * pace
    # Speeds of all modes and both axes together have the RMS drift_um_h.
    amplitude = strength * life.drift_um_h * period_h / (2 * np.pi) / np.sqrt(_MODES)
    angle = 2 * np.pi * time_s[:, None] / (_HOUR_S * period_h)
    moved: Floats = np.sum(amplitude * (np.sin(angle + phase) - np.sin(phase)), axis=-1)
    return moved


def _rates(region: Region, life: Life, now: Moment) -> tuple[Floats, Floats]:
    """Times from which on a rate holds, (event,), and each cell's death rate from then on, (cell, event)."""
    light, drugs = now.history.light, now.history.drugs
    x, y = np.array([(cell.x, cell.y) for cell in region.cells]).T
    hits = [exposure for exposure in light if _touches(exposure, region)]
    times = np.unique([0.0, *(hit.time_s for hit in hits), *(drug.time_s for drug in drugs)])
    added = np.zeros((len(x), len(times)))
    for hit, event in zip(hits, np.searchsorted(times, [hit.time_s for hit in hits]), strict=True):
        lit = (np.abs(x - hit.x_um) <= hit.width_um / 2) & (np.abs(y - hit.y_um) <= hit.height_um / 2)
        harm = _HARM.get(hit.channel, _HARM_TRANSMITTED)
        added[lit, event] += life.phototoxicity_per_h * harm * hit.dose_ms / 1000
    dose = np.zeros(len(times))
    for drug in drugs:
        dose[times >= drug.time_s] = drug.dose
    rates = life.death_rate_per_h + np.cumsum(added, axis=1) + life.drug_per_h * dose
    return times, np.maximum(rates, 0.0)


def _touches(light: Light, region: Region) -> bool:
    x_um, y_um = (corner + REGION_UM / 2 for corner in (region.x, region.y))
    beside_um = (abs(light.x_um - x_um) - light.width_um / 2, abs(light.y_um - y_um) - light.height_um / 2)
    return max(beside_um) <= REGION_UM / 2
