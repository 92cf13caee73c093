"""Removing the background plane by plane: the same sums as in a model's graph, in a third of the time.

OpenVINO runs all planes of a field through one operator before it begins the next one, and changes the order
of pixels in between, so the field crosses the memory ten times. One plane at a time fits into the cache. Its
shape is (row of blocks, 1, row within the block, column), so that everything from the background, stretched
along its rows, to the result is one loop over the pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from acq_isl.engines.openvino.graph import computed, in_fp32, sources

_TEST_BLOCKS = 9, 14
_RELATIVE_ERROR = 1e-5

Model = Any  # openvino's classes are made by pybind11
Node = Any


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Counts minus a Gaussian of block means, times a contrast, clipped, as found in a graph.

    Parameters
    ----------
    block : int
        Side of a block in pixels.
    rows, columns : (2 r + 1,) float32
        Weights along rows and along columns of block means.
    least, most : float
        What the result is clipped to.
    planes : int
    taken : int or None
        Side of the part of each block, at its first corner, whose mean stands for it; None: all of it.
    """

    block: int
    rows: NDArray[np.float32]
    columns: NDArray[np.float32]
    least: float
    most: float
    planes: int
    taken: int | None = None


def find_background(core: Any, front: Model) -> Background | None:
    """What a graph from camera counts to a normalised stack does, if it is that, seen by running both.

    Parameters
    ----------
    core : openvino.Core
    front : openvino.Model
        Inputs ``stack``, (n, z, h, w) uint16, and ``inv_sd``, (n,) float32.
    """
    nodes = front.get_ordered_ops()
    pools = [node for node in nodes if node.get_type_name() == "AvgPool"]
    smooth = [kernel for node in nodes if (kernel := _kernel(node)) is not None]
    rows = [kernel[:, 0] for kernel in smooth if kernel.shape[1] == 1]
    columns = [kernel[0] for kernel in smooth if kernel.shape[0] == 1]
    planes = front.input("stack").get_partial_shape()[1]
    if len(pools) != 1 or len(rows) != 1 or len(columns) != 1 or not planes.is_static:
        return None
    how = pools[0].get_attributes()
    block, taken = int(how["strides"][0]), int(how["kernel"][0])
    found = Background(block, rows[0], columns[0], *_clips(nodes), planes.get_length(), taken)
    return found if _same(core, front, found) else None


def plane_graph(background: Background, height: int, width: int, *, low: bool) -> Model:
    """A graph for one plane of a fixed size.

    Parameters
    ----------
    background : Background
    height, width : int
        Pixels, multiples of the block.
    low : bool
        The result is bf16 instead of float32.

    Returns
    -------
    openvino.Model
        Inputs ``stack``, (height / block, 1, block, width) uint16, and ``inv_sd``, (1,) float32; one output
        of the shape of ``stack``. In memory, both are planes as they always are.
    """
    block = background.block
    high, wide = height // block, width // block
    plane = ops.parameter([high, 1, block, width], openvino.Type.u16, name="stack")
    inv_sd = ops.parameter([1], openvino.Type.f32, name="inv_sd")
    for port in (plane, inv_sd):
        port.output(0).set_names({port.get_friendly_name()})
    counts = ops.convert(plane, openvino.Type.f32)
    taken = background.taken or block
    corner = counts if taken == block else ops.slice(counts, _ints(0), _ints(taken), _ints(1), _ints(2))
    x = _reshaped(ops.reduce_sum(corner, _ints(2), False), high * wide, block)
    mean = (np.arange(block) < taken) / taken**2
    x = ops.matmul(x, _floats(mean.reshape(block, 1)), False, False)
    x = _reshaped(x, high, wide)
    x = ops.matmul(_floats(smoothing(background.rows, high)), x, False, False)
    x = ops.matmul(x, _floats(smoothing(background.columns, wide).T), False, False)
    x = _stretched(x, high, wide, block)
    steps = stretching(block)
    around = ops.pad(x, _ints(1, 0, 0, 0), _ints(1, 0, 0, 0), "edge")  # of (high, 1, 1, width)
    for step, weights in enumerate(steps.T):
        rows = ops.slice(around, _ints(step), _ints(step + high), _ints(1), _ints(0))
        part = ops.multiply(rows, _floats(weights.reshape(1, 1, block, 1)))
        x = part if step == 0 else ops.add(x, part)
    x = ops.multiply(ops.subtract(counts, x), _reshaped(inv_sd, 1, 1, 1, 1))
    x = ops.minimum(ops.maximum(x, _floats(background.least)), _floats(background.most))
    if low:
        x = ops.convert(x, openvino.Type.bf16)
    return openvino.Model([ops.result(x.output(0))], [plane, inv_sd], "plane")


