"""The main loop on instruments one can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acq_isl.commands import Command, CommandSource, GoTo, Pause, Resume, Stop, no_commands
from acq_isl.errors import AcquisitionFailed, SliceLost, StorageError
from acq_isl.events import Decided, Event, FieldFailed, Predicted, Step, TimePointBegan
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Optics, Place, cycles
from acq_isl.rules import Action, ActionTools, Decision, MeanIntensity, Occasion, Threshold, Trigger
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.session.session import Session, SessionTools
from acq_isl.session.summary import late_intervals
from acq_isl.stack import (
    Outcome,
    Prediction,
    Refusal,
    StackInfo,
    StackRequest,
    StageTimes,
    Uint16Image,
    Unpredicted,
)
from acq_isl.storage.decision_log import Ledger, read
from acq_isl.view.notebook import session_html

PLACE = Place(0.0, 0.0, 0.0, (10.0, 10.0))
EXPERIMENT = """
name: test
overview:
  grid_plan: {rows: 1, columns: 4, mode: row_wise}
  z_plan: {range: 2, step: 1}
  channels: [{config: Phase, exposure: 10}]
choose: {k: 2, measurement: {kind: mean_intensity, label: nuclei}}
revisit: {channels: [{config: DAPI, exposure: 50}, {config: NFH, exposure: 20}]}
"""
# Brightness of "nuclei" in the four fields of the overview.
BRIGHT = {"p00_000": 0.2, "p00_001": 0.9, "p00_002": 0.1, "p00_003": 0.6}


def info(request: StackRequest) -> StackInfo:
    return StackInfo(request.key, request.z_um, (8, 8), 0.3, request.x_um, request.y_um)


def prediction(request: StackRequest) -> Prediction:
    mean = np.full((1, 8, 8), BRIGHT[request.key.position], np.float32)
    return Prediction(info(request), ("nuclei",), mean, np.zeros_like(mean), "0" * 64, "fake", "fake")


class FakeMicroscope:
    """Notes what it is asked for; ``answer`` makes the outcome the engine gives later."""

    def __init__(self, answer: Callable[[StackRequest], Outcome], fail_at: str = "") -> None:
        self.log: list[str] = []
        self.outcomes: list[Outcome] = []
        self.polls_until_ready = 1
        self._answer = answer
        self._fail_at = fail_at

    def acquire(self, request: StackRequest) -> None:
        if request.key.position == self._fail_at:
            raise AcquisitionFailed("the stage is stuck")
        self.log.append(f"{request.preset} {request.key.position} {len(request.z_um)}")
        if request.predict:
            self.outcomes.append(self._answer(request))

    def set_preset(self, group: str, preset: str) -> None:
        self.log.append(f"set {group} {preset}")

    def images(self, request: StackRequest) -> Uint16Image:
        raise AssertionError("the session does not read images back")

    # The engine's side: outcomes come in late, one behind the acquisition.
    def poll(self) -> list[Outcome]:
        ready, self.outcomes = self.outcomes[:-1], self.outcomes[-1:]
        return ready

    def drain(self, timeout_s: float) -> list[Outcome]:
        ready, self.outcomes = self.outcomes, []
        return ready


class Kept:
    def __init__(self, full: bool = False) -> None:
        self.positions: list[str] = []
        self._full = full

    def put(self, one: Prediction) -> None:
        if self._full:
            raise StorageError("the disk is full")
        self.positions.append(one.info.key.position)


class Bench:
    """A session with everything around it."""

    def __init__(self, folder: Path, text: str = EXPERIMENT, scope: FakeMicroscope | None = None) -> None:
        self.experiment = Experiment.from_text(text)
        self.scope = scope or FakeMicroscope(prediction)
        self.store = Kept()
        self.news: list[Event] = []
        self.commands: CommandSource = no_commands
        self.labels = Labels()
        self.slept: list[float] = []
        self.now = 0.0
        self.path = folder / "decisions.jsonl"

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def call(self, name: str, decision: Decision, one: Prediction) -> str:
        if name.endswith("broken"):
            raise AcquisitionFailed("the function raised")
        return f"called {name} for {one.info.key.position}"

    def run(self) -> Session:
        plan = cycles(self.experiment.overview, PLACE, Optics())
        with Ledger(self.path, clock=lambda: 0.0) as ledger:
            tools = SessionTools(
                self.scope,
                self.scope,
                self.store,
                ledger,
                self.call,
                self.news.append,
                self.commands,
                now=lambda: self.now,
                sleep=self._sleep,
                labels=self.labels,
            )
            self.session = Session(self.experiment, plan, tools)
            self.session.run()
        return self.session

    def lines(self, kind: str) -> list[dict[str, object]]:
        return [line for line in read(self.path) if line["kind"] == kind]


def test_the_best_fields_are_revisited_best_first(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    session = bench.run()
    assert bench.scope.log == [
        *(f"Phase p00_00{index} 3" for index in range(4)),
        "DAPI p00_001 1",
        "NFH p00_001 1",
        "DAPI p00_003 1",
        "NFH p00_003 1",
    ]
    ranks = {
        field.request.key.position: field.choice.rank for field in session.fields.values() if field.choice
    }
    assert ranks == {"p00_001": 1, "p00_003": 2, "p00_000": 3, "p00_002": 4}
    assert bench.store.positions == list(BRIGHT)
    assert [line["chosen"] for line in bench.lines("choice")] == [True, True, False, False]
    doses = {(line["position"], line["channel"]): line["exposure_ms"] for line in bench.lines("dose")}
    assert doses["p00_001", "Phase"] == 30 and doses["p00_001", "DAPI"] == 50


TRIGGER = """
triggers:
  - name: bright
    when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.5}
    at_most: 1
