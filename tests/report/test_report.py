from __future__ import annotations

import base64
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.errors import StorageError
from acq_isl.processing import display as pictures
from acq_isl.processing.statistics import Amplitude
from acq_isl.record import Comparison, Counts, FieldRecord, Measured, RunRecord, StageLatency
from acq_isl.report.report import duration, headline, render, weigh, write_report
from acq_isl.rules.series import Curve, CurveBook, Point
from acq_isl.scorecard import (
    ChoiceScore,
    HeldAgainstStain,
    LabelScore,
    LightScore,
    Scorecard,
    Spread,
    TrustFacts,
    trust_sentences,
)
from acq_isl.stack import Outcome, Prediction, Refusal, StackInfo, StackKey, Unpredicted

SIDE = 64


def info(number: int, *, time: int = 0, apart_um: float = 20.0) -> StackInfo:
    key = StackKey(time, f"A1_{number:03d}", "Phase")
    x, y = number % 3 * apart_um, number // 3 * apart_um
    return StackInfo(key, (0.0, 1.5, 3.0), (SIDE, SIDE), 0.3, x, y, 10.0, "phase contrast", "dark")


def predicted(number: int, **where: Any) -> Prediction:
    rng = np.random.default_rng(number)
    planes = rng.random((2, SIDE, SIDE), np.float32)
    return Prediction(
        info(number, **where), ("nuclei", "dendrites"), planes, planes, "ab" * 32, "demo", "cpu"
    )


def field(outcome: Outcome, rank: int | None = None, chosen: bool = False) -> FieldRecord:
    measured = Measured("n", 12.0, "objects", 1.5) if rank else None
    thumbnail = np.full((32, 32), 120, np.uint8)
    return FieldRecord(outcome.info, thumbnail, outcome, measured, rank, chosen, "Chosen: most nuclei.")


