"""Preparing ahead: where a scan goes next, never in the way, and the same pictures."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from acq_isl.sim.scope.render import Prefetch, predict_scan
from acq_isl.sim.specimen.cache import ResultCache
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import Preparable, View

VIEW = View(0.0, 0.0, 0.0, "Phase", 0.3, (96, 128))
STEP_UM = 30.0
WAIT_S = 20.0


@pytest.mark.parametrize(
    "now, places",
    [
        (replace(VIEW, x_um=STEP_UM), [(60.0, 0.0), (90.0, 0.0)]),
        (replace(VIEW, x_um=-STEP_UM, y_um=10.0), [(-60.0, 20.0), (-90.0, 30.0)]),
        (replace(VIEW, z_um=3.0), []),
        (replace(VIEW, x_um=700.0), []),
        (replace(VIEW, x_um=STEP_UM, pixel_size_um=0.15), []),
    ],
    ids=["along x", "back and down", "only the focus moved", "a jump", "another objective"],
)
def test_a_scan_goes_on_as_it_went(now, places):
    assert [(view.x_um, view.y_um) for view in predict_scan(VIEW, now, 2)] == places


class Slow:
    """Preparable when told to."""

    def __init__(self):
        self.allowed, self.begun = threading.Semaphore(0), threading.Semaphore(0)
        self.prepared = []

    def prepare(self, view):
        self.begun.release()
        assert self.allowed.acquire(timeout=WAIT_S)
        self.prepared.append(view.x_um)


def test_saying_what_was_seen_never_waits_and_what_is_too_much_is_counted():
    slow = Slow()
    with Prefetch(slow.prepare, 1) as prefetch:
        prefetch.follow(VIEW)
        prefetch.follow(replace(VIEW, x_um=STEP_UM))
        assert slow.begun.acquire(timeout=WAIT_S)
        for n in (2, 3, 4):  # one waits, the others are dropped
            prefetch.follow(replace(VIEW, x_um=n * STEP_UM))
        assert prefetch.dropped == 2
        for _ in range(2):
            slow.allowed.release()
        assert slow.begun.acquire(timeout=WAIT_S)
    assert slow.prepared == [60.0, 90.0]


def test_an_error_ahead_is_not_the_users():
    failed = threading.Event()

    def fail(view):
        failed.set()
        raise ValueError(view.x_um)

    with Prefetch(fail, 2) as prefetch:
        prefetch.follow(VIEW)
        prefetch.follow(replace(VIEW, x_um=STEP_UM))
        assert failed.wait(WAIT_S)


@pytest.mark.slow
def test_a_prepared_place_looks_the_same():
    named: Preparable = SyntheticSpecimen(4)
    there = replace(VIEW, x_um=STEP_UM, z_um=2.0)
    named.prepare(replace(there, z_um=-5.0))
    np.testing.assert_array_equal(named.render(there), SyntheticSpecimen(4).render(there))


def test_a_shelf_makes_each_thing_once_and_forgets_the_oldest():
    cache, made = ResultCache(2), []

    def make(key):
        made.append(key)
        return key

    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: make(key)) == key
    assert made == ["a", "b", "c", "b"]
    assert "c" not in cache


def test_a_shelf_keeps_no_error():
    cache = ResultCache(2)

    def fail():
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        cache.get("a", fail)
    assert cache.get("a", lambda: 1) == 1


def test_two_threads_wait_for_the_same_thing_and_not_for_another():
    cache, gate, answers = ResultCache(4), threading.Event(), []

    def make():
        assert gate.wait(WAIT_S)
        return 1

    threads = [threading.Thread(target=lambda: answers.append(cache.get("a", make))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert cache.get("b", lambda: 2) == 2
    gate.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert answers == [1, 1]
