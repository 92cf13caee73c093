"""A model against recorded pairs: from folders to one table and one page."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from acq_isl.cli import app as cli
from acq_isl.errors import PairRefused
from acq_isl.evaluation.evaluate import evaluate
from acq_isl.evaluation.ground_truth import match_stains
from acq_isl.evaluation.inputs import find_items
from acq_isl.evaluation.page import as_markdown, render, write_evaluation
from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Settings
from acq_isl.evaluation.tables import as_json, choose_ways, describe_units
from acq_isl.evaluation.worth import agree, say
from acq_isl.manifest import Label, Manifest, Training
from acq_isl.training.data.pairs import Item
from doubles import tiny_model as tiny

PIXEL_UM = 0.3


def write_field(folder: Path, seed: int, *, stack: np.ndarray | None = None) -> None:
    """A stack with blobs, and stains where the blobs are."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = tiny.stack((96, 112), seed=seed).pixels if stack is None else stack
    seen = ndimage.gaussian_filter(np.abs(pixels.astype(float) - pixels.mean()).max(axis=0), 4)
    stain = (2000 + 40000 * (seen - seen.min()) / max(np.ptp(seen), 1)).astype(np.uint16)
    sizes = {"PhysicalSizeX": PIXEL_UM, "PhysicalSizeY": PIXEL_UM}
    tifffile.imwrite(folder / "phase.ome.tif", pixels, metadata={"axes": "ZYX", **sizes})
    for name, image in (("dapi", stain), ("nfh", stain[::-1])):
        tifffile.imwrite(folder / f"{name}.ome.tif", np.ascontiguousarray(image), metadata={"axes": "YX"})


@pytest.fixture(scope="module")
def plate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "plate"
    for seed, well in enumerate(("A1", "A2", "B1")):
        write_field(root / well, seed)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = Training(wells=("C3",), split_unit="well")
    manifest = tiny.GATED.model_copy(update={"training": training})
    return tiny.write(tmp_path_factory.mktemp("model"), manifest=manifest, defect=tiny.gated)


def run(model: Path, items: list[Item], **how: object):
    return evaluate(model, items, Settings(threads=1, **how))


@pytest.fixture(scope="module")
def report(model: Path, plate: Path):
    return run(model, find_items([plate], tiny.MANIFEST, 1.5))


def test_every_label_is_scored_beside_floor_and_ceiling(report) -> None:
    assert report.units == ("plate/A1", "plate/A2", "plate/B1")
    assert report.labels == ("nuclei", "axons")
    assert choose_ways(report, "nuclei") == (MODEL, FLOOR, "real axons", CEILING)
    for score in report.scores:
        assert score.pixels.n == 96 * 112
        assert (score.std is None) == (score.way != MODEL)
        assert bool(score.objects) == (score.label == "nuclei" and score.way in (MODEL, FLOOR, CEILING))
    by_way = {(s.unit, s.label, s.way): s.pixels.pearson for s in report.scores}
    for unit in report.units:
        assert by_way[unit, "nuclei", CEILING] > by_way[unit, "nuclei", FLOOR]


def test_the_header_says_what_was_held_out(report, model: Path, plate: Path) -> None:
    assert describe_units(report) == "3 held-out fields (split unit: field, n = 3)"
    wells = run(model, find_items([plate], tiny.MANIFEST, 1.5), split_unit="well")
    assert describe_units(wells) == "3 held-out wells with 3 fields (split unit: well, n = 3)"
    assert "held-out" in as_markdown(wells).splitlines()[0]


def test_fields_of_one_well_are_one_row(model: Path, plate: Path) -> None:
    items = [replace(item, well="plate/A1") for item in find_items([plate], tiny.MANIFEST, 1.5)]
    pooled = run(model, items, split_unit="well")
    assert pooled.units == ("plate/A1",)
    assert {score.fields for score in pooled.scores} == {3}
    assert {score.pixels.n for score in pooled.scores} == {3 * 96 * 112}


