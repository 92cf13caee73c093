"""The reference network without its redundancy, as an ONNX graph for images of any size.

Published inference runs a patch of 250x250 pixels for every 8x8 pixels of output, though neighbouring patches
share almost all of their work. Run as a fully convolutional network on a large tile, the same function costs
a twentieth. But it is the same only at multiples of 16 pixels, because the coarsest tower samples its input
every 16 pixels from the patch's corner, and published patches are 8 pixels apart. Hence two forms:

``exact`` equals patches 8 pixels apart everywhere. The four phases (0 or 8 pixels in rows and columns) share
towers 0 to 3 and the coarsest tower down to its fourth halving; each phase then runs the rest. As a phase
answers for only one 8x8 block in each 16x16, the last four modules, the widest, run on these blocks alone.

``single phase`` runs one phase for all pixels. It equals the patches whose corners are at multiples of 16
pixels; the other pixels are answered by the same patches instead of by those half-way between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from acq_isl.engines.graph_tags import GRAPH_KEY, GraphTags
from acq_isl.training.reference.dense_network import STATISTICS, DenseNetwork, Statistic, Variables
from acq_isl.training.reference.network import BORDER_PX, OUTPUT_PX, PATCH_PX, STRIDE_PX, TOWER_CROPS_PX
from acq_isl.training.reference.onnx_graph import FLOAT, OnnxGraph, Ports

_SHIFT_PX = 8  # between neighbouring patches, and between the phases
_FULL_SCALE = 65535.0
_BLOCK_PX = 4
_TRUNCATE_SD = 3.0
CENTRE = 0.5
"""Mean of the published planes, and the middle of their range from 0 to 1."""
_PUBLISHED_SD = 0.125  # of the transmitted planes, as delivered with the paper
_SHARED_MODULES = 6  # of tower 4, down to a grid of 8 pixels, on which all four phases lie
_BLOCK_MODULES = 4  # at the end, whose needs for one 8x8 block fit into 16x16
_BYTES = 2  # per count
_LONGEST_PX: Mapping[str, int] = {"exact": 514, "single phase": 626}

Decode = Callable[[str], str]
"""Makes pixels (N, h w, A) of an embedding (N, C, h, w)."""
Form = Literal["exact", "single phase"]
Shown = Literal["mean", "median"]


@dataclass(frozen=True, slots=True)
class DenseSpec:
    """What to build.

    Each slice feeds the network's planes that are nearest to it, as published. The high-pass is the sigma of
    the Gaussian background that the graph subtracts from raw counts, before it gives them the mean and SD of
    the paper's data; 0: planes are flat, with mean .5 and SD .125 of the 16-bit range, and nothing is
    changed. What is ``shown`` engines read under the name ``mean``; if it is the median, the mean is called
    ``expectation``.
    """

    heads: tuple[str, ...]
    planes: int = 13
    form: Form = "exact"
    high_pass_px: float = 0.0
    statistics: tuple[Statistic, ...] = STATISTICS
    shown: Shown = "mean"

    @property
    def outputs(self) -> dict[str, Statistic]:
        """Which statistic each output of the graph holds."""
        named: dict[str, Statistic] = {kind: kind for kind in self.statistics}
        if self.shown == "median" and "median" in named:
            if "mean" in named:
                named["expectation"] = "mean"
            named["mean"] = "median"
        return named

    @property
    def crop_px(self) -> int:
        """Cut off before the network: the high-pass never sees a border, and sides are multiples of 16."""
        reach = 0
        if self.high_pass_px:
            reach = _BLOCK_PX * (len(gaussian(self.high_pass_px)) // 2) + _BLOCK_PX // 2
        return reach + (7 - reach) % 8

    @property
    def halo_px(self) -> int:
        """Margin of the outputs that is not predicted and reads 0."""
        return self.crop_px + BORDER_PX + (_SHIFT_PX if self.form == "single phase" else 0)

    @property
    def max_tile_px(self) -> int:
        """Longest side that stays well below 2 GB; the exact form holds four phases at a time."""
        within = _LONGEST_PX[self.form] + 2 * self.crop_px
        return within // STRIDE_PX * STRIDE_PX

    @property
    def min_tile_px(self) -> int:
        """Smallest side; all sides are multiples of 16."""
        return 2 * self.crop_px + PATCH_PX + _SHIFT_PX


def gaussian(high_pass_px: float) -> NDArray[np.float32]:
    """Weights of the background's Gaussian on 4x4 block means, as `contrast_sd` has."""
    sigma = max(high_pass_px / _BLOCK_PX, 1e-3)
    radius = max(int(_TRUNCATE_SD * sigma + 0.5), 1)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)


