"""A training run learns, can be killed at any time, and is shared by several processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from importlib import resources
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from scipy import ndimage
from typer.testing import CliRunner

from acq_isl.cli import app
from acq_isl.errors import ExperimentError, ModelError, TrainingFailed
from acq_isl.manifest import MANIFEST_KEY, Manifest
from acq_isl.training import train
from acq_isl.training.adapt_config import Recipe
from acq_isl.training.checkpoints import Checkpoints, Tensors, read_tensors, write_tensors
from acq_isl.training.config import Architecture, Optimisation, TrainConfig, Watching, load_config
from acq_isl.training.data.augment import Augmentation
from acq_isl.training.data.dataset import Field
from acq_isl.training.data.pairs import Checks
from acq_isl.training.data.patches import Patches
from acq_isl.training.distributed import computes_in_bf16
from acq_isl.training.loop import Training, learning_rate
from acq_isl.training.network import (
    LiveNetwork,
    NetworkConfig,
    beta_nll,
    select_labels,
    sum_over_labels,
)
from acq_isl.training.train import open_tensorboard

IDLE_S = 120  # half a second of processor time, or a word, within it is progress
NO_CHANGE = Augmentation(gamma=(1, 1), gain=(1, 1), noise=(0, 0), blur=0, flips=False)


def settings(**more):
    defaults = {"steps": 6, "batch": 2, "patch_px": 32, "checkpoint_every": 2, "precision": "fp32"}
    return {
        "name": "tiny", "version": "0", "description": "a test", "high_pass_um": 2.4, "planes": 3,
        "network": {"base": 4, "levels": 2},
        "data": [{"kind": "simulated",
                  "simulation": {"fields": 2, "held_out": 1, "side_px": 64, "planes": 3}}],
        "optimisation": defaults | more,
    }  # fmt: skip


def tiny(**more):
    return TrainConfig.model_validate(settings(**more))


def field(seed, labels=3, valid=None):
    rng = np.random.default_rng(seed)
    y = np.stack([ndimage.gaussian_filter(rng.random((64, 64)), 3) for _ in range(labels)])
    y = (255 * (y - y.min()) / np.ptp(y)).astype(np.uint8)
    x = (y[rng.integers(0, labels, 3)] / 64 + rng.normal(0, 0.3, (3, 64, 64))).astype(np.float16)
    return Field(x, y, np.argwhere(y[0] > 77).astype(np.int32), valid, f"field {seed}")


@pytest.fixture(scope="module")
def fields():
    return [field(1), field(2)]


def trained(config, fields, steps):
    training = Training.start(config)
    for _ in range(steps):
        training.advance(fields)
    return training


def assert_same(a, b):
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=0, atol=0, msg=name)


def test_learning_rate_rises_and_falls():
    chosen = Optimisation(steps=100)
    rates = [learning_rate(step, chosen) for step in range(100)]
    assert np.argmax(rates) in range(8, 13)
    assert rates[-1] < 0.01 * max(rates)
    assert max(rates) <= chosen.learning_rate


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns(fields, precision):
    training = Training.start(tiny(steps=40, precision=precision))
    losses = [training.advance(fields) for _ in range(40)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.slow
def test_a_weight_on_what_is_bright_brightens_what_is_in_doubt():
    """A stack that tells nothing: all there is to learn is one brightness, the weighted mean of the truth."""
    rng = np.random.default_rng(0)
    y = np.where(rng.random((3, 64, 64)) < 0.2, 255, 0).astype(np.uint8)
    blank = Field(np.zeros((3, 64, 64), np.float16), y, np.argwhere(y[0] > 77).astype(np.int32))
    told = {}
    for weight in (0.0, 4.0):
        config = tiny(steps=150, bright_weight=weight, beta=1.0, foreground=0.0, average=0.9)
        config = config.model_copy(update={"augmentation": NO_CHANGE})
        told[weight] = trained(config, [blank], 150).result(torch.zeros(1, 3, 32, 32))[0].mean().item()
    assert told[0.0] == pytest.approx(0.2, abs=0.08)
    assert told[4.0] == pytest.approx(5 * 0.2 / (5 * 0.2 + 0.8), abs=0.08)


def test_batches_depend_on_their_random_numbers_only(fields):
    patches = Patches(4, 32, 0.5, Augmentation())
    a, b = (patches.draw(fields, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.y, b.y)
    assert a.x.shape == a.y.shape == a.weight.shape == (4, 3, 32, 32)
    assert 0 <= float(a.y.min()) <= float(a.y.max()) <= 1


def test_two_processes_draw_different_patches(fields):
    patches = Patches(4, 32, 0.5, NO_CHANGE)
    first, second = (patches.draw(fields, np.random.default_rng([0, 5, rank])) for rank in (0, 1))
    assert not torch.equal(first.x, second.x)
    alone = patches.draw(fields, np.random.default_rng([0, 5]))
    assert torch.equal(first.x, alone.x)


# --- labels that not every sample has -------------------------------------------------------------


def test_with_all_labels_the_loss_is_the_sum_of_beta_nll():
    rng = torch.Generator().manual_seed(0)
    mean, log_variance, target = (torch.randn(2, 3, 8, 8, generator=rng) for _ in range(3))
    total = sum_over_labels(beta_nll(mean, log_variance, target, 0.5), torch.ones(2, 3, 8, 8), lambda v: v)
    wanted = sum(beta_nll(mean[:, [i]], log_variance[:, [i]], target[:, [i]], 0.5).mean() for i in range(3))
    torch.testing.assert_close(total, wanted)


def test_a_label_counts_fully_whatever_else_is_absent():
    pixels = torch.ones(4, 3, 8, 8)
    weight = torch.ones_like(pixels)
    weight[:, 1] = 0
    weight[1:, 2] = 0
    pixels[:, 1] = torch.nan
    assert float(sum_over_labels(pixels, weight, lambda v: v)) == 2.0


def test_an_absent_label_pulls_no_weights(fields):
    known = np.ones((3, 64, 64), bool)
    known[2] = False
    training = trained(tiny(), [field(3, valid=known)], 1)
    head = training.network.head.weight.detach().reshape(2, 3, -1)
    assert float(head[:, :2].abs().max()) > 0
    # Weight decay of zeros is zero, and no gradient came.
    assert float(head[:, 2].abs().max()) == 0


def test_half_of_the_patches_are_about_bright_places():
    y = np.zeros((1, 256, 256), np.uint8)
    y[0, 200:204, 200:204] = 255
    lone = Field(np.zeros((1, 256, 256), np.float16), y, np.argwhere(y[0] > 77).astype(np.int32))
    batch = Patches(40, 32, 0.5, NO_CHANGE).draw([lone], np.random.default_rng(0))
    assert 20 <= int((batch.y.amax(dim=(1, 2, 3)) > 0).sum()) <= 24


# --- what only training needs ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unet", "separable", "convnext"])
def test_the_auto_encoding_head_is_dropped(fields, kind):
    content = settings(auto_encoding=0.3)
    content["network"]["kind"] = kind
    training = trained(TrainConfig.model_validate(content), fields, 3)
    assert training.network.config.labels == 4
    result = training.result
    assert result.config.labels == 3
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(result(x)[0], training.average(x)[0][:, :3])
        torch.testing.assert_close(result(x)[1], training.average(x)[1][:, :3])


def test_labels_can_be_reordered_and_added():
    torch.manual_seed(0)
    network = LiveNetwork(NetworkConfig(3, 2, 4, 2, 8.0)).eval()
    torch.nn.init.normal_(network.head.weight)
    other = select_labels(network, (None, 1)).eval()
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(other(x)[0][:, 1], network(x)[0][:, 1])
        assert float(other(x)[0][:, 0].abs().max()) == 0


# --- stopping and going on ------------------------------------------------------------------------


def test_a_stopped_run_goes_on_as_if_it_had_not(fields, tmp_path):
    straight, first = trained(tiny(), fields, 6), trained(tiny(), fields, 3)
    points = Checkpoints(tmp_path)
    points.save(3, Tensors(first.state(), {}))
    second = Training.start(tiny())
    second.restore(*points.newest())
    assert second.step == 3
    for _ in range(3):
        second.advance(fields)
    assert_same(straight.state(), second.state())


def test_a_checkpoint_of_another_network_is_refused(fields):
    kept = Tensors(trained(tiny(), fields, 1).state(), {})
    content = settings()
    content["network"]["base"] = 8
    with pytest.raises(ModelError, match="another network"):
        Training.start(TrainConfig.model_validate(content)).restore(1, kept)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(fields):
    training = trained(tiny(), fields, 2)
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    broken = field(4)
    broken.x[:] = np.nan
    with pytest.raises(TrainingFailed, match="diverged at step 2"):
        training.advance([broken])
    weights = {k: v for k, v in training.network.named_parameters()}
    assert_same(weights, before)


def test_members_need_a_patch_each():
    content = settings(batch=1)
    content["network"]["members"] = 2
    with pytest.raises(ExperimentError, match="a batch of at least 2"):
        Training.start(TrainConfig.model_validate(content))


@pytest.mark.parametrize("harm", ["cut", "flip", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, caplog, harm):
    points = Checkpoints(tmp_path)
    for step in (2, 4):
        points.save(step, Tensors({"w": torch.full((50,), float(step))}, {"run": "a"}))
    path = tmp_path / "checkpoint-00000004.safetensors"
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes({"cut": content[:-30], "flip": content, "empty": b""}[harm])
    step, kept = points.newest()
    assert (step, float(kept.tensors["w"][0]), kept.metadata) == (2, 2.0, {"run": "a"})
    assert "going back to the checkpoint before" in caplog.text


def test_with_every_checkpoint_damaged_nothing_is_begun_anew(tmp_path):
    (tmp_path / "checkpoint-00000004.safetensors").write_bytes(b"nothing")
    with pytest.raises(TrainingFailed, match="every checkpoint"):
        Checkpoints(tmp_path).newest()


def test_two_checkpoints_are_kept(tmp_path):
    points = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        points.save(step, Tensors({"w": torch.zeros(3)}, {}))
    assert [path.name[-14:-12] for path in sorted(tmp_path.iterdir())] == ["03", "04"]


def test_text_and_tensors_come_back(tmp_path):
    content = Tensors({"a/b": torch.arange(6).reshape(2, 3), "a/c": torch.tensor(1.5)}, {"x": "y"})
    write_tensors(tmp_path / "t", content)
    back = read_tensors(tmp_path / "t")
    assert back.metadata == {"x": "y"}
    assert_same(dict(content.tensors), back.tensors)
    assert set(back.under("a/")) == {"b", "c"}


KILLED = "from acq_isl.training import train; train._finish = lambda *_: None; train.main()"


def arguments(tmp_path, name, **more):
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(settings(**more)))
    return [str(path), "--out", str(tmp_path / name)]


def cpu_s(process):
    """Of a process and all that it started, as far as they still run."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                used = one.cpu_times()
                total += used.user + used.system
    return total


