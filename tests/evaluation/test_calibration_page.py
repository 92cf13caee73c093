"""What a calibrated model may be used for, in plain words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from acq_isl.engines.model_file import read_model
from acq_isl.evaluation.calibration_page import advise, remarks, write_calibration
from acq_isl.processing.statistics import Amplitude
from acq_isl.stack import NetworkLabel, ObjectCounting
from acq_isl.training.cross_fit import AS_IT_IS, CrossFit, LabelResult, ShownField

COUNTS = ObjectCounting(
    "nuclei", 0.9, 0.15, 2.0, 0.0, 1.0, 0.0, 0.4, 0.0, 12, 0.03, 0.95, 0.7, 0.95, "6 held-out fields"
)
GOOD = LabelResult("nuclei", 0.74, 0.70, 0.79, 0.55, 0.48, 0.66, COUNTS)


@pytest.mark.parametrize(
    ("result", "use", "avoid"),
    [
        (GOOD, ["choose fields", "count nuclei.*3% too many", "its stated SD"], ["how bright.*55%"]),
        (replace(GOOD, low=0.45), ["count", "SD"], ["how bright", "not clearly better than the light"]),
        (replace(GOOD, floor=0.69), ["count", "SD"], ["how bright", "light alone"]),
        (replace(GOOD, counting=None), ["choose", "SD"], ["how bright", "count nuclei.*too few"]),
        (replace(GOOD, counting=NetworkLabel("nuclei")), ["choose", "SD"], ["how bright", "network"]),
        (replace(GOOD, counting=replace(COUNTS, bias=-0.3)), ["choose", "SD"], ["how", "count.*30% too few"]),
        (
            replace(GOOD, doubt_covers=0.4),
            ["choose", "count"],
            ["how bright", "SD, which is too small: .* 40%"],
        ),
        (replace(GOOD, doubt_covers=0.9), ["choose", "count"], ["how bright", "SD, which is too large"]),
        (replace(GOOD, doubt_covers=None), ["choose", "count"], ["how bright", "no field showed"]),
        (
            replace(GOOD, r=0.9, amplitude=Amplitude(2.0, 0.4)),
            ["choose", "count", "SD"],
            ["how bright", "by its brightness: .* 0.40 of the stain's.* 2.00: too pale"],
        ),
        (replace(GOOD, amplitude=Amplitude(1.2, 0.9)), ["choose", "count", "SD"], ["how bright"]),
    ],
)
def test_what_held_out_fields_allow(result: LabelResult, use: list[str], avoid: list[str]) -> None:
    """In order of the lines; a high correlation alone never makes brightness a measurement."""
    advice = advise(result)
    for wanted, lines in ((use, advice.use), (avoid, advice.avoid)):
        assert len(lines) == len(wanted), lines
        assert all(re.search(text, line) for text, line in zip(wanted, lines, strict=True)), lines


def test_the_page_holds_what_was_found_and_how_to_go_on(tmp_path: Path) -> None:
    image = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    fit = CrossFit(
        tmp_path / "model.onnx", "adapted", (GOOD,), ("p0", "p1"), 2, 100, 1.0, (1, 2),
        ("DAPI <fades>",), ShownField("p1", image, {"nuclei": (image, image)}),
    )  # fmt: skip
    path = write_calibration(fit, read_model("demo").info, [("fields", "6")], "model: here")
    page = path.read_text("utf-8")
    held = ("Use it for this, not for that", "0.74 (0.70 to 0.79)", "refuses 1 of 2", "DAPI &lt;fades&gt;")
    for text in (*held, "model: here", "nuclei (predicted)", "PREDICTED"):
        assert text in page
    assert page.count("<img") == 4 and "http" not in page.replace("http-equiv", "")
    card = (tmp_path / "card.md").read_text("utf-8")
    assert "* Use it to count nuclei" in card and "* Do not use it to measure" in card


@pytest.mark.parametrize(("kept", "says"), [("adapted", "learned from all"), (AS_IT_IS, "learned nothing")])
def test_the_page_says_what_was_learned_from(kept: str, says: str) -> None:
    image = np.zeros((16, 16), np.float32)
    fit = CrossFit(
        Path("model.onnx"), kept, (GOOD,), ("p0",), 2, 100, 2.0, None, (), ShownField("p1", image, {})
    )
    told = " ".join(remarks(fit))
    assert says in told and f"Kept: {kept}" in told and "2 times as long" in told and "no gate" in told
