"""Every architecture that is shipped, at a reduced width, really built with TensorRT for RTX; no GPU needed.

A new kind of live network is in the list as soon as `acq_isl.training.network.Kind` names it.
"""

from __future__ import annotations

import typing
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest

from acq_isl.engines import fp16 as precision
from acq_isl.engines.agreement import as_inputs, sample_tiles
from acq_isl.engines.graph_tags import GRAPH_KEY, GraphTags, extract
from acq_isl.engines.model_file import read_model
from acq_isl.engines.tensorrt.api import Messages, load_flavour
from acq_isl.engines.tensorrt.build import build
from acq_isl.engines.tensorrt.compile import check_network, parse
from acq_isl.engines.tensorrt.options import BuildOptions
from acq_isl.engines.tensorrt.plan_cache import PlanStore
from acq_isl.manifest import MANIFEST_KEY, Gate, Label, Manifest

torch = pytest.importorskip("torch", reason="pip install acq-isl[train] to export networks")
gates = pytest.importorskip("acq_isl.training.ood_gate", reason="the gate is part of acq-isl[train]")

from acq_isl.training.network import Deployed, Kind, LiveNetwork, NetworkConfig  # noqa: E402

PLANES = 5
ARCHITECTURES = (*typing.get_args(Kind),)


def manifest(config, distances):
    return Manifest(
        name=config.kind, version="1", licence="BSD-3-Clause", description="random weights",
        modality="phase contrast", polarity="dark", pixel_size_um=0.3,
        z_offsets_um=tuple(1.5 * (i - PLANES // 2) for i in range(PLANES)), high_pass_um=6.0,
        labels=(Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH")),
        min_tile_px=128, halo_px=32, size_step_px=config.size_step_px, trained_on="nothing",
        gate=Gate(names=gates.NAMES[:distances], limits=(1.0,) * distances, false_alarms=0.03),
    )  # fmt: skip


def normal(size, seed):
    rng = np.random.default_rng(seed)
    return gates.FeatureNormal(
        rng.normal(scale=0.1, size=size), np.eye(size) + rng.normal(scale=0.05, size=(size, size))
    )


def gate_for(network):
    """A gate that was fitted to nothing, for what this network gives."""
    step = network.config.size_step_px
    with torch.no_grad():
        x = torch.zeros(1, PLANES, 128, 128)
        rows = gates.window_statistics(x, network.predict_with_features(x)[2], step)
    features, focus, odd = (one.shape[1] for one in rows)
    weights = np.random.default_rng(2).normal(scale=0.1, size=odd)
    return gates.GateHead(step, normal(features, 0), normal(focus, 1), gates.PolarityDiscriminant(weights))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def architecture(request, tmp_path_factory):
    """Model file of a network with random weights and a gate."""
    torch.manual_seed(1)
    network = LiveNetwork(NetworkConfig(PLANES, 2, base=8, levels=3, kind=request.param))
    torch.nn.init.normal_(network.head.weight, 0, 0.1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp("architecture") / f"{request.param}.onnx"
    deployed = Deployed(network.eval(), (1.0, 1.0), gate_for(network.eval())).eval()
    export(deployed, manifest(network.config, len(gates.NAMES)), path)
    return path


def export(deployed, described, path):
    """As `acq_isl.training.export.onnx` does, by the older exporter, which takes a tenth of the time."""
    names = {"stack": {0: "n", 2: "h", 3: "w"}, "inv_sd": {0: "n"}}
    names |= {name: {0: "n", 2: "rows", 3: "columns"} for name in ("mean", "spread", "distance")}
    example = torch.zeros(1, PLANES, 128, 160, 2, dtype=torch.uint8), torch.ones(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is the older one
        torch.onnx.export(
            deployed, example, path, dynamo=False, opset_version=20, dynamic_axes=names,
            input_names=["stack", "inv_sd"], output_names=["mean", "spread", "distance"],
        )  # fmt: skip
    model = onnx.load(path)
    # Named by modules, as the newer exporter's notes do for `acq_isl.training.export.tags`.
    tags = GraphTags(
        counts="/Add_output_0",
        normalised="/normalise/Clip_output_0",
        heads=("/head/Conv_output_0",),
    )
    entries = {MANIFEST_KEY: described.model_dump_json(), GRAPH_KEY: tags.model_dump_json()}
    onnx.helper.set_model_props(model, entries)
    extract(model, (tags.normalised,), tags.heads)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip(
        "tensorrt_rtx", exc_type=ImportError, reason="pip install acq-isl[rtx] to build plans"
    )
    return load_flavour("rtx")


@pytest.mark.parametrize("form", [precision.full, precision.mixed], ids=["fp32", "fp16"])
def test_rtx_understands_it_as_its_manifest_says(rtx, architecture, form):
    file = read_model(architecture)
    builder, network = parse(rtx, form(file.content, file.info.output_names), Messages(rtx))
    check_network(network, rtx, file.info.manifest)
    kinds = rtx.trt.DataType
    outputs = {o.name: o.dtype for o in map(network.get_output, range(network.num_outputs))}
    image = kinds.HALF if form is precision.mixed else kinds.FLOAT
    assert outputs == {"mean": image, "spread": image, "distance": kinds.FLOAT}
    del network, builder


@pytest.mark.parametrize(
    ("profile", "form"), [("live", "fp16"), ("live", "fp32"), ("bulk", "fp16")], ids=lambda name: name
)
def test_it_builds(rtx, architecture, profile, form, tmp_path):
    options = BuildOptions("rtx", form, profile, field_px=(2160, 2560))
    built = build(architecture, options, store=PlanStore(tmp_path), flavour=rtx)
    assert built.content[:4] == b"vtrt" and built.note.plan_bytes == len(built.content)
    least, usual, most = built.note.key.shapes["stack"]
    if profile == "live":
        assert usual == (1, PLANES, 2176, 2576, 2) and least[2] <= 256 and most[2] >= 4096 + 4 * 8
    if form == "fp16":
        assert built.note.agreement["pearson nuclei"] > 0.9999
        assert built.note.agreement["distance / limit"] < 0.02


def test_fp16_leaves_the_normalisation_and_the_gate_in_fp32(architecture):
    """Whatever the network is made of: counts of 60000 and a contrast of 10 must not be rounded to fp16."""
    file = read_model(architecture)
    tiles = (sample_tiles(file.info.manifest, 1) // 64 + 60000).astype(np.uint16)
    feeds = as_inputs(tiles)
    results = [
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(
            list(file.info.output_names), feeds
        )
        for content in (file.content, precision.rehearsal(file.content, file.info.output_names))
    ]
    for wanted, got in zip(*results, strict=True):
        scale = float(np.abs(wanted).max())
        np.testing.assert_allclose(got.astype(np.float32), wanted, atol=0.01 * scale)
