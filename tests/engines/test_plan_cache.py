"""Plans on disk and how they come there: keys, locks, damage, and builds through the readable TensorRT."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading

import filelock
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from acq_isl.engines.agreement import sample_tiles
from acq_isl.engines.int8.quantize import quantised
from acq_isl.engines.int8.store import int8_folder
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.tensorrt import plan_cache as plans
from acq_isl.engines.tensorrt.api import BuildStep, Flavour, ProgressForwarder
from acq_isl.engines.tensorrt.build import build
from acq_isl.engines.tensorrt.cuda import GpuInfo
from acq_isl.engines.tensorrt.int8 import make_form, stored_form
from acq_isl.engines.tensorrt.options import BuildOptions, profile_shapes
from acq_isl.engines.tensorrt.plan_cache import PlanKey, PlanNote, PlanStore
from acq_isl.errors import EngineError, ModelError, StackRefused
from acq_isl.files import default_folder
from acq_isl.processing.tiling import TileRule, plan_tiles
from doubles import cuda_double
from doubles import tensorrt_double as trt_double
from doubles import tiny_model as tiny

KEY = PlanKey(
    onnx_sha256="ab" * 32,
    flavour="tensorrt_rtx",
    version="1.7",
    precision="fp16",
    profile="live",
    shapes={"inv_sd": ((1,), (1,), (1,))},
)
NOTE = PlanNote(
    key=KEY,
    model="tiny 1",
    field_px=(96, 96),
    plan_sha256="9f64a747e1b97f131fabb6b447296c9b6f0201e79fb3c5356e6c77e89b6a806a",  # of bytes 1, 2, 3, 4
    plan_bytes=4,
    built_s=0.3,
    built_at="2026-11-22T10:00:00+01:00",
)
PLAN = b"\x01\x02\x03\x04"
GPU = GpuInfo("Readable GPU", "sm89", 1 << 34, 12_080)


@pytest.fixture
def store(tmp_path):
    return PlanStore(tmp_path / "plans", lock_timeout_s=0.2)


def flavour(*, rtx=True, version="1.7.1.116"):
    return Flavour(trt_double.tensorrt(cuda_double.Driver(), rtx=rtx, version=version))


@pytest.fixture
def model(tmp_path):
    return tiny.write(tmp_path)


# -- the store


def test_what_was_kept_is_found(store):
    assert store.load(KEY) is None
    path = store.save(PLAN, NOTE)
    assert path == store.path(KEY)
    assert store.load(KEY) == (PLAN, NOTE)
    assert [p.suffix for p in store.folder.iterdir() if p.suffix == ".partial"] == []


CHANGES = {
    "onnx_sha256": "cd" * 32,
    "flavour": "tensorrt",
    "version": "1.8",
    "precision": "fp32",
    "profile": "bulk",
    "shapes": {"inv_sd": ((1,), (1,), (8,))},
    "targets": ("sm89",),
    "gpu": "another",
    "flags": ("no tf32",),
}


def test_every_part_of_the_key_counts():
    assert set(CHANGES) == set(PlanKey.model_fields)
    changed = [KEY.model_copy(update={name: value}) for name, value in CHANGES.items()]
    assert len({key.digest for key in (KEY, *changed)}) == len(CHANGES) + 1


@given(st.text(min_size=1, max_size=20), st.lists(st.sampled_from(["sm75", "sm86", "sm89"]), unique=True))
def test_a_key_survives_its_json(version, targets):
    key = KEY.model_copy(update={"version": version, "targets": tuple(targets)})
    again = PlanKey.model_validate_json(key.model_dump_json())
    assert again == key
    assert again.digest == key.digest


def _flip(store):
    content = bytearray(store.path(KEY).read_bytes())
    content[2] ^= 1
    store.path(KEY).write_bytes(content)


def _foreign(store):
    other = NOTE.model_copy(update={"key": KEY.model_copy(update={"version": "1.6"})})
    store.path(KEY).with_suffix(".json").write_text(other.model_dump_json(), "utf-8")


def _unknown_field(store):
    note = json.loads(NOTE.model_dump_json()) | {"later": 1}
    store.path(KEY).with_suffix(".json").write_text(json.dumps(note), "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, "damaged"),
        (lambda s: s.path(KEY).write_bytes(PLAN[:2]), "damaged"),
        (lambda s: s.path(KEY).write_bytes(b""), "damaged"),
        (lambda s: s.path(KEY).with_suffix(".json").unlink(), "cannot be used"),
        (lambda s: s.path(KEY).with_suffix(".json").write_text("{"), "cannot be used"),
        (_unknown_field, "cannot be used"),
        (_foreign, "built for something else"),
    ],
    ids=[
        "bit flipped",
        "cut short",
        "empty",
        "no note",
        "note cut short",
        "note of later version",
        "foreign",
    ],
)
def test_what_is_not_whole_is_built_again_with_a_message(store, caplog, damage, message):
    store.save(PLAN, NOTE)
    damage(store)
    assert store.load(KEY) is None
    assert message in caplog.text
    assert "will be rebuilt" in caplog.text
    store.save(PLAN, NOTE)
    assert store.load(KEY) == (PLAN, NOTE)


def test_plans_are_listed_and_cleared(store):
    assert store.list() == ()
    store.save(PLAN, NOTE)
    later = NOTE.model_copy(update={"key": KEY.model_copy(update={"profile": "bulk"}), "model": "a 2"})
    store.save(PLAN, later)
    (store.folder / "0000.plan").write_bytes(b"??")
    (store.folder / "0000.kernels").write_bytes(b"?")
    (store.folder / "mine.txt").write_text("keep", "utf-8")
    assert [(p.note.model if p.note else None, p.size_bytes) for p in store.list()] == [
        (None, 2),
        ("a 2", 4),
        ("tiny 1", 4),
    ]
    files, size = store.clear()
    assert files == 6
    assert size > 11
    assert [p.name for p in store.folder.iterdir()] == ["mine.txt"]


def test_clearing_a_folder_that_is_not_there_is_no_error(tmp_path):
    assert PlanStore(tmp_path / "none").clear() == (0, 0)


def test_one_process_builds_and_the_other_waits_only_so_long(store):
    store.folder.mkdir()
    with (
        filelock.FileLock(store.path(KEY).with_suffix(".lock")),
        pytest.raises(EngineError, match=r"another process.*0\.2 s"),
        store.locked(KEY),
    ):
        pass


@pytest.mark.parametrize("use", [lambda s: s.save(PLAN, NOTE), lambda s: s.locked(KEY).__enter__()])
def test_a_folder_that_cannot_be_written(tmp_path, use):
    (tmp_path / "file").write_text("in the way", "utf-8")
    with pytest.raises(EngineError, match=r"cannot be kept.*ACQ_ISL_CACHE"):
        use(PlanStore(tmp_path / "file" / "plans"))


def test_a_full_disk_leaves_no_half_plan(store, monkeypatch):
    store.save(PLAN, NOTE)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plans, "write_whole", full)
    with pytest.raises(EngineError, match="No space left"):
        store.save(PLAN, NOTE)
    assert store.load(KEY) is None


@pytest.mark.parametrize(
    ("platform", "variables", "end"),
    [
        ("linux", {"ACQ_ISL_CACHE": "/somewhere"}, "/somewhere"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/acq-isl"),
        ("linux", {}, ".cache/acq-isl"),
        ("darwin", {}, "Library/Caches/acq-isl"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/acq-isl/cache"),
        ("win32", {}, "AppData/Local/acq-isl/cache"),
    ],
)
def test_the_folder_is_where_the_system_keeps_caches(monkeypatch, platform, variables, end):
    for name in ("ACQ_ISL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert default_folder().as_posix().endswith(end)


# -- building, through the double


def test_a_plan_is_built_once(model, store):
    trt = flavour()
    first = build(model, store=store, flavour=trt)
    again = build(model, store=store, flavour=trt)
    assert (first.fresh, again.fresh, trt.trt.built) == (True, False, 1)
    assert again.content == first.content
    assert first.note.key.onnx_sha256 == read_model(model).info.sha256
    assert first.note.agreement["pearson nuclei"] > 0.999


def test_two_threads_build_a_plan_once(model, tmp_path):
    store, trt, built = PlanStore(tmp_path / "plans", lock_timeout_s=60), flavour(), []
    start = threading.Barrier(2, timeout=10)

    def use():
        start.wait()
        built.append(build(model, store=store, flavour=trt))

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert trt.trt.built == 1
    assert built[0].content == built[1].content


def test_another_version_builds_its_own(model, store):
    old, new = (build(model, store=store, flavour=flavour(version=v)) for v in ("1.6", "1.7"))
    assert new.fresh
    assert old.path != new.path


def test_progress_is_told_and_can_cancel(model, store):
    steps = []
    build(model, store=store, flavour=flavour(), progress=steps.append)
    assert steps == [BuildStep("Building engine", done, 2) for done in range(3)]

    class Stop(Exception):
        pass

    def cancel(step):
        raise Stop(step.phase)

    with pytest.raises(Stop):
        build(model, BuildOptions(profile="bulk"), store=store, flavour=flavour(), progress=cancel)
    assert len(store.list()) == 1


def test_who_cancelled_is_not_asked_again():
    asked = []

    def cancel(step):
        asked.append(step)
        raise ValueError("stop")

    forwarder = ProgressForwarder(flavour(), cancel)
    assert [forwarder.tell("Building", done) for done in range(3)] == [False, False, False]
    assert len(asked) == 1
    assert str(forwarder.failure) == "stop"


@pytest.mark.parametrize(
    ("rtx", "options", "gpu", "message"),
    [
        (True, BuildOptions(targets=("sm90",)), None, "no plans for sm90.*sm86, sm89"),
        (False, BuildOptions(), None, "cannot build without a GPU.*rtx"),
        (False, BuildOptions(targets=("sm90",)), GPU, "GPU in the machine only.*sm90"),
    ],
)
def test_targets_that_cannot_be_built_for(model, store, rtx, options, gpu, message):
    with pytest.raises(EngineError, match=message):
        build(model, options, store=store, flavour=flavour(rtx=rtx), gpu=gpu)


def test_plans_of_plain_tensorrt_are_keyed_by_the_gpu_and_portable_ones_are_not(model, store):
    other = GpuInfo("Another GPU", "sm86", 1 << 34, 12_080)
    keys = {
        (rtx, gpu.name): build(model, store=store, flavour=flavour(rtx=rtx), gpu=gpu).note.key
        for rtx in (True, False)
        for gpu in (GPU, other)
    }
    assert keys[True, "Another GPU"] == keys[True, "Readable GPU"]
    assert keys[False, "Another GPU"] != keys[False, "Readable GPU"]


@pytest.mark.parametrize(
    "field_px", [(8, 8), (250, 256), (1024, 1024), (2160, 2560), (2304, 2304), (4096, 3000), (5120, 5120)]
)
@pytest.mark.parametrize("profile", ["live", "bulk"])
def test_profiles_obey_the_tile_rule(profile, field_px):
    shapes = profile_shapes(tiny.MANIFEST, BuildOptions(profile=profile, field_px=field_px))
    least, usual, most = shapes["stack"]
    assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
    assert least[2] >= tiny.MANIFEST.min_tile_px
    assert all(
        side % tiny.MANIFEST.size_step_px == 0 for shape in (least, usual, most) for side in shape[2:4]
    )
    assert [s[0] for s in shapes["stack"]] == [s[0] for s in shapes["inv_sd"]]
    assert (most[0] == 1) == (profile == "live")
    if profile == "live" and min(field_px) > 8:
        assert all(side >= asked for side, asked in zip(usual[2:4], field_px, strict=True))


@given(
    field=st.tuples(st.integers(256, 4096), st.integers(256, 4096)),
    built=st.tuples(st.integers(256, 4096), st.integers(256, 4096)),
    steps=st.integers(0, 2),
    step_px=st.sampled_from([1, 8, 16, 32]),
)
def test_any_field_with_its_border_is_one_live_tile_whatever_the_plan_was_built_for(
    field, built, steps, step_px
):
    manifest = tiny.MANIFEST.model_copy(update={"size_step_px": step_px, "min_tile_px": 150, "halo_px": 80})
    least, _, most = profile_shapes(manifest, BuildOptions(field_px=built))["stack"]
    rule = TileRule(manifest.min_tile_px, manifest.halo_px, step_px)
    plan = plan_tiles(field, rule, tile_px=max(most[2:4]), border_px=steps * step_px)
    assert len(plan.tiles) == 1
    assert all(a <= n <= b for a, n, b in zip(least[2:4], plan.tile_shape, most[2:4], strict=True))


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("fp16", True)])
def test_fp32_is_not_cut_down_to_tf32(model, store, precision, allowed):
    trt = flavour()
    build(model, BuildOptions(precision=precision), store=store, flavour=trt)
    assert (trt_double.BuilderFlag.TF32 in trt.trt.flags) == allowed


def test_int8_is_not_built_before_it_was_judged_on_stacks(model, store):
    with pytest.raises(ModelError, match=r"no int8 form.*never been made.*stacks of your own.*--stack"):
        build(model, BuildOptions(precision="int8"), store=store, flavour=flavour())


def test_int8_is_calibrated_on_one_half_of_the_stacks_and_judged_on_the_other(tmp_path, store, caplog):
    model = tiny.uncounted(tmp_path)
    trt, file, options = flavour(), read_model(model), BuildOptions(precision="int8")
    form = make_form(file, [tiny.stack((520, 520))], threads=1)
    assert form.accepted, form.reason
    assert 0.995 < form.pearson["membranes"] < 1
    built = build(model, options, store=store, flavour=trt)
    assert built.note.agreement == {f"pearson {name}": value for name, value in form.pearson.items()}
    assert not build(model, options, store=store, flavour=trt).fresh
    make_form(file, [tiny.stack((520, 520), seed=1)], threads=1)
    assert build(model, options, store=store, flavour=trt).fresh  # another form is another plan
    assert [record for record in caplog.records if record.name == "root"] == []


@pytest.mark.parametrize("damage", ["tensorrt.onnx", "tensorrt.json", "model"])
def test_an_int8_form_is_used_only_whole_and_with_its_own_model(model, damage):
    file = read_model(model)
    make_form(file, [tiny.stack((520, 520))], threads=1)
    assert stored_form(file) is not None
    if damage == "model":
        file = ModelFile(file.content, dataclasses.replace(file.info, sha256="cd" * 32))
    else:
        path = int8_folder(file) / damage
        path.write_bytes(path.read_bytes()[:-9])
    assert stored_form(file) is None


def test_a_judgement_of_the_first_format_is_read(model):
    file = read_model(model)
    made = make_form(file, [tiny.stack((520, 520))], threads=1)
    path = int8_folder(file) / "tensorrt.json"
    fields = json.loads(path.read_text("utf-8"))
    (digest,) = fields.pop("files").values()
    del fields["made_by"]
    path.write_text(json.dumps(fields | {"format": "acq-isl-int8-onnx/1", "onnx_sha256": digest}), "utf-8")
    assert stored_form(file)[0] == made


def test_int8_without_stacks_says_what_to_give(model):
    with pytest.raises(StackRefused, match=r"without stacks.*your own.*--precision fp16"):
        make_form(read_model(model), [])


def tiles(count):
    return [(tile[None], np.full(1, 1e-3, np.float32)) for tile in sample_tiles(tiny.MANIFEST, count)]


def test_too_few_tiles_calibrate_nothing():
    with pytest.raises(ModelError, match=r"cannot be calibrated.*at least 4.*got: 3.*larger stacks"):
        quantised(tiny.content(), tiles(3))


def test_the_last_convolution_is_not_quantised_and_neither_are_raw_counts():
    model = onnx.load_from_string(quantised(tiny.content(), tiles(4)))
    by_output = {name: node.op_type for node in model.graph.node for name in node.output}
    fed = [{by_output.get(name) for name in n.input} for n in model.graph.node if n.op_type == "Conv"]
    assert fed == [{"DequantizeLinear"}, {"Relu", None}]
    assert by_output["counts"] == "Add"
    assert model.metadata_props == onnx.load_from_string(tiny.content()).metadata_props


def test_a_model_that_int8_breaks_is_not_built(tmp_path, store):
    model = tiny.uncounted(tmp_path)
    stack = tiny.stack((520, 520))
    pixels = stack.pixels.copy()
    # Ranges are set on sharp specks; what judges is so smooth that the network sees little of it.
    smooth = ndimage.gaussian_filter(pixels[:, 260:].astype(float), (0, 9, 9))
    pixels[:, 260:] = 20000 + 2000 * (smooth - smooth.mean()) / smooth.std()
    form = make_form(read_model(model), [dataclasses.replace(stack, pixels=pixels)], threads=1)
    assert not form.accepted and "correlation with fp32" in form.reason
    with pytest.raises(ModelError, match=r"no int8 form.*correlation with fp32 below.*--precision fp16"):
        build(model, BuildOptions(precision="int8"), store=store, flavour=flavour())


def test_a_model_tensorrt_cannot_use_names_the_operator(store, tmp_path, monkeypatch):
    # ONNX itself finds nothing wrong with a Relu; the double is told to.
    monkeypatch.setattr(trt_double.OnnxParser, "unsupported", frozenset({"Relu"}))
    with pytest.raises(ModelError, match=r"Relu.*no importer.*onnxruntime"):
        build(tiny.write(tmp_path), store=store, flavour=flavour())
    assert store.list() == ()
