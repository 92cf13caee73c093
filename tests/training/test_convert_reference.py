"""A TensorFlow checkpoint becomes a model file, or a clear error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import ModelError
from acq_isl.manifest import MANIFEST_KEY, Manifest
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.training.reference.convert import Optics, import_reference
from acq_isl.training.reference.load import choose_heads, load_variables, reference_config
from acq_isl.training.reference.network import BORDER_PX
from acq_isl.training.reference.tf_checkpoint import Checkpoint, Entry
from doubles.reference_network import default_heads

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden checkpoint at {GOLDEN}")
OPTICS = Optics("phase contrast", "unknown", 0.3, tuple(float(z) for z in range(-6, 7)))
HEAD = "MAXPROJECT/MAP2_CONFOCAL"


def changed(**entries: Entry | None) -> Checkpoint:
    """The golden checkpoint with other entries; None takes one out."""
    golden = Checkpoint.open(GOLDEN)
    merged = {**golden.entries, **entries}
    return replace(golden, entries=MappingProxyType({k: v for k, v in merged.items() if v is not None}))


def test_the_model_file_is_one_that_engines_take(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    manifest = import_reference(GOLDEN, path, OPTICS, heads=["map2_confocal", "DAPI_CONFOCAL"])
    info = read_model(path).info
    assert info.manifest == manifest
    assert manifest.label_names == ("dendrites", "nuclei")
    assert (manifest.planes, manifest.high_pass_um, manifest.pixel_size_um) == (13, 6.0, 0.3)
    assert (manifest.min_tile_px, manifest.halo_px, manifest.size_step_px) == (384, 184, 16)
    assert info.outputs == ("mean float32 (n, 2, h, w)", "spread float32 (n, 2, h, w)")
    assert manifest.statistic == "median"
    assert {label.truth_range for label in manifest.labels} == {(0.0, 65535.0)}
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_model_predicts_what_the_checkpoint_predicts(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    optics = replace(OPTICS, high_pass_um=0.0)
    manifest = import_reference(GOLDEN, path, optics, heads=[HEAD], form="single phase")
    golden = np.load(GOLDEN / "golden.npz")
    stack = np.zeros((1, 13, 304, 304), "<u2")
    stack[..., 7:289, 7:289] = golden["stack"]
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    feeds = {"stack": stack.view(np.uint8).reshape(*stack.shape, 2), "inv_sd": np.ones(1, np.float32)}
    names = [output.name for output in session.get_outputs()]
    out = dict(zip(names, session.run(names, feeds), strict=True))
    row, column = golden["offsets"][1] + 7 + BORDER_PX
    logits = golden["head__" + HEAD.replace("/", "__")][1].astype(np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    window = np.s_[0, 0, row : row + 8, column : column + 8]
    values = np.linspace(0, 1, 256)
    wanted = {
        "median": (p.cumsum(-1) < 0.5).sum(-1) / 255,
        "expectation": p @ values,
        "spread": np.sqrt(p @ values**2 - (p @ values) ** 2),
        "entropy": -(p * np.log(p)).sum(-1) / np.log(256),
    }
    assert set(out) == {*wanted, "mean"}
    for name, image in wanted.items():
        np.testing.assert_allclose(out[name][window], image, atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(out["mean"], out["median"])
    assert manifest.name == "isl-reference-single-phase"


def test_a_field_is_predicted_to_its_edge_tile_by_tile(tmp_path: Path) -> None:
    """The engine surrounds the field by what the network leaves blank, and tiles cannot be seen."""
    path = tmp_path / "model.onnx"
    optics = replace(OPTICS, z_offsets_um=(-1.0, 0.0, 1.0), high_pass_um=0.0)
    manifest = import_reference(GOLDEN, path, optics, heads=[HEAD], form="single phase", statistic="mean")
    assert (manifest.blank_px, manifest.max_tile_px) == (136, 640)
    grain = np.random.default_rng(5).normal(size=(3, 96, 80))
    blobs = ndimage.gaussian_filter(grain, (0, 2, 2))
    pixels = (32768 + 8192 * blobs / blobs.std()).clip(0, 65535).astype(np.uint16)
    info = StackInfo(StackKey(0, "A1", "Phase"), (0.0, 1.0, 2.0), (96, 80), 0.3)
    stack = ZStack(info, pixels, (0.0,) * 3)
    with OnnxEngine(path, threads=1) as whole, OnnxEngine(path, threads=1, tile_px=320) as tiled:
        found, same = whole.predict(stack), tiled.predict(stack)
    assert (found.mean > 0).all()
    np.testing.assert_allclose(found.mean, same.mean, atol=1e-5)
    np.testing.assert_allclose(found.spread, same.spread, atol=1e-5)


def test_the_mean_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    manifest = import_reference(GOLDEN, path, OPTICS, heads=[HEAD], statistic="mean")
    assert [output.name for output in onnx.load(path).graph.output] == ["mean", "spread", "median", "entropy"]
    assert manifest.statistic == "mean"


def test_without_a_choice_all_labels_and_no_planes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    manifest = import_reference(GOLDEN, path, replace(OPTICS, z_offsets_um=(-1.0, 0.0, 1.0)))
    assert len(manifest.labels) == len(set(manifest.label_names)) == 9
    (text,) = [p.value for p in onnx.load(path).metadata_props if p.key == MANIFEST_KEY]
    assert Manifest.from_json(text) == manifest
    assert manifest.planes == 3


def test_the_size_is_read_from_the_variables() -> None:
    config = reference_config(Checkpoint.open(GOLDEN))
    assert (config.planes, config.bins) == (26, 256)
    assert sorted(config.heads) == sorted(default_heads(26))
    # 45 to 48 give the same widths and so the same network.
    assert 45 <= config.base_depth <= 48


LATE = "upper_recursion_13/reduce_rv2/Conv/weights"
ENTRY = Entry(1, (1, 1, 2, 16), 0, 0, 128, 0, False)
WRONG = {
    "another network": (
        {"Conv/weights": None},
        "is not one of the reference network",
    ),
    "a variable missing": ({LATE: None}, f"{LATE}.*no such variable"),
    "a variable of another shape": ({LATE: replace(ENTRY, shape=(1, 1, 9, 9))}, r"shape \(1, 1, 9, 9\)"),
    "an odd first layer": ({"Conv/weights": replace(ENTRY, shape=(1, 1, 51, 16))}, "is not one of"),
    "a first layer of a number": ({"Conv/weights": replace(ENTRY, shape=())}, "is not one of"),
    "heads that disagree": (
        {f"head/{HEAD}/residual_v2_conv/Conv/biases": replace(ENTRY, shape=(99,))},
        r"does not fit the reference network.*MAP2",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_variables_are_named(case: str) -> None:
    entries, message = WRONG[case]
    with pytest.raises(ModelError, match=message) as caught:
        reference_config(changed(**entries))
    assert caught.value.wanted and caught.value.got and caught.value.fix


class Spoilt:
    """The golden checkpoint, in which one variable holds a value that no weight can have."""

    def __init__(self, name: str, value: float) -> None:
        golden = Checkpoint.open(GOLDEN)
        self.prefix, self.entries = golden.prefix, golden.entries
        self._golden, self._name, self._value = golden, name, value

    def read(self, name: str) -> NDArray[np.float32]:
        array = self._golden.read(name).copy()
        if name == self._name:
            array[3] = self._value
        return array


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Conv/biases", np.nan),
        ("Conv/biases", np.inf),
        ("upper_recursion_0/expand_rv2/BatchNorm/moving_variance", -1.0),
    ],
)
def test_weights_that_cannot_be_are_refused(name: str, value: float) -> None:
    spoilt = cast(Checkpoint, Spoilt(name, value))
    config = replace(reference_config(spoilt), heads=(HEAD,))
    with pytest.raises(ModelError, match=f"{name}.*cannot be a weight"):
        load_variables(spoilt, config)


def test_an_unknown_label_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"no label ACTIN.*DAPI_CONFOCAL, DAPI_WIDEFIELD"):
        choose_heads(default_heads(26), ["ACTIN"])
    with pytest.raises(ModelError, match="no label was chosen"):
        choose_heads(default_heads(26), [])
    assert choose_heads(default_heads(26), ["0.04/transmission", "dapi_confocal", "DAPI_CONFOCAL"]) == (
        "0.04/TRANSMISSION",
        "MAXPROJECT/DAPI_CONFOCAL",
    )


@pytest.mark.parametrize(
    "change",
    [{"pixel_size_um": 0.0}, {"z_offsets_um": ()}, {"z_offsets_um": (1.0, 0.0)}, {"high_pass_um": -1.0}],
)
def test_optics_that_make_no_sense_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="optics"):
        replace(OPTICS, **change)


def test_nothing_is_left_behind_where_the_model_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written"):
        import_reference(GOLDEN, tmp_path / "nowhere" / "model.onnx", OPTICS, heads=[HEAD])
    assert not list(tmp_path.iterdir())
