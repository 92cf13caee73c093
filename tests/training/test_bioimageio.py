"""A model handed on: the same numbers from an image alone, in a package that bioimage.io's test accepts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from scipy import ndimage

from acq_isl.cli import app as cli
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import ModelError, StorageError
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.training.export.bioimageio import export_bioimage
from acq_isl.training.export.image_model import INPUT, OUTPUTS, image_model, least_side_px, write_plain
from doubles import tiny_model as tiny


def run(content: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(list(OUTPUTS), feeds)


def stack(planes: int, rows: int, columns: int, contrast: float = 2500) -> np.ndarray:
    grain = np.random.default_rng(4).standard_normal((planes, rows, columns))
    blobs = ndimage.gaussian_filter(grain, (0.5, 3, 3))
    slope = np.linspace(-6000, 6000, columns)  # background that the contrast must not count
    return (30000 + slope + contrast * blobs / blobs.std()).clip(0, 65535).astype(np.uint16)


@pytest.mark.parametrize("contrast", [40, 2500, 12000])
@pytest.mark.parametrize("high_pass_um", [0.0, 0.6, 3.0])
def test_an_image_alone_gives_what_bytes_and_contrast_give(high_pass_um: float, contrast: float) -> None:
    manifest = tiny.MANIFEST.model_copy(update={"high_pass_um": high_pass_um})
    content = tiny.content(manifest=manifest)
    model = image_model(onnx.load_from_string(content), manifest)
    assert [value.name for value in model.graph.input] == [INPUT]
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    pixels = stack(manifest.planes, 88, 120, contrast)
    inv_sd = np.full(1, inverse_contrast(pixels, high_pass_um / manifest.pixel_size_um), np.float32)
    counts = pixels.astype("<u2").view(np.uint8).reshape(1, *pixels.shape, 2)
    wanted = run(content, {"stack": counts, "inv_sd": inv_sd})
    for got, image in zip(run(model.SerializeToString(), {INPUT: pixels[None]}), wanted, strict=True):
        np.testing.assert_allclose(got, image, atol=1e-4)
        assert image.std() > 1e-3


def test_stacks_of_a_batch_do_not_mix() -> None:
    model = image_model(onnx.load_from_string(tiny.content()), tiny.MANIFEST).SerializeToString()
    side = least_side_px(tiny.MANIFEST)
    first, second = stack(5, side, side, 900), stack(5, side, side, 5000)[:, ::-1]
    both = run(model, {INPUT: np.stack([first, second])})
    for index, alone in enumerate((first, second)):
        for together, single in zip(both, run(model, {INPUT: alone[None].copy()}), strict=True):
            np.testing.assert_allclose(together[index], single[0], atol=1e-5)


def test_other_outputs_and_our_manifest_stay_behind() -> None:
    model = image_model(
        onnx.load_from_string(tiny.content(manifest=tiny.GATED, defect=tiny.gated)), tiny.GATED
    )
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    assert not model.metadata_props


def test_the_smallest_image_is_large_enough_for_everything() -> None:
    for manifest in (tiny.MANIFEST, tiny.MANIFEST.model_copy(update={"high_pass_um": 30.0})):
        side = least_side_px(manifest)
        assert side % manifest.size_step_px == 0
        assert side >= max(manifest.min_tile_px, 2 * manifest.halo_px + 1)
        model = image_model(onnx.load_from_string(tiny.content(manifest=manifest)), manifest)
        mean, _ = run(model.SerializeToString(), {INPUT: stack(5, side, side)[None]})
        assert np.isfinite(mean).all()


def test_operators_of_another_age_are_refused() -> None:
    model = onnx.load_from_string(tiny.content())
    model.opset_import[0].version = 13
    with pytest.raises(ModelError, match=r"another input.*got: 13"):
        image_model(model, tiny.MANIFEST)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "demo.zip"
    command = [sys.executable, "-m", "acq_isl", "export", "demo", "--bioimageio", "-o", str(path)]
    command += ["--author", "A. Person", "--cite", "Christiansen et al. 2018=10.1016/j.cell.2018.03.040"]
    # In a process of its own: the library leaves files open, which is a warning and so an error here.
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return path


def test_the_package_holds_all_it_names(package: Path) -> None:
    with zipfile.ZipFile(package) as file:
        names = set(file.namelist())
        described = yaml.safe_load(file.read("rdf.yaml" if "rdf.yaml" in names else "bioimageio.yaml"))
        tensors = {name: np.load(io.BytesIO(file.read(f"test_{name}.npy"))) for name in (INPUT, *OUTPUTS)}
        content = file.read(described["weights"]["onnx"]["source"])
    manifest = read_model("demo").info.manifest
    own = dict(described["config"]["acq_isl"])
    assert own.pop("model_sha256") == read_model("demo").info.sha256
    assert Manifest.model_validate(own) == manifest
    assert described["format_version"].startswith("0.5.")
    (planes,) = described["inputs"]
    assert [axis.get("id", axis["type"]) for axis in planes["axes"]] == ["batch", "z", "y", "x"]
    assert planes["axes"][1]["scale"] == manifest.z_step_um
    scale = planes["axes"][2]["scale"]
    assert np.float32(scale) == np.float32(manifest.pixel_size_um)
    assert tensors[INPUT].dtype == np.uint16
    size = planes["axes"][2]["size"]
    assert tensors[INPUT].shape[-1] == size["min"]
    sides = range(size["min"], 5000, size["step"])
    assert all(side * scale / scale == side for side in sides)  # 496 * .3 / .3 is not, and readers refuse it
    for got, name in zip(run(content, {INPUT: tensors[INPUT]}), OUTPUTS, strict=True):
        np.testing.assert_allclose(got, tensors[name], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, {"name": "tiny_", "version": "1", "license": "BSD-3-Clause"}),
        ({"name": "nuclei/living: \u00b5"}, {"name": "nuclei_living_ _"}),
        ({"version": "second try", "licence": "ask us"}, {"version": None, "license": None}),
        ({"licence": "apache-2.0", "version": "v2.1"}, {"license": "Apache-2.0", "version": "2.1"}),
        ({"licence": "MIT AND BSD-3-Clause"}, {"license": None}),
        ({"description": "long " * 1000}, {"description": ("long " * 1000)[:1024]}),
    ],
)
def test_what_the_description_does_not_allow_is_written_otherwise(
    changes: dict[str, str], found: dict[str, str | None], tmp_path: Path
) -> None:
    manifest = tiny.MANIFEST.model_copy(update=changes)
    export_bioimage(tiny.write(tmp_path, manifest=manifest), tmp_path / "package.zip")
    with zipfile.ZipFile(tmp_path / "package.zip") as file:
        text = file.read("bioimageio.yaml").decode()
        described = yaml.safe_load(text)
        for source in (described["weights"]["onnx"], *(p["test_tensor"] for p in described["outputs"])):
            assert hashlib.sha256(file.read(source["source"])).hexdigest() == source["sha256"]
    assert {key: described.get(key) for key in found} == found
    assert (
        Manifest.model_validate(
            {k: v for k, v in described["config"]["acq_isl"].items() if k != "model_sha256"}
        )
        == manifest
    )
    assert "*id" not in text  # aliases, which not every reader knows


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    for export in (export_bioimage, write_plain):
        with pytest.raises(StorageError, match="cannot be written"):
            export(tiny.write(tmp_path), blocked / "out")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ships, for programs that know nothing of acq-isl."""
    path = tmp_path_factory.mktemp("plain") / "demo.onnx"
    write_plain("demo", path)
    return path


