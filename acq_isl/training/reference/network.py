"""The published in-silico-labelling network ("concordance"). The whole of it is here.

Christiansen et al., "In Silico Labeling: Predicting Fluorescent Labels in Unlabeled Images", Cell 2018, with
code in google/in-silico-labeling. From a patch of 250x250 pixels it predicts, for each label and each of the
central 8x8 pixels, a distribution over intensity bins. Five towers look at centre crops of the patch, at
scales 1 to 1/16; their outputs are joined and go through one more tower. Variables carry the published names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PATCH_PX = 250
OUTPUT_PX = 8
BORDER_PX = (PATCH_PX - OUTPUT_PX) // 2
STRIDE_PX = 16
"""Shifts of the input by multiples of this shift the output and change nothing else."""
TOWER_CROPS_PX = (89, 74, 52, 24, 0)
"""What each tower's centre crop leaves out on each side of the patch."""
TARGETS = ("DAPI_CONFOCAL", "DAPI_WIDEFIELD", "CELLMASK_CONFOCAL", "TUJ1_WIDEFIELD", "NFH_CONFOCAL",
           "MAP2_CONFOCAL", "ISLET_WIDEFIELD", "DEAD_CONFOCAL", "NEURITE_CONFOCAL")  # fmt: skip

_PROJECTED = 16
_TOWER_PX = 36
_UPPER_MODULES = 14
BN_EPSILON = 1e-3
_BN_MOMENTUM = 1e-3

Kind = Literal["in scale", "down", "up"]
Convolution = nn.Conv2d | nn.ConvTranspose2d


def plane_positions(planes: int) -> tuple[float, ...]:
    """Places of the network's planes in a stack, 0 for the first slice and 1 for the last."""
    return tuple(round(i / max(planes - 1, 1), 4) for i in range(planes))


def default_heads(planes: int) -> tuple[str, ...]:
    """The published heads: one that gives back each input plane, then the nine labels."""
    inputs = tuple(f"{z}/TRANSMISSION" for z in plane_positions(planes))
    return inputs + tuple(f"MAXPROJECT/{target}" for target in TARGETS)


@dataclass(frozen=True, slots=True)
class ReferenceConfig:
    """Size of the network.

    Parameters
    ----------
    base_depth : int
        Width; 400 as published.
    planes : int
        Planes the network takes, each with its mask.
    heads : tuple of str
        Names of the outputs, ``Z/CHANNEL`` as in the checkpoint.
    bins : int
        Intensity classes from 0 to full scale.
    """

    base_depth: int = 400
    planes: int = 26
    heads: tuple[str, ...] = default_heads(26)
    bins: int = 256


@dataclass(frozen=True, slots=True)
class Widths:
    """Channels of one module: what comes in, after the expanding, and after the reducing convolution."""

    inputs: int
    expanded: int
    outputs: int

    def joined(self, kind: Kind) -> int:
        """Channels before the second activation: the expanded ones and, but for up, the pooled input."""
        return self.expanded + (0 if kind == "up" else self.inputs)


def _even(value: int) -> int:
    return value + value % 2


