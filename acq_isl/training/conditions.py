"""What goes wrong with a stack: the table by which a gate is judged, and the same at any strength. Pure.

A condition changes the pixels, or what the stack says of itself, or both. Those that change the magnification
say so, since the truth must follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.processing.normalize import resize
from acq_isl.stack import Float32Image, StackInfo, Uint16Image

_FULL_SCALE = 65535
_END_NOISE = 0.03  # of the stack's SD: two images of a camera are never equal

Rng = np.random.Generator
Perturb = Callable[[Uint16Image, Rng], Uint16Image]
Say = Callable[[StackInfo], StackInfo]


@dataclass(frozen=True, slots=True)
class Condition:
    """What happens to a (z, y, x) uint16 stack, and what it then says of itself; ``zoom`` is the truth's."""

    perturb: Perturb
    zoom: float = 1.0
    say: Say = lambda info: info

    def follow(self, truth: Float32Image) -> Float32Image:
        """(label, y, x) truth of what the stack then shows."""
        return truth if self.zoom == 1 else zoom(truth, self.zoom)


def zoom(images: np.ndarray, factor: float) -> Float32Image:
    """(n, y, x) images as another magnification shows them; larger than before, the middle is kept."""
    rows, columns = (round(side * factor) for side in images.shape[1:])
    grown = np.stack([resize(np.asarray(image, np.float32), (rows, columns)) for image in images])
    if factor <= 1:
        return grown
    top, left = (rows - images.shape[1]) // 2, (columns - images.shape[2]) // 2
    return grown[:, top : top + images.shape[1], left : left + images.shape[2]]


def to_counts(values: NDArray[np.floating]) -> Uint16Image:
    """Rounded, and within what a camera of 16 bits can count."""
    counts: Uint16Image = np.clip(np.rint(values), 0, _FULL_SCALE).astype(np.uint16)
    return counts


def _sd(stack: Uint16Image) -> float:
    return float(stack.std(dtype=np.float64))


def _add_noise(stack: NDArray[np.floating] | Uint16Image, sd: float, rng: Rng) -> Uint16Image:
    return to_counts(stack + np.float32(sd) * rng.standard_normal(stack.shape, np.float32))


def shift(planes: int) -> Condition:
    """Focused elsewhere: planes beyond the last one look like it, in new noise."""

    def perturb(stack: Uint16Image, rng: Rng) -> Uint16Image:
        wanted = np.arange(len(stack)) + planes
        beyond = (wanted < 0) | (wanted >= len(stack))
        moved = stack[np.clip(wanted, 0, len(stack) - 1)].copy()
        moved[beyond] = _add_noise(moved[beyond], _END_NOISE * _sd(stack), rng)
        return moved

    return Condition(perturb)


def stretch(factor: float) -> Condition:
    """Another z step than is said, around the middle plane."""

    def perturb(stack: Uint16Image, rng: Rng) -> Uint16Image:
        middle = (len(stack) - 1) / 2
        at = middle + factor * (np.arange(len(stack)) - middle)
        planes = _interpolate(stack, np.clip(at, 0, len(stack) - 1))
        beyond = (at < -0.5) | (at > len(stack) - 0.5)
        planes[beyond] = _add_noise(planes[beyond], _END_NOISE * _sd(stack), rng)
        return planes

    return Condition(perturb)


def _interpolate(stack: Uint16Image, at: NDArray[np.floating]) -> Uint16Image:
    low = np.floor(at).astype(int).clip(max=len(stack) - 2)
    part = (at - low)[:, None, None]
    return to_counts(stack[low] * (1 - part) + stack[low + 1] * part)


