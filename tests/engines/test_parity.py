"""An engine that answers something else than ONNX Runtime does not predict, whatever its reason."""

import numpy as np
import pytest

from acq_isl.engines.backend import Candidate
from acq_isl.engines.fallback import FallbackEngine
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.onnx_network import OnnxNetwork
from acq_isl.engines.parity import LIMITS, Reference
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError
from doubles import tiny_model as tiny


class Altered:
    """ONNX Runtime, but its outputs are changed before they are handed out."""

    def __init__(self, model, change, precision):
        self._network, self._change = OnnxNetwork(model, threads=1), change
        self.name, self.outputs = f"altered {precision}", self._network.outputs
        self.closed = False

    def run(self, tiles, inv_sd):
        return self._change(self._network.run(tiles, inv_sd))

    def close(self):
        self.closed = True


def off(share):
    """Noise of so many SDs of each image."""

    def change(outputs):
        rng = np.random.default_rng(0)
        return tuple(o + np.float32(share * o.std()) * rng.normal(size=o.shape).astype("f4") for o in outputs)

    return change


def unwritten(outputs):
    outputs[1][..., -1, -1] = np.nan
    return outputs


WRONG = {
    "another network": (lambda o: (o[0] * 3, o[1]), "fp32"),
    "labels swapped": (lambda o: tuple(v[:, ::-1] for v in o), "fp16"),
    "mirrored": (lambda o: tuple(v[..., ::-1] for v in o), "int8"),
    "nothing": (lambda o: tuple(np.zeros_like(v) for v in o), "int8"),
    "one pixel unwritten": (unwritten, "bf16"),
    "infinite": (lambda o: (o[0] + np.inf, o[1]), "fp32"),
    "an output missing": (lambda o: o[:1], "fp32"),
    "another shape": (lambda o: tuple(v[..., 1:] for v in o), "fp32"),
    **{f"too far for {p}": (off(2 * limit), p) for p, limit in LIMITS.items()},
    "too far for what nobody knows": (off(0.1), "fp7"),
    "the gate's distance": (lambda o: (*o[:2], o[2] + 1), "fp32"),
}


def candidate(model, change, precision, opened):
    def load():
        opened.append(Altered(model, change, precision))
        return Predictor(model.info, opened[-1])

    return Reference(model).guarding(Candidate(f"altered {precision}", load))


@pytest.fixture
def model(tmp_path):
    return read_model(tiny.write(tmp_path, manifest=tiny.GATED, defect=tiny.gated))


@pytest.mark.parametrize(("change", "precision"), WRONG.values(), ids=WRONG.keys())
def test_an_engine_that_answers_something_else_is_refused_and_closed(model, change, precision):
    opened = []
    with pytest.raises(EngineError, match=rf"altered {precision} does not compute.*wanted:.*got:.*to fix"):
        candidate(model, change, precision, opened).load()
    assert opened[0].closed


@pytest.mark.parametrize("precision", LIMITS)
def test_one_within_the_limits_of_its_precision_predicts_and_says_how_close(model, precision):
    share = LIMITS[precision] / 2
    with candidate(model, off(share), precision, []).load() as engine:
        assert f"altered {precision} is as ONNX Runtime" in engine.parity
        assert f"({share:.1g} RMS off" in engine.parity


def test_the_next_engine_takes_over_and_the_record_says_why(model):
    wrong, fine = WRONG["another network"]
    reference = Candidate("onnxruntime fp32", lambda: OnnxEngine(model, threads=1, gate="warn"))
    with FallbackEngine([candidate(model, wrong, fine, []), reference]) as engine:
        prediction = engine.predict(tiny.stack())
    assert prediction.engine == "onnxruntime cpu fp32"
    assert any("does not compute what the model says" in text for text in prediction.warnings)


def test_the_reference_answers_once_for_all_engines(model, monkeypatch):
    runs = []
    reference = Reference(model)
    for precision in LIMITS:
        reference.guarding(
            Candidate(precision, lambda p=precision: Predictor(model.info, Altered(model, lambda o: o, p)))
        ).load()
    monkeypatch.setattr(OnnxNetwork, "run", lambda *_: runs.append(1))
    with pytest.raises(EngineError):
        reference.guarding(
            Candidate("x", lambda: Predictor(model.info, Altered(model, lambda _: (), "fp32")))
        ).load()
    assert len(runs) == 1  # the altered one's own
