"""Actions in a whole session and on the simulated microscope."""

from __future__ import annotations

import json
import smtplib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

from acq_isl.errors import AcquisitionFailed, ActionRefused, ExperimentError
from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope
from acq_isl.experiment.planning import Cycle
from acq_isl.hooks import GuardedAcquisition, Hardware, OpenMicroscope, Safety, open_microscope
from acq_isl.rules.actions import Limits, Message, NotifyLimits, PlanChange
from acq_isl.session.changes import ChangedPlan
from acq_isl.session.needs import pixel_to_stage
from acq_isl.session.notify import Notifier
from acq_isl.session.preflight import prepare
from acq_isl.stack import Autofocus, StackKey, StackRequest

PATIENT = Safety(watchdog_s=20.0)

# ---- changes of the plan


def cycle(time: int) -> Cycle:
    keys = (StackKey(time, "A1", channel) for channel in ("Phase", "Phase2"))
    stacks = (StackRequest(key, 0.0, 0.0, (0.0, 1.0), "Channel", key.channel, 10.0) for key in keys)
    return Cycle(time, 60.0 * time, tuple(stacks))


def test_an_interval_changes_from_the_time_point_under_way() -> None:
    plan = ChangedPlan([cycle(time) for time in range(5)])
    plan.at = 2
    assert plan.change(PlanChange(interval_s=10)) == "done: 2 time points to come"
    assert [plan.start_s(number) for number in range(5)] == [0, 60, 120, 130, 140]
    plan.at = 3
    plan.change(PlanChange(interval_s=100))
    assert [plan.start_s(number) for number in (3, 4)] == [130, 230], "what began stays"


def test_exposure_channels_and_focus_change_for_what_is_to_come() -> None:
    plan = ChangedPlan([cycle(0)])
    first, second = cycle(0).requests
    plan.change(PlanChange(exposure_ms=3))
    plan.change(PlanChange(channels=("Phase2",)))
    plan.refocus("A1", 0.5)
    plan.refocus("A1", 0.25)
    assert plan.request(first) is None
    changed = plan.request(second)
    assert changed is not None and (changed.exposure_ms, changed.z_um) == (3, (0.75, 1.75))


# ---- telling somebody


class Receiver(BaseHTTPRequestHandler):
    """Notes what is posted; ``/elsewhere`` sends on to another place."""

    got: ClassVar[list[Any]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, json.loads(body)))
        self.send_response(302 if self.path == "/elsewhere" else 200)
        self.send_header("Location", "/other")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


@pytest.fixture
def receiver() -> Iterator[str]:
    Receiver.got.clear()
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Post:
    """An SMTP server that takes one mail."""

    sent: ClassVar[list[Any]] = []

    def __init__(self, host: str, port: int, timeout: float) -> None:
        self.where = host, port, timeout > 0

    def __enter__(self) -> Post:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def send_message(self, mail: Any) -> None:
        self.sent.append((self.where, mail["To"], mail["From"], mail["Subject"], mail.get_content().strip()))


def test_listed_receivers_are_told_and_what_fails_is_told_too(
    receiver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtplib, "SMTP", Post)
    Post.sent.clear()
    limits = NotifyLimits(
        hosts=(receiver, "127.0.0.1:9"), addresses=("a@b.c",), smtp="mail:25", sender="run@b.c"
    )
    warnings: list[str] = []
    with Notifier(limits, warnings.append) as notifier:
        assert notifier.send(Message("only in the log")) == "done"
        assert notifier.send(Message("hello", f"http://{receiver}/hook", ("a@b.c",))) == "on its way"
        notifier.send(Message("moved", f"http://{receiver}/elsewhere"))
        notifier.send(Message("nobody there", "http://127.0.0.1:9/x"))
        with pytest.raises(ActionRefused, match="nobody is told"):
            notifier.send(Message("secret", "http://example.org/x"))
    assert Receiver.got == [("/hook", {"text": "hello"}), ("/elsewhere", {"text": "moved"})]
    assert Post.sent == [(("mail", 25, True), "a@b.c", "run@b.c", "hello", "hello")]
    assert [warning.split(":")[0].split()[-1] for warning in warnings] == ["(HTTPError", "(URLError"]


# ---- on the simulated microscope


@pytest.fixture(scope="module")
def scope() -> Iterator[OpenMicroscope]:
    with open_microscope(SimulatedMicroscope(camera_px=(64, 64))) as opened:
        yield opened