def said(log):
    return log.read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def started(command, log, **more):
    """A process whose output goes to a file; neither it nor what it started outlives the block."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
    with (
        log.open("ab") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as popen,
    ):
        process = psutil.Process(popen.pid)
        try:
            yield popen, process
        finally:
            family = [process]
            with contextlib.suppress(psutil.Error):
                family += process.children(recursive=True)
            for one in family:
                with contextlib.suppress(psutil.Error):
                    one.kill()


def wait_while_it_works(process, log, reached):
    """Until ``reached()``. However slow the machine, a process at work is waited for; an idle one is not."""
    last, since = (0.0, 0), time.monotonic()
    while not reached():
        now = (cpu_s(process), log.stat().st_size)
        if now[0] > last[0] + 0.5 or now[0] < last[0] or now[1] != last[1]:
            last, since = now, time.monotonic()
        idle = time.monotonic() - since > IDLE_S
        assert not idle, f"nothing happened for {IDLE_S} s; so far:\n{said(log)}"
        time.sleep(0.02)


def run_to_end(command, log, **more):
    with started(command, log, **more) as (popen, process):
        wait_while_it_works(process, log, lambda: popen.poll() is not None)
    assert popen.returncode == 0, said(log)


@pytest.mark.timeout(900)
def test_a_killed_process_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    more = {"steps": 150, "checkpoint_every": 7}
    command = [sys.executable, "-c", KILLED, *arguments(tmp_path, "killed", **more)]
    log = tmp_path / "log"

    def kept():
        return list((tmp_path / "killed").glob("checkpoint-*.safetensors"))

    with started(command, log) as (popen, process):
        wait_while_it_works(process, log, lambda: kept() or popen.poll() is not None)
        assert popen.poll() is None, f"training ended early:\n{said(log)}"
        popen.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    reached, _ = Checkpoints(tmp_path / "killed").newest()
    assert 0 < reached < 150
    run_to_end(command, log)
    monkeypatch.setattr(train, "_finish", lambda *_: None)
    train.run(tiny(**more), tmp_path / "straight")
    step, straight = Checkpoints(tmp_path / "straight").newest()
    again, resumed = Checkpoints(tmp_path / "killed").newest()
    assert step == again == 150
    assert_same(dict(straight.tensors), resumed.tensors)


BOTH = """
import os
import torch
from acq_isl.training import loop, train

