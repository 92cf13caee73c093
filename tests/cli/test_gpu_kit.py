"""The GPU kit: each trap is seen when it is there, no step ends the others, and it needs no card to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import pytest

from acq_isl.cli.gpu_kit import measure, traps
from acq_isl.cli.gpu_kit.card import Card, NeedsCard
from acq_isl.cli.gpu_kit.kit import Wish, all_steps, run_kit
from acq_isl.cli.gpu_kit.page import read_page, render
from acq_isl.cli.gpu_kit.steps import Row, Step, take
from acq_isl.engines.fp16 import full
from acq_isl.engines.tensorrt.api import Flavour
from acq_isl.engines.tensorrt.cuda import Device
from acq_isl.errors import StorageError
from doubles import cuda_double
from doubles import tensorrt_double as trt_double
from doubles import tiny_model as tiny
from doubles.kit_steps import broken, crash, fine, need_a_card, slow, wrong


@dataclass(frozen=True)
class ReadableCard(Card):
    """The kit over a GPU one can read, with one flavour of TensorRT on it."""

    trt: object = None
    opened: list = field(default_factory=list)

    def device(self, ordinal=0):
        return Device(ordinal, driver=self.trt.driver)

    def flavour(self, name):
        return Flavour(self.trt) if name == ("rtx" if "rtx" in self.trt.__name__ else "tensorrt") else None


@pytest.fixture
def card(tmp_path):
    def make(rtx=True, gpus=1, **changes):
        driver = cuda_double.Driver()
        driver.devices = gpus
        trt = trt_double.tensorrt(driver, rtx=rtx)
        for name, value in changes.items():
            setattr(trt, name, value)
        made.append(driver)
        return ReadableCard(str(tiny.write(tmp_path)), tmp_path, (96, 128, 96), 1, 1 << 12, trt)

    made: list[cuda_double.Driver] = []
    yield make
    assert [driver.leaks() for driver in made] == [{}] * len(made)


def verdict(check, card, name="rtx"):
    return take(Step("traps", "one", "", partial(check, name=name)), card)


TRAPS = [
    traps.check_fp16_is_fp16,
    traps.check_reductions,
    traps.check_graph,
    traps.check_kernels,
    traps.check_shapes,
]


@pytest.mark.parametrize("check", TRAPS, ids=lambda check: check.__name__)
def test_a_sound_runtime_passes(card, check):
    row = verdict(check, card())
    assert row.verdict == "passed", row.found
    assert row.facts


def test_an_engine_built_as_fp32_is_no_fp16_engine(card, monkeypatch):
    monkeypatch.setattr("acq_isl.engines.tensorrt.build.fp16.mixed", full)
    row = verdict(traps.check_fp16_is_fp16, card())
    assert row.verdict == "failed" and "float32" in row.found


def test_convolutions_in_fp32_behind_fp16_images_are_seen():
    told = (
        '{"Layers": [{"LayerType": "CaskConvolution", "Outputs": [{"Format/Datatype": "%s"}]}, "name only"]}'
    )
    assert traps._types_of_convolutions(told % "Channel major FP16 format") == {"fp16": 1}
    assert traps._types_of_convolutions(told % "Row major linear FP32") == {"fp32": 1}
    assert traps._types_of_convolutions("") == {}


def test_a_reduction_that_is_computed_wrongly_is_seen(card, monkeypatch):
    run = trt_double.onnxruntime.InferenceSession.run

    def wrong(self, names, feeds, *rest):
        found = run(self, names, feeds, *rest)
        pairs = zip(names, found, strict=True)
        return [values * 1.01 if name == "normal" else values for name, values in pairs]

    monkeypatch.setattr(trt_double.onnxruntime.InferenceSession, "run", wrong)
    row = verdict(traps.check_reductions, card())
    assert row.verdict == "failed" and "normal is off by 0.01" in row.found


def test_an_output_that_nobody_writes_is_seen(card, monkeypatch):
    monkeypatch.setattr(trt_double.IExecutionContext, "_execute", lambda *given: None)
    assert verdict(traps.check_reductions, card()).verdict == "failed"


@pytest.mark.parametrize("gpus", [1, 2])
def test_an_empty_graph_is_seen(card, monkeypatch, gpus):
    given = card(rtx=False, gpus=gpus)
    assert verdict(traps.check_graph, given, "tensorrt").verdict == "passed"
    made = cuda_double.Driver.cuGraphInstantiate

    def empty(self, graph, flags):
        self.graphs[int(graph)].clear()
        return made(self, graph, flags)

    monkeypatch.setattr(cuda_double.Driver, "cuGraphInstantiate", empty)
    row = verdict(traps.check_graph, given, "tensorrt")
    assert row.verdict == "failed" and "write all of" in row.found


def test_kernels_that_other_cards_would_take_are_seen(card, monkeypatch):
    monkeypatch.setattr(traps, "kernels_name", lambda plan, gpu: f"{plan}-{gpu.capability}")
    row = verdict(traps.check_kernels, card())
    assert row.verdict == "failed" and "share a file" in row.found


def test_kernels_that_are_not_taken_again_are_seen(card, monkeypatch):
    monkeypatch.setattr(trt_double.IRuntimeCache, "deserialize", lambda self, blob: False)
    assert verdict(traps.check_kernels, card()).verdict == "failed"


def test_late_specialisation_is_seen(card, monkeypatch):
    lazy = trt_double.DynamicShapesKernelSpecializationStrategy.LAZY
    monkeypatch.setattr(
        trt_double.IRuntimeConfigRtx, "__setattr__",
        lambda self, name, value: object.__setattr__(self, name, lazy if "special" in name else value),
    )  # fmt: skip
    row = verdict(traps.check_shapes, card())
    assert row.verdict == "failed" and "lazily" in row.found


def test_a_plan_for_no_named_target_is_built_for_turing_on_turing():
    rtx = Flavour(trt_double.tensorrt(cuda_double.Driver(), rtx=True))
    assert [traps.default_targets(rtx, sm) for sm in ("sm75", "sm80", "sm120")] == [("sm75",), (), ()]


# -- what is measured, over a readable GPU


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_what_is_measured_of_a_card_adds_up(card, rtx):
    given, name = card(rtx), "rtx" if rtx else "tensorrt"
    for do in (measure.time_graphs, measure.measure_memory, partial(measure.make_plan, precision="fp16")):
        row = take(Step("", "", "", partial(do, name=name)), given)
        assert row.verdict == "passed" and row.facts, row.found
    row = take(Step("", "", "", lambda card, note: str(measure.measure_bandwidth(card, note))), given)
    assert "Readable GPU" in row.found
    assert dict(row.facts)["within the GPU, read and written, GB/s"] >= 0


def test_graphs_are_left_out_where_they_are_not_wanted(card):
    given = card(rtx=False)
    with traps.open_engine(given, given.flavour("tensorrt"), given.device(), graphs=False) as engine:
        engine.rehearse(tiny.stack((96, 96)))
    assert given.trt.driver.launched == 0


# -- the kit as a whole


def test_one_step_takes_no_other_with_it_and_the_file_says_all(tmp_path):
    steps = [
        Step("a", "hangs", "", slow, 1.0),
        Step("a", "crashes", "", crash),
        Step("b", "is wrong", "", wrong),
        Step("b", "is broken", "", broken),
        Step("b", "needs a card", "", need_a_card),
        Step("a", "is fine", "", fine),
    ]
    told: list[Row] = []
    report = tmp_path / "mit Lücke" / "gpu.html"
    report.parent.mkdir()
    rows = run_kit(Card("demo", tmp_path), Wish(report, steps=steps), told.append)
    assert [row.verdict for row in rows] == ["failed"] * 4 + ["needs a card", "passed"]
    assert list(rows) == told and "1 s" in rows[0].found and "down" in rows[1].found
    text = report.read_text("utf-8")
    assert [row["verdict"] for row in read_page(text)] == [row.verdict for row in rows]
    assert read_page(text)[4]["facts"] == [["up to here", "done"]]
    assert "<script>alert" not in text


def test_what_was_found_stands_in_the_file_when_it_is_cut_off(tmp_path):
    report = tmp_path / "gpu.html"

    def interrupt(row):
        raise KeyboardInterrupt

    rows = run_kit(Card("demo", tmp_path), Wish(report, steps=[Step("a", "x", "", fine)] * 3), interrupt)
    assert [row.verdict for row in rows] == ["passed", "not reached", "not reached"]
    assert "Ctrl-C" in rows[-1].found and "Ctrl-C" in report.read_text("utf-8")


def test_no_step_begins_after_its_time(tmp_path):
    rows = run_kit(Card("demo", tmp_path), Wish(tmp_path / "a.html", 0.0, [Step("a", "x", "", fine)]), print)
    assert rows[0].verdict == "not reached" and "--minutes" in rows[0].found


def test_a_report_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path):
    wish = Wish(tmp_path / "none" / "a.html", steps=[Step("a", "x", "", wrong)])
    with pytest.raises(StorageError, match="--report"):
        run_kit(Card("demo", tmp_path), wish, print)


def test_without_a_card_every_step_says_how_far_it_came(tmp_path):
    """The part that CI runs: plans are really built where TensorRT for RTX is installed."""
    card = Card(str(tiny.write(tmp_path)), tmp_path, (96,), 1)
    try:
        card.device().close()
    except NeedsCard:
        pass
    else:
        pytest.skip("there is a card: acq-isl bench --gpu")
    steps = [
        step for step in all_steps()
        if step.group in ("machine", "plans", "traps", "CUDA graphs", "memory", "reference network")
    ]  # fmt: skip
    rows = [take(step, card) for step in steps]
    assert {row.verdict for row in rows} <= {"passed", "not applicable", "needs a card"}, [
        (row.title, row.found) for row in rows if row.verdict == "failed"
    ]
    found = {(row.group, row.title): row for row in rows}
    assert found["machine", "versions"].verdict == "passed"
    assert found["machine", "card"].verdict == "needs a card"
    if card.flavour("rtx") is not None:
        assert found["plans", "tensorrt_rtx fp16"].verdict == "passed"
        reductions = found["traps", "reductions from input to output, tensorrt_rtx"]
        assert reductions.verdict == "needs a card" and len(reductions.facts) == 2  # both plans were built
    assert "no card" in render(rows)


def test_engines_of_the_processor_are_measured_and_their_stacks_predicted(tmp_path):
    card = Card(str(tiny.write(tmp_path)), tmp_path, (96,), 1)
    for do in (measure.compare_with_reference, measure.time_bulk):
        row = take(Step("", "", "", partial(do, engine="onnxruntime fp32")), card)
        assert row.verdict == "passed", row.found
    assert (
        take(Step("", "", "", partial(measure.time_bulk, engine="tensorrt fp16")), card).verdict != "passed"
    )