def test_scores_of_trained_fields_are_not_called_held_out(tmp_path: Path, plate: Path) -> None:
    training = Training(wells=("A2",), fields=("plate/B1",), split_unit="well")
    path = tiny.write(tmp_path, manifest=tiny.MANIFEST.model_copy(update={"training": training}))
    found = run(path, find_items([plate], tiny.MANIFEST, 1.5))
    assert len(found.leaks) == 2
    assert "held-out" not in describe_units(found)
    assert "plate/B1" in render(found) and "not of held-out images" in render(found)


def test_a_model_that_does_not_say_what_it_saw_is_not_believed(tmp_path: Path, plate: Path) -> None:
    found = run(tiny.write(tmp_path), find_items([plate], tiny.MANIFEST, 1.5))
    assert describe_units(found) == "3 fields (split unit: field, n = 3)"
    assert any("nobody knows" in warning for warning in found.warnings)
    assert "no distance to its training set" in as_markdown(found)


def test_nine_perturbations_with_the_gate_beside_the_sd(report) -> None:
    assert len(report.perturbations) == 9
    clean = report.perturbations[0]
    assert (clean.name, clean.loss) == ("as trained", 0)
    for one in report.perturbations:
        assert set(one.pearson) == {"nuclei", "axons"}
        assert 0 <= one.gate <= 1 and 0 <= one.std <= 1 and 0 <= one.flagged <= 1
    assert "refused as trained are false alarms" in as_markdown(report)


def test_a_field_that_cannot_be_scored_is_named_with_its_reason(tmp_path: Path, model: Path) -> None:
    write_field(tmp_path / "p" / "A1", 1)
    write_field(tmp_path / "p" / "A2", 2, stack=np.full((5, 96, 112), 800, np.uint16))
    found = run(model, find_items([tmp_path / "p"], tiny.MANIFEST, 1.5))
    assert found.fields == 1
    ((name, why),) = found.refused
    assert name == "p/A2" and "constant" in why
    assert why.partition(";")[0] in as_markdown(found)


def test_nothing_to_score_is_an_error(tmp_path: Path, model: Path) -> None:
    write_field(tmp_path / "p" / "A1", 1, stack=np.full((5, 96, 112), 800, np.uint16))
    with pytest.raises(PairRefused, match=r"no field could be scored.*constant"):
        run(model, find_items([tmp_path / "p"], tiny.MANIFEST, 1.5))


def test_wells_must_be_known_to_be_split_by(tmp_path: Path, model: Path) -> None:
    write_field(tmp_path / "some", 1)
    with pytest.raises(PairRefused, match="from which wells"):
        run(model, find_items([tmp_path / "some"], tiny.MANIFEST, 1.5), split_unit="well")


def test_the_models_own_range_scales_the_truth(tmp_path: Path, plate: Path) -> None:
    labels = tuple(label.model_copy(update={"truth_range": (0.0, 84000.0)}) for label in tiny.MANIFEST.labels)
    path = tiny.write(tmp_path, manifest=tiny.MANIFEST.model_copy(update={"labels": labels}))
    items = find_items([plate], tiny.MANIFEST, 1.5)
    own, pooled = run(path, items), run(path, items, truth_range="pairs")
    assert "the model file's range" in own.truths["nuclei"]
    assert "percentiles" in pooled.truths["nuclei"]
    assert own.shown[0].labels["nuclei"][0].max() <= 0.51 < pooled.shown[0].labels["nuclei"][0].max()


def test_the_files(report, tmp_path: Path) -> None:
    paths = write_evaluation(tmp_path / "out", report)
    assert [p.name for p in paths] == [f"evaluation.{s}" for s in ("html", "md", "csv", "json")]
    rows = list(csv.DictReader((tmp_path / "out" / "evaluation.csv").read_text("utf-8").splitlines()))
    assert len(rows) == len(report.scores)
    assert {row["way"] for row in rows} == {MODEL, FLOOR, CEILING, "real axons", "real nuclei"}
    read = json.loads(as_json(report))
    assert (read["split_unit"], read["units"], read["fields"]) == ("field", 3, 3)
    assert len(read["conditions"]) == 9
    stored = Manifest.model_validate(tiny.MANIFEST.model_dump() | {"evaluations": ready(read["evaluations"])})
    assert stored.evaluations[0].n == 3


