"""The napari window for real: layers, clicks, orders, badges. Needs napari and a display (Xvfb will do)."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from acq_isl.commands import Command, GoTo, Stop
from acq_isl.errors import AcqIslError
from acq_isl.events import (
    CurveChanged,
    Event,
    FieldFailed,
    FieldRanked,
    FieldsRanked,
    LabelStyle,
    PlannedField,
    Predicted,
    RunEnded,
    RunStarted,
    Seen,
    Step,
    TimePointBegan,
)
from acq_isl.rules.measurements import Measured
from acq_isl.rules.series import Curve, Point
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, StackRequest, StageTimes
from acq_isl.storage.prediction_store import PredictionStore
from acq_isl.view.feed import Feed
from acq_isl.view.feed.encode import MessageMaker
from acq_isl.view.feed.messages import Message
from acq_isl.view.feed.previews import preview_of
from acq_isl.view.feed.requests import Answer
from acq_isl.view.napari.window import check

SIDE, SIZE_UM = 256, 0.3
FOV = SIDE * SIZE_UM
DEADLINE_S = 30.0
Z_UM = tuple(1.5 * n for n in range(-6, 7))

HAS_NAPARI = importlib.util.find_spec("napari") is not None
HAS_DISPLAY = not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY"))
needs_window = pytest.mark.skipif(
    not (HAS_NAPARI and HAS_DISPLAY),
    reason="the window needs the extra [napari] and a display: run under xvfb-run"
    if HAS_NAPARI
    else "napari is not installed: pip install 'acq-isl[napari]'",
)

# napari 0.9 and npe2 0.10 define their models in pydantic's old ways when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


def request(number: int) -> StackRequest:
    return StackRequest(
        StackKey(0, f"A1_{number:03d}", "Phase"), number * FOV, 0.0, Z_UM, "Channel", "Phase", 10.0
    )


def info(number: int, channel: str = "Phase") -> StackInfo:
    one = request(number)
    return StackInfo(
        StackKey(0, one.key.position, channel), Z_UM, (SIDE, SIDE), SIZE_UM, one.x_um, one.y_um, 10.0
    )


def started(fields: int = 3) -> RunStarted:
    labels = (LabelStyle("nuclei", "#56B4E9"), LabelStyle("axons", "#E69F00"))
    planned = tuple(PlannedField.of(request(number)) for number in range(fields))
    return RunStarted("a run", "now", "here", "simulated", "demo", labels, planned, (FOV, FOV))


def seen(number: int, channel: str = "Phase", *, level: int = 3000) -> Seen:
    ramp = np.linspace(0, level, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint16)
    return preview_of(Slice(info(number, channel), 6, ramp, 0.0), channel == "Phase")


def predicted(number: int) -> Predicted:
    """A nucleus in the middle, no axons."""
    mean = np.zeros((2, SIDE, SIDE), np.float32)
    mean[0, 96:160, 96:160] = 1.0
    measured = (Measured("number of objects in nuclei (predicted)", 1.0, "objects", 0.1),)
    times = StageTimes(infer_ms=140.0)
    spread = np.zeros_like(mean)
    return Predicted.of(
        Prediction(info(number), ("nuclei", "axons"), mean, spread, "0" * 64, "demo", "cpu", times=times),
        measured,
        1.0,
    )


def ranked(*chosen: int, fields: int = 3) -> FieldsRanked:
    measured = Measured("number of objects in nuclei (predicted)", 34.0, "objects", 3.0)
    return FieldsRanked(
        tuple(
            FieldRanked(request(n).key, n + 1, n in chosen, measured, "because of its nuclei")
            for n in range(fields)
        )
    )


class Tape:
    """A source that plays events, and keeps the commands it is given."""

    def __init__(self) -> None:
        self._maker = MessageMaker("1" * 32)
        self._seq = 0
        self.messages: list[Message] = []
        self.commands: list[Command] = []
        self.alive = True

    def play(self, *events: Event) -> None:
        for event in events:
            self._seq += 1
            self.messages += self._maker.messages(event, self._seq)
        self._seq += 1
        self.messages.append(self._maker.status(0, self._seq))

    def take(self, limit: int | None = None) -> list[Message]:
        taken, self.messages = self.messages[:limit], self.messages[limit:] if limit else []
        return taken

    def send(self, command: Command, *, by: str = "operator") -> Answer:
        self.commands.append(command)
        return Answer(id=1, taken=True, text=f"taken from {by}")


class Window:
    """A viewer with a live view in it; Qt is given time until a condition holds."""

    def __init__(self) -> None:
        import napari
        from qtpy.QtWidgets import QApplication

        from acq_isl.view.napari.window import LiveView

        self.viewer = napari.Viewer(show=True)
        self.viewer.window.resize(1200, 800)
        self.live = LiveView(self.viewer)
        self.viewer.window.add_dock_widget(self.live.panel.widget, name="acq-isl", area="right")
        self.app = QApplication.instance()
        self.tape = Tape()
        self.raised: list[BaseException] = []

    def until(self, holds: Callable[[], object], what: str = "it did not happen") -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < deadline_s, what
            self.app.processEvents()
            if self.raised:
                raise self.raised[0]

    def play(self, *events: Event) -> None:
        self.live.follow(self.tape) if self.live._source is None else None
        self.tape.play(*events)
        self.until(lambda: not self.tape.messages)
        self.live.tick()

    def layer(self, name: str) -> Any:
        return self.viewer.layers[name]

    def words(self) -> str:
        """Everything the panel says."""
        from qtpy.QtWidgets import QLabel

        self.live._words_s = float("-inf")
        self.live._words_due = True
        self.live.tick()
        return "\n".join(one.text() for one in self.live.panel.widget.findChildren(QLabel))

    def button(self, text: str) -> Any:
        return next(one for one in buttons(self.live.panel.widget) if one.text().startswith(text))

    def close(self) -> None:
        self.live.close()
        self.viewer.close()
        self.app.processEvents()


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    opened = Window()
    # PyQt ends the process for an error inside a slot, unless somebody takes it; napari.run() does.
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: opened.raised.append(error))
    try:
        yield opened
    finally:
        opened.close()
    assert not opened.raised


@needs_window
def test_labels_of_several_models_are_layers_that_say_whose_they_are(window: Window) -> None:
    both = (LabelStyle("nuclei", "#56B4E9", "first"), LabelStyle("second/axons", "#E69F00"))
    window.play(replace(started(), labels=both, models=2))
    for label, model in (("nuclei", "first"), ("second/axons", "second")):
        mean = np.ones((1, SIDE, SIDE), np.float32)
        one = Prediction(info(0), (label,), mean, 0 * mean, "0" * 64, model, "cpu", model=model)
        window.play(Predicted.of(one, (), 1.0))
    names = [layer.name for layer in window.viewer.layers]
    assert names[2:4] == ["second/axons (predicted)", "nuclei (predicted), first"]  # the first on top
    window.until(lambda: window.layer(names[2]).data.max() == 255, "the first model's labels are gone")
    assert window.layer(names[3]).data.max() == 255


@needs_window
def test_each_kind_of_picture_is_a_layer_that_says_what_it_is(window: Window) -> None:
    window.play(started(), seen(0), predicted(0))
    names = [layer.name for layer in window.viewer.layers]
    assert names == [
        "map, labels (predicted)", "transmitted light", "axons (predicted)", "nuclei (predicted)",
        "doubt (predicted)", "fields", "place to go to",
    ]  # fmt: skip
    nuclei = window.layer("nuclei (predicted)")
    assert nuclei.blending == "translucent" and nuclei.metadata == {"acq-isl": "predicted, not measured"}
    np.testing.assert_allclose(nuclei.colormap.map(1.0).ravel()[:3] * 255, [0x56, 0xB4, 0xE9], atol=1)
    gray = window.layer("transmitted light").colormap.map(0.5).ravel()[:3]
    assert 0.2 < gray[0] == gray[1] == gray[2]
    assert {str(unit) for unit in nuclei.units} == {
        "micrometer"
    } and window.viewer.canvas.overlays.scale_bar.visible


@needs_window
def test_a_field_is_drawn_at_its_place_on_the_stage(window: Window) -> None:
    window.play(started(), seen(2), predicted(2))
    layer = window.layer("nuclei (predicted)")
    low, high = layer.extent.world
    np.testing.assert_allclose((low + high) / 2, (0.0, 2 * FOV), atol=0.01)
    assert layer.data[SIDE // 2, SIDE // 2] == 255


@needs_window
def test_the_label_shines_in_its_hue_on_the_screen(window: Window) -> None:
    window.play(started(1), seen(0), predicted(0))
    window.layer("transmitted light").visible = False
    picture = window.viewer.screenshot(canvas_only=True, flash=False)
    rows, columns = picture.shape[:2]
    red, green, blue = picture[rows // 2, columns // 2, :3].astype(int)
    assert (red, green, blue) == pytest.approx((0x56, 0xB4, 0xE9), abs=6)


@needs_window
def test_contrast_stays_as_the_user_has_set_it(window: Window) -> None:
    window.play(started(), seen(0), predicted(0))
    light = window.layer("transmitted light")
    assert light.contrast_limits[1] > 2900
    light.contrast_limits = (10, 1234)
    window.play(seen(1, level=9000), predicted(1))
    assert light.contrast_limits == [10, 1234]
    window.button("Automatic contrast").click()
    assert light.contrast_limits[1] > 2900


@needs_window
def test_the_map_shows_every_field_but_the_one_in_large_and_in_the_same_colours(window: Window) -> None:
    window.play(started(), seen(0), predicted(0), seen(1), predicted(1))
    map_ = window.layer("map, labels (predicted)").data
    columns = map_.shape[1] // 3
    middle = map_.shape[0] // 2
    assert not map_[:, columns : 2 * columns].any()
    assert map_[middle, columns // 2, 2] > 200
    window.layer("nuclei (predicted)").visible = False
    window.until(lambda: map_[middle, columns // 2, 2] < 200, "the map did not follow")


@needs_window
def test_the_picture_follows_the_run_but_not_the_users_zoom(window: Window) -> None:
    window.play(started(), seen(0), predicted(0))
    window.button("This field").click()
    zoom = window.viewer.scene.camera.zoom
    assert window.viewer.scene.camera.center[-1] == pytest.approx(0.0, abs=1)
    window.play(seen(2), predicted(2))
    assert window.viewer.scene.camera.center[-1] == pytest.approx(2 * FOV, abs=1)
    assert window.viewer.scene.camera.zoom == zoom
    window.live.click(0.0, 0.0)
    center = window.viewer.scene.camera.center
    window.play(seen(1), predicted(1))
    assert window.viewer.scene.camera.center == center


def on_canvas(window: Window, x_um: float, y_um: float) -> Any:
    """The canvas widget and the pixel of a place of the map."""
    from qtpy.QtCore import QPoint

    rows, columns = window.viewer.canvas.size
    camera = window.viewer.scene.camera
    x = (x_um - camera.center[-1]) * camera.zoom + columns / 2
    y = (y_um - camera.center[-2]) * camera.zoom + rows / 2
    widget = window.viewer.window._qt_viewer.canvas.native
    return widget, QPoint(round(x), round(y))


@needs_window
def test_a_click_shows_a_field_and_a_drag_does_not(window: Window) -> None:
    from qtpy.QtCore import QPoint, Qt
    from qtpy.QtTest import QTest

    window.play(started(), seen(0), predicted(0), seen(1), predicted(1))
    window.app.processEvents()
    widget, at = on_canvas(window, 10.0, -5.0)
    left = Qt.MouseButton.LeftButton
    QTest.mousePress(widget, left, pos=at)
    QTest.mouseMove(widget, at + QPoint(60, 0))
    QTest.mouseRelease(widget, left, pos=at + QPoint(60, 0))
    window.until(lambda: window.viewer.scene.camera.center[-1] != pytest.approx(FOV), "it was not dragged")
    window.app.processEvents()
    assert window.button("Follow the newest").isChecked()
    widget, at = on_canvas(window, 10.0, -5.0)
    QTest.mousePress(widget, left, pos=at)
    QTest.mouseRelease(widget, left, pos=at)
    words = window.words()
    assert "A1_000" in words and "1.0 ± 0.1 objects" in re.sub(r"1 ± ", "1.0 ± ", words)
    assert not window.button("Follow the newest").isChecked()
    place = re.search(r"Go to x (-?[\d.]+) um, y (-?[\d.]+) um \(in A1_000\)", words)
    assert place is not None
    assert [float(one) for one in place.groups()] == pytest.approx([10.0, -5.0], abs=1.0)
    window.button("Follow the newest").click()
    assert "A1_001" in window.words()


@needs_window
def test_go_there_and_stop_are_orders_to_the_run(window: Window) -> None:
    window.play(started(), seen(0), predicted(0))
    window.live.click(12.0, 3.0)
    window.words()
    window.button("Go there").click()
    window.until(lambda: window.tape.commands == [GoTo(x_um=12.0, y_um=3.0)])
    window.until(lambda: "taken from operator, napari" in window.words())
    window.button("Stop").click()
    window.app.processEvents()
    assert len(window.tape.commands) == 1
    window.button("Click again").click()
    window.until(lambda: window.tape.commands[1:] == [Stop()])
    assert window.button("Stop").isEnabled()


@needs_window
def test_nothing_can_be_ordered_of_a_run_that_is_over(window: Window) -> None:
    window.play(started(), seen(0), predicted(0), RunEnded("", "/somewhere/report.html"))
    assert "report: /somewhere/report.html" in window.words()
    assert not any(window.button(text).isEnabled() for text in ("Go there", "Pause", "Go on", "Stop"))


@needs_window
def test_a_run_that_does_not_answer_says_so_on_the_picture(window: Window) -> None:
    window.play(started(), seen(0), predicted(0), Step("overview", 1, 3, "imaged A1_000"))
    window.tape.alive = False
    window.words()
    assert "the run does not answer; last heard: overview 1 of 3" in window.viewer.canvas.overlays.text.text
    assert not window.button("Stop").isEnabled()


@needs_window
def test_fluorescence_is_a_layer_of_its_own_beside_the_prediction(window: Window) -> None:
    from qtpy.QtWidgets import QLabel

    window.play(started(), seen(0), predicted(0))
    window.viewer.layers.selection.active = window.layer("axons (predicted)")
    window.play(seen(0, "NFH"), seen(0, "DAPI"))
    dapi = window.layer("DAPI (measured)")
    assert not dapi.visible and dapi.data.max() == 3000 and "acq-isl" not in dapi.metadata
    assert window.viewer.layers.selection.active is window.layer("axons (predicted)")
    window.words()
    labels = window.live.panel.widget.findChildren(QLabel)
    pictures = [label.accessibleName() for label in labels if label.accessibleName()]
    assert pictures[-4:] == [
        "nuclei (predicted)", "axons (predicted)", "DAPI (measured)", "NFH (measured)"
    ]  # fmt: skip
    window.play(seen(1), predicted(1), seen(1, "NFH"))
    assert dapi.data.max() == 0


@needs_window
def test_frames_are_coloured_by_rank_and_the_chosen_ones_say_why(window: Window) -> None:
    window.play(started(), *(made(n) for n in range(3) for made in (seen, predicted)), ranked(1))
    fields = window.layer("fields")
    assert len(fields.data) == 3 and len({tuple(color) for color in fields.edge_color}) == 3
    words = [text.replace("\n", " ") for text in fields.features["words"]]
    assert words[:2] == ["", ""] and words[2].startswith("2. number of objects in nuclei (predicted): 34")
    chosen = fields.data[2]
    np.testing.assert_allclose((chosen.min(axis=0) + chosen.max(axis=0)) / 2, (0.0, FOV), atol=1e-6)
    assert fields.edge_width[2] > max(fields.edge_width[:2])


@needs_window
def test_a_saved_layer_a_screenshot_and_a_figure_keep_the_marks(window: Window, tmp_path: Path) -> None:
    window.play(started(1), seen(0), predicted(0))
    (saved,) = window.layer("axons (predicted)").save(str(tmp_path / "axons.tif"), plugin="napari")
    border = tifffile.imread(saved)[-1]
    assert set(np.unique(border)) == {0, border.max()} and border.max() > 100
    badge = np.array([0x7A, 0x4B, 0x00])
    for picture in (
        window.viewer.screenshot(canvas_only=True, flash=False),
        window.viewer.export_figure(flash=False),
    ):
        assert (np.abs(picture[..., :3].astype(int) - badge).max(axis=-1) < 12).mean() > 0.002


@needs_window
def test_a_badge_that_was_switched_off_comes_back(window: Window) -> None:
    window.play(started(), seen(0), predicted(0))
    window.viewer.canvas.overlays.text.visible = False
    window.words()
    assert window.viewer.canvas.overlays.text.visible
    assert window.viewer.canvas.overlays.text.text.startswith("PREDICTED, not measured: nuclei, axons")


@needs_window
def test_the_user_may_remove_any_layer(window: Window) -> None:
    window.play(started(), seen(0), predicted(0))
    for name in ("axons (predicted)", "fields", "map, labels (predicted)", "place to go to"):
        window.viewer.layers.remove(name)
    window.play(seen(1), predicted(1), seen(1, "DAPI"), ranked(0))
    window.live.click(0.0, 0.0)
    assert window.layer("nuclei (predicted)").data.any()


@needs_window
def test_the_next_run_takes_the_place_of_the_last_one(window: Window) -> None:
    window.play(started(), seen(0), predicted(0))
    window.live.follow(window.tape)
    window.play(started(2), seen(1), predicted(1))
    assert len(window.viewer.layers) == 7 and len(window.layer("fields").data) == 2


@needs_window
def test_a_window_waits_for_a_run_and_finds_one_that_is_in_its_middle(window: Window, tmp_path: Path) -> None:
    window.live.connect(str(tmp_path))
    assert "no run is going on" in window.words() and "waits for it" in window.words()
    folder = tmp_path / "run"
    folder.mkdir()
    with Feed(folder) as feed:
        for event in (started(), seen(0), predicted(0), seen(1), predicted(1), ranked(1)):
            feed.handle(event)
        window.until(lambda: len(window.viewer.layers) == 7, "the run was not found")
        window.until(lambda: "because of its nuclei" in window.words(), "what was missed was not asked for")
        window.until(lambda: window.button("Stop").isEnabled())
        window.button("Pause").click()
        window.until(lambda: "pause: after the stack" in window.words())
        window.until(feed.commands)
    window.until(lambda: "does not answer" in window.viewer.canvas.overlays.text.text)


@needs_window
def test_another_run_can_be_followed_while_one_goes_on(window: Window, tmp_path: Path) -> None:
    with Feed(tmp_path) as first:
        first.handle(started(2))
        window.live.connect(str(tmp_path))
        window.until(lambda: window.live._scene is not None and len(window.layer("fields").data) == 2)
        other = tmp_path / "other"
        other.mkdir()
        with Feed(other) as second:
            second.handle(started(5))
            window.live.connect(str(other))
            window.until(lambda: len(window.layer("fields").data) == 5, "it stayed with the first run")


@needs_window
def test_the_plug_in_opens_from_naparis_menu(window: Window, tmp_path: Path) -> None:
    from npe2 import PluginManager, PluginManifest
    from qtpy.QtWidgets import QLineEdit

    path = Path(__file__).resolve().parents[2] / "acq_isl" / "napari.yaml"
    manifest = PluginManifest.from_file(path)
    manifest.validate_imports()
    if "acq-isl" not in PluginManager.instance():  # else it was found as it is installed
        PluginManager.instance().register(manifest)
    (action,) = [one for one in actions(window.viewer.window.plugins_menu) if "acq-isl live" in one.text()]
    action.trigger()
    (title,) = [title for title in window.viewer.window.dock_widgets if "acq-isl live" in title]
    panel = window.viewer.window.dock_widgets[title]
    window.until(panel.isVisible)
    with Feed(tmp_path) as feed:
        feed.handle(started())
        panel.findChild(QLineEdit).setText(str(tmp_path))
        next(button for button in buttons(panel) if button.text() == "Follow run").click()
        window.until(
            lambda: "map, labels (predicted)" in window.viewer.layers, "this viewer does not show it"
        )
    action.trigger()
    window.until(lambda: not panel.isVisible(), "the menu did not hide it")


@needs_window
def test_a_run_folder_opens_as_any_file_does(window: Window, tmp_path: Path) -> None:
    from npe2 import PluginManager, PluginManifest

    info = StackInfo(StackKey(0, "p0", "Phase"), (0.0, 1.5), (SIDE, SIDE), 0.5, 100.0, 10.0)
    planes = np.ones((1, SIDE, SIDE), np.float32)
    with PredictionStore(tmp_path / "predictions.ome.zarr", {"nuclei": "#56B4E9"}) as store:
        store.put(Prediction(info, ("nuclei",), planes, planes, "0" * 64, "demo", "cpu"))
    path = Path(__file__).resolve().parents[2] / "acq_isl" / "napari.yaml"
    if "acq-isl" not in PluginManager.instance():
        PluginManager.instance().register(PluginManifest.from_file(path))
    picture, doubt = window.viewer.open(str(tmp_path), plugin="acq-isl")
    assert (picture.name, picture.visible) == ("nuclei (predicted) p0", True)
    assert (doubt.name, doubt.visible) == ("nuclei (predicted, doubt) p0", False)
    assert np.allclose(picture.translate, [10.0 - (SIDE - 1) / 4, 100.0 - (SIDE - 1) / 4])
    assert picture.colormap.name == "#56B4E9" and tuple(picture.contrast_limits) == (0.0, 1.0)
    assert picture.blending == "translucent"  # as while it ran: labels that add up are cream
    half = picture.colormap.map(0.5).ravel()
    np.testing.assert_allclose([*half[:3] * 255, half[3]], [0x56, 0xB4, 0xE9, 0.25], atol=1)


def actions(menu: Any) -> Iterator[Any]:
    """All actions of a menu and its submenus."""
    menu.aboutToShow.emit()  # napari fills some when they open
    for action in menu.actions():
        yield action
        if action.menu() is not None:
            yield from actions(action.menu())


def buttons(widget: Any) -> list[Any]:
    from qtpy.QtWidgets import QPushButton

    found: list[Any] = widget.findChildren(QPushButton)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only X and Wayland can be absent")
def test_without_a_display_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(AcqIslError, match=r"no display.*acq-isl run --web"):
        check()


def test_without_napari_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AcqIslError, match=r'napari and qtpy.*pip install "acq-isl\[napari\]"'):
        check()


@needs_window
@pytest.mark.parametrize(
    "platform, says",
    [("xcb", None), ("no-such-platform", "Qt cannot open a window"), ("minimal", "no OpenGL")],
)
def test_qt_is_tried_before_it_can_end_the_process(
    monkeypatch: pytest.MonkeyPatch, platform: str, says: str | None
) -> None:
    monkeypatch.setenv("QT_QPA_PLATFORM", platform)
    if says is None:
        check()
        return
    with pytest.raises(AcqIslError, match=says):
        check()


@needs_window
def test_a_time_lapse_is_drawn_over_time(window: Window) -> None:
    window.play(started(2), TimePointBegan(50, 50, 0.0, 0.0), Step("overview", 1, 2, "imaged"))
    points = tuple(Point(time, 60.0 * time, float(time), 1.0) for time in range(50))
    curve = Curve("field", "A1_000", "number of objects in nuclei (predicted)", "objects", points)
    window.play(CurveChanged.of(curve), FieldFailed(request(1).key, "skip this stack", "no reflection"))
    assert "time 50 of 50" in window.words()
    plots = window.live.panel.plots
    window.until(plots.widget.isVisible)
    (shown,) = plots._shown.values()
    picture = shown[1].pixmap().toImage()
    colors = {
        picture.pixel(x, y) for x in range(0, picture.width(), 3) for y in range(0, picture.height(), 3)
    }
    assert picture.width() > 200 and len(colors) > 3