train._finish = lambda *_: None
advance = loop.Training.advance


def seen(self, fields):
    loss = advance(self, fields)
    if self.step == 6:
        weights = self.network.state_dict()["head.weight"]
        torch.save(weights, os.environ["SEEN"] + str(self.group.rank))
    return loss


loop.Training.advance = seen
train.main()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_train_one_network(tmp_path):
    """gloo on the processor: what torchrun does on two GPUs."""
    script, log = tmp_path / "both.py", tmp_path / "log"
    script.write_text(BOTH)
    # Standalone: it listens on a port of its own choice; one that was free a moment ago may be taken.
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "2", str(script), *arguments(tmp_path, "team"),
    ]  # fmt: skip
    run_to_end(command, log, SEEN=str(tmp_path / "seen"))
    first, second = (torch.load(tmp_path / f"seen{rank}", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert float(first.abs().max()) > 0
    step, kept = Checkpoints(tmp_path / "team").newest()
    assert step == 6
    torch.testing.assert_close(kept.tensors["network/head.weight"], first, rtol=0, atol=0)
    alone = train.Training.start(tiny())
    assert not torch.equal(
        alone.network.state_dict()["down.0.0.weight"], kept.tensors["network/down.0.0.weight"]
    )


# --- a whole run ----------------------------------------------------------------------------------


def test_a_whole_run_leaves_a_model_that_says_what_it_is(tmp_path):
    import onnxruntime

    told = []
    path = train.run(tiny(), tmp_path, told.append)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    manifest = Manifest.from_json(session.get_modelmeta().custom_metadata_map[MANIFEST_KEY])
    assert manifest.trained_on == "2 simulated fields, no recorded image"
    # No camera counted a simulated truth.
    assert [label.truth_range for label in manifest.labels] == [None] * 3
    assert {one.dataset for one in manifest.evaluations} == {"simulated"}
    assert (tmp_path / "panel.png").stat().st_size > 1000
    kept = read_tensors(tmp_path / "weights.safetensors")
    assert "head.weight" in kept.tensors
    assert [(p.done, p.total) for p in told if p.phase == "fields"][-1] == (3, 3)
    assert [p.done for p in told if p.phase == "training"] == [1, 2, 3, 4, 5, 6]


def test_a_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_finish", lambda *_: None)
    train.run(tiny(), tmp_path)
    with pytest.raises(TrainingFailed, match="other settings or data"):
        train.run(tiny(learning_rate=1e-4), tmp_path)


def test_tensorboard_that_is_absent_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExperimentError, match="pip install tensorboard"):
        open_tensorboard(tmp_path, wanted=True)
    with open_tensorboard(tmp_path, wanted=False) as board:
        assert board is None


def test_a_gpu_that_is_not_there_is_an_error(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ExperimentError, match="no GPU"):
        train.run(tiny(device="cuda"), tmp_path)
    assert isinstance(computes_in_bf16(torch.device("cpu")), bool)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nversion: '1'\ndescription: b\nbases: 3\n", "bases"),
        ("name: a\nversion: '1'\ndescription: b\nsimulation: {feilds: 3}\n", "feilds"),
        ("name: a\nversion: '1'\ndescription: b\ndata: [{kind: jpeg}]\n", "jpeg"),
        ("name: a\nversion: '1'\ndescription: b\nplanes: 5\n", "13 planes"),
        (
            "name: a\nversion: '1'\ndescription: b\n"
            "data: [{kind: tiff, folder: ., stack: a.tif, labels: {walls: b.tif}}]\n",
            "walls",
        ),
        ("name: [", "cannot be read"),
    ],
)
def test_a_wrong_training_file_is_explained(tmp_path, text, says):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=says):
        load_config(path)


