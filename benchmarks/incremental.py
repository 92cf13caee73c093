"""Does it pay to fold each slice into the reference network's first layer as it arrives?

    python benchmarks/incremental.py [--base-depth 400]

The first layer is linear over planes, so a stack need not be kept: each slice is multiplied by its 16 weights
and added to 16 sums. Measured is the work after the last slice: the whole network on the kept stack, or the
last slice's share of the sums and the network behind its first layer. Both take turns, in ONNX Runtime, after
a first round that does not count. The time is the processor's, which a busy machine hardly changes.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from dense import settle
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from acq_isl.stack import Float32Image, Uint16Image
from acq_isl.training.reference.dense import DenseSpec, build_dense
from acq_isl.training.reference.network import ReferenceConfig
from doubles.reference_network import ReferenceNetwork

HEAD = "MAXPROJECT/DAPI_CONFOCAL"
PLANES = 13
_FULL_SCALE = 65535.0


class FirstLayer:
    """Sums over the planes seen so far, (16, y, x) float32.

    Parameters
    ----------
    weights : (16, planes) float32
    biases : (16,) float32
    side : int
    """

    def __init__(self, weights: Float32Image, biases: Float32Image, side: int) -> None:
        self._weights = weights / np.float32(_FULL_SCALE)
        self.sums = np.broadcast_to(biases[:, None, None], (len(biases), side, side)).copy()
        self._share = np.empty((side, side), np.float32)

    def add(self, z: int, plane: Uint16Image) -> None:
        for total, weight in zip(self.sums, self._weights[:, z], strict=True):
            np.add(total, np.multiply(plane, weight, out=self._share), out=total)


def split(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Float32Image, Float32Image]:
    """What follows the first layer, and that layer's weights and biases."""
    values = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    weights, biases = values[first.input[1]], values[first.input[2]]
    ports = [one.name for one in model.graph.output]
    shaped = onnx.shape_inference.infer_shapes(model)
    rest = onnx.utils.Extractor(shaped).extract_model([first.output[0], "inv_sd"], ports)
    return rest, weights[:, :, 0, 0], biases


def session(model: onnx.ModelProto, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def main(base_depth: int = 48, side: int = 528, rounds: int = 5, threads: int = 1) -> None:
    torch.manual_seed(0)
    network = ReferenceNetwork(ReferenceConfig(base_depth, 26, (HEAD,)))
    settle(network)
    variables = {name: value.numpy() for name, value in network.variables()}
    spec = DenseSpec((HEAD,), PLANES, "exact", statistics=("mean", "spread"))
    model = build_dense(variables, base_depth, spec)
    rest, weights, biases = split(model)
    crop = spec.crop_px
    whole, behind = session(model, threads), session(rest, threads)
    rng = np.random.default_rng(0)
    stack: NDArray[np.uint16] = rng.integers(20000, 45000, (PLANES, side, side)).astype("<u2")
    inner = np.s_[crop : side - crop, crop : side - crop]
    inv_sd = np.ones(1, np.float32)
    waits: dict[str, list[float]] = {"whole stack": [], "slice by slice": [], "each slice": []}
    difference = 0.0
    for turn in range(rounds + 1):
        if turn == 1:
            waits = {name: [] for name in waits}
        began_s = time.process_time()
        feeds = {"stack": stack.view(np.uint8).reshape(1, *stack.shape, 2), "inv_sd": inv_sd}
        wanted = whole.run(None, feeds)[0]
        waits["whole stack"].append(time.process_time() - began_s)
        layer = FirstLayer(weights, biases, side - 2 * crop)
        for z in range(PLANES):
            began_s = time.process_time()
            layer.add(z, stack[z][inner])
            last_s = time.process_time() - began_s
            waits["each slice"].append(last_s)
        began_s = time.process_time()
        got = behind.run(None, {behind.get_inputs()[0].name: layer.sums[np.newaxis], "inv_sd": inv_sd})[0]
        waits["slice by slice"].append(time.process_time() - began_s + last_s)
        difference = max(difference, float(np.abs(got - wanted).max()))
    pairs = zip(waits["slice by slice"], waits["whole stack"], strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    show(base_depth, side, waits, ratio, difference)


def show(base_depth: int, side: int, waits: dict[str, list[float]], ratio: float, difference: float) -> None:
    middle = {name: 1e3 * statistics.median(values) for name, values in waits.items()}
    table = Table(title=f"reference network, base_depth {base_depth}, exact, {PLANES} x {side} x {side}")
    for column in ("way", "after the last slice, CPU ms", "of the whole", "kept, bytes per pixel"):
        table.add_column(column, justify="left" if column == "way" else "right")
    table.add_row("whole stack", f"{middle['whole stack']:.0f}", "1", f"{2 * PLANES}")
    table.add_row("slice by slice", f"{middle['slice by slice']:.0f}", f"{ratio:.4f}", "64")
    Console(width=110).print(table)
    each = middle["each slice"]
    Console().print(
        f"each slice costs {each:.1f} ms when it arrives; results differ by {difference:.1e} at most"
    )


if __name__ == "__main__":
    typer.run(main)
