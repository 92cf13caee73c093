"""What a model file may give besides mean and spread, and what its manifest's gate asks for."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from acq_isl.engines.model_file import read_model
from acq_isl.errors import ModelError
from acq_isl.manifest import Gate
from doubles import tiny_model as tiny

IMAGES = ("mean float32 (n, 2, 8*h, 8*w)", "spread float32 (n, 2, 8*h, 8*w)")


def test_without_a_gate_further_outputs_are_ignored(tmp_path):
    info = read_model(tiny.write(tmp_path, defect=tiny.gated)).info
    assert info.output_names == ("mean", "spread") and info.outputs == IMAGES


def test_with_a_gate_the_distance_is_fetched_too(tmp_path):
    info = read_model(tiny.write(tmp_path, manifest=tiny.GATED, defect=tiny.gated)).info
    assert info.output_names == ("mean", "spread", "distance")
    assert info.outputs == (*IMAGES, "distance float32 (n, 2, rows, columns)")


def lose(model):
    tiny.gated(model)
    model.graph.output.remove(next(port for port in model.graph.output if port.name == "distance"))


def halve(model):
    tiny.gated(model)
    port = next(port for port in model.graph.output if port.name == "distance")
    port.type.tensor_type.elem_type = TensorProto.FLOAT16


def another_input(model):
    model.graph.input.add().CopyFrom(model.graph.input[1])
    model.graph.input[2].name = "more"


THREE = tiny.MANIFEST.model_copy(
    update={"gate": Gate(names=("a", "b", "c"), limits=(1.0, 1.0, 1.0), false_alarms=0.01)}
)
DEFECTS = {
    "no distance": (tiny.GATED, lose, r"wanted: .*distance float32 \(n, 2, rows, columns\)"),
    "distances of another number": (THREE, tiny.gated, r"wanted: .*distance float32 \(n, 3,"),
    "distance in fp16": (tiny.GATED, halve, r"got: .*distance float16"),
    "one input too many": (tiny.MANIFEST, another_input, r"got: .*more float32"),
}


@pytest.mark.parametrize(("manifest", "defect", "message"), DEFECTS.values(), ids=DEFECTS.keys())
def test_what_the_manifest_promises_must_be_there(tmp_path, manifest, defect, message):
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny.content(manifest=manifest, defect=defect))
    with pytest.raises(ModelError, match=f"does not take or give what its manifest says.*{message}"):
        read_model(path)