def test_the_short_form_for_simulated_fields_still_reads(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(
        "name: a\nversion: '1'\ndescription: b\nbase: 8\nlevels: 3\nsimulation: {fields: 5, planes: 7}\n"
    )
    config = load_config(path)
    assert (config.network.base, config.network.levels, config.network.planes) == (8, 3, 7)
    assert config.data[0].simulation.fields == 5


@pytest.mark.parametrize("name", ["train", "train_condition_b"])
def test_the_examples_are_valid(name):
    config = load_config(Path(__file__).resolve().parents[2] / "examples" / f"{name}.yaml")
    assert config.split is not None
    assert all(source.kind == "simulated" or "examples" in str(source) for source in config.data)


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "training.md"


@pytest.mark.parametrize(
    "part",
    [TrainConfig, Optimisation, Watching, Architecture, Augmentation, Checks, Recipe],
    ids=lambda part: part.__name__,
)
def test_every_key_is_described(part):
    text = DOCUMENT.read_text(encoding="utf-8")
    described = set(re.findall(r"`(\w+)[:`]", text.partition("## Every key")[2]))
    keys = {field.alias or name for name, field in part.model_fields.items()}
    assert keys - described == set()


def test_the_smallest_file_of_the_document_is_one(tmp_path):
    text = DOCUMENT.read_text(encoding="utf-8")
    block = re.search(r"smallest file that trains:\n\n((?:    .*\n)+)", text).group(1)
    path = tmp_path / "train.yaml"
    path.write_text(textwrap.dedent(block))
    config = load_config(path)
    assert [label.name for label in config.labels] == ["nuclei"]
    assert config.data[0].folder == tmp_path / "plate1"


def test_the_command_shows_progress_and_what_came_out(tmp_path, monkeypatch):
    model = tmp_path / "model.onnx"
    model.write_bytes((resources.files("acq_isl.models") / "demo.onnx").read_bytes())

    def run(config, folder, tell):
        for done in range(1, 7):
            tell(train.Progress("training", done, config.optimisation.steps, loss=-0.5))
        assert folder == tmp_path / "out"
        return model

    monkeypatch.setattr(train, "run", run)
    config, *_ = arguments(tmp_path, "out")
    result = CliRunner().invoke(app.cli, ["train", config, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = result.output
    assert "6/6" in text
    assert "loss -0.500" in text
    assert str(model) in text
