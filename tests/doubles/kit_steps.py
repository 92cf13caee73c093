"""Steps of a made-up GPU kit, in a module that their child process finds wherever pytest began."""

from __future__ import annotations

import os
import signal
import time

from acq_isl.cli.gpu_kit.card import NeedsCard
from acq_isl.cli.gpu_kit.steps import Wrong


def slow(card, note):
    note("began", "yes")
    time.sleep(60)
    return "late"


def crash(card, note):
    os.kill(os.getpid(), signal.SIGKILL)


def fine(card, note):
    note("size", 1.5)
    return "fine <script>alert(1)</script>"


def need_a_card(card, note):
    note("up to here", "done")
    raise NeedsCard("no card")


def wrong(card, note):
    raise Wrong("not so")


def broken(card, note):
    raise ValueError("vendor")
