"""The web page for real: its server in its own process, browsers that are programs, and Chromium."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from acq_isl import events
from acq_isl.commands import Command, GoTo, Pause, Resume, Stop
from acq_isl.errors import ExperimentError
from acq_isl.events import Event, FieldRanked, LabelStyle, PlannedField, Predicted, Progress, RunStarted
from acq_isl.record import Counts, StageLatency
from acq_isl.rules.series import CurveBook, Point
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, StackRequest, StageTimes
from acq_isl.view.feed import Feed
from acq_isl.view.feed.encode import MessageMaker
from acq_isl.view.feed.previews import preview_of
from acq_isl.view.web.clients import packet
from acq_isl.view.web.server import Announcement, PageProcess, PageSettings

pytest.importorskip("uvicorn", reason="the extra [web] is not installed")
pytest.importorskip("starlette", reason="the extra [web] is not installed")
client = pytest.importorskip("websockets.sync.client", reason="the extra [web] is not installed")
closed = pytest.importorskip("websockets.exceptions", reason="the extra [web] is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIMIT_S = 20.0
SIDE = 96


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline_s = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        time.sleep(0.01)
    return found


class LiveRun:
    """A run one can play by hand, on the real feed."""

    def __init__(self, feed: Feed, folder: Path) -> None:
        self.feed, self.folder = feed, folder
        self.requests = tuple(
            StackRequest(
                StackKey(0, f"p{n}", "Phase"),
                30.0 * (n % 2),
                30.0 * (n // 2),
                (0.0, 1.5, 3.0),
                "Channel",
                "Phase",
                10,
            )
            for n in range(4)
        )
        planned = tuple(PlannedField.of(request) for request in self.requests)
        labels = (LabelStyle("nuclei", "#56b4e9"), LabelStyle("dendrites", "#e69f00"))
        self.started = RunStarted(
            "a run by hand", "now", str(folder), "hand", "m", labels, planned, (28.8, 28.8)
        )
        self.given: list[Command] = []

    def play(self, *happened: Event) -> None:
        for event in happened:
            self.feed.handle(event)

    def info(self, n: int) -> StackInfo:
        one = self.requests[n]
        return StackInfo(one.key, one.z_um, (SIDE, SIDE), 0.3, one.x_um, one.y_um)

    def image(self, n: int) -> None:
        y, x = np.mgrid[:SIDE, :SIDE]
        pixels = (1000 + 400 * np.sin(x / (4 + n)) * np.cos(y / 7)).astype(np.uint16)
        self.play(
            preview_of(Slice(self.info(n), 1, pixels, 0.0), predict=True),
            events.FieldImaged(self.requests[n]),
        )

    def predict(self, n: int) -> None:
        mean = np.zeros((2, SIDE, SIDE), np.float32)
        mean[0, 20:40, 20:40] = 1.0
        mean[1, 50:70, 10:90] = 0.8
        one = Prediction(
            self.info(n),
            ("nuclei", "dendrites"),
            mean,
            mean * 0.1,
            "0",
            "m",
            "e",
            times=StageTimes(1, 2, 3, 4, 5),
        )
        self.play(Predicted.of(one, (), 1.0))

    def play_overview(self, fields: int = 4) -> None:
        self.play(self.started)
        for n in range(fields):
            self.image(n)
            self.predict(n)
        latencies = tuple(StageLatency(s, 10.0, 20.0) for s in ("expose", "transfer", "infer"))
        counts = Counts(requested=12, captured=12, predicted=12)
        self.play(
            events.Step("overview", fields, 4, "imaged"),
            Progress(counts, 0, latencies, "ready, e", 5.0),
        )

    def rank(self) -> None:
        ranked = (
            FieldRanked(one.key, n + 1, n < 2, None, f"Chosen: because of {n}")
            for n, one in enumerate(self.requests)
        )
        self.play(events.FieldsRanked(tuple(ranked)))

    def received(self, *wanted: Command) -> None:
        def look() -> bool:
            self.given += self.feed.commands()
            return tuple(self.given) == wanted

        until(look, f"the commands {wanted}")


@pytest.fixture()
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with Feed(tmp_path) as feed:
        yield LiveRun(feed, tmp_path)


@contextmanager
def served(run: LiveRun, settings: PageSettings | None = None) -> Iterator[Announcement]:
    found: list[Announcement | str] = []
    with PageProcess(settings or PageSettings(port=free_port()), found.append) as process:
        process.handle(run.started)
        where = until(lambda: found, "the page")[0]
        assert isinstance(where, Announcement), where
        yield where


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def get(where: str, path: str = "/", **headers: str) -> tuple[int, dict[str, str], str]:
    with closing(http.client.HTTPConnection(urlsplit(where).netloc, timeout=LIMIT_S)) as one:
        one.request("GET", path, headers=headers)
        answer = one.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()


class Visitor:
    """A browser that is a program: says hello, and confirms frames only if told to."""

    def __init__(self, where: str, token: str = "", origin: str | None = None) -> None:
        address = urlsplit(where)
        self._connecting = client.connect(
            f"ws://{address.netloc}/feed", origin=origin, open_timeout=LIMIT_S, compression=None, proxy=None
        )
        self._token = token or address.fragment[6:]
        self.frames: list[dict[str, Any]] = []

    def __enter__(self) -> Visitor:
        self.socket = self._connecting.__enter__()
        self.socket.send(json.dumps({"type": "HELLO", "token": self._token}))
        self.role = json.loads(self.socket.recv(timeout=LIMIT_S))["role"]
        return self

    def __exit__(self, *_: object) -> None:
        self._connecting.__exit__(None, None, None)

    def read(self, timeout_s: float = LIMIT_S) -> dict[str, Any]:
        """The next frame's header, or an answer."""
        data = self.socket.recv(timeout=timeout_s)
        if isinstance(data, str):
            return dict(json.loads(data))
        (length,) = struct.unpack("<I", data[:4])
        header = dict(json.loads(data[4 : 4 + length]))
        assert len(data) == 4 + length + sum(header["jpegs"])
        self.frames.append(header)
        return header

    def confirm(self) -> None:
        self.socket.send(json.dumps({"type": "SEEN", "frames": len(self.frames)}))

    def read_until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            header = self.read()
            self.confirm()
            if wanted(header):
                return header
        raise AssertionError("not in time")

    def send(self, command: Command) -> dict[str, Any]:
        self.socket.send(json.dumps({"type": "ORDER", "id": 7, "order": command.model_dump()}))
        return self.read_until(lambda header: header.get("type") == "ANSWER")


