"""A microscope for other people's tests: pytest fixtures, there as soon as acq-isl is installed.

::

    def test_my_script(simulated_scope, tmp_path):
        my_script.acquire(tmp_path)  # Core() and Acquisition of pycromanager work as on a microscope

Every test gets a microscope of its own, started in a fraction of a second, and closed again. Override
`specimen`, `scope_settings` or `faults` with fixtures of your own, or by parametrisation::

    @pytest.mark.parametrize("faults", [[], [DroppedFrames(every=5)], [StuckShutter(after=3)]])
    def test_my_script_in_trouble(simulated_scope, faults, tmp_path): ...

Everything heavy is imported when a fixture is used: this file costs other test runs nothing.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from acq_isl.experiment.faults import ScopeFault
    from acq_isl.sim import ScopeSettings, SimulatedScope, Specimen


@pytest.fixture
def specimen() -> Specimen:
    """What lies on the stage: simulated neurons, the same in every test."""
    from acq_isl.sim import SyntheticSpecimen

    return SyntheticSpecimen(seed=1)


@pytest.fixture
def scope_settings() -> ScopeSettings:
    """Camera, objective and stages of the simulated microscope: small images, for speed."""
    from acq_isl.sim import ScopeSettings

    return ScopeSettings(shape=(256, 256), buffer_size_mb=16)


@pytest.fixture
def faults() -> Sequence[ScopeFault]:
    """What goes wrong on purpose (`acq_isl.experiment.faults`): nothing."""
    return ()


@pytest.fixture
def simulated_scope(
    specimen: Specimen, scope_settings: ScopeSettings, faults: Sequence[ScopeFault]
) -> Iterator[SimulatedScope]:
    """A running simulated microscope: ``.core``, ``.truth()``, ``.view()``, ``.last_exposure``."""
    from acq_isl.sim import SimulatedScope

    # ndstorage leaves handles of every data set open; under -W error tests would fail for what is not theirs.
    # Pytest sets the filters back after each test.
    warnings.filterwarnings("ignore", r"unclosed file .*NDTiff", ResourceWarning)
    with SimulatedScope(specimen, settings=scope_settings, faults=faults) as scope:
        yield scope
    gc.collect()