"""
ACTIONS = {
    "set a preset": ("do: {kind: set_preset, group: Light, preset: Low}", "set Light Low", "done"),
    "image now": ("do: {kind: image, channels: [DAPI], exposure_ms: 5}", "DAPI p00_001 1", "done"),
    "call a function": (
        "do: {kind: call, function: 'lab.mine:act'}",
        None,
        "called lab.mine:act for p00_001",
    ),
    "a function that fails": (
        "do: {kind: call, function: 'lab.mine:broken'}",
        None,
        "failed: the function raised",
    ),
    "against the limits": (
        "do: {kind: image, channels: [DAPI], exposure_ms: 5000}\nlimits: {exposure_ms: 100}",
        None,
        "refused: ",
    ),
}


@pytest.mark.parametrize("action, logged, done", ACTIONS.values(), ids=ACTIONS.keys())
def test_a_trigger_acts_between_two_fields(
    tmp_path: Path, action: str, logged: str | None, done: str
) -> None:
    head, _, tail = action.partition("\n")
    bench = Bench(tmp_path, EXPERIMENT + TRIGGER + f"    {head}\n{tail}\n")
    session = bench.run()
    log = bench.scope.log
    if logged is not None:
        # The outcome of field 1 arrives while field 2 is imaged; field 3 has not begun.
        assert log.index("Phase p00_002 3") < log.index(logged) < log.index("Phase p00_003 3")
    acted = [line for line in bench.lines("decision") if line["done"] != "nothing"]
    assert len(acted) == 1 and str(acted[0]["done"]).startswith(done)
    idle = [line for line in bench.lines("decision") if line["done"] == "nothing"]
    assert len(idle) == 3  # two below the threshold, one above but only one action is allowed
    assert len(session.warnings) == (1 if done.startswith(("refused", "failed")) else 0)


class Plugin(Action):
    """What an action of somebody else's may do, right or wrong."""

    kind: str = "plugin"
    presets: tuple[str, ...] = ()
    exposure_ms: float = 1.0

    @property
    def title(self) -> str:
        return "do it"

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        for preset in self.presets:
            tools.set_preset("Channel", preset)
        field = occasion.field
        key, light = replace(field.key, channel="DAPI"), self.exposure_ms
        tools.acquire(replace(field, key=key, preset="DAPI", exposure_ms=light, predict=False))
        if not self.presets:
            raise ZeroDivisionError("a slip")
        return f"{occasion.decision.rule}, {occasion.prediction.labels[0]}, {tools.call('lab.mine:act')}"


@pytest.mark.parametrize(
    "action, logged, done",
    [
        (
            Plugin(presets=("DAPI", "Phase")),
            ["set Channel DAPI", "set Channel Phase", "DAPI p00_001 3"],
            "bright, nuclei, called lab.mine:act for p00_001",
        ),
        (Plugin(presets=("UV",)), [], "refused: not done: set Channel to UV"),
        (
            Plugin(presets=("DAPI",), exposure_ms=500),
            ["set Channel DAPI"],
            "refused: not done: acquire",
        ),
        (Plugin(), ["DAPI p00_001 3"], "failed: a slip"),
    ],
)
def test_an_action_of_another_package_is_held_to_the_limits(
    tmp_path: Path, action: Action, logged: list[str], done: str
) -> None:
    limits = "limits: {exposure_ms: 100, presets: {Channel: [Phase, DAPI, NFH]}}\n"
    bench = Bench(tmp_path, EXPERIMENT.replace("revisit", "#") + limits)
    when = Threshold(measurement=MeanIntensity(label="nuclei"), above=0.5)
    trigger = Trigger(name="bright", when=when, do=action)
    bench.experiment = bench.experiment.model_copy(update={"triggers": (trigger,)})
    session = bench.run()
    assert [line for line in bench.scope.log if not line.startswith("Phase")] == logged
    acted = [line for line in bench.lines("decision") if line["done"] != "nothing"]
    assert len(acted) == 1 and str(acted[0]["done"]).startswith(done)
    assert len(session.warnings) == (0 if done.startswith("bright") else 1)