def test_properties_and_places_are_set_within_the_limits(scope: OpenMicroscope) -> None:
    limits = Limits(x_um=(-50, 50), properties={"Perfusion.Label": ("medium", "drug"), "Z.Position": (0, 5)})
    core = scope.core
    with GuardedAcquisition(None, "m", limits=limits, safety=PATIENT) as microscope:
        microscope.set_property("Perfusion", "Label", "drug")
        assert core.get_state_label("Perfusion") == "drug"
        microscope.set_property("Perfusion", "Label", "medium")
        microscope.move(20.0, -10.0)
        assert core.get_xy_position() == pytest.approx([20.0, -10.0], abs=0.1)
        microscope.move(0.0, 0.0, 3.0)
        assert core.get_position() == pytest.approx(3.0)
        for refused in (("Camera", "Gain", "1"), ("Perfusion", "Label", "acid"), ("Z", "Position", "9")):
            with pytest.raises(ActionRefused):
                microscope.set_property(*refused)
        with pytest.raises(ActionRefused, match="-50 to 50"):
            microscope.move(60.0, 0.0)
        microscope.move(0.0, 0.0, 0.0)


OVERVIEW = """
name: test
overview: {z_plan: {range: 2, step: 1}, channels: [{config: Phase, exposure: 10}]}
engine: {kind: none}
microscope: {kind: simulated, camera_px: [64, 64]}
"""
WHEN = "  - when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.5}\n    do: "
BEFORE = {
    "a property that is not there": (
        "{kind: set_property, device: Perfusion, name: Labl, value: drug}",
        "limits: {properties: {Perfusion.Labl: [drug]}}",
        "has no property 'Labl'.*'Label'",
    ),
    "a value that it does not take": (
        "{kind: set_property, device: Perfusion, name: Label, value: drugs}",
        "limits: {properties: {Perfusion.Label: [drugs]}}",
        "does not take 'drugs'.*'drug'",
    ),
    "a property that is not listed": (
        "{kind: set_property, device: Perfusion, name: Label, value: drug}",
        "",
        "add Perfusion.Label to limits.properties",
    ),
    "a device that cannot focus": ("{kind: autofocus, device: XY}", "", "XY cannot focus"),
    "a preset of a z-stack": (
        "{kind: z_stack, channels: [DAPY], exposure_ms: 5, range_um: 2, step_um: 1}",
        "",
        "'DAPI'",
    ),
    "a neighbour beyond the stage": (
        "{kind: tile, rows: 1, columns: 99, overlap: 0, channels: [DAPI], exposure_ms: 5}",
        "limits: {x_um: [-900, 900]}",
        "x from -900 to 900",
    ),
    "an overview that spends the light": (
        "{kind: pause}",
        "limits: {light: {budgets: [{presets: [Phase], ms: 20}]}}",
        "the overview alone would exceed",
    ),
}


@pytest.mark.parametrize("do, rest, said", BEFORE.values(), ids=BEFORE)
def test_what_cannot_be_done_is_known_before_anything_moves(
    scope: OpenMicroscope, do: str, rest: str, said: str
) -> None:
    experiment = Experiment.from_text(f"{OVERVIEW}triggers:\n{WHEN}{do}\n{rest}\n")
    with pytest.raises((ExperimentError, ActionRefused), match=said):
        prepare(experiment, scope)


def test_a_pause_that_only_a_person_ends_is_told_before(scope: OpenMicroscope) -> None:
    experiment = Experiment.from_text(f"{OVERVIEW}triggers:\n{WHEN}{{kind: pause}}\n")
    assert any("until somebody goes on" in doubt for doubt in prepare(experiment, scope)[1])


def test_where_pixels_lie_is_measured_given_or_not_known(scope: OpenMicroscope) -> None:
    assert Hardware(scope.core).pixel_to_stage() is None, "nobody calibrated it in Micro-Manager"
    experiment = Experiment.from_text(OVERVIEW)
    found = pixel_to_stage(experiment, scope)
    assert found is not None and found.pixel_size_um == pytest.approx(0.3)
    assert pixel_to_stage(experiment, replace(scope, simulated=None)) is None
    given = experiment.model_copy(update={"pixel_to_stage": found})
    assert pixel_to_stage(given, replace(scope, simulated=None)) == found
    assert np.linalg.det(found.matrix) > 0


def test_the_focus_of_a_field_that_was_imaged_is_found(scope: OpenMicroscope) -> None:
    stack = StackRequest(StackKey(0, "A1", "Phase"), 0.0, 0.0, (0.0, 1.0), "Channel", "Phase", 1.0)
    with GuardedAcquisition(None, "m", limits=Limits(), safety=PATIENT) as microscope:
        microscope.acquire(stack)
        focus = Autofocus(site="A1", z_um=0.5)
        assert abs(microscope.focus(replace(stack, autofocus=focus))) < 5


def test_a_device_that_refuses_a_value_is_told(scope: OpenMicroscope) -> None:
    limits = Limits(properties={"Perfusion.State": (0, 999)})
    refused = pytest.raises(AcquisitionFailed, match="did not set State of Perfusion to 99")
    with GuardedAcquisition(None, "m", limits=limits, safety=PATIENT) as microscope, refused:
        microscope.set_property("Perfusion", "State", "99")
