"""A model read back from its file learns a new label or a new microscope."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict

import numpy as np
import onnxruntime
import pytest
import tifffile
import torch
import yaml
from scipy import ndimage

from acq_isl.engines.model_file import read_model
from acq_isl.errors import ExperimentError, ModelError, PairRefused
from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.training import adapt as adapting
from acq_isl.training import fine_tune, package
from acq_isl.training.adapt import adapt
from acq_isl.training.adapt_config import Recipe, read_pairs
from acq_isl.training.checkpoints import Tensors, write_tensors
from acq_isl.training.config import TrainConfig
from acq_isl.training.distributed import ProcessGroup
from acq_isl.training.export.onnx import export_onnx
from acq_isl.training.learning_curve import Row, find_better
from acq_isl.training.network import Deployed, LiveNetwork, NetworkConfig
from acq_isl.training.ood_gate import fit_gate
from acq_isl.training.package import write_weights
from acq_isl.training.score import HeldOutScore
from acq_isl.training.weights import Pretrained, read_pretrained, unfold

LABELS = (Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH"))


def manifest(labels=LABELS):
    return Manifest(
        name="old", version="1", licence="BSD-3-Clause", description="a test", modality="phase contrast",
        polarity="dark", pixel_size_um=0.3, z_offsets_um=(-1.5, 0.0, 1.5), high_pass_um=2.4, labels=labels,
        min_tile_px=32, halo_px=32, size_step_px=4, spread_scale=(1.0,) * len(labels), trained_on="nothing",
    )  # fmt: skip


def old_network(kind="unet", members=1):
    torch.manual_seed(3)
    network = LiveNetwork(NetworkConfig(3, 2, 4, 2, 8.0, kind, members=members))
    for member in (network, *network.others):
        torch.nn.init.normal_(member.head.weight, 0, 0.2)
    network.train()
    for _ in range(20):
        network(torch.randn(2, 3, 32, 32))
    for name, parameter in network.named_parameters():
        if name.endswith((".bias", ".scale")):  # equal ones would be stored once
            torch.nn.init.normal_(parameter, 0.1, 0.05)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    return network.eval()


@pytest.fixture(scope="module", params=["unet", "convnext"])
def exported(request, tmp_path_factory):
    network = old_network(request.param)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    about, head = manifest(), None
    if request.param == "unet":
        rng = np.random.default_rng(0)
        soft = ndimage.gaussian_filter(rng.standard_normal((5, 3, 256, 256)), (0, 0, 2, 2))
        stacks = [torch.from_numpy((stack / stack.std()).astype(np.float32)) for stack in soft]
        head, gate = fit_gate(network, stacks)
        about = about.model_copy(update={"gate": gate})
    export_onnx(Deployed(network, (1.0, 1.0), head), about, path)
    return network, path


def test_weights_come_back_from_the_model_file(exported):
    network, path = exported
    found = read_pretrained(path)
    assert found.manifest.labels == LABELS
    assert found.network.config == network.config
    x = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for got, wanted in zip(found.network(x), network(x), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_unfolding_changes_nothing_and_makes_training_mode_sane(exported):
    network, path = exported
    found = read_pretrained(path)
    assert found.folded
    x = torch.randn(8, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    again = unfold(found, [x])
    with torch.no_grad():
        torch.testing.assert_close(again(x)[0], network(x)[0], atol=1e-3, rtol=1e-3)
        # The statistics are those of these patches, so batch statistics give the same.
        torch.testing.assert_close(again.train()(x)[0], network(x)[0], atol=2e-2, rtol=2e-2)


def test_the_gate_of_a_graph_takes_fields_of_any_size(exported):
    _, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    if "convnext" in str(path):
        assert len(session.get_outputs()) == 2
        return
    gate = read_model(path).info.manifest.gate
    rng = np.random.default_rng(0)
    for side, windows in ((128, 1), (256, 3), (388, 5)):
        stack = rng.integers(0, 255, (1, 3, side, side, 2)).astype(np.uint8)
        (found,) = session.run(["distance"], {"stack": stack, "inv_sd": np.full(1, 1e-4, np.float32)})
        assert found.shape == (1, len(gate.names), windows, windows)


def test_weights_of_a_run_come_back(tmp_path):
    network = old_network()
    write_weights(network, manifest(), tmp_path / "weights.safetensors")
    found = read_pretrained(tmp_path / "weights.safetensors")
    assert found.folded == ()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found.network.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("harm", ["no file", "text", "no network", "foreign", "no manifest"])
def test_what_cannot_be_adapted_is_explained(tmp_path, harm):
    path = tmp_path / "model.onnx"
    if harm == "text":
        path.write_text("hello")
    if harm == "no network":
        import onnx

        graph = onnx.helper.make_graph([], "g", [], [])
        onnx.save(onnx.helper.make_model(graph), path)
    if harm == "no manifest":
        path = tmp_path / "weights.safetensors"
        write_tensors(path, Tensors(old_network().state_dict(), {}))
    if harm == "foreign":
        import onnx

        graph = onnx.helper.make_graph([], "g", [], [])
        model = onnx.helper.make_model(graph)
        config = json.dumps(asdict(old_network().config))
        onnx.helper.set_model_props(
            model, {MANIFEST_KEY: manifest().model_dump_json(), "acq_isl_network": config}
        )
        onnx.save(model, path)
    with pytest.raises(ModelError):
        read_pretrained(path)


# --- from pairs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plate(tmp_path_factory):
    """Fields whose new label is where planes differ most."""
    folder = tmp_path_factory.mktemp("plate")
    for number in range(5):
        rng = np.random.default_rng(number)
        cells = ndimage.gaussian_filter((rng.random((64, 64)) > 0.99).astype(float), 3)
        cells /= cells.max()
        stack = 20000 + 9000 * cells * np.array([-1, 0, 1])[:, None, None] + rng.normal(0, 300, (3, 64, 64))
        tifffile.imwrite(folder / f"A{number}_x.tif", stack.astype(np.uint16), photometric="minisblack")
        label = 500 + 9000 * cells + rng.normal(0, 50, cells.shape)
        tifffile.imwrite(folder / f"A{number}_y.tif", label.astype(np.uint16))
    return folder


def write_pairs(tmp_path, plate, label="lipid", **more):
    content = {
        "data": [{"kind": "tiff", "folder": str(plate), "stack": "{well}_x.tif",
                  "labels": {label: "{well}_y.tif"}, "pixel_size_um": 0.3, "z_step_um": 1.5}],
        "split": {"by": "well", "held_out": ["A0", "A1"]},
        "recipe": {"steps": 100, "patch_px": 32, "batch": 4, "look_every": 5, "precision": "fp32"},
    } | more  # fmt: skip
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(params=[1, 2], ids=["one network", "two side by side"])
def model(request, tmp_path):
    network = old_network(members=request.param)
    write_weights(network, manifest(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_a_new_label_is_learned_and_reported(tmp_path, plate, model, monkeypatch):
    told, written = [], []
    monkeypatch.setattr(package, "export_onnx", lambda *parts: written.append(parts))
    pairs = write_pairs(tmp_path, plate)
    made = adapt(model, pairs, "lipid", (1, 2, 8), tmp_path / "out", told.append)
    lines = (tmp_path / "out" / "transfer.csv").read_text().splitlines()
    assert lines[0] == "# new label, held-out wells; stopped by a held-out unit that is not scored"
    rows = list(csv.DictReader(lines[1:]))
    assert [(row["k"], row["start"]) for row in rows] == [
        ("1", "adapted"), ("1", "from scratch"), ("2", "adapted"), ("2", "from scratch")]  # fmt: skip
    assert all(row["n"] == "1" for row in rows)
    units = list(csv.DictReader((tmp_path / "out" / "transfer_units.csv").read_text().splitlines()))
    assert [row | {"unit": "A1"} for row in units] == units
    assert [row["pearson"] for row in units] == [row["pearson"] for row in rows]
    assert float(rows[2]["pearson"]) > 0.3
    ((_, about, path),) = written
    assert path == made
    assert about.label_names == ("lipid",)
    # The well that decided when to stop was used too; only A1 was not.
    assert about.training.wells == ("A0", "A2", "A3")
    assert (tmp_path / "out" / "transfer.png").stat().st_size > 1000
    assert [p.done for p in told if p.phase == "training"] == [0, 1, 2]


def test_a_new_microscope_is_compared_with_the_model_as_it_is(tmp_path, plate, model, monkeypatch):
    monkeypatch.setattr(adapting, "write_package", lambda *_: tmp_path)
    pairs = write_pairs(tmp_path, plate, "nuclei", recipe={"steps": 10, "patch_px": 32, "seeds": 2})
    adapt(model, pairs, None, (1,), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "transfer.csv").read_text().splitlines()[1:]))
    assert [(row["k"], row["start"], row["seed"]) for row in rows] == [
        ("0", "as it is", "0"), ("1", "adapted", "0"), ("1", "from scratch", "0"),
        ("1", "adapted", "1"), ("1", "from scratch", "1")]  # fmt: skip


def test_what_only_makes_the_model_worse_is_not_kept(tmp_path, plate, model, monkeypatch):
    """The validation unit likes no network but the one that came in."""
    kept, came = [], read_pretrained(model).network.state_dict()

    def as_it_came(network):  # but for the label that the pairs do not show
        state = network.state_dict()
        return state.keys() == came.keys() and all(
            torch.equal(value, came[name]) for name, value in state.items() if "head" not in name
        )

    monkeypatch.setattr(adapting, "write_package", lambda *given: kept.append(given[2]))
    for module in (adapting, fine_tune):
        monkeypatch.setattr(module, "mean_pearson", lambda *given: float(as_it_came(given[1])))
    recipe = {"steps": 10, "patch_px": 32, "look_every": 2}
    adapt(model, write_pairs(tmp_path, plate, "nuclei", recipe=recipe), None, (1,), tmp_path / "out")
    assert as_it_came(kept[0].network)


def rows(**means):
    """Of two labels, .1 above and below the mean, by start; adapted to one unit it is worse by .3."""
    ks = {"as_it_is": 0}
    found = [
        Row(
            ks.get(start, k),
            start.replace("_", " "),
            0,
            HeldOutScore(label, 1, mean + off - lost, 0.1, 0.7, 1.0),
        )
        for start, mean in means.items()
        for k, lost in ((1, 0.3), (2, 0.0))
        if k == 2 or start not in ks
        for label, off in (("nuclei", 0.1), ("axons", -0.1))
    ]
    return found


@pytest.mark.parametrize(
    ("means", "says"),
    [
        ({"adapted": 0.7, "from_scratch": 0.6}, None),
        ({"adapted": 0.7, "from_scratch": 0.7}, None),
        ({"as_it_is": 0.5, "adapted": 0.6, "from_scratch": 0.8}, "training from scratch does better"),
        ({"as_it_is": 0.69, "adapted": 0.58, "from_scratch": 0.25}, "the model as it is does better"),
    ],
)
def test_what_did_better_is_told(means, says):
    told = find_better(rows(**means))
    assert told is None if says is None else says in told


@pytest.mark.parametrize(("task", "part"), [("new label", "head."), ("new microscope", "down.0.")])
def test_a_part_alone_learns_first(task, part, tmp_path, plate, model):
    """The others stay as they are, their batch statistics too."""
    label = "lipid" if task == "new label" else "nuclei"
    config, recipe = read_pairs(write_pairs(tmp_path, plate, label), manifest(), label)
    found = read_pretrained(model)
    division = config.divide()
    data = adapting.prepare_datasets(config, division, tmp_path, ProcessGroup(), lambda _: None)
    setup = fine_tune.Setup(config, recipe, task, found)
    network = fine_tune.network_as_it_is(setup)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    alone = next(fine_tune.phases(setup, network, 0))
    for _ in range(3):
        alone.advance(data.train)
    changed = {
        name for name, value in alone.network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed
    assert all(name.removeprefix("others.0.").startswith(part) for name in changed), sorted(changed)[:5]
    # Of all networks side by side.
    members = found.network.config.members
    assert len({name.startswith("others.0.") for name in changed}) == members


def test_one_held_out_field_means_no_early_stop(tmp_path, plate, model, monkeypatch):
    monkeypatch.setattr(adapting, "write_package", lambda *_: tmp_path)
    pairs = write_pairs(
        tmp_path, plate, split={"by": "well", "held_out": ["A0"]}, recipe={"steps": 10, "patch_px": 32}
    )
    adapt(model, pairs, "lipid", (1,), tmp_path / "out")
    assert "fixed number of steps" in (tmp_path / "out" / "transfer.csv").read_text()


@pytest.mark.parametrize(
    ("label", "more", "error", "says"),
    [
        ("walls", {}, ExperimentError, "do not show walls"),
        ("lipid", {"data": "x"}, ExperimentError, "no list of sources"),
        ("lipid", {"recipe": {"stepps": 3}}, ExperimentError, "stepps"),
        ("lipid", {"colour": 1}, ExperimentError, "colour"),
    ],
)
def test_pairs_that_cannot_be_used_are_explained(tmp_path, plate, label, more, error, says):
    with pytest.raises(error, match=says):
        read_pairs(write_pairs(tmp_path, plate, **more), manifest(), label)


def test_more_units_than_there_are(tmp_path, plate, model):
    with pytest.raises(PairRefused, match="too few pairs"):
        adapt(model, write_pairs(tmp_path, plate), "lipid", (50,), tmp_path / "out")


def test_fields_narrower_than_a_patch_are_learned_from(tmp_path, plate, model, monkeypatch, caplog):
    monkeypatch.setattr(adapting, "write_package", lambda *_: tmp_path)
    recipe = {"steps": 10, "patch_px": 128}
    adapt(model, write_pairs(tmp_path, plate, "nuclei", recipe=recipe), None, (1,), tmp_path / "out")
    assert "patches are 64 px, not 128" in caplog.text


def test_fields_too_small_for_any_patch_are_refused(tmp_path, plate, model):
    split = {"by": "columns", "cuts_px": [24], "held_out": [1], "gap_px": 16, "margin_px": 8}
    with pytest.raises(PairRefused, match="too small to learn from"):
        adapt(model, write_pairs(tmp_path, plate, "nuclei", split=split), None, (1,), tmp_path / "out")


@pytest.mark.parametrize(
    ("scores", "kept"),  # of the model as it is, adapted, from scratch, averaged
    [
        ((0.5, 0.7, 0.6, 0.6), "adapted"),
        ((0.5, 0.6, 0.7, 0.65), "from scratch"),
        ((0.8, 0.6, 0.7, 0.7), "the model as it is"),
        ((0.5, 0.69, 0.7, 0.72), "adapted and from scratch, averaged"),
        ((0.5, 0.69, 0.7, 0.704), "from scratch"),  # not worth its time
    ],
)
def test_what_does_best_is_kept_and_told(scores, kept, monkeypatch, caplog):
    found, came = old_network(), old_network()
    config, recipe = TrainConfig(name="n", version="1", description="d", labels=LABELS), Recipe()
    setup = fine_tune.Setup(config, recipe, "new microscope", Pretrained(came, manifest()))
    found_one_by_one = iter(scores)
    monkeypatch.setattr(adapting, "mean_pearson", lambda *_: next(found_one_by_one))
    made = {"adapted": [found], "from scratch": [came]}
    best = adapting.choose_best(setup, list(adapting.candidates(setup, made)), [])
    assert best.title == kept
    assert (f"kept is {kept}" in caplog.text) == (kept != "adapted")
    assert ("2 times as long" in caplog.text) == ("averaged" in kept)
    if "averaged" in kept:
        x = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            both = (found(x)[0] + came(x)[0]) / 2
            torch.testing.assert_close(best.network(x)[0], both)


def test_held_out_fields_may_be_learned_from_in_the_end(tmp_path, plate, model, monkeypatch):
    kept = []
    monkeypatch.setattr(adapting, "write_package", lambda *given: kept.append(given))
    recipe = {"steps": 10, "patch_px": 32, "learn_from_all": True}
    adapt(model, write_pairs(tmp_path, plate, "nuclei", recipe=recipe), None, (1,), tmp_path / "out")
    ((config, division, trained, _),) = kept
    assert {item.well for item in division.train} == {f"A{number}" for number in range(5)}
    assert len(trained.seen) == 5 and trained.scores[0].n == 1
    assert "Scored before it learned" in config.description