def ready(evaluations: list[Mapping[str, object]]) -> list[dict[str, object]]:
    return [{**one, "dataset": "plate"} for one in evaluations]


def test_the_page_needs_nothing_from_outside(report) -> None:
    html = render(report)
    assert "<script" not in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert html.count("data:image/jpeg") >= 3 * 2 * 5
    assert "nuclei (predicted)" in html and "3 held-out fields (split unit: field, n = 3)" in html


@pytest.mark.parametrize(
    ("recorded", "chosen", "wanted"),
    [
        (("dapi", "nfh"), {}, {"nuclei": "dapi", "axons": "nfh"}),
        (("NUCLEI", "dapi"), {}, {"nuclei": "NUCLEI"}),
        (("hoechst",), {"nuclei": "Hoechst"}, {"nuclei": "hoechst"}),
        (("dapi", "nfh"), {"nuclei": "nfh"}, {"nuclei": "nfh", "axons": "nfh"}),
    ],
)
def test_stains_are_matched_with_labels(recorded, chosen, wanted) -> None:
    labels = (Label(name="nuclei", marker="DAPI or Hoechst 33342"), Label(name="axons", marker="NFH"))
    assert match_stains(labels, recorded, chosen) == wanted


@pytest.mark.parametrize(
    ("recorded", "chosen"), [(("actin",), {}), (("dapi",), {"nuclei": "nfh"}), (("dapi",), {"spots": "dapi"})]
)
def test_stains_that_fit_no_label_are_asked_about(recorded, chosen) -> None:
    with pytest.raises(PairRefused, match="--truth LABEL=STAIN"):
        match_stains((Label(name="nuclei", marker="DAPI"),), recorded, chosen)


def test_wells_come_from_the_folders(plate: Path) -> None:
    items = find_items([plate], tiny.MANIFEST, 1.5)
    assert [item.well for item in items] == ["A1", "A2", "B1"]
    assert all(item.load().z_step_um == 1.5 for item in items)


def test_sources_can_be_listed_in_a_file(plate: Path, tmp_path: Path) -> None:
    listed = [{"kind": "tiff", "folder": str(plate), "stack": "{well}/phase.ome.tif", "z_step_um": 1.5,
               "labels": {"nuclei": "{well}/dapi.ome.tif"}}]  # fmt: skip
    path = tmp_path / "pairs.yaml"
    path.write_text(json.dumps(listed), encoding="utf-8")
    items = find_items([path], tiny.MANIFEST)
    assert [item.well for item in items] == ["A1", "A2", "B1"]
    path.write_text("- {kind: floppy}", encoding="utf-8")
    with pytest.raises(PairRefused, match="no list of sources"):
        find_items([path], tiny.MANIFEST)


def test_other_data_sets_are_pairs_as_well(tmp_path: Path) -> None:
    """One channel is transmitted light, the others are stains; a data set of NDTiff has TIFF files in it."""
    from ndstorage.ndtiff_dataset import NDTiffDataset

    data = NDTiffDataset(str(tmp_path), summary_metadata={}, writable=True)
    for position in ("A1_0", "B2_0"):
        for channel, z in (("Phase", 0), ("Phase", 1), ("DAPI", 0)):
            about = {"PixelSize_um": 0.3, "ZPosition_um": 1.5 * z}
            data.put_image(
                {"position": position, "channel": channel, "z": z}, np.ones((8, 8), np.uint16), about
            )
    data.finish()
    data.close()
    found = {item.name: item for item in find_items([tmp_path], tiny.MANIFEST)}
    assert {name: (item.well, item.labels) for name, item in found.items()} == {
        "A1_0": ("A1", ("DAPI",)), "B2_0": ("B2", ("DAPI",))}  # fmt: skip
    assert found["A1_0"].load().stack.shape == (2, 8, 8)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairRefused, match="no pairs"):
        find_items([tmp_path], tiny.MANIFEST)
    with pytest.raises(PairRefused, match="no folder"):
        find_items([tmp_path / "nowhere"], tiny.MANIFEST)
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((5, 32, 32), np.uint16), metadata={"axes": "ZYX"})
    with pytest.raises(PairRefused, match="not clear what is a pair"):
        find_items([tmp_path], tiny.MANIFEST)


