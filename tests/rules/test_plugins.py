"""A measurement, an action and a segmenter of another package, used in an experiment by their kind."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from acq_isl.errors import ExperimentError
from acq_isl.experiment import Experiment
from acq_isl.rules import (
    Action,
    MeanIntensity,
    Measurement,
    ObjectCount,
    Segmenter,
)
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.measurements import measure
from acq_isl.rules.plugins import broken_plugins, forget_plugins
from acq_isl.stack import Prediction, StackInfo, StackKey

PIXEL_UM = 0.5

# One file each is all that a package needs, with its names under the groups of entry points.
BRIGHTEST = '''
from typing import Literal

from acq_isl.rules import Measurement, Unit, inner_planes


class Brightest(Measurement):
    """Brightest pixel of a predicted label."""

    kind: Literal["brightest"] = "brightest"
    unit = Unit("percent", "% of the bright end", scale=100, digits=0)

    @property
    def title(self):
        return f"brightest pixel of {self.label} (predicted)"

    def measure(self, prediction):
        mean, spread = inner_planes(prediction, self.label)
        brightest = mean.argmax()
        return float(mean.flat[brightest]), float(spread.flat[brightest])
'''
SHUTTER = '''
from typing import Literal

from acq_isl.rules import Action


class TwoPresets(Action):
    """Select two presets, and image the field again with the exposure of the overview."""

    kind: Literal["two_presets"] = "two_presets"
    presets: tuple[str, str]

    @property
    def title(self):
        return f"set Channel to {' and '.join(self.presets)}"

    def carry_out(self, occasion, tools):
        for preset in self.presets:
            tools.set_preset("Channel", preset)
        return f"done at {occasion.field.key.position}"
'''
EVERY_PIXEL = '''
from typing import Literal

import numpy as np

from acq_isl.rules import Segmenter


class EveryPixel(Segmenter):
    """Every bright pixel is an object of its own."""

    kind: Literal["every_pixel"] = "every_pixel"
    above: float = 0.5

    def segment(self, image, pixel_size_um):
        bright = image > self.above
        return np.where(bright, np.cumsum(bright).reshape(bright.shape), 0).astype(np.int32)
'''
EXAMPLE = {"brightest.py": BRIGHTEST, "shutter.py": SHUTTER, "every_pixel.py": EVERY_PIXEL}
ENTRY_POINTS = """
[acq_isl.measurements]
brightest = brightest:Brightest
[acq_isl.actions]
two_presets = shutter:TwoPresets
[acq_isl.segmenters]
every_pixel = every_pixel:EveryPixel
"""
YAML = """
name: test
overview: {channels: [{config: Phase, exposure: 10}]}
choose:
  k: 2
  measurement: {kind: object_count, label: nuclei, segmenter: {kind: every_pixel, above: 0.3}}
triggers:
  - when: {measurement: {kind: brightest, label: nuclei}, above: 0.8}
    do: {kind: two_presets, presets: [DAPI, Phase]}
"""

Install = Callable[[dict[str, str], str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a package on the path, with its modules and entry points, as pip would."""

    def installed(modules: dict[str, str], entry_points: str) -> None:
        info = tmp_path / "acq_isl_example-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acq-isl-example\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        for name, text in modules.items():
            (tmp_path / name).write_text(text)
            monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        forget_plugins()

    yield installed
    monkeypatch.undo()
    forget_plugins()


def prediction(mean: float = 0.0) -> Prediction:
    image = np.full((1, 16, 16), mean, np.float32)
    image[0, 8, [4, 8, 12]] = 0.9, 0.6, 0.4
    info = StackInfo(StackKey(0, "A1", "Phase"), (0.0,), (16, 16), PIXEL_UM)
    return Prediction(info, ("nuclei",), image, np.full_like(image, 0.1), "", "m", "e")


def test_an_experiment_names_kinds_of_another_package(install: Install) -> None:
    install(EXAMPLE, ENTRY_POINTS)
    experiment = Experiment.from_text(YAML)
    (trigger,) = experiment.triggers
    measured = measure(prediction(), trigger.when.measurement)
    assert (measured.name, measured.unit) == ("brightest pixel of nuclei (predicted)", "percent")
    assert measured.text == "90 ± 10.0 % of the bright end"
    assert experiment.choose is not None
    assert measure(prediction(), experiment.choose.measurement).value == 3
    assert trigger.do.title == "set Channel to DAPI and Phase"