def smoothing(weights: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """(size, size) matrix that convolves a line whose ends are repeated beyond it."""
    matrix = np.zeros((size, size))
    radius = len(weights) // 2
    for offset, weight in enumerate(weights):
        place = np.clip(np.arange(size) + offset - radius, 0, size - 1)
        np.add.at(matrix, (np.arange(size), place), weight)
    return matrix.astype(np.float32)


def stretching(factor: int) -> NDArray[np.float32]:
    """(factor, 3) shares of the pixel before, the pixel itself and the next in each new pixel, linearly."""
    place = (np.arange(factor) + 0.5) / factor - 0.5
    shares = np.stack([np.maximum(-place, 0), 1 - np.abs(place), np.maximum(place, 0)], axis=1)
    return shares.astype(np.float32)


def _stretched(x: Node, high: int, wide: int, block: int) -> Node:
    """(high, wide) to (high, 1, 1, wide * block), linearly along columns."""
    line = ops.pad(_reshaped(x, 1, 1, high, wide), _ints(0, 0, 0, 1), _ints(0, 0, 0, 1), "edge")
    shares = _floats(stretching(block).reshape(block, 1, 1, 3))
    line = ops.convolution(line, shares, [1, 1], [0, 0], [0, 0], [1, 1])
    return _reshaped(ops.transpose(line, _ints(0, 2, 3, 1)), high, 1, 1, wide * block)


def _kernel(node: Node) -> NDArray[np.float32] | None:
    """Weights (h, w) of a convolution that treats all planes alike, each by itself."""
    if node.get_type_name() != "GroupConvolution":
        return None
    weights = node.input(1).get_source_output().get_node()
    while weights.get_type_name() == "Reshape":
        weights = weights.input(0).get_source_output().get_node()
    if weights.get_type_name() != "Constant":
        return None
    kernel = np.array(weights.get_data(), np.float32)
    kernel = kernel.reshape(len(kernel), *kernel.shape[-2:])
    return kernel[0] if (kernel == kernel[:1]).all() else None


def _clips(nodes: list[Node]) -> tuple[float, float]:
    least, most = -np.inf, np.inf
    for node in nodes:
        kind = node.get_type_name()
        if kind == "Clamp":
            how = node.get_attributes()
            least, most = float(how["min"]), float(how["max"])
        constants = [source for source in sources(node) if source.get_type_name() == "Constant"]
        if kind == "Maximum" and constants:
            least = float(constants[0].get_data().max())
        if kind == "Minimum" and constants:
            most = float(constants[0].get_data().min())
    largest = float(np.finfo(np.float32).max)
    return max(least, -largest), min(most, largest)


def _same(core: Any, front: Model, found: Background) -> bool:
    """Whether both give the same for two stacks of unlike planes and contrasts, edges included."""
    height, width = (side * found.block for side in _TEST_BLOCKS)
    rng = np.random.default_rng(0)
    level = rng.uniform(0, 60000, (2, found.planes, 1, 1))
    slope = np.linspace(0, 3000, width) + np.linspace(0, 1500, height)[:, np.newaxis]
    noise = rng.normal(0, 900, (2, found.planes, height, width))
    stacks = (level + slope + noise).clip(0, 65535).astype(np.uint16)
    inv_sd = np.array([1 / 1000, 1 / 40], np.float32)
    try:
        wanted = computed(core, front, {"stack": stacks, "inv_sd": inv_sd})
        shape = height // found.block, 1, found.block, width
        run = in_fp32(core, plane_graph(found, height, width, low=False))
        for stack, one, planes in zip(stacks, inv_sd, wanted, strict=True):
            for plane, image in zip(stack, planes, strict=True):
                got = run({"stack": plane.reshape(shape), "inv_sd": one.reshape(1)})[0]
                # Counts are single precision: their rounding grows with them, and not with what is left.
                allowed = _RELATIVE_ERROR * (np.abs(image) + float(plane.max()) * one)
                if got.size != image.size or not (np.abs(got.reshape(image.shape) - image) <= allowed).all():
                    return False
    except (RuntimeError, ValueError):
        return False  # shapes that do not fit: something else than it looks like
    return True


def _ints(*values: int) -> Node:
    return ops.constant(np.array(values, np.int64))


def _floats(values: NDArray[Any] | float) -> Node:
    return ops.constant(np.ascontiguousarray(values, np.float32))


def _reshaped(x: Node, *shape: int) -> Node:
    return ops.reshape(x, _ints(*shape), False)
