"""What the published in-silico-labelling network ("concordance") is made of: modules, widths, variables.

Christiansen et al., "In Silico Labeling: Predicting Fluorescent Labels in Unlabeled Images", Cell 2018, with
code in google/in-silico-labeling. From a patch of 250x250 pixels it predicts, for each label and each of the
central 8x8 pixels, a distribution over intensity bins. Five towers look at centre crops of the patch, at
scales 1 to 1/16; their outputs are joined and go through one more tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PATCH_PX = 250
OUTPUT_PX = 8
BORDER_PX = (PATCH_PX - OUTPUT_PX) // 2
STRIDE_PX = 16
"""Shifts of the input by multiples of this shift the output and change nothing else."""
TOWER_CROPS_PX = (89, 74, 52, 24, 0)
"""What each tower's centre crop leaves out on each side of the patch."""
TARGETS = ("DAPI_CONFOCAL", "DAPI_WIDEFIELD", "CELLMASK_CONFOCAL", "TUJ1_WIDEFIELD", "NFH_CONFOCAL",
           "MAP2_CONFOCAL", "ISLET_WIDEFIELD", "DEAD_CONFOCAL", "NEURITE_CONFOCAL")  # fmt: skip
PROJECTED = 16
"""Channels after the first layer."""
BN_EPSILON = 1e-3

_TOWER_PX = 36
_UPPER_MODULES = 14
_NORM_PARTS = ("gamma", "beta", "moving_mean", "moving_variance")

Kind = Literal["in scale", "down", "up"]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """Size of the network. Published are a base depth (width) of 400 and 26 planes, each with its mask. Heads
    are named ``Z/CHANNEL`` as in the checkpoint; each tells ``bins`` intensity classes from 0 to full scale
    apart."""

    base_depth: int
    planes: int
    heads: tuple[str, ...]
    bins: int = 256


@dataclass(frozen=True, slots=True)
class Module:
    """A residual module: channels that come in, after the expanding, and after the reducing convolution."""

    kind: Kind
    inputs: int
    expanded: int
    outputs: int

    @property
    def joined(self) -> int:
        """Channels before the second activation: the expanded ones and, but for up, the pooled input."""
        return self.expanded + (0 if self.kind == "up" else self.inputs)

    @property
    def window(self) -> tuple[int, int]:
        """Kernel and stride of the expanding convolution, in pixels."""
        return (3, 1) if self.kind == "in scale" else (4, 2)


Plan = Mapping[str, Module]
"""Modules in order, by their published names."""


def plane_positions(planes: int) -> tuple[float, ...]:
    """Places of the network's planes in a stack, 0 for the first slice and 1 for the last."""
    return tuple(round(i / max(planes - 1, 1), 4) for i in range(planes))


def plan_network(base_depth: int) -> tuple[tuple[Plan, ...], Plan]:
    """Modules of the five towers, and of what follows them."""
    towers = tuple(_plan_tower(scale, base_depth) for scale in range(len(TOWER_CROPS_PX)))
    width = sum(last_width(tower) for tower in towers)
    upper: dict[str, Module] = {}
    for step in range(_UPPER_MODULES):
        module = _size_module("in scale", width, base_depth, _TOWER_PX - 2 * (step + 1))
        upper[f"upper_recursion_{step}"] = module
        width = module.outputs
    return towers, upper


def last_width(plan: Plan) -> int:
    """Channels that come out of the last module."""
    return list(plan.values())[-1].outputs


def _plan_tower(scale: int, base_depth: int) -> dict[str, Module]:
    """Modules of the tower of resolution 1 / 2**scale."""
    side, width = PATCH_PX - 2 * TOWER_CROPS_PX[scale], PROJECTED
    plan: dict[str, Module] = {}

    def add(name: str, kind: Kind) -> None:
        nonlocal side, width
        side = {"in scale": side - 2, "down": side // 2 - 1, "up": 2 * side - 2}[kind]
        plan[name] = _size_module(kind, width, base_depth, side - 2 * (kind != "in scale"))
        width = plan[name].outputs

    for step in range(scale):
        add(f"downscale_{scale}_{step}", "down")
        add(f"downscale_{scale}_{step}_in_scale", "in scale")
    for step in range(18 - 4 * scale):
        add(f"lower_scale_{scale}_recursion_{step}", "in scale")
    for step in range(scale):
        add(f"upscale_{scale}_{step}", "up")
        add(f"upscale_{scale}_{step}_in_scale", "in scale")
    return plan


def _size_module(kind: Kind, inputs: int, base_depth: int, side: int) -> Module:
    """Widths of a module; ``side`` is that after the in-scale module which follows a change of scale."""
    depth = base_depth - 4 if kind == "up" else base_depth  # as in the published code
    rate = -(-depth // side)
    expanded, outputs = _even(-(-211 * rate // 39)), _even(rate)
    if kind == "up":  # sheds channels; the other two never do
        return Module(kind, inputs, expanded, outputs)
    return Module(kind, inputs, max(expanded, inputs), max(outputs, inputs))


def _even(value: int) -> int:
    return value + value % 2


def variable_shapes(config: ReferenceConfig) -> dict[str, Shape]:
    """Shape of every variable by its name in the published checkpoint, axes in TensorFlow's order."""
    towers, upper = plan_network(config.base_depth)
    shapes: dict[str, Shape] = {
        "Conv/weights": (1, 1, 2 * config.planes, PROJECTED),
        "Conv/biases": (PROJECTED,),
    }
    for name, module in (item for plan in (*towers, upper) for item in plan.items()):
        kernel, channels = (module.window[0],) * 2, (2 * module.inputs, module.expanded)
        shapes |= _norm_shapes(f"{name}/expand_rv2", module.inputs)
        if module.kind == "up":
            shapes[f"{name}/expand_rv2/Conv2d_transpose/weights"] = (*kernel, *channels[::-1])
        else:
            shapes[f"{name}/expand_rv2/Conv/weights"] = (*kernel, *channels)
        shapes |= _norm_shapes(f"{name}/reduce_rv2", module.joined)
        shapes[f"{name}/reduce_rv2/Conv/weights"] = (1, 1, 2 * module.joined, module.outputs)
    width = last_width(upper)
    for head in config.heads:
        scope = f"head/{head}/residual_v2_conv"
        shapes |= _norm_shapes(scope, width)
        shapes |= {
            f"{scope}/Conv/weights": (1, 1, 2 * width, config.bins),
            f"{scope}/Conv/biases": (config.bins,),
        }
    return shapes


def _norm_shapes(scope: str, channels: int) -> dict[str, Shape]:
    return {f"{scope}/BatchNorm/{part}": (channels,) for part in _NORM_PARTS}
