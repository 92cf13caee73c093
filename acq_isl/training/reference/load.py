"""The reference network's size and weights, out of a TensorFlow checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from acq_isl.errors import ModelError
from acq_isl.training.reference.network import (
    TOWER_CROPS_PX,
    Kind,
    ReferenceConfig,
    ReferenceNetwork,
    Widths,
    tower_plan,
    upper_plan,
)
from acq_isl.training.reference.tf_checkpoint import Checkpoint

_HEAD_SUFFIX = "/residual_v2_conv/Conv/biases"
_PUBLISHED_DEPTH = 400
_DEPTHS = range(4, 1025)
_FIX = "use a checkpoint of google/in-silico-labeling's concordance network, such as its public archive"


def reference_config(checkpoint: Checkpoint) -> ReferenceConfig:
    """Read the network's size from the shapes of its variables.

    Neighbouring depths can give the same shapes, and then are the same network: it is the published 400 if
    that fits, and otherwise the smallest.

    Raises
    ------
    ModelError
        The variables are not those of the reference network.
    """
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    first = shapes.get("Conv/weights", ())  # (1, 1, 2 planes, 16)
    heads = tuple(
        name.removeprefix("head/").removesuffix(_HEAD_SUFFIX)
        for name in shapes
        if name.endswith(_HEAD_SUFFIX)
    )
    bins = shapes[f"head/{heads[0]}{_HEAD_SUFFIX}"] if heads else ()
    if len(first) != 4 or first[2] % 2 or not first[2] or len(bins) != 1 or bins[0] < 2:
        some = ", ".join(list(shapes)[:3]) or "none"
        raise ModelError(
            f"the checkpoint {checkpoint.prefix} is not one of the reference network",
            wanted="variables Conv/weights and head/.../residual_v2_conv/Conv/biases",
            got=f"{len(shapes)} variables: {some}{', ...' if len(shapes) > 3 else ''}",
            fix=_FIX,
        )
    depth = max((_PUBLISHED_DEPTH, *_DEPTHS), key=lambda depth: _agreement(shapes, depth))
    config = ReferenceConfig(depth, first[2] // 2, heads, bins[0])
    _check_shapes(checkpoint, config)
    return config


def load_variables(checkpoint: Checkpoint, config: ReferenceConfig) -> dict[str, NDArray[np.float32]]:
    """Read the core and the heads of ``config``.

    Raises
    ------
    ModelError
        A variable is missing, of another shape, damaged, or not finite.
    """
    _check_shapes(checkpoint, config)
    values: dict[str, NDArray[np.float32]] = {}
    for name in _shapes(config):
        value = checkpoint.read(name)
        low = 0.0 if name.endswith("moving_variance") else -np.inf
        if value.dtype.kind != "f" or not np.isfinite(value).all() or (value < low).any():
            raise ModelError(
                f"the variable {name} of {checkpoint.prefix} cannot be a weight",
                wanted="finite floating point numbers, variances from 0",
                got=f"{value.dtype}, from {value.min()} to {value.max()}",
                fix="use an earlier checkpoint of this training",
            )
        values[name] = value.astype(np.float32)
    return values


def load_reference(path: Path | str, *, heads: Iterable[str] | None = None) -> ReferenceNetwork:
    """The reference network with a checkpoint's weights, in evaluation mode.

    Parameters
    ----------
    path : path
        As for `acq_isl.training.reference.tf_checkpoint.Checkpoint.open`.
    heads : iterable of str, optional
        Labels to keep, such as ``DAPI_CONFOCAL``; all heads if not given.

    Raises
    ------
    ModelError
        See `Checkpoint.open`, `reference_config`, `load_variables`.
    """
    checkpoint = Checkpoint.open(path)
    config = reference_config(checkpoint)
    if heads is not None:
        config = replace(config, heads=choose_heads(config.heads, heads))
    network = ReferenceNetwork(config).eval()
    values = load_variables(checkpoint, config)
    for name, variable in network.variables():
        variable.copy_(torch.from_numpy(values[name]))
    return network


def choose_heads(available: tuple[str, ...], wanted: Iterable[str]) -> tuple[str, ...]:
    """Full names of heads from full or short ones; ModelError if there is none of that name."""
    chosen = []
    for name in wanted:
        match = next(
            (head for head in available if name.upper() in (head.upper(), head.split("/")[-1])), None
        )
        if match is None:
            raise ModelError(
                f"the checkpoint has no label {name}",
                wanted="one of " + ", ".join(head.removeprefix("MAXPROJECT/") for head in available),
                got=name,
                fix="choose labels from this list",
            )
        if match not in chosen:
            chosen.append(match)
    if not chosen:
        raise ModelError("no label was chosen", wanted="at least one", got="none", fix="name a label to keep")
    return tuple(chosen)


def _core_plan(depth: int) -> dict[str, tuple[Kind, Widths]]:
    towers = [tower_plan(scale, depth) for scale in range(len(TOWER_CROPS_PX))]
    joined = sum(next(reversed(plan.values()))[1].outputs for plan in towers)
    return {name: part for plan in (*towers, upper_plan(depth, joined)) for name, part in plan.items()}


def _agreement(shapes: Mapping[str, tuple[int, ...]], depth: int) -> int:
    """How many modules have the width that they would have at this depth."""
    return sum(
        shapes.get(f"{name}/reduce_rv2/Conv/weights") == (1, 1, 2 * widths.joined(kind), widths.outputs)
        for name, (kind, widths) in _core_plan(depth).items()
    )


def _shapes(config: ReferenceConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = ReferenceNetwork(config)
    return {name: tuple(variable.shape) for name, variable in network.variables()}


def _check_shapes(checkpoint: Checkpoint, config: ReferenceConfig) -> None:
    entries = checkpoint.entries
    for name, shape in _shapes(config).items():
        got = entries[name].shape if name in entries else None
        if got != shape:
            raise ModelError(
                f"the checkpoint {checkpoint.prefix} does not fit the reference network: {name}",
                wanted=f"{name} of shape {shape} (base_depth {config.base_depth}, {config.planes} planes)",
                got="no such variable" if got is None else f"shape {got}",
                fix=_FIX,
            )