def test_what_a_trigger_imaged_is_not_imaged_again(tmp_path: Path) -> None:
    text = EXPERIMENT + TRIGGER + "    do: {kind: image, channels: [DAPI], exposure_ms: 5}\n"
    bench = Bench(tmp_path, text)
    bench.run()
    assert bench.scope.log.count("DAPI p00_001 1") == 1
    assert bench.scope.log.count("NFH p00_001 1") == 1


def test_refused_and_unpredicted_fields_are_kept_and_never_chosen(tmp_path: Path) -> None:
    def answer(request: StackRequest) -> Outcome:
        match request.key.position:
            case "p00_001":
                return Refusal(info(request), "the planes are reversed", "turn them")
            case "p00_003":
                return Unpredicted(info(request), "no engine", "spool")
            case _:
                return prediction(request)

    bench = Bench(tmp_path, EXPERIMENT.replace("{k: 2,", "{k: 2, require: 0.5,"), FakeMicroscope(answer))
    session = bench.run()
    assert session.warnings == [
        "2 of 4 fields were not ranked; the choice was made among the others (choose.require). "
        "To finish: 'acq-isl recover RUN --choose' predicts them and chooses again"
    ]
    chosen = [f.request.key.position for f in session.fields.values() if f.choice and f.choice.chosen]
    assert chosen == ["p00_000", "p00_002"]
    assert {type(f.outcome) for f in session.fields.values()} == {Prediction, Refusal, Unpredicted}


def test_nothing_is_chosen_among_incomplete_fields_unless_the_experiment_allows_it(tmp_path: Path) -> None:
    def answer(request: StackRequest) -> Outcome:
        late = Unpredicted(info(request), "no engine", "spool")
        return late if request.key.position == "p00_002" else prediction(request)

    bench = Bench(tmp_path, scope=FakeMicroscope(answer))
    session = bench.run()
    assert not [line for line in bench.scope.log if not line.startswith("Phase")], "no fluorescence light"
    assert session.warnings == [
        "1 of 4 fields was not ranked; no choice was made. To allow one among the others, lower "
        "choose.require. To finish: 'acq-isl recover RUN --choose' predicts them and chooses again"
    ]
    reasons = {
        field.request.key.position: field.choice.reason for field in session.fields.values() if field.choice
    }
    assert reasons["p00_001"].startswith("Not chosen: 1 of 4 fields was not ranked, so no choice was made")
    assert [line["chosen"] for line in bench.lines("choice")] == [False] * 4


class Slow(FakeMicroscope):
    """Every stack takes two seconds, and its prediction is there half a second after its last slice."""

    bench: Bench

    def acquire(self, request: StackRequest) -> None:
        self.bench.now += 2.0
        super().acquire(request)


def test_the_response_includes_the_wait_for_the_stack_being_acquired(tmp_path: Path) -> None:
    def answer(request: StackRequest) -> Outcome:
        return replace(prediction(request), times=StageTimes(infer_ms=500.0))

    scope = Slow(answer)
    bench = scope.bench = Bench(
        tmp_path, EXPERIMENT + TRIGGER + "    do: {kind: set_preset, group: L, preset: P}\n", scope
    )
    session = bench.run()
    fields = list(session.fields.values())
    # The last one is waited for; the others until the stack after them is done.
    assert [field.response_ms for field in fields] == [2000.0, 2000.0, 2000.0, 0.0]
    turns = [field.predictions[0].times.turn_ms for field in fields]
    assert turns == [1500.0, 1500.0, 1500.0, 0.0]
    ledger = [line["after_s"] for line in bench.lines("decision")]
    assert ledger == [2.0, 2.0, 2.0, 0.0], "the ledger and the report say the same"
    judged = {key.position: did for (_, key), did in session.judged.items()}
    # Bright are 1 and 3; it may act once only, so what it does later is not its own doing.
    assert judged == {"p00_000": "nothing", "p00_001": "done", "p00_002": "spent", "p00_003": "spent"}


