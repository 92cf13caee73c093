"""A stack is interrupted between two slices for an action; what was captured of it has a named fate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import AcquisitionFailed
from acq_isl.hooks import GuardedAcquisition, Safety, guard
from acq_isl.hooks.events import planned_position, stack_events
from acq_isl.rules import Limits
from acq_isl.session.measured import MeasuredRun
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, View
from acq_isl.stack import Float32Image, StackKey, StackRequest
from acq_isl.stream.client import EngineClient
from acq_isl.stream.spool import Spool

PLANES = 6


class Flat:
    """Light, and nothing else."""

    channels = ("Phase", "DAPI")

    def render(self, view: View) -> Float32Image:
        return np.full(view.shape, 0.5, np.float32)

    def truth(self, view: View) -> dict[str, Float32Image]:
        return {}


@pytest.fixture(scope="module")
def scope() -> Iterator[SimulatedScope]:
    settings = ScopeSettings(shape=(16, 16), camera=CameraSettings().noiseless(), buffer_size_mb=16)
    with SimulatedScope(Flat(), settings=settings) as opened:
        yield opened


def stack(position: str = "A1", channel: str = "Phase", predict: bool = True) -> StackRequest:
    z_um = tuple(float(z) for z in range(PLANES))
    place = 10.0, 5.0
    return StackRequest(
        StackKey(0, position, channel), *place, z_um, "Channel", channel, 5.0, predict=predict
    )


class After:
    """Wants the stack interrupted once so many images are there."""

    def __init__(self, microscope: GuardedAcquisition, images: int) -> None:
        self._microscope, self._images = microscope, microscope.captured + images

    def __call__(self) -> bool:
        return self._microscope.captured >= self._images


@pytest.fixture(params=["events are dropped", "events are handed over one by one"])
def opened(
    request: pytest.FixtureRequest, scope: SimulatedScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[GuardedAcquisition, EngineClient, Path]]:
    if "one by one" in request.param:  # as on the Java backend, which images an event that is dropped
        monkeypatch.setattr(guard, "uses_python_backend", lambda: False)
    with (
        EngineClient("tcp://127.0.0.1:9", spool=Spool(tmp_path / "spool")) as client,
        GuardedAcquisition(
            tmp_path, "measured", sink=client, limits=Limits(), safety=Safety(watchdog_s=20.0)
        ) as microscope,
    ):
        yield microscope, client, tmp_path


def test_an_interrupted_stack_is_finished_after_the_action(
    opened: tuple[GuardedAcquisition, EngineClient, Path], scope: SimulatedScope
) -> None:
    microscope, client, _ = opened
    began = len(scope.timeline.taken)
    taken = microscope.acquire_until(stack(), After(microscope, 2))
    assert 2 <= taken < PLANES and taken == microscope.captured
    microscope.acquire(replace(stack("B1", "DAPI", predict=False), x_um=-50.0))
    assert microscope.acquire_until(stack(), None, taken) == PLANES
    lights = [each.light for each in scope.timeline.taken[began:]]
    assert [(light.channel, light.x_um, light.z_um) for light in lights] == [
        *[("Phase", pytest.approx(10.0, abs=0.1), pytest.approx(float(z))) for z in range(taken)],
        *[("DAPI", pytest.approx(-50.0, abs=0.1), pytest.approx(float(z))) for z in range(PLANES)],
        *[("Phase", pytest.approx(10.0, abs=0.1), pytest.approx(float(z))) for z in range(taken, PLANES)],
    ]
    assert microscope.images(stack()).shape == (PLANES, 16, 16)
    (outcome,) = client.drain(0.0)
    assert outcome.info.z_um == stack().z_um, "the engine gets one whole stack"
    counts = client.counts.slices
    assert (counts.captured, counts.spooled, counts.not_for_prediction) == (2 * PLANES, PLANES, PLANES)
    assert counts.open == 0


def test_an_interrupted_stack_is_imaged_again_under_axes_of_its_own(
    opened: tuple[GuardedAcquisition, EngineClient, Path],
) -> None:
    microscope, client, folder = opened
    taken = microscope.acquire_until(stack(), After(microscope, 3))
    assert 3 <= taken < PLANES
    client.discard(stack().key)
    again = replace(stack(), attempt=1)
    assert microscope.acquire_until(again, None) == PLANES
    assert microscope.images(again).shape == (PLANES, 16, 16)
    (outcome,) = client.drain(0.0)
    assert outcome.info.key == stack().key
    counts = client.counts.slices
    assert (counts.captured, counts.spooled, counts.open) == (taken + PLANES, PLANES, 0)
    assert counts.reasons[0] == ("not wanted", "its stack was interrupted and imaged again", taken)
    microscope.__exit__(None, None, None)
    measured = MeasuredRun(folder)
    assert (measured.captured, measured.replaced) == (taken + PLANES, taken), "nothing is overwritten"
    assert measured.images(stack()).shape == (PLANES, 16, 16)


def test_who_is_asked_while_a_stack_is_taken_cannot_hang_or_end_the_program(
    opened: tuple[GuardedAcquisition, EngineClient, Path],
) -> None:
    microscope, _, _ = opened

    def raising() -> bool:
        raise ZeroDivisionError("a slip")

    with pytest.raises(ZeroDivisionError):
        microscope.acquire_until(stack(), raising)
    with pytest.raises(AcquisitionFailed, match="has stopped"):
        microscope.acquire(stack("B1"))


def test_axes_of_another_attempt_tell_the_position_that_was_planned() -> None:
    names = [stack_events(replace(stack(), attempt=attempt))[0]["axes"]["position"] for attempt in range(3)]
    assert names == ["A1", "A1~2", "A1~3"]
    assert {planned_position(name) for name in names} == {"A1"}
