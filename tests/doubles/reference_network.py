"""The published in-silico-labelling network in torch: what the dense graph is held against.

See `acq_isl.training.reference.network` for its parts. The modules are written as published, without what
makes the dense graph fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acq_isl.training.reference.load import choose_heads, load_variables, reference_config
from acq_isl.training.reference.network import (
    BN_EPSILON,
    PROJECTED,
    TARGETS,
    TOWER_CROPS_PX,
    Kind,
    Module,
    Plan,
    ReferenceConfig,
    last_width,
    plan_network,
    plane_positions,
)
from acq_isl.training.reference.tf_checkpoint import Checkpoint

_BN_MOMENTUM = 1e-3
Convolution = nn.Conv2d | nn.ConvTranspose2d


def default_heads(planes: int) -> tuple[str, ...]:
    """The published heads: one that gives back each input plane, then the nine labels."""
    inputs = tuple(f"{z}/TRANSMISSION" for z in plane_positions(planes))
    return inputs + tuple(f"MAXPROJECT/{target}" for target in TARGETS)


def load_reference(path: Path | str, *, heads: Iterable[str] | None = None) -> ReferenceNetwork:
    """The network with a checkpoint's weights, in evaluation mode; all heads if none are named."""
    checkpoint = Checkpoint.open(path)
    config = reference_config(checkpoint)
    if heads is not None:
        config = replace(config, heads=choose_heads(config.heads, heads))
    network = ReferenceNetwork(config).eval()
    values = load_variables(checkpoint, config)
    for name, variable in network.variables():
        variable.copy_(torch.from_numpy(values[name]))
    return network


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

    def __init__(self, size: Module) -> None:
        super().__init__()
        self.size = size
        self.expand_norm = nn.BatchNorm2d(size.inputs, BN_EPSILON, _BN_MOMENTUM)
        convolution = nn.ConvTranspose2d if size.kind == "up" else nn.Conv2d
        self.expand: Convolution = convolution(2 * size.inputs, size.expanded, *size.window, bias=False)
        self.reduce_norm = nn.BatchNorm2d(size.joined, BN_EPSILON, _BN_MOMENTUM)
        self.reduce = nn.Conv2d(2 * size.joined, size.outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(relu_tanh(self.expand_norm(x)))
        y = inner(y, 2) if self.size.kind == "up" else torch.cat([y, self.pooled(x)], 1)
        y = self.reduce(relu_tanh(self.reduce_norm(y)))
        out: Tensor = y + shortcut(self.size.kind, x, self.size.outputs)
        return out

    def pooled(self, x: Tensor) -> Tensor:
        """Largest neighbour, which joins the expanded channels."""
        return F.max_pool2d(x, *self.size.window)


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


def _modules(plan: Plan) -> nn.Sequential:
    stack = nn.Sequential()
    for name, size in plan.items():
        stack.add_module(name, Minception(size))
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
        self.project = nn.Conv2d(2 * config.planes, PROJECTED, 1)
        towers, upper = plan_network(config.base_depth)
        self.towers = nn.ModuleList(_modules(plan) for plan in towers)
        self.upper = _modules(upper)
        self.heads = nn.ModuleList(Head(last_width(upper), config.bins) for _ in config.heads)
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
                conv = "Conv2d_transpose" if module.size.kind == "up" else "Conv"
                yield from _norm_variables(f"{name}/expand_rv2", module.expand_norm)
                yield from _convolution_variables(f"{name}/expand_rv2/{conv}", module.expand)
                yield from _norm_variables(f"{name}/reduce_rv2", module.reduce_norm)
                yield from _convolution_variables(f"{name}/reduce_rv2/Conv", module.reduce)
        for name, head in self.named_heads():
            yield from _norm_variables(f"head/{name}/residual_v2_conv", head.norm)
            yield from _convolution_variables(f"head/{name}/residual_v2_conv/Conv", head.reduce)
