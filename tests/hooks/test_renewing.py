"""An acquisition that failed is followed by another, which goes where it is sent and accounts for all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import AcquisitionFailed
from acq_isl.experiment.faults import DroppedFrames, HardwareTimeout, PresetFails
from acq_isl.hooks import GuardedAcquisition, RenewingAcquisition, Safety
from acq_isl.rules import Limits
from acq_isl.session.measured import MeasuredRun
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, View
from acq_isl.stack import Float32Image, StackKey, StackRequest
from acq_isl.stream.accounts import CUT_OFF, INTERRUPTED
from acq_isl.stream.client import EngineClient
from acq_isl.stream.spool import Spool

PLANES = 3


class Slope:
    """Brighter to the right, so that an image tells where it was taken."""

    channels = ("Phase", "DAPI")

    def render(self, view: View) -> Float32Image:
        return np.full(view.shape, 0.3 + view.x_um / 1000, np.float32)

    def truth(self, view: View) -> dict[str, Float32Image]:
        return {}


@pytest.fixture
def scope() -> Iterator[SimulatedScope]:
    settings = ScopeSettings(shape=(16, 16), camera=CameraSettings().noiseless(), buffer_size_mb=16)
    faults = [
        HardwareTimeout("XY", after=3, until=4, times=6, wait_s=0.01),  # in the second stack of the test
        DroppedFrames(at=(8,)),
        PresetFails("DAPI", times=6),
    ]
    with SimulatedScope(Slope(), settings=settings, faults=faults) as opened:
        yield opened


def stack(x_um: float, channel: str = "Phase") -> StackRequest:
    z_um = tuple(float(z) for z in range(PLANES))
    return StackRequest(
        StackKey(0, f"x{x_um:g}", channel),
        x_um,
        0.0,
        z_um,
        "Channel",
        channel,
        5.0,
        predict=channel == "Phase",
    )


def test_after_every_kind_of_failure_the_next_stacks_are_where_they_should_be(
    scope: SimulatedScope, tmp_path: Path
) -> None:
    with EngineClient("tcp://127.0.0.1:9", spool=Spool(tmp_path / "spool")) as client:
        begin = partial(
            GuardedAcquisition, tmp_path, "measured", sink=client, limits=Limits(), safety=Safety(20.0)
        )
        with RenewingAcquisition(begin) as microscope:
            failed: list[StackRequest] = []
            done: list[StackRequest] = []
            for request in (
                stack(0.0), stack(100.0), stack(200.0), stack(0.0, "DAPI"), stack(50.0), stack(150.0)
            ):  # fmt: skip
                try:
                    microscope.acquire(request)
                except AcquisitionFailed:
                    failed.append(request)
                    microscope.recover()
                    client.discard(request.key, again=request.key.channel == "DAPI")
                    continue
                done.append(request)
            again = replace(failed[-1], attempt=1)
            microscope.acquire(again)
            assert microscope.captured == PLANES * (len(done) + 1) + 2
        read = {request.key: microscope.images(request) for request in (*done, again)}
        client.drain(5.0)
        counts = client.accounts.counts
    assert len(failed) == 3
    means = {key.position: float(pixels.mean()) for key, pixels in read.items() if key.channel == "Phase"}
    brightness = [means[name] for name in sorted(means, key=lambda name: float(name[1:]))]
    assert brightness == sorted(brightness) and len(set(brightness)) == len(means)
    assert counts.captured == counts.sum and counts.open == counts.lost == 0
    assert {why for _, why, _ in counts.reasons} >= {CUT_OFF} and INTERRUPTED not in str(counts.reasons)
    stored = MeasuredRun(tmp_path)
    for key, pixels in read.items():
        request = next(each for each in (*done, again) if each.key == key)
        np.testing.assert_array_equal(stored.images(request), pixels)
