"""Signals: one is enough, a second one does no harm, and what others handle stays theirs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from acq_isl.hooks import StoppedBySignal, StopSignals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot signal itself on Windows")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    "number, words, code",
    [
        (signal.SIGINT, "stopped by Ctrl-C", 130),
        (signal.SIGTERM, "stopped by SIGTERM", 143),
        (signal.SIGHUP, "stopped by SIGHUP (the terminal was closed)", 129),
    ],
)
def test_a_signal_is_told_at_once_and_raised_as_ctrl_c_is(number: int, words: str, code: int) -> None:
    told, heard = list[str](), threading.Event()
    with pytest.raises(KeyboardInterrupt) as stop, StopSignals() as signals:
        signals.tell = lambda why: (told.append(why), heard.set())[0]
        send(number)
        pytest.fail("nothing was raised")
    assert isinstance(stop.value, StoppedBySignal)
    assert (str(stop.value), stop.value.exit_code) == (words, code)
    assert heard.wait(5) and told == [words]


def test_it_is_told_while_the_main_thread_does_not_get_to_raise_it() -> None:
    heard = threading.Event()
    with StopSignals() as signals:
        signals.hold()
        signals.tell = lambda why: heard.set()
        send(signal.SIGTERM)
        assert heard.wait(5)


def test_winding_up_is_not_disturbed_but_by_ctrl_c_pressed_three_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wound_up = []
    with pytest.raises(StoppedBySignal), StopSignals():
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGTERM)
            send(signal.SIGINT)
            wound_up.append("shutter")
            send(signal.SIGINT)
            wound_up.append("report")
    assert wound_up == ["shutter", "report"]
    with pytest.raises(StoppedBySignal, match="Ctrl-C"), StopSignals() as signals:
        signals.hold()
        for _ in range(3):
            send(signal.SIGINT)
        pytest.fail("the third one insists")
    assert any("stopping already" in line.message for line in caplog.records)


def test_handlers_of_others_stay_and_ours_go() -> None:
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals():
            send(signal.SIGTERM)
            send(signal.SIGHUP)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGHUP, ignored)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        with StopSignals():  # the outer one has them
            pass
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before and signal.getsignal(signal.SIGINT) is not None


def test_a_thread_leaves_signals_alone() -> None:
    found = []

    def enter() -> None:
        with StopSignals() as signals:
            signals.hold()
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(10)
    assert found == [signal.SIG_DFL]


def test_a_terminal_that_is_gone_is_not_written_to(tmp_path: Path) -> None:
    import pty
    import subprocess

    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom acq_isl.hooks import StopSignals\n"
        "here = Path(sys.argv[1])\n"
        "try:\n"
        "    with StopSignals():\n"
        "        (here / 'ready').touch()\n"
        "        time.sleep(60)\n"
        "except KeyboardInterrupt as stop:\n"
        "    print('words to nobody', flush=True)\n"
        "    (here / 'stopped').write_text(str(stop))\n"
    )
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _SESSION, str(script), str(tmp_path)],
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    try:
        for _ in range(600):
            if (tmp_path / "ready").exists():
                break
            threading.Event().wait(0.1)
        os.close(main)  # the window is closed
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    assert "terminal was closed" in (tmp_path / "stopped").read_text()
    assert process.returncode == 0


# A process is told of its terminal's end if it leads the session of that terminal.
_SESSION = """
import fcntl, os, runpy, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0])
"""