def record(**changes: Any) -> RunRecord:
    """Six fields: two chosen and compared, two more predicted, one refused, one waiting."""
    first, second = predicted(0), predicted(1)
    outcomes = (
        field(first, 1, True),
        field(second, 2, True),
        field(predicted(2), 3),
        field(predicted(3), 4),
        field(Refusal(info(4), "pixels are 2 um", "use the 20x objective")),
        field(Unpredicted(info(5), "no engine answered", "spool/5")),
    )
    stain = np.random.default_rng(9).integers(0, 4000, (SIDE, SIDE)).astype(np.uint16)
    comparisons = tuple(
        Comparison(one.info, "nuclei", "DAPI", one.label("nuclei"), stain, score, floor=0.41, ceiling=0.91)
        for one, score in ((first, 0.81), (second, 0.62))
    )
    complete = RunRecord(
        name="Neurons on Tuesday",
        started="2026-11-22T18:20:11+01:00",
        duration_s=96.4,
        scope="simulated microscope",
        model="demo 1 (abababababab)",
        model_colors={"nuclei": "#56B4E9", "dendrites": "#E69F00"},
        engine="onnxruntime cpu fp32",
        fields=outcomes,
        comparisons=comparisons,
        decisions=(
            {"kind": "dose", "position": "A1_000", "channel": "DAPI", "exposure_ms": 50.0},
            {"kind": "dose", "position": "A1_000", "channel": "DAPI", "exposure_ms": 25.0},
            {
                "kind": "decision",
                "time": "2026-11-22T17:21:02.123+00:00",
                "key": {"time": 0, "position": "A1_001", "channel": "Phase"},
                "rule": "bright",
                "what": "image this field in DAPI (50 ms)",
                "why": "many nuclei",
                "done": "done",
                "sha256": "feed" * 16,
            },
        ),
        counts=Counts(20, 20, 12, 3, 3, 2, 0),
        latencies=(StageLatency("expose", 100.0, 120.0), StageLatency("infer", 400.0, 1500.0)),
        versions={"acq-isl": "0.1.0"},
        files={"measured data": "measured/run 1", "predictions": "predictions.ome.zarr"},
        warnings=("pixel size was resampled",),
        experiment_yaml="name: Neurons on Tuesday\n",
    )
    return replace(complete, **changes)


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would fetch, run, and show."""

    VOID = frozenset({"meta", "img", "input", "br", "rect", "image", "path", "circle", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data

    def addresses(self) -> list[str]:
        return [v or "" for _, attrs in self.tags for k, v in attrs.items() if k in {"src", "href"}]


NOTHING: dict[str, Any] = {
    "fields": (),
    "comparisons": (),
    "decisions": (),
    "latencies": (),
    "counts": Counts(),
    "model": "",
    "engine": "",
    "files": {},
    "versions": {},
    "warnings": (),
    "experiment_yaml": "",
    "model_colors": {},
}
ALL_REFUSED: dict[str, Any] = {
    **NOTHING,
    "fields": tuple(field(Refusal(info(n), "pixels are 2 um", "use the 20x objective")) for n in range(6)),
    "counts": Counts(18, 18, 0, 18, 0, 0, 0),
}
RUNS = {
    "complete": {},
    "nothing": NOTHING,
    "all refused": ALL_REFUSED,
    "no score": {"comparisons": ()},
    "one field": {"fields": (field(predicted(0), 1, True),), "comparisons": ()},
    "wells far apart": {"fields": tuple(field(predicted(n, apart_um=9000.0), n + 1) for n in range(6))},
    "time series": {"fields": tuple(field(predicted(n, time=t), n + 1) for t in range(2) for n in range(3))},
    "constant stain": {"comparisons": (replace(record().comparisons[0], pearson=float("nan")),)},
    "no latency": {"latencies": (StageLatency("infer", 0.0, 0.0), StageLatency("wait", float("nan"), 1.0))},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_kind_of_run_makes_a_page_that_is_whole_and_fetches_nothing(name: str) -> None:
    html = render(record(**RUNS[name]))
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"}
    for address in page.addresses():
        assert address.startswith(("data:image/jpeg;base64,", "data:image/webp;base64,")) or address in {
            "measured/run%201",
            "predictions.ome.zarr",
        }
    assert "http" not in html.replace("http-equiv", "")
    assert "nan" not in re.sub(r'data:[^"]*', "", html).lower().split()


def test_pictures_inside_the_page_are_pictures() -> None:
    found = [a for a in Page(render(record())).addresses() if a.startswith("data:")]
    assert len(found) >= 6 + 4 * 2 + 2 * 3  # the map with its layers, and the chosen fields
    starts = {base64.b64decode(address.partition(",")[2])[:4] for address in found}
    assert starts <= {b"\xff\xd8\xff\xe0", b"RIFF"} and len(starts) == 2, "JPEG, and WebP where it is clear"


EVIL = "<script>alert(1)</script>\"'&"


def test_whatever_people_write_is_shown_as_text() -> None:
    refusal = Refusal(replace(info(0), key=StackKey(0, EVIL, EVIL)), EVIL, EVIL)
    strange = record(
        name=EVIL,
        scope=EVIL,
        model=EVIL,
        engine=EVIL,
        fields=(field(refusal), replace(field(predicted(1), 1, True), reason=EVIL)),
        comparisons=(replace(record().comparisons[1], channel=EVIL, label=EVIL),),
        decisions=({"kind": "decision", "what": EVIL, "why": EVIL, "rule": EVIL, "key": {"position": EVIL}},),
        versions={EVIL: EVIL},
        files={EVIL: "javascript:alert(1)"},
        warnings=(EVIL,),
        experiment_yaml=EVIL,
        model_colors={"nuclei": "red;} body {display: none"},
    )
    html = render(strange)
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(EVIL) >= 10
    assert "javascript%3Aalert" in html
    assert not [address for address in page.addresses() if address.startswith("javascript:")]
    assert "display: none" not in html.partition("</style>")[2]


def test_a_prediction_cannot_be_mistaken_for_a_measurement() -> None:
    """Every picture that holds a prediction lies in a hatched frame and below a badge; and is named so."""
    html = render(record())
    assert "PREDICTED \N{EN DASH} not measured" in html
    for figure in re.findall(r"<figure.*?</figure>", html, re.S):
        shows = "predicted" in re.sub(r'class="[^"]*"', "", figure).lower()
        assert ('<figure class="predicted">' in figure) is shows
        assert ("PREDICTED" in figure) is shows
    assert "border-image: repeating-linear-gradient" in html


def test_labels_can_be_switched_off_without_script() -> None:
    html = render(record())
    for number, label in enumerate(("nuclei", "dendrites")):
        assert f"{label} (predicted)</label>" in html
        assert f"body:has(#show{number}:not(:checked)) .l{number}" in html


@pytest.mark.parametrize(
    "changes, text",
    [
        (
            {},
            "6 fields were imaged without stain. A model predicted nuclei and dendrites in 4 of them."
            " 2 fields were chosen by what it predicted. They were then imaged in fluorescence:"
            " prediction and stain agree with r = 0.62 to 0.81 for nuclei (contrast alone 0.41).",
        ),
        (NOTHING, "No field was imaged."),
        (ALL_REFUSED, "6 fields were imaged without stain. No labels were predicted: pixels are 2 um."),
        (
            {"fields": (field(predicted(0)),), "comparisons": ()},
            "1 field was imaged without stain. A model predicted nuclei and dendrites in it.",
        ),
        (
            NOTHING | {"shortfall": "no field was predicted; the experiment requires all of them (require)"},
            "No field was predicted; the experiment requires all of them (require). No field was imaged.",
        ),
    ],
)
def test_the_headline_tells_a_microscopist(changes: dict[str, Any], text: str) -> None:
    assert headline(record(**changes)) == text


def test_lost_slices_are_shouted() -> None:
    assert 'role="alert"' not in render(record())
    html = render(record(counts=Counts(20, 20, 9, 3, 3, 2, 3)))
    assert '<div class="alert bad" role="alert"><strong>3 slices were lost' in html
    assert '<div class="bad"><dt>lost</dt><dd class="number">3' in html


def test_counts_that_do_not_add_up_are_shouted() -> None:
    assert "18 slices captured, 20 accounted for" in render(record(counts=Counts(20, 18, 12, 3, 3, 2, 0)))


@pytest.mark.parametrize(
    "text",
    [
        "refused: pixels are 2 um",
        "use the 20x objective",
        "not predicted: no engine answered",
        "pixel size was resampled",
        "image this field in DAPI (50 ms)",
        "r = 0.81",
        "the prediction goes 80% of the way between them",
        "name: Neurons on Tuesday",
        "75 ms",
        "feed" * 16,
        "1.50 s",
        "12 ± 1.5 objects",
        "5 µm",
        "predictions.ome.zarr",
    ],
)
def test_what_the_page_says(text: str) -> None:
    assert text in Page(render(record())).text


def test_equal_reasons_are_said_once() -> None:
    text = Page(render(record(**ALL_REFUSED))).text
    assert text.count("refused: pixels are 2 um") == 1
    assert "A1_000, A1_001" in text


def test_large_runs_stay_small() -> None:
    """400 fields of noise, which compresses worst, 60 of them chosen."""
    fields = tuple(field(predicted(n), n + 1, n < 60) for n in range(400))
    assert len(render(record(fields=fields, comparisons=()))) < 8e6


def test_large_pictures_are_reduced() -> None:
    big = np.random.default_rng(1).random((2048, 2048), np.float32)
    where = replace(info(0), shape=(2048, 2048))
    outcome = Prediction(where, ("nuclei",), big[None], big[None], "", "m", "e")
    shown = field(outcome, 1, True)
    compared = Comparison(where, "nuclei", "DAPI", big, (big * 4000).astype(np.uint16), 1.0)
    assert len(render(record(fields=(shown,), comparisons=(compared,)))) < 5e6


def test_the_file_is_written_in_one_move(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")
    write_report(target, record())
    assert target.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(tmp_path / "missing" / "report.html", record())


@pytest.mark.parametrize(
    "pearson, floor, ceiling, text",
    [
        (0.65, 0.40, 0.90, "goes 50% of the way between"),
        (0.65, 0.64, 0.90, "shows no more than contrast does"),
        (0.65, 0.75, 0.90, "shows no more than contrast does"),
        (0.95, 0.40, 0.90, "goes 100% of the way between"),
        (0.65, 0.60, 0.66, "too close together to judge"),
        (0.65, math.nan, 0.90, "It was not weighed"),
        (math.nan, 0.40, 0.90, "No score"),
    ],
)
def test_a_score_is_weighed_between_floor_and_ceiling(
    pearson: float, floor: float, ceiling: float, text: str
) -> None:
    (first, _) = record().comparisons
    assert text in weigh(replace(first, pearson=pearson, floor=floor, ceiling=ceiling))


@pytest.mark.parametrize(
    "amplitude, text",
    [
        (Amplitude(1.1, 0.9), "about right"),
        (Amplitude(1.9, 0.45), "0.45 of the stain's, and where it rises by 1 the stain rises by 1.90: too"),
        (Amplitude(0.6, 1.6), "too bright"),
        (Amplitude(0.6, 1.0), "often not the stain's"),
        (Amplitude(1.5, math.nan), "too pale"),
    ],
)
def test_a_score_says_whether_the_prediction_is_as_bright_as_the_stain(
    amplitude: Amplitude, text: str
) -> None:
    (first, _) = record().comparisons
    good = replace(first, pearson=0.9, floor=0.4, ceiling=0.9)
    assert text in weigh(replace(good, amplitude=amplitude))
    assert "brightness" not in weigh(good)  # nothing is known of it


def test_what_is_missing_comes_first() -> None:
    html = render(record(shortfall="only 4 of 6 fields were predicted; the experiment requires all of them"))
    assert (
        '<div class="alert bad" role="alert"><strong>Not everything was predicted</strong>only 4 of 6' in html
    )
    text = Page(html).text
    assert text.index("Only 4 of 6 fields") < text.index("6 fields were imaged without stain")


def test_the_response_is_told_by_one_clock() -> None:
    text = Page(render(record(response=StageLatency("response", 2600.0, 5200.0)))).text
    assert "a field's decision comes 2.60 s (p50), or 5.20 s (p95), after its last slice." in text
    assert "By one clock" not in Page(render(record())).text


def test_a_restart_of_the_engine_is_among_the_decisions() -> None:
    line = {"kind": "engine", "rule": "engine", "what": "start the engine again, 1 of 3"}
    line |= {"why": "its process ended with code -9", "done": "done: it serves after 2.1 s"}
    text = Page(render(record(decisions=(line,)))).text
    assert "start the engine again, 1 of 3" in text and "it serves after 2.1 s" in text


@pytest.mark.parametrize(
    "ms, text", [(0.04, "0.0 ms"), (9.94, "9.9 ms"), (9.96, "10 ms"), (999, "999 ms"), (1500, "1.50 s")]
)
def test_times_are_for_people(ms: float, text: str) -> None:
    assert duration(ms) == text


@given(st.floats(1e-3, 1e7))
def test_a_scale_bar_is_round_and_fits(width_um: float) -> None:
    bar = pictures.scale_bar(width_um)
    assert 0.1 <= bar.share <= 0.301
    assert f"{bar.um:e}"[0] in "125"


@pytest.mark.parametrize("width_um", [0.0, -1.0, float("nan"), float("inf")])
def test_without_a_pixel_size_there_is_no_scale_bar(width_um: float) -> None:
    assert pictures.scale_bar(width_um).share == 0


def test_neighbours_lie_as_on_the_stage() -> None:
    placed = pictures.layout([info(n) for n in range(6)])
    assert placed.to_scale
    first, right, below = placed.boxes[0], placed.boxes[1], placed.boxes[3]
    assert (right.x - first.x, below.y - first.y) == pytest.approx((20.0, 20.0))
    assert placed.around.width == pytest.approx(2 * 20 + SIDE * 0.3)


@pytest.mark.parametrize("fields", [[info(n, apart_um=9000.0) for n in range(6)], [info(0), info(0)]])
def test_wells_far_apart_and_equal_places_are_set_in_rows(fields: list[StackInfo]) -> None:
    placed = pictures.layout(fields)
    assert not placed.to_scale
    corners = {(box.x, box.y) for box in placed.boxes}
    assert len(corners) == len(fields)
    assert placed.around.width < 100


@given(st.lists(st.tuples(st.floats(-1e5, 1e5), st.floats(-1e5, 1e5)), min_size=1, max_size=8))
def test_every_field_lies_inside_the_map(places: list[tuple[float, float]]) -> None:
    placed = pictures.layout([replace(info(0), x_um=x, y_um=y) for x, y in places])
    around = placed.around
    for box in placed.boxes:
        assert around.x <= box.x
        assert box.x + box.width <= around.x + around.width + 1e-6
        assert around.y <= box.y
        assert box.y + box.height <= around.y + around.height + 1e-6


def test_reducing_keeps_the_mean_and_never_enlarges() -> None:
    image = np.arange(64 * 32, dtype=np.uint16).reshape(64, 32)
    small = pictures.reduced(image, 16)
    assert small.shape == (16, 8)
    assert small.mean() == pytest.approx(image.mean())
    assert pictures.reduced(image, 500).shape == (64, 32)


def test_agreement_is_white_and_disagreement_coloured() -> None:
    picture = pictures.overlaid(np.array([[255, 255, 0]], np.uint8), np.array([[255, 0, 255]], np.uint8))
    assert picture[0].tolist() == [[255, 255, 255], [255, 0, 255], [0, 255, 0]]


def test_a_simulated_run_shows_its_scorecard() -> None:
    nothing = Spread(float("nan"), float("nan"))
    light = LightScore({"Phase": 40.0}, {"DAPI": 50.0}, 150.0, 9.0)
    labels = (LabelScore("nuclei", 0.71, 0.52, 12, 10, 3), LabelScore("axons", 0.4, float("nan"), 0, 0, 3))
    choice = ChoiceScore("number of nuclei", 2, 1, 6, (("A1_001", 4),), ("A1_003",))
    card = Scorecard(labels, choice, (), None, light, nothing, nothing, nothing, nothing, ("<The rest.>",))
    html = render(record(scorecard=card))
    assert Page(html).open == []
    text = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "Scorecard: held against the truth" in text
    assert "1 of the 2 chosen fields are truly among the best 2 of 6" in text and "&lt;The rest.&gt;" in text
    assert "nuclei 0.71 0.52 3" in text and "axons 0.40 - 3" in text
    assert "Scorecard" not in Page(render(record())).text


def test_a_comparison_says_how_many_objects_agree() -> None:
    first = replace(record().comparisons[0], f1=0.5, found=3, true=1)
    text = Page(render(record(comparisons=(first,)))).text
    assert "F1 = 0.50 (cut from both pictures alike: 3 in the prediction, 1 in the stain)." in text
    assert "F1 = " not in Page(render(record())).text


# --- over time, and how far to trust it -------------------------------------------------------------


def over_time(times: int) -> tuple[Curve, ...]:
    book = CurveBook()
    for time in range(times):
        for position in ("A1_0", "A1_1"):
            value = math.nan if time == 3 else 5.0 + time
            book.add(position, "area <of> nuclei", "fraction", Point(time, 60.0 * time, value, 0.5))
    return book.curves()


def test_measurements_over_time_are_drawn_and_can_be_saved() -> None:
    html = render(record(curves=over_time(50)))
    text = Page(html).text
    assert "Over time" in text and "% of the area" in text and "cross: no value" in text
    saved = r'download="area &lt;of&gt; nuclei.svg" href="data:image/svg\+xml;base64,([^"]*)"'
    (found,) = re.findall(saved, html)
    drawn = ElementTree.fromstring(base64.b64decode(found))
    assert drawn.tag.endswith("svg") and len(list(drawn.iter())) > 10


def test_one_time_point_is_no_curve() -> None:
    assert "Over time" not in Page(render(record(curves=over_time(1)))).text


HELD = HeldAgainstStain("nuclei", 2, 0.5, 0.7, 0.3)


@pytest.mark.parametrize(
    "facts, says",
    [
        ({"predicted": 0}, "nothing to trust"),
        ({}, "held against a stain in this run: it is not known"),
        ({"stained": (HELD,)}, "nuclei r = 0.50 to 0.70 in 2 fields (contrast alone 0.30)"),
        ({"stained": (replace(HELD, floor=math.nan),), "chosen": 1}, "no fair sample"),
        ({"stained": (replace(HELD, amplitude=Amplitude(2.0, 0.4)),)}, ", bright end 0.40 of the stain's"),
        ({"refused": 3}, "3 of 9 fields were refused"),
        ({"warned": 2}, "2 predictions came with a reason"),
    ],
)
def test_how_far_it_can_be_trusted_is_said_in_sentences(facts: dict[str, Any], says: str) -> None:
    plain = TrustFacts(fields=9, predicted=6, refused=0, chosen=0, stained=(), warned=0, scorecard=None)
    assert says in " ".join(trust_sentences(replace(plain, **facts)))


def test_the_box_stands_before_everything_else() -> None:
    text = render(record())
    assert text.index("How far can I trust this?") < text.index("Overview")


def test_time_points_have_names_from_one_on() -> None:
    later = field(predicted(0, time=2), rank=1, chosen=True)
    assert "A1_000, time 3, x" in Page(render(record(fields=(later,)))).text


def test_all_labels_stand_beside_all_stains() -> None:
    made = predicted(0)
    shape, measured = made.info.shape, np.arange(made.info.shape[0] * made.info.shape[1], dtype=np.uint16)
    pairs = tuple(
        Comparison(made.info, label, stain, made.label(label), measured.reshape(shape), 0.5)
        for label, stain in zip(made.labels, ("DAPI", "MAP2"), strict=True)
    )
    text = render(record(fields=(field(made, rank=1, chosen=True),), comparisons=pairs))
    assert "measured stains of the same" in text and text.count('class="pair"') == 1