def _widths(kind: Kind, inputs: int, base_depth: int, side: int) -> Widths:
    """Widths of a module; ``side`` is that after the in-scale module which follows a change of scale."""
    rate = -(
        -(base_depth - 4 if kind == "up" else base_depth) // side
    )  # the published code takes 4 off the depth
    expanded, outputs = _even(-(-211 * rate // 39)), _even(rate)
    if kind == "up":  # sheds channels; the other two never do
        return Widths(inputs, expanded, outputs)
    return Widths(inputs, max(expanded, inputs), max(outputs, inputs))


def tower_plan(scale: int, base_depth: int) -> dict[str, tuple[Kind, Widths]]:
    """Modules of tower ``scale`` (resolution 1 / 2**scale) in order, by name."""
    side, width = PATCH_PX - 2 * TOWER_CROPS_PX[scale], _PROJECTED
    plan: dict[str, tuple[Kind, Widths]] = {}

    def add(name: str, kind: Kind) -> None:
        nonlocal side, width
        side = {"in scale": side - 2, "down": side // 2 - 1, "up": 2 * side - 2}[kind]
        plan[name] = kind, _widths(kind, width, base_depth, side - 2 * (kind != "in scale"))
        width = plan[name][1].outputs

    for step in range(scale):
        add(f"downscale_{scale}_{step}", "down")
        add(f"downscale_{scale}_{step}_in_scale", "in scale")
    for step in range(18 - 4 * scale):
        add(f"lower_scale_{scale}_recursion_{step}", "in scale")
    for step in range(scale):
        add(f"upscale_{scale}_{step}", "up")
        add(f"upscale_{scale}_{step}_in_scale", "in scale")
    return plan


def upper_plan(base_depth: int, width: int) -> dict[str, tuple[Kind, Widths]]:
    """Modules that follow the joined towers, of ``width`` channels together."""
    plan: dict[str, tuple[Kind, Widths]] = {}
    for step in range(_UPPER_MODULES):
        widths = _widths("in scale", width, base_depth, _TOWER_PX - 2 * (step + 1))
        plan[f"upper_recursion_{step}"] = "in scale", widths
        width = widths.outputs
    return plan


def inner(x: Tensor, crop: int) -> Tensor:
    """The image without ``crop`` pixels on each side."""
    return x[..., crop:-crop, crop:-crop] if crop else x


def relu_tanh(x: Tensor) -> Tensor:
    """Both activations side by side: twice the channels, ReLU first."""
    return torch.cat([F.relu(x), torch.tanh(x)], 1)


class Minception(nn.Module):
    """Residual module with the activations first: a wide spatial convolution, then a narrow 1x1.

    Maps side N to N - 2 in scale, N / 2 - 1 down, and 2 N - 2 up.
    """

    def __init__(self, kind: Kind, widths: Widths) -> None:
        super().__init__()
        self.kind = kind
        self.widths = widths
        self.kernel, self.stride = (3, 1) if kind == "in scale" else (4, 2)
        joined = widths.joined(kind)
        self.expand_norm = nn.BatchNorm2d(widths.inputs, BN_EPSILON, _BN_MOMENTUM)
        convolution = nn.ConvTranspose2d if kind == "up" else nn.Conv2d
        self.expand: Convolution = convolution(
            2 * widths.inputs, widths.expanded, self.kernel, self.stride, bias=False
        )
        self.reduce_norm = nn.BatchNorm2d(joined, BN_EPSILON, _BN_MOMENTUM)
        self.reduce = nn.Conv2d(2 * joined, widths.outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(relu_tanh(self.expand_norm(x)))
        y = inner(y, 2) if self.kind == "up" else torch.cat([y, self.pooled(x)], 1)
        y = self.reduce(relu_tanh(self.reduce_norm(y)))
        out: Tensor = y + shortcut(self.kind, x, self.widths.outputs)
        return out

    def pooled(self, x: Tensor) -> Tensor:
        """Largest neighbour, which joins the expanded channels."""
        return F.max_pool2d(x, self.kernel, self.stride)


def shortcut(kind: Kind, x: Tensor, outputs: int) -> Tensor:
    """What a module adds its result to: the input cropped, or brought to the new scale."""
    if kind == "up":
        return inner(F.interpolate(x[:, :outputs], scale_factor=2, mode="nearest"), 1)
    x = inner(x, 1)
    if kind == "down":
        x = F.avg_pool2d(x, 2)
    return F.pad(x, (0, 0, 0, 0, 0, outputs - x.shape[1])) if outputs > x.shape[1] else x


class Head(nn.Module):
    """Logits of the intensity bins of one output image."""

    def __init__(self, inputs: int, bins: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs, BN_EPSILON, _BN_MOMENTUM)
        self.reduce = nn.Conv2d(2 * inputs, bins, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.reduce(relu_tanh(self.norm(x)))
        return out


def _modules(plan: Mapping[str, tuple[Kind, Widths]]) -> nn.Sequential:
    stack = nn.Sequential()
    for name, (kind, widths) in plan.items():
        stack.add_module(name, Minception(kind, widths))
    return stack


def named_modules(stack: nn.Module) -> Iterator[tuple[str, Minception]]:
    """Modules of a tower in order, with their published names."""
    for name, module in stack.named_children():
        if isinstance(module, Minception):
            yield name, module


def _norm_variables(scope: str, norm: nn.BatchNorm2d) -> Iterator[tuple[str, Tensor]]:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    values = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    for name, value in zip(names, values, strict=True):
        if value is not None:
            yield f"{scope}/BatchNorm/{name}", value.detach()


def _convolution_variables(scope: str, convolution: Convolution) -> Iterator[tuple[str, Tensor]]:
    yield f"{scope}/weights", convolution.weight.detach().permute(2, 3, 1, 0)  # (rows, columns, in, out)
    if convolution.bias is not None:
        yield f"{scope}/biases", convolution.bias.detach()


class ReferenceNetwork(nn.Module):
    """The published network.

    Fully convolutional, but equal to independent patches only at multiples of 16 pixels: the towers sample
    their inputs on grids that start at the patch's corner. `acq_isl.training.reference.dense` makes the most
    of that.
    """

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Conv2d(2 * config.planes, _PROJECTED, 1)
        plans = [tower_plan(scale, config.base_depth) for scale in range(len(TOWER_CROPS_PX))]
        self.towers = nn.ModuleList(_modules(plan) for plan in plans)
        width = sum(next(reversed(plan.values()))[1].outputs for plan in plans)
        upper = upper_plan(config.base_depth, width)
        self.upper = _modules(upper)
        self.embedding_channels = next(reversed(upper.values()))[1].outputs
        self.heads = nn.ModuleList(Head(self.embedding_channels, config.bins) for _ in config.heads)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def embedding(self, x: Tensor) -> Tensor:
        """Core of the network.

        Parameters
        ----------
        x : (N, 2 planes, 250 + 16 k, 250 + 16 l) float32
            Each plane, 0 to 1, followed by its mask, 1 where the plane is known.

        Returns
        -------
        (N, C, 8 + 16 k, 8 + 16 l) float32
        """
        x = self.project(x)  # (N, 16, H, W)
        joined = [
            tower(inner(x, crop)) for tower, crop in zip(self.towers, TOWER_CROPS_PX, strict=True)
        ]  # each (N, c, 36 + 16 k, 36 + 16 l)
        out: Tensor = self.upper(torch.cat(joined, 1))
        return out

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits by head, each (N, bins, 8 + 16 k, 8 + 16 l) float32; ``x`` as for `embedding`."""
        embedding = self.embedding(x)
        return {name: head(embedding) for name, head in self.named_heads()}

    def named_heads(self) -> Iterator[tuple[str, Head]]:
        """Output layers with their names."""
        for name, head in zip(self.config.heads, self.heads, strict=True):
            if isinstance(head, Head):
                yield name, head

    def variables(self) -> Iterator[tuple[str, Tensor]]:
        """Every variable under its name in the published checkpoint, as a view in TensorFlow's axis order."""
        yield from _convolution_variables("Conv", self.project)
        for stack in (*self.towers, self.upper):
            for name, module in named_modules(stack):
                conv = "Conv2d_transpose" if module.kind == "up" else "Conv"
                yield from _norm_variables(f"{name}/expand_rv2", module.expand_norm)
                yield from _convolution_variables(f"{name}/expand_rv2/{conv}", module.expand)
                yield from _norm_variables(f"{name}/reduce_rv2", module.reduce_norm)
                yield from _convolution_variables(f"{name}/reduce_rv2/Conv", module.reduce)
        for name, head in self.named_heads():
            yield from _norm_variables(f"head/{name}/residual_v2_conv", head.norm)
            yield from _convolution_variables(f"head/{name}/residual_v2_conv/Conv", head.reduce)