def test_the_lines_of_the_documentation_predict_with_onnxruntime_alone(plain: Path, tmp_path: Path) -> None:
    manifest = read_model("demo").info.manifest
    side = least_side_px(manifest)
    pixels = stack(manifest.planes, side, side + manifest.size_step_px)
    np.save(tmp_path / "stack.npy", pixels)
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text("utf-8")
    (snippet,) = re.findall(r"```python\n(.*?onnxruntime.*?)```", page, re.DOTALL)
    assert "acq_isl" not in snippet and snippet.count("\n") <= 10
    shutil.copy(plain, tmp_path / "plain.onnx")
    names = {}
    with contextlib.chdir(tmp_path):
        exec(compile(snippet, "docs/models.md", "exec"), names)
    with OnnxEngine("demo", tile_px=None, gate="warn") as engine:
        z_um = manifest.z_offsets_um
        info = StackInfo(StackKey(0, "A1", "x"), z_um, pixels.shape[1:], manifest.pixel_size_um,
                         modality=manifest.modality, polarity=manifest.polarity)  # fmt: skip
        wanted = engine.predict(ZStack(info, pixels, (0.0,) * len(z_um))).mean
    border = 64  # where the engine puts a reflection around the field
    inner = np.s_[:, border:-border, border:-border]
    assert np.sqrt(np.square(names["mean"][0][inner] - wanted[inner]).mean()) < 0.05 * wanted[inner].std()


@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
def test_plain_openvino_compiles_it(plain: Path, static: bool) -> None:
    openvino = pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    manifest = read_model("demo").info.manifest
    side = least_side_px(manifest)
    pixels = stack(manifest.planes, side, side)[None]
    core = openvino.Core()
    model = core.read_model(plain)
    if static:
        model.reshape(list(pixels.shape))
    found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(pixels)
    for got, wanted in zip(found.to_tuple(), run(plain.read_bytes(), {INPUT: pixels}), strict=True):
        # Relative to what there is: the spread is wider than it was when this was an absolute 1e-4.
        assert np.abs(got - wanted).max() < 2e-3 * wanted.std()
        assert np.sqrt(np.square(got - wanted).mean()) < 1e-4 * wanted.std()


def test_it_says_what_it_takes_and_gives(plain: Path) -> None:
    model = onnx.load(plain)
    manifest = read_model("demo").info.manifest
    texts = {port.name: port.doc_string for port in (*model.graph.input, *model.graph.output)}
    assert texts.keys() == {INPUT, *OUTPUTS}
    assert f"{manifest.pixel_size_um:g} um a pixel" in texts[INPUT] and "z rising" in texts[INPUT]
    assert all(label in texts["mean"] for label in manifest.label_names)
    assert "not a measurement" in model.doc_string


def test_the_own_test_of_bioimage_io_accepts_it(package: Path) -> None:
    """Run as its users do; bioimageio.core 0.11 needs pydantic below 2.14, so an environment of its own."""
    tool = shutil.which("bioimageio")
    if tool is None:
        pytest.skip("no program 'bioimageio' here: uv tool install bioimageio.core --with 'pydantic<2.14'")
    done = subprocess.run(
        [tool, "test", str(package)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "demo", "-o", "x.zip"], "--plain, --bioimageio or --tags"),
        (["export", "gone", "-o", "x.onnx", "--tags"], "gone"),
        (["export", "gone", "-o", "x.zip", "--bioimageio"], "gone"),
    ],
)
def test_the_command_says_what_is_missing(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["acq-isl", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