def of_kind(kind: str) -> Callable[[dict[str, Any]], bool]:
    return lambda header: header.get("event", {}).get("kind") == kind


# --- the server ------------------------------------------------------------------------------------


def test_a_packet_carries_its_pictures_as_jpeg() -> None:
    mean = np.zeros((1, 16, 16), np.float32)
    info = StackInfo(StackKey(0, "p", "Phase"), (0.0,), (16, 16), 0.3)
    event = Predicted.of(Prediction(info, ("nuclei",), mean, mean, "0", "m", "e"), (), 0.0)
    (message,) = MessageMaker("0" * 32).messages(event, 1)
    one = packet(message)
    (length,) = struct.unpack("<I", one.frame[:4])
    header = json.loads(one.frame[4 : 4 + length])
    assert header["event"]["kind"] == "predicted" and len(header["jpegs"]) == 2
    assert one.frame[4 + length :].startswith(b"\xff\xd8") and one.nbytes == sum(header["jpegs"])


def test_the_page_is_complete_and_guarded(run: LiveRun) -> None:
    with served(run) as where:
        status, headers, text = get(where.read)
        assert (
            status == 200 and "acq-isl live" in text and "http" not in text.replace("http://www.w3.org", "")
        )
        assert "script-src 'self'" in headers["content-security-policy"]
        for name in ("page.js", "page.css", "connection.js", "run.js", "map.js", "paint.js", "panels.js"):
            assert get(where.read, f"/static/{name}")[0] == 200
        assert get(where.read, "/static/../page.py")[0] == 404
        assert get(where.read, "/report")[0] == 404
        assert get(where.read, "/", Host="evil.example")[0] == 421
        (run.folder / "report.html").write_text('<p>report <a href="measured_1">x</a><a href="#a">y</a></p>')
        assert get(where.read, "/report")[2] == '<p>report x<a href="#a">y</a></p>', "no link leads nowhere"


def test_a_visitor_sees_and_the_operator_commands(run: LiveRun) -> None:
    run.play_overview()
    with served(run) as where, Visitor(where.read) as guest, Visitor(where.operate) as operator:
        assert (guest.role, operator.role) == ("reader", "operator")
        assert guest.read_until(of_kind("run_started"))["event"]["name"] == "a run by hand"
        guest.read_until(of_kind("predicted"))
        refused = guest.send(Stop())
        assert not refused["taken"] and "may only look" in refused["text"]
        assert operator.send(Pause())["taken"]
        run.received(Pause())