def test_the_same_folder_twice_is_refused(plate: Path) -> None:
    with pytest.raises(PairRefused, match="same name"):
        find_items([plate, plate], tiny.MANIFEST, 1.5)


def test_the_command(
    model: Path,
    plate: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["evaluate", model, "--pairs", plate, "-o", tmp_path / "out", "--z-step-um", "1.5"]
    arguments += ["--split-unit", "well", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["acq-isl", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        assert not stop.code
    told = capsys.readouterr().out
    assert "3 held-out wells" in told
    assert (tmp_path / "out" / "evaluation.html").is_file()


def test_no_torch_is_needed() -> None:
    code = "import sys, acq_isl.evaluation.evaluate, acq_isl.evaluation.page, acq_isl.evaluation.inputs\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_every_score_has_an_interval_and_is_said_beside_floor_and_ceiling(report) -> None:
    found = agree(report, "nuclei")
    scores = [s.pixels.pearson for s in report.scores if (s.label, s.way) == ("nuclei", MODEL)]
    assert min(scores) <= found.low <= found.pearson <= found.high <= max(scores)
    assert found.of == "3 fields"
    said = dict(say(report))
    assert "3 fields" in said["too few"]
    assert "95 % interval" in found.sentence and "log z-variance" in found.sentence
    assert "second exposure" in found.sentence and "As to brightness, its bright end" in found.sentence
    for text in (as_markdown(report), json.loads(as_json(report))["says"][1]["sentence"]):
        assert found.sentence in text


def test_one_field_is_resampled_by_its_blocks(model: Path, tmp_path: Path) -> None:
    wide = tiny.stack((288, 432), seed=7).pixels
    write_field(tmp_path / "p" / "A1", 1, stack=wide)
    found = agree(run(model, find_items([tmp_path / "p"], tiny.MANIFEST, 1.5)), "nuclei")
    assert found.of == "6 blocks of one field" and found.low < found.pearson < found.high


def test_counts_and_the_sd_by_brightness_are_of_the_stain(report) -> None:
    page, data = render(report), json.loads(as_json(report))
    (nuclei, axons) = data["labels"]
    assert [row["field"] for row in nuclei["counts"]] == list(report.units) and not axons["counts"]
    assert page.count("<circle") == 3 and "counted on the prediction" in page
    for label in data["labels"]:
        levels = label["coverage_by_brightness"]
        assert sum(level["pixels"] for level in levels) == 3 * 96 * 112
        rows = [r for r in data["rows"] if (r["label"], r["way"]) == (label["label"], "model")]
        covered = sum(level["pixels"] * (level["coverage"] or 0) for level in levels) / (3 * 96 * 112)
        assert covered == pytest.approx(sum(r["coverage"] for r in rows) / 3)


def without_cells(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise in uneven light."""
    light = np.linspace(900, 1100, image.shape[1])
    return (light + rng.normal(0, 30, image.shape)).astype(np.uint16)


def spoil_stain(folder: Path, name: str) -> None:
    path = folder / f"{name}.ome.tif"
    image = tifffile.imread(path)
    tifffile.imwrite(path, without_cells(image, np.random.default_rng(0)), metadata={"axes": "YX"})


def test_a_stain_without_cells_is_named(tmp_path: Path, model: Path) -> None:
    for name, seed in (("A1", 1), ("A2", 2)):
        write_field(tmp_path / "p" / name, seed)
    spoil_stain(tmp_path / "p" / "A2", "dapi")
    items = find_items([tmp_path / "p"], tiny.MANIFEST, 1.5)
    found = run(model, items)
    (warning,) = [text for text in found.warnings if "nothing but noise" in text]
    assert warning.startswith("p/A2: nuclei") and "no cells" in warning
    for folder in ("A1", "A2"):
        for stain in ("dapi", "nfh"):
            spoil_stain(tmp_path / "p" / folder, stain)
    with pytest.raises(PairRefused, match="no stain shows a cell"):
        run(model, items)