def test_the_start_of_every_time_point_is_kept(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("  z_plan", "  time_plan: {interval: 5, loops: 3}\n  z_plan")
    scope = Slow(prediction)
    bench = scope.bench = Bench(tmp_path, text, scope)
    session = bench.run()
    # Four overview and four fluorescence stacks of two seconds each do not fit into five.
    assert [(cycle.time, began_s) for cycle, began_s in session.began] == [(0, 0.0), (1, 16.0), (2, 32.0)]
    assert late_intervals(session.began) == [
        "2 of 2 intervals between time points could not be kept: planned 5 s, really 16 s"
    ]


def test_time_points_wait_for_their_start(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("  z_plan", "  time_plan: {interval: 30, loops: 2}\n  z_plan")
    bench = Bench(tmp_path, text)
    bench.run()
    assert sum(bench.slept) == pytest.approx(30.0)
    assert len(bench.scope.log) == 16


def test_a_failing_microscope_stops_the_run_and_keeps_what_there_is(tmp_path: Path) -> None:
    bench = Bench(tmp_path, scope=FakeMicroscope(prediction, fail_at="p00_002"))
    with pytest.raises(AcquisitionFailed, match="stuck"):
        bench.run()
    session = bench.session
    assert [request.key.position for request in session.acquired] == ["p00_000", "p00_001"]
    assert [request.key.position for request in session.asked] == ["p00_000", "p00_001", "p00_002"]
    assert bench.lines("closed")[0]["ended"] == "by AcquisitionFailed"
    assert "stuck" in bench.lines("closed")[0]["why"]
    (failed,) = (one for one in bench.news if isinstance(one, FieldFailed))
    assert failed.key.position == "p00_002" and "stuck" in failed.why


def test_lost_slices_fail_the_run_after_it_is_finished(tmp_path: Path) -> None:
    class Leaky(FakeMicroscope):
        def drain(self, timeout_s: float) -> list[Outcome]:
            raise SliceLost("3 slices are gone")

    bench = Bench(tmp_path, EXPERIMENT.replace("{k: 2,", "{k: 2, require: 0,"), Leaky(prediction))
    with pytest.raises(SliceLost):
        bench.run()
    assert "DAPI p00_001 1" in bench.scope.log


def test_a_full_disk_for_predictions_does_not_stop_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.store = Kept(full=True)
    session = bench.run()
    assert len(bench.scope.log) == 8
    assert "the disk is full" in session.warnings[0]


def test_progress_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run()
    steps = [one for one in bench.news if isinstance(one, Step)]
    overview = [step for step in steps if step.phase == "overview"]
    assert [(step.done, step.total) for step in overview] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {step.phase for step in steps} == {"overview", "predict", "revisit"}
    revisit = [step for step in steps if step.phase == "revisit"]
    assert [(step.done, step.total) for step in revisit] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_every_time_point_is_told_with_its_number(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("  z_plan", "  time_plan: {interval: 30, loops: 3}\n  z_plan")
    bench = Bench(tmp_path, text)
    bench.run()
    began = [one for one in bench.news if isinstance(one, TimePointBegan)]
    assert [(one.number, one.total, one.planned_s, one.began_s) for one in began] == [
        (1, 3, 0.0, 0.0),
        (2, 3, 30.0, 30.0),
        (3, 3, 60.0, 60.0),
    ]


# --- commands of an operator -----------------------------------------------------------------------


def command(bench: Bench, *batches: tuple[Command, ...]) -> None:
    """Give one batch of commands at each look: before the first stack, before the second, and so on."""
    waiting = list(batches)
    bench.commands = lambda: waiting.pop(0) if waiting else ()


def test_stop_ends_the_run_in_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    command(bench, (), (), (Stop(),))
    session = bench.run()
    assert bench.scope.log == ["Phase p00_000 3", "Phase p00_001 3"], "nothing more is acquired"
    assert sorted(bench.store.positions) == ["p00_000", "p00_001"], "what was captured is predicted"
    assert session.warnings == ["stopped by the operator after 2 stacks"]
    assert [line["what"] for line in bench.lines("order")] == ["stop"]


def test_a_pause_holds_the_microscope_still_but_predictions_come_in(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    seen_while_paused: list[str] = []

    def look() -> tuple[Command, ...]:
        count = len(bench.scope.log)
        if count == 2 and not seen_while_paused:
            seen_while_paused.append("pause")
            return (Pause(),)
        if seen_while_paused == ["pause"] and bench.slept:
            seen_while_paused.extend(bench.store.positions)
            assert count == 2
            return (Resume(),)
        return ()

    bench.commands = look
    bench.run()
    assert seen_while_paused == ["pause", "p00_000"]
    assert len(bench.scope.log) == 4 + 4


TRIGGERED = EXPERIMENT + (
    "triggers: [{name: bright, when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.1},"
    " do: {kind: image, channels: [DAPI], exposure_ms: 5}}]\n"
)


def test_a_trigger_waits_for_the_end_of_a_pause(tmp_path: Path) -> None:
    bench = Bench(tmp_path, TRIGGERED)
    log: list[list[str]] = []

    def look() -> tuple[Command, ...]:
        if len(bench.scope.log) == 2 and not log:
            log.append(list(bench.scope.log))
            return (Pause(),)
        if len(log) == 1 and bench.slept:
            log.append(list(bench.scope.log))
            return (Resume(),)
        return ()

    bench.commands = look
    bench.run()
    assert log[0] == log[1] and "DAPI p00_000 1" not in log[1]
    assert "DAPI p00_000 1" in bench.scope.log


@pytest.mark.parametrize(
    "order, log, done",
    [
        (GoTo(x_um=5, y_um=6), ["Phase visit_001 1"], "done"),
        (GoTo(x_um=5, y_um=6, z_um=900), [], "refused: "),
        (GoTo(x_um=5000, y_um=6), [], "refused: "),
    ],
)
def test_going_somewhere_is_checked_dosed_and_written_down(
    tmp_path: Path, order: GoTo, log: list[str], done: str
) -> None:
    bench = Bench(tmp_path, EXPERIMENT + "limits: {x_um: [-100, 100], y_um: [-100, 100], z_um: [-9, 9]}\n")
    command(bench, (order,), (Resume(),))
    bench.run()
    assert [entry for entry in bench.scope.log if "visit" in entry] == log
    (line,) = (one for one in bench.lines("order") if "go to" in str(one["what"]))
    assert str(line["done"]).startswith(done)
    assert sum(one["position"] == "visit_001" for one in bench.lines("dose")) == len(log)
    told = [one for one in bench.news if isinstance(one, Decided) and one.rule == "operator"]
    assert told[0].done == line["done"]


def test_whatever_happens_is_told(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run()
    kinds = Counter(type(one).__name__ for one in bench.news)
    assert (kinds["FieldImaged"], kinds["Predicted"], kinds["FieldsRanked"]) == (8, 4, 1)
    (first, *_) = (one for one in bench.news if isinstance(one, Predicted))
    assert [one.value for one in first.measured] == pytest.approx([0.2])


def test_a_notebook_sees_how_far_it_is(tmp_path: Path) -> None:
    shown = session_html(Bench(tmp_path).run())
    assert shown.count("★") == 2 and "p00_003" in shown and "rank 1 of 4" in shown


# --- several models --------------------------------------------------------------------------------


class Quick(FakeMicroscope):
    """A quick model, and a slow one that answers after the last field, of the first not at all."""

    def __init__(self) -> None:
        super().__init__(prediction)
        self.answered: list[Outcome] = []

    def poll(self) -> list[Outcome]:
        ready, self.outcomes = [replace(one, model="quick") for one in self.outcomes], []
        self.answered += ready
        return ready

    def drain(self, timeout_s: float) -> list[Outcome]:
        rest = self.poll()
        late = [replace(one, model="slow") for one in self.answered]
        return [*rest, Unpredicted(late[0].info, "too late", "spool", "slow"), *late[1:]]


def test_a_slow_model_holds_up_neither_triggers_nor_the_labels_of_others(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("nuclei", "slow/nuclei") + TRIGGER.replace("nuclei", "quick/nuclei")
    bench = Bench(tmp_path, text + "    do: {kind: image, channels: [DAPI], exposure_ms: 5}\n")
    bench.scope, bench.labels = Quick(), Labels([RunModel("quick"), RunModel("slow")])
    session = bench.run()
    log = bench.scope.log
    assert log.index("DAPI p00_001 1") < log.index("Phase p00_003 3"), "before the slow model said anything"
    first, *others = session.fields.values()
    assert isinstance(first.outcome, Prediction) and first.outcome.labels == ("quick/nuclei",)
    assert first.outcome.warnings == ("slow did not predict this stack: too late",)
    assert [field.status for field in session.fields.values()] == ["spooled", *["predicted"] * 3]
    labels = {one.outcome.labels for one in others if isinstance(one.outcome, Prediction)}
    assert labels == {("quick/nuclei", "slow/nuclei")}
    reasons = {f.request.key.position: f.choice.reason for f in session.fields.values() if f.choice}
    assert reasons["p00_000"] == "Not ranked: this stack was captured but not predicted, too late."
    assert len(bench.store.positions) == 7
