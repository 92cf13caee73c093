"""A network is taught by others: by their weighted mean, label by label, beside the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage

from acq_isl.engines.model_file import read_model
from acq_isl.errors import ModelError
from acq_isl.manifest import Label, Manifest
from acq_isl.training import train
from acq_isl.training.config import TrainConfig, validate_config
from acq_isl.training.data.dataset import Field
from acq_isl.training.loop import Training
from acq_isl.training.network import LiveNetwork, NetworkConfig
from acq_isl.training.package import write_weights
from acq_isl.training.teachers import Teacher, Teaching, read_lesson

SIZE = NetworkConfig(planes=3, labels=2, base=4, levels=2, high_pass_px=8.0)
CPU = torch.device("cpu")


def write_teacher(path, brightness, labels=("nuclei", "axons"), size=SIZE):
    """A network that says the same everywhere: a brightness for each label."""
    network = LiveNetwork(size).eval()
    fold = size.fold**2
    with torch.no_grad():
        network.head.bias[: fold * len(labels)] = torch.tensor(brightness).repeat_interleave(fold)
    manifest = Manifest(
        name="teacher", version="1", licence="-", description="-", trained_on="-",
        modality="phase contrast", polarity="dark", pixel_size_um=0.3, z_offsets_um=(-1.5, 0, 1.5),
        high_pass_um=2.4, labels=[Label(name=name, marker=name) for name in labels],
        min_tile_px=32, halo_px=16, size_step_px=4,
    )  # fmt: skip
    write_weights(network, manifest, path)
    return path


@pytest.fixture
def two(tmp_path):
    first = write_teacher(tmp_path / "a.safetensors", (0.2, 0.6))
    second = write_teacher(tmp_path / "b.safetensors", (0.8, -0.5), ("nuclei", "dead"))
    return Teaching(
        teachers=(Teacher(model=first, weight=3), Teacher(model=second)), share=0.5, share_live=0.0
    )


def test_what_is_wanted_is_the_weighted_mean_of_those_who_know_a_label(two):
    lesson = read_lesson(two, ("nuclei", "axons", "dead", "dendrites"), SIZE, CPU)
    x, truth, live = torch.zeros(2, 3, 16, 16), torch.ones(2, 4, 16, 16), torch.tensor([False, True])
    wanted = lesson.targets(x, truth, live)
    # .35 of both, .6 of one, less than nothing is nothing, nobody knows the last: half is the truth
    expected = torch.tensor([0.5 * 0.35 + 0.5, 0.5 * 0.6 + 0.5, 0.5, 1.0])[None, :, None, None]
    torch.testing.assert_close(wanted[:1], expected.expand_as(wanted[:1]))
    torch.testing.assert_close(wanted[1], truth[1])  # of live fields it learns from the truth


def test_no_teacher_no_lesson():
    assert read_lesson(Teaching(), ("nuclei",), SIZE, CPU) is None


def config(teaching, **more):
    return TrainConfig.model_validate(
        {
            "name": "pupil", "version": "0", "description": "-", "high_pass_um": 2.4, "planes": 3,
            "labels": [{"name": "nuclei", "marker": "DAPI"}, {"name": "axons", "marker": "NFH"}],
            "network": {"base": 4, "levels": 2},
            "data": [{"kind": "simulated", "simulation": {"planes": 3}}],
            "optimisation": {"steps": 80, "batch": 4, "patch_px": 32, "precision": "fp32", "average": 0.9,
                             "learning_rate": 0.02},
            "teaching": teaching,
        }
        | more
    )  # fmt: skip


def noise_field():
    """A stack and a truth that have nothing to do with each other."""
    rng = np.random.default_rng(0)
    y = ndimage.gaussian_filter(rng.random((2, 64, 64)), (0, 2, 2))
    y = (255 * (y - y.min()) / np.ptp(y)).astype(np.uint8)
    return Field(rng.normal(size=(3, 64, 64)).astype(np.float16), y, np.argwhere(y[0] > 200).astype(np.int32))


def test_a_pupil_learns_the_mean_from_its_teacher_and_the_doubt_from_the_truth(tmp_path):
    teacher = write_teacher(tmp_path / "a.safetensors", (0.1, 0.9))
    training = Training.start(config(Teaching(teachers=(Teacher(model=teacher),))))
    field = noise_field()
    for _ in range(80):
        training.advance([field])
    mean, std, _ = training.result.predict_with_features(torch.zeros(1, 3, 32, 32))
    told = mean.mean(dim=(0, 2, 3)).detach().numpy()
    np.testing.assert_allclose(told, (0.1, 0.9), atol=0.08)
    wrong = np.sqrt(((field.y / 255 - np.array([0.1, 0.9])[:, None, None]) ** 2).mean(axis=(1, 2)))
    np.testing.assert_allclose(std.mean(dim=(0, 2, 3)).detach().numpy(), wrong, rtol=0.35)


def test_a_network_starts_from_the_labels_that_another_has(tmp_path):
    path = write_teacher(tmp_path / "a.safetensors", (0.3, 0.7), ("axons", "dead"))
    training = Training.start(config({"start_from": str(path)}))
    mean = training.result(torch.zeros(1, 3, 16, 16))[0].mean(dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.0, 0.3]))


@pytest.mark.parametrize(
    "teaching",
    [{"teachers": [{"model": "other.safetensors"}]}, {"start_from": "other.safetensors"},
     {"teachers": [{"model": "absent.safetensors"}]}],
)  # fmt: skip
def test_a_teacher_of_other_stacks_or_none_is_refused(tmp_path, teaching):
    other = NetworkConfig(planes=3, labels=2, base=4, levels=2, high_pass_px=20.0)
    write_teacher(tmp_path / "other.safetensors", (0.1, 0.1), size=other)
    content = config({}).model_dump(mode="json") | {"teaching": teaching}
    found = validate_config(content, tmp_path / "train.yaml")
    with pytest.raises(ModelError):
        Training.start(found)


def test_another_file_at_the_same_place_is_another_run(tmp_path):
    path = write_teacher(tmp_path / "a.safetensors", (0.1, 0.2))
    teaching = Teaching(start_from=path)
    before = teaching.digest()
    write_teacher(path, (0.1, 0.3))
    assert teaching.digest() != before


@pytest.mark.slow
def test_a_pupil_that_looks_at_fewer_planes_becomes_a_model_of_those(tmp_path):
    """The teacher looks at all of them."""
    five = replace(SIZE, planes=5)
    teacher = write_teacher(tmp_path / "a.safetensors", (0.1, 0.9), size=five)
    simulation = {"fields": 2, "held_out": 1, "side_px": 64, "planes": 5}
    quick = {"steps": 2, "batch": 2, "patch_px": 32, "precision": "fp32"}
    chosen = config(
        Teaching(teachers=(Teacher(model=teacher),)), planes=5, every_plane=2, optimisation=quick,
        data=[{"kind": "simulated", "simulation": simulation}],
    )  # fmt: skip
    manifest = read_model(train.run(chosen, tmp_path / "run")).info.manifest
    assert manifest.z_offsets_um == (-3.0, 0.0, 3.0)
    assert manifest.labels[0].name == "nuclei"
    with pytest.raises(ValidationError, match="last plane"):
        config(Teaching(), planes=5, every_plane=3, data=[{"kind": "simulated", "simulation": simulation}])
