"""What a notebook shows of stacks, predictions and runs."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from acq_isl.record import Counts, FieldRecord, Measured, RunRecord
from acq_isl.stack import Prediction, Refusal, StackInfo, StackKey, Unpredicted, ZStack
from acq_isl.view.notebook import outcome_html, prediction_html, run_html, session_html, stack_html

INFO = StackInfo(
    StackKey(0, "A1 <b>", "Phase"), tuple(1.5 * n for n in range(13)), (300, 400), 0.3, 12.0, -7.0
)


class Checker(HTMLParser):
    """Whether every tag is closed, and no script or outside address is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {
            "div", "b", "p", "br", "table", "tr", "th", "td", "figure", "figcaption", "span", "img"
        }  # fmt: skip
        if tag == "img":
            self.images += [value or "" for name, value in attrs if name == "src"]
        elif tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures(page: str) -> list[np.ndarray]:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert all(source.startswith("data:image/jpeg;base64,") for source in checker.images)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2])))) for s in checker.images]


def prediction(warnings: tuple[str, ...] = ()) -> Prediction:
    mean = np.zeros((2, 300, 400), np.float32)
    mean[0] = 1.0
    return Prediction(INFO, ("nuclei", "axons"), mean, mean * 0, "ab" * 32, "demo", "cpu fp32", warnings)


def record(fields: int = 2) -> RunRecord:
    measured = Measured("number of objects in nuclei (predicted)", 34.0, "objects", 3.0)
    known = tuple(
        FieldRecord(INFO, np.full((64, 64), 90, np.uint8), prediction(), measured, n + 1, n == 0, "because")
        for n in range(fields)
    )
    return RunRecord(
        "best <fields>", "2026-11-22", 12.0, "simulated", "demo 1", {}, "cpu", known, (), (),
        Counts(117, 117, 104, 13), (), {}, {}, ("mind this",), "",
    )  # fmt: skip


def test_a_stack_shows_planes_from_top_to_bottom() -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (13, 300, 400)).astype(np.uint16)
    page = stack_html(ZStack(INFO, pixels, (0.0,) * 13))
    shown = pictures(page)
    assert len(shown) == 5 and max(shown[0].shape) == 220
    assert re.findall(r"z ([\d.]+) µm<", page) == ["0", "4.5", "9", "13.5", "18"]
    assert "13, z 0 to 18 µm" in page and "PREDICTED" not in page and page.count("MEASURED") == 5


def test_a_stack_of_one_plane_shows_it_once() -> None:
    info = StackInfo(INFO.key, (3.0,), (8, 8), 0.3)
    assert len(pictures(stack_html(ZStack(info, np.zeros((1, 8, 8), np.uint16), (0.0,))))) == 1


def test_a_prediction_is_badged_and_hatched_in_every_picture() -> None:
    page = prediction_html(prediction(("resampled from 0.65 µm",)))
    shown = pictures(page)
    assert len(shown) == 3
    np.testing.assert_allclose(shown[0].reshape(-1, 3).mean(axis=0), (0x56, 0xB4, 0xE9), atol=4)
    assert page.count(">PREDICTED<") == page.count("repeating-linear-gradient") == 3
    assert "nuclei (predicted)" in page and "axons (predicted)" in page and "MEASURED" not in page
    assert "never measured" in page and "resampled from 0.65" in page and "abababababab" in page


@pytest.mark.parametrize(
    "outcome, has",
    [
        (Refusal(INFO, "pixel size", "use 20x"), ("Refused", "pixel size", "use 20x")),
        (Unpredicted(INFO, "no engine", "/spool"), ("Not predicted", "no engine", "/spool")),
    ],
)
def test_a_stack_without_prediction_says_why(outcome: Refusal | Unpredicted, has: tuple[str, ...]) -> None:
    page = outcome_html(outcome)
    pictures(page)
    assert all(words in page for words in has)


def test_a_run_shows_its_chosen_fields_first_and_says_where_it_is() -> None:
    page = run_html(record(15), "/data/run <1>", "/data/run/report.html")
    assert len(pictures(page)) == 12
    assert page.index("1. chosen") < page.index("MEASURED", page.index("1. chosen"))
    for words in (
        "104 predicted",
        "13 refused",
        "34 ± 3.0 objects",
        "3 more fields",
        "mind this",
        "report.html",
    ):
        assert words in page


def test_a_session_lists_its_fields() -> None:
    page = session_html("s", [(INFO, "A1", True, "rank 1"), (None, "A2", False, "")])
    pictures(page)
    assert "★ A1" in page and "not imaged yet" in page
    assert "Nothing imaged yet" in session_html("s", [])


def test_names_are_never_markup() -> None:
    for page in (prediction_html(prediction()), run_html(record(), "f", "r"), session_html("<i>", [])):
        assert "<b>, " not in page and "<fields>" not in page and "<i>" not in page
        pictures(page)


def test_a_notebook_asks_the_things_themselves() -> None:
    one = prediction()
    stack = ZStack(INFO, np.zeros((13, 300, 400), np.uint16), (0.0,) * 13)
    for thing in (one, stack, Refusal(INFO, "why", "how"), Unpredicted(INFO, "why", "where")):
        assert "A1 &lt;b&gt;" in thing._repr_html_()
    assert "PREDICTED" in one._repr_html_()