@pytest.mark.parametrize(
    "hello, code",
    [
        ({"type": "HELLO", "token": "guessed"}, 4401),
        ({"type": "SEEN", "frames": 1}, 4401),
        ({"type": "WHAT"}, 4400),
    ],
)
def test_a_visitor_who_is_not_known_is_told_what_to_do(
    run: LiveRun, hello: dict[str, Any], code: int
) -> None:
    with served(run) as where, client.connect(ws(where.read), proxy=None) as socket_:
        socket_.send(json.dumps(hello))
        with pytest.raises(Exception, match=str(code)):
            socket_.recv(timeout=LIMIT_S)


def ws(where: str) -> str:
    return f"ws://{urlsplit(where).netloc}/feed"


def test_a_foreign_page_gets_nothing(run: LiveRun) -> None:
    with served(run) as where, pytest.raises(Exception, match="403"):
        client.connect(ws(where.read), origin="http://evil.example", proxy=None).__enter__()


def test_a_huge_frame_closes_that_viewer_only(run: LiveRun) -> None:
    run.play_overview()
    with served(run) as where, Visitor(where.read) as good, Visitor(where.read) as bad:
        with pytest.raises(closed.ConnectionClosed):
            bad.socket.send("x" * 50_000_000)
            while True:
                bad.socket.recv(timeout=LIMIT_S)
        good.read_until(of_kind("run_status"))
        run.predict(0)
        good.read_until(of_kind("predicted"))


def test_beyond_this_computer_everybody_needs_a_token(run: LiveRun) -> None:
    with served(run, PageSettings(host="0.0.0.0", port=free_port())) as where:
        local = f"http://127.0.0.1:{urlsplit(where.read).port}/"
        assert "#token=" in where.read and where.read != where.operate
        assert get(local, "/report")[0] == 401
        with client.connect(ws(local), proxy=None) as nobody:
            nobody.send(json.dumps({"type": "HELLO", "token": ""}))
            with pytest.raises(Exception, match="4401"):
                nobody.recv(timeout=LIMIT_S)
        with Visitor(local, urlsplit(where.read).fragment[6:]) as guest:
            assert guest.role == "reader"


def test_a_taken_port_is_told_and_the_run_goes_on(run: LiveRun) -> None:
    found: list[Announcement | str] = []
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with PageProcess(PageSettings(port=taken.getsockname()[1]), found.append) as process:
            process.handle(run.started)
            text = until(lambda: found, "the refusal")[0]
    assert isinstance(text, str) and "cannot be served" in text and "--port" in text
    run.play_overview()


def test_wrong_certificates_are_told(run: LiveRun) -> None:
    from acq_isl.view.web.server import serve_page

    (run.folder / "no.pem").write_text("no certificate")
    settings = PageSettings(port=free_port(), certificate=run.folder / "no.pem", key=run.folder / "no.pem")
    with pytest.raises(ExperimentError, match="certificate"):
        serve_page(run.folder, settings, lambda where: None)


def test_a_viewer_that_sleeps_gets_the_newest_when_it_wakes(run: LiveRun) -> None:
    run.play_overview()
    with served(run) as where, Visitor(where.read) as awake, Visitor(where.read) as asleep:

        def latest(header: dict[str, Any]) -> bool:
            return of_kind("decided")(header) and header["event"]["what"] == "199"

        for n in range(200):
            run.predict(n % 4)
            run.play(events.Decided(run.requests[0].key, "r", str(n), "why", "done"))
        awake.read_until(latest)
        for _ in range(8):
            asleep.read()
        with pytest.raises(TimeoutError):
            asleep.read(timeout_s=0.3)
        asleep.confirm()
        asleep.read_until(latest)
        pictures = [frame for frame in asleep.frames if of_kind("predicted")(frame)]
        assert len(pictures) < 50, "a sleeping viewer is not fed with what is old"


# --- the browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, where: str, **options: Any) -> Iterator[Any]:
    context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
    context.set_default_timeout(LIMIT_S * 1000)
    page = context.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto(where)
    yield page
    context.close()
    assert not failures


def has_text(page: Any, selector: str, text: str) -> None:
    page.locator(selector).filter(has_text=text).first.wait_for(state="attached")


def mean_color(page: Any) -> list[float]:
    found: list[float] = page.evaluate(
        """() => { const c = document.querySelector('#view');
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const s = [0, 0, 0];
        for (let i = 0; i < d.length; i += 4) for (let k = 0; k < 3; k++) s[k] += d[i + k];
        return s.map((v) => v / (d.length / 4)); }"""
    )
    return found