def repeat(noise: float, changed: float = 0.0) -> Condition:
    """The focus stands still: the middle plane at every z, in noise of this share of the SD."""

    def perturb(stack: Uint16Image, rng: Rng) -> Uint16Image:
        one = np.repeat(stack[len(stack) // 2][None], len(stack), 0)
        return _add_noise(one * (1 - changed) + stack * changed, noise * _sd(stack), rng) if noise else one

    return Condition(perturb)


def swap(first: int, second: int) -> Condition:
    """Two planes in each other's place."""

    def perturb(stack: Uint16Image, _rng: Rng) -> Uint16Image:
        order = np.arange(len(stack))
        a, b = first % len(stack), second % len(stack)
        order[[a, b]] = order[[b, a]]
        return stack[order]

    return Condition(perturb)


def drift(px: float, angle: float = 0.0) -> Condition:
    """The stage creeps by so many pixels a plane."""

    def perturb(stack: Uint16Image, _rng: Rng) -> Uint16Image:
        steps = px * (np.arange(len(stack)) - len(stack) // 2)
        ways = np.rint(np.outer(steps, (np.cos(angle), np.sin(angle)))).astype(int)
        return np.stack([np.roll(p, tuple(way), (0, 1)) for p, way in zip(stack, ways, strict=True)])

    return Condition(perturb)


def magnify(factor: float, *, said: bool = False) -> Condition:
    """Another objective, with or without the pixel size that belongs to it."""
    say: Say = (lambda info: replace(info, pixel_size_um=info.pixel_size_um / factor)) if said else _as_before
    return Condition(lambda stack, _rng: to_counts(zoom(stack, factor)), factor, say)


def _as_before(info: StackInfo) -> StackInfo:
    return info


def blur(px: float) -> Condition:
    return Condition(
        lambda stack, _rng: to_counts(ndimage.gaussian_filter(stack.astype(np.float32), (0, px, px)))
    )


def add_noise(share: float) -> Condition:
    """More camera noise, as a share of the stack's SD."""
    return Condition(lambda stack, rng: _add_noise(stack, share * _sd(stack), rng))


def invert(say: Say = _as_before) -> Condition:
    """The negative."""
    return Condition(
        lambda stack, _rng: (int(stack.max()) + int(stack.min()) - stack.astype(np.int32)).astype(np.uint16),
        say=say,
    )


def clip(share: float) -> Condition:
    """Overexposed: so much of the stack is at the brightest count."""

    def perturb(stack: Uint16Image, _rng: Rng) -> Uint16Image:
        low, high = float(stack.min()), float(np.quantile(stack[::4, ::4, ::4], 1 - share))
        return to_counts((stack.astype(np.float32) - low) / max(high - low, 1) * _FULL_SCALE)

    return Condition(perturb)


def shade(middle: float, side: float, angle: float = 0.0) -> Condition:
    """Uneven light: ``middle`` less in the corners, and one side ``side`` times as bright as the other."""

    def perturb(stack: Uint16Image, _rng: Rng) -> Uint16Image:
        y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in stack.shape[1:]), indexing="ij")
        across = (x * np.cos(angle) + y * np.sin(angle)) / (abs(np.cos(angle)) + abs(np.sin(angle)))
        light = (1 - middle * (x * x + y * y) / 2) * (1 + (side - 1) / (side + 1) * across)
        return to_counts(stack * light.astype(np.float32))

    return Condition(perturb)


def dust(rings: int) -> Condition:
    """Dark rings, the same in every plane."""

    def perturb(stack: Uint16Image, rng: Rng) -> Uint16Image:
        y, x = np.mgrid[: stack.shape[1], : stack.shape[2]]
        dark = np.zeros(stack.shape[1:], np.float32)
        for _ in range(rings):
            away = np.hypot(y - rng.uniform(0, stack.shape[1]), x - rng.uniform(0, stack.shape[2]))
            dark += rng.uniform(1, 3) * np.exp(-(((away - rng.uniform(8, 20)) / 2) ** 2))
        return to_counts(stack - _sd(stack) * dark)

    return Condition(perturb)


def no_cells(grain_px: float) -> Condition:
    """A texture in the place of the specimen; camera noise alone if its grain is 0."""

    def perturb(stack: Uint16Image, rng: Rng) -> Uint16Image:
        grain = rng.standard_normal(stack.shape, np.float32)
        grain = ndimage.gaussian_filter(grain, (1.0 * bool(grain_px), grain_px, grain_px))
        return to_counts(30000 + 3000 * grain / grain.std())

    return Condition(perturb)


def _black(stack: Uint16Image, _rng: Rng) -> Uint16Image:
    dark = stack.copy()
    dark[len(stack) // 3] = 0
    return dark


def _coarsen(bits: int) -> Condition:
    """A camera of fewer bits."""
    step = np.uint16(1 << bits)
    return Condition(lambda stack, _rng: stack // step * step)


def _say_z(change: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Say:
    return lambda info: replace(info, z_um=tuple(change(np.array(info.z_um)).tolist()))


def _thinned(stack: Uint16Image, _rng: Rng) -> Uint16Image:
    return stack[::2]


def _doubled(stack: Uint16Image, _rng: Rng) -> Uint16Image:
    return _interpolate(stack, np.arange(2 * len(stack) - 1) / 2)


AS_IS = "as is"
_LEAVE: Perturb = lambda stack, _rng: stack  # noqa: E731
_REVERSE: Perturb = lambda stack, _rng: stack[::-1]  # noqa: E731
_FINER = Condition(_doubled, say=_say_z(lambda z: np.linspace(z[0], z[-1], 2 * len(z) - 1)))
_FEWER = Condition(_thinned, say=_say_z(lambda z: z[::2]))
_OTHER: dict[str, Literal["bright", "dark"]] = {"dark": "bright", "bright": "dark", "unknown": "bright"}

TABLE: dict[str, Condition] = {
    AS_IS: Condition(_LEAVE),
    "z reversed": Condition(_REVERSE),
    "z reversed, said": Condition(_REVERSE, say=_say_z(lambda z: z[::-1])),
    **{f"shift {k:+d}": shift(k) for k in (3, -3, 6, -6)},
    "z step x2": stretch(2),
    "z step x.5": stretch(0.5),
    "z step x.5, said": replace(stretch(0.5), say=_say_z(lambda z: z / 2)),
    "plane repeated": repeat(0),
    "plane repeated, noise": repeat(0.1),
    "two swapped": swap(4, 8),
    "one black": Condition(_black),
    "drift 2 px a plane": drift(2),
    **{f"magnification x{f:g}": magnify(f) for f in (0.5, 0.75, 1.4, 2)},
    **{f"magnification x{f:g}, said": magnify(f, said=True) for f in (0.5, 0.75, 1.4, 2)},
    **{f"blur {px} px": blur(px) for px in (1, 2, 4)},
    **{f"noise {share} SD": add_noise(share) for share in (0.5, 1, 2)},
    "inverted, said so before": invert(),
    "inverted, said": invert(lambda info: replace(info, polarity=_OTHER[info.polarity])),
    "inverted, unsaid": invert(lambda info: replace(info, polarity="unknown")),
    "other modality said": Condition(
        _LEAVE, say=lambda info: replace(info, modality="DIC" if info.modality != "DIC" else "brightfield")
    ),
    **{f"clipping {100 * share:.0f} %": clip(share) for share in (0.01, 0.03, 0.2)},
    "gain x.25, offset": Condition(lambda stack, _rng: to_counts(stack * 0.25 + 500)),
    "8 bit": _coarsen(8),
    "5 bit": _coarsen(11),
    "vignette 70 %": shade(0.7, 1),
    "ramp x3": shade(0, 3),
    "60 dust rings": dust(60),
    "noise only": no_cells(0),
    "blurred noise": no_cells(4),
    "constant": Condition(lambda stack, _rng: np.full_like(stack, 30000)),
    "half of the planes, said": _FEWER,
    "twice the planes, said": _FINER,
}
"""The conditions by which a gate is judged, by name; their strengths are not those that it is fitted to."""


def draw(rng: Rng) -> tuple[str, Condition]:
    """A condition at a strength drawn at random, and what kind it is."""
    u = rng.uniform

    def power(low: float, high: float) -> float:
        return float(np.exp(u(np.log(low), np.log(high))))

    kinds: dict[str, tuple[float, Callable[[], Condition]]] = {
        "as is": (1.5, lambda: TABLE[AS_IS]),
        "z reversed": (1, lambda: TABLE["z reversed"]),
        "shift": (3, lambda: shift(int(rng.choice([-7, -6, -5, -4, -2, 2, 4, 5, 6, 7])))),
        "z step": (2.5, lambda: stretch(power(0.4, 2.5))),
        "plane repeated": (1.5, lambda: repeat(u(0.02, 0.3), u(0, 0.3))),
        "swapped": (1, lambda: swap(*rng.choice(64, 2, replace=False).tolist())),
        "drift": (2, lambda: drift(u(0.3, 4), u(0, 2 * np.pi))),
        "magnification": (4, lambda: magnify(power(0.45, 2.3))),
        "magnification, said": (1, lambda: magnify(power(0.65, 1.55), said=True)),
        "blur": (3, lambda: blur(u(0.5, 5))),
        "noise": (2, lambda: add_noise(u(0.2, 3))),
        "inverted": (1, invert),
        "clipping": (2, lambda: clip(power(0.005, 0.3))),
        "uneven light": (2.5, lambda: shade(u(0, 0.9), power(1, 6), u(0, 2 * np.pi))),
        "dust": (1.5, lambda: dust(int(u(10, 120)))),
        "no cells": (1, lambda: no_cells(u(1, 8))),
        "planes": (1, lambda: _FEWER if u() < 0.5 else _FINER),
    }
    shares = np.array([share for share, _ in kinds.values()])
    kind = str(rng.choice(list(kinds), p=shares / shares.sum()))
    return kind, kinds[kind][1]()
