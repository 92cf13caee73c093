"""What only several fields together tell of a stain, in the order in which they were imaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, stats

from acq_isl.errors import PairRefused
from acq_isl.training.data.pairs import Recording
from acq_isl.training.data.registration import Registration, find_common_shift, structure

LEAST_FIELDS, _LEAST_SHOWING = 4, 3
_SOMETHING_SD = 6.0  # of the noise, that what is brightest must lie above its surroundings
_SMOOTH_UM, _SURROUNDINGS_UM = 1.0, 20.0
_FADES, _FADED, _FALLING = 0.25, 0.5, -0.8
_TELL_UM, _REFUSE_UM = 1.0, 2.5
_SURE_PEAK, _SURE_GAIN = 5.0, 1.0  # as of single labels; several fields agree less by chance
# Immerkaer, "Fast Noise Variance Estimation", Computer Vision and Image Understanding 64 (1996).
_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


@dataclass(frozen=True, slots=True)
class StainInField:
    """How bright a stain is in a field above its surroundings, in counts and in SDs of its noise."""

    field: str
    brightness: float
    contrast_sd: float


def look_at_stain(name: str, recording: Recording, label: str) -> StainInField:
    """Of a field that shows the label."""
    image = np.asarray(recording.labels[label], np.float32)
    smooth_px = _SMOOTH_UM / recording.pixel_size_um
    smooth = ndimage.gaussian_filter(image, smooth_px)
    flat = smooth - ndimage.gaussian_filter(image, _SURROUNDINGS_UM / recording.pixel_size_um)
    noise = np.sqrt(np.pi / 2) * np.abs(ndimage.convolve(image, _NOISE)[1:-1, 1:-1]).mean() / 6
    left = noise / max(2 * np.sqrt(np.pi) * smooth_px, 1.0)  # of white noise, after the Gaussian
    top = float(np.percentile(flat, 99.8) - np.median(flat))
    brightness = float(np.percentile(smooth, 99.8) - np.median(smooth))
    return StainInField(name, brightness, top / max(float(left), 1e-6))


def judge_stain(label: str, seen: Sequence[StainInField]) -> tuple[str, ...]:
    """What a user should know of the stain; `PairRefused` if nothing can be learned from it."""
    there = [each for each in seen if each.contrast_sd >= _SOMETHING_SD]
    empty = [each.field for each in seen if each.contrast_sd < _SOMETHING_SD]
    if len(there) < max(_LEAST_SHOWING, len(seen) / 2):
        raise PairRefused(
            f"{label}: there are too few fields with anything in them",
            wanted=f"{_LEAST_SHOWING} fields, and at least half of all, in which the stain shows cells",
            got=f"{len(there)}; nothing in {', '.join(empty)}" if empty else str(len(there)),
            fix="image where cells are, check filter and exposure, or take more fields",
        )
    warnings = [f"{label}: nothing is stained in {', '.join(empty)}"] if empty else []
    return (*warnings, *_fading(label, there))


def _fading(label: str, seen: Sequence[StainInField]) -> list[str]:
    order, log = np.arange(len(seen)), np.log([max(each.brightness, 1e-6) for each in seen])
    fall = 1 - float(np.exp(stats.theilslopes(log, order).slope * (len(seen) - 1)))
    if fall < _FADES or stats.spearmanr(order, log).statistic > _FALLING:
        return []
    text = f"{label} fades from field to field: {1 - fall:.0%} are left in {seen[-1].field}"
    if fall > _FADED:
        raise PairRefused(
            f"{text}: the stain bleaches, and equal cells would be learned as unequal",
            wanted=f"at least {1 - _FADED:.0%} of the brightness of the first field",
            got=", ".join(f"{each.brightness:.0f}" for each in seen),
            fix="expose the stain for a shorter time, and take fields that do not overlap",
        )
    return [text]


def judge_shift(label: str, found: Registration, pixel_size_um: float) -> tuple[str, ...]:
    """What a user should know of a stain's registration; `PairRefused` if it is not registered."""
    if found.peak < _SURE_PEAK or not found.widespread:
        return (f"{label} resembles nothing in the light well enough to tell whether the two are registered",)
    rows, columns = (px * pixel_size_um for px in found.shift_px)
    length = found.length_px * pixel_size_um
    text = f"{length:.1f} um ({rows:.1f} um in rows, {columns:.1f} um in columns)"
    if length > _REFUSE_UM and found.gain >= _SURE_GAIN:
        raise PairRefused(
            f"{label} and the transmitted light are not registered",
            wanted=f"a shift of at most {_REFUSE_UM:g} um",
            got=f"{text}, the same in all fields",
            fix="align the filter cube or correct the shift of the channel",
        )
    told = length > _TELL_UM and found.gain >= _SURE_GAIN
    return (f"{label} is shifted against the transmitted light by {text}",) if told else ()


def check_fields(fields: Sequence[tuple[str, Recording]]) -> tuple[str, ...]:
    """Remarks on all stains of fields with their names; `PairRefused` names what is wrong."""
    if len(fields) < LEAST_FIELDS:
        raise PairRefused(
            "there are too few fields to learn from some and judge on others",
            wanted=f"at least {LEAST_FIELDS}", got=str(len(fields)), fix="image more fields",
        )  # fmt: skip
    labels = dict.fromkeys(label for _, recording in fields for label in recording.labels)
    remarks: list[str] = []
    for label in labels:
        own = [(name, recording) for name, recording in fields if label in recording.labels]
        remarks += judge_stain(label, [look_at_stain(name, recording, label) for name, recording in own])
        pairs = [(structure(recording.stack), recording.labels[label]) for _, recording in own]
        remarks += judge_shift(label, find_common_shift(pairs), own[0][1].pixel_size_um)
    return tuple(remarks)