def test_a_label_is_toggled_and_what_is_predicted_says_so(run: LiveRun, chromium: Any) -> None:
    run.play_overview()
    with served(run) as where, opened(chromium, where.read) as page:
        has_text(page, "#name", "a run by hand")
        has_text(page, "#badge", "PREDICTED")
        page.locator("#frame.predicted").wait_for()
        has_text(page, "#layers", "nuclei (predicted)")
        before = mean_color(page)
        page.keyboard.press("1")
        until(lambda: mean_color(page)[2] < before[2] - 1, "less blue without nuclei")
        assert not page.locator("#show-label-0").is_checked()
        page.get_by_label("dendrites (predicted)", exact=True).uncheck()
        # The whole badge: what is predicted says "not measured", whatever its case.
        has_text(page, "#badge", "transmitted light")
        page.locator("#frame:not(.predicted)").wait_for()
        assert page.locator("#commands").is_hidden(), "a reader has no buttons to stop a run"


def test_a_field_is_pressed_with_mouse_and_keys(run: LiveRun, chromium: Any) -> None:
    run.play_overview()
    run.rank()
    with served(run) as where, opened(chromium, where.operate) as page:
        fields = page.locator("#outlines [role=button]")
        until(lambda: fields.count() == 4, "four fields on the map")
        fields.nth(1).click()
        has_text(page, "#about", "because of 1")
        assert page.locator("#follow").get_attribute("aria-pressed") == "false"
        page.keyboard.press("ArrowDown")
        has_text(page, "#about", "because of 3")
        has_text(page, "#decisions", "chosen, rank 1")
        page.locator("#go").click()
        run.received(GoTo(x_um=30.0, y_um=30.0))
        page.keyboard.press("f")
        until(lambda: page.locator("#follow").get_attribute("aria-pressed") == "true", "following")


def test_pause_resume_and_stop_reach_the_run(run: LiveRun, chromium: Any) -> None:
    run.play_overview()
    with served(run) as where, opened(chromium, where.operate) as page:
        has_text(page, "#state", "running")
        page.keyboard.press("p")
        run.received(Pause())
        run.play(events.StateChanged("paused", "paused by the operator"))
        has_text(page, "#pause", "Resume")
        page.locator("#pause").click()
        run.received(Pause(), Resume())
        page.locator("#stop").click()
        page.get_by_role("button", name="Go on").click()
        page.keyboard.press("s")
        page.locator("#stop-yes").click()
        run.received(Pause(), Resume(), Stop())
        (run.folder / "report.html").write_text("<p>report</p>")
        run.play(events.StateChanged("stopping", ""), events.RunEnded("", str(run.folder / "report.html")))
        has_text(page, "#state", "ended")
        has_text(page, "#notice", "The run is over.")


def test_the_page_comes_back_after_the_server_was_restarted(run: LiveRun, chromium: Any) -> None:
    run.play_overview(fields=1)
    settings = PageSettings(port=free_port())
    with served(run, settings) as where:
        context = opened(chromium, where.operate)
        page = context.__enter__()
        has_text(page, "#map-note", "1 of 4 fields predicted")
    has_text(page, "#state", "no contact")
    for n in (1, 2, 3):
        run.image(n)
        run.predict(n)
    with served(run, settings):
        has_text(page, "#state", "running")
        has_text(page, "#map-note", "4 of 4 fields predicted")
        page.keyboard.press("p")
        run.received(Pause())
        context.__exit__(None, None, None)