def test_the_file_beside_a_run_names_the_packages(install: Install) -> None:
    install(EXAMPLE, ENTRY_POINTS)
    written = Experiment.from_text(YAML).to_yaml()
    again = Experiment.from_text(written)
    example = "acq-isl-example==1.0"
    assert again.plugins == {"every_pixel": example, "brightest": example, "two_presets": example}
    assert again.to_yaml() == written
    install_nothing = "there is no measurement 'brightest'.*pip install acq-isl-example==1.0"
    forget_plugins()
    Path(sys.path[0], "acq_isl_example-1.0.dist-info", "entry_points.txt").write_text("")
    with pytest.raises(ExperimentError, match=install_nothing):
        Experiment.from_text(written)


@pytest.mark.parametrize(
    "was, written, message",
    [
        (
            "kind: brightest",
            "kind: brigthest",
            "no measurement 'brigthest'; did you mean 'brightest'",
        ),
        ("kind: two_presets", "kind: preset", "there is no action 'preset'; did you mean 'set_preset'"),
        ("kind: every_pixel", "kind: cellopse", "there is no segmenter 'cellopse'; did you mean 'cellpose'"),
        ("kind: brightest, ", "", "every measurement needs its kind, one of area, area_fraction"),
        ("above: 0.3", "abov: 0.3", "'abov' in choose.measurement.object_count.segmenter.*'above'"),
        ("presets: [DAPI, Phase]", "presets: [DAPI]", "triggers.0.do.two_presets.presets"),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest(
    install: Install, was: str, written: str, message: str
) -> None:
    install(EXAMPLE, ENTRY_POINTS)
    with pytest.raises(ExperimentError, match=message):
        Experiment.from_text(YAML.replace(was, written))


BROKEN = {
    "it cannot be imported": ("import nothing_of_this_name", "ModuleNotFoundError"),
    "it is no measurement": ("class Brightest: pass", "no class derived from"),
    "its kind has another name": (BRIGHTEST.replace('"brightest"', '"darkest"'), "'darkest'"),
    "it measures nothing": (BRIGHTEST.replace("def measure", "def look_at"), "does not define measure"),
}


@pytest.mark.parametrize("module, why", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_plugin_is_told_and_does_no_harm(install: Install, module: str, why: str) -> None:
    install({"brightest.py": module}, "[acq_isl.measurements]\nbrightest = brightest:Brightest\n")
    (broken,) = broken_plugins()
    assert broken.package.startswith("acq-isl-example") and why in broken.why
    assert set(Measurement.kinds()) == {one.model_fields["kind"].default for one in Measurement.built_in()}
    with pytest.raises(ExperimentError, match="is not used"):
        Experiment.from_text(YAML.replace("every_pixel", "watershed"))


def test_a_kind_of_our_own_is_not_replaced(install: Install) -> None:
    module = BRIGHTEST.replace('"brightest"', '"mean_intensity"')
    install({"brightest.py": module}, "[acq_isl.measurements]\nmean_intensity = brightest:Brightest\n")
    assert "there is another" in broken_plugins()[0].why
    assert Measurement.kinds()["mean_intensity"] is MeanIntensity


def test_what_is_built_in_is_an_entry_point_like_any_other() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    for point in (Measurement, Action, Segmenter):
        listed = settings["project"]["entry-points"][point.plugin_group]
        assert listed == {kind: f"acq_isl.rules:{one.__name__}" for kind, one in point.kinds().items()}


class Failing(MeanIntensity):
    def measure(self, prediction: Prediction) -> tuple[float, float]:
        raise ZeroDivisionError("by zero")


def test_a_measurement_that_raises_gives_no_number() -> None:
    cache = MeasurementCache()
    measured = cache.measure(prediction(), Failing(label="nuclei"))
    assert measured is not None and np.isnan(measured.value)
    assert cache.warnings == (
        "mean intensity of nuclei (predicted) was not measured; got: ZeroDivisionError: by zero",
    )


def test_a_segmenter_that_gives_no_mask_is_refused() -> None:
    class Half(Segmenter):
        kind: str = "half"

        def segment(self, image: np.ndarray, pixel_size_um: float) -> np.ndarray:  # type: ignore[type-arg]
            return image / 2

    with pytest.raises(ExperimentError, match=r"the segmenter half failed; wanted: .*whole numbers"):
        measure(prediction(), ObjectCount(label="nuclei", segmenter=Half()))