def build_dense(
    variables: Variables, base_depth: int, spec: DenseSpec, metadata: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """Build the graph from variables by published name, axes in TensorFlow's order.

    Inputs are ``stack``, (N, planes, H, W, 2) uint8, the little-endian bytes of uint16 counts, H and W
    multiples of 16 from ``spec.min_tile_px``, and ``inv_sd``, (N,) float32, 1 / contrast of each stack, which
    counts with a high-pass only. Outputs are ``spec.outputs``, each (N, L, H, W) float32; a margin of
    ``spec.halo_px`` is not predicted and reads 0. ``metadata`` goes into the model's ``metadata_props``.
    """
    network = DenseNetwork(OnnxGraph(), variables, base_depth, spec.planes)
    graph = network.graph
    counts, planes = build_planes(graph, spec)
    image = build_image(
        network, spec, planes, lambda embedding: network.decode(embedding, spec.heads, spec.statistics)
    )
    labels = len(spec.heads)
    parts = {
        kind: graph.slice(image, {1: (index * labels, (index + 1) * labels)})
        for index, kind in enumerate(spec.statistics)
    }
    for name, kind in spec.outputs.items():
        graph.name(parts[kind], name)
    tags = GraphTags(counts=counts, normalised=planes, heads=tuple(network.heads))
    entries = {**(metadata or {}), GRAPH_KEY: tags.model_dump_json()}
    return graph.model(graph_inputs(spec), dict.fromkeys(spec.outputs, ("n", labels, "h", "w")), entries)


def graph_inputs(spec: DenseSpec) -> Ports:
    return {"stack": (np.uint8, ("n", spec.planes, "h", "w", _BYTES)), "inv_sd": (np.float32, ("n",))}


def build_image(network: DenseNetwork, spec: DenseSpec, planes: str, decode: Decode) -> str:
    """What ``decode`` makes of the embedding of `build_planes`, as an image as large as the stack."""
    graph = network.graph
    if spec.form == "exact":
        image = _exact(network, network.project(planes, CENTRE), decode)
    else:
        image = _single_phase(network, network.project(graph.inner(planes, 0, _SHIFT_PX), CENTRE), decode)
    before, after = spec.crop_px + BORDER_PX, spec.halo_px
    return graph.op("Pad", image, graph.integers(0, 0, before, before, 0, 0, after, after))


def build_planes(graph: OnnxGraph, spec: DenseSpec) -> tuple[str, str]:
    """Camera bytes to counts, and to (N, planes, H, W) float32 about 0: what the network takes less `CENTRE`.
    About 0, because engines hand this value to the network in half precision, which has no digits to spare
    for a constant that the first layer's biases can hold."""
    low, high = (
        graph.op("Cast", graph.reshape(graph.slice("stack", {4: (byte, byte + 1)}), 0, 0, 0, -1), to=FLOAT)
        for byte in range(_BYTES)
    )
    counts = graph.op("Add", low, graph.op("Mul", high, graph.floats(256.0)))
    inv_sd = graph.reshape("inv_sd", -1, 1, 1, 1)
    if not spec.high_pass_px:
        x = graph.op("Sub", graph.op("Div", counts, graph.floats(_FULL_SCALE)), graph.floats(CENTRE))
        # Times 1, whatever it is: runtimes drop inputs that nothing reads, and refuse them then.
        one = graph.op("Max", graph.op("Min", inv_sd, graph.floats(1.0)), graph.floats(1.0))
        return counts, graph.inner(graph.op("Mul", x, one), spec.crop_px)
    weights = np.tile(gaussian(spec.high_pass_px), (spec.planes, 1, 1, 1))
    reach = _BLOCK_PX * (weights.shape[-1] // 2)
    block = [_BLOCK_PX, _BLOCK_PX]
    background = graph.op("AveragePool", counts, kernel_shape=block, strides=block)
    for kernel in (weights, weights.transpose(0, 1, 3, 2)):
        background = graph.op("Conv", background, graph.floats(kernel), group=spec.planes)
    scales = graph.floats([1, 1, *block])
    background = graph.op("Resize", background, "", scales, mode="linear")
    x = graph.op("Sub", graph.inner(counts, reach), background)
    x = graph.op("Mul", x, graph.op("Mul", inv_sd, graph.floats(_PUBLISHED_SD)))
    x = graph.op("Clip", x, graph.floats(-CENTRE), graph.floats(CENTRE))
    return counts, graph.inner(x, spec.crop_px - reach)


def _single_phase(network: DenseNetwork, projected: str, decode: Decode) -> str:
    """Image, (N, A, 8 + 16 k, 8 + 16 l), of (N, 16, 250 + 16 k, 250 + 16 l)."""
    graph = network.graph
    towers = [network.tower(s, graph.inner(projected, crop)) for s, crop in enumerate(TOWER_CROPS_PX)]
    embedding = network.upper(graph.op("Concat", *towers, axis=1))
    pixels = decode(embedding)  # (N, pixels, A)
    rows, columns = graph.side(embedding, 2), graph.side(embedding, 3)
    return graph.op("Transpose", graph.reshape(pixels, 0, rows, columns, -1), perm=[0, 3, 1, 2])


def _exact(network: DenseNetwork, projected: str, decode: Decode) -> str:
    """Image, (N, A, 16 + 16 k, 16 + 16 l), of (N, 16, 258 + 16 k, 258 + 16 l)."""
    graph = network.graph
    *fine, coarsest = enumerate(TOWER_CROPS_PX)
    shared = [network.tower(scale, graph.inner(projected, crop)) for scale, crop in fine]
    joined = _phases(graph, graph.op("Concat", *shared, axis=1), _SHIFT_PX)
    coarse = network.tower(coarsest[0], graph.inner(projected, coarsest[1]), stop=_SHARED_MODULES)
    coarse = network.tower(coarsest[0], _phases(graph, coarse, 1), start=_SHARED_MODULES)
    x = graph.op("Concat", joined, coarse, axis=1)  # (4 N, C, 36 + 16 k, 36 + 16 l), phases outermost
    x = network.upper(x, stop=-_BLOCK_MODULES)  # (4 N, C, 16 + 16 k, 16 + 16 l)
    grid = graph.op("SpaceToDepth", x, blocksize=STRIDE_PX)  # (4 N, 256 C, 1 + k, 1 + l)
    rows, columns = graph.side(grid, 2), graph.side(grid, 3)
    channels = network.upper_width(-_BLOCK_MODULES - 1)
    x = graph.reshape(graph.op("Transpose", grid, perm=[0, 2, 3, 1]), -1, STRIDE_PX, STRIDE_PX, channels)
    x = network.upper(graph.op("Transpose", x, perm=[0, 3, 1, 2]), start=-_BLOCK_MODULES)
    # From blocks in order (phase row, phase column, N, row, column) to an image: phases alternate in space.
    pixels = decode(x)  # (blocks, 64, A)
    values = graph.side(pixels, 2)
    x = graph.reshape(pixels, 2, 2, -1, rows, columns, OUTPUT_PX, OUTPUT_PX, values)
    x = graph.op("Transpose", x, perm=[2, 7, 3, 0, 5, 4, 1, 6])
    height, width = (graph.op("Mul", side, graph.integers(STRIDE_PX)) for side in (rows, columns))
    return graph.reshape(x, -1, values, height, width)


def _phases(graph: OnnxGraph, x: str, shift: int) -> str:
    """The four views of ``x`` that begin at 0 or ``shift`` in rows and columns, stacked as a batch."""
    ranges = (0, -shift), (shift, 0)
    views = [graph.slice(x, {2: rows, 3: columns}) for rows in ranges for columns in ranges]
    return graph.op("Concat", *views, axis=0)