def test_a_slow_viewer_does_not_hold_up_the_other(run: LiveRun, chromium: Any) -> None:
    run.play_overview(fields=0)
    with served(run) as where, Visitor(where.read), opened(chromium, where.read) as page:
        for n in range(4):
            run.image(n)
            run.predict(n)
            for _ in range(20):
                run.predict(n)
        has_text(page, "#map-note", "4 of 4 fields predicted")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_can_be_read(run: LiveRun, chromium: Any, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for every colour of words on the ground it stands on."""
    run.play_overview()
    run.rank()
    pairs = [
        ("--ink", "--card"),
        ("--ink", "--page"),
        ("--soft", "--card"),
        ("--soft", "--page"),
        ("--card", "--accent"),
        ("--card", "--bad"),
        ("--badge-ink", "--badge"),
        ("--warn", "--warn-soft"),
        ("--bad", "--bad-soft"),
        ("--good", "--good-soft"),
        ("--accent", "--accent-soft"),
    ]
    with served(run) as where, opened(chromium, where.read, color_scheme=scheme) as page:
        for ink, ground in pairs:
            colors = page.evaluate(
                "(names) => names.map((n) => getComputedStyle(document.documentElement).getPropertyValue(n))",
                [ink, ground],
            )
            assert contrast(*colors) >= 4.5, f"{ink} on {ground}"


def contrast(first: str, second: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color.strip()[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_phone_needs_no_sideways_scrolling(run: LiveRun, chromium: Any) -> None:
    run.play_overview()
    run.rank()
    with (
        served(run) as where,
        opened(chromium, where.operate, viewport={"width": 360, "height": 740}) as page,
    ):
        has_text(page, "#decisions", "chosen, rank 1")
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= 360


def play_lapse(run: LiveRun, times: int) -> None:
    """A time-lapse of two fields: a count that grows, a stack refused, a focus not found."""
    name, series = "number of objects in nuclei (predicted)", CurveBook()
    planned = tuple(
        replace(one, key=StackKey(time, one.key.position, "Phase"))
        for time in range(times)
        for one in run.started.fields[:2]
    )
    run.play(replace(run.started, fields=planned))
    for time_, one in ((one.key.time, one) for one in planned):
        if one.key.position == "p0":
            run.play(events.TimePointBegan(time_ + 1, times, 60.0 * time_, 60.0 * time_ + 9 * (time_ > 3)))
        missing = one.key.position == "p1" and time_ % 20 == 7
        value = float("nan") if missing else 10.0 + time_
        point = Point(time_, 60.0 * time_, value, 2.0, why="refused: too dark" if missing else "")
        series.add(one.key.position, name, "objects", point)
        for curve in series.changed():
            run.play(events.CurveChanged.of(curve))
    run.play(events.FieldFailed(planned[-1].key, "skip this stack", "no reflection"))
    run.play(events.Step("overview", 2, 2, "imaged"))


def test_a_time_lapse_is_shown_over_time(run: LiveRun, chromium: Any) -> None:
    play_lapse(run, 50)
    with served(run) as where, opened(chromium, where.read) as page:
        has_text(page, "#phase", "time 50 of 50")
        has_text(page, "#late", "1 interval between time points could not be kept")
        has_text(page, "#curves figcaption", "number of objects in nuclei (predicted)")
        until(lambda: page.locator("#curves .strong").count() >= 1, "the mean of the fields")
        has_text(page, "#curves .key", "all fields, mean of 2: 59.0")
        assert "too dark" in page.locator("#curves .missing title").first.text_content()
        has_text(page, "#outlines", "failed")
        page.locator("#outlines [role=button]").nth(1).click()
        has_text(page, "#about", "no reflection")
        has_text(page, "#curves .key", "p1: 59.0 ± 2")


def test_everything_is_reached_by_keys_and_one_sees_where_one_is(run: LiveRun, chromium: Any) -> None:
    run.play_overview()
    run.rank()
    with served(run) as where, opened(chromium, where.operate) as page:
        has_text(page, "#decisions", "chosen, rank 1")
        page.locator("#stop:not([disabled])").wait_for()
        seen: dict[str, str] = {}
        for _ in range(40):
            page.keyboard.press("Tab")
            name, look = page.evaluate(
                """() => { const e = document.activeElement; const s = getComputedStyle(e);
                const fill = e.querySelector?.('.hit') ? getComputedStyle(e.querySelector('.hit')).fill : '';
                return [e.id || e.dataset.field || e.tagName, `${s.outlineStyle} ${fill}`]; }"""
            )
            seen[name] = look
        wanted = {"pause", "stop", "wall", "theme", "keys", "follow", "show-label-0", "opacity-doubt"}
        assert wanted <= set(seen) and any("/" in name for name in seen), seen
        assert all("solid" in seen[name] for name in wanted), seen
        page.locator("#theme").focus()
        page.keyboard.press("Enter")
        has_text(page, "#theme", "Theme: light")
        page.keyboard.press("Space")
        has_text(page, "#theme", "Theme: dark")


def test_a_picture_is_saved_with_what_is_predicted_written_on_it(run: LiveRun, chromium: Any) -> None:
    from PIL import Image

    run.play_overview()
    with served(run) as where, opened(chromium, where.read) as page:
        has_text(page, "#badge", "PREDICTED")
        with page.expect_download() as download:
            page.locator("#save").click()
        picture = Image.open(download.value.path())
        assert picture.format == "PNG" and picture.size[0] == SIDE and picture.size[1] > SIDE
        assert download.value.suggested_filename == "p3.png"
        assert picture.convert("RGB").getpixel((1, 1)) == (0x7A, 0x4B, 0x00)
