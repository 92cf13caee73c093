"""What a notebook shows of stacks, predictions and runs."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import acq_isl
from acq_isl.record import Counts, FieldRecord, RunRecord
from acq_isl.rules.measurements import Measured
from acq_isl.rules.rankings import Choice
from acq_isl.session.fields import Field
from acq_isl.session.runner import RunResult
from acq_isl.session.session import Session
from acq_isl.stack import Prediction, Refusal, StackInfo, StackKey, StackRequest, Unpredicted, ZStack
from acq_isl.view.notebook import outcome_html, prediction_html, register, run_html, session_html, stack_html

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
        Counts(117, 117, 104, 13), warnings=("mind this",),
    )  # fmt: skip


def result(fields: int = 2) -> RunResult:
    return RunResult(Path("/data/run <1>"), Path("/data/run/report.html"), record(fields))


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
    page = run_html(result(15))
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


def session(*fields: Field) -> SimpleNamespace:
    return SimpleNamespace(name="<i>", fields={field.request.key: field for field in fields})


def test_a_session_lists_its_fields() -> None:
    key = StackKey(0, "A2", "Phase")
    chosen = Choice(INFO.key, 1, True, None, "rank 1")
    request = StackRequest(INFO.key, 12.0, -7.0, INFO.z_um, "Channel", "Phase", 10.0)
    known = Field(request, answers={"": prediction()}, choice=chosen)
    page = session_html(session(known, Field(replace(request, key=key))))
    pictures(page)
    assert "★ A1" in page and "x 12, y -7 µm" in page and "rank 1" in page and "not imaged yet" in page
    assert "Nothing imaged yet" in session_html(session())


def test_names_are_never_markup() -> None:
    for page in (prediction_html(prediction()), run_html(result()), session_html(session())):
        assert "<b>, " not in page and "<fields>" not in page and "<i>" not in page
        pictures(page)


class FakeFormatter:
    """Finds the function of an object as IPython's formatters do: by module and name of its class."""

    def __init__(self) -> None:
        self._functions: dict[tuple[str, str], Callable[[Any], str]] = {}

    def for_type_by_name(self, module: str, name: str, function: Callable[[Any], str]) -> None:
        self._functions[module, name] = function

    def __call__(self, shown: object) -> str | None:
        function = self._functions.get((type(shown).__module__, type(shown).__name__))
        return None if function is None else function(shown)


class FakeShell:
    """An IPython shell as far as formatters go."""

    def __init__(self) -> None:
        self.html = FakeFormatter()
        self.display_formatter = SimpleNamespace(formatters={"text/html": self.html})


def real_formatter() -> Callable[[object], str | None]:
    formatters = pytest.importorskip("IPython.core.formatters", reason="pip install ipython")
    formatter = formatters.DisplayFormatter()
    register(SimpleNamespace(display_formatter=formatter))
    found: Callable[[object], str | None] = formatter.formatters["text/html"]
    return found


def fake_formatter() -> Callable[[object], str | None]:
    shell = FakeShell()
    register(shell)
    return shell.html


@pytest.mark.parametrize("formatter", [fake_formatter, real_formatter])
def test_a_notebook_shows_what_this_program_makes(
    formatter: Callable[[], Callable[[object], str | None]],
) -> None:
    shows = formatter()
    stack = ZStack(INFO, np.zeros((13, 300, 400), np.uint16), (0.0,) * 13)
    outcomes = (prediction(), Refusal(INFO, "why", "how"), Unpredicted(INFO, "why", "where"))
    for shown in (stack, *outcomes):
        assert "A1 &lt;b&gt;" in (shows(shown) or "")
    assert "PREDICTED" in (shows(outcomes[0]) or "") and "Run: best" in (shows(result()) or "")
    assert shows(INFO) is None
    # The class, not an open session, which needs instruments; its fields are what is shown.
    opened = object.__new__(Session)
    opened.name, opened.fields = "a session", {}
    assert "Session: a session" in (shows(opened) or "")


@pytest.mark.parametrize("running", [True, False])
def test_a_notebook_that_imports_the_package_needs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    shell = FakeShell()
    fake = SimpleNamespace(get_ipython=lambda: shell if running else None)
    monkeypatch.setitem(sys.modules, "IPython", fake)  # type: ignore[arg-type]
    acq_isl._load_into_notebook()
    assert (shell.html(prediction()) is not None) == running


def test_the_extension_can_be_loaded_by_hand() -> None:
    shell = FakeShell()
    acq_isl.load_ipython_extension(shell)
    assert "PREDICTED" in (shell.html(prediction()) or "")
