"""The reference network's size and weights, out of a TensorFlow checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import ModelError
from acq_isl.training.reference.network import ReferenceConfig, Shape, plan_network, variable_shapes
from acq_isl.training.reference.tf_checkpoint import Checkpoint

_HEAD_SUFFIX = "/residual_v2_conv/Conv/biases"
_PUBLISHED_DEPTH = 400
_DEPTHS = range(4, 1025)
_FIX = "use a checkpoint of google/in-silico-labeling's concordance network, such as its public archive"


def reference_config(checkpoint: Checkpoint) -> ReferenceConfig:
    """Read the network's size from the shapes of its variables. Neighbouring depths can give the same shapes,
    and then are the same network: it is the published 400 if that fits, and otherwise the smallest.
    `ModelError` if the variables are not those of the reference network."""
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    first = shapes.get("Conv/weights", ())  # (1, 1, 2 planes, 16)
    ends = [name for name in shapes if name.endswith(_HEAD_SUFFIX)]
    heads = tuple(name.removeprefix("head/").removesuffix(_HEAD_SUFFIX) for name in ends)
    bins = shapes[ends[0]] if ends else ()
    if len(first) != 4 or first[2] % 2 or not first[2] or len(bins) != 1 or bins[0] < 2:
        some = ", ".join(list(shapes)[:3]) or "none"
        raise ModelError(
            f"the checkpoint {checkpoint.prefix} is not one of the reference network",
            wanted="variables Conv/weights and head/.../residual_v2_conv/Conv/biases",
            got=f"{len(shapes)} variables: {some}{', ...' if len(shapes) > 3 else ''}",
            fix=_FIX,
        )
    depth = max((_PUBLISHED_DEPTH, *_DEPTHS), key=lambda depth: _count_matches(shapes, depth))
    config = ReferenceConfig(depth, first[2] // 2, heads, bins[0])
    _check_shapes(checkpoint, config)
    return config


def load_variables(checkpoint: Checkpoint, config: ReferenceConfig) -> dict[str, NDArray[np.float32]]:
    """Read the core and the heads of ``config``. `ModelError` if a variable is missing, of another shape,
    damaged, or not finite."""
    values: dict[str, NDArray[np.float32]] = {}
    for name in _check_shapes(checkpoint, config):
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


def choose_heads(available: tuple[str, ...], wanted: Iterable[str]) -> tuple[str, ...]:
    """Full names of heads from full or short ones; ModelError if there is none of that name."""
    known = {name.upper(): head for head in available for name in (head.split("/")[-1], head)}
    chosen: dict[str, None] = {}
    for name in wanted:
        if name.upper() not in known:
            raise ModelError(
                f"the checkpoint has no label {name}",
                wanted="one of " + ", ".join(head.removeprefix("MAXPROJECT/") for head in available),
                got=name,
                fix="choose labels from this list",
            )
        chosen[known[name.upper()]] = None
    if not chosen:
        raise ModelError("no label was chosen", wanted="at least one", got="none", fix="name a label to keep")
    return tuple(chosen)


def _count_matches(shapes: Mapping[str, Shape], depth: int) -> int:
    """How many modules have the width that they would have at this depth."""
    towers, upper = plan_network(depth)
    modules = [item for plan in (*towers, upper) for item in plan.items()]
    return sum(
        shapes.get(f"{name}/reduce_rv2/Conv/weights") == (1, 1, 2 * module.joined, module.outputs)
        for name, module in modules
    )


def _check_shapes(checkpoint: Checkpoint, config: ReferenceConfig) -> Iterable[str]:
    """Names of the network's variables, all of which the checkpoint has in the right shape."""
    entries, shapes = checkpoint.entries, variable_shapes(config)
    for name, shape in shapes.items():
        got = entries[name].shape if name in entries else None
        if got != shape:
            raise ModelError(
                f"the checkpoint {checkpoint.prefix} does not fit the reference network: {name}",
                wanted=f"{name} of shape {shape} (base_depth {config.base_depth}, {config.planes} planes)",
                got="no such variable" if got is None else f"shape {got}",
                fix=_FIX,
            )
    return shapes
