"""What one door says of planes, all say: dry run, hook, engine, files, training, adapting, evaluating."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
import yaml
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from acq_isl.compatibility import Refuse, Resample, Sort, Use, check
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import AcqIslError
from acq_isl.evaluation.evaluate import evaluate
from acq_isl.evaluation.results import Settings
from acq_isl.experiment.planning import Cycle
from acq_isl.hooks import OpenMicroscope
from acq_isl.hooks.capture import CaptureHook
from acq_isl.readers.read import read_stack
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.session.preflight import camera_of
from acq_isl.session.sense import check_fit
from acq_isl.stack import Slice, StackInfo, StackKey, StackRequest, ZStack
from acq_isl.training.adapt_config import read_pairs
from acq_isl.training.config import TrainConfig
from acq_isl.training.data.geometry import bring_to_model
from acq_isl.training.data.pairs import Item
from acq_isl.training.package import geometry_of
from doubles import tiny_model as tiny

Heights = tuple[float, ...]
Door = Callable[[Heights], object]

MODEL = tiny.MANIFEST
PIXELS = np.random.default_rng(0).integers(500, 4000, (12, 48, 48), dtype=np.uint16)
STAIN = np.random.default_rng(1).integers(500, 900, (48, 48), dtype=np.uint16)
STAIN[8:22, 8:22] += 8000  # a cell: a stain without any is refused by name


def stack(z_um: Heights) -> ZStack:
    """Planes in this order, each with the image of its height."""
    info = StackInfo(
        StackKey(0, "A1", "Phase"), z_um, (48, 48), 0.3, modality=MODEL.modality, polarity=MODEL.polarity
    )
    return ZStack(info, PIXELS[np.argsort(np.argsort(z_um))], (0.0,) * len(z_um))


@st.composite
def heights(draw: st.DrawFn) -> Heights:
    """Planes about equally far apart: some missing, some twice, in any order."""
    count = draw(st.sampled_from([5, 9, 5, 6, 4, 5, 3, 2, 1, 12]))
    step = draw(st.sampled_from([1.5, 0.75, 1.8, 2.9, 1.0, 3.2, 0.4, 10.0]))
    jitter = draw(st.lists(st.floats(-0.08, 0.08), min_size=count, max_size=count))
    z = [round(step * (at + shift), 3) for at, shift in enumerate(jitter)]
    if count > 2 and draw(st.integers(0, 4)) == 0:
        del z[draw(st.integers(1, count - 2))]
    if len(z) > 2 and draw(st.integers(0, 4)) == 0:
        z[0] = z[1]
    return tuple(draw(st.permutations(z)))


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)


@pytest.fixture(scope="module")
def doors(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Door]]:
    """By name, what raises if planes at these heights are refused."""
    folder = tmp_path_factory.mktemp("doors")
    model = tiny.write(folder)
    core = SimpleNamespace(
        get_image_width=lambda: 48, get_image_height=lambda: 48, get_pixel_size_um=lambda: 0.3
    )

    def write(z_um: Heights) -> Path:
        planes = {"PositionZ": list(z_um), "PositionZUnit": ["µm"] * len(z_um)}
        about = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "Plane": planes}
        tifffile.imwrite(folder / "phase.ome.tif", stack(z_um).pixels, ome=True, metadata=about)
        tifffile.imwrite(folder / "dapi.tif", STAIN)
        return folder / "phase.ome.tif"

    source = {
        "kind": "tiff",
        "folder": str(folder),
        "stack": "phase.ome.tif",
        "labels": {"nuclei": "dapi.tif"},
    }

    def item(z_um: Heights, config: TrainConfig) -> Item:
        write(z_um)
        (found,) = config.data[0].items(config.nominal)
        return found

    def dry_run(z_um: Heights) -> None:
        request = StackRequest(
            StackKey(0, "A1", "Phase"),
            0.0,
            0.0,
            z_um,
            "Channel",
            "Phase",
            10.0,
            MODEL.modality,
            MODEL.polarity,
        )
        labels = Labels([RunModel("", MODEL)])
        check_fit(labels, [Cycle(0, 0.0, (request,))], camera_of(OpenMicroscope(core, "fake")))

    def captured(z_um: Heights) -> None:
        sink = Sink()
        hook = CaptureHook(
            sink, z_um=z_um, pixel_size_um=0.3, modality=MODEL.modality, polarity=MODEL.polarity
        )
        for at, plane in enumerate(stack(z_um).pixels):
            hook(plane, {"Axes": {"z": at}, "ZPosition_um_Intended": z_um[at], "Exposure": 10.0})
        planes = np.stack([slice_.pixels for slice_ in sink.slices])
        engine.predict(ZStack(sink.slices[0].info, planes, (0.0,) * len(planes)))

    def train(z_um: Heights) -> None:
        config = TrainConfig.model_validate(
            {"name": "a", "version": "1", "description": "a", "planes": 5, "data": [source],
             "labels": [{"name": "nuclei", "marker": "DAPI"}], "network": {"levels": 2}}
        )  # fmt: skip
        bring_to_model(item(z_um, config).load(), geometry_of(config), "a")

    def adapt(z_um: Heights) -> None:
        (folder / "pairs.yaml").write_text(yaml.safe_dump({"data": [source]}), encoding="utf-8")
        config, _ = read_pairs(folder / "pairs.yaml", MODEL, None)
        bring_to_model(item(z_um, config).load(), geometry_of(config), "a")

    def evaluated(z_um: Heights) -> None:
        config, _ = read_pairs(folder / "pairs.yaml", MODEL, None)
        evaluate(model, [item(z_um, config)], Settings(threads=1))

    # Named, not lambdas: Hypothesis would print those by parsing this file, and the parser of
    # Python before 3.11.8 raises SystemError when another thread reads a .npy file at that moment.
    def predict(z_um: Heights) -> None:
        engine.predict(stack(z_um))

    def files(z_um: Heights) -> None:
        read_stack(write(z_um), MODEL)

    with ExitStack() as opened:
        engine = opened.enter_context(OnnxEngine(model, threads=1))
        yield {
            "dry run": dry_run,
            "hook and engine": captured,
            "engine": predict,
            "files": files,
            "train": train,
            "adapt": adapt,
            "evaluate": evaluated,
        }


@given(heights())
@example((0.0, 1.5, 3.0, 4.5, 6.0))
@example((6.0, 4.5, 3.0, 1.5, 0.0))
@example((3.0, 4.5, 1.5, 6.0, 0.0))
@example((0.0, 10.0, 20.0, 30.0, 40.0))
@example((0.0, 1.5, 4.5, 6.0))
@example((0.0, 1.5, 1.5, 3.0, 4.5))
@settings(max_examples=60, deadline=None)
def test_the_verdict_on_planes_is_the_same_by_all_doors(doors: dict[str, Door], z_um: Heights) -> None:
    verdict = check(MODEL, stack(z_um).info)
    event(type(verdict).__name__)
    for name, enter in doors.items():
        try:
            enter(z_um)
        except AcqIslError as error:
            assert isinstance(verdict, Refuse), f"{name} refuses what fits: {error}"
            assert verdict.reason in str(error), name
        else:
            assert not isinstance(verdict, Refuse), f"{name} takes what does not fit"


@given(st.permutations([-3.0, -1.5, 0.0, 1.5, 3.0]))
@settings(max_examples=20, deadline=None)
def test_a_stack_in_any_order_is_predicted_as_from_low_to_high(
    engine: OnnxEngine, order: list[float]
) -> None:
    wanted = engine.predict(stack((-3.0, -1.5, 0.0, 1.5, 3.0)))
    mixed = engine.predict(stack(tuple(order)))
    np.testing.assert_array_equal(mixed.mean, wanted.mean)
    assert mixed.warnings == (() if order == sorted(order) else ("the planes were sorted by z",))
    assert stack(tuple(order)).info.z_um[stack(tuple(order)).info.middle] == 0.0
    finer = dataclasses.replace(stack(tuple(order)).info, pixel_size_um=0.25)
    assert isinstance(check(MODEL, finer), Resample)
    assert isinstance(check(MODEL, stack(tuple(order)).info), Use | Sort)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnnxEngine]:
    with OnnxEngine(tiny.write(tmp_path_factory.mktemp("model")), threads=1) as opened:
        yield opened
